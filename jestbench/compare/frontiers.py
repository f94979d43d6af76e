"""Joins the decayed points of arms over budgets, and finds where the frontiers cross."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jestbench.compare.comparison import FrontierPoint, Pays
from jestbench.compare.crossings import Ladder, crossings
from jestbench.compare.curves import AXES
from jestbench.compare.groups import Group
from jestbench.compare.noise import Units
from jestbench.compare.points import Candidate, Point
from jestbench.compare.statistics import Cell, Fit, Interval, fit, means
from jestbench.evals.measure import Measure

FEWEST_RUNGS = 2
"""Decayed points without which there is no frontier to cross."""
_DRAWS = 1000


@dataclass(frozen=True)
class Metric:
    """What the statistics of a world need beside the values.

    Attributes:
        key: the metric's.
        measure: what is known about it.
        lower_is_better: whether a smaller value is better.
        unit_N: class or caption group of each evaluation example; ``None`` where no run holds results of its examples.
    """

    key: str
    measure: Measure
    lower_is_better: bool
    unit_N: Units | None

    @classmethod
    def of(cls, key: str, members: Sequence[Candidate], lower_is_better: bool | None = None) -> Metric:
        """What the runs of a world record, which is the same for all that hold any; ``None``: the way as recorded."""
        measure = members[0].run.summary.measures.get(key, Measure())
        examples = [point.examples for member in members for point in member.points if point.examples is not None]
        lower = measure.lower_is_better if lower_is_better is None else lower_is_better
        return cls(key, measure, lower, examples[0].unit_N if examples else None)

    def means(self, cells: Mapping[str, Cell]) -> dict[str, Interval]:
        """Means of arms at one budget, with pointwise intervals."""
        return means(cells, self.unit_N, self.measure)

    def fit(self, cells: Mapping[str, Cell], baseline: str) -> Fit:
        """The statistics of arms at one budget."""
        unit = "classes" if "zero_shot" in self.key else "caption groups"
        return fit(cells, baseline, self.unit_N, self.measure, self.lower_is_better, unit=unit)


def cell_of(points: Iterable[tuple[int, float, Point | None]]) -> Cell:
    """The cell of an arm at a budget, from the seed, the value and the decayed point (if it is one) of each run."""
    seeds, values, found = zip(*points, strict=True)
    examples = [point.examples.value_N for point in found if point is not None and point.examples is not None]
    return Cell(seeds, np.array(values), np.stack(examples) if len(examples) == len(values) else None)


def frontiers(groups: Sequence[Group], metric: Metric) -> dict[str, tuple[FrontierPoint, ...]]:
    """Every arm's decayed points, by budget; the intervals of a budget come from the arms that have it."""
    found: dict[str, list[FrontierPoint]] = {group.label: [] for group in groups}
    for budget in sorted({budget for group in groups for budget in group.budgets}):
        here = {group.label: points for group in groups if (points := _at(group, budget))}
        at = metric.means({label: cell_of(points) for label, points in here.items()})
        for label, points in here.items():
            found[label].append(
                FrontierPoint(label, budget, at[label], tuple(seed for seed, _, _ in points), _amounts(points))
            )
    return {label: tuple(points) for label, points in found.items()}


def where_it_pays(groups: Sequence[Group], baseline: Group | None, metric: Metric) -> tuple[Pays, ...]:
    """How each arm's frontier stands to those of the baseline and of the controls in the table."""
    ladders = {group.label: ladder_of(group) for group in groups}
    controls = [group for group in groups if group is not baseline and group.members[0].run.summary.control]
    found = []
    for count, other in enumerate([*([baseline] if baseline else []), *controls]):
        for group in groups:
            # Two controls are compared once.
            if group is not other and group is not baseline and group not in controls[:count]:
                pays = _pays(group.label, other.label, ladders, metric)
                found.extend([pays] if pays else [])
    return tuple(found)


def _pays(arm: str, other: str, ladders: Mapping[str, Ladder], metric: Metric) -> Pays | None:
    one, two = ladders[arm], ladders[other]
    start, end = max(one.flops_R[0], two.flops_R[0]), min(one.flops_R[-1], two.flops_R[-1])
    if min(len(one.cells), len(two.cells)) < FEWEST_RUNGS or not start < end:
        return None
    found = crossings(one, two, metric.unit_N, metric.measure, metric.lower_is_better, draws=_DRAWS)
    if found:
        return Pays(arm, other, start, end, found[0].before == "better", tuple(found))
    at = np.linspace(np.log(start), np.log(end), num=9)
    values = [np.interp(at, np.log(ladder.flops_R), [cell.mean for cell in ladder.cells]) for ladder in (one, two)]
    ahead = float(np.sum(values[0] - values[1])) * (-1 if metric.lower_is_better else 1)
    return Pays(arm, other, start, end, None if ahead == 0 else ahead > 0, ())


def ladder_of(group: Group, budget: int | None = None) -> Ladder:
    """An arm's decayed points, up to a budget."""
    budgets = [found for found in group.budgets if budget is None or found <= budget]
    rungs = [_at(group, found) for found in budgets]
    amounts = [_amounts(points) for points in rungs]
    amount_R = {axis: np.array([amount[axis] for amount in amounts]) for axis in AXES}
    return Ladder(tuple(cell_of(points) for points in rungs), amount_R)


def _at(group: Group, budget: int) -> list[tuple[int, float, Point]]:
    return [(member.seed, point.value, point) for member, point in group.at(budget)]


def _amounts(points: Iterable[tuple[int, float, Point]]) -> dict[str, float]:
    found = [point.amount for _, _, point in points]
    return {axis: float(np.mean([amount[axis] for amount in found])) for axis in AXES}
