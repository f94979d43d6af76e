"""The values that a comparison is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jestbench.compare.crossings import Crossover, Speedup
from jestbench.compare.curves import Curve, SeedCurve
from jestbench.compare.load import Fact, RunRecord
from jestbench.compare.points import Candidate, Point
from jestbench.compare.statistics import Difference, Interval, Verdict
from jestbench.disk import shown
from jestbench.evals.measure import Measure
from jestbench.runs.folder import Row

UNDECAYED = "read inside an undecayed schedule"
"""The reason of a difference without a verdict: one of its two values is of another kind than a decayed one."""


@dataclass(frozen=True)
class SeedRun:
    """One run's part in a table.

    Attributes:
        run: the run.
        curve: its evaluations.
        value: the metric at the table's budget.
        point: the decayed point that the value comes from; ``None`` where it is read inside an undecayed schedule.
    """

    run: RunRecord
    curve: Curve
    value: float
    point: Point | None

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.run.summary.seed

    @property
    def counters(self) -> Row:
        """What was logged last under each key, up to the point; up to the run's end where there is none."""
        return self.point.counters if self.point else self.run.final


@dataclass(frozen=True)
class FrontierPoint:
    """An arm's decayed value at one budget.

    Attributes:
        arm: the arm's label.
        budget: FLOPs at which the schedules ended.
        mean: mean over the seeds, with its pointwise 95 % interval.
        seeds: the seeds.
        amount: axis → mean over the seeds of the amount spent.
    """

    arm: str
    budget: int
    mean: Interval
    seeds: tuple[int, ...]
    amount: Mapping[str, float]


@dataclass(frozen=True)
class Pays:
    """How two frontiers stand to one another over the budgets that both have; no more than their means.

    Attributes:
        arm: label of the one.
        other: label of the other, the baseline or a control.
        start: the smallest budget in both ranges, FLOPs.
        end: the largest.
        ahead: whether the arm is ahead at the start, ``None`` where both are level all along.
        crossings: budgets at which the order changes, ascending.
    """

    arm: str
    other: str
    start: float
    end: float
    ahead: bool | None
    crossings: tuple[Crossover, ...]


@dataclass(frozen=True)
class Arm:
    """All runs of one configuration, at the budget of a table.

    FLOPs, pairs and seconds are means over the seeds, up to the table's budget where the schedules ended there and to
    the end of the runs otherwise; FLOPs and pairs are whole numbers.

    Attributes:
        arm: its label.
        label: the label; where another arm has the same one, with the parameters in which they differ.
        policy: registered name of the policy.
        config_hash: hash of the configuration.
        frontier_hash: the same without budget and rungs.
        runs: one for each seed, by seed.
        mean: mean of the metric, with its pointwise 95 % interval over seeds and examples.
        difference: paired difference to the baseline, with the simultaneous interval and the verdict; ``None`` for the
            baseline and where there is none.
        budget: FLOPs asked for; those spent where the budget is in steps or pairs.
        added_to_budget: the part of ``budget`` that was added to a control's own.
        end: mean of the metric at the arm's largest budget, with its interval.
        undecayed: whether the table's budget lies inside the arm's learning-rate schedule, so that ``mean`` is another
            value than under a schedule that ends there, and there is no verdict.
        deviation: standard deviation from seed to seed, with its interval; ``None`` below eight seeds.
        speedup: axis → speedup over the baseline, at the baseline's value at the table's budget.
        speedup_to_end: the same at the baseline's value at its own largest budget, which may be one that the arm was
            never given; empty where that is the table's.
        flops_total: FLOPs of the runs themselves.
        flops_by_purpose: purpose → FLOPs; they sum to ``flops_total``.
        flops_eval: FLOPs of evaluation, outside the total.
        flops_rungs: FLOPs of a ladder's branches beyond its trunk, outside the total.
        pretrain_flops: FLOPs of training its references and scorers; ``None`` where they are not known.
        pretrain_in_budget: the part of ``pretrain_flops`` that was taken out of the budget.
        flops_amortised: FLOPs of reference scoring that the accounting leaves out of every total.
        flops_all_in: ``flops_total`` and pre-training together; ``None`` where that is not known.
        pairs_seen: pairs drawn into super-batches.
        pairs_trained: pairs trained on.
        seconds: time of training, without evaluation.
        curve: the seed-mean curve.
        members: all its runs, those of smaller budgets among them, by seed and budget.
    """

    arm: str
    label: str
    policy: str
    config_hash: str
    frontier_hash: str
    runs: tuple[SeedRun, ...]
    mean: Interval
    difference: Difference | None
    budget: int
    added_to_budget: int
    end: Interval
    undecayed: bool
    deviation: Interval | None
    speedup: Mapping[str, Speedup]
    speedup_to_end: Mapping[str, Speedup]
    flops_total: int
    flops_by_purpose: Mapping[str, int]
    flops_eval: int
    flops_rungs: int
    pretrain_flops: int | None
    pretrain_in_budget: int
    flops_amortised: int
    flops_all_in: int | None
    pairs_seen: int
    pairs_trained: int
    seconds: float
    curve: SeedCurve
    members: tuple[Candidate, ...]

    @property
    def verdict(self) -> Verdict | None:
        """The verdict; ``None`` for the baseline, and where one of the two values is not decayed."""
        return None if self.difference is None or self.difference.reason == UNDECAYED else self.difference.verdict

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs, ascending."""
        return tuple(member.seed for member in self.runs)

    @property
    def values(self) -> tuple[float, ...]:
        """The metric at the table's budget, by seed."""
        return tuple(member.value for member in self.runs)


