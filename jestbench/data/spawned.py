"""Spawned worker processes that end with their parent.

This module imports neither torch nor anything that imports torch: worker processes that render import it anew.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

_WATCH = 0.2  # seconds between two looks at whether the parent still lives


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
    return ProcessPoolExecutor(count, mp_context=context, initializer=end_with, initargs=(os.getpid(),))


def end_with(parent: int, last: Callable[[], object] = lambda: None) -> None:
    """End this process once its parent has ended or was killed, rather than wait for work for ever.

    The processes that this one has started end too, where it leads a process group.

    Args:
        parent: process id of the parent, passed by the parent, as ``os.getppid`` changes once the parent is gone.
        last: called just before the end.
    """

    def watch() -> None:
        # Waiting for a pipe to close would not do: forked siblings hold copies of the parent's end.
        while os.getppid() == parent:
            time.sleep(_WATCH)
        last()
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
