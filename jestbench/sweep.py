"""Runs a W&B sweep file on this machine without a server.

The file is an ordinary sweep file: it works unchanged with ``wandb sweep`` and ``wandb agent``, and the
command line of each arm is the one that the agent would run (plus the folder to run in). Grids are
walked here; ``random`` and ``bayes`` ask W&B's own search engine (the package ``sweeps``).
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from jestbench import command, config
from jestbench.evals.metrics import embedding_measures
from jestbench.launch import logged_names, read_summary
from jestbench.metrics import WandB, log_comparison
from jestbench.processes import Job, run_side_by_side
from jestbench.run import ConfigError, Resolved

METHODS = ("grid", "random", "bayes")
KEYS = (
    "program method metric parameters command name project entity description early_terminate run_cap controller"
).split()
DEFAULT_COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]
METRIC_KEYS = ("name", "goal", "target")
GOALS = ("maximize", "minimize")
SPEC_KEYS = "value values distribution probabilities min max mu sigma q parameters".split()
ARGS = ("${args}", "${args_no_hyphens}")
MACROS = ("${env}", "${interpreter}", "${program}", *ARGS)
CHOOSES_A_POLICY = ("gin_file", "run.policy")
"""Parameters that another policy, and with it other ``select/…`` metrics, comes in by."""
MOST_REPEATS = 20
COMPARISON = "comparison"
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
        goal: ``maximize`` or ``minimize``; ``None`` where the file does not say.
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
    goal: str | None
    parameters: Mapping[str, Mapping[str, Any]]
    command: Sequence[str]
    program: str
    run_cap: int | None
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def wandb(self) -> dict[str, str]:
        """Where the file wants its runs in W&B, as W&B's own variables."""
        names = {"project": "WANDB_PROJECT", "entity": "WANDB_ENTITY"}
        return {variable: str(self.raw[key]) for key, variable in names.items() if self.raw.get(key)}

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
        """What of the command line follows the program.

        Raises:
            ConfigError: the command does not name it.
        """
        words = self.command_line(arm)
        if self.program not in words:
            raise ConfigError(f"{self.path}: command never runs the program: it needs ${{program}}")
        return words[words.index(self.program) + 1 :]


def _expand(word: str, path: Path) -> str:
    unknown = re.search(r"\$\{(?!envvar:)\w+\}", word)
    if unknown:
        raise ConfigError(f"{path}: command: the macro {unknown[0]} is not known here; use ${{args_no_hyphens}}")
    # Where it is not set, the agent leaves its name.
    return re.sub(r"\$\{envvar:(\w+)\}", lambda matched: os.environ.get(matched[1], matched[1]), word)


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
    _known(path, "", raw, KEYS)
    method = raw.get("method")
    if method not in METHODS:
        raise ConfigError(f"{path}: method must be one of {', '.join(METHODS)}, got {method!r}{_near(method, METHODS)}")
    metric, goal = _metric(path, raw.get("metric"), method)
    if "early_terminate" in raw:
        raise ConfigError(
            f"{path}: early_terminate: W&B's hyperband counts logged rows, not FLOPs, and a stopped arm has no end of "
            "its schedule to compare: remove it; run.budget is what an arm may spend"
        )
    command_words, run_cap = raw.get("command", DEFAULT_COMMAND), raw.get("run_cap")
    if not isinstance(command_words, list):
        raise ConfigError(f"{path}: command must be a list of words, got {command_words!r}")
    for word in command_words:
        if word not in MACROS:
            _expand(str(word), path)
    if not any(word in ARGS for word in command_words):
        raise ConfigError(f"{path}: command never passes the parameters: it needs ${{args_no_hyphens}}")
    if run_cap is not None and not (type(run_cap) is int and run_cap >= 1):
        raise ConfigError(f"{path}: run_cap must be a whole number, at least 1, got {run_cap!r}")
    return Sweep(
        path=path,
        name=str(raw.get("name") or path.stem),
        method=method,
        metric=metric,
        goal=goal,
        parameters=_parameters(path, raw.get("parameters")),
        command=[str(word) for word in command_words],
        program=str(raw.get("program", "tools/run.py")),
        run_cap=run_cap,
        raw=raw,
    )


