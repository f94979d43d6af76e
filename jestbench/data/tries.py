"""Pairs in the place of damaged ones: which pairs are tried, one after the other, and what is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from jestbench.batch import Batch, together
from jestbench.data.damage import counted, first_examples

if TYPE_CHECKING:
    from jestbench.data.pairs import IndexedPairs


class TriedPair(NamedTuple):
    """A pair that is tried in the place of a damaged one.

    Attributes:
        split: fingerprint of the split that it is read from.
        position: in that split.
        image_key: content hash of its image.
    """

    split: str
    position: int
    image_key: int


class Tries:
    """The pairs that were tried, each read once.

    Attributes:
        rows: the whole ones.
        damage: of each; ``None`` where it is whole.
    """

    def __init__(self) -> None:
        self.rows, self.damage = dict[TriedPair, Batch](), dict[TriedPair, Any]()

    def pair(self, pairs: IndexedPairs, position: int) -> tuple[TriedPair, Any]:
        """Try a pair of a split: its place, and its damage, ``None`` where it is whole."""
        place = TriedPair(pairs.fingerprint, position, int(pairs.image_key_N[position]))
        if place not in self.damage:
            batch, damaged = pairs.attempt(torch.tensor([position]))
            self.damage[place] = damaged.get(0)
            if not damaged:
                self.rows[place] = batch
        return place, self.damage[place]


@dataclass(frozen=True)
class Replacements:
    """The pairs that stand for the damaged pairs of a batch.

    Attributes:
        rows: these pairs, in the order of the damaged ones.
        counts: pairs that were read in the search, and damaged ones with those that are replaced.
        examples: the first example of each kind of damage among them, by reason.
    """

    rows: Batch
    counts: Mapping[str, int]
    examples: Mapping[str, str]

    @classmethod
    def found(cls, pairs: IndexedPairs, damaged: Mapping[int, Any], index_B: Tensor) -> Replacements:
        """Find the pairs that stand for damaged ones.

        Args:
            pairs: the split, as it stands in the epoch.
            damaged: the damage by place in the whole batch, in ascending order; at least one.
            index_B: positions of the whole batch.

        Raises:
            DataError: too many pairs are damaged to replace them.
        """
        tries = Tries()
        rows = together([tries.rows[place] for place in pairs.replaced(damaged, index_B, tries)])
        lost = [*damaged.values(), *(damage for damage in tries.damage.values() if damage is not None)]
        return cls(rows, {"read": len(tries.damage), **counted(lost)}, first_examples(lost))
