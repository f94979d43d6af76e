"""Entry points of the comparison: ``compare`` for the library, ``main`` for the command line."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from jestbench.compare.analysis import analyse
from jestbench.compare.comparison import Comparison
from jestbench.compare.document import to_json
from jestbench.compare.load import CompareError
from jestbench.compare.page import PAGE, to_html
from jestbench.compare.plots import save_plots
from jestbench.compare.table import format_table, to_markdown
from jestbench.compare.tidy import Compared
from jestbench.compare.watch import watch
from jestbench.disk import command_name, command_words, user_path, write_text


def compare(
    run_dirs: Sequence[Path],
    metric: str | None = None,
    baseline: str = "uniform",
    out: Path | None = None,
    *,
    lower_is_better: bool | None = None,
) -> Comparison:
    """Compare finished runs at equal compute; arguments and errors as of ``compare_runs``."""
    comparison = analyse(run_dirs, metric, baseline, lower_is_better, "")
    # With the metric that was found: the command gives the same report where the runs lie elsewhere.
    command = _command(run_dirs, metric or comparison.first.metric, baseline, out, lower_is_better)
    comparison = replace(comparison, command=command)
    if out is not None:
        render(comparison, out)
    return comparison


def compare_runs(
    run_dirs: Sequence[Path | str] | Path | str,
    metric: str | None = None,
    baseline: str = "uniform",
    out: Path | str | None = None,
    *,
    lower_is_better: bool | None = None,
) -> Compared:
    """Compare finished runs at equal compute, for a notebook.

    Args:
        run_dirs: run folders, or folders that hold run folders one or two levels down.
        metric: key in ``metrics.jsonl``; the leading ``eval/`` may be left out. ``None``: the one that the runs agree
            on (``compare/choose_metric.py``): what their sweep names, else the only ``eval/…`` that all end with.
        baseline: label of the arm to compare all others with; ``label@hash`` where two configurations share it.
        out: folder to write ``comparison.json``, ``comparison.md``, plots and ``index.html`` to, made if missing;
            ``None``: none.
        lower_is_better: whether a smaller value is better; ``None``: as the runs record it, or where a word of its name
            ends in "loss", "mse" or "nll".

    Returns:
        The comparison, with tidy tables (``.arms``, ``.runs``, ``.frontier``, ``.curves``, ``.crossings``,
        ``.references``): a notebook shows the arms, ``print`` the table of the command line.

    Raises:
        CompareError: a folder, the metric or the baseline does not exist (``status`` 2), no run can be
            used, or the report cannot be written (``status`` 3).
    """
    several = [run_dirs] if isinstance(run_dirs, str | Path) else run_dirs
    folders, place = [Path(folder) for folder in several], None if out is None else Path(out)
    return Compared(compare(folders, metric, baseline, place, lower_is_better=lower_is_better))


def render(comparison: Comparison, out: Path) -> None:
    """Write ``comparison.json``, ``comparison.md``, the plots and ``index.html``, over those of an earlier comparison.

    Raises:
        CompareError: the folder cannot be written (``status`` 3).
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_plots(comparison, out)
        for name, text in (
            ("comparison.json", to_json(comparison, out)),
            ("comparison.md", to_markdown(comparison, out)),
            (PAGE, to_html(comparison, out)),
        ):
            # A label of invalid Unicode (a folder name in another encoding) must not stop the report.
            write_text(out / name, text, errors="replace")
    except OSError as error:
        raise CompareError(f"{out}: cannot be written: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; its exit status: 0 done, 2 a wrong argument, 3 wrong or missing data, 130 interrupted."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2

    def refresh() -> None:
        comparison = compare(
            options.run_dirs, options.metric, options.baseline, options.out, lower_is_better=options.lower_is_better
        )
        _print(format_table(comparison), sys.stdout)
        _print(f"\nwritten: {options.out / PAGE}, comparison.json, comparison.md and plots beside it", sys.stdout)

    try:
        if options.watch:
            watch(options.run_dirs, options.out, options.interval, refresh, lambda line: _print(line, sys.stdout))
        else:
            refresh()
    except CompareError as error:
        _print(f"compare: {error}", sys.stderr)
        return error.status
    except KeyboardInterrupt:
        _print("interrupted; the report is that of the runs that had ended", sys.stderr)
        return 130
    return _to_wandb(options.out) if options.wandb else 0


def _to_wandb(out: Path) -> int:
    from jestbench.config.log import WandB
    from jestbench.runs.wandb_run import log_comparison

    try:
        folder = log_comparison(WandB(), out, out.resolve().name)
    except ValueError as error:
        _print(f"compare: {error}", sys.stderr)
        return 2
    if folder is not None:
        _print(f"W&B, offline: {folder}; wandb sync sends it", sys.stdout)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command_name("compare"),
        description="Compare finished runs at equal compute: table, plots, one HTML page.",
        epilog="exit status: 0 done, 2 a wrong argument, 3 wrong or missing data, 130 interrupted",
    )
    parser.add_argument(
        "run_dirs",
        nargs="+",
        type=user_path,
        metavar="RUN_DIR",
        help="a run folder, or a folder that holds run folders one or two levels down",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="metric to compare, such as eval/zero_shot_top1 (default: what the sweep of the runs names, else the only "
        "eval/… that all of them end with)",
    )
    parser.add_argument(
        "--baseline",
        default="uniform",
        metavar="ARM",
        help="arm to hold the others against; ARM@HASH where configurations share a label (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        default=Path("comparison"),
        type=user_path,
        metavar="DIR",
        help="folder to write to (default: %(default)s)",
    )
    parser.add_argument(
        "--lower_is_better",
        action=argparse.BooleanOptionalAction,
        help="whether a smaller value is better (default: as the runs record it)",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="refresh the report whenever a run ends, until all have; the open page reloads itself",
    )
    parser.add_argument(
        "--interval",
        type=_seconds,
        default=10,
        metavar="SECONDS",
        help="of --watch: between looks (default: %(default)s)",
    )
    parser.add_argument(
        "--wandb",
        action="store_true",
        help="put the table, the plots and the page into one W&B run too; offline, in --out, unless WANDB_MODE=online "
        "(WANDB_PROJECT, WANDB_ENTITY and WANDB_RUN_GROUP say where)",
    )
    return parser


def _seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text}")
    return value


def _command(
    run_dirs: Sequence[Path], metric: str, baseline: str, out: Path | None, lower_is_better: bool | None
) -> str:
    words = [
        *command_words("compare"),
        *(str(folder) for folder in run_dirs),
        "--metric",
        metric,
        "--baseline",
        baseline,
    ]
    if out is not None:
        words += ["--out", str(out)]
    if lower_is_better is not None:
        words.append("--lower_is_better" if lower_is_better else "--no-lower_is_better")
    return shlex.join(words)


def _print(text: str, stream: TextIO) -> None:
    # On a terminal limited to ASCII, a Greek label must not raise.
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        # The reader (``| head``) has closed the pipe; without this, the flush at exit fails too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
