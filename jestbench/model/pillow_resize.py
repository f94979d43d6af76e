"""Resizing of square uint8 images on any device, equal to Pillow's to the last bit.

The pretrained models of other libraries were trained on images that Pillow had resized. torch's own antialiased
interpolation differs from Pillow's by up to 2 of 255 in a few pixels of a hundred, which moves embeddings by 1e-3.
Pillow's algorithm (libImaging/Resample.c): weights of a separable kernel, normalised, in fixed point of 22 bits;
first along the rows, then along the columns, each time rounded and clipped to uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Kernel = Literal["bilinear", "bicubic", "lanczos"]
BITS = 22
"""Bits behind the point: 32, less 8 of a pixel and 2 for weights beyond 1 and below 0."""


Array = npt.NDArray[np.float64]


def _bilinear(x: Array) -> Array:
    weight: Array = np.maximum(0.0, 1 - np.abs(x))
    return weight


def _bicubic(x: Array, a: float = -0.5) -> Array:
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: Array) -> Array:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0.0)


KERNELS: Mapping[Kernel, tuple[Callable[[Array], Array], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
"""Kernel and its half width, in pixels of the smaller image."""


@lru_cache(maxsize=32)
def _weights(old: int, new: int, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """For each of ``new`` pixels, the pixels of a line of ``old`` ones that it is made of, and their weights.

    In numpy, since a price is traced: torch would trace this too.

    Returns:
        int64 positions and int32 weights, ``[taps, new]``; weights of unused taps are 0.
    """
    shape, half = KERNELS[kernel]
    scale = old / new
    wider = max(scale, 1.0)
    reach, slope = half * wider, 1.0 / wider
    centre_N = (np.arange(new) + 0.5) * scale
    first_N = np.maximum((centre_N - reach + 0.5).astype(np.int64), 0)
    last_N = np.minimum((centre_N + reach + 0.5).astype(np.int64), old)
    at_TN = first_N + np.arange(math.ceil(reach) * 2 + 1)[:, None]
    value_TN = np.where(at_TN < last_N, shape((at_TN - centre_N + 0.5) * slope), 0.0)
    share_TN = value_TN / np.cumsum(value_TN, axis=0)[-1] * (1 << BITS)  # summed in order, as Pillow does
    weight_TN = (share_TN + np.copysign(0.5, share_TN)).astype(np.int32)
    return torch.from_numpy(np.minimum(at_TN, old - 1)), torch.from_numpy(np.where(at_TN < last_N, weight_TN, 0))


def _along_rows(images: Tensor, new: int, kernel: Kernel) -> Tensor:
    """Images ``[…, W]`` resized along their last dimension."""
    old = int(images.shape[-1])  # within a trace a shape holds tensors
    if old == new:
        return images
    position, weight = (part.to(images.device) for part in _weights(old, new, kernel))
    sum_ = torch.full((*images.shape[:-1], new), 1 << (BITS - 1), dtype=torch.int32, device=images.device)
    pixels = images.to(torch.int32)
    for tap in range(len(position)):
        sum_ += pixels.index_select(-1, position[tap]) * weight[tap]
    return (sum_ >> BITS).clamp(0, 255).to(torch.uint8)


def pillow_resized(images_BCHW: Tensor, side: int, kernel: Kernel) -> Tensor:
    """Square images ``[B, C, side, side]``, each as Pillow's ``resize`` makes it.

    Args:
        images_BCHW: uint8, square.
        side: of the result, pixels.
        kernel: ``bilinear``, ``bicubic`` or ``lanczos``, antialiased.
    """
    rows = _along_rows(images_BCHW, side, kernel)
    return _along_rows(rows.transpose(-1, -2), side, kernel).transpose(-1, -2)
