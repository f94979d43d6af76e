"""Command lines run side by side, stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
ENDING_SECONDS = 600.0
"""How long jobs that were asked to end may take, for a step and its checkpoint; then they are killed."""
_POLL = 0.1  # seconds


@dataclass(frozen=True)
class Job(Generic[T]):
    """A command line, its owner, and variables for its environment."""

    owner: T
    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def _stops_as_interrupts() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt inside the block, so that they stop the children too."""
    stops = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in stops]
    try:
        yield
    finally:
        for number, handler in zip(stops, before, strict=True):
            signal.signal(number, handler)


def run_side_by_side(
    jobs: Iterator[Job[T]], at_once: int, tick: Callable[[], None] = lambda: None
) -> Iterator[tuple[T, int]]:
    """Run jobs, at most ``at_once`` in parallel; yield each job's owner and exit status as it ends.

    The next job is taken from ``jobs`` only when a place is free and the results so far have been consumed, so
    the iterator may depend on them. ``tick`` is called again and again while jobs run.

    Raises:
        KeyboardInterrupt: after every child was sent SIGINT and has ended.
    """
    running: dict[int, tuple[Job[T], subprocess.Popen[bytes]]] = {}
    more = True
    with _stops_as_interrupts():
        try:
            while True:
                while more and len(running) < at_once:
                    job = next(jobs, None)
                    if job is None:
                        more = False
                        break
                    place = next(number for number in range(at_once) if number not in running)
                    running[place] = (job, _start(job, place))
                if not running:
                    return
                for place, (job, process) in list(running.items()):
                    status = process.poll()
                    if status is not None:
                        del running[place]
                        yield job.owner, status
                tick()
                time.sleep(_POLL)
        except BaseException:  # whatever ends this, no child outlives it
            _stop([process for _, process in running.values()])
            raise


def _start(job: Job[T], place: int) -> subprocess.Popen[bytes]:
    # The child has its own session, so that Ctrl-C reaches it once, through this process: a second signal would kill it
    # before its checkpoint is written. Each child has its own row for its progress bar.
    environment = {**os.environ, "TQDM_POSITION": str(place), **job.environment}
    return subprocess.Popen(list(job.words), env=environment, start_new_session=True)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGINT)
    try:
        end = time.monotonic() + ENDING_SECONDS
        with suppress(subprocess.TimeoutExpired):
            for process in processes:
                process.wait(max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
