"""The joint draw, measured against the paper's listing and against the matrix products that any draw needs.

All times are of one run on one machine, repetitions of the contenders interleaved, so that a disturbance of the
machine slows all of them alike. Ratios are of medians; the ratio of the minima is given too.

* speed-up: time of the listing ÷ time of the draw, statistics and the checks of the embeddings included;
* over the products: time of the draw ÷ time of the strips' bare products, into memory already
  allocated, in the faster of two forms (one ``mm`` a strip, or blocks of rows);
* memory: growth of a fresh process's peak resident set (``VmHWM``) during a draw, relative to
  two B×B fp32 matrices (learner's and reference's); the median of ``--processes``, since allocators
  return memory unpredictably; the listing's own peak is larger;
* slopes: of log time over log B, by least squares;
* share of a step: multiply-adds of the selection ÷ (those + the learner's update of b and forward of B
  + the reference's forward of B), at ``--pair-macs`` a pair forward.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jestbench.bench import timing
from jestbench.bench.listing import listing_draw
from jestbench.select.draws import chunk_sizes, joint_draw
from jestbench.select.losses import LossName
from jestbench.select.scores import Embeddings, Scores
from jestbench.select.strips import BLOCK_ROWS

TARGETS = {
    "speed-up over the listing": "≥ 15",
    "over the products": "≤ 1.25",
    "memory": "≤ 0.1",
    "slope, fixed filter ratio": "≤ 2.1",
    "slope, fixed b": "≤ 1.1",
}
LOSSES: tuple[LossName, ...] = ("sigmoid", "softmax")


@dataclass(frozen=True)
class SelectionPlan(timing.Plan):
    """Sizes and repetitions of the joint draw."""

    size: int = timing.option(8192, "B, the super-batch")
    count: int = timing.option(1638, "b, the sub-batch")
    width: int = timing.option(512, "D of the embeddings")
    chunks: int = timing.option(16, "N")
    repetitions: int = timing.option(7, "of the draw and of the products")
    listings: int = timing.option(2, "repetitions of the listing")
    threads: int = timing.option(2, "torch's threads")
    processes: int = timing.option(3, "fresh ones for each memory reading, of which the median counts")
    sizes: tuple[int, ...] = timing.option((1024, 2048, 4096, 8192), "the values of B for the slopes")
    full: bool = timing.option(False, "slopes over B from 1k to 64k, whatever --sizes (many minutes)")
    pair_macs: float = timing.option(
        20.5e9, "multiply-adds of one pair's forward, for the share of a step: about a ViT-B/16 pair"
    )

    def __post_init__(self) -> None:
        if self.full:
            object.__setattr__(self, "sizes", tuple(1024 * 2**i for i in range(7)))


def random_scores(size: int, width: int, loss: LossName, seed: int = 0) -> Callable[[], Scores]:
    """Return a function that makes fresh scores of one set of embeddings; matched pairs have cosines of about 0.3."""
    generator = torch.Generator().manual_seed(seed)

    def side() -> tuple[Tensor, Tensor]:
        image_BD, text_BD = (torch.randn(size, width, generator=generator) for _ in range(2))
        text_BD.add_(image_BD, alpha=0.3)
        for part_BD in (image_BD, text_BD):
            part_BD.div_(torch.linalg.vector_norm(part_BD, dim=1, keepdim=True))
        return image_BD, text_BD

    learner, reference = side(), side()
    return lambda: Scores(Embeddings(*learner, 10.0, -10.0), Embeddings(*reference, 12.0, -10.0), loss=loss)


def products(scores: Scores, count: int, chunks: int, blocks: bool) -> Callable[[], None]:
    """The bare matrix products of the strips, with inputs already gathered and outputs already allocated."""
    sizes = chunk_sizes(count, chunks)[:-1]
    pairs = [
        (left_BD, right_BD[:size].clone())
        for size in sizes
        for model in (scores.side("learner"), scores.side("reference"))
        for left_BD, right_BD in ((model.image_BD, model.text_BD), (model.text_BD, model.image_BD))
    ]
    whole = len(scores) - len(scores) % BLOCK_ROWS
    out = torch.empty(max(sizes, default=0) * len(scores))

    def plain() -> None:
        for left_BD, right_CD in pairs:
            torch.mm(left_BD, right_CD.T, out=out[: len(left_BD) * len(right_CD)].view(len(left_BD), -1))

    def in_blocks() -> None:
        for left_BD, right_CD in pairs:
            left_nRD = left_BD[:whole].unflatten(0, (-1, BLOCK_ROWS))
            into = out[: whole * len(right_CD)].view(len(left_nRD), len(right_CD), BLOCK_ROWS)
            torch.bmm(right_CD.expand(len(left_nRD), -1, -1), left_nRD.transpose(1, 2), out=into)

    return in_blocks if blocks and whole == len(scores) else plain


def _interleaved(contenders: Mapping[str, Callable[[], object]], rounds: Mapping[str, int]) -> dict[str, list[float]]:
    """Seconds by name, interleaved."""
    cpu = torch.device("cpu")
    return timing.interleaved({name: partial(timing.seconds, one, cpu) for name, one in contenders.items()}, rounds)


def _ratio(over: list[float], under: list[float]) -> dict[str, float]:
    return {"value": timing.ratio(over, under), "of minima": min(over) / min(under)}


def _times(plan: SelectionPlan, loss: LossName) -> dict[str, Any]:
    fresh = random_scores(plan.size, plan.width, loss)
    draw = torch.Generator().manual_seed(0)
    contenders: dict[str, Callable[[], object]] = {
        "draw": lambda: joint_draw(fresh(), plan.count, plan.chunks, generator=draw),
        "mm": products(fresh(), plan.count, plan.chunks, blocks=False),
        "blocks": products(fresh(), plan.count, plan.chunks, blocks=True),
        "listing": lambda: listing_draw(fresh(), plan.count, plan.chunks, draw),
    }
    for name in ("draw", "mm", "blocks"):
        contenders[name]()  # the first call wakes threads and touches memory
    repetitions = dict.fromkeys(contenders, plan.repetitions) | {"listing": plan.listings}
    seconds = _interleaved(contenders, repetitions)
    floor = min((seconds["mm"], seconds["blocks"]), key=statistics.median)
    return {
        "speed-up over the listing": _ratio(seconds["listing"], seconds["draw"]),
        "over the products": _ratio(seconds["draw"], floor),
        "seconds": seconds,
    }


def _peak(size: int, count: int, width: int, chunks: int, loss: LossName, threads: int, listing: bool) -> int:
    torch.set_num_threads(threads)
    small = random_scores(BLOCK_ROWS, width, loss)
    joint_draw(small(), BLOCK_ROWS // 2, 2)  # loads libraries and their buffers
    scores = random_scores(size, width, loss)()
    before = timing.status_bytes("VmRSS")
    listing_draw(scores, count, chunks) if listing else joint_draw(scores, count, chunks)
    return timing.status_bytes("VmHWM") - before  # not ru_maxrss: a child's peak starts at its parent's


def peak_bytes(plan: SelectionPlan, loss: LossName, chunks: int, listing: bool = False) -> int | None:
    """Bytes by which a draw raises a fresh process's peak resident set, the median of several; ``None`` off Linux."""
    if not Path("/proc/self/status").exists():
        return None
    arguments = (plan.size, plan.count, plan.width, chunks, loss, plan.threads, listing)
    # One task a process: memory left allocated by an earlier draw would hide a later draw's peak.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return statistics.median_low([pool.apply(_peak, arguments) for _ in range(plan.processes)])


