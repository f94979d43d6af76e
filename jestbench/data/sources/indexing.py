"""The work of indexing shards: one in this process, many on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jestbench.batch import DataError
from jestbench.data.spawned import spawned, usable_cores

if TYPE_CHECKING:
    from jestbench.data.sources.shard_index import ShardIndex
    from jestbench.data.sources.source import Shard, Source

TOGETHER = 8
"""Least number of shards for which processes are started to index them."""


def index_of(source: Source, shard: Shard, verified: int | None, most: int | None = None) -> ShardIndex:
    """The index of a shard, or of its first pairs; the arguments are those of ``Source.index``.

    Raises:
        DataError: the shard cannot be read, or may not be opened.
    """
    try:
        return source.index(shard, verified, most)
    except OSError as error:
        if error.filename != shard.path:
            raise
        raise DataError(f"{shard.path} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Reading:
    """A task that indexes one shard and saves the index, in any process."""

    source: Source
    shard: Shard
    verified: int | None
    kept: Path

    def __call__(self) -> None:
        """Index and save."""
        index_of(self.source, self.shard, self.verified).save(self.kept)


@contextmanager
def many(count: int) -> Iterator[Callable[..., Iterable[None]]]:
    """A ``map`` over ``count`` shards: on all cores for many shards, in this process for few.

    Raises:
        DataError: a process was killed.
    """
    cores = usable_cores()
    if count < TOGETHER or cores == 1:
        yield map
        return
    try:
        with spawned(min(cores, count)) as workers:
            yield workers.map
    except BrokenProcessPool:
        raise DataError("a process that indexed shards was killed (out of memory?): start again") from None
