"""Speed-ups and crossings of frontiers: decayed points joined over budgets, with intervals (docs/statistics.md).

Shape suffixes: ``R`` rungs of a ladder, ``S`` seeds, ``N`` evaluation examples, ``D`` draws, ``P`` points on an axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression

from jestbench.compare.curves import AXES, Array
from jestbench.compare.noise import CONFIDENCE, SeedVariance, Spread, Units, paired, root
from jestbench.compare.statistics import Cell, table_noise
from jestbench.evals.measure import Measure

Stands = Literal["worse", "better"]
_STANDS: tuple[Stands, Stands] = ("worse", "better")
Kind = Literal["decayed", "at_least", "touch"]
Absent = Literal["", "never", "worse", "early", "unknown", "unshared", "unstated"]
"""``never``: the value is not reached; ``worse``: the arm touches it and ends worse; ``early``: reached within the
first interval of evaluations, where no place can be read; ``unknown``: the amount was not logged; ``unshared``: no
common decayed budget."""

_LENT = 0.5
"""Share of an arm's degrees of freedom that the other has the use of (docs/statistics.md)."""


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
class Speedup:
    """The baseline's amount (of FLOPs, say) over the arm's, to reach the baseline's value.

    Attributes:
        value: baseline's amount over the arm's; ``None`` where ``absent`` gives the reason.
        kind: ``decayed`` between decayed points; ``at_least`` where the arm's first decayed point is already above;
            ``touch`` where it is the first touch on learning curves; ``None`` without a value. A touch is indicative: a
            run whose schedule ends there has another value, which was lower wherever it was tried (docs/results.md).
        absent: why there is no value, or an empty text.
        low: lower end of the 95 % interval; ``None`` where it is open, where no interval can be given, and for a touch.
        high: upper end; that of an arm which misses the value by no more than noise stands without a value.
        fell: whether the arm's decayed points evidently fall with the budget, so that its first crossing was taken.
        arm: the arm's amount at that point.
        baseline: the baseline's amount at that point.
    """

    value: float | None
    kind: Kind | None
    absent: Absent = ""
    low: float | None = None
    high: float | None = None
    fell: bool = False
    arm: float | None = None
    baseline: float | None = None


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
    before: Stands
    after: Stands


