"""Runs the arms of a sweep file on this machine, and compares them."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from jestbench.compare.choose_metric import SweepRecord
from jestbench.config import grammar
from jestbench.config.log import WandB
from jestbench.config.run import ConfigError
from jestbench.disk import PROJECT, command_name, user_path
from jestbench.launch import command
from jestbench.runs.folder import RunFolder
from jestbench.runs.kept_records import keep_records, worth_keeping
from jestbench.runs.wandb_run import log_comparison
from jestbench.sweep.arms import SweepArm, arms_of, check_metric
from jestbench.sweep.progress import SweepProgress
from jestbench.sweep.proposals import Done, memory_of
from jestbench.sweep.side_by_side import Job, run_side_by_side
from jestbench.sweep.sweep_file import PROGRAM, Sweep, read_sweep

COMPARISON = "comparison"
DEFAULT_COUNT = 10
"""Number of arms of a random or bayes sweep without ``run_cap`` and ``--count``."""


def _job(sweep: Sweep, arm: SweepArm, out: Path, threads: int) -> Job[SweepArm]:
    words = [*sweep.command_line(arm.parameters), "--run_dir", str(arm.folder(out)), "--resume"]
    print(f"$ {shlex.join(words)}", flush=True)
    environment = {"WANDB_RUN_GROUP": sweep.name, "OMP_NUM_THREADS": str(threads), **sweep.wandb}
    return Job(arm, words, {name: os.environ.get(name, value) for name, value in environment.items()})


def places(sweep: Sweep, asked: int | None) -> int:
    """Number of arms to run at once: as asked, else one a core up to 4; one where arms share a GPU.

    A small model uses one core more efficiently than two, and a search, which learns from each arm, runs
    one arm after the other.
    """
    if asked is not None:
        return asked
    if sweep.method == "bayes" or torch.cuda.is_available():
        return 1
    return max(1, min(4, os.cpu_count() or 1))


def run_sweep(
    sweep: Sweep, out: Path, count: int | None, dry_run: bool, jobs: int | None = None, logs: Path | None = None
) -> int:
    """Run all arms and compare them.

    Args:
        out: folder of the runs and the comparison; arms that have finished there are not run again.
        count: largest number of arms, or ``None``.
        dry_run: print the commands only.
        jobs: arms at once; ``None`` for ``places``.
        logs: a folder that keeps the records of finished runs; arms whose records it holds are not run again.

    Returns:
        0, or the exit status of the first arm that failed; 130 when interrupted.
    """
    done: Done = []
    for name, value in (("count", count), ("jobs", jobs)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    if not dry_run:
        sweep = _with_program(sweep)
    check_metric(sweep)
    limit = count or sweep.run_cap or (None if sweep.method == "grid" else DEFAULT_COUNT)
    if dry_run:
        return _print_commands(sweep, limit)
    arms = itertools.islice(arms_of(sweep, done, memory_of(sweep, out)), limit)
    planned = list(arms) if sweep.method == "grid" else []
    at_once = places(sweep, jobs)
    progress = SweepProgress(sweep.name, sweep.metric, len(planned) or limit, at_once, planned)
    record = SweepRecord(sweep.metric, sweep.goal, tuple(arm.folder(out).name for arm in planned))
    started: list[SweepArm] = []
    failed: dict[str, int] = {}
    sent = (out / COMPARISON / "wandb").exists()
    try:
        to_run = iter(planned) if planned else arms
        for arm, status in _run(sweep, to_run, record, (out, logs), progress, started, done):
            sent = False
            score = None if status else RunFolder(arm.folder(out)).final_value(sweep.metric)
            done.append((dict(arm.parameters), score))
            progress.ends(arm, status, score)
            if status in (130, -signal.SIGINT):
                raise KeyboardInterrupt
            if status:
                failed[str(dict(arm.parameters))] = status
                print(f"failed with status {status}: {dict(arm.parameters)}; the others go on", file=sys.stderr)
    except KeyboardInterrupt:
        _keep(started, out, logs)  # a ladder's ended rungs are final
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    finally:
        progress.close()
    if started:
        for folder in (out, *(() if logs is None else (logs,))):
            replace(record, over=True).write(folder)
    # A summary run for each comparison: where no arm has run, the last summary is still valid.
    if _compare(sweep, [_finished(arm, out, logs) or arm.folder(out) for arm in started], out) and not sent:
        _summary_run(sweep, started[0].resolved.run.wandb, out)
    return next(iter(failed.values()), 0)


def _with_program(sweep: Sweep) -> Sweep:
    """The sweep with a program that is there: of an installed checkout, its own, from any folder.

    Raises:
        ConfigError: there is no such file.
    """
    if sweep.is_installed or Path(sweep.program).is_file():
        return sweep
    own = PROJECT / PROGRAM
    if sweep.program != PROGRAM or not own.is_file():
        raise ConfigError(f"{sweep.path}: program: there is no file {sweep.program} here ({Path.cwd()})")
    return replace(sweep, program=str(own))


def _print_commands(sweep: Sweep, limit: int | None) -> int:
    done: Done = []
    for arm in itertools.islice(arms_of(sweep, done, None), limit):
        print(shlex.join(sweep.command_line(arm.parameters)))
        done.append((dict(arm.parameters), None))
    return 0


def _keep(arms: Sequence[SweepArm], out: Path, logs: Path | None) -> None:
    for arm in arms:
        if logs is not None and worth_keeping(arm.folder(out)) and not RunFolder(arm.folder(logs)).has_finished():
            keep_records(arm.folder(out), arm.folder(logs))


def _finished(arm: SweepArm, out: Path, logs: Path | None) -> Path | None:
    """The folder of an arm that has finished, among the runs or the kept records; ``None`` where there is none."""
    places = (arm.folder(folder) for folder in (out, logs) if folder is not None)
    return next((folder for folder in places if RunFolder(folder).has_finished()), None)


def _run(
    sweep: Sweep,
    arms: Iterator[SweepArm],
    record: SweepRecord,
    places: tuple[Path, Path | None],
    progress: SweepProgress,
    started: list[SweepArm],
    done: Done,
) -> Iterator[tuple[SweepArm, int]]:
    """Run the arms that have not finished yet; append every arm to ``started``.

    The records of those that finish are kept in the second of the places, if there is one.
    """
    out, logs = places
    threads = max(1, (os.cpu_count() or 1) // progress.at_once)

    def jobs() -> Iterator[Job[SweepArm]]:
        for arm in arms:
            if not started:
                record.write(out)
            started.append(arm)
            if (finished := _finished(arm, out, logs)) is not None:
                print(f"already finished: {finished}")
                _keep([arm], out, logs)
                done.append((dict(arm.parameters), RunFolder(finished).final_value(sweep.metric)))
                progress.passed(arm)
            else:
                progress.begins(arm, arm.folder(out))
                yield _job(sweep, arm, out, threads)

    for arm, status in run_side_by_side(jobs(), progress.at_once, progress.tick):
        _keep([arm], out, logs)
        yield arm, status


def _compare(sweep: Sweep, folders: Sequence[Path], out: Path) -> bool:
    """Compare the runs that have ended, print the table, and return whether there is a comparison."""
    from jestbench.compare.load import CompareError
    from jestbench.compare.report import compare
    from jestbench.compare.table import format_table

    arms = {folder: summary.arm for folder in folders if (summary := RunFolder(folder).summary()) is not None}
    if not arms:
        return False
    baseline = "uniform" if "uniform" in arms.values() else next(iter(arms.values()))
    lower_is_better = None if sweep.goal is None else sweep.goal == "minimize"
    try:
        comparison = compare(list(arms), sweep.metric, baseline, out / COMPARISON, lower_is_better=lower_is_better)
    except CompareError as error:
        print(f"no comparison: {error}", file=sys.stderr)
        return False
    print(format_table(comparison))
    print(f"comparison: {out / COMPARISON / 'index.html'}")
    return True


def _summary_run(sweep: Sweep, settings: WandB, out: Path) -> None:
    """Log the comparison as one W&B run beside those of the arms, with an arm's W&B settings."""
    settings = replace(
        settings,
        project=settings.project or os.environ.get("WANDB_PROJECT") or sweep.wandb.get("WANDB_PROJECT", ""),
        entity=settings.entity or os.environ.get("WANDB_ENTITY") or sweep.wandb.get("WANDB_ENTITY", ""),
        name="",
    )
    try:
        log_comparison(settings, out / COMPARISON, f"{sweep.name}-comparison", sweep.name)
    except ValueError as error:
        print(f"the comparison is not in W&B: {error}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """The command of ``tools/sweep.py``."""
    import argparse

    parser = argparse.ArgumentParser(
        prog=command_name("sweep"),
        description="Run a W&B sweep file on this machine without a server, and compare its arms.",
    )
    parser.add_argument("sweep", type=user_path, metavar="SWEEP.yaml")
    parser.add_argument("--dry_run", action="store_true", help="print the commands; run nothing")
    parser.add_argument("--count", type=int, help="most arms to run")
    parser.add_argument("--jobs", type=int, help="arms at once; default: one a core up to 4, one with a GPU")
    parser.add_argument("--out", type=user_path, help="default: runs/<name of the sweep>")
    parser.add_argument(
        "--logs", type=user_path, metavar="DIR", help="keep the records of finished arms there; run none that it holds"
    )
    arguments = parser.parse_args(argv)

    def work() -> int:
        path = grammar.locate(str(arguments.sweep))
        if path is None:
            raise ConfigError(f"there is no file {arguments.sweep}")
        sweep = read_sweep(path)
        out = arguments.out or Path("runs") / sweep.name
        return run_sweep(sweep, out, arguments.count, arguments.dry_run, arguments.jobs, arguments.logs)

    return command.guarded(work)
