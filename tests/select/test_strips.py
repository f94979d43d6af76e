"""Strips on a CPU: memory that tiles share, and the speed of their logarithms in a fresh process."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from jestbench.bench.selection import random_scores
from jestbench.select import Scores, joint_sample

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


def sample(size: int) -> list[int]:
    return joint_sample(random_scores(size, 32, "sigmoid")(), size // 4, 8, generator=torch.Generator()).tolist()


def test_threads_that_draw_at_once_choose_what_each_chooses_alone() -> None:
    sizes = (700, 1400, 2100, 2800)
    alone = [sample(size) for size in sizes]
    with ThreadPoolExecutor(len(sizes)) as pool:
        for _ in range(5):
            assert list(pool.map(sample, sizes)) == alone


def test_a_draw_follows_a_larger_one_in_inference_mode_and_one_in_float64() -> None:
    def first_draw_of_a_thread() -> list[int]:
        with torch.inference_mode():
            sample(1400)
        scores = random_scores(300, 32, "sigmoid")().side("learner")
        joint_sample(Scores(replace(scores, image_BD=scores.image_BD.double(), text_BD=scores.text_BD.double())), 75, 8)
        return sample(700)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(first_draw_of_a_thread).result() == sample(700)
