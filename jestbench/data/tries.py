"""Pairs in the place of damaged ones: which pairs are tried, and which process reads each of them.

Which pair stands for a damaged one depends on the whole batch, and on which of the pairs that are tried turn out to be
damaged, too. A split gives it as a pure function of these outcomes (``IndexedPairs.replaced``), where a pair that
nobody has read is taken for whole. Each process computes the same function, reads the pairs that are asked for in the
place of its own, and all outcomes are gathered; this is repeated until nothing is asked for. A pair that is taken under
fewer known outcomes is taken under more of them, too, at most in the place of another damaged pair. So every pair that
is read is one that a single process would read, which tries one pair after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jestbench.batch import Batch, DataError, together, with_rows
from jestbench.data.damage import counted
from jestbench.data.pairs import IndexedPairs
from jestbench.parallel.distributed import World
from jestbench.parallel.placement import Placement


class Unread(Exception):
    """What comes next depends on pairs that nobody has read yet."""


class TriedPair(NamedTuple):
    """A pair that is tried in the place of a damaged one, the same value on every process.

    Attributes:
        split: fingerprint of the split that it is read from.
        position: in that split.
        image_key: content hash of its image.
    """

    split: str
    position: int
    image_key: int


class Outcome(NamedTuple):
    """What a process has found where it read a pair.

    Attributes:
        damage: of the pair; ``None`` where it is whole.
        wordless: 1 where its caption has no token, else 0.
    """

    damage: Any
    wordless: int


class _Asked(NamedTuple):
    slot: int
    pairs: IndexedPairs


@dataclass(frozen=True)
class Tries:
    """The outcomes of the pairs that were tried, and the pairs that are asked for beside them.

    Attributes:
        known: the outcomes, the same on every process.
        asked: the pairs whose outcome is not known, each for a place of the whole batch.
        slot_K: places in the whole batch of those that a caller counts; ``None`` where these are the same.
    """

    known: Mapping[TriedPair, Outcome]
    asked: dict[TriedPair, _Asked] = field(default_factory=dict)
    slot_K: Tensor | None = None

    @property
    def certain(self) -> bool:
        """Whether all that was found so far is what one process finds, which reads each pair as it is asked for."""
        return not self.asked

    def of(self, slot_K: Tensor) -> Tries:
        """The same, for a caller whose batch has these places in the batch of this one."""
        return replace(self, slot_K=slot_K if self.slot_K is None else self.slot_K[slot_K])

    def pair(self, slot: int, pairs: IndexedPairs, position: int) -> tuple[TriedPair, Any]:
        """Try a pair of a split: its place, and its damage, ``None`` where it is whole or was not read yet."""
        place = TriedPair(pairs.fingerprint, position, int(pairs.image_key_N[position]))
        if place not in self.known:
            self.asked.setdefault(place, _Asked(slot if self.slot_K is None else int(self.slot_K[slot]), pairs))
            return place, None
        return place, self.known[place].damage


@dataclass(frozen=True)
class Replacements:
    """The pairs that stand for the damaged pairs of a batch.

    Attributes:
        own: those in the place of this process's pairs, in their order; ``None`` where there are none.
        counts: pairs that were read in the search, and damaged ones with those that are replaced, of all processes.
        wordless: how many of the pairs that stand for others, on all processes, have a caption without a token.
    """

    own: Batch | None
    counts: Mapping[str, int]
    wordless: int

    @classmethod
    def found(
        cls, pairs: IndexedPairs, damaged: Mapping[int, Any], index_B: Tensor, placement: Placement
    ) -> Replacements:
        """Find the pairs that stand for damaged ones; all processes call it at once.

        Outcomes are gathered as often as the longest chain of damaged pairs is long, and what was read in the place of
        a pair of one process and stands for that of another one is sent there.

        Args:
            pairs: the split, as it stands in the epoch.
            damaged: the damage of all processes' pairs by place in the batch, in ascending order.
            index_B: positions of the whole batch.
            placement: the process of each pair.

        Raises:
            DataError: too many pairs are damaged to replace them.
        """
        world, known, rows, reader = (
            placement.world,
            dict[TriedPair, Outcome](),
            dict[TriedPair, Batch](),
            dict[TriedPair, int](),
        )
        while True:
            tries, places = Tries(known), list[TriedPair]()
            try:
                places = pairs.replaced(damaged, index_B, tries)
            except (DataError, Unread):
                if tries.certain:
                    raise
            if tries.certain:
                break
            reader |= {place: int(placement.rank_B[asked.slot]) for place, asked in tries.asked.items()}
            own = {place: asked.pairs for place, asked in tries.asked.items() if reader[place] == world.rank}
            for each in world.everybodys({place: _read(place, split, rows) for place, split in own.items()}):
                known |= each
        held = [int(placement.rank_B[slot]) for slot in damaged]
        if moved := {place for place, rank in zip(places, held, strict=True) if reader[place] != rank}:
            for part in world.everybodys({place: rows[place] for place in moved if place in rows}):
                rows |= part
        found = [rows[place] for place, rank in zip(places, held, strict=True) if rank == world.rank]
        shown = None
        if found:
            slot_K = torch.tensor([slot for slot, rank in zip(damaged, held, strict=True) if rank == world.rank])
            shown = pairs.shown(together(found), index_B[slot_K])
        lost = [*damaged.values(), *(outcome.damage for outcome in known.values() if outcome.damage is not None)]
        counts = {"read": len(known), **counted(lost)}
        return cls(shown, counts, sum(known[place].wordless for place in places))


def _read(place: TriedPair, pairs: IndexedPairs, rows: dict[TriedPair, Batch]) -> Outcome:
    """Read a pair, and keep it where it is whole."""
    batch, damaged = pairs.attempt(torch.tensor([place.position]))
    if damaged:
        return Outcome(damaged[0], 0)
    rows[place] = batch
    return Outcome(None, pairs.tokenizer.wordless(batch.tokens(pairs.tokenizer.identity)))


def mended(pairs: IndexedPairs, batch: Batch, damaged: Mapping[int, Any], index_B: Tensor) -> Batch:
    """A batch that this process alone reads, its damaged pairs replaced.

    Args:
        pairs: the split, as it stands in the epoch.
        batch: of ``IndexedPairs.attempt``, read at once or put together from parts.
        damaged: the damage by place in the batch, in ascending order.
        index_B: positions of the pairs.

    Raises:
        DataError: too many pairs are damaged to replace them.
    """
    if not damaged:
        return batch
    found = Replacements.found(pairs, damaged, index_B, Placement.in_turns(len(index_B), World()))
    assert found.own is not None
    counts = Counter(batch.counts)
    counts.update(found.counts)
    return replace(with_rows(batch, torch.tensor([*damaged]), found.own), counts=dict(counts))
