"""The compute-matched comparison: run folders in; table, plots and one HTML page out."""

from jestbench.compare.command import compare, main, render
from jestbench.compare.comparison import Arm, Comparison, Excluded, Paired, ReferenceRow, SeedRun, Speedup
from jestbench.compare.load import CompareError
from jestbench.compare.table import format_table

__all__ = [
    "Arm",
    "CompareError",
    "Comparison",
    "Excluded",
    "Paired",
    "ReferenceRow",
    "SeedRun",
    "Speedup",
    "compare",
    "format_table",
    "main",
    "render",
]
