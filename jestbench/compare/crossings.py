"""Speed-ups and crossings of frontiers: decayed points joined over budgets, with intervals (docs/statistics.md).

Shape suffixes: ``R`` rungs of a ladder, ``S`` seeds, ``N`` evaluation examples, ``D`` draws, ``P`` points on an axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression

from jestbench.compare.curves import AXES
from jestbench.compare.noise import Array, SeedVariance, Units, influence_SG, root
from jestbench.compare.statistics import Cell
from jestbench.evals.measure import Measure

CONFIDENCE = 0.95
_SAME_BUDGET = 0.05
"""Relative difference up to which the FLOPs of two rungs are one budget: runs overshoot by up to a step."""


@dataclass(frozen=True)
class Ladder:
    """One arm's decayed points.

    Attributes:
        cells: one a rung, ascending budget.
        amount_R: axis → mean over seeds of the amount spent at each rung; NaN where it was not logged.
    """

    cells: tuple[Cell, ...]
    amount_R: Mapping[str, Array]

    @property
    def flops_R(self) -> Array:
        """FLOPs on the axis that budgets are stated on."""
        return self.amount_R["flops"]


@dataclass(frozen=True)
class Crossing:
    """A speed-up on one axis.

    Attributes:
        value: the baseline's amount at the target over the arm's amount where it reaches the target; ``None`` where it
            does not.
        low: lower end of the 95 % interval; ``None``: open, or no interval can be given.
        high: upper end, as ``low``.
        kind: ``at_least`` where the arm's first rung is already there.
        fell: whether the arm's values evidently fall somewhere, so that its first crossing is taken.
        absent: why there is no value; empty where there is one. ``never``: the target is not reached; ``worse``: the
            arm ends below the baseline at the common budget; ``unshared``: there is no common budget; ``unknown``: the
            axis was not logged.
    """

    value: float | None
    low: float | None
    high: float | None
    kind: Literal["decayed", "at_least"]
    fell: bool
    absent: Literal["", "never", "worse", "unshared", "unknown"]


@dataclass(frozen=True)
class Crossover:
    """A budget at which one frontier crosses another.

    Attributes:
        budget: amount on the axis.
        low: lower end of the 95 % interval; ``None``: open.
        high: upper end, as ``low``.
        before: how the one frontier stands to the other at smaller budgets.
        after: the same at larger ones.
    """

    budget: float
    low: float | None
    high: float | None
    before: Literal["better", "worse"]
    after: Literal["better", "worse"]


def speedups(
    arm: Ladder,
    baseline: Ladder,
    unit_N: Units | None,
    measure: Measure,
    lower_is_better: bool,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Mapping[str, Crossing]:
    """Speed-ups of an arm at the baseline's value at the largest budget that both have.

    Args:
        arm: the arm's points.
        baseline: the baseline's.
        unit_N: class or caption group of each example; ``None``: each is its own.
        measure: of the metric.
        lower_is_better: whether reaching the target means falling to it.
        draws: of all values jointly, from which the intervals come.
        seed: of the draws.

    Returns:
        Axis → speed-up.
    """
    sign = -1.0 if lower_is_better else 1.0
    common = _common(arm, baseline)
    if common is None:
        return {axis: Crossing(None, None, None, "decayed", False, "unshared") for axis in AXES}
    drawn = _draw([arm, baseline], unit_N, draws, seed)
    one, fell = _frontier(arm, drawn, 0, sign)
    other, _ = _frontier(baseline, drawn, 1, sign)
    target_P = other[:, common]
    place_P = np.array([_place(value_R, target) for value_R, target in zip(one, target_P, strict=True)])
    end = np.interp(math.log(baseline.flops_R[common]), np.log(arm.flops_R), one[0])
    worse = bool(end < target_P[0])
    return {
        axis: _speedup(arm.amount_R[axis], float(baseline.amount_R[axis][common]), place_P, worse, fell, drawn.known)
        for axis in AXES
    }


def crossings(
    one: Ladder,
    other: Ladder,
    unit_N: Units | None,
    measure: Measure,
    lower_is_better: bool,
    *,
    axis: str = "flops",
    draws: int = 2000,
    seed: int = 0,
) -> list[Crossover]:
    """Every amount at which one frontier crosses another, within the range that both have.

    Args:
        one: points of the one.
        other: points of the other.
        unit_N: class or caption group of each example; ``None``: each is its own.
        measure: of the metric.
        lower_is_better: whether smaller values are better.
        axis: of the amounts.
        draws: of all values jointly, from which the intervals come.
        seed: of the draws.
    """
    sign = -1.0 if lower_is_better else 1.0
    at_one, at_other = np.log(one.amount_R[axis]), np.log(other.amount_R[axis])
    start, end = max(at_one[0], at_other[0]), min(at_one[-1], at_other[-1])
    if not start < end:
        return []
    at_P = np.unique(np.clip(np.concatenate([at_one, at_other]), start, end))
    drawn = _draw([one, other], unit_N, draws, seed)
    left, _ = _frontier(one, drawn, 0, sign)
    right, _ = _frontier(other, drawn, 1, sign)
    ahead = np.stack(
        [np.interp(at_P, at_one, a) - np.interp(at_P, at_other, b) for a, b in zip(left, right, strict=True)]
    )
    found = _changes(at_P, ahead[0])
    edges = [start, *(at for at, _ in found), end]
    return [
        _crossover(at_P, ahead[1:], at, rises, edges[k], edges[k + 2], drawn.known)
        for k, (at, rises) in enumerate(found)
    ]


@dataclass(frozen=True)
class _Drawn:
    """Errors of all rungs' means: a list over ladders of [D, R]; ``known`` where both noises of seeds are known."""

    error: Sequence[Array]
    known: bool