def _near(name: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _known(path: Path, owner: str, found: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in found:
        if key not in known:
            near = _near(key, known) or f"; there are {', '.join(known)}"
            raise ConfigError(f"{path}: {owner}unknown key {key!r}{near}")


def _metric(path: Path, found: Any, method: str) -> tuple[str, str | None]:
    """The metric's name and goal. Whether a run logs it is asked of a run: ``check_metric``."""
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise ConfigError(f"{path}: metric.name is required: it is what the comparison is about")
    _known(path, "metric: ", found, METRIC_KEYS)
    name, goal = found["name"], found.get("goal")
    if goal not in (None, *GOALS):
        raise ConfigError(f"{path}: metric.goal must be {' or '.join(GOALS)}, got {goal!r}")
    if goal is None and method == "bayes":
        raise ConfigError(f"{path}: metric.goal is required: a bayes search minimizes where the file does not say")
    return name, goal


def _no_such_metric(path: Path, name: str, known: Iterable[str]) -> ConfigError:
    known = sorted(known)
    return ConfigError(
        f"{path}: no run logs the metric {name!r}{_near(name, known) or '; there are ' + ', '.join(known)}"
    )


def check_metric(sweep: Sweep) -> None:
    """Whether a run of this sweep logs the metric that it is about.

    What a run logs depends on its policy and its data, so arms with each of the policies are asked: each
    takes one step on a few pairs. What every run evaluates needs no asking.

    Raises:
        ConfigError: none logs it, or none can be built.
    """
    if sweep.metric in embedding_measures(0, 0):
        return
    names: set[str] = set()
    refused: ConfigError | None = None
    for parameters in _one_of_each_policy(sweep):
        try:
            names |= logged_names(resolve_arm(sweep, parameters).resolved)
        except ConfigError as error:  # an arm that cannot be fails alone, as it would when run
            refused = refused or error
        if sweep.metric in names:
            return
    if not names and refused is not None:
        raise refused
    raise _no_such_metric(sweep.path, sweep.metric, names)


def _one_of_each_policy(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Parameters of one arm with each of the policies, the others at their first or least value."""
    axes = []
    for name, spec in sweep.parameters.items():
        values = spec.get("values", [next((spec[key] for key in ("value", "min", "mu") if key in spec), None)])
        axes.append(values if name in CHOOSES_A_POLICY else values[:1])
    for combination in itertools.product(*axes):
        yield dict(zip(sweep.parameters, combination, strict=True))


def _parameters(path: Path, found: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path}: parameters is empty: name at least one, with values")
    for name, spec in found.items():
        if not isinstance(spec, dict) or not spec:
            raise ConfigError(f"{path}: parameters.{name} needs value, values, or a distribution")
        if "parameters" in spec:
            inner = spec["parameters"] if isinstance(spec["parameters"], dict) else {"<parameter>": None}
            flat = ", ".join(f"{name}.{key}" for key in inner)
            raise ConfigError(
                f"{path}: parameters.{name} is nested, which W&B's agent would pass as one word {name}={{…}} "
                f"(wandb issue 2005): write flat names: {flat}"
            )
        _known(path, f"parameters.{name}: ", spec, SPEC_KEYS)
        if "value" in spec and "values" in spec:
            raise ConfigError(f"{path}: parameters.{name} has both value and values")
        if "values" in spec and not isinstance(spec["values"], list):
            raise ConfigError(f"{path}: parameters.{name}.values must be a list, got {spec['values']!r}")
        if "values" in spec and not spec["values"]:
            raise ConfigError(f"{path}: parameters.{name}.values is empty: the grid would hold no arm")
        if "." not in str(name) and not str(name).isupper() and name != "gin_file":
            known = [f"{owner}.{field}" for owner, fields in config.parameters().items() for field in fields]
            near = _near(name, ["gin_file", *known])
            raise ConfigError(f"{path}: parameters.{name}: no parameter of a run has this name{near}")
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
        # Plain numbers: the engine's are numpy's.
        values = {key: spec["value"] for key, spec in proposed.config.items()}
        yield {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}


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
    except SystemExit as stop:  # argparse has said what it does not understand
        raise ConfigError(f"{sweep.path}: arm {dict(parameters)}: run.py does not take these arguments") from stop
    return Arm(parameters, resolved)


def _repeats(arm: Arm, seen: dict[tuple[str, int], Arm]) -> bool:
    if arm.key in seen:
        print(f"passed over: {dict(arm.parameters)} repeats {dict(seen[arm.key].parameters)}")
        return True
    seen[arm.key] = arm
    return False


def _job(sweep: Sweep, arm: Arm, out: Path, threads: int) -> Job[Arm]:
    words = [*sweep.command_line(arm.parameters), "--run_dir", str(arm.folder(out)), "--resume"]
    print(f"$ {shlex.join(words)}", flush=True)
    environment = {"WANDB_RUN_GROUP": sweep.name, "OMP_NUM_THREADS": str(threads), **sweep.wandb}
    return Job(arm, words, {name: os.environ.get(name, value) for name, value in environment.items()})


def places(sweep: Sweep, asked: int | None) -> int:
    """How many arms run at once: as asked, else one a core up to 4; one where arms share a GPU.

    A small model keeps one core busy better than it keeps two, and a search that learns from each arm
    runs one after the other.
    """
    if asked is not None:
        return asked
    if sweep.method == "bayes" or torch.cuda.is_available():
        return 1
    return max(1, min(4, os.cpu_count() or 1))


def _arms(sweep: Sweep, done: list[tuple[dict[str, Any], float | None]], memory: Path | None) -> Iterator[Arm]:
    seen: dict[tuple[str, int], Arm] = {}
    if sweep.method == "grid":
        # All arms are resolved before the first one starts: a mistake in the last one shows at once.
        arms = [resolve_arm(sweep, parameters) for parameters in grid(sweep.parameters, sweep.path)]
        yield from (arm for arm in arms if not _repeats(arm, seen))
        return
    in_a_row = 0
    for parameters in _proposals(sweep, done, memory):
        try:
            arm = resolve_arm(sweep, parameters)
        except ConfigError as error:
            if not seen:
                raise
            print(f"passed over: {error}", file=sys.stderr)
        else:
            if not _repeats(arm, seen):
                in_a_row = 0
                yield arm
                continue
        done.append((parameters, None))
        in_a_row += 1
        if in_a_row == MOST_REPEATS:
            print(f"the search has proposed {in_a_row} arms in a row that cannot be or repeat others: it ends here")
            return


def _proposals(
    sweep: Sweep, done: list[tuple[dict[str, Any], float | None]], memory: Path | None
) -> Iterator[dict[str, Any]]:
    """Arms that an earlier run of this sweep proposed, so that it goes on where it stopped, then new ones."""
    if memory is not None and memory.exists():
        yield from (json.loads(line) for line in memory.read_text(encoding="utf-8").splitlines())
    for parameters in searched(sweep, done):
        if memory is not None:
            memory.parent.mkdir(parents=True, exist_ok=True)
            with memory.open("a", encoding="utf-8") as file:
                file.write(json.dumps(parameters) + "\n")
        yield parameters


def _memory(sweep: Sweep, out: Path) -> Path:
    search = json.dumps([sweep.method, sweep.metric, sweep.parameters], sort_keys=True, default=str)
    return out / f"proposals-{hashlib.blake2b(search.encode(), digest_size=4).hexdigest()}.jsonl"


def run_sweep(sweep: Sweep, out: Path, count: int | None, dry_run: bool, jobs: int | None = None) -> int:
    """Run all arms and compare them.

    Args:
        sweep: the checked file.
        out: folder of the runs and the comparison; what has finished there is not run again.
        count: most arms, or ``None``.
        dry_run: print the commands only.
        jobs: arms at once; ``None`` for ``places``.

    Returns:
        0, or the exit status of the first arm that failed; 130 when interrupted.
    """
    done: list[tuple[dict[str, Any], float | None]] = []
    for name, value in (("count", count), ("jobs", jobs)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    if not dry_run and not Path(sweep.program).is_file():
        raise ConfigError(f"{sweep.path}: program: there is no file {sweep.program} here ({Path.cwd()})")
    check_metric(sweep)
    limit = count or sweep.run_cap or (None if sweep.method == "grid" else DEFAULT_COUNT)
    if dry_run:
        for arm in itertools.islice(_arms(sweep, done, None), limit):
            print(shlex.join(sweep.command_line(arm.parameters)))
            done.append((dict(arm.parameters), None))
        return 0
    arms = itertools.islice(_arms(sweep, done, _memory(sweep, out)), limit)
    started: list[Arm] = []
    failed: dict[str, int] = {}
    sent = (out / COMPARISON / "wandb").exists()
    try:
        for arm, status in _run(sweep, arms, out, places(sweep, jobs), started, done):
            sent = False
            done.append((dict(arm.parameters), final_value(arm.folder(out), sweep.metric) if not status else None))
            if status in (130, -signal.SIGINT):
                raise KeyboardInterrupt
            if status:
                failed[str(dict(arm.parameters))] = status
                print(f"failed with status {status}: {dict(arm.parameters)}; the others go on", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    folders = [arm.folder(out) for arm in started]
    # A summary run for each comparison: where nothing has run, the last one still stands.
    if _compare(sweep, [folder for folder in folders if read_summary(folder) is not None], out) and not sent:
        _summary_run(sweep, started[0].resolved.run.wandb, out)
    return next(iter(failed.values()), 0)


def final_value(run_dir: Path, metric: str) -> float | None:
    """The last value that a run logged of a metric; ``None`` where it never did."""
    try:
        rows = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = (json.loads(row).get(metric) for row in reversed(rows))
    return next((float(value) for value in found if value is not None), None)


def _run(
    sweep: Sweep,
    arms: Iterator[Arm],
    out: Path,
    at_once: int,
    started: list[Arm],
    done: list[tuple[dict[str, Any], float | None]],
) -> Iterator[tuple[Arm, int]]:
    """Run the arms that have not finished yet; note all of them in ``started``."""
    threads = max(1, (os.cpu_count() or 1) // at_once)

    def jobs() -> Iterator[Job[Arm]]:
        for arm in arms:
            started.append(arm)
            summary = read_summary(arm.folder(out)) or {}
            if summary.get("status") == "finished":
                print(f"already finished: {arm.folder(out)}")
                done.append((dict(arm.parameters), final_value(arm.folder(out), sweep.metric)))
            else:
                yield _job(sweep, arm, out, threads)

    yield from run_side_by_side(jobs(), at_once)


def _compare(sweep: Sweep, folders: Sequence[Path], out: Path) -> bool:
    """Compare, say it, and whether there is a comparison."""
    from jestbench.compare import CompareError, compare, format_table

    arms = [summary["arm"] for folder in folders if (summary := read_summary(folder)) is not None]
    if not arms:
        return False
    baseline = "uniform" if "uniform" in arms else arms[0]
    lower_is_better = None if sweep.goal is None else sweep.goal == "minimize"
    try:
        comparison = compare(folders, sweep.metric, baseline, out / COMPARISON, lower_is_better=lower_is_better)
    except CompareError as error:
        print(f"no comparison: {error}", file=sys.stderr)
        return False
    print(format_table(comparison))
    print(f"comparison: {out / COMPARISON / 'index.html'}")
    return True


def _summary_run(sweep: Sweep, settings: WandB, out: Path) -> None:
    """The comparison as one W&B run beside those of the arms; an arm's own W&B settings hold for it too."""
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
        prog="sweep.py", description="Run a W&B sweep file on this machine without a server, and compare its arms."
    )
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml")
    parser.add_argument("--dry_run", action="store_true", help="print the commands; run nothing")
    parser.add_argument("--count", type=int, help="most arms to run")
    parser.add_argument("--jobs", type=int, help="arms at once; default: one a core up to 4, one with a GPU")
    parser.add_argument("--out", type=Path, help="default: runs/<name of the sweep>")
    arguments = parser.parse_args(argv)

    def work() -> int:
        path = config.locate(str(arguments.sweep))
        if path is None:
            raise ConfigError(f"there is no file {arguments.sweep}")
        sweep = read_sweep(path)
        out = arguments.out or Path("runs") / sweep.name
        return run_sweep(sweep, out, arguments.count, arguments.dry_run, arguments.jobs)

    return command.guarded(work)
