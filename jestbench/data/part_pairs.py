"""A part of a split: one half of it by content key, or the share of largest numbers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jestbench.batch import Batch, DataError
from jestbench.data.pairs import IndexedPairs, Wrapped
from jestbench.data.tries import TriedPair, Tries
from jestbench.disk import digest
from jestbench.select.scores import Role

Half = Literal[0, 1]
HALVES: tuple[Half, Half] = (0, 1)


def half_of(image_key_B: Tensor) -> Tensor:
    """The half, 0 or 1, that each pair belongs to, ``[B]``."""
    return image_key_B & 1


class PartPairs(Wrapped):
    """Some pairs of a split.

    Args:
        pairs: the whole split.
        index_N: positions of the part's pairs in the whole split.
        name: behind that of the split, for messages.
        identity: behind the fingerprint of the split.

    Attributes:
        index_N: positions of the part's pairs in the whole split.
    """

    def __init__(self, pairs: IndexedPairs, index_N: Tensor, name: str, identity: str) -> None:
        super().__init__(pairs)
        self.index_N, index = index_N, index_N.numpy()
        self.name, self.fingerprint = f"{pairs.name}{name}", f"{pairs.fingerprint}-{identity}"
        self.image_key_N = pairs.image_key_N[index]
        self.columns = {name: column[index] for name, column in pairs.columns.items()}

    @property
    def text_key_N(self) -> Tensor:
        """Content hash of each caption of the part."""
        return self.pairs.text_key_N[self.index_N]

    def text_keys_at(self, index_B: Tensor) -> Tensor:
        """The whole split's, at the positions of the part's pairs in it."""
        return self.pairs.text_keys_at(self.index_N[index_B])

    def __len__(self) -> int:
        return len(self.index_N)

    def holds(self, image_key_B: Tensor) -> Tensor:
        """Whether images, by their content keys, belong to the part: bool ``[B]``."""
        return torch.from_numpy(np.isin(image_key_B.numpy(), self.image_key_N))

    def drawn(self, seed: int, epoch: int) -> PartPairs:
        """The part of the split as it stands in an epoch: other captions of the same images."""
        whole = self.pairs.drawn(seed, epoch)
        if whole is self.pairs:
            return self
        part = copy.copy(self)
        part.pairs = whole
        return part

    def expanded(self) -> PartPairs:
        """All captions of the images that the part ``holds``, each a pair of its own."""
        whole = self.pairs.expanded()
        if whole is self.pairs:
            return self
        index_N = self.holds(torch.from_numpy(whole.image_key_N)).nonzero().flatten()
        return PartPairs(whole, index_N, self.name.removeprefix(self.pairs.name), f"of-{self.fingerprint}")

    def attempt(self, index_B: Tensor) -> tuple[Batch, Mapping[int, Any]]:
        """The pairs at these positions of the part, and which of them are damaged."""
        return self.pairs.attempt(self.index_N[index_B])

    def tried(self, position: int, tries: Tries) -> tuple[TriedPair, Any]:
        """As the whole split does."""
        return self.pairs.tried(int(self.index_N[position]), tries)

    def replaced(self, damaged: Mapping[int, Any], index_B: Tensor, tries: Tries) -> list[TriedPair]:
        """The pairs in the place of the damaged ones of a batch.

        The whole split may replace a damaged pair by one that does not belong to the part; the next free pair of the
        part stands for it then.

        Raises:
            DataError: the whole split has no replacement, or no free pair of the part is left.
        """
        positions, places = index_B.clone(), dict[int, TriedPair]()
        taken, lost = set(index_B.tolist()), dict(damaged)
        while True:
            if lost:
                found = self.pairs.replaced(lost, self.index_N[positions], tries)
                places |= dict(zip(lost, found, strict=True))
            held = self.holds(torch.tensor([places[slot].image_key for slot in damaged])).tolist()
            foreign = [slot for slot, belongs in zip(damaged, held, strict=True) if not belongs]
            if not foreign:
                return [places[slot] for slot in damaged]
            lost = {slot: error for slot, error in lost.items() if slot not in foreign}
            for slot in foreign:
                following = ((int(positions[slot]) + step) % len(self) for step in range(len(self)))
                free = next((position for position in following if position not in taken), None)
                if free is None:
                    raise DataError(f"{self.name}: no pair is left to stand for a damaged one: mend the data")
                positions[slot] = free
                taken.add(free)
                places[slot], error = self.tried(free, tries)
                lost |= {} if error is None else {slot: error}
            lost = dict(sorted(lost.items()))


class HalfPairs(PartPairs):
    """The pairs of a split whose images belong to one half.

    Attributes:
        half: which half.
    """

    def __init__(self, pairs: IndexedPairs, half: Half) -> None:
        self.half = half
        index_N = self.holds(torch.tensor(pairs.image_key_N)).nonzero().flatten()
        super().__init__(pairs, index_N, f", half {half}", f"half{half}")

    def holds(self, image_key_B: Tensor) -> Tensor:
        """Whether images belong to the half."""
        return half_of(image_key_B) == self.half


class TopPairs(PartPairs):
    """The pairs of a split with the largest values, a share of all pairs, at least one.

    Of equal values the earlier pair comes first.

    Args:
        pairs: the split.
        share: of its pairs.
        value_N: a value of each; −∞ of a pair that was found damaged as it was scored.
        name: of the values.
        role: of the frozen model whose own scores the values are; ``None`` where they are a column.
    """

    def __init__(
        self, pairs: IndexedPairs, share: float, value_N: npt.NDArray[np.float64], name: str, role: Role | None = None
    ) -> None:
        count = max(1, round(share * len(value_N)))
        index_N = np.sort(np.argsort(-value_N, kind="stable")[:count])
        identity = f"top-{digest(index_N.tobytes())}"
        super().__init__(pairs, torch.from_numpy(index_N), f", the {count} of largest {name}", identity)
        scored, whole_N = pairs, np.isfinite(value_N)
        if not whole_N.all():
            scored = PartPairs(pairs, torch.from_numpy(np.flatnonzero(whole_N)), ", the whole ones", "whole")
        if role is not None:
            self.ranked = ((role, scored), *pairs.ranked)


def top_of(pairs: IndexedPairs, share: float, column: str) -> TopPairs:
    """The pairs of a split with the largest numbers in a column.

    Raises:
        DataError: the split has no such column.
    """
    if column not in pairs.columns:
        has = ", ".join(pairs.columns) or "none"
        raise DataError(
            f"{pairs.name} has no column {column!r} to take the largest of (it has {has}): name it in .columns of the "
            f"data set, as in webdataset.columns = ('json.{column}',)"
        )
    return TopPairs(pairs, share, np.asarray(pairs.columns[column]), column)
