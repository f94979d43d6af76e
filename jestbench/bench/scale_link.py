"""Started by torchrun from ``bench/scale.py``: seconds of an all-reduce between the processes, as JSON.

Between two of them each process computes, as in a run: threads that have slept are woken slower than busy ones.
"""

from __future__ import annotations

import json
import statistics
from functools import partial

import torch
import torch.distributed as dist

from jestbench.bench import timing
from jestbench.parallel.distributed import started
from jestbench.parallel.traffic import reduced

SMALL, LARGE = 2, 2**20
"""Floats of the two tensors that are reduced."""
WORK = 512
"""Side of the matrices that are multiplied in between: some milliseconds of one core."""


def link(repetitions: int = 100) -> dict[str, float]:
    """Seconds of an all-reduce of next to nothing, and the bytes/s that a process sends in a large one."""
    took, work_WW = {}, torch.ones(WORK, WORK)
    for size in (SMALL, LARGE):
        tensor, each = torch.zeros(size), []
        for _ in range(repetitions):
            torch.mm(work_WW, work_WW)
            each.append(timing.seconds(partial(dist.all_reduce, tensor), tensor.device))
        took[size] = statistics.mean(each)  # a step waits for the slow ones, too
    sent = reduced(4 * LARGE, dist.get_world_size())
    return {"seconds of a call": took[SMALL], "bytes/s": sent / (took[LARGE] - took[SMALL])}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with started() as world:
        found = link()
        if world.first_of_all:
            print(json.dumps(found))
