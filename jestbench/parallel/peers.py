"""The other processes of a run: who of them still lives, who has failed first, and what torchrun prints of it."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed as dist

from jestbench.parallel.stop import STOP

PATIENCE = timedelta(minutes=10)
"""How long a process waits in a collective for another one, and for a sign of life of one that works alone."""
BEAT_SECONDS = 2.0
"""Between two signs of life."""
GRACE_SECONDS = 3.0
"""How long a process that ends with another one waits for torchrun to end it."""
_ANSWER_SECONDS = 5.0  # within which a store that is there answers
_BEFORE = 0.3  # seconds by which rank 0 comes first where all fail alike
_LOST = ("connection closed", "connection reset", "broken pipe", "connection refused", "connection was likely closed")
_LATE = ("timed out", "timeout")


class LostProcess(Exception):
    """Another process of the run has ended, or stays away; this one ends with it."""

    exit_status: ClassVar[int] = 1


def _connected(rank: int, size: int) -> Any:
    """The store through which processes find each other; ``LostProcess`` where these, or torchrun, do not answer."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        own = rank == 0 and not served_by_torchrun()
        return dist.TCPStore(host, port, size, own, PATIENCE, False, multi_tenant=True)  # type: ignore[attr-defined]
    except RuntimeError as error:
        raise LostProcess(
            f"process {rank} has waited {_shown(PATIENCE)} for an answer of {host}, port {port}: start all {size} "
            "processes, and look at the network between their machines"
        ) from error


