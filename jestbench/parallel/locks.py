"""Locks between processes, which the kernel keeps and frees with their process; waited for with a word and a limit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from jestbench.disk import DataError, shown

LOCK_HOURS = 24.0
"""How long the work of another process is waited for."""
_QUIET_SECONDS = 1.0


@contextmanager
def locked(path: Path, work: str) -> Iterator[None]:
    """Hold a lock; a process that has to wait prints what for.

    Args:
        path: the lock's file.
        work: what the process that holds it does, ``preparing icons``.

    Raises:
        DataError: the lock is still held after ``LOCK_HOURS``.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_QUIET_SECONDS)
    except Timeout:
        print(f"another process is {work}: waiting for it, and for {shown(path)}", file=sys.stderr, flush=True)
        try:
            lock.acquire(timeout=LOCK_HOURS * 3600)
        except Timeout:
            raise DataError(
                f"another process has been {work} for {LOCK_HOURS:g} hours and holds {shown(path)}: end that process"
            ) from None
    try:
        yield
    finally:
        lock.release()
