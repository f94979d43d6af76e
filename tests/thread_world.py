"""Several processes of a run as threads of this one: their collectives by barriers, what they send counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from jestbench.parallel.distributed import World
from jestbench.parallel.traffic import gathered, reduced

_T = TypeVar("_T")
_V = TypeVar("_V")


class Hub:
    """Where the threads of one run lay down what they send."""

    def __init__(self, size: int) -> None:
        self.barrier, self.sent = threading.Barrier(size, timeout=60), [torch.empty(0)] * size
        self.values: list[Any] = [None] * size


@dataclass(frozen=True)
class ThreadWorld(World):
    """A process that is a thread.

    Attributes:
        hub: shared by all threads.
        counts: collectives by kind, and the bytes of what this process has given them (``bytes``), and has sent by
            ring algorithms (``sent``).
    """

    hub: Hub = field(default_factory=lambda: Hub(1), repr=False)
    counts: dict[str, int] = field(default_factory=lambda: {"gather": 0, "add": 0, "bytes": 0, "sent": 0})

    def gather(self, own_X: Tensor) -> Tensor:
        """As ``World.gather``."""
        return self._collected("gather", own_X)

    def add(self, *own: Tensor) -> tuple[Tensor, ...]:
        """As ``World.add``, in the order of ranks."""
        if self.size == 1:
            return own
        flat = torch.cat([part.detach().flatten() for part in own])
        sums = self._collected("add", flat).sum(0).split([part.numel() for part in own])
        return tuple(part.view_as(like) for part, like in zip(sums, own, strict=True))

    def everybodys(self, value: _V) -> list[_V]:
        """As ``World.everybodys``; nothing is copied."""
        self.hub.values[self.rank] = value
        self.hub.barrier.wait()
        found = list(self.hub.values)
        self.hub.barrier.wait()
        return found

    def sent(self, rows_PX: Tensor, to_each: Sequence[int], from_each: Sequence[int]) -> Tensor:
        """As ``World.sent``."""
        came = [part.split(list(sizes))[self.rank] for part, sizes in self.everybodys((rows_PX, to_each))]
        assert [len(part) for part in came] == list(from_each)
        return torch.cat(came)

    def _told(self, value: _V) -> _V:
        return self.everybodys(value)[0]

    def _collected(self, kind: str, own_X: Tensor) -> Tensor:
        self.counts[kind] += 1
        self.counts["bytes"] += own_X.nbytes
        self.counts["sent"] += {"gather": gathered, "add": reduced}[kind](own_X.nbytes, self.size)
        self.hub.sent[self.rank] = own_X.detach().clone()
        self.hub.barrier.wait()
        assert len({(part.shape, part.dtype) for part in self.hub.sent}) == 1, "processes send tensors of one shape"
        found = torch.stack(self.hub.sent)
        self.hub.barrier.wait()
        return found


def by_threads(size: int, work: Callable[[ThreadWorld], _T]) -> list[_T]:
    """What each of several processes returns, in the order of ranks; the first failure is raised."""
    hub = Hub(size)

    def guarded(rank: int) -> _T:
        try:
            return work(ThreadWorld(rank, size, hub))
        except BaseException:
            hub.barrier.abort()  # nobody waits for a thread that has failed
            raise

    with ThreadPoolExecutor(size) as pool:
        ran = [pool.submit(guarded, rank) for rank in range(size)]
    failed = [error for one in ran if (error := one.exception()) is not None]
    if failed:
        raise next((error for error in failed if not isinstance(error, threading.BrokenBarrierError)), failed[0])
    return [one.result() for one in ran]
