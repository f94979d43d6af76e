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
from jestbench.parallel.arithmetic import number_format
from jestbench.runs.folder import RunFolder
from jestbench.runs.kept_records import keep_records, worth_keeping
from jestbench.runs.summary import Summary
from jestbench.runs.wandb_run import log_comparison
from jestbench.sweep.progress import SweepProgress
from jestbench.sweep.proposals import Done, memory_of
from jestbench.sweep.side_by_side import Job, run_side_by_side
from jestbench.sweep.sweep_arms import SweepArm, arms_of, check_metric, look_at_data
from jestbench.sweep.sweep_file import PROGRAM, Sweep, read_sweep

COMPARISON = "comparison"
DEFAULT_COUNT = 10
"""Number of arms of a random or bayes sweep without ``run_cap`` and ``--count``."""


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
        dry_run: print the commands, and read the first pairs of local data.
        jobs: arms at once; ``None`` for ``places``.
        logs: a folder that keeps the records of finished runs; arms whose records it holds are not run again.

    Returns:
        0, or the exit status of the first arm that failed; 130 when interrupted.

    Raises:
        DataError: the local data of an arm cannot be read; no arm has been started.
    """
    for name, value in (("count", count), ("jobs", jobs)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    if not dry_run:
        sweep = _with_program(sweep)
    check_metric(sweep)
    limit = count or sweep.run_cap or (None if sweep.method == "grid" else DEFAULT_COUNT)
    if dry_run:
        return _print_commands(sweep, limit)
    return LocalSweep(sweep, out, logs, places(sweep, jobs), limit).run()


def _with_program(sweep: Sweep) -> Sweep:
    """The sweep with a program that is there (an installed checkout's own, from any folder); else a ConfigError."""
    if sweep.is_installed or Path(sweep.program).is_file():
        return sweep
    own = PROJECT / PROGRAM
    if sweep.program != PROGRAM or not own.is_file():
        raise ConfigError(f"{sweep.path}: program: there is no file {sweep.program} here ({Path.cwd()})")
    return replace(sweep, program=str(own))


def _print_commands(sweep: Sweep, limit: int | None) -> int:
    done, arms = Done(), list[SweepArm]()
    for arm in itertools.islice(arms_of(sweep, done, None), limit):
        print(shlex.join(sweep.command_line(arm.parameters)))
        done.append((dict(arm.parameters), None))
        arms.append(arm)
    look_at_data(sweep, arms)  # last: the commands may be meant for another machine
    return 0


class LocalSweep:
    """The arms of a sweep on this machine: run side by side, kept, compared."""

    def __init__(self, sweep: Sweep, out: Path, logs: Path | None, at_once: int, limit: int | None) -> None:
        self.sweep, self.out, self.logs = sweep, out, logs
        self.done: Done = []
        self.started: list[SweepArm] = []
        arms = itertools.islice(arms_of(sweep, self.done, memory_of(sweep, out)), limit)
        planned = list(arms) if sweep.method == "grid" else []
        self._refuse_records_of_a_cpu([arm for arm in planned if self._finished(arm) is None])
        look_at_data(sweep, (arm for arm in planned if self._finished(arm) is None))
        self.arms = iter(planned) if planned else arms
        self.progress = SweepProgress(sweep.name, sweep.metric, len(planned) or limit, at_once, planned)
        self.record = SweepRecord(sweep.metric, sweep.goal, tuple(arm.folder(out).name for arm in planned))

    def run(self) -> int:
        """Run the arms that have not finished yet, and compare all; return the exit status."""
        failed, sent = 0, (self.out / COMPARISON / "wandb").exists()
        try:
            for arm, status in run_side_by_side(self._jobs(), self.progress.at_once, self.progress.tick):
                failed, sent = failed or status, False
                self._ended(arm, status)
        except KeyboardInterrupt:
            for arm in self.started:  # a ladder's ended rungs are final
                self._keep(arm)
            print("interrupted; the same command goes on where it stopped", file=sys.stderr)
            return 130
        finally:
            self.progress.close()
        if self.started:
            for folder in (self.out, *(() if self.logs is None else (self.logs,))):
                replace(self.record, over=True).write(folder)
        # A summary run for each comparison: where no arm has run, the last summary is still valid.
        if self._compare() and not sent:
            self._summary_run(self.started[0].resolved.run.wandb)
        return failed

    def _jobs(self) -> Iterator[Job[SweepArm]]:
        threads = max(1, (os.cpu_count() or 1) // self.progress.at_once)
        own = {"WANDB_RUN_GROUP": self.sweep.name, "OMP_NUM_THREADS": str(threads), **self.sweep.wandb}
        for arm in self.arms:
            if not self.started:
                if self.sweep.method != "grid" and self._finished(arm) is None:
                    look_at_data(self.sweep, [arm])  # not known before the search proposed it
                self.record.write(self.out)
            self.started.append(arm)
            if (finished := self._finished(arm)) is not None:
                print(f"already finished: {finished}")
                self._keep(arm)
                self.done.append((dict(arm.parameters), RunFolder(finished).final_value(self.sweep.metric)))
                self.progress.passed(arm)
            else:
                folder = arm.folder(self.out)
                self.progress.begins(arm, folder)
                words = [*self.sweep.command_line(arm.parameters), "--run_dir", str(folder), "--resume"]
                print(f"$ {shlex.join(words)}", flush=True)
                yield Job(arm, words, {name: os.environ.get(name, value) for name, value in own.items()})

    def _ended(self, arm: SweepArm, status: int) -> None:
        """Keep what an arm has left, and its value of the metric; a KeyboardInterrupt where it was interrupted."""
        self._keep(arm)
        score = None if status else RunFolder(arm.folder(self.out)).final_value(self.sweep.metric)
        self.done.append((dict(arm.parameters), score))
        self.progress.ends(arm, status, score)
        if status in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        if status:
            print(f"failed with status {status}: {dict(arm.parameters)}; the others go on", file=sys.stderr)

    def _refuse_records_of_a_cpu(self, arms: Sequence[SweepArm]) -> None:
        """Refuse to train on a GPU what is kept from a CPU: ``auto`` precision is another format there, another arm.

        Raises:
            ConfigError: there are records of an arm's label and seed in another number format than the arm's.
        """
        if self.logs is None:
            return
        for arm in arms:
            run, own = arm.resolved.run, arm.folder(self.logs)
            here = number_format(run.device, run.precision)
            for kept in self.logs.glob(f"{own.name.removesuffix(f'{arm.resolved.config_hash}-seed{run.seed}')}*"):
                summary, there = RunFolder(kept).summary(), RunFolder(kept).environment().get("number_format", here)
                if summary is not None and (summary.arm, summary.seed) == (run.arm, run.seed) and there != here:
                    raise ConfigError(
                        f"{self.logs} holds records of {run.arm}, seed {run.seed}, in {there}; on this machine it "
                        f"would be another arm, in {here}: put CUDA_VISIBLE_DEVICES= before the command for those of "
                        "a CPU, bind run.precision, or name another folder with --logs"
                    )

    def _keep(self, arm: SweepArm) -> None:
        """Copy an arm's records into the folder that keeps them, if there is one."""
        left, kept = arm.folder(self.out), None if self.logs is None else arm.folder(self.logs)
        if kept is not None and worth_keeping(left) and not RunFolder(kept).has_finished():
            keep_records(left, kept)

    def _finished(self, arm: SweepArm) -> Path | None:
        """The folder of an arm that has finished, among the runs or the kept records; ``None`` where there is none."""
        folders = (arm.folder(folder) for folder in (self.out, self.logs) if folder is not None)
        return next((folder for folder in folders if RunFolder(folder).has_finished()), None)

    def _compare(self) -> bool:
        """Compare the runs that have ended, print the table, and return whether there is a comparison."""
        from jestbench.compare.load import CompareError
        from jestbench.compare.report import compare
        from jestbench.compare.table import format_table

        sweep, out = self.sweep, self.out / COMPARISON
        folders = [self._finished(arm) or arm.folder(self.out) for arm in self.started]
        arms = {folder: summary for folder in folders if (summary := RunFolder(folder).summary()) is not None}
        if not arms:
            return False
        baseline = _baseline(list(arms.values()))
        lower_is_better = None if sweep.goal is None else sweep.goal == "minimize"
        try:
            comparison = compare(list(arms), sweep.metric, baseline, out, lower_is_better=lower_is_better)
        except CompareError as error:
            print(f"no comparison: {error}", file=sys.stderr)
            return False
        print(format_table(comparison))
        print(f"comparison: {out / 'index.html'}")
        return True

    def _summary_run(self, settings: WandB) -> None:
        """Log the comparison as one W&B run beside those of the arms, with an arm's W&B settings."""
        own = self.sweep.wandb
        settings = replace(
            settings,
            project=settings.project or os.environ.get("WANDB_PROJECT") or own.get("WANDB_PROJECT", ""),
            entity=settings.entity or os.environ.get("WANDB_ENTITY") or own.get("WANDB_ENTITY", ""),
            name="",
        )
        try:
            log_comparison(settings, self.out / COMPARISON, f"{self.sweep.name}-comparison", self.sweep.name)
        except ValueError as error:
            print(f"the comparison is not in W&B: {error}", file=sys.stderr)


def _baseline(arms: Sequence[Summary]) -> str:
    """The arm that the others are compared with: uniform, else one that has finished.

    Where several share the label, it is the file's first that has finished.
    """
    finished = [arm for arm in arms if arm.status == "finished"]
    label = "uniform" if any(arm.arm == "uniform" for arm in arms) else (finished or arms)[0].arm
    hashes = dict.fromkeys(arm.frontier_hash for arm in finished if arm.arm == label)
    return label if len(hashes) < 2 else f"{label}@{next(iter(hashes))}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command of ``tools/sweep.py``."""
    import argparse

    parser = argparse.ArgumentParser(
        prog=command_name("sweep"),
        description="Run a W&B sweep file on this machine without a server, and compare its arms.",
    )
    parser.add_argument("sweep", type=user_path, metavar="SWEEP.yaml")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, look at local data; run nothing")
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

    return command.guarded(work, "no arm was started: start the command again")
