"""A pool of worker processes that survives the loss of a worker.

When a worker is killed, torch's ``DataLoader`` raises in the main thread at any point, even in the middle of an
optimizer step, from which a run cannot go on. Here a separate thread notices the loss of a worker, starts
another and gives it the same tasks; a result depends on its task alone, so it is the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.multiprocessing  # registers how connections pass tensors: in shared memory

from jestbench.batch import DataError
from jestbench.parallel.stop import end_with

Task = TypeVar("Task")
Result = TypeVar("Result")

AT_ONCE = 2
"""Tasks that a worker holds, so that the next one is there when one is done."""
ENDING_SECONDS = 10.0
"""How long the end of a killed worker, or of the receiving thread, is waited for."""


def _unlink_shared(pid: int) -> None:
    """Remove the shared memory of a process that was killed between making and unlinking it, as torch does at once."""
    for segment in Path("/dev/shm").glob(f"torch_{pid}_*"):
        segment.unlink(missing_ok=True)


Descriptor = tuple[int, int, int]
"""A descriptor's number, and the device and inode of what is open there."""


def _foreign_descriptors() -> list[Descriptor]:
    """Descriptors of this process that a forked worker must not keep: pipes, sockets, and files open for writing.

    A worker that held the reading end of a command's output would keep that command waiting for a reader for ever; a
    copy of a lock's descriptor would keep the lock beyond its process.
    """
    found = []
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this very listing is closed by then
            number, target = int(entry.name), str(Path(entry.path).readlink())
            written = fcntl.fcntl(number, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR)
            on_disk = target.startswith("/") and not target.startswith("/dev/")
            if number > 2 and (target.startswith(("pipe:", "socket:")) or (on_disk and written)):
                found.append(_descriptor(number))
    return found


def _descriptor(number: int) -> Descriptor:
    status = os.fstat(number)
    return number, status.st_dev, status.st_ino


def _let_go(descriptors: Sequence[Descriptor]) -> None:
    """Point descriptors to the null device: closed, their numbers would be used again, and closed by their owners.

    One that was closed before the fork, and whose number leads to something else by now, is left alone.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if _descriptor(descriptor[0]) == descriptor:
                os.dup2(null, descriptor[0], inheritable=False)
    os.close(null)


@dataclass
class _Order:
    """A task, the future of its result, and a function to apply to that result."""

    future: Future[Any]
    task: Any
    then: Callable[[Any], Any] | None


@dataclass
class _Worker:
    """One process and what it was given, oldest first."""

    process: Any
    connection: Connection
    held: deque[_Order] = field(default_factory=deque)
    heard: float = field(default_factory=time.monotonic)  # time of its last result, or of a task given while idle

    def kill(self) -> None:
        """Kill the worker, and the commands that it has started: they are in its process group."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def end(self) -> None:
        """Kill the worker and clear away what is left of it."""
        self.kill()
        self.process.join(ENDING_SECONDS)
        self.connection.close()
        _unlink_shared(self.process.pid)


