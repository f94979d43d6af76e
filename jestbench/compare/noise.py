"""The two noises of an evaluated arm, seeds and examples, and joint draws of means under both.

Shape suffixes: ``S`` seeds, ``N`` evaluation examples, ``G`` units of examples (a class, a caption group), ``A`` arms,
``D`` draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri, ndtri
from scipy.stats import bartlett, qmc

Array = npt.NDArray[np.float64]
Units = npt.NDArray[np.int64]

LENT_FREEDOM = 1.0
"""Degrees of freedom that the other arms' variances add to an arm's own."""
REFUSED_BELOW = 0.05
"""p-value of the test of equal seed variance below which nothing is pooled."""
_LOG2_DRAWS = 13


def influence_SG(example_SN: Array, unit_N: Units | None) -> Array:
    """What each unit adds to each seed's mean, such that Σ_G influence² estimates the variance of the mean.

    The mean over examples is a ratio of two sums over units (of the values, of the sizes); its linearisation is
    Σ_{i in unit} (x_i − x̄) / N, times √(G / (G − 1)) for the small-sample correction (Cochran 1977, 6.4 and 9A).

    Args:
        example_SN: values, the same examples for every seed.
        unit_N: unit of each example; ``None``: each is its own.
    """
    rest_SN = (example_SN - example_SN.mean(1, keepdims=True)) / example_SN.shape[1]
    if unit_N is not None:
        name_G, code_N = np.unique(unit_N, return_inverse=True)
        rest_SN = np.stack([np.bincount(code_N, rest_N, len(name_G)) for rest_N in rest_SN])
    units = rest_SN.shape[1]
    return np.asarray(rest_SN * np.sqrt(units / max(units - 1, 1)), dtype=np.float64)


def residual(influence: Array) -> float:
    """The part of the variance of one seed's mean that is noise of the examples given the seed (the interaction).

    It stands in the variance over seeds *and* in that over units; one of the two has to give it up.

    Args:
        influence: [S, G] of ``influence_SG``; zero is returned for a single seed.
    """
    if len(influence) < 2:
        return 0.0
    return float(influence.var(0, ddof=1).sum())


@dataclass(frozen=True)
class SeedVariance:
    """Variance of an arm's value from seed to seed, as an estimate with a scaled χ² distribution.

    Attributes:
        variance: of one seed's value.
        freedom: degrees of freedom of the estimate.
        residual: the part that the variance over examples holds too.
    """

    variance: float
    freedom: float
    residual: float

    def draws_D(self, uniform_D: Array) -> Array:
        """Fiducial draws of the standard deviation of a seed's value without ``residual``."""
        variance_D = self.variance * self.freedom / _chi_square_D(self.freedom, uniform_D)
        return np.asarray(np.sqrt(np.maximum(variance_D - self.residual, 0.0)), dtype=np.float64)


def _chi_square_D(freedom: float, uniform_D: Array) -> Array:
    return np.asarray(chdtri(freedom, uniform_D), dtype=np.float64)


def equal_variance_p(values: Sequence[Array]) -> float | None:
    """Bartlett's test that groups have one variance.

    Returns:
        The p-value, 0 where some groups vary and others do not; ``None`` with fewer than two groups of two values.
    """
    groups = [value for value in values if len(value) > 1]
    if len(groups) < 2:
        return None
    varies = [bool(np.ptp(group) > 0) for group in groups]
    if not all(varies):
        return 0.0 if any(varies) else None
    return float(bartlett(*groups).pvalue)


def moderated(own: Sequence[SeedVariance], slope: Sequence[float]) -> list[SeedVariance]:
    """Each arm's variance drawn towards the pooled one, as if by ``LENT_FREEDOM`` more degrees of freedom (Smyth 2004).

    Args:
        own: each arm's own variance.
        slope: of the common scale at each arm's mean: variances are comparable after multiplication by its square.
    """
    freedom_A = np.array([part.freedom for part in own])
    scaled_A = np.array([part.variance * s**2 for part, s in zip(own, slope, strict=True)])
    pooled = float((freedom_A * scaled_A).sum() / freedom_A.sum())
    return [
        SeedVariance(
            (part.freedom * part.variance + LENT_FREEDOM * pooled / s**2) / (part.freedom + LENT_FREEDOM),
            part.freedom + LENT_FREEDOM,
            part.residual,
        )
        for part, s in zip(own, slope, strict=True)
    ]


@lru_cache(maxsize=4)
def uniforms(dimensions: int, seed: int = 0, log2_draws: int = _LOG2_DRAWS) -> Array:
    """Scrambled Sobol points in (0, 1): [dimensions, 2**log2_draws], the same at every call."""
    points = qmc.Sobol(dimensions, rng=np.random.default_rng(seed)).random_base2(log2_draws).T
    points = np.ascontiguousarray(np.clip(points, 1e-12, 1 - 1e-12))
    points.setflags(write=False)
    return points


def normal(uniform: Array) -> Array:
    """Standard normal draws of uniform ones."""
    return np.asarray(ndtri(uniform), dtype=np.float64)


def root(covariance: Array) -> Array:
    """A square root of a covariance matrix that may be singular: ``root @ root.T`` is the matrix."""
    value, vector = np.linalg.eigh(covariance)
    return np.asarray(vector * np.sqrt(np.maximum(value, 0.0)), dtype=np.float64)
