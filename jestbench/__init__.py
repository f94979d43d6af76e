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
    "Batch": "jestbench.batch.Batch",
    "Embeddings": "jestbench.select.Embeddings",
    "Pass": "jestbench.batch.Pass",
    "Scores": "jestbench.select.Scores",
    "Selection": "jestbench.batch.Selection",
    "UnknownOperator": "jestbench.cost.tracing.UnknownOperator",
    "compare_runs": "jestbench.compare.report.compare_runs",
    "conditional_logits": "jestbench.select.conditional_logits",
    "forward_macs": "jestbench.cost.tracing.forward_macs",
    "joint_sample": "jestbench.select.joint_sample",
    "load_model": "jestbench.runs.loaded_model.load_model",
    "main": "jestbench.launch.command.main",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        module, _, attribute = _HOMES[name].rpartition(".")
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
