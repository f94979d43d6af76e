"""jestbench: compute-matched comparison of data-selection policies for image–text training.

Importing this package imports neither gin nor wandb; the names below load torch when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jestbench.batch import Batch as Batch
    from jestbench.batch import Pass as Pass
    from jestbench.batch import Selection as Selection
    from jestbench.compare.report import compare_runs as compare_runs
    from jestbench.cost.tracing import UnknownOperator as UnknownOperator
    from jestbench.cost.tracing import forward_macs as forward_macs
    from jestbench.launch.command import main as main
    from jestbench.runs.loaded_model import load_model as load_model
    from jestbench.select import Embeddings as Embeddings
    from jestbench.select import Scores as Scores
    from jestbench.select import conditional_logits as conditional_logits
    from jestbench.select import joint_sample as joint_sample

__version__ = "0.1.0"
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
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
