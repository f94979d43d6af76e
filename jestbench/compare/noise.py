"""The two noises of an evaluated arm, seeds and examples, and the half widths that follow (docs/statistics.md).

Shape suffixes: ``S`` seeds, ``N`` evaluation examples, ``G`` units of examples (a class, a caption group), ``D`` draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc, chdtri, ndtr, ndtri, stdtrit
from scipy.stats import qmc

Array = npt.NDArray[np.float64]
Units = npt.NDArray[np.int64]

REFUSED_BELOW = 0.05
"""p-value of the test of equal seed variances below which nothing is pooled."""
_LENT = 0.5
"""Degrees of freedom that the other arms add to an arm's seed variance (docs/statistics.md)."""
_NO_VARIANCE = 1e-100  # the square of less underflows
_LOG2_DRAWS = 13


def influence_SG(example_SN: Array, unit_N: Units | None) -> Array:
    """What each unit adds to each seed's mean; the sum of its squares estimates the mean's variance over units.

    The mean over examples is a ratio of two sums over units (of values, of sizes). Its linearisation is
    Σ_{i in unit} (x_i − x̄) / N, here times √(G / (G − 1)) (Cochran 1977, Sampling Techniques, sections 6.4 and 9A.1).

    Args:
        example_SN: values, the same examples for every seed.
        unit_N: unit of each example; ``None``: each is its own.
    """
    rest_SN = (example_SN - example_SN.mean(1, keepdims=True)) / example_SN.shape[1]
    if unit_N is not None:
        name_G, code_N = np.unique(unit_N, return_inverse=True)
        rest_SN = np.stack([np.bincount(code_N, rest_N, len(name_G)) for rest_N in rest_SN])
    units = rest_SN.shape[1]
    return np.asarray(rest_SN * math.sqrt(units / max(units - 1, 1)), dtype=np.float64)


@dataclass(frozen=True)
class SeedVariance:
    """Variance of an arm's value from seed to seed: an estimate with a scaled χ² distribution.

    Attributes:
        variance: of one seed's value.
        freedom: degrees of freedom of the estimate.
        residual: the part that is noise of the examples given the seed (the interaction of the two). The variance over
            units holds it too, so that it is counted there alone.
    """

    variance: float
    freedom: float
    residual: float = 0.0

    @staticmethod
    def of(value_S: Array, influence: Array | None) -> SeedVariance:
        """The variance of at least two seeds, by itself; ``influence`` [S, G], ``None`` without examples."""
        shared = 0.0 if influence is None else float(influence.var(0, ddof=1).sum())
        return SeedVariance(float(np.var(value_S, ddof=1)), len(value_S) - 1.0, shared)

    @property
    def net(self) -> float:
        """The variance without the residual, not below zero."""
        return max(self.variance - self.residual, 0.0)

    def deviation_D(self, normal_D: Array) -> Array:
        """Fiducial draws of the standard deviation without the residual, from standard normal draws."""
        place, log_chi = _log_chi(self.freedom)
        chi_D = np.exp(np.interp(normal_D, place, log_chi))
        net_D = np.maximum(self.variance * self.freedom / chi_D - self.residual, 0.0)
        return np.asarray(np.sqrt(net_D), dtype=np.float64)


@lru_cache(maxsize=64)
def _log_chi(freedom: float) -> tuple[Array, Array]:
    """Logarithm of χ² as a function of a standard normal variable of the same rank."""
    place = np.linspace(-6, 6, 1201)
    return place, np.log(chdtri(freedom, ndtr(-place)))


def together(own: Sequence[SeedVariance], slope: Sequence[float], step: float) -> tuple[list[SeedVariance], float]:
    """Seed variances of several arms, drawn towards their common value, and the p-value of their equality.

    An arm's variance is shrunk towards the pooled one as if by ``_LENT`` more degrees of freedom (Smyth 2004,
    doi:10.2202/1544-6115.1027), few enough for an arm three times as noisy as the others. Where Bartlett's test refuses
    that the variances are equal, each arm keeps its own.

    Args:
        own: each arm's own variance.
        slope: of the common scale at each arm's mean: variances are comparable after multiplication by its square.
        step: distance between neighbouring values that a mean can have (0: any), so that equal values are no proof.

    Returns:
        The variances, and p.
    """
    freedom_A = np.array([part.freedom for part in own])
    slope_A = np.array(slope) ** 2
    net_A = np.array([part.variance - part.residual for part in own]) * slope_A
    common_A = max(float(freedom_A @ net_A / freedom_A.sum()), 0.0) / slope_A + [part.residual for part in own]
    p = _bartlett((np.array([part.variance for part in own]) + step**2 / 12) / np.maximum(common_A, 1e-300), freedom_A)
    if p < REFUSED_BELOW:
        return list(own), p
    return [
        replace(
            part,
            variance=(part.freedom * part.variance + _LENT * common) / (part.freedom + _LENT),
            freedom=part.freedom + _LENT,
        )
        for part, common in zip(own, common_A, strict=True)
    ], p