class Workers(Generic[Task, Result]):
    """Processes that each turn tasks into results, in the order in which they get them; the first task starts them.

    Workers are started by ``fork`` where the system has it, as in torch's own loader: what ``work`` refers to (an
    index of millions of pairs) is shared, not copied. Workers ignore SIGINT, end when their parent ends or is
    killed, and hold nothing that needs cleaning up.

    Args:
        work: task → result; runs in the workers, and may keep state of its own there.
        count: processes, at least 1.
        restarts: how many lost workers are replaced before it is given up.
        timeout: seconds that a result may take before its worker is taken for lost.
    """

    def __init__(self, work: Callable[[Task], Result], count: int, restarts: int = 3, timeout: float = 300.0) -> None:
        self.restarts = 0
        self.count = count
        self._work, self._limit, self._timeout = work, restarts, timeout
        self._context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._waiting: list[deque[_Order]] = [deque() for _ in range(count)]
        self._shared: deque[_Order] = deque()
        self._lock = threading.Lock()
        self._closed = False
        self._error: BaseException | None = None
        self._workers: list[_Worker] = []

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers; none before the first task."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, task: Task, to: int | None = None, then: Callable[[Result], Any] | None = None) -> Future[Any]:
        """Ask for a result.

        Args:
            task: what to do.
            to: the worker that must do it; else the first free one does.
            then: called with the result in the thread that receives it; what it returns is the future's result.
        """
        order = _Order(Future(), task, then)
        with self._lock:
            if self._error is not None:
                raise self._error
            if not self._workers:
                self._start_all()
            (self._shared if to is None else self._waiting[to % self.count]).append(order)
        self._wake.send_bytes(b"w")
        return order.future

    def wait(self, future: Future[Any]) -> Any:
        """The result, or whatever the work raised.

        Raises:
            DataError: workers were lost again and again, or the work raised it.
        """
        while True:
            try:
                return future.result(self._timeout / 4)
            except FutureTimeout:
                if future.done():
                    raise
                # Hung: a stopped process, a read that never returns. Killed, it is replaced like a lost one.
                for worker in self._workers:
                    if worker.held and time.monotonic() - worker.heard > self._timeout:
                        worker.kill()

    def close(self) -> None:
        """End all workers and wait for them; asking for more is an error from here on."""
        if self._closed:
            return
        self._closed = True
        if not self._workers:
            self._fail(RuntimeError("the workers are closed"))
            return
        self._at_exit.cancel()
        for worker in self._workers:
            worker.kill()
        with contextlib.suppress(OSError):
            self._wake.send_bytes(b"w")
        self._thread.join(ENDING_SECONDS)
        for worker in self._workers:
            worker.end()
        self._fail(RuntimeError("the workers are closed"))
        self._woken.close()
        self._wake.close()

    def _start_all(self) -> None:
        self._woken, self._wake = multiprocessing.Pipe(duplex=False)
        multiprocessing.util.get_temp_dir()  # of this process, for all workers: a killed one removes none of its own
        self._workers = [self._start() for _ in range(self.count)]
        self._thread = threading.Thread(target=self._run, name="jestbench-workers", daemon=True)
        self._thread.start()
        # Not atexit: a process that multiprocessing itself started ends without it.
        self._at_exit = multiprocessing.util.Finalize(None, self.close, exitpriority=100)

    def _start(self) -> _Worker:
        forked = self._context.get_start_method() == "fork"
        foreign = _foreign_descriptors() if forked else []
        ours, theirs = self._context.Pipe()
        foreign += [_descriptor(ours.fileno())] if forked else []
        arguments = theirs, self._work, os.getpid(), foreign
        process = self._context.Process(  # type: ignore[attr-defined]
            target=_serve, args=arguments, daemon=True, name="jestbench-worker"
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _run(self) -> None:
        try:
            while not self._closed:
                self._hand_out()
                readers: list[Any] = [self._woken]
                for worker in self._workers:
                    readers += [worker.connection, worker.process.sentinel]
                ready = wait(readers)
                if self._woken in ready:
                    self._woken.recv_bytes()
                for number, worker in enumerate(self._workers):
                    if worker.connection in ready or worker.process.sentinel in ready:
                        self._take(number, worker)
        except BaseException as error:  # or callers would wait for ever
            self._fail(error)
            for worker in self._workers:
                worker.kill()

    def _hand_out(self) -> None:
        for number, worker in enumerate(self._workers):
            while len(worker.held) < AT_ONCE:
                with self._lock:
                    queue = self._waiting[number] or self._shared
                    if not queue:
                        break
                    order = queue.popleft()
                if order.future.set_running_or_notify_cancel():
                    if not worker.held:
                        worker.heard = time.monotonic()
                    worker.held.append(order)
                    with contextlib.suppress(OSError):  # the worker is lost, which its sentinel shows
                        worker.connection.send(order.task)

    def _take(self, number: int, worker: _Worker) -> None:
        """Receive one result of a worker, or replace the worker if it has ended."""
        try:
            if not worker.connection.poll():
                raise EOFError
            good, value = worker.connection.recv()
        except (EOFError, OSError, RuntimeError):
            self._replace(number, worker)
            return
        order = worker.held.popleft()
        worker.heard = time.monotonic()
        try:
            if not good:
                raise value
            order.future.set_result(value if order.then is None else order.then(value))
        except Exception as error:
            order.future.set_exception(error)

    def _replace(self, number: int, worker: _Worker) -> None:
        worker.end()
        if self._closed:
            return
        self.restarts += 1
        if self.restarts > self._limit:
            raise DataError(
                f"{self.restarts} data workers were lost, the last with exit code {worker.process.exitcode} (-9 is "
                "killed, often for memory): lower loader.workers or loader.prefetch, or set loader.workers=0 to "
                "see the trouble itself"
            )
        fresh = self._start()
        fresh.held = worker.held
        self._workers[number] = fresh
        for order in fresh.held:
            with contextlib.suppress(OSError):
                fresh.connection.send(order.task)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
            queues = [*self._waiting, self._shared, *(worker.held for worker in self._workers)]
            futures = [order.future for queue in queues for order in queue]
            for queue in queues:
                queue.clear()
        for future in futures:
            if not future.cancel() and not future.done():
                future.set_exception(error)


def _clear_away() -> None:
    """Remove what a killed parent leaves: the folder through whose sockets tensors are passed, and shared memory."""
    shutil.rmtree(multiprocessing.util.get_temp_dir(), ignore_errors=True)
    _unlink_shared(os.getpid())


def _serve(connection: Connection, work: Callable[[Any], Any], parent: int, foreign: Sequence[Descriptor]) -> None:
    """Run tasks in a worker until its parent is gone; ``foreign`` are inherited descriptors, to be let go."""
    _let_go(foreign)
    os.setpgid(0, 0)
    # Ctrl-C reaches the whole group: the parent finishes its step, and needs its workers for it. The
    # parent's handler of SIGTERM is inherited and must not be.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with(parent, _clear_away)
    torch.set_num_threads(1)
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[bool, Any] = True, work(task)
        except DataError as error:
            answer = False, error
        except BaseException as error:
            answer = False, RuntimeError(f"a data worker failed: {error!r}\n{traceback.format_exc()}")
        try:
            connection.send(answer)
        except OSError:
            return
