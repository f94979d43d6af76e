"""Intervals and verdicts of a table of arms, from seeds and evaluation examples (docs/statistics.md).

Shape suffixes: ``S`` seeds, ``N`` evaluation examples, ``G`` units of examples, ``K`` arms beside the baseline,
``D`` draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import chdtri

from jestbench.compare.curves import Array
from jestbench.compare.noise import (
    CONFIDENCE,
    SeedVariance,
    Spread,
    Units,
    logit_ends,
    normals,
    paired,
    root,
)
from jestbench.evals.measure import Measure
from jestbench.evals.results import influence_SG

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
        scale: on which the intervals of means are symmetric.
        apart: arms whose seed variance is evidently not the baseline's, so that degrees of freedom do not add up.
        rule: how the intervals came about, in one line.
    """

    means: Mapping[str, Interval]
    differences: Mapping[str, Difference]
    scale: Scale
    apart: tuple[str, ...]
    rule: str


def means(cells: Mapping[str, Cell], unit_N: Units | None, measure: Measure) -> dict[str, Interval]:
    """Pointwise intervals of the arms' means; arguments and errors as of ``fit``."""
    return _means(cells, table_noise(cells, unit_N, measure), measure)


def fit(
    cells: Mapping[str, Cell],
    baseline: str,
    unit_N: Units | None,
    measure: Measure,
    lower_is_better: bool,
    unit: str = "classes",
) -> Fit:
    """Intervals of each arm's mean and of each difference to the baseline, with verdicts.

    Args:
        cells: arm → its values at the budget of the table.
        baseline: the arm that all others are compared with.
        unit_N: class or caption group of each example; ``None``: each example is its own.
        measure: of the metric; means stay inside its range.
        lower_is_better: whether a negative difference is better.
        unit: name of the units, for the rule.

    Returns:
        The intervals. An arm of one seed has none, and has no verdict.

    Raises:
        ValueError: the baseline is missing, a cell is empty, or cells differ in their examples.
    """
    if baseline not in cells:
        raise ValueError(f"no arm {baseline!r} among {', '.join(cells)}")
    noise = table_noise(cells, unit_N, measure)
    shared = {arm: tuple(sorted(set(cell.seeds) & set(cells[baseline].seeds))) for arm, cell in cells.items()}
    reaches, apart = _reaches(cells, baseline, shared, noise)
    differences = {
        arm: _difference(cells[arm], cells[baseline], seeds, reaches.get(arm), measure, lower_is_better)
        for arm, seeds in shared.items()
        if arm != baseline
    }
    rule = _rule(cells, baseline, noise, apart, unit if unit_N is not None else "examples")
    return Fit(_means(cells, noise, measure), differences, noise.scale, apart, rule)


def seed_deviation(value_S: Array) -> Interval:
    """The standard deviation from seed to seed, with its own χ² interval (normal seeds), never lent to another arm."""
    value_S = np.asarray(value_S, dtype=np.float64)
    freedom = len(value_S) - 1
    if freedom < 1:
        return Interval(math.nan, None, None, "one seed: no deviation can be given")
    deviation = float(np.std(value_S, ddof=1))
    if deviation == 0:
        return Interval(0.0, None, None, "all seeds have the same value")
    tail = (1 - CONFIDENCE) / 2
    low, high = (deviation * math.sqrt(freedom / float(chdtri(freedom, share))) for share in (tail, 1 - tail))
    return Interval(deviation, low, high)


_ONE_SEED = "one seed: the variance from seed to seed is unknown"
_NOTHING_VARIES = "nothing varies, which is no certainty"


@dataclass(frozen=True)
class Noise:
    """The noise of a table's cells.

    Attributes:
        seed: arm → variance from seed to seed; no entry for one seed.
        influence: arm → influence of units [S, G]; no entry where its examples are missing.
        missing: whose examples are missing.
        scale: of intervals of means.
        step: distance between neighbouring values of a mean over examples; 0: any.
    """

    seed: Mapping[str, SeedVariance]
    influence: Mapping[str, Array]
    missing: str
    scale: Scale
    step: float

    def unit_G(self, arm: str, cell: Cell, seeds: tuple[int, ...]) -> Array | None:
        """Influence of units on the mean over some seeds."""
        if arm not in self.influence:
            return None
        return np.asarray(self.influence[arm][_of(cell, seeds)].mean(0), dtype=np.float64)

    def seeds_alone(self) -> Noise:
        """The noise without that of the examples, which the variances from seed to seed then hold whole."""
        return replace(self, seed={arm: replace(one, residual=0.0) for arm, one in self.seed.items()}, influence={})


