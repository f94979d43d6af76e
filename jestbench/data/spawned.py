"""Spawned worker processes that end with their parent.

This module imports neither torch nor anything that imports torch: worker processes that render import it anew.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor

from jestbench.parallel.stop import end_with


def usable_cores() -> int:
    """Number of cores that this process may use; a share of them where torchrun started several on this machine."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def spawned(count: int) -> ProcessPoolExecutor:
    """A pool of ``count`` worker processes, which end when this process ends or is killed.

    The processes are spawned, not forked: a fork of a process in which torch has started threads can hang.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(os.getpid(),))


def _begin(parent: int) -> None:
    """Begin a worker process: Ctrl-C, which reaches it from the terminal as well, is its parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