def _bartlett(variance_A: Array, freedom_A: Array) -> float:
    """p-value of Bartlett's test of equal variances, from the variances: 0 where some are zero, 1 where all are."""
    if not variance_A.any():
        return 1.0
    if not variance_A.all():
        return 0.0
    total, arms = freedom_A.sum(), len(freedom_A)
    spread = total * math.log(freedom_A @ variance_A / total) - freedom_A @ np.log(variance_A)
    correction = 1 + ((1 / freedom_A).sum() - 1 / total) / (3 * (arms - 1))
    return float(chdtrc(arms - 1, max(spread / correction, 0.0)))


@dataclass(frozen=True)
class Spread:
    """The noise of a mean or a difference.

    Attributes:
        seeds: seed variances, and by what each is divided.
        unit_G: influence of each unit of examples; ``None`` without examples.
    """

    seeds: Sequence[tuple[SeedVariance, int]]
    unit_G: Array | None

    @property
    def unit_variance(self) -> float:
        """Variance over units."""
        return 0.0 if self.unit_G is None else float(self.unit_G @ self.unit_G)

    @property
    def unit_freedom(self) -> float:
        """Degrees of freedom of the variance over units, from the fourth moment: few where a few units carry it all."""
        if self.unit_G is None or not self.unit_variance:
            return 1.0
        square_G, units = self.unit_G**2, len(self.unit_G)
        excess = float(square_G @ square_G) - self.unit_variance**2 / units
        return min(units - 1.0, 2 * self.unit_variance**2 / max(excess, 1e-300))

    def unit_deviation(self, confidence: float) -> float:
        """Standard deviation over units, widened so that a normal quantile serves in place of Student's."""
        tail = (1 + confidence) / 2
        return math.sqrt(self.unit_variance) * float(stdtrit(self.unit_freedom, tail) / ndtri(tail))

    def half_width(self, error_D: Array, confidence: float, fiducial_share: float) -> float:
        """Half of the width of the interval; 0 where nothing varies.

        Of two approximations to a sum of variances with few degrees of freedom, Satterthwaite's is too narrow and that
        of Behrens and Fisher (``error_D``) too wide; their weighted geometric mean covers.

        Args:
            error_D: fiducial draws of the error.
            confidence: of the interval.
            fiducial_share: weight of the wider.
        """
        fiducial = float(np.quantile(np.abs(error_D), confidence))
        variance = self.unit_variance + sum(part.net / count for part, count in self.seeds)
        if not variance > _NO_VARIANCE or not fiducial > 0:
            return fiducial
        parts = [(part.variance / count) ** 2 / part.freedom for part, count in self.seeds]
        freedom = variance**2 / (sum(parts) + self.unit_variance**2 / self.unit_freedom)
        narrow = float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(variance)
        return float(narrow ** (1 - fiducial_share) * fiducial**fiducial_share)


@lru_cache(maxsize=8)
def normals(dimensions: int) -> Array:
    """Standard normal draws from shifted Sobol points, [dimensions, 8192], the same at every call."""
    points = qmc.Sobol(dimensions, scramble=False).random_base2(_LOG2_DRAWS).T
    shift = np.random.default_rng(0).uniform(size=(dimensions, 1))
    drawn = np.asarray(ndtri(np.clip((points + shift) % 1, 1e-9, 1 - 1e-9)), dtype=np.float64)
    drawn.setflags(write=False)
    return drawn


def root(covariance: Array) -> Array:
    """A square root of a covariance matrix that may be singular: ``root @ root.T`` is the matrix."""
    value, vector = np.linalg.eigh(covariance)
    return np.asarray(vector * np.sqrt(np.maximum(value, 0.0)), dtype=np.float64)
