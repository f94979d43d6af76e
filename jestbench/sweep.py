"""Runs a W&B sweep file on this machine without a server, arm after arm.

The file is an ordinary sweep file: it works unchanged with ``wandb sweep`` and ``wandb agent``, and the
command line of each arm is the one that the agent would run (plus the folder to run in). Grids are
walked here; ``random`` and ``bayes`` ask W&B's own search engine (the package ``sweeps``).
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jestbench import command, config
from jestbench.launch import read_summary
from jestbench.run import ConfigError, Resolved

METHODS = ("grid", "random", "bayes")
KEYS = (
    "program method metric parameters command name project entity description early_terminate run_cap controller"
).split()
DEFAULT_COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]
DEFAULT_COUNT = 10
"""Arms of a random or bayes sweep that says no ``run_cap`` and is given no ``--count``."""


@dataclass(frozen=True)
class Sweep:
    """A sweep file, checked.

    Attributes:
        path: the file.
        name: of the sweep; names the output folder and groups its runs in W&B.
        method: ``grid``, ``random`` or ``bayes``.
        metric: name of the metric that the sweep is about.
        parameters: as in the file.
        command: as in the file, macros not yet expanded.
        program: the script.
        run_cap: most arms to run, or ``None``.
        raw: the whole file, for the search engine.
    """

    path: Path
    name: str
    method: str
    metric: str
    parameters: Mapping[str, Mapping[str, Any]]
    command: Sequence[str]
    program: str
    run_cap: int | None
    raw: Mapping[str, Any] = field(repr=False)

    def command_line(self, arm: Mapping[str, Any]) -> list[str]:
        """The command line of an arm, as the W&B agent makes it."""
        plain = [f"{key}={value}" for key, value in arm.items()]
        macros = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": [sys.executable],
            "${program}": [self.program],
            "${args}": [f"--{word}" for word in plain],
            "${args_no_hyphens}": plain,
        }
        words: list[str] = []
        for word in self.command:
            words += macros[word] if word in macros else [_expand(word, self.path)]
        return words

    def arguments(self, arm: Mapping[str, Any]) -> list[str]:
        """What of the command line follows the program."""
        words = self.command_line(arm)
        return words[words.index(self.program) + 1 :]


def _expand(word: str, path: Path) -> str:
    unknown = re.search(r"\$\{(?!envvar:)\w+\}", word)
    if unknown:
        raise ConfigError(f"{path}: command: the macro {unknown[0]} is not known here; use ${{args_no_hyphens}}")
    return re.sub(r"\$\{envvar:(\w+)\}", lambda matched: os.environ.get(matched[1], ""), word)


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file.

    Raises:
        ConfigError: it cannot be read, or a key, method, parameter or metric is wrong.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a sweep file is a mapping with program, method, metric, parameters, command")
    for key in raw:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            raise ConfigError(f"{path}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    method = raw.get("method")
    if method not in METHODS:
        raise ConfigError(f"{path}: method must be one of {', '.join(METHODS)}, got {method!r}")
    metric = raw.get("metric")
    if not isinstance(metric, dict) or "name" not in metric:
        raise ConfigError(f"{path}: metric.name is required: it is what the comparison is about")
    _check_metric(path, str(metric["name"]))
    return Sweep(
        path=path,
        name=str(raw.get("name") or path.stem),
        method=method,
        metric=str(metric["name"]),
        parameters=_parameters(path, raw.get("parameters")),
        command=[str(word) for word in raw.get("command", DEFAULT_COMMAND)],
        program=str(raw.get("program", "tools/run.py")),
        run_cap=raw.get("run_cap"),
        raw=raw,
    )


def _check_metric(path: Path, name: str) -> None:
    from jestbench.evals.metrics import NAMES

    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(NAMES)}"
        raise ConfigError(f"{path}: no run logs the metric {name!r}; {hint}")


def _parameters(path: Path, found: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path}: parameters is empty: name at least one, with values")
    for name, spec in found.items():
        if not isinstance(spec, dict) or not spec:
            raise ConfigError(f"{path}: parameters.{name} needs value, values, or a distribution")
        if "parameters" in spec:
            raise ConfigError(f"{path}: parameters.{name} is nested; write {name}.<parameter> as one flat name")
        if "values" in spec and not (isinstance(spec["values"], list) and spec["values"]):
            raise ConfigError(f"{path}: parameters.{name}.values is empty: the grid would hold no arm")
    return dict(found)


def grid(parameters: Mapping[str, Mapping[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    """All combinations, the last parameter fastest.

    Raises:
        ConfigError: a parameter of a grid is a distribution.
    """
    axes = []
    for name, spec in parameters.items():
        if "values" not in spec and "value" not in spec:
            raise ConfigError(f"{path}: parameters.{name}: a grid needs value or values")
        axes.append(spec["values"] if "values" in spec else [spec["value"]])
    for combination in itertools.product(*axes):
        yield dict(zip(parameters, combination, strict=True))


def searched(sweep: Sweep, done: list[tuple[dict[str, Any], float | None]]) -> Iterator[dict[str, Any]]:
    """Arms proposed by W&B's search engine, which learns from those in ``done``.

    Raises:
        ConfigError: the engine is not installed, or refuses the file.
    """
    try:
        import sweeps
    except ImportError as error:
        raise ConfigError(
            f"{sweep.path}: method {sweep.method} needs W&B's search engine: pip install 'jestbench[search]' "
            "(it asks for numpy < 2, so for Python < 3.13); a grid needs nothing"
        ) from error
    engine = {key: sweep.raw[key] for key in ("method", "metric", "parameters") if key in sweep.raw}
    while True:
        runs = [
            sweeps.SweepRun(
                config={key: {"value": value} for key, value in arm.items()},
                state=sweeps.RunState.finished if score is not None else sweeps.RunState.failed,
                summary_metrics={} if score is None else {sweep.metric: score},
            )
            for arm, score in done
        ]
        try:
            proposed = sweeps.next_run(engine, runs)
        except Exception as error:
            raise ConfigError(f"{sweep.path}: {error}") from error
        if proposed is None:
            return
        yield {key: spec["value"] for key, spec in proposed.config.items()}


@dataclass(frozen=True)
class Arm:
    """An arm of a sweep, resolved."""

    parameters: Mapping[str, Any]
    resolved: Resolved

    @property
    def key(self) -> tuple[str, int]:
        """What makes it the same as another: effective configuration and seed."""
        return self.resolved.config_hash, self.resolved.run.seed

    def folder(self, out: Path) -> Path:
        """Its run folder."""
        label = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.resolved.run.arm) or self.resolved.policy_name
        return out / f"{label}-{self.resolved.config_hash}-seed{self.resolved.run.seed}"


def resolve_arm(sweep: Sweep, parameters: Mapping[str, Any]) -> Arm:
    """What an arm's command line stands for.

    Raises:
        ConfigError: naming the arm.
    """
    try:
        arguments = command.parse(sweep.arguments(parameters))
        resolved = config.resolve(arguments.gin_file, arguments.bindings, arguments.allow_unused)
    except ConfigError as error:
        raise ConfigError(f"{sweep.path}: arm {dict(parameters)}: {error}") from error
    return Arm(parameters, resolved)


def _repeats(arm: Arm, seen: dict[tuple[str, int], Arm]) -> bool:
    if arm.key in seen:
        print(f"passed over: {dict(arm.parameters)} repeats {dict(seen[arm.key].parameters)}")
        return True
    seen[arm.key] = arm
    return False


def run_arm(sweep: Sweep, arm: Arm, out: Path) -> int:
    """Run one arm in a process of its own; one that has finished is not run again.

    Returns:
        The exit status.
    """
    folder = arm.folder(out)
    if (read_summary(folder) or {}).get("status") == "finished":
        print(f"already finished: {folder}")
        return 0
    words = [*sweep.command_line(arm.parameters), "--run_dir", str(folder), "--resume"]
    print(f"$ {shlex.join(words)}", flush=True)
    environment = {"WANDB_RUN_GROUP": sweep.name, **os.environ}
    return subprocess.run(words, env=environment, check=False).returncode


def _arms(sweep: Sweep, done: list[tuple[dict[str, Any], float | None]]) -> Iterator[Arm]:
    seen: dict[tuple[str, int], Arm] = {}
    if sweep.method == "grid":
        # All arms are resolved before the first one starts: a mistake in the last one shows at once.
        arms = [resolve_arm(sweep, parameters) for parameters in grid(sweep.parameters, sweep.path)]
        yield from (arm for arm in arms if not _repeats(arm, seen))
        return
    for parameters in searched(sweep, done):
        arm = resolve_arm(sweep, parameters)
        if _repeats(arm, seen):
            done.append((parameters, None))
        else:
            yield arm


def run_sweep(sweep: Sweep, out: Path, count: int | None, dry_run: bool) -> int:
    """Run all arms and compare them.

    Args:
        sweep: the checked file.
        out: folder of the runs and the comparison; what has finished there is not run again.
        count: most arms, or ``None``.
        dry_run: print the commands only.

    Returns:
        0, or the exit status of the first arm that failed; 130 when interrupted.
    """
    done: list[tuple[dict[str, Any], float | None]] = []
    limit = count or sweep.run_cap or (None if sweep.method == "grid" else DEFAULT_COUNT)
    folders: list[Path] = []
    failed: list[tuple[Arm, int]] = []
    for arm in itertools.islice(_arms(sweep, done), limit):
        if dry_run:
            print(shlex.join(sweep.command_line(arm.parameters)))
            done.append((dict(arm.parameters), None))
            continue
        status = run_arm(sweep, arm, out)
        if status in (130, -2):
            print("interrupted; the same command goes on where it stopped", file=sys.stderr)
            return 130
        summary = read_summary(arm.folder(out)) or {}
        score = summary.get("metrics", {}).get(sweep.metric) if status == 0 else None
        done.append((dict(arm.parameters), score))
        folders.append(arm.folder(out))
        if status:
            failed.append((arm, status))
            print(f"failed with status {status}: {dict(arm.parameters)}; the others go on", file=sys.stderr)
    if not dry_run:
        _compare(sweep, [folder for folder in folders if (folder / "metrics.jsonl").exists()], out)
    return failed[0][1] if failed else 0


def _compare(sweep: Sweep, folders: Sequence[Path], out: Path) -> None:
    from jestbench.compare import compare, format_table

    arms = [summary["arm"] for folder in folders if (summary := read_summary(folder)) is not None]
    if not arms:
        return
    baseline = "uniform" if "uniform" in arms else arms[0]
    comparison = compare(folders, sweep.metric, baseline, out / "comparison")
    print(format_table(comparison))
    print(f"comparison: {out / 'comparison' / 'index.html'}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command of ``tools/sweep.py``."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="sweep.py", description="Run a W&B sweep file on this machine without a server, and compare its arms."
    )
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml")
    parser.add_argument("--dry_run", action="store_true", help="print the commands; run nothing")
    parser.add_argument("--count", type=int, help="most arms to run")
    parser.add_argument("--out", type=Path, help="default: runs/<name of the sweep>")
    arguments = parser.parse_args(argv)

    def work() -> int:
        path = config.locate(str(arguments.sweep))
        if path is None:
            raise ConfigError(f"there is no file {arguments.sweep}")
        sweep = read_sweep(path)
        return run_sweep(sweep, arguments.out or Path("runs") / sweep.name, arguments.count, arguments.dry_run)

    return command.guarded(work)
