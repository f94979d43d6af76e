"""Super-batches: a pure function of seed, sizes and step.

The order depends on nothing else, so every policy that scores sees the same super-batches, and
resuming needs no more than the step. A pass over the data is one permutation; a tail that does not
fill a super-batch is skipped, and is another one in each pass, so no super-batch spans two passes
and none holds a pair twice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch, DataError
from jestbench.data.augment import AugmentedPairs, RandomResizedCrop
from jestbench.data.damage import Tally
from jestbench.data.decoders import Decoders, Draw, WorkerPairs, decoders_for
from jestbench.data.loader import Loader
from jestbench.data.pairs import Pairs, drawn, max_damaged
from jestbench.data.sources.stream import StreamPairs
from jestbench.data.sources.stream_batches import StreamBatches
from jestbench.model.tokenizer import Tokenizer
from jestbench.parallel.distributed import World
from jestbench.parallel.shared_batch import SharedBatch


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
    world: World = field(default_factory=World)  # the processes that share a super-batch; each reads its own rows
    tally: Tally = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tally", Tally(self.pairs.name, max_damaged(self.pairs)))
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


SUMMED = ("data/read", "data/damaged", "data/worker_restarts")
"""Counts that each process has its own of."""


def spread(source: SuperBatchSource, size: int, world: World, *, read_whole: bool) -> SuperBatchSource:
    """A source as several processes share it; one process has it as it is. The arguments are ``SharedSource``'s."""
    return source if world.size == 1 else SharedSource(source, size, world, read_whole)


class SharedSource:
    """The super-batches of a source, spread over the processes of a run.

    Args:
        source: gives this process's rows of each super-batch, or the whole of it.
        size: pairs of a super-batch.
        world: the processes.
        read_whole: the source gives the whole, of which the own rows are kept. Right for every source, but each
            process decodes everything.
    """

    def __init__(self, source: SuperBatchSource, size: int, world: World, read_whole: bool) -> None:
        self.source, self.size, self.world, self.read_whole = source, size, world, read_whole

    @property
    def tokenizer(self) -> Tokenizer:
        """The source's."""
        return self.source.tokenizer

    @property
    def pool(self) -> int | None:
        """The source's."""
        return self.source.pool

    def at(self, step: int) -> Batch:
        """The super-batch of a step."""
        batch = self.source.at(step)
        if self.read_whole:
            own = batch.take(self.world.rows(self.size))
            batch = replace(own, passes=batch.passes, counts=batch.counts)
        return SharedBatch.of(batch, self.size, self.world)

    def counts(self, step: int) -> dict[str, float]:
        """The source's; what each process counts for itself is summed."""
        counts = self.source.counts(step)
        own = {name: value for name, value in counts.items() if name in SUMMED and not self.read_whole}
        return counts | self.world.summed(own)

    def state(self) -> object:
        """The source's, of each process."""
        return self.world.everybodys(self.source.state())

    def restore(self, state: object) -> None:
        """Go on from a checkpoint of as many processes."""
        assert isinstance(state, list)
        self.source.restore(state[self.world.rank])

    def close(self) -> None:
        """Let go of what the source holds."""
        self.source.close()


@runtime_checkable
class IndexedSource(SuperBatchSource, Protocol):
    """A source whose super-batches are known before anything is decoded."""

    def index_B(self, step: int) -> Tensor:
        """Positions in the split of the super-batch drawn at a step."""
        ...

    def pairs_at(self, step: int) -> Pairs:
        """The split in the epoch of a step: a pair of several captions has one of them drawn."""
        ...


