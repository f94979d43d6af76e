"""Worker processes that leave nothing behind.

This module imports neither torch nor anything that does: worker processes that render import it anew.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor

_WATCH = 0.2  # seconds between two looks at whether the parent still lives


def usable_cores() -> int:
    """Cores that this process may run on; its share of them, where torchrun has started others on this machine."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def spawned(count: int) -> ProcessPoolExecutor:
    """So many worker processes, which end when this process ends, however it does.

    Spawned, not forked: a fork of a process in which torch has started threads can hang.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=end_with, initargs=(os.getpid(),))


def end_with(parent: int) -> None:
    """Have this process end when its parent is gone (killed, too), rather than wait for work for ever.

    Args:
        parent: process id of the parent; told by it, as it may be gone before it is asked for.
    """

    def watch() -> None:
        # Not the parent's end of a pipe: forked siblings hold copies of it.
        while os.getppid() == parent:
            time.sleep(_WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
