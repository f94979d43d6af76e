"""The speed of softplus in a fresh process."""

import subprocess
import sys

MEASURE = """
import time
import torch
import jestbench.select

def seconds():
    turns = []
    for _ in range(30):
        start = time.thread_time()
        few.log1p()
        turns.append(time.thread_time() - start)
    return min(turns)

torch.set_num_threads(1)
few = torch.rand(32768)
before = seconds()
torch.full((64,), -0.0).log1p()
print(before / seconds())
"""


def test_log1p_is_as_fast_as_once_a_negative_zero_has_been_computed() -> None:
    # On a CPU without AVX-512 it always is.
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 3
