"""The parts of ``gpu`` that run models, and the rig: each part takes the rig and returns its numbers by name."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.batch import Batch
from jestbench.bench import arms, timing
from jestbench.bench.paper import LEARNER
from jestbench.bench.steps import SHAPES, Shape, learner_of, make_tokenizer, random_batch, update_of
from jestbench.cost.ledger import flops_of
from jestbench.cost.tracing import FLOPS_PER_MAC
from jestbench.disk import PROJECT
from jestbench.engine.fit_memory import MicroBatches
from jestbench.engine.learner import Learner
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.losses import LOSSES

Found = dict[str, Any]
_T = TypeVar("_T")

PEAK = {"H100": 989e12, "H200": 989e12}
"""Dense bf16 FLOP/s of the datasheet, by a substring of the device's name."""
VIT_B16 = Shape(LEARNER, tokens=64, vocabulary=64, batch=512, cpu_batch=8)


@dataclass(frozen=True)
class Rig:
    """Where the parts run, and at which sizes."""

    arithmetic: Arithmetic
    small: bool

    @property
    def device(self) -> torch.device:
        """The device of the models and of the embeddings."""
        return self.arithmetic.device

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def shape(self) -> Shape:
        """The towers."""
        return self.pick(SHAPES["miniature"], VIT_B16)

    def pick(self, small: _T, large: _T) -> _T:
        """The small or the large size, as the rig is set."""
        return small if self.small else large

    def seconds(self, run: Callable[[], object], repeat: int = 3, warm: int = 1) -> float:
        """Median seconds of a call."""
        for _ in range(warm):
            run()
        return statistics.median(timing.seconds(run, self.device) for _ in range(repeat))

    def peak(self, run: Callable[[], object]) -> int:
        """Bytes by which a call raises the peak of allocated GPU memory; 0 on a CPU."""
        if self.cuda:
            return timing.gpu_peak(run, self.device)
        run()
        return 0

    def host_waits(self, run: Callable[[], object]) -> int:
        """How often the host waits for the device in a call, by torch's sync debug mode; −1 without a GPU."""
        if not self.cuda:
            run()
            return -1
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(one.message) for one in caught)

    def mfu(self, flops: float, seconds: float) -> float | None:
        """Share of the datasheet's FLOP/s; ``None`` for a device without an entry."""
        ceiling = next((peak for name, peak in PEAK.items() if name in timing.device_name(self.device)), None)
        return flops / seconds / ceiling if ceiling else None

    def random(self, rows: int, width: int) -> Tensor:
        """Random normalised embeddings ``[rows, width]``."""
        return F.normalize(torch.randn(rows, width, device=self.device), dim=1)

    def learner(self, microbatch: int | None = None) -> Learner:
        """A learner of the rig's shape."""
        return learner_of(self.shape, "sigmoid", self.arithmetic, microbatch)

    def batch(self, count: int) -> Batch:
        """Pairs of noise in page-locked memory."""
        return random_batch(self.shape, make_tokenizer(self.shape), count, self.device)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and token ids of a batch, on the device."""
        return batch.images_BCHW.to(self.device), next(iter(batch.token_ids.values())).to(self.device)


def ceilings(rig: Rig) -> Found:
    """Peak TFLOP/s of matrix products, and GB/s of copies on the device and from the host."""
    n = rig.pick(256, 8192)
    half = torch.randn(n, n, device=rig.device, dtype=torch.bfloat16)
    full = torch.randn(n, n, device=rig.device)
    blob = torch.empty(rig.pick(1 << 20, 1 << 31), dtype=torch.uint8, device=rig.device)
    host = torch.randint(0, 255, (rig.pick(1 << 18, 1 << 29),), dtype=torch.uint8)
    pinned = host.pin_memory() if rig.cuda else host

    def product(matrix: Tensor, repeat: int) -> float:
        return 2 * n**3 / rig.seconds(lambda: matrix @ matrix, repeat) / 1e12

    found = {
        "bf16 TFLOP/s": product(half, 5),
        "fp32 TFLOP/s": product(full, 3),
        "copy GB/s": 2 * len(blob) / rig.seconds(blob.clone, 5) / 1e9,
        "pageable to device GB/s": len(host) / rig.seconds(lambda: host.to(rig.device), 3) / 1e9,
        "pinned to device GB/s": len(host) / rig.seconds(lambda: pinned.to(rig.device, non_blocking=True), 3) / 1e9,
    }
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return found | {"tf32 TFLOP/s": product(full, 3)}
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def training(rig: Rig) -> Found:
    """Seconds of jestbench's training step, and of bare steps of the same towers."""
    count = rig.pick(8, 512)
    learner, batch = rig.learner(), rig.batch(count)
    flops = flops_of(learner.forecast_update(count))
    update = update_of(learner, batch)
    found: Found = {"pair forward GMAC": learner.price.pair / 1e9, "batch": count}

    def add(label: str, seconds: float) -> None:
        found[f"{label} pairs/s"] = count / seconds
        found[f"{label} MFU"] = rig.mfu(flops, seconds)

    add("product", rig.seconds(update, 5, warm=2))
    found["product peak GB"] = rig.peak(update) / 1e9
    found["product host waits a step"] = rig.host_waits(update)
    add("bare step", rig.seconds(_bare_step(rig, learner, batch, LOSSES["sigmoid"], clip=True), 5, warm=2))
    try:
        from open_clip.loss import SigLipLoss
    except ImportError as error:
        return found | {"open_clip": f"not there: {error}"}
    add("open_clip's loss", rig.seconds(_bare_step(rig, learner, batch, SigLipLoss(), clip=False), 5, warm=2))
    return found


