"""Prints the tables of docs/statistics.md: how often intervals cover what was planted (``tests/compare/planted.py``).

PYTHONPATH=.:tests/compare OMP_NUM_THREADS=1 python tests/compare/make_coverage.py [--simulations 1000] [--seeds 2 3 8]
[--tables single speedups families]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, product

import numpy as np
import planted

from jestbench.compare.crossings import speedups
from jestbench.compare.statistics import fit

EQUAL, NOISY = 0.2, 0.6
"""Seed deviations on the logit scale: of an arm, and of one three times as noisy."""
SMALL, LARGE = 0.05, 0.2
"""Seed deviations of tables of which all intervals are asked to cover together; a noisy arm has three times as much."""


@dataclass(frozen=True)
class Setting:
    """What is planted in a table; ``own`` is ``w`` of ``planted.py``."""

    seeds: int
    arms: int
    truth: float
    classes: int
    noisy: int | None
    deviation: float = EQUAL
    own: float = planted.OWN

    @property
    def deviations(self) -> list[float]:
        return [self.deviation * (NOISY / EQUAL if arm == self.noisy else 1) for arm in range(self.arms)]


@dataclass(frozen=True)
class Coverage:
    """Shares of simulated tables, and the median half width of the difference of arm 1.

    Means and differences are gathered by what was planted, since the others of a table leave them alone. ``family`` is
    the share of tables in which all simultaneous intervals cover, ``false_verdict`` the share with at least one verdict
    that is false, in either direction. Half widths are upward: of the pointwise and of the simultaneous interval.
    """

    means: dict[str, list[float]]
    differences: dict[str, list[float]]
    false_better: float
    false_verdict: float
    family: float
    half_width: float
    simultaneous: float

    def least(self) -> float:
        """The share of what is covered least."""
        return min(float(np.mean(part)) for part in (*self.means.values(), *self.differences.values()))

    def most(self) -> float:
        """The share of what is covered most."""
        return max(float(np.mean(part)) for part in (*self.means.values(), *self.differences.values()))


def simulate(setting: Setting, simulations: int, seed: int = 0) -> Coverage:
    """Simulated tables without effects, in which every arm has the same truth."""
    generator = np.random.default_rng([seed, setting.seeds, setting.arms, setting.classes, int(1000 * setting.truth)])
    truths = [setting.truth] * setting.arms
    unit_N = planted.classes(setting.classes)
    means, differences = defaultdict(list), defaultdict(list)
    better, judged, family, widths = [], [], [], []
    for _ in range(simulations):
        cells = planted.table(generator, truths, setting.deviations, setting.seeds, unit_N, setting.own)
        found = fit(cells, "0", unit_N, planted.SHARE, lower_is_better=False)
        for arm, mean in found.means.items():
            kind = "threefold" if int(arm) == setting.noisy else "equal"
            means[kind].append(_holds(mean.low, mean.high, setting.truth))
        for arm, each in found.differences.items():
            kind = "threefold" if setting.noisy in (0, int(arm)) else "equal"
            differences[kind].append(_holds(each.pointwise_low, each.pointwise_high, 0.0))
        better.append(any(each.verdict == "better" for each in found.differences.values()))
        judged.append(any(each.verdict != "not told apart" for each in found.differences.values()))
        family.append(all(_holds(each.low, each.high, 0.0) for each in found.differences.values()))
        first = found.differences["1"]
        ends = (first.pointwise_high, first.high)
        widths.append([np.nan if end is None else end - first.value for end in ends])
    shares = (float(np.mean(each)) for each in (better, judged, family))
    return Coverage(means, differences, *shares, *(float(width) for width in np.nanmedian(widths, axis=0)))


def simulate_speedups(
    seeds: int, deviations: tuple[float, float], speedup: float, simulations: int
) -> dict[str, float]:
    """Simulated ladders of five rungs: the baseline gains 2.5 points a doubling, the arm is ahead by ``speedup``."""
    generator = np.random.default_rng([1, seeds, int(100 * speedup)])
    unit_N = planted.classes(1000)
    doubling_R = np.arange(5)
    truth_AR = [list(0.02 + 0.025 * (doubling_R + np.log2(ahead))) for ahead in (1.0, speedup)]
    covered, is_open = [], []
    for number in range(simulations):
        base, arm = planted.ladders(generator, truth_AR, deviations, seeds, unit_N)
        found = speedups(arm, base, unit_N, planted.SHARE, lower_is_better=False, draws=500, seed=number)["flops"]
        covered.append((found.low is None or found.low <= speedup) and (found.high is None or speedup <= found.high))
        is_open.append(found.low is None or found.high is None)
    return {"covered": float(np.mean(covered)), "open": float(np.mean(is_open))}


def _holds(low: float | None, high: float | None, truth: float) -> bool:
    return low is not None and high is not None and low <= truth <= high


def main() -> None:
    """Print the tables that are asked for."""
    tables = {"single": print_single, "speedups": print_speedups, "families": print_families}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 8])
    parser.add_argument("--tables", choices=tables, nargs="+", default=list(tables))
    asked = parser.parse_args()
    for name in asked.tables:
        tables[name](asked.seeds, asked.simulations)


def print_single(seed_counts: Sequence[int], simulations: int) -> None:
    """Print how often single intervals cover, as ranges over 1,000 and 200 classes, those of tables also over arms."""
    _print("seeds", "accuracy", "seed deviations", "mean covered", "difference covered", "false better", "half width")
    _print(*["---"] * 7)
    for seeds, truth, (name, noisy) in product(seed_counts, (0.06, 0.012), (("equal", (None,)), ("threefold", (0, 1)))):
        got = {
            classes: [
                simulate(Setting(seeds, arms, truth, classes, which), simulations)
                for arms, which in product((2, 4), noisy)
            ]
            for classes in (1000, 200)
        }
        means = _range(np.mean(list(chain(*(each.means[name] for each in part)))) for part in got.values())
        differences = _range(np.mean(list(chain(*(each.differences[name] for each in part)))) for part in got.values())
        better = max(each.false_better for part in got.values() for each in part)
        widths = _range(each.half_width for part in got.values() for each in part)
        _print(seeds, f"{truth * 100:g} %", name, means, differences, f"≤ {better * 100:.1f}", widths)


def print_speedups(seed_counts: Sequence[int], simulations: int) -> None:
    """Print how often the intervals of speed-ups cover."""
    _print("seeds", "seed deviations", "speed-up", "covered", "an end open")
    _print(*["---"] * 5)
    kinds = (("equal", (EQUAL, EQUAL)), ("3x arm", (EQUAL, NOISY)), ("3x baseline", (NOISY, EQUAL)))
    for seeds, (name, deviations), speedup in product(seed_counts, kinds, (2.5, 6.0)):
        found = simulate_speedups(seeds, deviations, speedup, simulations)
        _print(seeds, name, f"{speedup:g}", f"{found['covered'] * 100:.1f}", f"{found['open'] * 100:.0f}")


def print_families(seed_counts: Sequence[int], simulations: int) -> None:
    """Print how often all differences of a table are covered together, at 6 % and 1,000 classes; arms of ``own`` 0."""
    _print("seeds", "arms", "seed deviation", "noisy", "all covered", "a false verdict", "one covered", "half width")
    _print(*["---"] * 8)
    noisy = {"none": None, "an arm": 1, "baseline": 0}
    for seeds, deviation, arms, (name, which) in product(seed_counts, (SMALL, LARGE), (2, 4, 8), noisy.items()):
        found = simulate(Setting(seeds, arms, 0.06, 1000, which, deviation, own=0.0), simulations)
        one = np.mean(list(chain(*found.differences.values())))
        shares = (f"{100 * share:.1f}" for share in (found.family, found.false_verdict, one))
        _print(seeds, arms, deviation, name, *shares, f"{100 * found.simultaneous:.2f}")


def _print(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def _range(shares: Iterable[float | np.floating]) -> str:
    percent = [100 * share for share in shares]
    return f"{min(percent):.1f}–{max(percent):.1f}"


if __name__ == "__main__":
    main()
