"""The parts of ``gpu`` that need no model: similarity products, the draw, and the losses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.bench.gpu_parts import Found, Rig
from jestbench.cost.tracing import FLOPS_PER_MAC
from jestbench.select import kernels, losses
from jestbench.select.draws import joint_draw
from jestbench.select.losses import LOSSES, LossName
from jestbench.select.scores import Embeddings, Scores
from jestbench.select.strips import Meter, strip_sums
from jestbench.select.tiles import TILE_BYTES

BOTH: tuple[LossName, ...] = ("sigmoid", "softmax")


@contextmanager
def _plain_path() -> Iterator[None]:
    """Disable the kernel inside the block."""
    with mock.patch.dict(os.environ, JESTBENCH_FUSED="0"):
        yield


def exact(rig: Rig) -> Found:
    """Relative errors of strips against float64."""
    found: Found = {"fused": kernels.usable(torch.zeros(2, 2, device=rig.device))}
    large = ((8192, 102, 512), (163_840, 2048, 768), (2_900_000, 96, 768))  # the last one's offsets pass 2³¹
    for rows, columns, width in rig.pick(((70, 33, 24), (300, 129, 64)), large):
        left, right = rig.random(rows, width), rig.random(columns, width)
        model = Embeddings(left[:2], left[:2], 100.0, -10.0)
        ends = torch.cat([torch.arange(min(rows, 512)), torch.arange(max(0, rows - 512), rows)]).to(rig.device)
        cosines = left[ends].double() @ right.double().T
        for loss in BOTH:
            got = strip_sums(left, right, model, loss).double()[ends]
            sigmoid = F.softplus(100.0 * cosines - 10.0).sum(1)
            want = sigmoid if loss == "sigmoid" else (100.0 * cosines).logsumexp(1)
            found[f"{rows}×{columns}×{width} {loss}, relative error"] = float(((got - want).abs() / want.abs()).max())
    return found


def strips(rig: Rig) -> Found:
    """TFLOP/s of one strip's sums, as shipped and by alternative implementations; several calls in a row."""
    found: Found = {}
    for rows, columns, width in rig.pick(((256, 32, 32),), ((8192, 102, 512), (163_840, 2048, 768))):
        name, turns = f"{rows}×{columns}×{width}", rig.pick(1, 20 if rows < 10_000 else 2)
        left, right = rig.random(rows, width), rig.random(columns, width)
        model = Embeddings(left[:2], left[:2], 100.0, -10.0)
        shipped = partial(strip_sums, left, right, model, "sigmoid")
        seconds = {"as shipped": _each(rig, shipped, turns)}
        seconds["torch.mm alone"] = _each(rig, partial(torch.matmul, left, right.T), turns)
        with _plain_path():
            seconds["plain path"] = _each(rig, shipped, turns)
        for mib in (32, 1024):
            with mock.patch.dict(TILE_BYTES, {rig.device.type: mib << 20}):
                seconds[f"products in {mib} MiB tiles"] = _each(rig, shipped, turns)
        flop = FLOPS_PER_MAC * rows * columns * width
        found |= {f"{name} {label} TFLOP/s": flop / each / 1e12 for label, each in seconds.items()}
    return found


def _each(rig: Rig, run: Callable[[], object], turns: int) -> float:
    """Seconds of a call among several in a row, so that the host's launches overlap with the device's work."""
    return rig.seconds(lambda: [run() for _ in range(turns)], 3) / turns


def draws(rig: Rig) -> Found:
    """Seconds, TFLOP/s of the products, memory and host waits of the joint draw."""
    found: Found = {}
    for size, count, width in rig.pick(((256, 32, 32),), ((8192, 1638, 512), (163_840, 32_768, 768))):
        learner, reference = (Embeddings(rig.random(size, width), rig.random(size, width), t, -10.0) for t in (10, 12))
        for loss in BOTH:
            meter = Meter()
            draw = partial(_draw, Scores(learner, reference, loss=loss, meter=meter), count)
            seconds = found[f"B={size} {loss} seconds"] = rig.seconds(draw, 3)
            meter.macs = 0
            draw()
            found[f"B={size} {loss} TFLOP/s"] = FLOPS_PER_MAC * meter.macs / seconds / 1e12
        found[f"B={size} peak bytes"] = rig.peak(draw)
        found[f"B={size} host waits"] = rig.host_waits(draw)
    return found


def _draw(scores: Scores, count: int) -> None:
    joint_draw(scores, count, 16, generator=torch.Generator().manual_seed(0))


def tiles(rig: Rig) -> Found:
    """Seconds of the B×B scores, by the size of their tiles."""
    found: Found = {}
    for size in rig.pick((128,), (8192, 65_536)):
        one = Scores(Embeddings(rig.random(size, 512), rig.random(size, 512), 10.0, -10.0), loss="sigmoid")
        for mib in (64, 256, 1024):
            with mock.patch.dict(TILE_BYTES, {rig.device.type: mib << 20}):
                in_batch = partial(one.pair_loss_B, "learner", "in_batch")
                found[f"in_batch B={size}, {mib} MiB tiles"] = rig.seconds(in_batch, 1)
                norm = partial(one.gradient_norm_B, "learner")
                found[f"gradient_norm B={size}, {mib} MiB tiles"] = rig.seconds(norm, 1)
    return found


def block_losses(rig: Rig) -> Found:
    """Seconds and memory of the losses over K pairs, backward included, in blocks of rows and dense."""
    found: Found = {}
    for count in rig.pick((64,), (8192, 32_768)):
        for loss in BOTH:
            slopes = []
            for form, most in (("blocks", 0), ("dense", 1 << 62)):
                with mock.patch.object(losses, "DENSE_BYTES", most):
                    for weighted in (False, True):
                        name, run = f"{loss} K={count} {form}", _slopes_of(rig, loss, count, weighted)
                        name += ", weights" * weighted
                        found[f"{name} ms"] = 1e3 * rig.seconds(run, 2)
                        found[f"{name} peak, in K×K fp32 matrices"] = rig.peak(run) / (4 * count * count)
                    slopes.append(run())
            difference = (slopes[0] - slopes[1]).norm() / slopes[1].norm()
            found[f"{loss} K={count} gradients, relative difference"] = float(difference)
    return found


def _slopes_of(rig: Rig, loss: LossName, count: int, weighted: bool) -> Callable[[], Tensor]:
    """A call that computes a loss and its gradients; it returns that of the image embeddings."""
    torch.manual_seed(0)
    x, y = (rig.random(count, rig.pick(16, 768)).requires_grad_() for _ in range(2))
    scale, bias = (torch.tensor(value, device=rig.device, requires_grad=True) for value in (10.0, -10.0))
    weight_K = torch.rand(count, device=rig.device) if weighted else None

    def run() -> Tensor:
        value = LOSSES[loss](x, y, scale, bias, weight_K)
        return torch.autograd.grad(value, (x, y, scale, bias), allow_unused=True)[0]

    return run
