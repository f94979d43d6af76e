"""Tiles of similarity products: their size by device, and products of full fp32 precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

TILE_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
"""Upper bound on one tile, by type of device. A CPU's operations on a tile read it from the cache; a GPU's run too
briefly on as little (docs/selection.md)."""

MEMORY_SHARE = 128
"""A tile on a GPU takes at most this fraction of its memory. Not of what is free: sums would depend on it in their last
digits, and the driver takes half a millisecond to answer (H200), a twentieth of a strip at the paper's scale."""


def tile_bytes(device: torch.device) -> int:
    """Upper bound on one tile of similarities in bytes; the same wherever the device is of the same kind."""
    if device.type != "cuda":
        return TILE_BYTES["cpu"]
    return min(TILE_BYTES["cuda"], torch.cuda.get_device_properties(device).total_memory // MEMORY_SHARE)


def tiles(columns: int | slice, rows: int, like: Tensor) -> Iterator[slice]:
    """Slices over ``columns`` such that a tile of ``rows`` × slice has at most ``tile_bytes`` (or is one wide).

    Args:
        columns: the whole extent that is sliced, or a share of it.
        rows: the other extent of each tile.
        like: a tensor of the tiles' number format and device.
    """
    width = max(1, tile_bytes(like.device) // max(1, rows * like.element_size()))
    share = columns if isinstance(columns, slice) else slice(0, columns)
    for start in range(share.start, share.stop, width):
        yield slice(start, min(share.stop, start + width))


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Inside this context matrix products have their inputs' own precision: no autocast, and never TF32 for fp32."""
    with torch.autocast(device.type, enabled=False):
        undo = _without_tf32()
        try:
            yield
        finally:
            undo()


def _without_tf32() -> Callable[[], None]:
    """Switch reduced precision of fp32 products off; return what switches it on again."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # TF32 was asked for by torch's newer flag, beside which the older one cannot be read
        matmul, new = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
        matmul.fp32_precision = "ieee"
        return partial(setattr, matmul, "fp32_precision", new)
    if before == "highest":
        return lambda: None
    torch.set_float32_matmul_precision("highest")
    return partial(torch.set_float32_matmul_precision, before)