def _common(arm: Ladder, baseline: Ladder) -> int | None:
    below = np.flatnonzero(baseline.flops_R <= arm.flops_R[-1] * (1 + _SAME_BUDGET))
    if not below.size or baseline.flops_R[below[-1]] < arm.flops_R[0] * (1 - _SAME_BUDGET):
        return None
    return int(below[-1])


def _draw(ladders: Sequence[Ladder], unit_N: Units | None, draws: int, seed: int) -> _Drawn:
    generator = np.random.default_rng(seed)
    cells = [cell for ladder in ladders for cell in ladder.cells]
    examples = all(cell.example_SN is not None for cell in cells)
    influence = [influence_SG(cell.example_SN, unit_N) for cell in cells if cell.example_SN is not None and examples]
    known = all(len(cell.seeds) > 1 for cell in cells)
    count = len(cells)
    error = np.zeros((draws, count))
    if examples:
        unit_CG = np.stack([part.mean(0) for part in influence])
        error += generator.standard_normal((draws, count)) @ root(unit_CG @ unit_CG.T).T
    start = 0
    for ladder in ladders:
        part = slice(start, start + len(ladder.cells))
        error[:, part] += _seed_errors(ladder.cells, influence[part] if examples else None, draws, generator)
        start = part.stop
    edges = np.cumsum([len(ladder.cells) for ladder in ladders])[:-1]
    return _Drawn(np.split(error, edges, axis=1), known)


def _seed_errors(
    cells: Sequence[Cell], influence: Sequence[Array] | None, draws: int, generator: np.random.Generator
) -> Array:
    """Errors of the seed means of one arm's rungs, which share trunks: [D, R]."""
    correlation = _correlation(cells)
    shared_D = generator.standard_normal((draws, 1))
    own_DR = generator.standard_normal((draws, len(cells)))
    unit_DR = math.sqrt(correlation) * shared_D + math.sqrt(1 - correlation) * own_DR
    scale_D = generator.standard_normal(draws)
    for k, cell in enumerate(cells):
        if len(cell.seeds) < 2:
            unit_DR[:, k] = 0.0
            continue
        variance = SeedVariance.of(cell.value_S, None if influence is None else influence[k])
        unit_DR[:, k] *= variance.deviation_D(scale_D) / math.sqrt(len(cell.seeds))
    return np.asarray(unit_DR, dtype=np.float64)


def _correlation(cells: Sequence[Cell]) -> float:
    """Mean correlation of two rungs' seed deviations, within [0, 1]; 1 where the rungs' seeds differ."""
    if len({cell.seeds for cell in cells}) > 1 or len(cells) < 2 or len(cells[0].seeds) < 3:
        return 1.0
    deviation_RS = np.stack([cell.value_S - cell.value_S.mean() for cell in cells])
    length_R = np.linalg.norm(deviation_RS, axis=1, keepdims=True)
    if not (length_R > 0).all():
        return 1.0
    matrix = (deviation_RS / length_R) @ (deviation_RS / length_R).T
    rungs = len(cells)
    return float(np.clip((matrix.sum() - rungs) / (rungs * (rungs - 1)), 0.0, 1.0))


def _frontier(ladder: Ladder, drawn: _Drawn, index: int, sign: float) -> tuple[Array, bool]:
    """Fitted values of a ladder, higher is better: [1 + D, R], the estimate first; and whether a fall is evident."""
    value_R = sign * np.array([cell.mean for cell in ladder.cells])
    error_DR = sign * drawn.error[index]
    values = np.concatenate([value_R[None], value_R + error_DR])
    fell = _falls(value_R, error_DR)
    if fell or len(value_R) < 2:
        return values, fell
    return np.stack([isotonic_regression(row).x for row in values]), False


