"""Super-batches: a pure function of seed, sizes and step.

The order depends on nothing else, so every policy that scores sees the same super-batches, and
resuming needs no more than the step. A pass over the data is one permutation; a tail that does not
fill a super-batch is skipped, and is another one in each pass, so no super-batch spans two passes
and none holds a pair twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch, DataError
from jestbench.data.pairs import Pairs
from jestbench.data.tokenizer import Tokenizer


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

    def __post_init__(self) -> None:
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
        """Positions in ``pairs`` of the super-batch drawn at a step."""
        epoch, number = divmod(step, self.per_epoch)
        start = number * self.size
        index_B = _permutation(len(self.pairs), self.seed, epoch)[start : start + self.size]
        return index_B + step * len(self.pairs) if self.augmented else index_B

    def at(self, step: int) -> Batch:
        """The super-batch of a step."""
        return self.pairs_at(step).batch(self.index_B(step))

    def pairs_at(self, step: int) -> Pairs:
        """The split in the epoch of a step."""
        return self.pairs

    def counts(self, step: int) -> dict[str, float]:
        """Pairs skipped as tails."""
        return {"data/skipped": self.skipped(step)}

    def state(self) -> object:
        """Nothing: the step says it all."""
        return None

    def restore(self, state: object) -> None:
        """Nothing to restore."""

    def close(self) -> None:
        """Nothing to let go of."""


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=seeds.generator(seed, "data", epoch))
