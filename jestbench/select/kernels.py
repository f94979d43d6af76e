"""Fused strips on CUDA: product, softplus or exponential, and row sum, without writing a tile.

``jestbench.select.scores.strip_sums`` calls ``usable``, and stays with plain torch where it returns False: off CUDA,
without triton, with JESTBENCH_FUSED=0 in the environment, or on a device where the kernel fails its one test against
the dense formula. Products and sums have full fp32 precision (``ieee``, never tf32).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.select.losses import LossName

ROWS, COLUMNS, DEPTH = 64, 64, 32


def usable(embeddings_BD: Tensor) -> bool:
    """Whether the fused kernel takes these embeddings: fp32 on CUDA, triton installed, ``proven`` on the device."""
    fits = embeddings_BD.is_cuda and embeddings_BD.dtype == torch.float32 and torch.version.hip is None
    if not fits or os.environ.get("JESTBENCH_FUSED") == "0" or importlib.util.find_spec("triton") is None:
        return False
    return proven(embeddings_BD.device)


@functools.cache
def proven(device: torch.device) -> bool:
    """Whether the kernel equals the dense formulas in float64 on a small case; warns, once a device, where not."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 80, generator=generator).to(device) / 80**0.5 for n in (150, 70))
    products = (left.double() @ right.double().T).cpu()
    sums, lses = F.softplus(10 * products - 10).sum(1), (10 * products).logsumexp(1)
    cases: tuple[tuple[LossName, float, Tensor], ...] = (("sigmoid", -10.0, sums), ("softmax", 0.0, lses))
    try:
        for loss, offset, wanted in cases:
            found = row_sums(left, right, 10.0, offset, loss).double().cpu()
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    except Exception as error:  # a compiler, a driver or a wrong sum: plain torch depends on none of these
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        warnings.warn(f"fused strips are off on {device}, plain torch takes their place: {reason}", stacklevel=2)
        return False
    return True


def row_sums(left_BD: Tensor, right_CD: Tensor, scale: float, offset: float, loss: LossName) -> Tensor:
    """Σ_j softplus(t·⟨x_i, y_j⟩ + b₀) (sigmoid) or LSE_j t·⟨x_i, y_j⟩ (softmax) of every row, ``[B]``."""
    triton, kernel = _kernel()
    sums_B = left_BD.new_empty(len(left_BD))
    with torch.cuda.device_of(left_BD):  # triton launches on the current device, not on that of the tensors
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

    from jestbench.select import _strip_kernel

    return triton, _strip_kernel.strip_sums