def served_by_torchrun() -> bool:
    """Whether torchrun serves the store, which then outlives the processes of this run."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


class Peers:
    """The processes of a run as one of them sees them, through the store.

    torchrun serves one store for all groups of processes that it starts, one after the other (``--max-restarts``, nodes
    that come and go). Each group has keys of its own there: under those of the group before, processes would find
    addresses of processes that are gone, and wait for those.

    Args:
        rank: of this process.
        size: number of processes.

    Attributes:
        number: of this group; no other one of the store has it.
        store: keys of this group.
        of_all_groups: keys that a later group finds again.

    Raises:
        LostProcess: the processes do not find each other.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        prefixed: Any = dist.PrefixStore  # type: ignore[attr-defined]
        connected = _connected(rank, size)
        self.of_all_groups = prefixed("jestbench", connected)
        with self.joining():
            self.number = self._agreed()
        own = f"jestbench/group{self.number}"
        self.store = prefixed(own, connected)
        self._begun, self._firsts, self._contexts = 0, 0, 0
        self._closed = threading.Event()
        # A client of its own: one that waits keeps other threads out.
        self._beats = prefixed(own, _connected(rank, size))
        threading.Thread(target=self._beat, name="jestbench-beat", daemon=True).start()

    def _agreed(self) -> int:
        """The number of this group of processes, which rank 0 draws and gives to each process that asks for it.

        torchrun's count of restarts does not identify a group: each agent counts for itself, and does not count a
        restart for a node that has come or gone.

        Raises:
            LostProcess: rank 0, or another process, has not come within ``PATIENCE``.
        """
        store, own, end = self.of_all_groups, uuid.uuid4().hex, time.monotonic() + PATIENCE.total_seconds()
        number, missing = (0, [0]) if self.rank else (int(store.add("groups", 1)), list(range(1, self.size)))
        if self.rank:
            store.set(f"asks/{self.rank}", own)
        while missing:
            if time.monotonic() > end:
                absent = " and ".join(f"process {rank}" for rank in missing)
                raise LostProcess(
                    f"process {self.rank} has waited {_shown(PATIENCE)} for {absent} of {self.size} to join"
                )
            if self.rank == 0:
                # What a process of an earlier group has asked may still stand there, until that of this group asks.
                for rank in missing:
                    if store.check([f"asks/{rank}"]):
                        store.set(f"number/{store.get(f'asks/{rank}').decode()}", str(number))
                missing = [rank for rank in missing if not store.check([f"joined/{number}/{rank}"])]
            elif store.check([f"number/{own}"]):
                number, missing = int(store.get(f"number/{own}")), []
                store.set(f"joined/{number}/{self.rank}", "")
            time.sleep(0.01)
        return number

    def close(self) -> None:
        """Give no more signs of life."""
        self._closed.set()

    @contextmanager
    def joining(self) -> Iterator[None]:
        """End this process if joining the others takes too long: torch waits for a hung store without a limit."""

        def give_up() -> None:
            text = f"error: process {self.rank} has waited {_shown(2 * PATIENCE)} to join the {self.size} processes"
            print(text, file=sys.stderr, flush=True)
            report_to_torchrun(text)
            os._exit(1)

        timer = threading.Timer(2 * PATIENCE.total_seconds(), give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Name a collective that is waited in; an error of it becomes one that names the processes that are missing.

        Raises:
            LostProcess: another process has ended, or has not come for ``PATIENCE``.
            KeyboardInterrupt: the same, and this process was asked to stop.
        """
        self._begun += 1
        try:
            yield
        except RuntimeError as error:
            said = str(error).lower()
            if any(words in said for words in _LATE):
                raise LostProcess(self._late(what)) from error
            if not any(words in said for words in _LOST):
                raise
            if STOP.asked:
                raise KeyboardInterrupt from error
            raise LostProcess(self._ends) from error

    def done_first(self) -> None:
        """Let the other ranks go on: rank 0 has done what they wait for."""
        self._firsts, self._begun = self._firsts + 1, self._begun + 1
        key = f"first/{self._firsts}"
        self._asked(lambda: self.store.set(key, "done"))

    def await_first(self) -> None:
        """Wait until rank 0 has done what it does alone, as long as it gives signs of life.

        Raises:
            LostProcess: it gives none for ``PATIENCE``.
        """
        self._firsts += 1
        key, beat, since, pause = f"first/{self._firsts}", b"", time.monotonic(), 0.001
        with self.waiting("a step of rank 0 alone"):
            while not self._asked(lambda: self.store.check([key])):
                time.sleep(pause)
                pause = min(0.2, 1.5 * pause)
                if pause == 0.2 and (now := self._last_beat(0)) != beat:
                    beat, since = now, time.monotonic()
                if time.monotonic() - since > PATIENCE.total_seconds():
                    raise LostProcess(self._late("a step of rank 0 alone"))

    @contextmanager
    def one_reason(self) -> Iterator[None]:
        """Inside this context, the process that fails first raises its error; the others end because it has ended.

        Those wait a little for torchrun to end them, so that torchrun reports the first failure as the cause.

        Raises:
            LostProcess: another process has failed before.
        """
        self._contexts += 1
        key = f"failed/{self._contexts}"
        try:
            yield
        except Exception as error:
            if self.rank:
                time.sleep(_BEFORE)
            late, order = isinstance(error, LostProcess) and str(error) == self._ends, None
            with suppress(LostProcess):
                order = None if late else self._asked(lambda: self.store.add(key, 1))
            if not late and order in (1, None):
                error.__dict__["failed_first"] = True
                raise
            with STOP.ending("after"):
                end = time.monotonic() + GRACE_SECONDS
                while not STOP.asked and time.monotonic() < end:
                    time.sleep(0.05)
            raise LostProcess(self._ends) from None

    def _late(self, what: str) -> str:
        """Which processes are missing in a collective, by their signs of life."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        before = {rank: self._last_beat(rank) for rank in others}
        time.sleep(2 * BEAT_SECONDS)
        after = {rank: self._last_beat(rank) for rank in others}
        silent = [rank for rank in others if before[rank] == after[rank]]
        behind = [rank for rank in others if rank not in silent and self._count(after[rank]) < self._begun]
        parts = [f"process {rank}, which gives no sign of life" for rank in silent]
        parts += [f"process {rank}, which lives but has not come there" for rank in behind]
        missing = " and ".join(parts) or "the others, which live"
        return f"process {self.rank} has waited {_shown(PATIENCE)} in {what} for {missing}"

    @staticmethod
    def _count(beat: bytes) -> int:
        return int(beat.partition(b" ")[2] or 0)

    def _last_beat(self, rank: int) -> bytes:
        key = f"beat/{rank}"
        with suppress(LostProcess):
            if self._asked(lambda: self.store.check([key])):
                return bytes(self._asked(lambda: self.store.get(key)) or b"")
        return b""

    def _asked(self, work: Callable[[], Any]) -> Any:
        """The store's answer, ``None`` where its machine gives none; ``LostProcess`` where its process has ended."""
        answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put((work(), None))
            except RuntimeError as error:
                answers.put((None, error))

        # A thread that is given up: a store that does not answer would be waited for without a limit.
        threading.Thread(target=ask, daemon=True).start()
        try:
            answer, error = answers.get(timeout=_ANSWER_SECONDS)
        except queue.Empty:
            return None
        if error is not None:
            raise LostProcess(self._ends) from error
        return answer

    @property
    def _ends(self) -> str:
        return f"process {self.rank} ends because another process has ended"

    def _beat(self) -> None:
        number = 0
        with suppress(RuntimeError):  # the store is gone, and soon this process
            while not self._closed.wait(BEAT_SECONDS):
                number += 1
                self._beats.set(f"beat/{self.rank}", f"{number} {self._begun}")


def _shown(span: timedelta) -> str:
    seconds = span.total_seconds()
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


def report_to_torchrun(reason: str) -> None:
    """Write why this process fails where torchrun looks for it: its report ends with the reason."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with suppress(OSError):
            # A second earlier: torchrun takes the earliest failure for the cause, and counts in whole seconds.
            document = {"message": reason, "timestamp": int(time.time()) - 1}
            Path(path).write_text(json.dumps(document), encoding="utf-8")


def say_gone() -> None:
    """Say that this process ends because torchrun, its parent, is gone."""
    print(f"process {os.environ.get('RANK', '0')} ends because torchrun has ended", file=sys.stderr, flush=True)
