"""Processes that are threads of this one: their collectives meet at a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from jestbench.parallel.distributed import World

_T = TypeVar("_T")
WAIT_SECONDS = 60.0


class Meeting:
    """The place where so many threads exchange values."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.values: list[Any] = [None] * size


@dataclass(frozen=True)
class ThreadWorld(World):
    """A world whose ranks are threads; what the ranks exchange goes through the memory that they share."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1), compare=False)

    def everybodys(self, value: _T) -> list[_T]:
        self.meeting.barrier.wait(WAIT_SECONDS)
        self.meeting.values[self.rank] = value
        self.meeting.barrier.wait(WAIT_SECONDS)
        found = list(self.meeting.values)
        self.meeting.barrier.wait(WAIT_SECONDS)
        return found

    def first(self, work: Callable[[], _T]) -> _T:
        value, error = None, None
        if self.first_of_all:
            try:
                value = work()
            except Exception as raised:
                error = raised
        value, error = self.everybodys((value, error))[0]
        if error is not None:
            raise error
        return value

    def any(self, flag: bool) -> bool:
        return any(self.everybodys(flag))

    def _parts(self, own_PX: Tensor, most: int) -> list[Tensor]:
        parts = []
        for part in self.everybodys(own_PX.detach()):
            assert part.dtype == own_PX.dtype, "torch's all-gather takes one type"
            padded = part.new_zeros(most, *own_PX.shape[1:])
            padded[: len(part)] = part
            parts.append(padded)
        return parts

    def sent(self, rows_PX: Tensor, to_each: Sequence[int], from_each: Sequence[int]) -> Tensor:
        came = [part.split(list(sizes))[self.rank] for part, sizes in self.everybodys((rows_PX, to_each))]
        assert [len(part) for part in came] == list(from_each)
        return torch.cat(came)


def together(size: int, work: Callable[[World], _T]) -> list[_T]:
    """What ``work`` returns on each of so many ranks; raises the error of the lowest rank that fails."""
    meeting = Meeting(size)

    def one(rank: int) -> _T:
        try:
            return work(ThreadWorld(rank, size, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        futures = [threads.submit(one, rank) for rank in range(size)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
        return [future.result() for future in futures]
