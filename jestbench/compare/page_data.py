"""What the page's script draws, as plain values: frontiers and curves of every metric, cost, selection over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jestbench.compare import wording
from jestbench.compare.comparison import Arm, SeedRun, Table
from jestbench.compare.curves import AXES, Array
from jestbench.compare.panels import Panel, panels
from jestbench.compare.paths import run_again
from jestbench.compare.plots import PRETRAINING, purposes
from jestbench.compare.points import TOTAL_FLOPS, Candidate, amounts, column
from jestbench.runs.folder import Row

_SWITCH = ("flops", "flops_all_in", "seconds", "pairs_seen", "pairs_trained")
"""Axes in the order of the page's switch."""
_SELECT = "select/"
_SUPER_BATCH = "_super_batch"
_MOST_SELECTION = 240_000
"""Numbers on selection over time that a page holds: what bounds the length of its curves."""
_MOST_EVALUATIONS = 400_000
"""Numbers on evaluations, of all metrics together; a page that held more would be too large to send."""
_BINS = 100
_ROWS = 4
"""Logged rows at least that a point of these curves is the mean of, where a run has that many."""
_SELECT_NAMES = {
    "select/share_noisy": "share of noisy pairs chosen",
    "select/share_curated": "share of curated pairs chosen",
    "select/entropy": "entropy of the draw (nats)",
    "select/entropy_share": "entropy of the draw, share of the largest",
    "select/effective_size": "effective number of candidates",
    "select/score_chosen": "mean score of the chosen",
    "select/score_super_batch": "mean score of the super-batch",
    "select/logit_chosen": "mean logit of the chosen",
    "select/overlap_top": "share of the best scores among the chosen",
}


def world_data(table: Table) -> dict[str, Any]:
    """The charts of one table."""
    members = [member for arm in table.arms for member in arm.members]
    place = {member.run.folder: number for number, member in enumerate(members)}
    shown = panels(table)
    every = _every(shown, members)
    return {
        "metric": table.metric,
        "budget": table.budget,
        "budgetText": wording.flops_text(table.budget),
        "axes": [{"key": key, "name": AXES[key].name, "unit": AXES[key].unit} for key in _SWITCH],
        "arms": [arm.label for arm in table.arms],
        "runs": [_run(member, number) for number, arm in enumerate(table.arms) for member in arm.members],
        "every": every,
        "amounts": [_amounts(member, every) for member in members],
        "metrics": [_metric(panel, table, place, every, members) for panel in shown],
        "references": [
            {"name": wording.reference_label(row.name), "value": row.value}
            for row in table.references
            if row.value is not None
        ],
        "cost": _cost(table),
        "selection": _selection(table),
    }


def _run(member: Candidate, arm: int) -> dict[str, Any]:
    folder = member.run.folder
    return {"arm": arm, "seed": member.seed, "name": folder.name, "again": run_again(folder)}


def _metric(
    panel: Panel, table: Table, place: Mapping[Path, int], every: int, members: Sequence[Candidate]
) -> dict[str, Any]:
    """A metric's decayed points, each run's own, and its curves.

    Args:
        place: run folder → number of the run.
        every: see ``_every``.
        members: the runs with the table's own metric; a curve of the same evaluations has no ``x`` of its own.
    """
    arms = [arm.label for arm in table.arms]
    data = next(iter(panel.members.values())).run.summary.data
    return {
        "key": panel.metric.key,
        "name": wording.metric_text(panel.metric.key, panel.metric.measure, data),
        "lower": panel.metric.lower_is_better,
        "chance": panel.metric.measure.chance,
        "points": [
            {
                "arm": arms.index(point.arm),
                "budget": wording.flops_text(point.budget),
                "value": _short(point.mean.value, 6),
                "low": _short(point.mean.low, 6),
                "high": _short(point.mean.high, 6),
                "seeds": len(point.seeds),
                "x": [_short(point.amount[axis], 6) for axis in _SWITCH],
            }
            for point in panel.points
        ],
        "ends": [
            [place[folder], _short(point.value, 6), *(_short(point.amount[axis], 6) for axis in _SWITCH)]
            for folder, member in panel.members.items()
            for point in member.points
        ],
        "curves": [
            {"run": place[folder], "y": _shorts(member.curve.value_E[_kept(member, every)])}
            | ({} if _same(member, members[place[folder]]) else {"x": _amounts(member, every)})
            for folder, member in panel.members.items()
        ],
    }


def _same(one: Candidate, other: Candidate) -> bool:
    """Whether two metrics of a run were evaluated at the same amounts."""
    pairs = ((one.curve.amount_E[axis], other.curve.amount_E[axis]) for axis in _SWITCH)
    return all(np.array_equal(mine, its, equal_nan=True) for mine, its in pairs)


def _amounts(member: Candidate, every: int) -> list[list[float | int | None]]:
    return [_shorts(member.curve.amount_E[axis][_kept(member, every)]) for axis in _SWITCH]


