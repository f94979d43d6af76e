"""Two ways to find images that look alike: thumbnails and perceptual hashes.

This module imports neither torch nor anything that imports torch: every worker process imports it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Alike = Literal["pixels", "hash"]

THUMBNAIL = 16
"""Width and height of the grey thumbnails that are compared."""

COPY = 1e-3
"""Mean squared difference of two thumbnails (grey in [0, 1]) below which one drawing is a copy of the other.
Chosen by eye: below it lie tracings of the same logo and icons that one set took over from another, above
it different hands' drawings of the same simple thing."""

LOOK_BITS = 128
"""Bits of a perceptual hash."""

NEAR = 5
"""Drawings whose hashes differ in at most this many bits look alike. Chosen by eye: up to here lie recolourings,
skin tones, genders and tracings of one drawing, and simple shapes that all hands draw alike; from twice as many bits
on, drawings that only share an outline."""

BLOCK = 4096
"""Looks compared at a time: all at once would fill the memory."""


def thumbnail(images_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Small grey images in [0, 1], flattened: float32 ``[N, D]``."""
    count, size = images_NHWC.shape[:2]
    step = size // THUMBNAIL
    grey = images_NHWC[..., : step * THUMBNAIL, : step * THUMBNAIL, :].mean(axis=-1, dtype=np.float32) / 255
    blocks = grey.reshape(count, THUMBNAIL, step, THUMBNAIL, step).mean(axis=(2, 4))
    small: npt.NDArray[np.float32] = blocks.reshape(count, THUMBNAIL**2)
    return small


def near_copies(thumbnail_ND: npt.NDArray[np.float32], original_MD: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which thumbnails differ from one of the originals by less than ``COPY``: bool ``[N]``."""
    copies = np.zeros(len(thumbnail_ND), dtype=np.bool_)
    square_M = (original_MD**2).sum(axis=1)
    for start in range(0, len(thumbnail_ND), BLOCK):
        block = thumbnail_ND[start : start + BLOCK]
        distance = (block**2).sum(axis=1)[:, None] + square_M - 2 * block @ original_MD.T
        copies[start : start + BLOCK] = (distance < COPY * thumbnail_ND.shape[1]).any(axis=1)
    return copies


def perceptual_hash(images_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Perceptual hashes that colour and brightness do not change: uint8 ``[N, 16]``, packed bits.

    A difference hash: for each of 8 × 8 blocks, whether it is lighter than its right neighbour, and lighter than the
    block below (wrapping around). Computed in integers, so that it is the same on every machine.
    """
    grey = np.rint(thumbnail(images_NHWC) * 255).astype(np.uint8)
    blocks = grey.reshape(-1, 8, 2, 8, 2).sum(axis=(2, 4), dtype=np.int32)
    bits = [blocks > np.roll(blocks, -1, axis=axis) for axis in (2, 1)]
    return np.packbits(np.concatenate(bits, axis=1).reshape(-1, LOOK_BITS), axis=1)


def near_hashes(look_NW: npt.NDArray[np.uint8], original_MW: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which hashes differ from one of the originals in at most ``NEAR`` bits: bool ``[N]``."""

    def signs(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1

    alike = np.zeros(len(look_NW), dtype=np.bool_)
    original_DM = signs(original_MW).T
    for start in range(0, len(look_NW), BLOCK):
        # The dot product of two rows of signs is the number of bits less twice the number that differ.
        product = signs(look_NW[start : start + BLOCK]) @ original_DM
        alike[start : start + BLOCK] = (product >= LOOK_BITS - 2 * NEAR).any(axis=1)
    return alike


@dataclass(frozen=True)
class Looks:
    """A way to compare images.

    Attributes:
        of: images → a vector for each to compare by, ``[N, W]``.
        alike: vectors, and vectors of the originals → which images look like an original, bool ``[N]``.
        near: the threshold of ``alike``, for the manifest.
    """

    of: Callable[[npt.NDArray[np.uint8]], npt.NDArray[Any]]
    alike: Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[np.bool_]]
    near: Mapping[str, float]


LOOKS: Mapping[Alike, Looks] = {
    "pixels": Looks(thumbnail, near_copies, {"mean squared difference": COPY}),
    "hash": Looks(perceptual_hash, near_hashes, {"bits": LOOK_BITS, "distance": NEAR}),
}
