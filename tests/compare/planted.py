"""Planted evaluations: hits of arms whose expected accuracy is known, drawn from seeds × classes × examples.

The superpopulation: a seed is a new training run, a class and the examples in it are new draws from endless many. The
log-odds that the run of seed s of arm a hits example i of class g are

    β_a + σ_a z_as + 2 · (√½ u_g + √½ e_i) + w · (√½ u_ag + √½ e_ai)        (all standard normal; w = 2 or 0)

so that examples of one class correlate by 0.5 in what is common to all arms and in what is the arm's own. With
w = 0 all arms find the same examples hard: a difference then has no noise of examples but what one seed's hits have
by themselves. An arm's truth is the expectation over all of them; β_a makes it the accuracy asked for, whatever σ_a.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from jestbench.compare.crossings import Ladder
from jestbench.compare.curves import AXES
from jestbench.compare.statistics import Cell
from jestbench.evals.measure import Measure

COMMON, OWN = 2.0, 2.0
EXAMPLES = 2000
SHARE = Measure(0.0, 1.0, EXAMPLES)


@cache
def intercept(truth: float, deviation: float, own: float = OWN) -> float:
    """β at which the expected accuracy is ``truth``."""
    node, weight = np.polynomial.hermite_e.hermegauss(81)
    total = np.sqrt(COMMON**2 + own**2 + deviation**2)
    return float(brentq(lambda beta: weight @ expit(beta + total * node) / weight.sum() - truth, -30, 10))


def classes(count: int) -> np.ndarray:
    """Class of each example."""
    return np.arange(EXAMPLES) % count


def effect(generator: np.random.Generator, unit_N: np.ndarray) -> np.ndarray:
    """Effects of examples, of unit variance, half of it shared by a class."""
    of_class = generator.standard_normal(unit_N.max() + 1)[unit_N]
    return np.sqrt(0.5) * (of_class + generator.standard_normal(len(unit_N)))


def cell(
    generator: np.random.Generator,
    truth: float,
    deviation: float,
    effect_N: np.ndarray,
    seed_S: np.ndarray,
    own: float = OWN,
) -> Cell:
    """What an arm's seeds hit."""
    logit_SN = intercept(truth, deviation, own) + effect_N + deviation * seed_S[:, None]
    hit_SN = (generator.random(logit_SN.shape, dtype=np.float32) < expit(logit_SN)).astype(np.float64)
    return Cell(tuple(range(len(seed_S))), hit_SN.mean(1), hit_SN)


def table(
    generator: np.random.Generator,
    truth_A: Sequence[float],
    deviation_A: Sequence[float],
    seeds: int,
    unit_N: np.ndarray,
    own: float = OWN,
) -> dict[str, Cell]:
    """Arms of one table, named 0, 1, …, all on the same examples; ``own`` is w of the arms."""
    common_N = COMMON * effect(generator, unit_N)
    return {
        str(arm): cell(
            generator,
            truth,
            deviation,
            common_N + own * effect(generator, unit_N),
            generator.standard_normal(seeds),
            own,
        )
        for arm, (truth, deviation) in enumerate(zip(truth_A, deviation_A, strict=True))
    }


def ladders(
    generator: np.random.Generator,
    truth_AR: Sequence[Sequence[float]],
    deviation_A: Sequence[float],
    seeds: int,
    unit_N: np.ndarray,
) -> list[Ladder]:
    """Arms with a value at 1, 2, 4, … FLOPs; half of a seed's deviation is that of its trunk, common to its rungs."""
    common_N = COMMON * effect(generator, unit_N)
    found = []
    for truth_R, deviation in zip(truth_AR, deviation_A, strict=True):
        effect_N = common_N + OWN * effect(generator, unit_N)
        trunk_S = generator.standard_normal(seeds)
        cells = tuple(
            cell(
                generator,
                truth,
                deviation,
                effect_N,
                np.sqrt(0.5) * (trunk_S + generator.standard_normal(seeds)),
            )
            for truth in truth_R
        )
        found.append(Ladder(cells, amounts(2.0 ** np.arange(len(truth_R)))))
    return found


def amounts(flops_R: np.ndarray | Sequence[float]) -> dict[str, np.ndarray]:
    """The same amounts on every axis."""
    return {axis: np.asarray(flops_R, dtype=np.float64) for axis in AXES}
