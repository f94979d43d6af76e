"""The kernel's row sums against the plain strips, in Triton's interpreter: no GPU needed."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from jestbench.select import kernels, tiles

MATMUL = torch.backends.cuda.matmul

# In a process of its own: triton reads TRITON_INTERPRET when it is imported.
PROGRAM = """
import torch
from jestbench import Embeddings
from jestbench.select import kernels
from jestbench.select.kernels import row_sums
from jestbench.select.strips import strip_sums
from jestbench.select.tiles import TILE_BYTES
kernels.COLUMNS, kernels.ELEMENTS, TILE_BYTES["cpu"] = 64, 128, 4 * 130 * 20  # several steps and tiles
generator = torch.Generator().manual_seed(0)
for rows, columns, width, scale, bias in ((5, 1, 3, 3.0, -2.0), (70, 65, 40, 10.0, -10.0), (64, 130, 33, 100.0, -13.0)):
    left, right = (torch.randn(n, width, generator=generator) / width**0.5 for n in (rows, columns))
    for loss in ("sigmoid", "softmax"):
        model = Embeddings(left, left, scale, bias)
        plain = strip_sums(left, right, model, loss)
        fused = row_sums(left, right, scale, bias if loss == "sigmoid" else 0.0, loss)
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_equal_to_the_plain_path_in_the_interpreter() -> None:
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, cwd=root, capture_output=True, text=True)
    if "0 active drivers" in done.stderr:
        pytest.skip("this triton interprets only with a GPU")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


def test_the_cpu_and_float64_stay_with_plain_torch() -> None:
    assert not kernels.usable(torch.zeros(2, 2))
    assert not kernels.usable(torch.zeros(2, 2, dtype=torch.float64))


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from jestbench.select._row_kernel import sum_rows
types = dict.fromkeys(("products_RC", "sums_R"), "*fp32") | dict.fromkeys("RC", "i32")
types |= dict.fromkeys(("scale", "offset"), "fp32")
for sigmoid in (True, False):
    constants = {"SIGMOID": sigmoid, "ROWS": 2, "COLUMNS": 1024}
    source = ASTSource(sum_rows, types | dict.fromkeys(constants, "constexpr"), constants)
    built = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
    assert built.asm["cubin"], "no machine code"
    assert ".local" not in built.asm["ptx"], "registers are spilled"
    print(built.metadata.shared)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("capability", [80, 90])
def test_machine_code_for_a_gpu_comes_without_one(capability: int) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", COMPILE, str(capability)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Every CUDA device since Pascal has 48 KiB of shared memory for a block.
    assert all(int(shared) <= 48 * 2**10 for shared in done.stdout.split())
    assert len(done.stdout.split()) == 2


@pytest.mark.parametrize(
    ("flag", "value"), [("allow_tf32", True), ("fp32_precision", "tf32")] if hasattr(MATMUL, "fp32_precision") else []
)
def test_products_are_exact_whatever_the_caller_has_set(flag: str, value: object) -> None:
    with flag_of_matmul(flag, value):
        with tiles.exact_products(torch.device("cpu")):
            assert MATMUL.fp32_precision == "ieee"
            assert not MATMUL.allow_tf32
            with torch.autocast("cpu", torch.bfloat16), tiles.exact_products(torch.device("cpu")):
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert getattr(MATMUL, flag) == value


@contextmanager
def flag_of_matmul(flag: str, value: object) -> Iterator[None]:
    before = getattr(MATMUL, flag)
    setattr(MATMUL, flag, value)
    try:
        yield
    finally:
        setattr(MATMUL, flag, before)


def dense(left: torch.Tensor, right: torch.Tensor, scale: float, offset: float, loss: str) -> torch.Tensor:
    logits = scale * left @ right.T + offset
    return torch.nn.functional.softplus(logits).sum(1) if loss == "sigmoid" else logits.logsumexp(1)


def crash(*_: object) -> torch.Tensor:
    raise RuntimeError("out of resource: shared memory\nand more")


@pytest.mark.parametrize(
    ("row_sums", "said"),
    [
        (dense, None),
        (lambda *a: dense(*a) * 1.001, "not close"),
        (lambda *a: dense(*a) * math.nan, "not close"),
        (crash, "out of resource: shared memory$"),
    ],
)
def test_a_kernel_is_trusted_once_it_is_proven(
    monkeypatch: pytest.MonkeyPatch, row_sums: Callable[..., torch.Tensor], said: str | None
) -> None:
    monkeypatch.setattr(kernels, "row_sums", row_sums)
    kernels.proven.cache_clear()
    if said is None:
        assert kernels.proven(torch.device("cpu"))
    else:
        with pytest.warns(UserWarning, match=f"fused strips are off on cpu.*{said}"):
            assert not kernels.proven(torch.device("cpu"))
    kernels.proven.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize(("rows", "columns", "width"), [(1, 1, 1), (300, 170, 96), (513, 2100, 40), (70_000, 300, 16)])
def test_equal_to_the_plain_path_on_a_gpu(rows: int, columns: int, width: int) -> None:
    left, right = (torch.randn(n, width, device="cuda") / width**0.5 for n in (rows, columns))
    for loss, offset in (("sigmoid", -10.0), ("softmax", 0.0)):
        logits = 10 * left.double() @ right.double().T + offset
        wanted = torch.nn.functional.softplus(logits).sum(1) if loss == "sigmoid" else logits.logsumexp(1)
        with flag_of_matmul("allow_tf32", True):  # a setting of the caller's
            found = kernels.row_sums(left, right, 10.0, offset, loss)
        torch.testing.assert_close(found, wanted.float(), rtol=2e-5, atol=1e-5)
