"""The fused kernel against the plain strips, in Triton's interpreter: no GPU needed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jestbench import kernels

# In a process of its own: triton reads TRITON_INTERPRET when it is imported.
PROGRAM = """
import torch
from jestbench import Embeddings
from jestbench.kernels import row_sums
from jestbench.scores import Meter, strip_sums
generator = torch.Generator().manual_seed(0)
for rows, columns, width, scale, bias in ((5, 1, 3, 3.0, -2.0), (70, 65, 40, 10.0, -10.0), (64, 130, 33, 100.0, -13.0)):
    left, right = (torch.randn(n, width, generator=generator) / width**0.5 for n in (rows, columns))
    for loss in ("sigmoid", "softmax"):
        model = Embeddings(left, left, scale, bias)
        plain = strip_sums(left, right, model, loss, Meter())
        fused = row_sums(left, right, scale, bias if loss == "sigmoid" else 0.0, loss)
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_equal_to_the_plain_path_in_the_interpreter() -> None:
    root = Path(__file__).parent.parent
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, cwd=root, capture_output=True, text=True)
    if "0 active drivers" in done.stderr:
        pytest.skip("this triton interprets only with a GPU")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


def test_the_cpu_and_float64_stay_with_plain_torch() -> None:
    assert not kernels.usable(torch.zeros(2, 2))
    assert not kernels.usable(torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_equal_to_the_plain_path_on_a_gpu() -> None:
    left, right = (torch.randn(n, 96, device="cuda") / 96**0.5 for n in (300, 170))
    for loss, offset in (("sigmoid", -10.0), ("softmax", 0.0)):
        logits = 10 * left.double() @ right.double().T + offset
        wanted = torch.nn.functional.softplus(logits).sum(1) if loss == "sigmoid" else logits.logsumexp(1)
        torch.testing.assert_close(
            kernels.row_sums(left, right, 10.0, offset, loss), wanted.float(), rtol=1e-5, atol=1e-5
        )
