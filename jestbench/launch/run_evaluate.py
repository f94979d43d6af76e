"""The command that evaluates trained models: ``python tools/evaluate.py RUN_DIR [BINDING …]``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jestbench.disk import command_name, user_path
from jestbench.launch.command import BINDING, for_a_reader, guarded, importing, parse_words, plain_parser

EPILOG = """\
A SOURCE is a run folder, open_clip:MODEL:PRETRAINED, open_clip:local-dir:FOLDER or hf:FOLDER. A run is evaluated on
what its own configuration names, unless --gin_file or a BINDING (Name.parameter=value) names other data or other sets.
The result of a run folder is written there, as evaluated.json; --json names another file.

exit status: 0 evaluated, 2 wrong configuration, 3 wrong or missing data, 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command's arguments."""
    command = plain_parser(
        command_name("evaluate"), "Evaluate trained models as their runs do at their ends; train nothing.", EPILOG
    )
    command.add_argument("words", nargs="+", metavar="SOURCE", help="one or several, then BINDINGs")
    command.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="data and evaluation of it")
    command.add_argument(
        "--checkpoint", default="", metavar="NAME", help="a folder in checkpoints/; default: the newest"
    )
    command.add_argument("--device", metavar="DEVICE", help="cpu or cuda; default: as the run was bound")
    command.add_argument("--json", type=user_path, metavar="FILE", help="write all results there, as a list")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate models and print their metrics.

    Returns:
        The exit status: 0, 2 where the configuration is wrong, 3 where data or a checkpoint is.
    """
    try:
        arguments = parse_words(parser(), sys.argv[1:] if argv is None else argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    return guarded(lambda: _evaluate(arguments), "nothing is written: start the command again")


def _evaluate(arguments: argparse.Namespace) -> int:
    with importing():
        from jestbench.config.run import ConfigError
        from jestbench.disk import write_text
        from jestbench.launch.eval_only import TrainedModel, evaluate

    if int(os.environ.get("RANK", "0")):
        return 0  # started by torchrun: rank 0 alone does the work
    bindings = [word for word in arguments.words if BINDING.match(word) and not Path(word).exists()]
    sources = [word for word in arguments.words if word not in bindings]
    if not sources:
        raise ConfigError("nothing to evaluate: give a run folder, open_clip:MODEL:PRETRAINED or hf:FOLDER")
    bindings += [] if arguments.device is None else [f"run.device={arguments.device}"]
    found = []
    for source in sources:
        trained = TrainedModel.of(source, arguments.checkpoint)
        found.append(evaluate(trained, arguments.gin_file, bindings))
        if arguments.json is None and trained.folder is not None:
            trained.folder.write_evaluated(found[-1])
        with for_a_reader():
            print("\n".join(_lines(found[-1], len(sources) > 1)))
    if arguments.json is not None:
        import json

        write_text(arguments.json, json.dumps(found, indent=2) + "\n")
    return 0


def _lines(found: Mapping[str, Any], named: bool) -> list[str]:
    """What is printed of a model: a line each metric, with its standard error over examples where it has one."""
    width, errors = max(map(len, found["metrics"])), found["standard_errors"]
    lines = [f"{found['source']} ({found['checkpoint']})" if found["checkpoint"] else found["source"]] if named else []
    for key, value in found["metrics"].items():
        lines.append(f"{key:<{width}}  {value:.6g}" + (f" ± {errors[key]:.2g}" if key in errors else ""))
    return lines
