"""Several processes that share one run, as torchrun starts them.

Every process holds every ``size``-th pair of a super-batch: rank r holds the rows r, r + size, r + 2·size …, its *own*
rows. Each process runs the models over its own rows alone; embeddings, keys and marks are all-gathered, so that a
policy reads the whole super-batch and makes the choice that one process would make. The chosen pairs then move to the
processes that train on them. The costs charged, the random draws and the logs do not depend on the number of
processes; only the order in which sums of floats are rounded does.

With one process these functions return at once, and no process group is needed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jestbench.parallel.peers import PATIENCE, LostProcess, Peers, attempt, say_gone
from jestbench.parallel.stop import end_with
from jestbench.parallel.traffic import TRAFFIC, Traded, gathered, pickled, reduced

_T = TypeVar("_T")


@dataclass(frozen=True)
class World:
    """This process's rank among the processes of a run, their number, and their collectives.

    Attributes:
        rank: of this process; rank 0 writes the run folder.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first_of_all(self) -> bool:
        """Whether this process is rank 0, which writes the run folder."""
        return self.rank == 0

    def rows(self, count: int) -> Tensor:
        """Positions of this process's own rows among ``count`` rows."""
        return torch.arange(self.rank, count, self.size)

    def collect(self, own_PX: Tensor, count: int, purpose: Traded = "bookkeeping") -> Tensor:
        """All-gather the rows of all processes: ``[count, …]`` in the order of their positions, without gradient."""
        if self.size == 1:
            return own_PX
        most = -(-count // self.size)
        padded: Tensor = own_PX.new_zeros(most, *own_PX.shape[1:])
        padded[: len(own_PX)] = own_PX.detach()
        sent = padded.to(torch.uint8) if own_PX.dtype == torch.bool else padded
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        with _waiting("an all-gather", purpose, gathered(sent.nbytes, self.size)):
            dist.all_gather(parts, sent)
        return torch.stack(parts, 1).flatten(0, 1)[:count].to(own_PX.dtype)

    def collect_with_gradient(self, own_KD: Tensor, count: int) -> Tensor:
        """As ``collect``, with a gradient: backward returns the gradient of the own rows.

        Every process computes the same loss from all rows, so the backward pass neither sums nor scales gradients.
        """
        if self.size == 1:
            return own_KD
        collected: Tensor = _Collected.apply(own_KD, count, self)
        return collected

    def exchange(self, own_PX: Tensor, index_K: Tensor) -> Tensor:
        """Take rows by position, and send each to the process that holds it in the result (all-to-all).

        Args:
            own_PX: this process's own rows of a tensor that is spread over the processes.
            index_K: positions in the whole tensor, the same on every process; the rows of the result are spread over
                the processes in the same way.

        Returns:
            This process's own rows of the result, in their order.
        """
        wanted = [index_K[rank :: self.size] for rank in range(self.size)]
        mine = wanted[self.rank]
        outgoing = [part[part % self.size == self.rank] // self.size for part in wanted]
        sent = own_PX[torch.cat(outgoing)].flatten(1).contiguous()
        from_each = [int((mine % self.size == rank).sum()) for rank in range(self.size)]
        came = sent.new_empty(len(mine), sent.shape[1])
        away = len(sent) - len(outgoing[self.rank])
        with _waiting("an all-to-all", "chosen_pairs", away * sent[:1].nbytes):
            dist.all_to_all_single(came, sent, from_each, [len(part) for part in outgoing])
        place = torch.argsort(mine % self.size, stable=True).to(came.device)
        ordered = torch.empty_like(came)
        ordered[place] = came
        moved: Tensor = ordered.unflatten(1, own_PX.shape[1:])
        return moved

    def share_gradients(self, parameters: Iterable[nn.Parameter], whole: Iterable[nn.Parameter]) -> None:
        """All-reduce gradients: sum the parts that come from each process's own rows.

        Args:
            parameters: all parameters of a model; one without a gradient on every process stays without.
            whole: the parameters of the loss itself, whose full gradient every process holds: it is averaged.
        """
        if self.size == 1:
            return
        held = [parameter for parameter in parameters if parameter.requires_grad]
        there = torch.tensor([float(parameter.grad is not None) for parameter in held], device=held[0].device)
        with _waiting("an all-reduce", "bookkeeping", reduced(there.nbytes, self.size)):
            dist.all_reduce(there)
        used = [parameter for parameter, count in zip(held, there.tolist(), strict=True) if count]
        grads = [parameter.grad if parameter.grad is not None else torch.zeros_like(parameter) for parameter in used]
        flat = torch.cat([grad.flatten().to(torch.promote_types(grad.dtype, torch.float32)) for grad in grads])
        with _waiting("an all-reduce of gradients", "weight_gradients", reduced(flat.nbytes, self.size)):
            dist.all_reduce(flat)
        entire = {id(parameter) for parameter in whole}
        for parameter, summed in zip(used, flat.split([parameter.numel() for parameter in used]), strict=True):
            value = summed / self.size if id(parameter) in entire else summed
            parameter.grad = value.view_as(parameter).to(parameter.dtype)

    def first(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` on rank 0 alone, and broadcast its result; an exception is raised on every rank too.

        The work may take hours: the other ranks wait as long as rank 0 gives signs of life.
        """
        if self.size == 1:
            return work()
        result: tuple[Any, BaseException | None] = (None, None)
        if self.first_of_all:
            try:
                result = (work(), None)
            except Exception as error:
                result = (None, error)
            if _peers is not None:
                _peers.done_first()
        elif _peers is not None:
            _peers.await_first()
        value, raised = self._told(result)
        if raised is not None:
            raise raised
        found: _T = value
        return found

    def in_turn(self, work: Callable[[], None]) -> None:
        """Run ``work`` on rank 0, then on all other ranks, which find the files that rank 0 has written."""
        self.first(work)
        if not self.first_of_all:
            work()

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any process (all-reduce)."""
        if self.size == 1:
            return flag
        said = torch.tensor(int(flag))
        with _waiting("an all-reduce", "bookkeeping", reduced(said.nbytes, self.size)):
            dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    def everybodys(self, value: _T) -> list[_T]:
        """All-gather a picklable value of each process, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _waiting("an all-gather", "bookkeeping", gathered(pickled(value), self.size)):
            dist.all_gather_object(values, value)
        return values

    def summed(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Counts by name, summed over all processes; every process gives the same names."""
        each = self.everybodys(dict(counts))
        return {name: sum(part[name] for part in each) for name in counts}

    def _told(self, value: _T) -> _T:
        told: list[Any] = [value]
        # Counted where it begins, though in a tree other ranks pass it on.
        sent = gathered(pickled(value), self.size) if self.first_of_all else 0
        with _waiting("a broadcast", "bookkeeping", sent):
            dist.broadcast_object_list(told, src=0)
        found: _T = told[0]
        return found


class _Collected(torch.autograd.Function):
    """``World.collect``, whose backward pass takes the own rows of the gradient."""

    @staticmethod
    def forward(ctx: Any, own_KD: Tensor, count: int, world: World) -> Tensor:
        ctx.index = world.rows(count).to(own_KD.device)
        return world.collect(own_KD, count, "embeddings")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.index], None, None


_alone = False
_peers: Peers | None = None  # of the process group that ``started`` has joined


@contextmanager
def _waiting(what: str, purpose: Traded = "bookkeeping", sent: int = 0) -> Iterator[None]:
    """Wait in a collective: a lost process is named, and the bytes that this process sends are counted."""
    with TRAFFIC.collective(purpose, sent), nullcontext() if _peers is None else _peers.waiting(what):
        yield


def world() -> World:
    """The processes of this run; this process alone outside of a process group or inside ``alone``."""
    if _alone or not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def alone() -> Iterator[None]:
    """Inside this context ``world`` returns this process alone, so that no collective waits for other ranks."""
    global _alone  # state of the process, as the process group is in torch.distributed
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def remember(name: str, value: str) -> None:
    """Keep a text for the next attempt of torchrun (``--max-restarts``); without torchrun it is forgotten."""
    if _peers is not None and _peers.rank == 0:
        _peers.of_all_attempts.set(name, value)


def remembered(name: str) -> str | None:
    """The text that an earlier attempt of torchrun has kept; ``None`` in the first attempt, and where it kept none."""
    if _peers is None or not attempt() or not _peers.of_all_attempts.check([name]):
        return None
    return str(_peers.of_all_attempts.get(name).decode())


@contextmanager
def started() -> Iterator[World]:
    """Join the process group of torchrun, by its environment variables; without them the process runs alone.

    Raises:
        LostProcess: the processes do not find each other, or another one has failed first.
    """
    global _peers  # state of the process, as the process group is in torch.distributed
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        with nullcontext() if _peers is None else _peers.one_reason():
            yield world()
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid(), say_gone)
    _peers = _joined(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    try:
        with _peers.one_reason():
            yield world()
        dist.destroy_process_group()
    finally:
        _peers.close()
        _peers = None


def _joined(rank: int, size: int) -> Peers:
    cuda = torch.cuda.is_available()
    if cuda:
        # A run on the CPU may have more processes than the machine has GPUs; one on GPUs refuses (``Arithmetic.of``).
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    peers, hook = Peers(rank, size), sys.excepthook
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    try:
        with peers.joining():
            dist.init_process_group(backend, store=peers.store, rank=rank, world_size=size, timeout=PATIENCE)
    except RuntimeError as error:
        raise LostProcess(f"process {rank} of {size} cannot join the others: {error}".partition("\n")[0]) from error
    sys.excepthook = hook  # torch's prints every traceback twice
    return peers
