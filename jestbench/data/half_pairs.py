"""One half of a split, by the low bit of the images' content keys."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from jestbench.batch import Batch, DataError
from jestbench.data.pairs import IndexedPairs, Wrapped

Half = Literal[0, 1]
HALVES: tuple[Half, Half] = (0, 1)


def half_of(image_key_B: Tensor) -> Tensor:
    """The half, 0 or 1, that each pair belongs to, ``[B]``."""
    return image_key_B & 1


class HalfPairs(Wrapped):
    """The pairs of a split whose images belong to one half.

    Attributes:
        pairs: the whole split.
        half: which half.
        index_N: positions of the half's pairs in the whole split.
    """

    def __init__(self, pairs: IndexedPairs, half: Half) -> None:
        super().__init__(pairs)
        self.half = half
        self.index_N = (half_of(torch.as_tensor(pairs.image_key_N)) == half).nonzero().flatten()
        self.name, self.fingerprint = f"{pairs.name}, half {half}", f"{pairs.fingerprint}-half{half}"
        self.image_key_N = pairs.image_key_N[self.index_N.numpy()]
        self.columns = {name: column[self.index_N.numpy()] for name, column in pairs.columns.items()}

    @property
    def text_key_N(self) -> Tensor:
        """Content hash of each caption of the half."""
        return self.pairs.text_key_N[self.index_N]

    def __len__(self) -> int:
        return len(self.index_N)

    def drawn(self, seed: int, epoch: int) -> HalfPairs:
        """The half of the split as it stands in an epoch: other captions of the same images."""
        whole = self.pairs.drawn(seed, epoch)
        if whole is self.pairs:
            return self
        half = copy.copy(self)
        half.pairs = whole
        return half

    def attempt(self, index_B: Tensor) -> tuple[Batch, Mapping[int, Any]]:
        """The pairs at these positions of the half, and which of them are damaged."""
        return self.pairs.attempt(self.index_N[index_B])

    def mended(self, batch: Batch, damaged: Mapping[int, Any], index_B: Tensor) -> Batch:
        """The batch of ``attempt`` with its damaged pairs replaced, by reading the whole batch anew."""
        return self.batch(index_B) if damaged else batch

    def batch(self, index_B: Tensor) -> Batch:
        """The pairs at these positions of the half.

        The whole split may replace a damaged pair by a pair of the other half; the next free pair of this half is
        then read instead.

        Raises:
            DataError: reading the whole split failed, or no free pair of this half is left.
        """
        positions, counts = index_B.tolist(), Counter[str]()
        tried = set(positions)
        while True:
            batch = self.pairs.batch(self.index_N[torch.tensor(positions, dtype=torch.int64)])
            counts.update(batch.counts)
            foreign = (half_of(batch.image_key_B) != self.half).nonzero().flatten().tolist()
            if not foreign:
                return replace(batch, counts=dict(counts))
            for slot in foreign:
                following = ((positions[slot] + step) % len(self) for step in range(len(self)))
                free = next((position for position in following if position not in tried), None)
                if free is None:
                    raise DataError(f"{self.name}: no pair is left to stand for a damaged one: mend the data")
                positions[slot] = free
                tried.add(free)
