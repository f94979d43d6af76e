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
from scipy.special import chdtri, expit, fdtr, ndtr, ndtri, stdtrit
from scipy.stats import qmc

from jestbench.compare.curves import Array

Units = npt.NDArray[np.int64]

CONFIDENCE = 0.95
"""Of every interval, and of all simultaneous ones of a table together."""
_TAIL = (1 + CONFIDENCE) / 2
_REFUSED_BELOW = 0.4
"""p-value of the F test of equal seed variances below which degrees of freedom do not add up."""
_HALF_OF_RESIDUAL = 2.42
"""Degrees of freedom at which half of the residual is taken out of a seed variance: (z² + 1) / 2, z = 1.96."""
_LOG2_DRAWS = 13


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
    def excess(self) -> float:
        """The part of the residual that is taken out of the variance.

        The half width of the whole variance has Student's quantile t, that of the residual, which the variance over
        units counts, the normal one z: t² · variance − z² · residual = t² · net. This share is (z / t)², to first order
        in one over the degrees of freedom.
        """
        return self.residual * self.freedom / (self.freedom + _HALF_OF_RESIDUAL)

    @property
    def net(self) -> float:
        """The variance without ``excess``, not below zero."""
        return max(self.variance - self.excess, 0.0)

    def deviation_D(self, normal_D: Array) -> Array:
        """Fiducial draws of the standard deviation without ``excess``, from standard normal draws."""
        place, log_chi = _log_chi(self.freedom)
        chi_D = np.exp(np.interp(normal_D, place, log_chi))
        net_D = np.maximum(self.variance * self.freedom / chi_D - self.excess, 0.0)
        return np.asarray(np.sqrt(net_D), dtype=np.float64)


@lru_cache(maxsize=64)
def _log_chi(freedom: float) -> tuple[Array, Array]:
    """Logarithm of χ² as a function of a standard normal variable of the same rank."""
    place = np.linspace(-6, 6, 1201)
    return place, np.log(chdtri(freedom, ndtr(-place)))


def paired(
    one: SeedVariance, other: SeedVariance, step: float, lent: float = 1.0
) -> tuple[SeedVariance, SeedVariance, bool]:
    """The seed variances of a difference, with the degrees of freedom that each has in it.

    With as many seeds on both sides the degrees of freedom add up, as in Student's test of two samples; where one side
    has fewer, the other's help in proportion: f · (1 + least / most). Where an F test refuses that the variances are
    equal, each keeps its own.

    Args:
        one: the variance of one side.
        other: that of the other.
        step: distance between neighbouring values that a mean can have (0: any), so that equal values are no proof.
        lent: share of the other side's degrees of freedom that is added.

    Returns:
        Both, and whether they stay apart.
    """
    above, below = (part.variance + step**2 for part in (one, other))
    if above or below:
        rank = float(fdtr(one.freedom, other.freedom, above / below)) if below else 1.0
        if 2 * min(rank, 1 - rank) < _REFUSED_BELOW:
            return one, other, True
    least, most = sorted((one.freedom, other.freedom))
    first, second = (replace(part, freedom=part.freedom * (1 + lent * least / most)) for part in (one, other))
    return first, second, False


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

    @property
    def unit_deviation(self) -> float:
        """Standard deviation over units, widened so that a normal quantile serves in place of Student's."""
        return math.sqrt(self.unit_variance) * float(stdtrit(self.unit_freedom, _TAIL) / ndtri(_TAIL))

    @property
    def halves(self) -> list[float]:
        """Half widths of the parts: of the seeds of each arm, with Student's quantile, and last of the examples."""
        seeds = [math.sqrt(part.net / count) * float(stdtrit(part.freedom, _TAIL)) for part, count in self.seeds]
        return [*seeds, float(ndtri(_TAIL)) * self.unit_deviation]

    @property
    def half_width(self) -> float:
        """Half of the width of a symmetric interval; 0 where nothing varies.

        The half widths of the parts add up as variances do (the method of variance estimates recovery: Zou and Donner
        2008, doi:10.1002/sim.3095).
        """
        return math.hypot(*self.halves)

    def reach(self, means: tuple[float, float], factor: float, shares: bool) -> tuple[float, float]:
        """How far the interval of a difference reaches down and up from it.

        Ends of the means' own intervals add up as variances do, each on the side where it matters; those of shares are
        symmetric on the logit scale, so that no arm is held to be below zero.

        Args:
            means: of the two arms.
            factor: all half widths are taken so many times.
            shares: whether the means are shares.
        """
        own, base, examples = (factor * half for half in self.halves)
        (own_low, own_high), (base_low, base_high) = (
            logit_ends(mean, half) if shares and 0 < mean < 1 else (mean - half, mean + half)
            for mean, half in zip(means, (own, base), strict=True)
        )
        own_mean, base_mean = means
        down = math.hypot(own_mean - own_low, base_high - base_mean, examples)
        return down, math.hypot(own_high - own_mean, base_mean - base_low, examples)


def logit_ends(mean: float, half: float) -> tuple[float, float]:
    """The ends of a share's interval that is symmetric on the logit scale; ``half``: its half width at the mean."""
    at, width = math.log(mean / (1 - mean)), half / (mean * (1 - mean))
    return float(expit(at - width)), float(expit(at + width))


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
