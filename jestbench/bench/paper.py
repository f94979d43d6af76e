"""The joint draw at the paper's scale: seconds, memory, and its share of a step.

JEST's super-batch of 163,840 pairs of which 32,768 are drawn, D = 768, 16 chunks (Evans et al. 2024), on CUDA where
there is one, otherwise on the CPU.

* seconds: of a draw from existing embeddings, its checks and statistics included; the median of three, on a CPU
  a single measurement;
* memory: the growth during a draw of the peak of allocated memory on CUDA, of a fresh process's peak resident set
  on a CPU; the embeddings themselves are not included;
* share of a step: seconds of the draw ÷ (those + b training passes + 2·B forward passes), with the passes of a
  ViT-B/16 at 256 px and a text tower of the same width (64 tokens) timed on a micro-batch under jestbench's own
  arithmetic. Loading is left out: the share is of the models' own time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from jestbench.bench import selection, timing
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.model.towers import Model
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select import kernels
from jestbench.select.draws import joint_draw
from jestbench.select.losses import LOSSES
from jestbench.select.scores import Embeddings, Scores

GIB = 2**30

LEARNER = Model(
    image_tower="vit_base_patch16_siglip_256",
    image_size=256,
    patch_size=16,
    embed_dim=768,
    text_width=768,
    text_layers=12,
    text_heads=12,
)


@dataclass(frozen=True)
class PaperPlan(timing.Plan):
    """The paper's sizes, and the device and repetitions of the measurement."""

    size: int = 163_840
    count: int = 32_768
    width: int = 768
    chunks: int = 16
    repetitions: int = 3
    threads: int = 2
    microbatch: int = timing.option(0, "pairs of a timed pass; 0: 256 on CUDA, 4 on a CPU")
    tokens: int = 64
    device: str = timing.option("auto", "auto is CUDA where there is one")
    learner: Model = LEARNER


def measure(plan: PaperPlan) -> dict[str, Any]:
    """All numbers, ready for JSON."""
    load, arithmetic = timing.load(), Arithmetic.of(plan.device, "auto")
    with timing.threads(plan.threads):
        fresh = _fresh(plan, arithmetic.device)
        draws = plan.repetitions if arithmetic.device.type == "cuda" else 1
        seconds = [timing.seconds(partial(_draw, fresh, plan), arithmetic.device) for _ in range(draws)]
        fused = kernels.usable(fresh().side("learner").image_BD)
        peak = _peak_bytes(plan, fresh, arithmetic.device)
        del fresh
        passes = _pass_seconds(plan, arithmetic)
    draw = statistics.median(seconds)
    step = plan.count * passes["train"] + 2 * plan.size * passes["forward"]
    name = timing.device_name(arithmetic.device)
    return {
        "machine": timing.machine(load, torch=torch.__version__, device=name, bf16=arithmetic.bf16),
        "plan": asdict(plan),
        "fused": fused,
        "seconds": seconds,
        "peak bytes": peak,
        "seconds of a pair": passes,
        "share of a step": draw / (draw + step),
    }


def _fresh(plan: PaperPlan, device: torch.device) -> Callable[[], Scores]:
    made = selection.random_scores(plan.size, plan.width, "sigmoid")()
    learner, reference = (
        Embeddings(side.image_BD.to(device), side.text_BD.to(device), side.scale, side.bias)
        for side in (made.side("learner"), made.side("reference"))
    )
    return lambda: Scores(learner, reference, loss="sigmoid")


def _draw(fresh: Callable[[], Scores], plan: PaperPlan) -> None:
    joint_draw(fresh(), plan.count, plan.chunks, generator=torch.Generator().manual_seed(0))


def _peak_bytes(plan: PaperPlan, fresh: Callable[[], Scores], device: torch.device) -> int | None:
    if device.type != "cuda":
        shape = selection.SelectionPlan(plan.size, plan.count, plan.width, threads=plan.threads, processes=1)
        return selection.peak_bytes(shape, "sigmoid", plan.chunks)
    return timing.gpu_peak(partial(_draw, fresh, plan), device)


def _pass_seconds(plan: PaperPlan, arithmetic: Arithmetic) -> dict[str, float]:
    """Seconds of one pair's forward pass without gradient, and of its training pass (forward and backward)."""
    cuda = arithmetic.device.type == "cuda"
    pairs = plan.microbatch or (256 if cuda else 4)
    tokenizer = Tokenizer(train_bpe(["a pair of words"], 64).to_str(), plan.tokens)
    model = plan.learner.build(tokenizer, "sigmoid", 0).to(arithmetic.device)
    size = plan.learner.image_size
    images = torch.zeros(pairs, 3, size, size, dtype=torch.uint8, device=arithmetic.device)
    tokens = torch.ones(pairs, plan.tokens, dtype=torch.int64, device=arithmetic.device)

    def forward() -> torch.Tensor:
        with arithmetic.autocast():
            image_KD, text_KD = model.encode_image(images), model.encode_text(tokens)
        return LOSSES["sigmoid"](image_KD, text_KD, model.scale, model.bias, None)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        forward().backward()

    passes = {"forward": torch.no_grad()(forward), "train": train}
    for one in passes.values():
        one()  # the first call wakes threads, touches memory, chooses kernels
    rounds = dict.fromkeys(passes, plan.repetitions)
    timed = {name: partial(timing.seconds, one, arithmetic.device) for name, one in passes.items()}
    found = timing.interleaved(timed, rounds)
    return {name: statistics.median(seconds) / pairs for name, seconds in found.items()}


def table(report: Mapping[str, Any]) -> str:
    """The numbers, one a line."""
    plan, machine, passes = report["plan"], report["machine"], report["seconds of a pair"]
    peak = report["peak bytes"]
    rows = [
        ("seconds of a draw", f"{statistics.median(report['seconds']):.2f}"),
        ("memory beyond the embeddings", "not measured" if peak is None else f"{peak / GIB:.2f} GiB  (target ≤ 2)"),
        ("seconds of a pair, forward and training", f"{passes['forward']:.3g}, {passes['train']:.3g}"),
        ("share of a step (seconds)", f"{report['share of a step']:.5f}"),
    ]
    return "\n".join(
        [
            "joint draw at the paper's scale: B={size} b={count} D={width} N={chunks}".format(**plan),
            f"{timing.machine_line(machine)}, torch {machine['torch']}, {machine['device']}, "
            f"{'fused kernel' if report['fused'] else 'plain torch'}",
            "",
            *(f"{name:44s}{value}" for name, value in rows),
        ]
    )
