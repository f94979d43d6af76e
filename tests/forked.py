"""Processes forked from this one, in which torch is imported already: a killed run costs a fraction of a second."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import process, util
from pathlib import Path

import pytest


class Forked:
    """A process that does some work, its output in a file.

    Args:
        work: returns the exit status.
        log: file for what it prints.
    """

    def __init__(self, work: Callable[[], int], log: Path) -> None:
        self.log, self._status = log, None
        log.parent.mkdir(parents=True, exist_ok=True)
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        util._finalizer_registry.clear()  # those of the process that it was forked from
        process.current_process()._config.pop("tempdir", None)
        process._children.clear()  # they are its parent's, and only a parent can wait for them
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number in (1, 2):
                os.dup2(descriptor, number)
            sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                util._exit_function()
            finally:  # whatever comes, the tests go on in the parent alone
                os._exit(status)

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        """The exit status, negative for a signal; ``None`` while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self, seconds: float = 60) -> int:
        """The exit status; a process that takes longer is killed, and fails the test."""
        end = time.monotonic() + seconds
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                pytest.fail(f"a process still ran after {seconds} s: {self.said[-2000:]}")
            time.sleep(0.005)
        return status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ranks(size: int, work: Callable[[int], int], folder: Path, **environment: str) -> list[Forked]:
    """The processes of one run, as torchrun would start them; ``work`` gets the rank."""
    port = str(free_port())

    def of(rank: int) -> Callable[[], int]:
        def as_rank() -> int:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank)}
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), **environment}
            return work(rank)

        return as_rank

    return [Forked(of(rank), folder / f"rank{rank}.log") for rank in range(size)]


def all_end_well(group: list[Forked], seconds: float = 120) -> None:
    """Wait for the processes of a run, each of which must end with status 0; none of them is left."""
    try:
        assert [process.wait(seconds) for process in group] == [0] * len(group), "\n".join(one.said for one in group)
    finally:
        for process in group:
            process.kill()
