"""Intervals and verdicts of a table of arms, from seeds and evaluation examples (docs/statistics.md).

Shape suffixes: ``S`` seeds, ``N`` evaluation examples, ``G`` units of examples, ``K`` arms beside the baseline,
``D`` draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import chdtri

from jestbench.compare.noise import (
    REFUSED_BELOW,
    Array,
    SeedVariance,
    Units,
    equal_variance_p,
    influence_SG,
    moderated,
    normal,
    residual,
    root,
    uniforms,
)
from jestbench.evals.measure import Measure

Verdict = Literal["better", "worse", "not told apart"]
Scale = Literal["logit", "identity"]


@dataclass(frozen=True)
class Cell:
    """What one arm has at one budget.

    Attributes:
        seeds: the seeds, in the order of the values.
        value_S: the metric of each seed.
        example_SN: value of each evaluation example, whose mean over N is ``value_S``; the same examples in the same
            order in all cells of a table. ``None`` where the metric is no mean over examples or they were not kept.
    """

    seeds: tuple[int, ...]
    value_S: Array
    example_SN: Array | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.value_S))


@dataclass(frozen=True)
class Interval:
    """A value with a confidence interval.

    Attributes:
        value: the estimate.
        low: lower end; ``None`` where no interval can be given.
        high: upper end; ``None`` as for ``low``.
        reason: why there is no interval; empty where there is one.
    """

    value: float
    low: float | None
    high: float | None
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """An arm minus the baseline, on the seeds that both have.

    Attributes:
        value: the mean difference; over all seeds of each where none is shared.
        low: lower end of the simultaneous interval, from which the verdict comes; ``None`` where there is none.
        high: its upper end.
        pointwise_low: lower end of the interval of this difference alone.
        pointwise_high: its upper end.
        verdict: better or worse where the simultaneous interval excludes zero.
        seeds: the shared seeds, ascending.
        reason: why there is no interval; empty where there is one.
    """

    value: float
    low: float | None
    high: float | None
    pointwise_low: float | None
    pointwise_high: float | None
    verdict: Verdict
    seeds: tuple[int, ...]
    reason: str = ""


@dataclass(frozen=True)
class Fit:
    """The statistics of a table.

    Attributes:
        means: arm → mean, with its pointwise interval.
        differences: arm → difference to the baseline, without the baseline itself.
        pooled: whether an arm's seed variance borrows from the other arms'.
        scale: on which seed variances are compared.
        variance_test_p: of the test of equal seed variances; ``None`` where there is nothing to test.
        rule: how the intervals came about, in one line.
    """

    means: Mapping[str, Interval]
    differences: Mapping[str, Difference]
    pooled: bool
    scale: Scale
    variance_test_p: float | None
    rule: str


def fit(
    cells: Mapping[str, Cell],
    baseline: str,
    unit_N: Units | None,
    measure: Measure,
    lower_is_better: bool,
    confidence: float = 0.95,
    unit: str = "classes",
) -> Fit:
    """Intervals of each arm's mean and of each difference to the baseline, with verdicts.

    Args:
        cells: arm → its values at the budget of the table.
        baseline: the arm that all others are compared with.
        unit_N: class or caption group of each example; ``None``: each example is its own.
        measure: of the metric; means stay inside its range.
        lower_is_better: whether a negative difference is better.
        confidence: of each interval of a mean, and of all intervals of differences together.
        unit: name of the units, for the rule.

    Returns:
        The intervals. An arm of one seed has none, and has no verdict.

    Raises:
        ValueError: the baseline is missing, a cell is empty, or cells differ in their examples.
    """
    _check(cells, baseline, unit_N)
    parts, table = _parts(cells, unit_N, measure)
    means = {arm: _mean(cells[arm], parts[arm], table.scale, measure, confidence) for arm in cells}
    differences = _differences(cells, baseline, parts, measure, lower_is_better, confidence)
    return Fit(
        means,
        differences,
        table.pooled,
        table.scale,
        table.p,
        _rule(cells, baseline, parts, table, unit_N, unit, confidence),
    )


def seed_deviation(value_S: Array, confidence: float = 0.95) -> Interval:
    """The standard deviation from seed to seed, with its own χ² interval (normal seeds), never lent to another arm."""
    value_S = np.asarray(value_S, dtype=np.float64)
    freedom = len(value_S) - 1
    if freedom < 1:
        return Interval(math.nan, None, None, "one seed: no deviation can be given")
    deviation = float(np.std(value_S, ddof=1))
    if deviation == 0:
        return Interval(0.0, None, None, "all seeds have the same value")
    tail = (1 - confidence) / 2
    low, high = (deviation * math.sqrt(freedom / float(chdtri(freedom, share))) for share in (tail, 1 - tail))
    return Interval(deviation, low, high)


@dataclass(frozen=True)
class _Part:
    """What the intervals need of a cell: its seed variance (``None`` for one seed) and the influence of its units."""

    seed: SeedVariance | None
    influence: Array | None


@dataclass(frozen=True)
class _Table:
    pooled: bool
    scale: Scale
    p: float | None
    without_examples: str


def _check(cells: Mapping[str, Cell], baseline: str, unit_N: Units | None) -> None:
    if baseline not in cells:
        raise ValueError(f"no arm {baseline!r} among {', '.join(cells)}")
    for arm, cell in cells.items():
        if not len(cell.seeds) == len(cell.value_S) > 0:
            raise ValueError(f"arm {arm}: {len(cell.seeds)} seeds and {len(cell.value_S)} values")
        if len(set(cell.seeds)) != len(cell.seeds):
            raise ValueError(f"arm {arm}: a seed stands twice in {cell.seeds}")
        if not np.isfinite(cell.value_S).all():
            raise ValueError(f"arm {arm}: a value is not finite")
    counts = {cell.example_SN.shape[1] for cell in cells.values() if cell.example_SN is not None}
    if unit_N is not None and counts:
        counts |= {len(unit_N)}
    if len(counts) > 1:
        raise ValueError(f"cells of one table have the same examples, got {sorted(counts)} of them")


def _scale(cells: Mapping[str, Cell], measure: Measure) -> Scale:
    """Logit for shares: values in [0, 1] whose examples, where they are kept, are hits and misses."""
    if measure.limits != (0.0, 1.0):
        return "identity"
    hits = all(cell.example_SN is None or np.isin(cell.example_SN, (0.0, 1.0)).all() for cell in cells.values())
    inside = all(0 < cell.mean < 1 for cell in cells.values())
    return "logit" if hits and inside else "identity"


def _slope(cell: Cell, scale: Scale) -> float:
    return 1 / (cell.mean * (1 - cell.mean)) if scale == "logit" else 1.0


def _parts(cells: Mapping[str, Cell], unit_N: Units | None, measure: Measure) -> tuple[dict[str, _Part], _Table]:
    scale = _scale(cells, measure)
    missing = [arm for arm, cell in cells.items() if cell.example_SN is None]
    one_unit = not missing and (1 if unit_N is None else len(np.unique(unit_N))) < 2 and unit_N is not None
    without = ", ".join(missing) if missing else ("one unit" if one_unit else "")
    influences: dict[str, Array | None] = {
        arm: None if without or cell.example_SN is None else influence_SG(cell.example_SN, unit_N)
        for arm, cell in cells.items()
    }
    several = [arm for arm, cell in cells.items() if len(cell.seeds) > 1]
    own = []
    for arm in several:
        influence = influences[arm]
        values = cells[arm].value_S
        noise = 0.0 if influence is None else residual(influence)
        own.append(SeedVariance(float(np.var(values, ddof=1)), len(values) - 1.0, noise))
    slopes = [_slope(cells[arm], scale) for arm in several]
    p = equal_variance_p([cells[arm].value_S * slope for arm, slope in zip(several, slopes, strict=True)])
    pooled = p is not None and p >= REFUSED_BELOW
    variances = moderated(own, slopes) if pooled else own
    seeds: dict[str, SeedVariance] = dict(zip(several, variances, strict=True))
    parts = {arm: _Part(seeds.get(arm), influences[arm]) for arm in cells}
    return parts, _Table(pooled, scale, p, without)


def _mean(cell: Cell, part: _Part, scale: Scale, measure: Measure, confidence: float) -> Interval:
    value = cell.mean
    if part.seed is None:
        return Interval(value, None, None, "one seed: the variance from seed to seed is unknown")
    uniform = uniforms(3)
    draw_D = part.seed.draws_D(uniform[0]) * normal(uniform[1]) / math.sqrt(len(cell.seeds))
    if part.influence is not None:
        draw_D = draw_D + normal(uniform[2]) * math.sqrt(float((part.influence.mean(0) ** 2).sum()))
    half = float(np.quantile(np.abs(draw_D), confidence))
    if not half > 1e-12 * abs(value):
        return Interval(value, None, None, "nothing varies, which is no certainty")
    low, high = measure.limits
    if scale == "logit":
        at, reach = math.log(value / (1 - value)), half * _slope(cell, scale)
        return Interval(value, 1 / (1 + math.exp(reach - at)), 1 / (1 + math.exp(-reach - at)))
    return Interval(value, max(low, value - half), min(high, value + half))


def _differences(
    cells: Mapping[str, Cell],
    baseline: str,
    parts: Mapping[str, _Part],
    measure: Measure,
    lower_is_better: bool,
    confidence: float,
) -> dict[str, Difference]:
    base = cells[baseline]
    shared = {arm: tuple(sorted(set(cell.seeds) & set(base.seeds))) for arm, cell in cells.items() if arm != baseline}
    drawn = sorted(arm for arm, seeds in shared.items() if seeds and parts[arm].seed and parts[baseline].seed)
    draw_KD = _draws(cells, baseline, parts, {arm: shared[arm] for arm in drawn}) if drawn else np.zeros((0, 1))
    half_K = np.quantile(np.abs(draw_KD), confidence, axis=1)
    varies_K = half_K > 1e-12 * max(abs(base.mean), 1e-300)
    ratio_D = np.abs(draw_KD[varies_K] / half_K[varies_K, None]).max(0, initial=0.0)
    factor = max(1.0, float(np.quantile(ratio_D, confidence)))
    halves = {arm: float(half) for arm, half, varies in zip(drawn, half_K, varies_K, strict=True) if varies}
    return {
        arm: _difference(cells[arm], base, seeds, halves.get(arm), factor, measure, lower_is_better)
        for arm, seeds in shared.items()
    }


def _of(cell: Cell, seeds: Sequence[int]) -> list[int]:
    return [cell.seeds.index(seed) for seed in seeds]


def _draws(
    cells: Mapping[str, Cell], baseline: str, parts: Mapping[str, _Part], shared: Mapping[str, tuple[int, ...]]
) -> Array:
    """Joint draws of the error of each difference: [K, D], in the order of ``shared``."""
    base, count = cells[baseline], len(shared)
    used = sorted(set().union(*shared.values()))
    uniform = iter(uniforms(2 * count + 1 + len(used) + count))
    base_seed = parts[baseline].seed
    assert base_seed is not None
    base_D = base_seed.draws_D(next(uniform))
    weight_KS = np.array([[(seed in seeds) / len(seeds) for seed in used] for seeds in shared.values()])
    rows = weight_KS @ np.stack([normal(next(uniform)) * base_D for _ in used])
    for k, (arm, seeds) in enumerate(shared.items()):
        seed = parts[arm].seed
        assert seed is not None
        rows[k] += seed.draws_D(next(uniform)) * normal(next(uniform)) / math.sqrt(len(seeds))
    if parts[baseline].influence is not None:
        unit_KG = np.stack(
            [
                _rows(parts[arm].influence, cells[arm], seeds) - _rows(parts[baseline].influence, base, seeds)
                for arm, seeds in shared.items()
            ]
        )
        rows += root(unit_KG @ unit_KG.T) @ np.stack([normal(next(uniform)) for _ in range(count)])
    return np.asarray(rows, dtype=np.float64)


def _rows(influence: Array | None, cell: Cell, seeds: Sequence[int]) -> Array:
    assert influence is not None
    return np.asarray(influence[_of(cell, seeds)].mean(0), dtype=np.float64)


def _difference(
    cell: Cell,
    base: Cell,
    seeds: tuple[int, ...],
    half: float | None,
    factor: float,
    measure: Measure,
    lower_is_better: bool,
) -> Difference:
    if not seeds:
        return _untold(cell.mean - base.mean, seeds, "no seed in common with the baseline")
    value = float(cell.value_S[_of(cell, seeds)].mean() - base.value_S[_of(base, seeds)].mean())
    if half is None:
        few = min(len(cell.seeds), len(base.seeds)) < 2
        return _untold(
            value,
            seeds,
            "one seed: the variance from seed to seed is unknown" if few else "nothing varies, which is no certainty",
        )
    low, high = value - factor * half, value + factor * half
    verdict: Verdict = "not told apart"
    if low > 0 or high < 0:
        verdict = "better" if (value > 0) != lower_is_better else "worse"
    widest = measure.limits[1] - measure.limits[0]
    cut = [min(max(end, -widest), widest) for end in (low, high, value - half, value + half)]
    return Difference(value, cut[0], cut[1], cut[2], cut[3], verdict, seeds)


def _untold(value: float, seeds: tuple[int, ...], reason: str) -> Difference:
    return Difference(value, None, None, None, None, "not told apart", seeds, reason)


def _rule(
    cells: Mapping[str, Cell],
    baseline: str,
    parts: Mapping[str, _Part],
    table: _Table,
    unit_N: Units | None,
    unit: str,
    confidence: float,
) -> str:
    counts = sorted({len(cell.seeds) for cell in cells.values()})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed{'s' * (counts[0] > 1)}"
    influence = parts[baseline].influence
    what = ""
    if table.without_examples:
        what = f"no per-example results ({table.without_examples}), so that the noise of the examples is left out"
    elif influence is not None:
        what = f"{influence.shape[1]:,} {'examples' if unit_N is None else unit}"
    among = sum(part.seed is not None for part in parts.values())
    if table.p is None:
        pool = "each arm's seed variance its own"
    elif table.pooled:
        pool = f"seed variances drawn together over {among} arms on the {table.scale} scale"
    else:
        pool = f"each arm's seed variance its own, since they differ (p = {table.p:.2g}, Bartlett)"
    which = f"{confidence * 100:g} % simultaneous (Dunnett) intervals of the paired difference to {baseline}"
    return f"{which}: {seeds}, {what}; {pool}"
