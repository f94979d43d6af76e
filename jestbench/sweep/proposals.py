"""The arms that a random or bayes search proposes: from a sweep file, a number and results to parameters.

A proposal is a function of the file, of its number and of the arms before it with their results. A search that was
stopped goes on as if it had not been.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from jestbench.config.run import ConfigError
from jestbench.disk import digest, hashed, write_text
from jestbench.sweep.distributions import Choices, Quantiles, distribution
from jestbench.sweep.sweep_file import Sweep

Arm = dict[str, Any]
Done = list[tuple[Arm, float | None]]
"""Parameters of arms that have ended, with their value of the metric; ``None`` of those that failed."""
DRAWN = 4
"""Results from which a bayes search proposes by its model; before it draws as a random search does."""


def memory_of(sweep: Sweep, out: Path) -> Path:
    """The file that records the proposals of a search."""
    search = json.dumps([sweep.method, sweep.metric, sweep.goal, sweep.parameters], sort_keys=True, default=str)
    return out / f"proposals-{digest(search, 4)}.jsonl"


def proposals(sweep: Sweep, done: Done, memory: Path | None) -> Iterator[Arm]:
    """Yield the arms proposed in an earlier run of this sweep, to continue where it stopped; then new ones."""
    before: list[Arm] = []
    if memory is not None and memory.exists():
        for line in memory.read_text(encoding="utf-8").splitlines():
            before.append(json.loads(line))
            yield before[-1]
    for parameters in searched(sweep, before, done):
        if memory is not None:
            memory.parent.mkdir(parents=True, exist_ok=True)
            before.append(parameters)
            write_text(memory, "".join(json.dumps(arm) + "\n" for arm in before))
        yield parameters


def searched(sweep: Sweep, before: Sequence[Arm], done: Done) -> Iterator[Arm]:
    """Propose arms without end, from the arms proposed before and the results of those in ``done``.

    Raises:
        ConfigError: a bayes search without its library.
    """
    axes = {name: distribution(f"{sweep.path}: parameters.{name}", spec) for name, spec in sweep.parameters.items()}
    if sweep.method == "bayes":
        _optuna(sweep)
    proposed = list(before)
    while True:
        seed = int.from_bytes(hashed(json.dumps([sweep.name, sweep.parameters, len(proposed)], default=str), 4), "big")
        arm = _modelled(sweep, axes, proposed, done, seed) if sweep.method == "bayes" else None
        if arm is None or arm in proposed:  # a model that is sure of its best arm proposes it again
            draw = random.Random(seed)
            arm = {name: axis.value(draw.random()) for name, axis in axes.items()}
        proposed.append(arm)
        yield arm


def _optuna(sweep: Sweep) -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            f"{sweep.path}: method bayes needs Optuna: pip install 'jestbench[search]'; grid and random need nothing"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _modelled(
    sweep: Sweep, axes: dict[str, Choices | Quantiles], proposed: Sequence[Arm], done: Done, seed: int
) -> Arm | None:
    """The arm of greatest expected improvement under a Gaussian process; ``None`` with less than ``DRAWN`` results.

    Failed arms count as the worst result, as with W&B: a process that ignored them would propose their neighbours.
    Arms that run are pending; repeats of an arm are given once.
    """
    results: dict[str, float | None] = {}
    for arm, score in done:
        value = score if score is not None and isfinite(score) else None
        results[json.dumps(arm)] = results.get(json.dumps(arm)) if value is None else value
    scores = [score for score in results.values() if score is not None]
    free = {name: axis for name, axis in axes.items() if not (isinstance(axis, Choices) and len(axis.values) == 1)}
    if len(scores) < DRAWN or not free:
        return None
    optuna = _optuna(sweep)
    space = {
        name: optuna.distributions.CategoricalDistribution(range(len(axis.values)))
        if isinstance(axis, Choices)
        else optuna.distributions.FloatDistribution(0.0, 1.0)
        for name, axis in free.items()
    }
    worst = min(scores) if sweep.goal == "maximize" else max(scores)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=0)
        study = optuna.create_study(direction=sweep.goal, sampler=sampler)
        for key, arm in {json.dumps(arm): arm for arm in proposed}.items():
            state = optuna.trial.TrialState.COMPLETE if key in results else optuna.trial.TrialState.RUNNING
            value = results.get(key, worst)
            study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    value=None if key not in results else worst if value is None else value,
                    params={name: axis.coordinate(arm[name]) for name, axis in free.items()},
                    distributions=space,
                )
            )
        found = study.ask(space).params
    return {
        name: (axis.values[found.get(name, 0)] if isinstance(axis, Choices) else axis.value(found[name]))
        for name, axis in axes.items()
    }
