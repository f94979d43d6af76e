"""jestbench: compute-matched comparison of data-selection policies for image–text training.

Importing this package imports neither gin nor wandb; the names below load torch when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jestbench.batch import Batch, Pass, Selection
    from jestbench.compare.report import compare_runs
    from jestbench.cost.tracing import UnknownOperator, forward_macs
    from jestbench.launch.command import main
    from jestbench.runs.loaded_model import load_model
    from jestbench.select import Embeddings, Scores, conditional_logits, joint_sample

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Embeddings",
    "Pass",
    "Scores",
    "Selection",
    "UnknownOperator",
    "__version__",
    "compare_runs",
    "conditional_logits",
    "forward_macs",
    "joint_sample",
    "load_model",
    "main",
]

_HOMES = {
    "Batch": "jestbench.batch",
    "Embeddings": "jestbench.select",
    "Pass": "jestbench.batch",
    "Scores": "jestbench.select",
    "Selection": "jestbench.batch",
    "UnknownOperator": "jestbench.cost.tracing",
    "compare_runs": "jestbench.compare.report",
    "conditional_logits": "jestbench.select",
    "forward_macs": "jestbench.cost.tracing",
    "joint_sample": "jestbench.select",
    "load_model": "jestbench.runs.loaded_model",
    "main": "jestbench.launch.command",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
