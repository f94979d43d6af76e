"""Which process holds each row of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.batch import rows_at
from jestbench.parallel.arithmetic import to_device
from jestbench.parallel.distributed import World
from jestbench.parallel.traffic import TRAFFIC


@dataclass(frozen=True, eq=False)
class Placement:
    """The process that holds each row of a batch; the same value on every process.

    A process holds its own rows in ascending order of their positions.

    Attributes:
        rank_B: int64 rank of the process that holds each row, on the CPU.
        world: the processes.
    """

    rank_B: Tensor
    world: World

    @classmethod
    def in_turns(cls, count: int, world: World) -> Placement:
        """``count`` rows dealt out in turns: row i lies on rank i mod n."""
        return cls(torch.arange(count) % world.size, world)

    def __len__(self) -> int:
        return len(self.rank_B)

    @cached_property
    def rows(self) -> Tensor:
        """Positions of this process's own rows."""
        return (self.rank_B == self.world.rank).nonzero().flatten()

    @cached_property
    def counts(self) -> list[int]:
        """Number of rows that each process holds."""
        return torch.bincount(self.rank_B, minlength=self.world.size).tolist()

    @cached_property
    def _place_B(self) -> Tensor:
        """Place of each row where the rows of rank 0 come first, then those of rank 1 …"""
        return torch.argsort(torch.argsort(self.rank_B, stable=True))

    @cached_property
    def local_B(self) -> Tensor:
        """Place of each row among the rows of the process that holds it."""
        before = torch.tensor([0, *self.counts[:-1]]).cumsum(0)
        return self._place_B - before[self.rank_B]

    def collect(self, own_PX: Tensor) -> Tensor:
        """All-gather the rows of all processes: ``[B, …]`` in the order of their positions, without gradient."""
        return self.collect_all([own_PX])[0]

    def collect_all(self, own: Sequence[Tensor]) -> list[Tensor]:
        """As ``collect``, of some tensors on one device by one collective."""
        if self.world.size == 1 or not own:
            return list(own)
        parts, most = [_bytes_of_rows(part) for part in own], max(self.counts)
        padded_MW = F.pad(torch.cat(parts, 1), (0, 0, 0, most - len(own[0])))
        came_RW = self.world.gather(padded_MW).flatten(0, 1)
        row_B = to_device(self.rank_B * most + self.local_B, own[0].device)
        found = [part.new_empty(len(row_B), *part.shape[1:]) for part in own]
        for rows_BX, bytes_RW in zip(found, came_RW.split([part.shape[1] for part in parts], 1), strict=True):
            torch.index_select(bytes_RW, 0, row_B, out=_bytes_of_rows(rows_BX))
        return found

    def collect_with_gradient(self, *own: Tensor) -> tuple[Tensor, ...]:
        """As ``collect_all``, with a gradient: backward returns n times the gradient of the own rows, of n processes.

        Every process holds the whole gradient by all rows. The parts of a parameter's gradient that come from each
        process's own rows are to be summed, and torch's engines average the gradients of all processes.
        """
        if self.world.size == 1:
            return own
        with TRAFFIC.sending("embeddings"):
            collected: tuple[Tensor, ...] = _Collected.apply(self, *own)
        return collected

    def taken(self, index_K: Tensor, parts: Sequence[int] = ()) -> Placement:
        """The placement of rows taken by position, in which as many as possible stay where they are.

        Of each part every process holds as many rows as if the rows were dealt out in turns: no process holds more
        than ⌈K/n⌉ rows, nor more than ⌈P/n⌉ rows of a part of P rows. A process keeps the first rows that it holds, up
        to that number; the rest goes to the processes that lack rows, in the order of positions and ranks.

        Args:
            index_K: positions in this placement, on the CPU.
            parts: lengths of consecutive parts of the rows, each shared out evenly; empty: all are one part.
        """
        if self.world.size == 1:
            return Placement.in_turns(len(index_K), self.world)
        held_K, turn_K = self.rank_B[index_K], torch.arange(len(index_K)) % self.world.size
        sizes = list(parts) or [len(index_K)]
        each = zip(held_K.split(sizes), turn_K.split(sizes), strict=True)
        return Placement(torch.cat([self._shared(held_P, turn_P) for held_P, turn_P in each]), self.world)

    def _shared(self, held_P: Tensor, turn_P: Tensor) -> Tensor:
        """Ranks of a part's rows: as many of each rank as in ``turn_P``, as close to ``held_P`` as that allows."""
        found_P = torch.full_like(held_P, -1)
        room = torch.bincount(turn_P, minlength=self.world.size)
        for rank in range(self.world.size):
            found_P[(held_P == rank).nonzero().flatten()[: int(room[rank])]] = rank
        room -= torch.bincount(found_P[found_P >= 0], minlength=self.world.size)
        found_P[found_P < 0] = torch.repeat_interleave(torch.arange(self.world.size), room)
        return found_P

    def exchange(self, own_PX: Tensor, index_K: Tensor, to: Placement, device: torch.device | None = None) -> Tensor:
        """Take rows by position, and send each to the process that holds it in the result.

        Rows travel between the devices that they are brought to: between CUDA devices by NCCL, else through main memory
        by gloo. A row that stays on its process is copied there once.

        Args:
            own_PX: this process's own rows of a tensor that is spread by this placement.
            index_K: positions, on the CPU, the same on every process.
            to: the placement of the result.
            device: of the result; by default that of ``own_PX``.

        Returns:
            This process's own rows of the result, in the memory layout of ``own_PX``.
        """
        rank, size, there = self.world.rank, self.world.size, device or own_PX.device
        last = own_PX.ndim == 4 and own_PX.is_contiguous(memory_format=torch.channels_last)
        rows_PX = own_PX.permute(0, 2, 3, 1) if last else own_PX
        from_K, local_K = self.rank_B[index_K], self.local_B[index_K]
        leaving = [((from_K == rank) & (to.rank_B == other)).nonzero().flatten() for other in range(size)]
        coming = [((from_K == other) & (to.rank_B == rank)).nonzero().flatten() for other in range(size)]
        staying = leaving[rank]
        leaving[rank] = coming[rank] = staying[:0]

        def brought(at_P: Tensor) -> Tensor:
            return to_device(rows_at(rows_PX, local_K[at_P]), there)

        came = brought(torch.cat(leaving))
        if not torch.equal(from_K, to.rank_B):  # the same on every process; of uniform no row moves
            came = self.world.sent(came, [*map(len, leaving)], [*map(len, coming)])
        shape, pinned = (to.counts[rank], *rows_PX.shape[1:]), there.type == "cpu" and own_PX.is_pinned()
        out: Tensor = torch.empty(shape, dtype=own_PX.dtype, device=there, pin_memory=pinned)
        for at_P, found_PX in ((staying, brought(staying)), (torch.cat(coming), came)):
            out.index_copy_(0, to_device(to.local_B[at_P], there), found_PX)
        return out.permute(0, 3, 1, 2) if last else out


def _bytes_of_rows(rows_PX: Tensor) -> Tensor:
    """The bytes of each row, ``[P, bytes]``: a view where the rows are contiguous."""
    rows_PX = rows_PX.detach()
    return (rows_PX.flatten(1) if rows_PX.ndim > 1 else rows_PX.unsqueeze(1)).contiguous().view(torch.uint8)


class _Collected(torch.autograd.Function):
    """``Placement.collect_all``, whose backward pass takes the own rows of the gradients."""

    @staticmethod
    def forward(ctx: Any, placement: Placement, *own: Tensor) -> tuple[Tensor, ...]:
        ctx.index, ctx.size = to_device(placement.rows, own[0].device), placement.world.size
        return tuple(placement.collect_all(own))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(gradient[ctx.index] * ctx.size for gradient in gradients))
