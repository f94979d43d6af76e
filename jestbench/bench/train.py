"""Pairs/s of the training step, measured against open_clip's, in one run.

Both steps have the same timm image tower, text transformers of the same width, layers, heads, length and vocabulary,
the same loss, batch, precision (fp32 on a CPU, bf16 autocast on CUDA), AdamW of the same numbers, and the same largest
gradient norm; neither is compiled. Rounds of the two are interleaved, so that a disturbance of the machine slows both;
a round is the same number of steps of each. The value is the ratio of the medians of pairs/s.

* In jestbench's step, ``Learner.update``: a uint8 batch to the device and to channels-last floats in −1 to 1; token ids
  to the device; both towers, padding masked, texts pooled by their mean; embeddings normalised and the loss in fp32,
  outside of autocast; the loss read and checked; backward; the gradient's norm clipped, read and checked; the
  schedule's learning rate; AdamW; under the softmax loss, t clamped to at most 100.
* In open_clip's step, that of ``open_clip_train.train``: a float batch, as its transforms return it, to the device;
  token ids to the device; ``CustomTextCLIP`` and ``ClipLoss`` or ``SigLipLoss``, under autocast; backward; the
  gradient's norm clipped; the learning rate; AdamW; t clamped to 1 to 100. No number is read back, as in the steps
  that open_clip doesn't log.
* In neither: decoding, selection, logging. On CUDA both batches lie in page-locked memory.

One difference remains: open_clip has neither mean pooling nor a mask for padding in ``CustomTextCLIP``, so its text
tower attends to padding too and takes the last token's output, as open_clip's SigLIP models do. Multiply-adds
a pair, by torch's own counter in train mode, are printed below the ratios: equal figures mean equal work.

Below them: where the time of a jest and of a flexi_jest step goes, at the quick start's shape on a CPU, and seconds of
the rows of frozen models at the paper's super-batch (``bench/step_parts.py``).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from jestbench.bench import step_parts, timing
from jestbench.bench.steps import SHAPES, Contender, Shape, open_clips, ours
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.losses import LossName

AIM = "≥ 1.0"
LOSSES: tuple[LossName, ...] = ("softmax", "sigmoid")


@dataclass(frozen=True)
class TrainPlan(timing.Plan):
    """Rounds and shapes of the training steps; with 0 ``steps``, a round is as many as fill ``seconds``."""

    rounds: int = timing.option(5, "of each contender")
    steps: int = timing.option(0, "of a round; 0: as many as fill --seconds")
    batch: int = timing.option(0, "pairs of a step; 0: 64 (tiny), 256 on CUDA and 16 on a CPU (vit_s32)")
    threads: int = timing.option(2, "torch's threads")
    seconds: float = timing.option(1.0, "of a round, at least a step")
    device: str = timing.option("auto", "auto is CUDA where there is one")
    models: tuple[str, ...] = timing.option(
        ("tiny", "vit_s32"),
        "tiny: gin/model/tiny.gin; vit_s32: ViT-S/32 at 128 px, 32 tokens; miniature: for tests",
        tuple(SHAPES),
    )
    part_steps: int = timing.option(20, "whose parts are timed, of each arm")
    rows: int = timing.option(163_840, "of a frozen model, of width 768")


def steps_of_a_round(contenders: Mapping[str, Contender], plan: TrainPlan, device: torch.device) -> int:
    """The plan's number of steps, or as many of the slower contender as fill the plan's seconds.

    Each contender runs at least once here: the first step wakes threads, touches memory and chooses kernels.
    """
    first = max(timing.seconds(contender.step, device) for contender in contenders.values())
    if plan.steps:
        return plan.steps
    if first > plan.seconds and device.type == "cpu":
        return 1  # on a CPU, so long a first step is dominated by its work: no need to time another
    return max(1, round(plan.seconds / max(timing.seconds(c.step, device) for c in contenders.values())))


def pairs_per_second(contender: Contender, steps: int, pairs: int, device: torch.device) -> float:
    """Pairs/s over ``steps`` steps of ``pairs`` pairs."""

    def run() -> None:
        for _ in range(steps):
            contender.step()

    return steps * pairs / timing.seconds(run, device)


def _one_loss(shape: Shape, loss: LossName, pairs: int, plan: TrainPlan, arithmetic: Arithmetic) -> dict[str, Any]:
    contenders = {
        "ours": ours(shape, loss, pairs, arithmetic),
        "open_clip": open_clips(shape, loss, pairs, arithmetic),
    }
    steps = steps_of_a_round(contenders, plan, arithmetic.device)
    rates = timing.interleaved(
        {name: partial(pairs_per_second, one, steps, pairs, arithmetic.device) for name, one in contenders.items()},
        dict.fromkeys(contenders, plan.rounds),
    )
    return {
        "ours over open_clip": timing.ratio_and_range(rates["ours"], rates["open_clip"]),
        "steps of a round": steps,
        "pairs/s": rates,
        "MACs a pair": {name: dict(contender.macs) for name, contender in contenders.items()},
    }


def _one_model(shape: Shape, plan: TrainPlan, arithmetic: Arithmetic) -> dict[str, Any]:
    pairs = plan.batch or (shape.cpu_batch if arithmetic.device.type == "cpu" else shape.batch)
    losses = {loss: _one_loss(shape, loss, pairs, plan, arithmetic) for loss in LOSSES}
    return {"shape": asdict(shape), "batch": pairs, "losses": losses}


def measure(plan: TrainPlan) -> dict[str, Any]:
    """All numbers, ready for JSON.

    Raises:
        MissingPeer: open_clip is not installed.
    """
    timing.need("open_clip")
    load, arithmetic = timing.load(), Arithmetic.of(plan.device, "auto")
    with timing.threads(plan.threads):
        found = {name: _one_model(SHAPES[name], plan, arithmetic) for name in plan.models}
        steps = {arm: step_parts.parts(arm, plan.part_steps) for arm in step_parts.ARMS}
        rows = {"count": plan.rows, "width": 768, **step_parts.rows(plan.rows, 768, plan.rounds)}
    return {
        "machine": timing.machine(
            load,
            device=timing.device_name(arithmetic.device),
            bf16=arithmetic.bf16,
            versions=timing.versions("torch", "timm", "open_clip_torch"),
        ),
        "plan": asdict(plan),
        "aim": AIM,
        "models": found,
        "parts": {"steps": steps, "rows": rows},
    }


def table(report: Mapping[str, Any]) -> str:
    """The ratios, one a line, and below those of each model its multiply-adds."""
    plan, machine = report["plan"], report["machine"]
    precision = "bf16 autocast" if machine["bf16"] else "fp32"
    lines = [
        f"training step: {plan['rounds']} rounds, {precision} on {machine['device']}, {plan['threads']} threads",
        timing.machine_line(machine),
        "",
        f"{'ours over open_clip, pairs/s':32s}{'value':>8s}  {'rounds':>13s}  {'aim':6s}{'ours':>9s}{'open_clip':>11s}",
    ]
    for name, part in report["models"].items():
        for loss, entry in part["losses"].items():
            ratio = entry["ours over open_clip"]
            spread = timing.spread(ratio)
            own, other = (statistics.median(entry["pairs/s"][who]) for who in ("ours", "open_clip"))
            lines.append(
                f"{f'{name}, {loss}':32s}{ratio['value']:8.2f}  {spread:>13s}  {report['aim']:6s}"
                f"{_short(own):>9s}{_short(other):>11s}"
            )
        counted = next(iter(part["losses"].values()))["MACs a pair"]
        figures = "; ".join(f"{who} {m['forward']:,}, {m['training']:,}" for who, m in counted.items())
        lines.append(f"  batches of {part['batch']}; multiply-adds a pair, forward and training: {figures}")
    return "\n".join([*lines, *step_parts.table(report["parts"])])


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.2f}"