def speedups(
    arm: Ladder,
    baseline: Ladder,
    unit_N: Units | None,
    measure: Measure,
    lower_is_better: bool,
    *,
    to_end: bool = False,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Speedup]:
    """Speed-ups of an arm by axis, at the value of the baseline's last rung.

    Args:
        arm: the arm's points, up to the budget of that rung.
        baseline: the baseline's.
        unit_N: class or caption group of each example; ``None``: each is its own.
        to_end: whether the arm may end at another budget than the baseline.
        draws: of all values jointly, from which the intervals come.
    """
    sign = -1.0 if lower_is_better else 1.0
    drawn = _draw([arm, baseline], unit_N, measure, draws, seed)
    fitted, fell = _frontier(arm, drawn.error[0], sign)
    # The target and the end are the means of the table at that budget, not a fit: one sign in both places.
    value_R, target = _values(arm, sign), _values(baseline, sign)[-1]
    target_P = np.concatenate([[target], target + sign * drawn.error[1][:, -1]])
    place_P = np.array([_place(fit_R, t) for fit_R, t in zip(fitted, target_P, strict=True)])
    end = value_R[-1]
    if to_end:
        end = np.interp(math.log(baseline.flops_R[-1]), np.log(arm.flops_R), value_R)
    absent: Absent = "never" if place_P[0] == math.inf else ""
    if end < target and not (to_end and absent):  # an arm of smaller budgets has not got there yet
        absent = "worse"
    return {
        axis: _speedup(arm.amount_R[axis], float(baseline.amount_R[axis][-1]), place_P, absent, fell, drawn.known)
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
    """Every amount on an axis at which one frontier crosses another, within the range that both have.

    Args:
        unit_N: class or caption group of each example; ``None``: each is its own.
        draws: of all values jointly, from which the intervals come.
    """
    sign = -1.0 if lower_is_better else 1.0
    at_one, at_other = np.log(one.amount_R[axis]), np.log(other.amount_R[axis])
    start, end = max(at_one[0], at_other[0]), min(at_one[-1], at_other[-1])
    if not start < end:
        return []
    at_P = np.unique(np.clip(np.concatenate([at_one, at_other]), start, end))
    drawn = _draw([one, other], unit_N, measure, draws, seed)
    left, _ = _frontier(one, drawn.error[0], sign)
    right, _ = _frontier(other, drawn.error[1], sign)
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


def _draw(ladders: Sequence[Ladder], unit_N: Units | None, measure: Measure, draws: int, seed: int) -> _Drawn:
    """Joint errors of two ladders' rungs, scaled to the half width of the difference of their last ones."""
    generator = np.random.default_rng(seed)
    cells = {f"{arm} {rung}": cell for arm, ladder in enumerate(ladders) for rung, cell in enumerate(ladder.cells)}
    noise = table_noise(cells, unit_N, measure)
    noise = noise.seeds_alone() if noise.missing else noise
    error_DC = np.zeros((draws, len(cells)))
    units = [noise.unit_G(name, cell, cell.seeds) for name, cell in cells.items()]
    kept = [unit_G for unit_G in units if unit_G is not None]
    if kept:
        unit_CG = np.stack(kept)
        error_DC += generator.standard_normal((draws, len(cells))) @ root(unit_CG @ unit_CG.T).T
    correlation = _correlation(ladders)
    start, last = 0, []
    for ladder in ladders:
        names = list(cells)[start : start + len(ladder.cells)]
        variances = [noise.seed.get(name) for name in names]
        error_DC[:, start : start + len(names)] += _seed_errors(ladder.cells, variances, correlation, draws, generator)
        start += len(names)
        last.append(start - 1)
    known = len(noise.seed) == len(cells)
    if known:
        one, other = (list(cells)[column] for column in last)
        unit_G = kept[last[0]] - kept[last[1]] if kept else None
        *pair, _ = paired(noise.seed[one], noise.seed[other], noise.step, _LENT)
        spread = Spread([(seed, len(cells[name].seeds)) for seed, name in zip(pair, (one, other), strict=True)], unit_G)
        difference_D = error_DC[:, last[0]] - error_DC[:, last[1]]
        wide = float(np.quantile(np.abs(difference_D), CONFIDENCE))
        if wide > 0:
            error_DC *= spread.half_width / wide
    return _Drawn(np.split(error_DC, [len(ladders[0].cells)], axis=1), known)


def _seed_errors(
    cells: Sequence[Cell],
    variances: Sequence[SeedVariance | None],
    correlation: float,
    draws: int,
    generator: np.random.Generator,
) -> Array:
    """Fiducial errors of the seed means of one arm's rungs: [D, R]; zero for a single seed."""
    shared_D = generator.standard_normal((draws, 1))
    own_DR = generator.standard_normal((draws, len(cells)))
    error_DR = math.sqrt(correlation) * shared_D + math.sqrt(1 - correlation) * own_DR
    scale_D = generator.standard_normal(draws)
    for rung, (cell, variance) in enumerate(zip(cells, variances, strict=True)):
        deviation_D = 0.0 if variance is None else variance.deviation_D(scale_D)
        error_DR[:, rung] *= deviation_D / math.sqrt(len(cell.seeds))
    return np.asarray(error_DR, dtype=np.float64)


def _correlation(ladders: Sequence[Ladder]) -> float:
    """Mean correlation of two rungs of one arm over its seeds, within [0, 1]: rungs share a trunk.

    One number for all pairs of rungs, since a matrix cannot be had from a few seeds; 0 where no two rungs share seeds.
    """
    found = []
    for ladder in ladders:
        for one, other in combinations(ladder.cells, 2):
            deviations = [cell.value_S - cell.value_S.mean() for cell in (one, other)]
            length = math.prod(float(np.linalg.norm(deviation)) for deviation in deviations)
            if one.seeds == other.seeds and length > 0:
                found.append(float(deviations[0] @ deviations[1]) / length)
    return min(max(float(np.mean(found)), 0.0), 1.0) if found else 0.0


def _values(ladder: Ladder, sign: float) -> Array:
    return sign * np.array([cell.mean for cell in ladder.cells])


def _frontier(ladder: Ladder, error_DR: Array, sign: float) -> tuple[Array, bool]:
    """Fitted values of a ladder, higher is better: [1 + D, R], the estimate first; and whether a fall is evident."""
    value_R = _values(ladder, sign)
    values = np.concatenate([value_R[None], value_R + sign * error_DR])
    fell = _falls(value_R, sign * error_DR)
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

    It is −∞ where the first rung is there already, +∞ where no rung is.
    """
    there = np.flatnonzero(value_R >= target)
    if not there.size:
        return math.inf
    after = int(there[0])
    if after == 0:
        return -math.inf
    before = value_R[after - 1]
    return after - 1 + float((target - before) / (value_R[after] - before))


def _speedup(amount_R: Array, have: float, place_P: Array, absent: Absent, fell: bool, known: bool) -> Speedup:
    """The speed-up on one axis; ``have``: the baseline's amount at the target."""
    spent = have if math.isfinite(have) else None
    if not (np.isfinite(amount_R).all() and (amount_R > 0).all() and spent is not None and spent > 0):
        return Speedup(None, None, "unknown", fell=fell, baseline=spent)
    rungs = np.arange(len(amount_R))
    log_R = np.log(amount_R)
    ratio_P = have / np.exp(np.interp(np.clip(place_P, 0, rungs[-1]), rungs, log_R))
    low, high = (None, None) if not known else _ends(place_P[1:], ratio_P[1:])
    if absent:
        return Speedup(None, None, absent, high=high, fell=fell, baseline=spent)
    value = float(ratio_P[0])
    kind: Kind = "at_least" if place_P[0] == -math.inf else "decayed"
    return Speedup(value, kind, low=low, high=high, fell=fell, arm=have / value, baseline=spent)


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
    return Crossover(math.exp(at), ends[0], ends[1], _STANDS[not rises], _STANDS[rises])


def _nearest(at_P: Array, ahead_P: Array, at: float, rises: bool, start: float, end: float) -> float:
    """The crossing of one draw nearest to the estimated one; ∓∞ where it lies before ``start`` or after ``end``."""
    same = [place for place, up in _changes(at_P, ahead_P) if up == rises and start <= place <= end]
    if same:
        return min(same, key=lambda place: abs(place - at))
    middle = float(np.interp(at, at_P, ahead_P))
    return -math.inf if (middle > 0) == rises else math.inf