def _falls(value_R: Array, error_DR: Array) -> bool:
    """Whether a later value lies below an earlier one by more than noise makes of a flat curve in 95 % of draws."""
    earlier, later = np.triu_indices(len(value_R), 1)
    if not earlier.size:
        return False
    fall_P = value_R[earlier] - value_R[later]
    noise_DP = error_DR[:, earlier] - error_DR[:, later]
    width_P = np.quantile(np.abs(noise_DP), CONFIDENCE, axis=0)
    sure_P = width_P > 0
    if not sure_P.any():
        return bool((fall_P > 0).any())
    limit = np.quantile((noise_DP[:, sure_P] / width_P[sure_P]).max(1), CONFIDENCE)
    return bool((fall_P[sure_P] / width_P[sure_P] > limit).any())


def _place(value_R: Array, target: float) -> float:
    """First position (rung index, between rungs by linear interpolation) at or above a target.

    Returns:
        −∞ where the first rung is there already, +∞ where no rung is.
    """
    there = np.flatnonzero(value_R >= target)
    if not there.size:
        return math.inf
    after = int(there[0])
    if after == 0:
        return -math.inf
    before = value_R[after - 1]
    return after - 1 + float((target - before) / (value_R[after] - before))


def _speedup(amount_R: Array, have: float, place_P: Array, worse: bool, fell: bool, known: bool) -> Crossing:
    if not (np.isfinite(amount_R).all() and (amount_R > 0).all() and math.isfinite(have) and have > 0):
        return Crossing(None, None, None, "decayed", fell, "unknown")
    rungs = np.arange(len(amount_R))
    log_R = np.log(amount_R)
    ratio_P = have / np.exp(np.interp(np.clip(place_P, 0, rungs[-1]), rungs, log_R))
    first = float(ratio_P[0])
    low, high = (None, None) if not known else _ends(place_P[1:], ratio_P[1:])
    if worse or place_P[0] == math.inf:
        return Crossing(None, None, high, "decayed", fell, "worse" if worse else "never")
    return Crossing(first, low, high, "at_least" if place_P[0] == -math.inf else "decayed", fell, "")


def _ends(place_D: Array, ratio_D: Array) -> tuple[float | None, float | None]:
    """Ends of the interval; draws that never cross lie below all others, those at the first rung above."""
    tail = (1 - CONFIDENCE) / 2
    low = np.quantile(np.where(place_D == math.inf, -math.inf, ratio_D), tail, method="lower")
    high = np.quantile(np.where(place_D == -math.inf, math.inf, ratio_D), 1 - tail, method="higher")
    return float(low) if math.isfinite(low) else None, float(high) if math.isfinite(high) else None


def _changes(at_P: Array, ahead_P: Array) -> list[tuple[float, bool]]:
    """Places where a piecewise linear function changes its sign, and whether it rises there."""
    kept = np.flatnonzero(ahead_P != 0)
    found = []
    for before, after in pairwise(kept):
        a, b = ahead_P[before], ahead_P[after]
        if a * b < 0:
            # Level in between: the middle of that stretch.
            level = at_P[before] + a / (a - b) * (at_P[after] - at_P[before])
            place = level if after == before + 1 else (at_P[before + 1] + at_P[after - 1]) / 2
            found.append((float(place), bool(b > 0)))
    return found


def _crossover(
    at_P: Array, ahead_DP: Array, at: float, rises: bool, start: float, end: float, known: bool
) -> Crossover:
    low = high = None
    if known:
        place_D = np.array([_nearest(at_P, row, at, rises, start, end) for row in ahead_DP])
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(place_D, tail, method="lower"), np.quantile(place_D, 1 - tail, method="higher")
    ends = [None if end is None or not math.isfinite(end) else math.exp(end) for end in (low, high)]
    before, after = ("worse", "better") if rises else ("better", "worse")
    return Crossover(math.exp(at), ends[0], ends[1], before, after)  # type: ignore[arg-type]


def _nearest(at_P: Array, ahead_P: Array, at: float, rises: bool, start: float, end: float) -> float:
    """The crossing of one draw nearest to the estimated one; ∓∞ where it lies before ``start`` or after ``end``."""
    same = [place for place, up in _changes(at_P, ahead_P) if up == rises and start <= place <= end]
    if same:
        return min(same, key=lambda place: abs(place - at))
    middle = float(np.interp(at, at_P, ahead_P))
    return -math.inf if (middle > 0) == rises else math.inf