def slope(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Slope of log seconds over log B, by least squares."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(s) for s in seconds]).slope


def _slopes(plan: SelectionPlan) -> dict[str, Any]:
    kept = plan.count / plan.size
    fixed = max(1, round(min(plan.sizes) * kept))
    counts = {
        "slope, fixed filter ratio": [max(1, round(size * kept)) for size in plan.sizes],
        "slope, fixed b": [fixed] * len(plan.sizes),
    }
    report: dict[str, Any] = {}
    for name, count_of_size in counts.items():
        seconds = [_best_draw(plan, size, count) for size, count in zip(plan.sizes, count_of_size, strict=True)]
        report[name] = {"value": slope(plan.sizes, seconds), "B": list(plan.sizes), "seconds": seconds}
    return report


def _best_draw(plan: SelectionPlan, size: int, count: int) -> float:
    fresh = random_scores(size, plan.width, "sigmoid")
    turns = min(plan.repetitions, max(2, 4 * 8192 // size))
    draw = {"draw": lambda: joint_draw(fresh(), count, plan.chunks)}
    return min(_interleaved(draw, {"draw": turns})["draw"])


def share_of_step(plan: SelectionPlan) -> float:
    """The selection's share of a step's multiply-adds (fp32 scores; both models of the learner's size)."""
    scores = random_scores(plan.size, 1, "sigmoid")()
    joint_draw(scores, plan.count, plan.chunks)
    selection = scores.meter.macs * plan.width  # products are linear in the width
    return selection / (selection + plan.pair_macs * (3 * plan.count + 2 * plan.size))


def measure(plan: SelectionPlan) -> dict[str, Any]:
    """All numbers, ready for JSON."""
    load = timing.load()
    with timing.threads(plan.threads):
        losses = {loss: _times(plan, loss) | _memory(plan, loss) for loss in LOSSES}
        slopes = _slopes(plan)
    return {
        "machine": timing.machine(load, torch=torch.__version__),
        "plan": asdict(plan),
        "targets": TARGETS,
        "losses": losses,
        "slopes": slopes,
        "share of a step": share_of_step(plan),
    }


def _memory(plan: SelectionPlan, loss: LossName) -> dict[str, Any]:
    dense = 2 * plan.size**2 * 4
    report: dict[str, Any] = {}
    for chunks in (plan.chunks, 2):
        peak = peak_bytes(plan, loss, chunks)
        if peak is not None:
            report[f"memory, N={chunks}"] = {"value": peak / dense, "bytes": peak}
    if loss == "sigmoid" and (listing := peak_bytes(plan, loss, plan.chunks, listing=True)):
        report["memory, listing"] = {"value": listing / dense, "bytes": listing}
    return report


def table(report: Mapping[str, Any]) -> str:
    """The ratios, one a line, with their targets."""
    plan, machine = report["plan"], report["machine"]
    lines = [
        "joint draw: B={size} b={count} D={width} N={chunks}, {threads} threads".format(**plan),
        f"{timing.machine_line(machine)}, torch {machine['torch']}",
        "",
        f"{'':44s}{'value':>8s}  {'of minima':>9s}  target",
    ]
    rows = [(f"{name} ({loss})", entry) for loss, part in report["losses"].items() for name, entry in part.items()]
    for name, entry in (*rows, *report["slopes"].items()):
        if "value" in entry:
            minima = f"{entry['of minima']:9.2f}" if "of minima" in entry else " " * 9
            target = next((t for start, t in TARGETS.items() if name.startswith(start) and "listing (" not in name), "")
            if name.startswith("speed-up"):
                target = TARGETS["speed-up over the listing"]
            lines.append(f"{name:44s}{entry['value']:8.3f}  {minima}  {target}".rstrip())
    lines.append(f"{'share of a step (multiply-adds)':44s}{report['share of a step']:8.5f}")
    return "\n".join(lines)
