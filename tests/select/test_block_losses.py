"""Losses in blocks of rows against their dense forms: values, gradients, memory, and when each is taken."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jestbench.select import losses
from jestbench.select.losses import LOSSES

each_loss = pytest.mark.parametrize("loss", ["sigmoid", "softmax"])


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block form for every size."""
    monkeypatch.setattr(losses, "DENSE_BYTES", 0)


def inputs(count: int, dtype: torch.dtype, weighted: bool) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(count)
    image_KD, text_KD = (
        torch.nn.functional.normalize(torch.randn(count, 6, generator=random, dtype=torch.float64), dim=1).to(dtype)
        for _ in range(2)
    )
    scale, bias = (torch.tensor(value, dtype=dtype) for value in (12.0, -6.0))
    weight_K = 2 * torch.rand(count, generator=random, dtype=torch.float64).to(dtype)
    weight_K[count // 2] = 0  # a pair that counts nothing
    parts = tuple(part.requires_grad_() for part in (image_KD, text_KD, scale, bias))
    return (*parts, weight_K) if weighted else parts


@each_loss
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("count", [1, 2, 15, 100])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-11)])
def test_equal_to_the_dense_form(
    loss: str, weighted: bool, count: int, dtype: torch.dtype, rtol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for dense_bytes in (0, 2**40):
        monkeypatch.setattr(losses, "DENSE_BYTES", dense_bytes)
        image_KD, text_KD, scale, bias, *weight_K = inputs(count, dtype, weighted)
        value = LOSSES[loss](image_KD, text_KD, scale, bias, *weight_K)
        (3 * value).backward()
        found.append((value.detach(), *(part.grad for part in (image_KD, text_KD, scale, bias))))
    (value, *slopes), (wanted, *wanted_slopes) = found
    torch.testing.assert_close(value, wanted, rtol=rtol, atol=rtol)
    size = torch.stack([slope.norm() for slope in wanted_slopes if slope is not None]).max()
    for slope, other in zip(slopes, wanted_slopes, strict=True):
        if other is None:
            assert slope is None, "an offset that is not used has no gradient: the optimizer leaves it alone"
        else:
            assert (slope - other).norm() <= rtol * size


@each_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_by_finite_differences(loss: str, weighted: bool, blocks: None) -> None:
    *parts, weight_K = inputs(19, torch.float64, True)
    parts[3].requires_grad_(loss == "sigmoid")
    weights = (weight_K,) if weighted else ()
    assert torch.autograd.gradcheck(lambda *args: LOSSES[loss](*args, *weights), tuple(parts))


@each_loss
def test_a_loss_without_a_gradient_makes_none(loss: str, blocks: None) -> None:
    with torch.no_grad():
        value = LOSSES[loss](*inputs(33, torch.float64, True))
    assert not value.requires_grad
    torch.testing.assert_close(value, LOSSES[loss](*inputs(33, torch.float64, True)).detach())


def test_the_form_depends_on_the_shape_alone() -> None:
    sizes = ((4096, torch.float32), (4097, torch.float32), (2896, torch.float64), (2897, torch.float64))
    taken = [losses._in_blocks(torch.empty(count, 1, dtype=dtype)) for count, dtype in sizes]
    assert taken == [False, True, False, True]


PROGRAM = """
import sys
from pathlib import Path
import torch
from jestbench.select import losses
torch.set_num_threads(1)
count, loss, weighted = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
def kib(name):
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index(f"{name}:") + 1])
image_KD, text_KD = (torch.nn.functional.normalize(torch.randn(count, 32), dim=1).requires_grad_() for _ in range(2))
scale, bias = (torch.tensor(value, requires_grad=True) for value in (10.0, -10.0))
weight_K = torch.rand(count) if weighted else None
(image_KD[:64] @ text_KD[:64].T).sum().backward()
before = kib("VmRSS")
for losses.DENSE_BYTES in (0, 2**40):  # the smaller peak first
    losses.LOSSES[loss](image_KD, text_KD, scale, bias, weight_K).backward()
    print(kib("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak resident set is read from Linux")
@pytest.mark.parametrize(("loss", "weighted"), [("sigmoid", True), ("softmax", False)])
def test_memory_is_a_small_part_of_the_dense_forms(loss: str, weighted: bool) -> None:
    words = [sys.executable, "-c", PROGRAM, "3000", loss, str(weighted)]
    blocks, dense = map(int, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
    assert dense > 4.5 * 4 * 3000**2 / 1024, "the dense form holds at least five matrices"
    assert blocks <= 0.15 * dense


@pytest.mark.parametrize(("count", "least"), [(1, 1), (16, 16), (1000, 16)])
def test_blocks_cover_every_row_once(count: int, least: int, blocks: None) -> None:
    rows = list(losses._row_blocks(torch.ones(count, 2), slice(0, count)))
    assert list(itertools.chain.from_iterable(range(count)[part] for part in rows)) == list(range(count))
    assert len(rows) >= least