def table_noise(cells: Mapping[str, Cell], unit_N: Units | None, measure: Measure) -> Noise:
    """The noise of cells that share their examples; arguments and errors as of ``fit``."""
    _check(cells, unit_N)
    scale = _scale(cells, measure)
    missing = ", ".join(arm for arm, cell in cells.items() if cell.example_SN is None)
    alone = unit_N is not None and len(np.unique(unit_N)) < 2
    if alone and not missing:
        missing = "more than one unit"
    influence = {
        arm: influence_SG(cell.example_SN, unit_N)
        for arm, cell in cells.items()
        if cell.example_SN is not None and not alone
    }
    seed = {
        arm: SeedVariance.of(cell.value_S, influence.get(arm))
        for arm, cell in sorted(cells.items())
        if len(cell.seeds) > 1
    }
    step = 1 / measure.examples if scale == "logit" and measure.examples else 0.0
    return Noise(seed, influence, missing, scale, step)


def _check(cells: Mapping[str, Cell], unit_N: Units | None) -> None:
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
    hits = all(cell.example_SN is None or np.isin(cell.example_SN, (0.0, 1.0)).all() for cell in cells.values())
    return "logit" if measure.limits == (0.0, 1.0) and hits else "identity"


def _of(cell: Cell, seeds: tuple[int, ...]) -> list[int]:
    return [cell.seeds.index(seed) for seed in seeds]


def _means(cells: Mapping[str, Cell], noise: Noise, measure: Measure) -> dict[str, Interval]:
    return {arm: _mean(arm, cell, noise, measure) for arm, cell in cells.items()}


def _mean(arm: str, cell: Cell, noise: Noise, measure: Measure) -> Interval:
    """The interval of a mean, from the arm's own seeds alone."""
    value, seed = cell.mean, noise.seed.get(arm)
    if seed is None:
        return Interval(value, None, None, _ONE_SEED)
    half = Spread([(seed, len(cell.seeds))], noise.unit_G(arm, cell, cell.seeds)).half_width
    if not half > 1e-12 * abs(value):
        return Interval(value, None, None, _NOTHING_VARIES)
    if noise.scale == "logit":
        return Interval(value, *logit_ends(value, half))
    low, high = measure.limits
    return Interval(value, max(low, value - half), min(high, value + half))


Sides = tuple[float, float]
"""How far an interval reaches down and up from its value."""


def _reaches(
    cells: Mapping[str, Cell],
    baseline: str,
    shared: Mapping[str, tuple[int, ...]],
    noise: Noise,
) -> tuple[dict[str, tuple[Sides, Sides]], tuple[str, ...]]:
    """Arm → reach of its difference, simultaneous and pointwise; and the arms whose seed variance stays apart.

    There is no entry where there is no interval.
    """
    base = cells[baseline]
    drawn = [arm for arm in sorted(noise.seed) if arm != baseline and shared[arm] and baseline in noise.seed]
    if not drawn:
        return {}, ()
    spreads, apart = [], []
    for arm in drawn:
        own_G, base_G = (noise.unit_G(a, cells[a], shared[arm]) for a in (arm, baseline))
        unit_G = None if own_G is None or base_G is None else own_G - base_G
        seed = (noise if unit_G is not None else noise.seeds_alone()).seed
        *pair, stays = paired(seed[arm], seed[baseline], noise.step)
        spreads.append(Spread([(seed, len(shared[arm])) for seed in pair], unit_G))
        apart += [arm] * stays
    error_KD = _errors(spreads, [shared[arm] for arm in drawn])
    half_K = np.array([spread.half_width for spread in spreads])
    varies_K = half_K > 1e-12 * abs(base.mean)
    # Dunnett's factor: the quantile of the largest |error|, each in units of its own pointwise quantile.
    scaled_KD = np.abs(error_KD[varies_K])
    scaled_KD /= np.quantile(scaled_KD, CONFIDENCE, axis=1, keepdims=True)
    factor = max(1.0, float(np.quantile(scaled_KD.max(0, initial=0.0), CONFIDENCE)))
    reaches: dict[str, tuple[Sides, Sides]] = {}
    for arm, spread, varies in zip(drawn, spreads, varies_K, strict=True):
        own, other = (float(a.value_S[_of(a, shared[arm])].mean()) for a in (cells[arm], base))
        simultaneous, pointwise = (spread.reach((own, other), times, noise.scale == "logit") for times in (factor, 1.0))
        reaches |= {arm: (simultaneous, pointwise)} if varies else {}
    return reaches, tuple(apart)


