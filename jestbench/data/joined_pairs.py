"""Several splits as one, and the plan that mixes them by shares."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch, DataError, common, split_counts, together
from jestbench.data.fetch import Positions
from jestbench.data.pairs import IndexedPairs, ReadPairs
from jestbench.data.super_batches import EpochPlan, StepPlan
from jestbench.data.tries import TriedPair, Tries
from jestbench.disk import digest


class JoinedPairs(IndexedPairs):
    """Splits one behind the other, each with its share of a super-batch.

    Args:
        parts: the splits, of one data set.
        names: of the splits, for messages and the summary.
        shares: of a super-batch, one for each split.
    """

    def __init__(self, parts: Sequence[IndexedPairs], names: Sequence[str], shares: Sequence[float]) -> None:
        self.parts, self.names, self.shares = tuple(parts), tuple(names), tuple(shares)
        self.name, self.tokenizer = " and ".join(part.name for part in parts), parts[0].tokenizer
        self.fingerprint = digest("+".join(part.fingerprint for part in parts))
        self.start_P = np.cumsum([0, *map(len, parts)])
        self.image_key_N = np.concatenate([part.image_key_N for part in parts])
        self.max_damaged = parts[0].max_damaged
        columns = [part.columns for part in parts]
        self.columns = {name: np.concatenate([each[name] for each in columns]) for name in common(columns)}
        self.facts = {"sources": {name: dict(part.facts) for name, part in zip(names, parts, strict=True)}}
        self.preprocessing = parts[0].preprocessing  # the splits are of one data set
        self.decoded, self.redraws = all(part.decoded for part in parts), any(part.redraws for part in parts)
        found = {(role, pairs.fingerprint): (role, pairs) for part in parts for role, pairs in part.ranked}
        self.ranked = tuple(found.values())

    @property
    def text_key_N(self) -> Tensor:
        """Content hash of each caption."""
        return torch.cat([part.text_key_N for part in self.parts])

    def text_keys_at(self, index_B: Tensor) -> Tensor:
        """Content hashes of the captions at these positions, each from its split."""
        key_B = torch.empty(len(index_B), dtype=torch.int64)
        for part, slot_K, index_K in self._by_part(index_B):
            key_B[slot_K] = part.text_keys_at(index_K)
        return key_B

    def uid_of(self, key_K: npt.NDArray[np.int64]) -> Sequence[str | None]:
        """The uids of images, from the first split that has them."""
        found = zip(*(part.uid_of(key_K) for part in self.parts), strict=True)
        return [next((uid for uid in uids if uid is not None), None) for uids in found]

    def __len__(self) -> int:
        return int(self.start_P[-1])

    def drawn(self, seed: int, epoch: int) -> JoinedPairs:
        """The splits for an epoch; what the captions do not change is not joined again."""
        joined = copy.copy(self)
        joined.parts = tuple(part.drawn(seed, epoch) for part in self.parts)
        return joined

    def expanded(self) -> JoinedPairs:
        """The splits in which each of several captions of an image is a pair of its own, one behind the other."""
        return JoinedPairs([part.expanded() for part in self.parts], self.names, self.shares)

    def attempt(self, index_B: Tensor) -> tuple[Batch, Mapping[int, Any]]:
        """The pairs at these positions, each read by its split, and the damage by its place in the batch."""
        batches, slots, damaged = [], [], dict[int, Any]()
        for part, slot_K, index_K in self._by_part(index_B):
            batch, lost = part.attempt(index_K)
            batches.append(batch)
            slots.append(slot_K)
            damaged |= {int(slot_K[slot]): error for slot, error in lost.items()}
        counts = {} if self.decoded else {"read": len(index_B), "damaged": 0}
        return replace(together(batches).take(torch.cat(slots).argsort()), counts=counts), damaged

    def tried(self, position: int, tries: Tries) -> tuple[TriedPair, Any]:
        """As the split of the pair does."""
        ((part, _, index_1),) = self._by_part(torch.tensor([position]))
        return part.tried(int(index_1), tries)

    def replaced(self, damaged: Mapping[int, Any], index_B: Tensor, tries: Tries) -> list[TriedPair]:
        """The pairs in the place of the damaged ones, each of its own split."""
        places = dict[int, TriedPair]()
        for part, slot_K, index_K in self._by_part(index_B):
            own = {place: damaged[slot] for place, slot in enumerate(slot_K.tolist()) if slot in damaged}
            found = part.replaced(own, index_K, tries)
            places |= dict(zip(slot_K[torch.tensor([*own], dtype=torch.int64)].tolist(), found, strict=True))
        return [places[slot] for slot in damaged]

    def _by_part(self, index_B: Tensor) -> Iterator[tuple[IndexedPairs, Tensor, Tensor]]:
        """The splits that a batch has pairs of, the places of these in the batch, and their positions in the split."""
        part_B = np.searchsorted(self.start_P, index_B.numpy(), side="right") - 1
        for number in np.unique(part_B).tolist():
            slot_K = torch.from_numpy(np.flatnonzero(part_B == number))
            yield self.parts[number], slot_K, index_B[slot_K] - int(self.start_P[number])


@dataclass(frozen=True, eq=False)
class MixturePlan(StepPlan):
    """A plan whose super-batches hold a fixed number of pairs of each split, by largest remainder of its share.

    Each split walks its own epochs, as an ``EpochPlan`` of its own. The order is a function of seed, sizes and step.

    Raises:
        DataError: a split is left without a pair, or holds fewer pairs than its part of a super-batch.
    """

    pairs: JoinedPairs
    size: int
    seed: int

    def __post_init__(self) -> None:
        for name, plan_size in zip(self.pairs.names, self._sizes, strict=True):
            if not plan_size:
                raise DataError(
                    f"run.split gives {name} a share of which nothing is left in {self.size} pairs: raise "
                    "run.super_batch_size (or run.batch_size), or its share"
                )
        assert self.sources, "each split fills its part of a super-batch"

    @property
    def _sizes(self) -> tuple[int, ...]:
        return split_counts(self.size, self.pairs.shares)

    @cached_property
    def sources(self) -> Mapping[str, EpochPlan]:
        """The plan of each split, by name."""
        parts = zip(self.pairs.names, self.pairs.parts, self._sizes, strict=True)
        return {
            name: EpochPlan(part, size, seeds.derive(self.seed, "data", number) if number else self.seed)
            for number, (name, part, size) in enumerate(parts)
        }

    def positions(self, step: int, read: Callable[[Positions], ReadPairs] | None = None) -> Positions:
        """The positions of a step's super-batch; a new epoch of any split draws captions anew."""
        found = [plan.positions(step) for plan in self.sources.values()]
        index_B = torch.cat(
            [each.index_B + int(start) for each, start in zip(found, self.pairs.start_P[:-1], strict=True)]
        )
        return Positions(sum(each.epoch for each in found), index_B)

    def epoch(self, step: int) -> int:
        """Completed passes over the split that is walked most often."""
        return max(plan.epoch(step) for plan in self.sources.values())

    def skipped(self, step: int) -> int:
        """Pairs left out as tails of all splits' epochs completed before a step."""
        return sum(plan.skipped(step) for plan in self.sources.values())
