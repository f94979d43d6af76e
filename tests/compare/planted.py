"""Planted evaluations: hits of arms whose expected accuracy is known, drawn from seeds × classes × examples.

The superpopulation: a seed is a new training run, a class and the examples in it are new draws from endless many. The
log-odds that the run of seed s of arm a hits example i of class g are

    β_a + σ_a z_as + 2 · (√½ u_g + √½ e_i) + 2 · (√½ u_ag + √½ e_ai)        (all standard normal)

so that examples of one class correlate by 0.5 in what is common to all arms and in what is the arm's own. An arm's
truth is the expectation over all of them; β_a makes it the accuracy asked for, whatever σ_a.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from jestbench.compare.statistics import Cell

COMMON, OWN = 2.0, 2.0
EXAMPLES = 2000


@cache
def intercept(truth: float, deviation: float) -> float:
    """β at which the expected accuracy is ``truth``."""
    node, weight = np.polynomial.hermite_e.hermegauss(81)
    total = np.sqrt(COMMON**2 + OWN**2 + deviation**2)
    return float(brentq(lambda beta: weight @ expit(beta + total * node) / weight.sum() - truth, -30, 10))


def draw(
    generator: np.random.Generator,
    truth_A: Sequence[float],
    deviation_A: Sequence[float],
    seeds: int,
    unit_N: np.ndarray,
    shared_S: np.ndarray | None = None,
) -> list[Cell]:
    """One table: a cell of each arm, all on the same examples."""
    classes, examples = unit_N.max() + 1, len(unit_N)

    def effect() -> np.ndarray:
        return np.sqrt(0.5) * (generator.standard_normal(classes)[unit_N] + generator.standard_normal(examples))

    common_N = COMMON * effect()
    cells = []
    for truth, deviation in zip(truth_A, deviation_A, strict=True):
        seed_S = generator.standard_normal(seeds) if shared_S is None else shared_S
        logit_SN = intercept(truth, deviation) + common_N + OWN * effect() + deviation * seed_S[:, None]
        hit_SN = (generator.random(logit_SN.shape, dtype=np.float32) < expit(logit_SN)).astype(np.float64)
        cells.append(Cell(tuple(range(seeds)), hit_SN.mean(1), hit_SN))
    return cells
