"""Several processes that share one run, as torchrun starts them.

Every process holds every ``size``-th pair of a super-batch: rank r the rows r, r + size, r + 2·size … Models are run
over own rows alone; embeddings, keys and marks are collected, so that a policy sees the whole super-batch and makes
the choice that one process would make. The chosen pairs then move to who trains on them. What is charged, drawn and
logged does not depend on how many processes there are; sums of floats are rounded in another order, that is all.

With one process nothing here costs anything, and no process group is needed.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jestbench.batch import Selection

_T = TypeVar("_T")
PATIENCE = datetime.timedelta(hours=24)
"""How long a process waits for the others: as long as it takes the first to prepare data. torchrun ends all of them
when one is lost."""


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: of this process; the first, 0, writes the run folder.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first_of_all(self) -> bool:
        """Whether this process writes what a run leaves behind."""
        return self.rank == 0

    def rows(self, count: int) -> Tensor:
        """Positions of the own rows among ``count``."""
        return torch.arange(self.rank, count, self.size)

    def collect(self, own_PX: Tensor, count: int) -> Tensor:
        """The rows of all processes, ``[count, …]`` in the order of their positions, without gradient."""
        if self.size == 1:
            return own_PX
        most = -(-count // self.size)
        padded: Tensor = own_PX.new_zeros(most, *own_PX.shape[1:])
        padded[: len(own_PX)] = own_PX.detach()
        sent = padded.to(torch.uint8) if own_PX.dtype == torch.bool else padded
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(parts, sent)
        return torch.stack(parts, 1).flatten(0, 1)[:count].to(own_PX.dtype)

    def collect_with_gradient(self, own_KD: Tensor, count: int) -> Tensor:
        """As ``collect``; the gradient of what every process makes of all rows alike goes to the own ones.

        Since all compute one and the same loss, nothing is summed on the way back, and nothing is scaled.
        """
        if self.size == 1:
            return own_KD
        collected: Tensor = _Collected.apply(own_KD, count, self)
        return collected

    def exchange(self, own_PX: Tensor, index_K: Tensor) -> Tensor:
        """Move rows to who needs them.

        Args:
            own_PX: the own rows of something that is spread over the processes.
            index_K: positions in the whole, the same at every process: those at own rows of *it* are needed here.

        Returns:
            The needed rows, in their order.
        """
        wanted = [index_K[rank :: self.size] for rank in range(self.size)]
        mine = wanted[self.rank]
        outgoing = [part[part % self.size == self.rank] // self.size for part in wanted]
        sent = own_PX[torch.cat(outgoing)].flatten(1).contiguous()
        from_each = [int((mine % self.size == rank).sum()) for rank in range(self.size)]
        came = sent.new_empty(len(mine), sent.shape[1])
        dist.all_to_all_single(came, sent, from_each, [len(part) for part in outgoing])
        place = torch.argsort(mine % self.size, stable=True).to(came.device)
        ordered = torch.empty_like(came)
        ordered[place] = came
        moved: Tensor = ordered.unflatten(1, own_PX.shape[1:])
        return moved

    def share_gradients(self, parameters: Iterable[nn.Parameter], whole: Iterable[nn.Parameter]) -> None:
        """Sum the gradients that each process has of its own rows.

        Args:
            parameters: all of a model; one that no process has a gradient of keeps none.
            whole: those of the loss itself, whose gradients every process has whole: their mean is taken.
        """
        if self.size == 1:
            return
        held = [parameter for parameter in parameters if parameter.requires_grad]
        there = torch.tensor([float(parameter.grad is not None) for parameter in held], device=held[0].device)
        dist.all_reduce(there)
        used = [parameter for parameter, count in zip(held, there.tolist(), strict=True) if count]
        grads = [parameter.grad if parameter.grad is not None else torch.zeros_like(parameter) for parameter in used]
        flat = torch.cat([grad.flatten().to(torch.promote_types(grad.dtype, torch.float32)) for grad in grads])
        dist.all_reduce(flat)
        entire = {id(parameter) for parameter in whole}
        for parameter, summed in zip(used, flat.split([parameter.numel() for parameter in used]), strict=True):
            value = summed / self.size if id(parameter) in entire else summed
            parameter.grad = value.view_as(parameter).to(parameter.dtype)

    def agreed(self, selection: Selection) -> Selection:
        """The first process's choice: a last bit on one GPU must not part the others from it."""
        if self.size == 1:
            return selection
        weight_K = selection.weight_K
        index_K, weight_K = self._told((selection.index_K.cpu(), None if weight_K is None else weight_K.cpu()))
        return replace(selection, index_K=index_K, weight_K=weight_K)

    def first(self, work: Callable[[], _T]) -> _T:
        """What the first process's work returns, at every process; what it raises, too."""
        if self.size == 1:
            return work()
        result: tuple[Any, BaseException | None] = (None, None)
        if self.first_of_all:
            try:
                result = (work(), None)
            except Exception as error:
                result = (None, error)
        value, raised = self._told(result)
        if raised is not None:
            raise raised
        found: _T = value
        return found

    def in_turn(self, work: Callable[[], None]) -> None:
        """The first process's turn, then everybody else's: what it leaves on the disk is found there."""
        self.first(work)
        if not self.first_of_all:
            work()

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.size == 1:
            return flag
        said = torch.tensor(int(flag))
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    def everybodys(self, value: _T) -> list[_T]:
        """A value of each process, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def summed(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Counts of all processes, which all have the same names."""
        each = self.everybodys(dict(counts))
        return {name: sum(part[name] for part in each) for name in counts}

    def _told(self, value: _T) -> _T:
        told: list[Any] = [value]
        dist.broadcast_object_list(told, src=0)
        found: _T = told[0]
        return found


class _Collected(torch.autograd.Function):
    """Forward as ``World.collect``; backward takes the own rows."""

    @staticmethod
    def forward(ctx: Any, own_KD: Tensor, count: int, world: World) -> Tensor:
        ctx.index = world.rows(count).to(own_KD.device)
        return world.collect(own_KD, count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.index], None, None


_alone = False


def world() -> World:
    """The processes of this run; this one alone where torchrun has started no others."""
    if _alone or not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is a run's only one, whoever waits for it."""
    global _alone  # which processes there are is this process's own state, as in torch.distributed
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextmanager
def started() -> Iterator[World]:
    """Join the processes that torchrun has started, by its environment variables; nothing without them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield world()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield world()
    finally:
        dist.destroy_process_group()
