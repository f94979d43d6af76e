"""The arithmetic of learning curves: interpolation, seed means, first touches.

Shape suffixes: ``E`` evaluations, ``S`` seeds. An *amount* is what a run had spent when it was evaluated,
on one of the axes in ``AXES``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """An amount that a run spends, in words: at the head of a column, in full, and its unit."""

    title: str
    name: str
    unit: str = ""


AXES = {
    "flops": Axis("FLOPs", "FLOPs", "FLOP"),
    "flops_all_in": Axis("all-in", "FLOPs with pre-training", "FLOP"),
    "pairs_seen": Axis("seen", "pairs seen"),
    "pairs_trained": Axis("trained", "pairs trained on"),
    "seconds": Axis("seconds", "seconds of training", "s"),
}
"""The amounts that an arm can save. Budgets are stated on the first axis."""


@dataclass(frozen=True)
class Curve:
    """A metric along one run.

    Attributes:
        value_E: the metric at each evaluation.
        amount_E: axis → amount spent at each evaluation; NaN where the run did not log it.
    """

    value_E: Array
    amount_E: Mapping[str, Array]

    @property
    def flops_E(self) -> Array:
        """FLOPs on the axis that budgets are stated on."""
        return self.amount_E["flops"]


@dataclass(frozen=True)
class SeedCurve(Curve):
    """The mean of a metric over the seeds of an arm, at every point where some seed was evaluated.

    Attributes:
        value_SE: each seed's own curve, read at the same points.
    """

    value_SE: Array


@dataclass(frozen=True)
class Reach:
    """The point where a curve first reaches a target.

    Attributes:
        amount: axis → amount spent there.
        resolved: whether some evaluation after the start of training lies at or before the point: within the first
            interval of evaluations, linear interpolation would invent it.
    """

    amount: Mapping[str, float]
    resolved: bool


def mean_curve(curves: Sequence[Curve]) -> SeedCurve:
    """Average the curves of an arm's seeds, from the latest of their first evaluations on.

    Seeds stop within a step of one another, not at the same FLOP, and the learning-rate schedule is a
    function of the share of the budget spent. So curves are averaged at equal shares of their own final FLOPs: the
    last point of the mean is exactly the mean of the last points. Where seeds were evaluated at the same
    FLOPs, the result is the plain mean.
    """
    share_SE = [_share(curve.flops_E) for curve in curves]
    share_E = np.unique(np.concatenate(share_SE))
    share_E = share_E[share_E >= max(share[0] for share in share_SE)]
    value_SE = np.stack(
        [np.interp(share_E, share, curve.value_E) for share, curve in zip(share_SE, curves, strict=True)]
    )
    amount_E = {
        axis: np.mean(
            [np.interp(share_E, share, curve.amount_E[axis]) for share, curve in zip(share_SE, curves, strict=True)],
            axis=0,
        )
        for axis in AXES
    }
    return SeedCurve(value_E=value_SE.mean(axis=0), amount_E=amount_E, value_SE=value_SE)


def _share(flops_E: Array) -> Array:
    end = flops_E[-1]
    return flops_E / end if end > 0 else flops_E


def value_at(curve: Curve, budget: float, step: float) -> float | None:
    """Read a curve at a budget, by linear interpolation between evaluations; ``None`` before its first evaluation.

    A run overshoots its budget by less than one step; cutting that step off would replace the value of the
    finished run by a mixture with the evaluation before it. Within a step (in FLOPs) of the end, and beyond it, the
    final value is therefore taken.
    """
    if budget >= curve.flops_E[-1] - step:
        return float(curve.value_E[-1])
    if budget < curve.flops_E[0]:
        return None
    return float(np.interp(budget, curve.flops_E, curve.value_E))


def first_reach(curve: Curve, target: float, *, lower_is_better: bool = False) -> Reach | None:
    """Find where a curve is first as good as a target, linear between evaluations; ``None`` where it never is."""
    ahead_E = target - curve.value_E if lower_is_better else curve.value_E - target
    reached_E = np.flatnonzero(ahead_E >= 0)
    if not reached_E.size:
        return None
    after = int(reached_E[0])
    # The untrained model is evaluated too; where pairs were not logged (NaN), every evaluation counts as a later one.
    later_E = curve.amount_E["pairs_trained"] != 0
    resolved = bool(later_E[:after].any())
    if after == 0 or ahead_E[after] == 0:
        amount = {axis: float(amount_E[after]) for axis, amount_E in curve.amount_E.items()}
        exact = bool(ahead_E[after] == 0 and later_E[after])
        return Reach(amount, resolved or exact)
    before = after - 1
    part = ahead_E[before] / (ahead_E[before] - ahead_E[after])
    amount = {
        axis: float(amount_E[before] + part * (amount_E[after] - amount_E[before]))
        for axis, amount_E in curve.amount_E.items()
    }
    return Reach(amount, resolved)
