"""The command behind ``tools/bench.py``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jestbench.bench import checkpointing, data, gpu, paper, scale, scale_model, selection, train
from jestbench.bench.timing import MissingPeer
from jestbench.disk import command_name, user_path

KINDS: Mapping[str, tuple[str, str]] = {
    "selection": ("the joint draw", f"{selection.__doc__}\n{paper.__doc__}"),
    "data": ("pairs from shards", data.__doc__ or ""),
    "train": ("the training step, against open_clip's", train.__doc__ or ""),
    "checkpoint": ("how long a checkpoint stops a step", checkpointing.__doc__ or ""),
    "scale": ("one run by several processes", f"{scale.__doc__}\n{scale_model.__doc__}"),
    "gpu": ("all that a GPU is needed for, in one call", gpu.__doc__ or ""),
}
"""Kind of benchmark → one line of help, and its description."""


def main(argv: Sequence[str]) -> int:
    """Measure, print a table, and write the same numbers as JSON if asked to.

    Returns:
        The exit status: 0; 1 where a part of ``gpu`` failed; 2 where a peer is not installed.
    """
    arguments = _parser().parse_args(argv)
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
    raw = argparse.RawDescriptionHelpFormatter
    made = {
        name: kinds.add_parser(name, help=text, description=description, formatter_class=raw)
        for name, (text, description) in KINDS.items()
    }
    selection.SelectionPlan.add_arguments(made["selection"])
    at_scale = made["selection"].add_argument_group("the paper's scale", "with --paper; the sizes above don't count")
    at_scale.add_argument("--paper", action="store_true", help="B = 163,840, b = 32,768, D = 768 (a GPU, or minutes)")
    paper.PaperPlan.add_arguments(at_scale)
    data.DataPlan.add_arguments(made["data"])
    train.TrainPlan.add_arguments(made["train"])
    checkpointing.CheckpointPlan.add_arguments(made["checkpoint"])
    scale.ScalePlan.add_arguments(made["scale"])
    made["scale"].add_argument("--paper", action="store_true", help="measure nothing; the cost model on 8 and 64 GPUs")
    gpu.GpuPlan.add_arguments(made["gpu"])
    for kind in made.values():
        kind.add_argument("--json", type=user_path, metavar="FILE", help="also write the numbers here")
    return parser


def _measured(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The report and its table."""
    if arguments.kind == "data":
        report = data.measure(data.DataPlan.of(arguments))
        return report, data.table(report)
    if arguments.kind == "train":
        report = train.measure(train.TrainPlan.of(arguments))
        return report, train.table(report)
    if arguments.kind == "checkpoint":
        report = checkpointing.measure(checkpointing.CheckpointPlan.of(arguments))
        return report, checkpointing.table(report)
    if arguments.kind == "gpu":
        report = gpu.measure(gpu.GpuPlan.of(arguments), partial(_save, arguments.json))
        return report, gpu.table(report)
    if arguments.kind == "scale":
        if arguments.paper:
            return {}, scale_model.table()
        report = scale.measure(scale.ScalePlan.of(arguments))
        return report, scale.table(report)
    if arguments.paper:
        report = paper.measure(replace(paper.PaperPlan.of(arguments), threads=arguments.threads))
        return report, paper.table(report)
    report = selection.measure(selection.SelectionPlan.of(arguments))
    return report, selection.table(report)


def _save(path: Path | None, report: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
