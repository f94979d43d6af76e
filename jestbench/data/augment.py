"""Augmentation: random crops of a pair's image, a function of seed, pair and step alone.

No paper on data selection needs augmentation, and jestbench trains without it by default: the selection then
depends on the pair, not on a crop of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from jestbench import seeds
from jestbench.batch import Batch
from jestbench.data.damage import intact
from jestbench.data.pairs import IndexedPairs, Wrapped
from jestbench.data.tries import TriedPair, Tries


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, resized to the whole (Szegedy et al. 2015, 1409.4842, section 6).

    The input is the image at the size at which the data set delivers it.

    Attributes:
        scale: share of the image's area that a crop takes, drawn uniformly between these two bounds.
        ratio: width over height of a crop, its logarithm drawn uniformly between these two bounds.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1):
            raise ValueError(
                f"random_resized_crop.scale holds two shares of the area, 0 < low ≤ high ≤ 1: {self.scale}"
            )
        if not (len(self.ratio) == 2 and 0 < self.ratio[0] <= self.ratio[1]):
            raise ValueError(f"random_resized_crop.ratio is two ratios, 0 < low ≤ high: {self.ratio}")

    def box(self, height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop, in pixels: that of torchvision's transform of the same name."""
        for _ in range(10):
            area = height * width * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
        return 0, 0, height, width

    def __call__(self, images_BCHW: Tensor, seed_B: list[int]) -> Tensor:
        """Images of the same shape, each cropped with its own seed; uint8 in and out."""
        height, width = images_BCHW.shape[2:]
        out_BCHW = torch.empty_like(images_BCHW, memory_format=torch.contiguous_format)
        for image_CHW, out_CHW, seed in zip(images_BCHW, out_BCHW, seed_B, strict=True):
            top, left, h, w = self.box(height, width, np.random.default_rng(seed))
            crop_1CHW = image_CHW[None, :, top : top + h, left : left + w]
            out_CHW[:] = interpolate(crop_1CHW, (height, width), mode="bilinear", antialias=True)[0]
        return out_BCHW


class AugmentedPairs(Wrapped):
    """The augmented pairs of a split at all steps: position ``step · N + i`` is pair ``i``, cropped for that step.

    Keys are those of the plain pair: an embedding cached by key would belong to some other crop,
    which is why a run whose reference caches embeddings refuses augmentation.

    Args:
        pairs: the split.
        augment: what is done to each image at each step.
        seed: of the crops.
    """

    def __init__(self, pairs: IndexedPairs, augment: RandomResizedCrop, seed: int) -> None:
        super().__init__(pairs)
        self.augment, self.seed = augment, seed
        self.fingerprint = f"{pairs.fingerprint}/{augment}/{seed}"
        self.preprocessing = self.fingerprint  # all that the pairs depend on, as all crops of an image share its key
        self.augmented = True
        self.decoded = False  # cropping is worth worker processes even where nothing is decoded

    def at_step(self, step: int, index_B: Tensor) -> Tensor:
        """Position ``step · N + i`` of pair ``i``, by which workers and other processes crop it for that step."""
        return index_B + step * len(self)

    def drawn(self, seed: int, epoch: int) -> AugmentedPairs:
        """The split as it stands in an epoch, cropped."""
        return AugmentedPairs(self.pairs.drawn(seed, epoch), self.augment, self.seed)

    def attempt(self, index_B: Tensor) -> tuple[Batch, Mapping[int, Any]]:
        """The pairs at these positions, the intact ones cropped; and the damaged ones, by place in the batch."""
        batch, damaged = self.pairs.attempt(index_B % len(self))
        return self._cropped(batch, intact(len(batch), damaged), index_B), damaged

    def replaced(self, damaged: Mapping[int, Any], index_B: Tensor, tries: Tries) -> list[TriedPair]:
        """The split's own."""
        return self.pairs.replaced(damaged, index_B % len(self), tries)

    def shown(self, rows: Batch, index_K: Tensor) -> Batch:
        """The pairs, cropped for the step of the pair that they stand for."""
        return self._cropped(rows, torch.arange(len(rows)), index_K)

    def _cropped(self, batch: Batch, slot_K: Tensor, index_B: Tensor) -> Batch:
        steps, keys = (index_B[slot_K] // len(self)).tolist(), batch.image_key_B[slot_K].tolist()
        seed_K = [
            seeds.derive(self.seed, "augment", (step << 64) | (key % 2**64))
            for step, key in zip(steps, keys, strict=True)
        ]
        images_BCHW = batch.images_BCHW.clone()
        images_BCHW[slot_K] = self.augment(batch.images_BCHW[slot_K], seed_K)
        return replace(batch, images_BCHW=images_BCHW)