class Prefetched:
    """A source whose next super-batches are being decoded while one is trained on.

    Args:
        source: says what is in a super-batch.
        decoders: decode for it; ``None`` where nothing runs ahead and ``source`` decodes by itself.
        ahead: super-batches made ahead; ``None`` where only the source knows what it will have decoded (a cascade).
    """

    def __init__(self, source: SuperBatchSource, decoders: Decoders | None = None, ahead: int | None = 0) -> None:
        self.source, self.decoders, self.ahead = source, decoders, ahead
        self._waited, self._restarts = 0.0, 0

    @property
    def tokenizer(self) -> Tokenizer:
        """The source's."""
        return self.source.tokenizer

    @property
    def pool(self) -> int | None:
        """The source's."""
        return self.source.pool

    @property
    def restarts(self) -> int:
        """Workers lost and replaced, before a resume too."""
        return self._restarts + (0 if self.decoders is None else self.decoders.restarts)

    def at(self, step: int) -> Batch:
        """The super-batch of a step, in any order of steps; quickest in theirs."""
        begin = time.perf_counter()
        if self.decoders is not None and self.ahead is not None:
            self.decoders.expect([self._asked(ahead) for ahead in range(step, step + self.ahead + 1)])
        batch = self.source.at(step)
        self._waited += time.perf_counter() - begin
        return batch

    def _asked(self, step: int) -> tuple[Draw, Tensor]:
        assert isinstance(self.source, IndexedSource), "nothing is made ahead that is not known ahead"
        pairs = self.source.pairs_at(step)
        assert isinstance(pairs, WorkerPairs)
        return pairs.draw, self.source.index_B(step)

    def counts(self, step: int) -> dict[str, float]:
        """The source's, the seconds that the run waited for pairs, and workers lost and replaced."""
        if self.decoders is None:
            return self.source.counts(step)
        waited = {"time/data_wait": round(self._waited, 6), "data/worker_restarts": self.restarts}
        return {**self.source.counts(step), **waited}

    def state(self) -> object:
        """The source's, and the counters: the same with workers and without."""
        return {"source": self.source.state(), "waited": self._waited, "restarts": self.restarts}

    def restore(self, state: object) -> None:
        """Go on from a checkpoint."""
        if isinstance(state, dict) and "waited" in state:  # one written before there were workers has none
            self._waited, self._restarts = state["waited"], state["restarts"]
            state = state["source"]
        self.source.restore(state)

    def close(self) -> None:
        """End the workers."""
        if self.decoders is not None:
            self.decoders.close()
        self.source.close()


def prefetched(
    pairs: Pairs,
    size: int,
    seed: int,
    loader: Loader | None = None,
    augment: RandomResizedCrop | None = None,
    device: str = "cpu",
    world: World | None = None,
) -> SuperBatchSource:
    """Super-batches of a split, read and decoded as a loader says.

    Args:
        pairs: the split.
        size: pairs of a super-batch.
        seed: of the run.
        loader: who decodes; by default as the split asks for.
        augment: what is done to each image at each step.
        device: that the run is on.
        world: the processes that share each super-batch: each reads its own rows of it, or a stream as a whole.

    Raises:
        DataError: the split holds fewer pairs than one super-batch needs, or a stream cannot be divided.
        ValueError: a stream is to be augmented.
    """
    loader, world = loader or Loader(), world or World()
    if isinstance(pairs, StreamPairs):
        if augment is not None:
            raise ValueError("run.augment needs an indexed data set: a stream's pairs are not augmented")
        workers = loader.workers if loader.workers != "auto" else min(loader.workers_for(pairs), pairs.shards.lanes)
        shards, pinned = replace(pairs.shards, seed=seed), loader.pins(device)
        limits = loader.timeout, loader.restarts, pinned
        stream = StreamBatches(shards, size, workers, loader.prefetch, loader.part, *limits)
        return spread(stream, size, world, read_whole=True)
    if augment is not None:
        pairs = AugmentedPairs(pairs, augment, seed)
    decoders = decoders_for(pairs, loader, device)
    drawn_from = pairs if decoders is None else WorkerPairs(pairs, decoders)
    batches = SuperBatches(drawn_from, size, seed, augment is not None, world)
    return spread(Prefetched(batches, decoders, loader.prefetch), size, world, read_whole=False)