def _errors(spreads: list[Spread], shared: list[tuple[int, ...]]) -> Array:
    """Joint fiducial draws of the errors of differences to one baseline: [K, D]."""
    used = sorted(set().union(*shared))
    normal = iter(normals(1 + len(used) + 3 * len(spreads)))
    base_D = next(normal)
    weight_KS = np.array([[(seed in seeds) / len(seeds) for seed in used] for seeds in shared])
    error_KD = weight_KS @ np.stack([next(normal) for _ in used])
    for error_D, spread in zip(error_KD, spreads, strict=True):
        (own, count), (base, _) = spread.seeds
        error_D *= base.deviation_D(base_D)
        error_D += own.deviation_D(next(normal)) * next(normal) / math.sqrt(count)
    widened = {
        arm: spread.unit_G * (spread.unit_deviation / max(spread.unit_variance, 1e-300) ** 0.5)
        for arm, spread in enumerate(spreads)
        if spread.unit_G is not None
    }
    if widened:
        unit_KG = np.stack(list(widened.values()))
        error_KD[list(widened)] += root(unit_KG @ unit_KG.T) @ np.stack([next(normal) for _ in widened])
    return np.asarray(error_KD, dtype=np.float64)


def _difference(
    cell: Cell,
    base: Cell,
    seeds: tuple[int, ...],
    reaches: tuple[Sides, Sides] | None,
    measure: Measure,
    lower_is_better: bool,
) -> Difference:
    if not seeds:
        reason = "no seed in common with the baseline"
        return Difference(cell.mean - base.mean, None, None, None, None, "not told apart", seeds, reason)
    value = float(cell.value_S[_of(cell, seeds)].mean() - base.value_S[_of(base, seeds)].mean())
    if reaches is None:
        reason = _ONE_SEED if min(len(cell.seeds), len(base.seeds)) < 2 else _NOTHING_VARIES
        return Difference(value, None, None, None, None, "not told apart", seeds, reason)
    widest = measure.limits[1] - measure.limits[0]
    ends = [min(max(end, -widest), widest) for down, up in reaches for end in (value - down, value + up)]
    verdict: Verdict = "not told apart"
    if ends[0] > 0 or ends[1] < 0:
        verdict = "better" if (value > 0) != lower_is_better else "worse"
    return Difference(value, ends[0], ends[1], ends[2], ends[3], verdict, seeds)


def _rule(cells: Mapping[str, Cell], baseline: str, noise: Noise, apart: tuple[str, ...], unit: str) -> str:
    counts = sorted({len(cell.seeds) for cell in cells.values()})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed{'s' * (counts[0] > 1)}"
    what = next((f"{influence.shape[1]:,} {unit}" for influence in noise.influence.values()), "")
    if noise.missing:
        left = "" if not what else " of every interval that they are part of"
        bare = f"no per-example results ({noise.missing}), so that the noise of the examples is left out{left}"
        what = "; ".join(part for part in (what, bare) if part)
    pool = "the seed variance of each arm its own"
    if apart:
        pool += (
            f", with its own degrees of freedom where an F test parts it from that of {baseline}: {', '.join(apart)}"
        )
    which = f"{CONFIDENCE * 100:g} % simultaneous (Dunnett) intervals of the paired difference to {baseline}"
    return f"{which}: {seeds}, {what}; {pool}"