def _every(shown: Sequence[Panel], members: Sequence[Candidate]) -> int:
    """Each how many-th evaluation a curve shows: each one, unless the page would be too large to send."""
    numbers = len(shown) * (1 + len(_SWITCH)) * sum(len(member.curve.value_E) for member in members)
    return max(1, math.ceil(numbers / _MOST_EVALUATIONS))


def _kept(member: Candidate, every: int) -> slice:
    """From the end backwards, so that the last evaluation is always among them."""
    count = len(member.curve.value_E)
    return slice((count - 1) % every, None, every)


def _cost(table: Table) -> list[dict[str, Any]]:
    """FLOPs of each purpose, by arm, at the table's budget."""
    found = [(name, [arm.flops_by_purpose.get(name, 0) for arm in table.arms]) for name in purposes(table)]
    if any(pretraining := [arm.pretrain_flops or 0 for arm in table.arms]):
        found.append((PRETRAINING, pretraining))
    return [
        {"name": name.replace("_", " "), "purpose": name, "apart": name == PRETRAINING, "flops": flops}
        for name, flops in found
    ]


def _selection(table: Table) -> dict[str, Any]:
    """Means of what was logged about selection, over the seeds of each arm and over stretches of training."""
    keys = sorted(
        {
            key
            for arm in table.arms
            for member in arm.runs
            for row in member.run.rows[1:3] + member.run.rows[-2:]
            for key in row
            if key.startswith(_SELECT)
        },
        key=lambda key: (list(_SELECT_NAMES).index(key) if key in _SELECT_NAMES else len(_SELECT_NAMES), key),
    )
    bins = max(20, min(_BINS, _MOST_SELECTION // max(1, len(table.arms) * (len(_SWITCH) + 3 * len(keys)))))
    arms = [_arm_selection(arm, keys, bins) for arm in table.arms]
    drawn = [key for key in keys if key.removesuffix(_SUPER_BATCH) not in keys or not key.endswith(_SUPER_BATCH)]
    return {
        "keys": [
            {
                "key": key,
                "name": _SELECT_NAMES.get(key, key.removeprefix(_SELECT).replace("_", " ")),
                "whole": f"{key}{_SUPER_BATCH}" if f"{key}{_SUPER_BATCH}" in keys else None,
            }
            for key in drawn
            if any(key in arm["y"] for arm in arms)
        ],
        "arms": arms,
    }


def _arm_selection(arm: Arm, keys: Iterable[str], bins: int) -> dict[str, Any]:
    """Curves of one arm.

    Returns:
        ``rows``: logged rows that a point is the mean of; ``x``: amounts by axis; ``y``: key → mean, lowest and highest
        seed.
    """
    logged = [_logged(member) for member in arm.runs]
    bins = max(1, min(bins, *(max(len(rows) // _ROWS, min(20, len(rows))) for rows in logged)))
    series = [_binned(member, rows, keys, bins) for member, rows in zip(arm.runs, logged, strict=True)]
    there = np.all([np.isfinite(values["flops"]) for values in series], axis=0)
    y: dict[str, list[list[float | None]]] = {}
    for key in keys:
        value_SG = np.array([values[key] for values in series if key in values])
        if value_SG.size:
            with np.errstate(all="ignore"):
                y[key] = [_shorts(part[there]) for part in (value_SG.mean(0), value_SG.min(0), value_SG.max(0))]
    x = [_shorts(np.mean([values[axis] for values in series], axis=0)[there]) for axis in _SWITCH]
    return {"rows": _short(float(np.mean([len(rows) for rows in logged])) / bins, 2), "x": x, "y": y}


def _logged(member: SeedRun) -> list[Row]:
    """The rows of steps: the evaluation before the first step has no selection."""
    return [row for row in member.run.rows if TOTAL_FLOPS in row and row.get("pairs/trained", 1)]


def _binned(member: SeedRun, rows: Sequence[Row], keys: Iterable[str], bins: int) -> dict[str, Array]:
    """Means of what was logged in equal shares of a run's FLOPs; NaN where there is no row."""
    flops_R = column(rows, TOTAL_FLOPS)
    end = flops_R.max(initial=1.0)
    bin_R = np.minimum((flops_R / end * bins).astype(int), bins - 1)
    logged = {key: value_R for key in keys if np.isfinite(value_R := column(rows, key)).any()}
    found = amounts(rows, member.run) | logged
    return {name: _means(value_R, bin_R, bins) for name, value_R in found.items()}


def _means(value_R: Array, bin_R: Any, bins: int) -> Array:
    finite_R = np.isfinite(value_R)
    total = np.bincount(bin_R[finite_R], value_R[finite_R], minlength=bins)
    with np.errstate(all="ignore"):
        found: Array = total / np.bincount(bin_R[finite_R], minlength=bins)
    return found


def _short(value: float | None, digits: int = 5) -> float | int | None:
    """A number with few digits, since thousands of them stand in the page; ``None`` where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def _shorts(values: Iterable[float]) -> list[float | int | None]:
    return [_short(float(value)) for value in values]