@dataclass(frozen=True)
class ReferenceRow:
    """A reference model's own score.

    Attributes:
        name: its name.
        arms: labels of the arms that use it.
        value: the metric at the end of its own training; ``None`` if unknown.
        flops_total: FLOPs of its own training; ``None`` where they are not known.
        folder: its run folder.
    """

    name: str
    arms: tuple[str, ...]
    value: float | None
    flops_total: int | None
    folder: Path | None


@dataclass(frozen=True)
class Excluded:
    """A run left out of every mean.

    Attributes:
        folder: its folder.
        arm: its label, if known.
        seed: its seed, if known.
        reason: why it is left out.
    """

    folder: Path
    arm: str | None
    seed: int | None
    reason: str

    def __str__(self) -> str:
        if self.arm is None:
            return self.reason
        return f"{shown(self.folder)} (arm {self.arm}, seed {self.seed}): {self.reason}"


@dataclass(frozen=True)
class Table:
    """The arms of one world: same data, loss and evaluation.

    Attributes:
        metric: key of the metric.
        lower_is_better: whether a smaller value is better.
        measure: what is known about the metric, its value at chance among it.
        about: what distinguishes the world from the other worlds; empty where there is one.
        baseline: label of the arm that all others are compared with; ``None`` where the world has none.
        budget: common budget in FLOPs: the largest at which all arms have a decayed point, else the smallest end.
        rule: how intervals and verdicts came about, in one line.
        arms: best first.
        references: the reference models' own scores.
        frontier: the arms' decayed points.
        pays: where each arm's frontier lies above those of the baseline and of controls.
        facts: facts that hold for the data of all runs.
    """

    metric: str
    lower_is_better: bool
    measure: Measure
    about: Mapping[str, str]
    baseline: str | None
    budget: int
    rule: str
    arms: tuple[Arm, ...]
    references: tuple[ReferenceRow, ...]
    frontier: tuple[FrontierPoint, ...]
    pays: tuple[Pays, ...]
    facts: Mapping[str, Fact]

    @property
    def baseline_arm(self) -> Arm | None:
        """The arm that all other arms are compared with."""
        return next((arm for arm in self.arms if arm.label == self.baseline), None)

    @property
    def baseline_end(self) -> int:
        """The baseline's largest budget, in FLOPs; the table's where there is no baseline."""
        return max((point.budget for point in self.frontier if point.arm == self.baseline), default=self.budget)


@dataclass(frozen=True)
class Comparison:
    """A compute-matched comparison of arms.

    Attributes:
        tables: one for each world; the first has the baseline, and of those the most runs.
        excluded: runs left out of every mean.
        warnings: caveats to read before trusting a number.
        command: the command that reproduces this comparison.
        created: date and time, ISO 8601, UTC.
        environment: machine that computed the comparison, and the versions that the runs used.
    """

    tables: tuple[Table, ...]
    excluded: tuple[Excluded, ...]
    warnings: tuple[str, ...]
    command: str
    created: str
    environment: Mapping[str, Any]

    @property
    def first(self) -> Table:
        """The table that stands on top."""
        return self.tables[0]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All arms, table after table."""
        return tuple(arm for table in self.tables for arm in table.arms)
