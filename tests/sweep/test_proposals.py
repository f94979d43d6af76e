"""What a search proposes: distributions as asked, the better side of the metric, again the same after a stop."""

from __future__ import annotations

import datetime
import itertools
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from jestbench.sweep import proposals, sweep_arms, sweep_file

LINE = {"x": {"min": 0.0, "max": 1.0}}


def sweep_of(folder: Path, parameters: dict[str, Any], **more: object) -> sweep_file.Sweep:
    parameters = {name if "." in name else f"jest.{name}": spec for name, spec in parameters.items()}
    content: dict[str, object] = {"method": "bayes", "metric": {"name": "train/loss", "goal": "maximize"}, **more}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**content, "name": content.get("name", "s"), "parameters": parameters}))
    return sweep_file.read_sweep(path)


def played(
    sweep: sweep_file.Sweep, count: int, score: Callable[[float], float | None], memory: Path | None = None
) -> list[float]:
    """The values of x that a search proposes, each arm ended before the next one is asked for."""
    done: proposals.Done = []
    found = []
    for arm in itertools.islice(proposals.proposals(sweep, done, memory), count):
        found.append(arm["jest.x"])
        done.append((arm, score(arm["jest.x"])))
    return found


def test_draws_are_independent_and_as_asked(tmp_path: Path) -> None:
    parameters = {
        "x": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
        "y": {"distribution": "normal", "mu": 2.0},
        "z": {"values": ["a", "b"], "probabilities": [0.9, 0.1]},
    }
    sweep = sweep_of(tmp_path, parameters, method="random")
    found = list(itertools.islice(proposals.searched(sweep, [], []), 600))
    x, y = ([arm[f"jest.{name}"] for arm in found] for name in "xy")
    assert stats.kstest(np.log10(x), stats.uniform(-4, 4).cdf).pvalue > 1e-3
    assert stats.kstest(y, stats.norm(2, 1).cdf).pvalue > 1e-3
    assert abs(stats.spearmanr(x, y).statistic) < 0.15
    assert abs(stats.spearmanr(x[1:], x[:-1]).statistic) < 0.15
    assert 0.86 < sum(arm["jest.z"] == "a" for arm in found) / 600 < 0.94
    again, other = (sweep_of(tmp_path, parameters, method="random", name=name) for name in ("s", "t"))
    assert next(proposals.searched(again, [], [])) == found[0]
    assert next(proposals.searched(other, [], [])) != found[0]


@pytest.mark.parametrize(("goal", "best"), [("maximize", 0.8), ("minimize", 0.3)])
def test_bayes_goes_to_the_goal(tmp_path: Path, goal: str, best: float) -> None:
    """A curve with its top at 0.8 and its bottom at 0.3."""
    pytest.importorskip("optuna")
    sweep = sweep_of(tmp_path, LINE, metric={"name": "train/loss", "goal": goal})
    found = played(sweep, 11, lambda x: float(np.sin((x - 0.55) * 2 * np.pi)))
    assert min(abs(x - best) for x in found[proposals.DRAWN :]) < 0.03
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("failure", [None, float("nan")])
def test_bayes_leaves_failures(tmp_path: Path, failure: float | None) -> None:
    """The metric rises up to 0.6, where arms begin to fail: it never rises again."""
    pytest.importorskip("optuna")
    found = played(sweep_of(tmp_path, LINE), 14, lambda x: x if x < 0.6 else failure)
    modelled = found[-8:]
    assert sum(x >= 0.6 for x in modelled) <= 4
    assert max(x for x in modelled if x < 0.6) > 0.5


