"""The cores that a process of a run on the CPU keeps to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_cores(rank: int, size: int) -> Iterator[None]:
    """Inside this context one of ``size`` processes of a machine keeps to its share of the cores that it may use.

    A thread that receives would else be woken on a core where another process computes, and wait there until the
    scheduler's time slice ends: two milliseconds in each collective (docs/scale.md). Nothing is set where there are
    fewer cores than processes, nor where other work keeps half of the cores busy, as the scheduler then has to move a
    process to where there is room; nor on systems other than Linux.
    """
    if sys.platform != "linux":
        yield
        return
    before = sorted(os.sched_getaffinity(0))
    each = len(before) // size
    if size == 1 or each == 0 or os.getloadavg()[0] > len(before) / 2:
        yield
        return
    os.sched_setaffinity(0, before[rank * each : (rank + 1) * each])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
