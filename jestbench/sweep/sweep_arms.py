"""The arms of a sweep file: each combination of its parameters, resolved, without repeats."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jestbench.config import resolve
from jestbench.config.resolved import Resolved
from jestbench.config.run import ConfigError
from jestbench.data.sources.first_pairs import look_at
from jestbench.data.splits import names_in
from jestbench.disk import DataError, nearest_or_all
from jestbench.evals.measure import embedding_measures
from jestbench.launch import command
from jestbench.launch.rehearse import logged_names
from jestbench.launch.stands import of_run
from jestbench.runs.open_folder import recorded
from jestbench.sweep.distributions import distribution
from jestbench.sweep.proposals import Done, proposals
from jestbench.sweep.sweep_file import Sweep

CHOOSES_A_POLICY = ("gin_file", "run.policy")
"""Parameters that can change the policy, and with it the ``select/…`` metrics."""
MOST_REPEATS = 20


def check_metric(sweep: Sweep) -> None:
    """Check that some run of this sweep logs the sweep's metric.

    The metrics of a run depend on its policy and its data, so one arm with each policy is rehearsed for one step on
    a few pairs. Metrics that every run evaluates need no check.

    Raises:
        ConfigError: no arm logs the metric, or no arm can be built.
    """
    if sweep.metric in embedding_measures((1,)):
        return
    names: set[str] = set()
    refused: ConfigError | None = None
    for parameters in _one_of_each_policy(sweep):
        try:
            names |= logged_names(resolve_arm(sweep, parameters).resolved)
        except ConfigError as error:  # an arm that cannot be built fails alone, as when the sweep runs it
            refused = refused or error
        if sweep.metric in names:
            return
    if not names and refused is not None:
        raise refused
    raise ConfigError(f"{sweep.path}: no run logs the metric {sweep.metric!r}; {nearest_or_all(sweep.metric, names)}")


def _one_of_each_policy(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Parameters of one arm with each policy, all other parameters at their first value or median."""
    axes = []
    for name, spec in sweep.parameters.items():
        values = spec.get("values") or [distribution(f"{sweep.path}: parameters.{name}", spec).value(0.5)]
        axes.append(values if name in CHOOSES_A_POLICY else values[:1])
    for combination in itertools.product(*axes):
        yield dict(zip(sweep.parameters, combination, strict=True))


def grid(parameters: Mapping[str, Mapping[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    """Yield all combinations of values, the last parameter varying fastest; a distribution is a ConfigError."""
    axes = []
    for name, spec in parameters.items():
        if "values" not in spec and "value" not in spec:
            raise ConfigError(f"{path}: parameters.{name}: a grid needs value or values")
        axes.append(spec["values"] if "values" in spec else [spec["value"]])
    for combination in itertools.product(*axes):
        yield dict(zip(parameters, combination, strict=True))


@dataclass(frozen=True)
class SweepArm:
    """An arm of a sweep, resolved."""

    parameters: Mapping[str, Any]
    resolved: Resolved

    @property
    def key(self) -> tuple[str, int]:
        """Effective configuration and seed; arms with equal keys are repeats."""
        return self.resolved.config_hash, self.resolved.run.seed

    def folder(self, out: Path) -> Path:
        """Its run folder."""
        label = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.resolved.run.arm) or self.resolved.policy_name
        return out / f"{label}-{self.resolved.config_hash}-seed{self.resolved.run.seed}"


def resolve_arm(sweep: Sweep, parameters: Mapping[str, Any]) -> SweepArm:
    """Resolve the command line of an arm.

    Raises:
        ConfigError: the command line is wrong; the message names the arm.
    """
    try:
        arguments = command.parse(sweep.arguments(parameters))
        resolved = resolve.resolve(arguments.gin_file, arguments.bindings, arguments.allow_unused, recorded=recorded)
    except ConfigError as error:
        raise ConfigError(f"{sweep.path}: arm {dict(parameters)}: {error}") from error
    except SystemExit as stop:  # argparse has printed the error
        raise ConfigError(f"{sweep.path}: arm {dict(parameters)}: run.py does not take these arguments") from stop
    return SweepArm(parameters, resolved)


def look_at_data(sweep: Sweep, arms: Iterable[SweepArm]) -> None:
    """Read the first pairs of the local data that arms, and the runs that these stand on, are bound to.

    Raises:
        DataError: data cannot be read, or a split is not given; the message names the arm.
    """
    seen = list[tuple[Any, frozenset[str]]]()
    for arm in arms:
        runs = [arm.resolved]
        for one in runs:  # grows by the runs that each stands on
            runs += one.below
            data, splits = one.run.data, names_in(one.run.split) | names_in(one.run.evaluate.split)
            if (data, splits) not in seen:
                seen.append((data, splits))
                try:
                    with nullcontext() if one is arm.resolved else of_run(one):
                        look_at(data, splits)
                except DataError as error:
                    raise DataError(f"{sweep.path}: arm {dict(arm.parameters)}: {error}") from error


def _repeats(arm: SweepArm, seen: dict[tuple[str, int], SweepArm]) -> bool:
    if arm.key in seen:
        print(f"passed over: {dict(arm.parameters)} repeats {dict(seen[arm.key].parameters)}")
        return True
    seen[arm.key] = arm
    return False


def arms_of(sweep: Sweep, done: Done, memory: Path | None) -> Iterator[SweepArm]:
    """Yield the arms of a sweep, in order, without those that repeat an earlier one."""
    seen: dict[tuple[str, int], SweepArm] = {}
    if sweep.method == "grid":
        # All arms are resolved before the first one starts: a mistake in the last one shows at once.
        arms = [resolve_arm(sweep, parameters) for parameters in grid(sweep.parameters, sweep.path)]
        yield from (arm for arm in arms if not _repeats(arm, seen))
        return
    in_a_row = 0
    for parameters in proposals(sweep, done, memory):
        try:
            arm = resolve_arm(sweep, parameters)
        except ConfigError as error:
            if not seen:
                raise
            print(f"passed over: {error}", file=sys.stderr)
            done.append((parameters, None))
        else:
            if not _repeats(arm, seen):
                in_a_row = 0
                yield arm
                continue
            # What the search learns of a repeat is the result of the arm that it repeats, once that has ended.
            twin = seen[arm.key].parameters
            done.extend([(parameters, score) for ended, score in done if ended == twin][-1:])
        in_a_row += 1
        if in_a_row == MOST_REPEATS:
            print(f"the search has proposed {in_a_row} arms in a row that cannot be or repeat others: it ends here")
            return
