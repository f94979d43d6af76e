"""Strips on CUDA: the products of a tile by cuBLAS, then softplus or exponential and row sum in one pass over them.

``jestbench.select.strips.strip_sums`` calls ``usable``, and stays with plain torch where it returns False: off CUDA,
without triton, with JESTBENCH_FUSED=0 in the environment, or on a device where the kernel fails its one test against
the dense formula. Products and sums have full fp32 precision, never TF32.

A kernel that makes the products itself writes no tile, and was three times slower on an H200: without tensor cores,
which have no fp32, Triton's product is far from cuBLAS's, while to write and to read a tile takes a sixteenth of the
time of its product (163,840 × 2048 × 768; docs/selection.md).
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

from jestbench.disk import first_line
from jestbench.select.losses import LossName
from jestbench.select.tiles import exact_products, tiles

COLUMNS, ELEMENTS = 1024, 2048
"""Most columns, and products, that a program of the kernel holds at once."""


def usable(embeddings_BD: Tensor) -> bool:
    """Whether the kernel takes these embeddings: fp32 on CUDA, triton installed, ``proven`` on the device."""
    fits = embeddings_BD.is_cuda and embeddings_BD.dtype == torch.float32 and torch.version.hip is None
    return fits and os.environ.get("JESTBENCH_FUSED") != "0" and _installed() and proven(embeddings_BD.device)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


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
        reason = first_line(error)
        warnings.warn(f"fused strips are off on {device}, plain torch takes their place: {reason}", stacklevel=2)
        return False
    return True


def row_sums(left_BD: Tensor, right_CD: Tensor, scale: float, offset: float, loss: LossName) -> Tensor:
    """Σ_j softplus(t·⟨x_i, y_j⟩ + b₀) (sigmoid) or LSE_j t·⟨x_i, y_j⟩ (softmax) of every row, ``[B]``."""
    sums_B = left_BD.new_empty(len(left_BD))
    with exact_products(left_BD.device):
        for rows in tiles(len(left_BD), len(right_CD), left_BD):
            sum_products(left_BD[rows] @ right_CD.T, sums_B[rows], scale, offset, loss)
    return sums_B


def sum_products(products_RC: Tensor, sums_R: Tensor, scale: float, offset: float, loss: LossName) -> None:
    """Write the row sums of a contiguous tile of cosines."""
    triton, kernel = _kernel()
    rows, columns = products_RC.shape
    width = min(COLUMNS, triton.next_power_of_2(columns))
    height = ELEMENTS // width
    with torch.cuda.device_of(products_RC):  # triton launches on the current device, not on that of the tensors
        kernel[(triton.cdiv(rows, height),)](
            products_RC, sums_R, rows, columns, scale, offset, SIGMOID=loss == "sigmoid", ROWS=height, COLUMNS=width
        )


@functools.cache
def _kernel() -> tuple[Any, Any]:
    # Imported at first use: machines without CUDA need no triton.
    import triton

    from jestbench.select import _row_kernel

    return triton, _row_kernel.sum_rows
