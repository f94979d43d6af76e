"""The command behind ``tools/bench.py``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from jestbench.bench import data, paper, selection


def main(argv: Sequence[str]) -> int:
    """Measure, print a table, and write the same numbers as JSON if asked to."""
    parser = argparse.ArgumentParser(description="Ratios against peers and floors, measured in one run.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    draw = kinds.add_parser("selection", help="the joint draw", description=f"{selection.__doc__}\n{paper.__doc__}")
    selection.add_arguments(draw)
    paper.add_arguments(draw)
    data.add_arguments(kinds.add_parser("data", help="pairs from shards", description=data.__doc__))
    for kind in kinds.choices.values():
        kind.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    arguments = parser.parse_args(argv)
    if arguments.kind == "data":
        report = data.measure(data.Plan.of(arguments))
        print(data.table(report))
    elif arguments.paper:
        report = paper.measure(paper.Plan.of(arguments))
        print(paper.table(report))
    else:
        report = selection.measure(selection.Plan.of(arguments))
        print(selection.table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0
