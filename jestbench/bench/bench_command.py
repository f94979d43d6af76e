"""The command behind ``tools/bench.py``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jestbench.bench import data, paper, selection, train
from jestbench.bench.timing import MissingPeer


def main(argv: Sequence[str]) -> int:
    """Measure, print a table, and write the same numbers as JSON if asked to.

    Returns:
        The exit status: 0, or 2 where a peer is not installed.
    """
    arguments = _parser().parse_args(argv)
    try:
        report, printed = _measured(arguments)
    except MissingPeer as error:
        print(error, file=sys.stderr)
        return 2
    print(printed)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Ratios against peers and floors, measured in one run.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    draw = kinds.add_parser("selection", help="the joint draw", description=f"{selection.__doc__}\n{paper.__doc__}")
    selection.add_arguments(draw)
    paper.add_arguments(draw)
    data.add_arguments(kinds.add_parser("data", help="pairs from shards", description=data.__doc__))
    step = kinds.add_parser("train", help="the training step, against open_clip's", description=train.__doc__)
    train.add_arguments(step)
    for kind in kinds.choices.values():
        kind.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    return parser


def _measured(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The report and its table."""
    if arguments.kind == "data":
        report = data.measure(data.Plan.of(arguments))
        return report, data.table(report)
    if arguments.kind == "train":
        report = train.measure(train.Plan.of(arguments))
        return report, train.table(report)
    if arguments.paper:
        report = paper.measure(paper.Plan.of(arguments))
        return report, paper.table(report)
    report = selection.measure(selection.Plan.of(arguments))
    return report, selection.table(report)
