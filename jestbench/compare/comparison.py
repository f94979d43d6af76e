"""The values that a comparison is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jestbench.compare.curves import Curve, SeedCurve
from jestbench.compare.load import Fact, RunRecord
from jestbench.disk import shown

Kind = Literal["decayed", "touch"]
Absent = Literal["", "never", "worse", "early", "unknown"]
"""``never``: the value is not reached; ``worse``: the arm touches it and ends worse; ``early``: reached within the
first interval of evaluations, where no place can be read; ``unknown``: the amount was not logged."""


@dataclass(frozen=True)
class Speedup:
    """The baseline's amount (of FLOPs, say) over the arm's, to reach the baseline's final value.

    Attributes:
        value: baseline's amount over the arm's; ``None`` where ``absent`` gives the reason.
        kind: ``decayed`` between two ends of learning-rate schedules; ``touch`` where one of the two curves first
            touches the value inside its schedule. A touch is indicative: a run whose schedule ends there has another
            value, which was lower wherever it was tried (docs/results.md).
        absent: why there is no value, or an empty text.
        arm: the arm's amount at that point.
        baseline: the baseline's amount at that point.
    """

    value: float | None
    kind: Kind | None
    absent: Absent = ""
    arm: float | None = None
    baseline: float | None = None


@dataclass(frozen=True)
class Paired:
    """An arm against the baseline, seed by seed, at the common budget.

    Attributes:
        seeds: the seeds that both have.
        ahead: the number of common seeds on which the arm is better.
        mean: mean difference, arm minus baseline.
        low: lower end of the mean's 95 % interval; ``None`` as for ``Arm.low``.
        high: upper end.
    """

    seeds: tuple[int, ...]
    ahead: int
    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.ahead}/{len(self.seeds)}"


@dataclass(frozen=True)
class SeedRun:
    """One run's part in a comparison.

    Attributes:
        run: the run.
        curve: its evaluations.
        value: the metric at the common budget.
    """

    run: RunRecord
    curve: Curve
    value: float

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.run.summary.seed


@dataclass(frozen=True)
class Arm:
    """All runs of one configuration.

    FLOPs, pairs and seconds are means over the seeds at the end of the runs; FLOPs and pairs are whole
    numbers.

    Attributes:
        arm: its label.
        label: the label, with the configuration's hash where another arm has the same label.
        policy: registered name of the policy.
        config_hash: hash of the configuration.
        runs: one for each seed, by seed.
        mean: mean of the metric at the common budget.
        low: lower end of its 95 % interval over seeds, within the metric's range; ``None`` with fewer than three seeds
            and where all have the same value.
        high: upper end.
        evaluation_error: one binomial standard error of the mean by the finite number of examples; ``None`` where the
            metric is not a share of examples.
        budget: FLOPs asked for; ``None`` if the runs do not record it.
        added_to_budget: the part of ``budget`` that was added to a control's own.
        end: mean of the metric at the arm's own end, and the 95 % interval's ends (``None`` as for ``low``).
        undecayed: whether the common budget lies inside the arm's learning-rate schedule, so that ``mean`` differs from
            the value under a schedule that ends there.
        paired: seed-by-seed difference to the baseline; ``None`` for the baseline, and without a common seed.
        speedup: axis → speedup over the baseline.
        flops_total: FLOPs of the runs themselves.
        flops_by_purpose: purpose → FLOPs; they sum to ``flops_total``.
        flops_eval: FLOPs of evaluation, outside the total.
        pretrain_flops: FLOPs of training its references and scorers.
        pretrain_in_budget: the part of ``pretrain_flops`` that was taken out of the budget.
        flops_amortised: FLOPs of reference scoring that the accounting leaves out of every total.
        flops_all_in: ``flops_total`` and pre-training together.
        pairs_seen: pairs drawn into super-batches.
        pairs_trained: pairs trained on.
        seconds: time of training, without evaluation.
        curve: the seed-mean curve.
    """

    arm: str
    label: str
    policy: str
    config_hash: str
    runs: tuple[SeedRun, ...]
    mean: float
    low: float | None
    high: float | None
    evaluation_error: float | None
    budget: int | None
    added_to_budget: int
    end: tuple[float, float | None, float | None]
    undecayed: bool
    paired: Paired | None
    speedup: Mapping[str, Speedup]
    flops_total: int
    flops_by_purpose: Mapping[str, int]
    flops_eval: int
    pretrain_flops: int
    pretrain_in_budget: int
    flops_amortised: int
    flops_all_in: int
    pairs_seen: int
    pairs_trained: int
    seconds: float
    curve: SeedCurve

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs, ascending."""
        return tuple(member.seed for member in self.runs)

    @property
    def values(self) -> tuple[float, ...]:
        """The metric at the common budget, by seed."""
        return tuple(member.value for member in self.runs)


@dataclass(frozen=True)
class ReferenceRow:
    """A reference model's own score.

    Attributes:
        name: its name.
        arms: labels of the arms that use it.
        value: the metric at the end of its own training; ``None`` if unknown.
        flops_total: FLOPs of its own training.
        folder: its run folder.
    """

    name: str
    arms: tuple[str, ...]
    value: float | None
    flops_total: int
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
class Comparison:
    """A compute-matched comparison of arms.

    Attributes:
        metric: key of the metric.
        lower_is_better: whether a smaller value is better.
        baseline: ``label`` of the arm that all other arms are compared with.
        budget: common budget in FLOPs: the smallest of the arms' budgets.
        arms: best first.
        references: the reference models' own scores.
        excluded: runs left out of every mean.
        warnings: caveats to read before trusting a number.
        facts: facts that hold for the data of all runs.
        command: the command that reproduces this comparison.
        created: date and time, ISO 8601, UTC.
        environment: machine that computed the comparison, and the versions that the runs used.
    """

    metric: str
    lower_is_better: bool
    baseline: str
    budget: int
    arms: tuple[Arm, ...]
    references: tuple[ReferenceRow, ...]
    excluded: tuple[Excluded, ...]
    warnings: tuple[str, ...]
    facts: Mapping[str, Fact]
    command: str
    created: str
    environment: Mapping[str, Any]

    @property
    def baseline_arm(self) -> Arm:
        """The arm that all other arms are compared with."""
        return next(arm for arm in self.arms if arm.label == self.baseline)
