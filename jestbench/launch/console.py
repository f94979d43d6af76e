"""The command ``jestbench``: the scripts of ``tools/`` for an installed package. Cheap to import, as ``--help`` is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from jestbench.launch.command import importing

COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("jestbench.launch.command", "train one arm under one selection policy"),
    "sweep": ("jestbench.sweep.run_sweep", "run a W&B sweep file without a server, and compare its arms"),
    "compare": ("jestbench.compare.report", "compare finished runs at equal compute"),
    "evaluate": ("jestbench.launch.run_evaluate", "evaluate trained models, without training"),
    "prepare": ("jestbench.launch.prepare", "fetch and prepare a data set"),
    "export": ("jestbench.export.run_export", "write a trained model as a folder for open_clip"),
    "bench": ("jestbench.bench.run_bench", "measure ratios against other implementations"),
}
"""By name: the module whose ``main`` runs the command, and what the command does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of ``COMMANDS`` with the remaining words; its exit status, 2 where there is no such command."""
    words = list(sys.argv[1:] if argv is None else argv)
    usage = "usage: jestbench COMMAND …\n\n" + "\n".join(f"  {name:<9}{does}" for name, (_, does) in COMMANDS.items())
    if not words or words[0] in ("-h", "--help"):
        print(f"{usage}\n\njestbench COMMAND --help has a command's own words")
        return 0 if words else 2
    name, *rest = words
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    with importing():
        command = import_module(COMMANDS[name][0])
    status: int = command.main(rest)
    return status
