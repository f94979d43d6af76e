"""Reads a W&B sweep file, to run it on this machine without a server.

The file is an ordinary sweep file: it works unchanged with ``wandb sweep`` and ``wandb agent``, and the
command line of each arm is the one that the agent would run (plus the folder to run in).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jestbench.config.registry import configurables, fields_of
from jestbench.config.run import ConfigError
from jestbench.disk import IS_CHECKOUT, nearest, nearest_or_all
from jestbench.sweep.distributions import distribution

HINT = "; did you mean {!r}?"
METHODS = ("grid", "random", "bayes")
KEYS = (
    "program method metric parameters command name project entity description early_terminate run_cap controller"
).split()
PROGRAM, INSTALLED = "tools/run.py", ("-m", "jestbench", "run")
DEFAULT_COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]
METRIC_KEYS = ("name", "goal", "target")
GOALS = ("maximize", "minimize")
SPEC_KEYS = "value values distribution probabilities min max mu sigma a b q parameters".split()
ARGS = ("${args}", "${args_no_hyphens}")
MACROS = ("${env}", "${interpreter}", "${program}", *ARGS)


@dataclass(frozen=True)
class Sweep:
    """A sweep file, checked.

    Attributes:
        path: the file.
        name: name of the sweep, of its output folder and of the group of its runs in W&B.
        method: ``grid``, ``random`` or ``bayes``.
        metric: name of the metric to optimise or compare.
        goal: ``maximize`` or ``minimize``; ``None`` where the file has no goal.
        parameters: as in the file.
        command: as in the file, macros not yet expanded.
        program: the script.
        run_cap: largest number of arms to run, or ``None``.
        raw: the whole file.
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
        """The file's W&B project and entity, as W&B's environment variables."""
        names = {"project": "WANDB_PROJECT", "entity": "WANDB_ENTITY"}
        return {variable: str(self.raw[key]) for key, variable in names.items() if self.raw.get(key)}

    @property
    def is_installed(self) -> bool:
        """Whether the program is this package's own command, which an installed package starts without a script."""
        return self.program == PROGRAM and not Path(PROGRAM).is_file() and not IS_CHECKOUT

    def command_line(self, arm: Mapping[str, Any]) -> list[str]:
        """The command line of an arm, as the W&B agent makes it."""
        plain = [f"{key}={value}" for key, value in arm.items()]
        macros = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": [sys.executable],
            "${program}": [*INSTALLED] if self.is_installed else [self.program],
            "${args}": [f"--{word}" for word in plain],
            "${args_no_hyphens}": plain,
        }
        words: list[str] = []
        for word in self.command:
            words += macros[word] if word in macros else [_expand(word, self.path)]
        return words

    def arguments(self, arm: Mapping[str, Any]) -> list[str]:
        """The part of an arm's command line after the program; a ConfigError where it never runs that."""
        words = self.command_line(arm)
        last = INSTALLED[-1] if self.is_installed else self.program
        if last not in words:
            raise ConfigError(f"{self.path}: command never runs the program: it needs ${{program}}")
        return words[words.index(last) + 1 :]


def _expand(word: str, path: Path) -> str:
    unknown = re.search(r"\$\{(?!envvar:)\w+\}", word)
    if unknown:
        raise ConfigError(f"{path}: command: the macro {unknown[0]} is not known here; use ${{args_no_hyphens}}")
    # Where a variable is not set, the agent substitutes its name.
    return re.sub(r"\$\{envvar:(\w+)\}", lambda matched: os.environ.get(matched[1], matched[1]), word)


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file.

    Raises:
        ConfigError: the file cannot be read, or a key, method, parameter or metric is wrong.
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
        raise ConfigError(
            f"{path}: method must be one of {', '.join(METHODS)}, got {method!r}{nearest(method, METHODS, HINT)}"
        )
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
        parameters=_parameters(path, raw.get("parameters"), method),
        command=[str(word) for word in command_words],
        program=str(raw.get("program", PROGRAM)),
        run_cap=run_cap,
        raw=raw,
    )


def _known(path: Path, owner: str, found: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in found:
        if key not in known:
            raise ConfigError(f"{path}: {owner}unknown key {key!r}; {nearest_or_all(str(key), known)}")


def _metric(path: Path, found: Any, method: str) -> tuple[str, str | None]:
    """The metric's name and goal. Whether runs log the metric is checked later, by ``check_metric``."""
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise ConfigError(f"{path}: metric.name is required: it is what the comparison is about")
    _known(path, "metric: ", found, METRIC_KEYS)
    name, goal = found["name"], found.get("goal")
    if goal not in (None, *GOALS):
        raise ConfigError(f"{path}: metric.goal must be {' or '.join(GOALS)}, got {goal!r}")
    if goal is None and method == "bayes":
        raise ConfigError(f"{path}: metric.goal is required: a bayes search minimizes where the file does not say")
    return name, goal


def _parameters(path: Path, found: Any, method: str) -> dict[str, dict[str, Any]]:
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
            known = [f"{owner}.{field}" for owner, cls in configurables().items() for field in fields_of(cls)]
            near = nearest(name, ["gin_file", *known], HINT)
            raise ConfigError(f"{path}: parameters.{name}: no parameter of a run has this name{near}")
        if method != "grid":
            distribution(f"{path}: parameters.{name}", spec)
    return dict(found)
