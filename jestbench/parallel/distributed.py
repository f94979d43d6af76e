"""Several processes that share one run, as torchrun starts them.

Every process holds some pairs of a super-batch, its *own* rows (``placement.py``). Each process runs the models over
its own rows alone; embeddings, keys and marks are all-gathered, so that a policy reads the whole super-batch and makes
the choice that one process would make. The chosen pairs then move to the
processes that train on them. The costs charged, the random draws and the logs do not depend on the number of
processes; only the order in which sums of floats are rounded does.

With one process these functions return at once, and no process group is needed.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from jestbench.parallel.cores import own_cores
from jestbench.parallel.peers import PATIENCE, LostProcess, Peers, say_gone, served_by_torchrun
from jestbench.parallel.stop import end_with
from jestbench.parallel.traffic import TRAFFIC, Traded, gathered, pickled, reduced

_T = TypeVar("_T")

HEAD = 4096
"""Bytes of a pickled value that travel with its length, by one collective; a longer value takes a second one."""


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
        """Positions of this process's share of ``count`` rows that are dealt out in turns."""
        return torch.arange(self.rank, count, self.size)

    def sent(self, rows_PX: Tensor, to_each: Sequence[int], from_each: Sequence[int]) -> Tensor:
        """Send rows to other processes, and return those that came from them (all-to-all), in the order of ranks.

        Args:
            rows_PX: the rows to send, in the order of the ranks that they go to.
            to_each: how many of them go to each process.
            from_each: how many rows come from each process.
        """
        came = rows_PX.new_empty(sum(from_each), *rows_PX.shape[1:])
        with _counted("an all-to-all", rows_PX.nbytes, "chosen_pairs"):
            dist.all_to_all_single(came, rows_PX.contiguous(), list(from_each), list(to_each))
        return came

    def waiting(self, what: str) -> AbstractContextManager[None]:
        """Inside this context torch's own collectives are waited in: an error names the processes that are missing."""
        return _waiting(what)

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
        with _counted("an all-reduce", reduced(said.nbytes, self.size)):
            dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    def share(self, count: int) -> slice:
        """This process's share of consecutive rows, ⌈count/size⌉ of them; those of the last processes may be empty."""
        most = -(-count // self.size)
        return slice(min(count, self.rank * most), min(count, (self.rank + 1) * most))

    def gather(self, own_X: Tensor) -> Tensor:
        """All-gather tensors of one shape: ``[size, …]`` in the order of ranks, the same bits on every process."""
        parts: Tensor = own_X.new_empty(self.size, *own_X.shape)
        with _counted("an all-gather", gathered(own_X.nbytes, self.size)):
            dist.all_gather(list(parts.unbind()), own_X.detach().contiguous())
        return parts

    def add(self, *own: Tensor) -> tuple[Tensor, ...]:
        """All-reduce: the sums over all processes, of tensors of one number format, by one collective."""
        if self.size == 1:
            TRAFFIC.computed_alone(sums=own)
            return own
        flat = torch.cat([part.detach().flatten() for part in own])
        with _counted("an all-reduce", reduced(flat.nbytes, self.size)):
            dist.all_reduce(flat)
        sums = flat.split([part.numel() for part in own])
        return tuple(part.view_as(like) for part, like in zip(sums, own, strict=True))

    def everybodys(self, value: _T) -> list[_T]:
        """All-gather a picklable value of each process, in the order of ranks; a small one by one collective."""
        if self.size == 1:
            return [value]
        own = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        head = F.pad(own[:HEAD], (0, HEAD - len(own[:HEAD])))
        heads = self.gather(torch.cat([torch.tensor([len(own)]).view(torch.uint8), head]))
        sizes = heads[:, :8].contiguous().view(torch.int64).flatten().tolist()
        whole = heads[:, 8:]
        if (most := max(sizes)) > HEAD:
            rest = own[HEAD:]
            whole = torch.cat([whole, self.gather(F.pad(rest, (0, most - HEAD - len(rest))))], 1)
        return [pickle.loads(part[:size].numpy().tobytes()) for part, size in zip(whole, sizes, strict=True)]

    def _told(self, value: _T) -> _T:
        told: list[Any] = [value]
        # Counted where it begins, though other ranks pass it on.
        with _counted("a broadcast", gathered(pickled(value), self.size) if self.first_of_all else 0):
            dist.broadcast_object_list(told, src=0)
        found: _T = told[0]
        return found


_alone = False
_peers: Peers | None = None  # of the process group that ``started`` has joined


def _waiting(what: str) -> AbstractContextManager[None]:
    return nullcontext() if _peers is None else _peers.waiting(what)


@contextmanager
def _counted(what: str, sent: int, purpose: Traded = "bookkeeping") -> Iterator[None]:
    """Wait in a collective, and count it (``parallel/traffic.py``)."""
    with TRAFFIC.collective(purpose, sent), _waiting(what):
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
    """Keep a text for the processes that torchrun starts next in place of these; without torchrun it is forgotten."""
    if _peers is not None and _peers.rank == 0:
        _peers.of_all_groups.set(name, f"{_peers.number} {value}")


def remembered(name: str) -> str | None:
    """The text that an earlier group of processes of torchrun has kept; ``None`` where there is none."""
    if _peers is None or not _peers.of_all_groups.check([name]):
        return None
    number, _, value = _peers.of_all_groups.get(name).decode().partition(" ")
    return None if int(number) == _peers.number else str(value)


@contextmanager
def started() -> Iterator[World]:
    """Join the process group of torchrun, by its environment variables; without them the process runs alone.

    Raises:
        LostProcess: the processes do not find each other, or another one has failed first.
    """
    global _peers  # state of the process, as the process group is in torch.distributed
    size = int(os.environ.get("WORLD_SIZE", "1"))
    # One process alone joins no group, but goes on where more processes of the same torchrun were.
    if _peers is not None or dist.is_initialized() or (size == 1 and not served_by_torchrun()):
        with nullcontext() if _peers is None else _peers.one_reason():
            yield world()
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid(), say_gone)
    _peers = _joined(int(os.environ["RANK"]), size)
    try:
        with _cores(), _peers.one_reason():
            yield world()
        if size > 1:
            dist.destroy_process_group()
    finally:
        _peers.close()
        _peers = None


def _cores() -> AbstractContextManager[None]:
    """The share of the cores of a process on the CPU; on GPUs, whose hosts wait little, nothing is set."""
    size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.device_count() >= size:
        return nullcontext()
    return own_cores(int(os.environ.get("LOCAL_RANK", "0")), size)


def _joined(rank: int, size: int) -> Peers:
    if size == 1:
        return Peers(rank, size)
    # A run on the CPU may have more processes than the machine has GPUs; one on GPUs refuses (``Arithmetic.of``).
    cuda = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend, hook = "cpu:gloo,cuda:nccl" if cuda else "gloo", sys.excepthook
    try:
        peers = Peers(rank, size)
        with peers.joining():
            dist.init_process_group(backend, store=peers.store, rank=rank, world_size=size, timeout=PATIENCE)
    except RuntimeError as error:
        raise LostProcess(f"process {rank} of {size} cannot join the others: {error}".partition("\n")[0]) from error
    sys.excepthook = hook  # torch's prints every traceback twice
    return peers
