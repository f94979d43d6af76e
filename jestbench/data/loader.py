"""Super-batches: a pure function of seed, sizes and step.

The order depends on nothing else, so every policy that scores sees the same super-batches, and
resuming needs no more than the step. A pass over the data is one permutation; a tail that does not
fill a super-batch is skipped, and is another one in each pass, so no super-batch spans two passes
and none holds a pair twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch, DataError
from jestbench.data.files import too_many
from jestbench.data.pairs import Pairs, drawn, max_damaged
from jestbench.data.tokenizer import Tokenizer
from jestbench.distributed import World


class SuperBatchSource(Protocol):
    """What the loop draws from: the super-batch of a step, whatever lies behind it."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Makes the token ids of the batches."""
        ...

    @property
    def pool(self) -> int | None:
        """Pairs that are drawn from; ``None`` where a stream does not tell."""
        ...

    def at(self, step: int) -> Batch:
        """The super-batch of a step; steps are asked for in order."""
        ...

    def counts(self, step: int) -> dict[str, float]:
        """What happened to the data until this step, ``data/…``: pairs skipped, damaged, waited for."""
        ...

    def state(self) -> object:
        """What a checkpoint keeps beside the step (tensors, numbers, strings, and lists or dicts of these)."""
        ...

    def restore(self, state: object) -> None:
        """Go on from a checkpoint."""
        ...

    def close(self) -> None:
        """Let go of workers and files."""
        ...


class Tally:
    """What was read and what was damaged, summed over the batches of a run; a checkpoint keeps it.

    Raises:
        DataError: the share of damaged pairs exceeds the split's ``max_damaged``.
    """

    def __init__(self, pairs: Pairs) -> None:
        self.name = pairs.name
        self.limit = max_damaged(pairs)
        self.summed: dict[str, float] = {}

    def add(self, counts: Mapping[str, float]) -> None:
        """Count what travels with a batch."""
        for name, count in counts.items():
            self.summed[name] = self.summed.get(name, 0) + count
        damaged, read = self.summed.get("damaged", 0), self.summed.get("read", 0)
        if too_many(damaged, read, self.limit):
            raise DataError(
                f"{self.name}: {damaged:.0f} of {read:.0f} images read are damaged, more than max_damaged = "
                f"{self.limit:g} allows: mend the data, or raise max_damaged of the data set"
            )

    def counts(self) -> dict[str, float]:
        """As metrics, ``data/…``; nothing where no batch says anything."""
        return {f"data/{name}": count for name, count in self.summed.items()}

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return dict(self.summed)

    def restore(self, state: Mapping[str, float] | None) -> None:
        """Go on from a checkpoint."""
        self.summed = dict(state or {})


@dataclass(frozen=True)
class SuperBatches:
    """Super-batches of ``size`` pairs from an indexed split.

    Raises:
        DataError: the split holds fewer pairs than one super-batch needs.
    """

    pairs: Pairs
    size: int
    seed: int
    augmented: bool = False  # positions say the step, too: ``pairs`` are AugmentedPairs
    world: World = field(default_factory=World)  # the processes that share a super-batch; each reads its own rows
    tally: Tally = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tally", Tally(self.pairs))
        if len(self.pairs) < self.size:
            raise DataError(
                f"{self.pairs.name} holds {len(self.pairs)} pairs, fewer than the {self.size} of one "
                "super-batch: lower run.super_batch_size (or run.batch_size), or take more data"
            )

    @property
    def tokenizer(self) -> Tokenizer:
        """The split's."""
        return self.pairs.tokenizer

    @property
    def pool(self) -> int:
        """All pairs of the split."""
        return len(self.pairs)

    @property
    def per_epoch(self) -> int:
        """Super-batches in one pass over the data."""
        return len(self.pairs) // self.size

    def skipped(self, step: int) -> int:
        """Pairs left out as tails of the passes completed before this step."""
        return (step // self.per_epoch) * (len(self.pairs) - self.per_epoch * self.size)

    def index_B(self, step: int) -> Tensor:
        """Positions in ``pairs`` of the super-batch drawn at a step, or of this process's rows of it."""
        epoch, number = divmod(step, self.per_epoch)
        start = number * self.size
        whole_B = _permutation(len(self.pairs), self.seed, epoch)[start : start + self.size]
        index_B = whole_B[self.world.rank :: self.world.size]
        return index_B + step * len(self.pairs) if self.augmented else index_B

    def at(self, step: int) -> Batch:
        """The super-batch of a step.

        Raises:
            DataError: too many images are damaged.
        """
        batch = self.pairs_at(step).batch(self.index_B(step))
        self.tally.add(batch.counts)
        return batch

    def pairs_at(self, step: int) -> Pairs:
        """The split in the epoch of a step: a pair of several captions has one of them drawn."""
        return drawn(self.pairs, self.seed, step // self.per_epoch)

    def counts(self, step: int) -> dict[str, float]:
        """Pairs skipped as tails; images read and damaged."""
        return {"data/skipped": self.skipped(step), **self.tally.counts()}

    def state(self) -> object:
        """What was damaged so far; the order needs the step alone."""
        return self.tally.state()

    def restore(self, state: object) -> None:
        """Go on from a checkpoint."""
        assert state is None or isinstance(state, dict)
        self.tally.restore(state)

    def close(self) -> None:
        """Nothing to let go of."""


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=seeds.generator(seed, "data", epoch))
