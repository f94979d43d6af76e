"""Acceptance on one GPU in one call: correctness of the arithmetic, speed, and memory.

The most important parts come first; a part is skipped where its estimated time no longer fits into
``--seconds``, and ``--json FILE`` is written after every part. ``--smoke`` runs the same parts at small sizes on any
CPU, to see that the benchmark itself runs.

* ceilings: TFLOP/s of plain matrix products and GB/s of copies, to compare the other figures with;
* exact: the largest relative error of a strip's sums against float64, offsets beyond 2³¹ included;
* strips, draw, tiles, losses: similarity products at the paper's sizes (seconds, TFLOP/s, peak memory, host waits);
* step, scoring, cached, large, compiled: ViT-B/16 at 256 px with a text tower of the same width. jestbench's step is
  compared with a bare one of the same towers (inputs on the device, no checks, fused AdamW) and one with open_clip's
  loss. MFU is the share of the datasheet's dense bf16 FLOP/s, where that is known for the device;
* policies: every arm of ``gin/policy`` in the tiny world, charged as on a CPU, from a checkout;
* tests: the tests marked ``gpu``, from a checkout.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from jestbench.bench import gpu_parts, gpu_selection, timing
from jestbench.bench.gpu_parts import Found, Rig
from jestbench.parallel.arithmetic import Arithmetic


@dataclass(frozen=True)
class GpuPart:
    """One part: its function, and its estimated seconds on a GPU."""

    work: Callable[[Rig], Found]
    estimate: float


PARTS: Mapping[str, GpuPart] = {
    "ceilings": GpuPart(gpu_parts.ceilings, 15),
    "exact": GpuPart(gpu_selection.exact, 20),
    "strips": GpuPart(gpu_selection.strips, 20),
    "draw": GpuPart(gpu_selection.draws, 25),
    "step": GpuPart(gpu_parts.training, 50),
    "scoring": GpuPart(gpu_parts.scoring, 50),
    "tests": GpuPart(gpu_parts.tests, 120),
    "cached": GpuPart(gpu_parts.cached, 40),
    "losses": GpuPart(gpu_selection.block_losses, 20),
    "large": GpuPart(gpu_parts.large, 60),
    "tiles": GpuPart(gpu_selection.tiles, 30),
    "policies": GpuPart(gpu_parts.policies, 90),
    "compiled": GpuPart(gpu_parts.compiled, 80),
}


@dataclass(frozen=True)
class GpuPlan(timing.Plan):
    """The parts to run, the device, and the time limit."""

    seconds: float = timing.option(450.0, "in all; parts that no longer fit are left out")
    smoke: bool = timing.option(False, "small sizes, on any CPU")
    device: str = timing.option("auto", "auto is CUDA where there is one")
    parts: tuple[str, ...] = timing.option(tuple(PARTS), "in this order, whatever the order here", tuple(PARTS))


def measure(plan: GpuPlan, save: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """All numbers, ready for JSON; one line a part goes to stderr.

    Args:
        save: called with the report so far, after every part.
    """
    begin, load = time.monotonic(), timing.load()
    rig = Rig(Arithmetic.of(plan.device, "auto"), plan.smoke)
    parts: dict[str, Found] = {}
    report: dict[str, Any] = {"plan": asdict(plan), "parts": parts}
    for name in (name for name in PARTS if name in plan.parts):
        start = time.monotonic()
        found = _done(PARTS[name], rig, plan.seconds - (start - begin))
        if rig.cuda:
            torch.cuda.empty_cache()
        parts[name] = {**found, "took": round(time.monotonic() - start, 1)}
        report["seconds"] = round(time.monotonic() - begin, 1)
        report["failed"] = [each for each, part in parts.items() if "failed" in part]
        report["machine"] = timing.machine(
            load, device=timing.device_name(rig.device), bf16=rig.arithmetic.bf16, versions=timing.versions("torch")
        )
        save(report)
        shown = ", ".join(f"{key} {_shown(value)}" for key, value in found.items() if key != "trace")
        print(f"[{report['seconds']:6.1f} s] {name}: {shown}", file=sys.stderr, flush=True)
    return report


def _done(part: GpuPart, rig: Rig, left: float) -> Found:
    """Run a part; return its numbers, its error, or the reason for skipping it."""
    if left < part.estimate:
        return {"left out": f"{left:.0f} s left, the estimate is {part.estimate:.0f} s"}
    try:
        return part.work(rig)
    except Exception as error:  # the parts after it are still worth their time
        return {"failed": f"{type(error).__name__}: {error}"[:500], "trace": traceback.format_exc()[-2000:]}


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(report: Mapping[str, Any]) -> str:
    """The numbers, one a line, under the name of their part."""
    machine = report["machine"]
    lines = [f"acceptance on {machine['device']}: {report['seconds']} s", timing.machine_line(machine)]
    for name, part in report["parts"].items():
        lines += ["", f"{name} ({part['took']} s)"]
        lines += [f"  {key:64s}{_shown(value)}" for key, value in part.items() if key not in ("took", "trace")]
    return "\n".join([*lines, "", f"failed: {', '.join(report['failed']) or 'none'}"])