def test_bayes_counts_arms_that_run(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    done: proposals.Done = []
    search = proposals.searched(sweep_of(tmp_path, LINE), [], done)
    for arm in itertools.islice(search, 6):
        done.append((arm, -((arm["jest.x"] - 0.5) ** 2)))
    side_by_side = sorted(arm["jest.x"] for arm in itertools.islice(search, 3))
    assert min(np.diff(side_by_side)) > 0.02


def rough(x: float) -> float | None:
    return None if 0.2 < x < 0.3 else float(np.sin(9 * x))


@pytest.mark.parametrize("stop", [2, 6])
def test_a_stopped_search_goes_on_exactly(tmp_path: Path, stop: int) -> None:
    pytest.importorskip("optuna")
    sweep, memory = sweep_of(tmp_path, LINE), tmp_path / "runs" / "memory.jsonl"
    whole = played(sweep, 8, rough)
    played(sweep, stop, rough, memory)
    assert played(sweep, 8, rough, memory) == whole
    assert [json.loads(line)["jest.x"] for line in memory.read_text().splitlines()] == whole
    # Arms that ended in another order, one of them twice, make no difference.
    done: proposals.Done = [({"jest.x": x}, rough(x)) for x in whole[:7]]
    before = [arm for arm, _ in done]
    done = [*reversed(done), ({"jest.x": whole[0]}, None)]
    assert next(proposals.searched(sweep, before, done))["jest.x"] == whole[7]


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_over_dates_goes_on_after_a_stop(tmp_path: Path, method: str) -> None:
    """YAML has dates and times; JSON, in which proposals are compared and recorded, has none."""
    pytest.importorskip("optuna")
    values = [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2), datetime.datetime(2024, 1, 2, 3), "2024", 5]
    sweep, memory = sweep_of(tmp_path, {"x": {"values": values}}, method=method), tmp_path / "memory.jsonl"

    def at(count: int, memory: Path | None = None) -> list[float]:
        return played(sweep, count, lambda x: float(len(str(x))), memory)

    whole = at(9)
    at(6, memory)
    assert at(9, memory) == whole
    assert {*whole} <= {"2024-01-01", "2024-01-02", "2024-01-02 03:00:00", "2024", 5}


def test_a_search_without_results_draws(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    bayes = played(sweep_of(tmp_path, LINE), 7, lambda _: None)
    assert bayes == played(sweep_of(tmp_path, LINE, method="random"), 7, lambda _: None)


def test_a_small_space_is_walked_whole(tmp_path: Path) -> None:
    """A model that is sure proposes the best arm again: then an arm is drawn, until each one was proposed."""
    pytest.importorskip("optuna")
    done: proposals.Done = []
    sweep = sweep_of(tmp_path, {"x": {"values": [0, 1, 2]}, "y": {"values": ["a", "b"]}, "z": {"value": 5}})
    for arm in itertools.islice(proposals.searched(sweep, [], done), 30):
        done.append((arm, float(arm["jest.x"])))
        if len({json.dumps(one) for one, _ in done}) == 6:
            break
    assert len({json.dumps(one) for one, _ in done}) == 6
    assert all(arm["jest.z"] == 5 for arm, _ in done)


def test_a_repeat_is_told_its_twins_result(tmp_path: Path) -> None:
    """Under uniform the chunks of jest change nothing, which a search learns without a run."""
    sweep = sweep_of(
        tmp_path,
        {"chunks": {"values": [1, 4]}},
        command=["${program}", "--gin_file", "gin/run/tiny.gin", "${args_no_hyphens}", "--allow_unused", "jest.*"],
    )
    memory, done = tmp_path / "memory.jsonl", []
    memory.write_text('{"jest.chunks": 1}\n{"jest.chunks": 4}\n')
    found: Iterator[sweep_arms.SweepArm] = sweep_arms.arms_of(sweep, done, memory)
    done.append((dict(next(found).parameters), 0.25))
    assert next(found, None) is None
    assert done[:2] == [({"jest.chunks": 1}, 0.25), ({"jest.chunks": 4}, 0.25)]


def test_a_disk_that_fills_up_tears_no_proposal(tmp_path: Path) -> None:
    sweep, memory = sweep_of(tmp_path, LINE, method="random"), tmp_path / "out" / "proposals.jsonl"
    found = proposals.proposals(sweep, [], memory)
    first = next(found)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory.stat().st_size + 5, hard))  # in the middle of the second line
    try:
        with pytest.raises(OSError, match="too large"):
            next(found)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = list(itertools.islice(proposals.proposals(sweep, [], memory), 2))
    assert again[0] == first
    assert again[1] != first
