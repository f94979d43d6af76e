"""jestbench: compute-matched comparison of data-selection policies for image–text training.

Importing this package imports neither gin nor wandb; the names below load torch when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jestbench.batch import Batch, Pass, Selection
    from jestbench.scores import Embeddings, Scores

__version__ = "0.1.0"
__all__ = ["Batch", "Embeddings", "Pass", "Scores", "Selection", "__version__"]

_HOMES = {
    "Batch": "jestbench.batch",
    "Pass": "jestbench.batch",
    "Selection": "jestbench.batch",
    "Embeddings": "jestbench.scores",
    "Scores": "jestbench.scores",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
