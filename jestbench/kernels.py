"""Fused strips on CUDA: product, softplus or exponential, and row sum, without writing a tile.

``strip_sums`` of ``jestbench.scores`` asks ``usable`` and stays with plain torch where the answer is no. The
kernel equals the plain path in Triton's interpreter, but has not been measured on a GPU yet: until then it is
used only where the environment variable JESTBENCH_FUSED is set to 1.
Products are of full fp32 precision (``ieee``, never tf32), and so are the sums.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from jestbench.model.losses import LossName

ROWS, COLUMNS, DEPTH = 64, 64, 32


def usable(embeddings_BD: Tensor) -> bool:
    """Whether these go through the fused kernel: fp32 on CUDA, with triton installed, and asked for."""
    if os.environ.get("JESTBENCH_FUSED") != "1":
        return False
    fits = embeddings_BD.is_cuda and embeddings_BD.dtype == torch.float32 and torch.version.hip is None
    return fits and importlib.util.find_spec("triton") is not None


def row_sums(left_BD: Tensor, right_CD: Tensor, scale: float, offset: float, loss: LossName) -> Tensor:
    """Σ_j softplus(t·⟨x_i, y_j⟩ + b₀) (sigmoid) or LSE_j t·⟨x_i, y_j⟩ (softmax) of every row, ``[B]``."""
    triton, kernel = _kernel()
    sums_B = left_BD.new_empty(len(left_BD))
    kernel[(triton.cdiv(len(left_BD), ROWS),)](
        left_BD.contiguous(),
        right_CD.contiguous(),
        sums_B,
        len(left_BD),
        len(right_CD),
        left_BD.shape[1],
        scale,
        offset,
        SIGMOID=loss == "sigmoid",
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        DEPTH=DEPTH,
    )
    return sums_B


@functools.cache
def _kernel() -> tuple[Any, Any]:
    # Imported at first use: machines without CUDA need no triton.
    import triton

    from jestbench import _strip_kernel

    return triton, _strip_kernel.strip_sums
