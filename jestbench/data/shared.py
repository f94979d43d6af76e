"""Super-batches that several processes share: each reads its rows, and all know the keys of everybody's."""

from __future__ import annotations

from dataclasses import replace

from jestbench.batch import Batch
from jestbench.data.loader import SuperBatchSource
from jestbench.data.tokenizer import Tokenizer
from jestbench.distributed import SharedBatch, World

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
