"""How long a step is stopped by a checkpoint: written while the run waits, and behind it (``CheckpointWriter``).

A state is made of a model's weights and AdamW's two moments, so 12 bytes a parameter: 0.25 million parameters are those
of ``gin/model/tiny.gin``, 151.3 million those of CLIP's ViT-B/32. It is written into a temporary folder, by the same
calls as a run's: safetensors and ``torch.save``, a digest and fsync of each file, a rename. Rounds of both are
interleaved. ``waited for`` and ``behind`` are the seconds for which the step is stopped; ``whole`` is how long after
that stop the checkpoint behind is whole, with nothing else at work; ``copy`` is one copy of the same bytes.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from jestbench.bench import timing
from jestbench.parallel.distributed import World
from jestbench.runs.checkpoint import Place
from jestbench.runs.checkpoint_writer import CheckpointWriter, bytes_of, copied
from jestbench.runs.folder import RunFolder
from jestbench.runs.saved_model import WEIGHTS

TENSOR = 1 << 22
"""Parameters of a tensor at most."""


@dataclass(frozen=True)
class CheckpointPlan(timing.Plan):
    """Sizes of the states, and rounds of each."""

    millions: tuple[float, ...] = timing.option((0.25, 151.3), "parameters of a model, in millions")
    rounds: int = timing.option(5, "of each way to write")
    threads: int = timing.option(1, "torch's threads")


def state_of(parameters: int) -> dict[str, dict[str, torch.Tensor]]:
    """The state of a model with so many parameters, by part and name."""
    sizes = [TENSOR] * (parameters // TENSOR) + [parameters % TENSOR] * (parameters % TENSOR > 0)
    return {
        part: {f"{part}{number}": torch.rand(size) for number, size in enumerate(sizes)}
        for part in ("weights", "first moment", "second moment")
    }


def _fill(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a state as a run does."""
    save_file(state["weights"], folder / WEIGHTS)
    torch.save({name: part for name, part in state.items() if name != "weights"}, folder / "state.pt")


def measure(plan: CheckpointPlan) -> dict[str, Any]:
    """Seconds of the stops, by millions of parameters, with the state's bytes."""
    before = timing.load()
    with timing.threads(plan.threads):
        found = {f"{millions:g}": _stops(state_of(round(1e6 * millions)), plan.rounds) for millions in plan.millions}
    return {"states": found, "machine": timing.machine(before, versions=timing.versions("torch", "safetensors"))}


def _stops(state: dict[str, dict[str, torch.Tensor]], rounds: int) -> dict[str, float]:
    """Median seconds of each way to write a state, and its bytes."""
    cpu, took = torch.device("cpu"), defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory() as folder:
        RunFolder(Path(folder)).metrics_jsonl.touch()
        writer = CheckpointWriter(Path(folder), World())
        for number in range(rounds):
            for name, behind in (("waited for", False), ("behind", True)):
                write = partial(writer.write, Place(2 * number + behind), state, _fill, behind)
                took[name].append(timing.seconds(write, cpu))
            took["whole"].append(timing.seconds(writer.settle, cpu))
            took["copy"].append(timing.seconds(partial(copied, state), cpu))
        writer.close()
    return {"bytes": bytes_of(state), **{name: statistics.median(seconds) for name, seconds in took.items()}}


def table(report: Mapping[str, Any]) -> str:
    """The stops of each state, one state a line."""
    names = ("waited for", "behind", "copy", "whole")
    lines = [f"{'parameters':>12}{'MiB':>9}" + "".join(f"{name:>13}" for name in names) + "   seconds, medians"]
    for millions, found in report["states"].items():
        cells = "".join(f"{found[name]:>13.4f}" for name in names)
        lines.append(f"{f'{millions} M':>12}{found['bytes'] / 2**20:>9.1f}{cells}")
    return "\n".join([*lines, "", timing.machine_line(report["machine"])])
