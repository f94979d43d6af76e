"""Every metric that the runs of a table share: its decayed points with intervals, and its curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jestbench.compare.comparison import FrontierPoint, Table
from jestbench.compare.frontiers import Metric, frontiers
from jestbench.compare.groups import Group
from jestbench.compare.load import EVAL, RunRecord
from jestbench.compare.points import Candidate, read_metric
from jestbench.disk import DataError
from jestbench.evals.results import Results
from jestbench.runs.folder import RunFolder


@dataclass(frozen=True)
class Panel:
    """One metric of a table's arms.

    Attributes:
        metric: the metric.
        points: the arms' decayed points, with pointwise intervals.
        members: run folder → the run with this metric.
    """

    metric: Metric
    points: tuple[FrontierPoint, ...]
    members: Mapping[Path, Candidate]


def panels(table: Table) -> tuple[Panel, ...]:
    """The table's own metric, then every other evaluation that all of its runs end with, by name."""
    members = [member for arm in table.arms for member in arm.members]
    shared = set.intersection(*(set(member.run.summary.metrics) for member in members))
    others = sorted(key for key in shared if key.startswith(EVAL) and key != table.metric)
    read: dict[str, dict[Path, Candidate]] = {key: {} for key in others}
    for member in members:
        results = _results(member.run)
        for key in others:
            found, _ = read_metric(member.run, key, results)
            if found is not None:
                read[key][member.run.folder] = _at_budgets_of(member, found)
    own = {member.run.folder: member for member in members}
    first = Panel(Metric.of(table.metric, members, table.lower_is_better), table.frontier, own)
    return (first, *(_panel(table, key, found) for key, found in read.items() if len(found) == len(own)))


def _panel(table: Table, key: str, members: Mapping[Path, Candidate]) -> Panel:
    groups = [
        Group(arm.arm, arm.label, arm.frontier_hash, tuple(members[one.run.folder] for one in arm.members))
        for arm in table.arms
    ]
    metric = Metric.of(key, [*members.values()])
    points = frontiers(groups, metric)
    return Panel(metric, tuple(point for arm in groups for point in points[arm.label]), members)


def _results(run: RunRecord) -> Mapping[int, Results]:
    try:
        return RunFolder(run.folder).results()
    except DataError:
        return {}  # the comparison has said so for its own metric


def _at_budgets_of(own: Candidate, other: Candidate) -> Candidate:
    """Runs of steps or pairs are brought to one budget when they are grouped: so are their other metrics."""
    *before, end = other.points
    return replace(other, points=(*before, replace(end, budget=own.end.budget)))
