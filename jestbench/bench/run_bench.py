"""The command behind ``tools/bench.py``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jestbench.bench import checkpointing, data, gpu, paper, scale, scale_model, selection, timing, train
from jestbench.bench.timing import MissingPeer
from jestbench.disk import command_name, user_path
from jestbench.launch.command import guarded


class Kind(NamedTuple):
    """A kind of benchmark.

    Attributes:
        text: one line of help.
        plan: its settings.
        bench: the module whose ``measure`` takes the plan, and whose ``table`` shows the report.
        more: a module that is described with it.
    """

    text: str
    plan: type[timing.Plan]
    bench: Any
    more: Any = None


KINDS: Mapping[str, Kind] = {
    "selection": Kind("the joint draw", selection.SelectionPlan, selection, paper),
    "data": Kind("pairs from shards", data.DataPlan, data),
    "train": Kind("the training step, against open_clip's", train.TrainPlan, train),
    "checkpoint": Kind("how long a checkpoint stops a step", checkpointing.CheckpointPlan, checkpointing),
    "scale": Kind("one run by several processes", scale.ScalePlan, scale, scale_model),
    "gpu": Kind("all that a GPU is needed for, in one call", gpu.GpuPlan, gpu),
}


def main(argv: Sequence[str]) -> int:
    """Measure, print a table, and write the same numbers as JSON if asked to.

    Returns:
        The exit status: 0; 1 where a part of ``gpu`` failed; 2 where a peer is not installed; 130 interrupted.
    """
    arguments = _parser().parse_args(argv)
    return guarded(lambda: _bench(arguments), "start the command again")


def _bench(arguments: argparse.Namespace) -> int:
    """Measure what the arguments ask for, print the table and save the numbers."""
    try:
        report, printed = _measured(arguments)
    except MissingPeer as error:
        print(error, file=sys.stderr)
        return 2
    print(printed)
    _save(arguments.json, report)
    return int(bool(report.get("failed")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command_name("bench"), description="Ratios against peers and floors, measured in one run."
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    made = {}
    for name, kind in KINDS.items():
        description = "\n".join(module.__doc__ for module in (kind.bench, kind.more) if module is not None)
        raw = argparse.RawDescriptionHelpFormatter
        made[name] = kinds.add_parser(name, help=kind.text, description=description, formatter_class=raw)
        kind.plan.add_arguments(made[name])
    at_scale = made["selection"].add_argument_group("the paper's scale", "with --paper; the sizes above don't count")
    at_scale.add_argument("--paper", action="store_true", help="B = 163,840, b = 32,768, D = 768 (a GPU, or minutes)")
    paper.PaperPlan.add_arguments(at_scale)
    made["scale"].add_argument("--paper", action="store_true", help="measure nothing; the cost model on 8 and 64 GPUs")
    for each in made.values():
        each.add_argument("--json", type=user_path, metavar="FILE", help="also write the numbers here")
    return parser


def _measured(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The report and its table."""
    name, at_paper = arguments.kind, getattr(arguments, "paper", False)
    if name == "scale" and at_paper:
        return {}, scale_model.table()
    if name == "selection" and at_paper:
        report = paper.measure(replace(paper.PaperPlan.of(arguments), threads=arguments.threads))
        return report, paper.table(report)
    bench, plan = KINDS[name].bench, KINDS[name].plan.of(arguments)
    # The parts of a long measurement are saved as they end.
    report = bench.measure(plan, partial(_save, arguments.json)) if name == "gpu" else bench.measure(plan)
    return report, bench.table(report)


def _save(path: Path | None, report: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
