"""What each arm saves over the baseline: between decayed points, or by the first touch of learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from jestbench.compare.comparison import SeedRun
from jestbench.compare.crossings import Absent, Speedup, speedups
from jestbench.compare.curves import AXES, Curve, Reach, first_reach, mean_curve
from jestbench.compare.frontiers import FEWEST_RUNGS, Metric, ladder_of
from jestbench.compare.groups import Group

Speedups = Mapping[str, Speedup]
"""Axis → speed-up."""


def speedups_of(
    groups: Sequence[Group],
    base: Group | None,
    members: Mapping[str, Sequence[SeedRun]],
    budget: int,
    metric: Metric,
) -> tuple[dict[str, Speedups], list[str]]:
    """Speed-ups by arm and axis, and notes; ``members`` are the arms' runs at the budget."""
    if base is None:
        return {group.label: {axis: Speedup(None, None, "unshared") for axis in AXES} for group in groups}, []
    itself = Speedup(1.0, "decayed", low=1.0, high=1.0)
    found: dict[str, Speedups] = {base.label: dict.fromkeys(AXES, itself)}
    notes: list[str] = []
    touched = False
    curve = mean_curve([_up_to_point(member) for member in members[base.label]])
    target = float(curve.value_E[-1])
    have = first_reach(curve, target, lower_is_better=metric.lower_is_better)
    for group in groups:
        if group is base:
            continue
        decayed = _between_decayed(group, base, budget, metric)
        if decayed is not None:
            found[group.label] = decayed
            if any(speedup.fell for speedup in decayed.values()):
                notes.append(
                    f"arm {group.label}: its decayed values fall with the budget somewhere: the first crossing counts"
                )
            continue
        touched = True
        runs = members[group.label]
        whole = mean_curve([member.curve for member in runs])
        there = mean_curve([_up_to_point(member) for member in runs])
        # A rung may reach what the trunk, whose rate has not decayed, reaches later.
        reached = [first_reach(one, target, lower_is_better=metric.lower_is_better) for one in (there, whole)]
        need = min((one for one in reached if one), key=lambda one: one.amount["flops"], default=None)
        end = float((there if all(member.point for member in runs) else whole).value_E[-1])
        worse = end > target if metric.lower_is_better else end < target
        found[group.label] = _between_touches(need, have, worse=worse)
    if touched and have is not None and have.amount["flops"] < curve.flops_E[-1]:
        notes.append(
            f"the baseline {base.label} first touches its own final value before its end: its side of each first "
            "touch is read there"
        )
    unknown = {label for label, runs in members.items() if any(run.run.summary.pretrain_total is None for run in runs)}
    return {label: _stated(one, bool(unknown & {label, base.label})) for label, one in found.items()}, notes


def _up_to_point(member: SeedRun) -> Curve:
    """A run's curve up to its decayed point at the table's budget; the whole curve where it has none there."""
    curve, point = member.curve, member.point
    if point is None:
        return curve
    before_E = curve.flops_E < point.amount["flops"]
    return Curve(
        np.append(curve.value_E[before_E], member.value),
        {axis: np.append(amount_E[before_E], point.amount[axis]) for axis, amount_E in curve.amount_E.items()},
    )


def _stated(speedup: Speedups, unknown: bool) -> Speedups:
    """The speed-ups, that on all FLOPs ``unstated`` where what a model's training took is not known."""
    all_in = speedup["flops_all_in"]
    hidden = unknown and all_in.absent == "unknown"
    return {**speedup, "flops_all_in": replace(all_in, absent="unstated")} if hidden else speedup


def _between_decayed(arm: Group, baseline: Group, budget: int, metric: Metric) -> dict[str, Speedup] | None:
    """Speed-ups between decayed points up to a budget that both have; ``None`` where one has no two rungs up to it."""
    one, other = ladder_of(arm, budget), ladder_of(baseline, budget)
    if min(len(one.cells), len(other.cells)) < FEWEST_RUNGS:
        return None
    if not all(budget in group.budgets for group in (arm, baseline)):
        return None
    return speedups(one, other, metric.unit_N, metric.measure, metric.lower_is_better)


def speedups_to_end(groups: Sequence[Group], base: Group | None, budget: int, metric: Metric) -> dict[str, Speedups]:
    """Speed-ups by arm and axis at the baseline's value at its own largest budget, where that lies beyond the table's.

    They are those of arms that have a frontier; an arm that ends below that value has none.
    """
    if base is None or max(base.budgets, default=budget) <= budget:
        return {}
    other, found = ladder_of(base), {}
    for group in groups:
        one = ladder_of(group)
        if group is not base and min(len(one.cells), len(other.cells)) >= FEWEST_RUNGS:
            runs = [member.run.summary for member in (*group.members, *base.members)]
            crossed = speedups(one, other, metric.unit_N, metric.measure, metric.lower_is_better, to_end=True)
            found[group.label] = _stated(crossed, any(summary.pretrain_total is None for summary in runs))
    return found


def _between_touches(arm: Reach | None, baseline: Reach | None, *, worse: bool) -> dict[str, Speedup]:
    """Speed-ups by axis, from where both first reach the baseline's final value (``None``: nowhere).

    Args:
        worse: whether the arm ends worse than the baseline, and so loses again a value that it reached on the way.
    """
    found = {}
    for axis in AXES:
        need = _finite(arm.amount[axis]) if arm else None
        have = _finite(baseline.amount[axis]) if baseline else None
        absent: Absent = ""
        if arm is None or baseline is None:
            absent = "never"
        elif worse:
            absent = "worse"
        elif not (arm.resolved and baseline.resolved):
            absent, need = "early", None
        elif not need or have is None:
            absent = "unknown"
        value = have / need if need and have is not None and not absent else None
        found[axis] = Speedup(value, "touch" if value is not None else None, absent, arm=need, baseline=have)
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