def _bare_step(
    rig: Rig, learner: Learner, batch: Batch, loss: Callable[..., Tensor], *, clip: bool
) -> Callable[[], None]:
    """A step of plain training code: inputs on the device, no number read back, fused AdamW."""
    model = learner.model.train()
    images, tokens = rig.inputs(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with rig.arithmetic.autocast():
            x, y = model.image(images), model.text(tokens)
        x, y = (F.normalize(part.float(), dim=-1) for part in (x, y))
        loss(x, y, model.scale, model.bias).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def scoring(rig: Rig) -> Found:
    """Seconds of scoring a super-batch with the learner, and of its forward passes alone.

    Once from page-locked images, as worker processes return them, and once from pageable ones.
    """
    count, micro = rig.pick((32, 8), (8192, 512))
    learner, batch = rig.learner(), rig.batch(count)
    learner.micro = MicroBatches(micro)
    images, tokens = (part[:micro] for part in rig.inputs(batch))

    def score() -> object:
        return learner.score(batch)

    def forward() -> None:
        with torch.no_grad(), rig.arithmetic.autocast():
            for _ in range(count // micro):
                learner.model.encode_image(images), learner.model.encode_text(tokens)

    seconds, there = rig.seconds(score, 2), rig.seconds(forward, 2)
    pageable = replace(batch, images_BCHW=batch.images_BCHW.clone())
    chosen = torch.randperm(count)[: count // 2]
    return {
        "batch": count,
        "micro-batch": micro,
        "as shipped pairs/s": count / seconds,
        "inputs on the device pairs/s": count / there,
        "share of time that the device waits for inputs": 1 - there / seconds,
        "inputs on the device MFU": rig.mfu(FLOPS_PER_MAC * learner.price.pair * count, there),
        "from pageable memory pairs/s": count / rig.seconds(lambda: learner.score(pageable), 2),
        "chosen images GB/s": batch.images_BCHW.nbytes / 2 / rig.seconds(lambda: batch.take(chosen), 3, warm=2) / 1e9,
        "host waits": rig.host_waits(score),
        "peak GB": rig.peak(score) / 1e9,
    }


def cached(rig: Rig) -> Found:
    """Seconds of the step over micro-batches, each embedded twice."""
    count, micro = rig.pick((16, 4), (2048, 256))
    learner, batch = rig.learner(micro), rig.batch(count)
    update = update_of(learner, batch)
    seconds = rig.seconds(update, 2)
    return {
        "pairs/s": count / seconds,
        "MFU, the second forward pass counted": rig.mfu(flops_of(learner.forecast_update(count)), seconds),
        "peak GB": rig.peak(update) / 1e9,
        "host waits a step": rig.host_waits(update),
    }


def large(rig: Rig) -> Found:
    """Peak memory of a step on images at 224 px: of scoring B pairs, and of training on a fifth of them.

    The images stay in host memory, so that the peak depends on the micro-batch, and on B by the embeddings alone.
    """
    shape = rig.pick(rig.shape, replace(VIT_B16, model=replace(LEARNER, image_size=224)))
    whole = random_batch(shape, make_tokenizer(shape), rig.pick(40, 16384), rig.device)
    found: Found = {"images GB": whole.images_BCHW.nbytes / 1e9}
    for part, micro in ((2, rig.pick(4, 256)), (1, rig.pick(4, 256)), (1, rig.pick(8, 512))):
        batch = whole.take(torch.arange(len(whole) // part))
        learner = learner_of(shape, "sigmoid", rig.arithmetic, micro)
        learner.micro, update = MicroBatches(micro), update_of(learner, batch.take(torch.arange(len(batch) // 5)))
        learner.score(batch.take(torch.arange(micro)))
        update()  # the optimizer's state
        name = f"B = {len(batch):,}, micro-batches of {micro}, peak GB"
        found |= {f"{name}: scoring": rig.peak(partial(learner.score, batch)) / 1e9}
        found |= {f"{name}: training": rig.peak(update) / 1e9}
    return found


def compiled(rig: Rig) -> Found:
    """Seconds of jestbench's step and of scoring with compiled blocks, and how far they are from the eager ones."""
    count, learner = rig.pick(8, 512), rig.learner()
    batch = rig.batch(count)
    eager = learner.score(batch).side("learner").image_BD
    # Inductor needs a C++ compiler on a CPU; the small run checks only that the blocks can be captured.
    learner.model.compile_blocks(rig.pick("aot_eager", "inductor"))
    away = (learner.score(batch).side("learner").image_BD - eager).norm() / eager.norm()
    update = update_of(learner, batch)
    first = timing.seconds(update, rig.device)
    seconds = rig.seconds(update, 5)
    scored = rig.seconds(lambda: learner.score(batch), 3)
    return {
        "first step s": first,
        "product pairs/s": count / seconds,
        "product MFU": rig.mfu(flops_of(learner.forecast_update(count)), seconds),
        "product peak GB": rig.peak(update) / 1e9,
        "scoring pairs/s": count / scored,
        "embeddings against eager, relative error": float(away),
    }


def policies(rig: Rig) -> Found:
    """Every arm of ``gin/policy`` in the tiny world: its seconds on the device.

    Raises:
        RuntimeError: an arm failed, or was charged otherwise than on a CPU.
    """
    names = rig.pick(["uniform", "flexi_jest"], arms.arms())
    found = arms.compared(names, str(rig.device))
    if wrong := {name: what for name, what in found.items() if isinstance(what, str)}:
        raise RuntimeError("; ".join(f"{name}: {what}" for name, what in wrong.items()))
    return {"arms, charged as on a CPU": len(found), **found}


def tests(rig: Rig) -> Found:
    """Run the tests marked ``gpu``.

    Raises:
        RuntimeError: a test failed; the message is the end of pytest's output.
    """
    if rig.small or not (PROJECT / "tests").is_dir():
        return {"left out": "they need a GPU and a checkout"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "-p", "no:cacheprovider"]
    begin = time.monotonic()
    done = subprocess.run(
        [*command, *(f"tests/{room}" for room in ("select", "model", "engine", "launch/test_run.py"))],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-480:])
    return {"passed": done.stdout.strip().splitlines()[-1], "seconds": time.monotonic() - begin}
