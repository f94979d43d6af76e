"""What a run amounts to, as ``summary.json`` holds it. No torch here: the comparison reads runs without it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from jestbench.evals.measure import Measure
from jestbench.runs.typed_json import from_json

if TYPE_CHECKING:
    from jestbench.config.resolved import Resolved
    from jestbench.cost.budget import Allowance

Ending = Literal["finished", "interrupted", "failed"]


def known_total(flops: Iterable[int | None]) -> int | None:
    """The sum of FLOPs; ``None`` where one of them is not known."""
    found = [*flops]
    known = [one for one in found if one is not None]
    return sum(known) if len(known) == len(found) else None


@dataclass(frozen=True)
class ReferenceEntry:
    """A frozen model that a run was scored with.

    Attributes:
        name: label of the run that trained it.
        run_dir: that run's folder, absolute or relative to the folder of the run that it served; empty of a model
            that another library brings.
        pretrain_flops: FLOPs of its training, with those of what it stands on itself; ``None`` where not known.
        seed: of its training.
        seeding: ``own`` where that is the arm's seed (``run.reference_seed``).
        taken_over: parameters that it took over from the arm, each with its value.
        kept: parameters that its own file binds otherwise than the arm, each with both values.
        fitted_scale: t that was fitted to the arm's loss (``run.reference_calibrate``); ``None`` where it has its own.
        fitted_bias: b₀ likewise.
        fitted_on: the split that they were fitted on.
        metrics: its own evaluation on the run's evaluation data, where no run folder holds one; ``None`` elsewhere.
    """

    name: str
    run_dir: str
    pretrain_flops: int | None
    seed: int | None = None
    seeding: Literal["shared", "own"] = "shared"
    taken_over: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    fitted_scale: float | None = None
    fitted_bias: float | None = None
    fitted_on: str | None = None
    metrics: Mapping[str, float] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class StartEntry:
    """The model that a run's training began from.

    Attributes:
        name: label of the run that trained it, or of a model that another library brings.
        run_dir: that run's folder, absolute or relative to the folder of the run that began from it; empty of a model
            that another library brings.
        flops: that its training took, with all that it stood on; ``None`` where not known.
        part: ``whole``, or the ``image`` tower alone.
    """

    name: str
    run_dir: str
    flops: int | None
    part: Literal["whole", "image"] = "whole"


@dataclass(frozen=True)
class ScheduleRecord:
    """The schedule of a run.

    Attributes:
        kind: ``cosine`` or ``ladder``.
        rungs: FLOPs of a ladder's budgets, ascending, with what ``budget.adds`` adds to each.
        cooldown: share of each rung that is its cool-down; 0 without rungs.
    """

    kind: Literal["cosine", "ladder"] = "cosine"
    rungs: tuple[int, ...] = ()
    cooldown: float = 0.0


@dataclass(frozen=True)
class Summary:
    """How a run ended, what it spent, and its last metrics. The fields are the keys of ``summary.json``.

    Attributes:
        arm: label of the arm.
        policy: registered name of the policy.
        config_hash: of the arm's configuration.
        frontier_hash: the same, whatever the budget and the schedule are.
        schedule: cosine, or the ladder.
        seed: the run's seed.
        status: how it ended.
        steps: steps done.
        pairs_seen: pairs drawn into super-batches.
        pairs_trained: pairs trained on.
        budget: FLOPs asked for; ``None`` where the run counts steps or pairs.
        overshoot: FLOPs that the last step spent beyond the budget (negative: left over); ``None`` where the run
            counts steps or pairs.
        flops: FLOPs by purpose, with ``total``; outside of it ``eval``, and of a ladder ``rungs``, which its branches
            have spent beyond the trunk.
        macs_total: multiply-adds that the total was computed from.
        flops_amortised: FLOPs of scoring by frozen models that the accounting leaves out of the total.
        pretrain_flops: FLOPs of training the frozen models, by role; ``None`` where they are not known.
        pretrain_in_budget: the part of them that was taken out of the budget before the first step.
        added_to_budget: FLOPs that a control was given beside its budget, a reference's pre-training.
        seconds: time of training, without evaluation.
        learning_rate: at its peak.
        measures: what is known about the metrics of an evaluation, by key.
        metrics: the last evaluation.
        references: the references that the run was scored with.
        data: what is known about the data.
        warnings: what the run itself warned of.
        control: whether others are held against it where selection pays: it scores nothing, or ``run.control`` is True.
        fingerprints: of the data, whatever the seed: ``training``, of the split ``pool`` (no such key for a run without
            it), and ``evaluation``.
        cache: hits and misses of the shared cache; ``None`` (no such key) for a run without one.
        appended: each time that rungs were appended: ``at`` (FLOPs spent), ``from`` (the rungs before), ``config_hash``
            (before); no such key where none were.
        start: the model that training began from, whose FLOPs are in no other figure; no such key for random weights.
    """

    arm: str
    policy: str
    config_hash: str
    frontier_hash: str
    schedule: ScheduleRecord
    seed: int
    status: Ending
    steps: int
    pairs_seen: int
    pairs_trained: int
    budget: int | None
    overshoot: int | None
    flops: Mapping[str, int]
    macs_total: int
    flops_amortised: int
    pretrain_flops: Mapping[str, int | None]
    pretrain_in_budget: int
    added_to_budget: int
    seconds: float
    learning_rate: float
    measures: Mapping[str, Measure]
    metrics: Mapping[str, float]
    references: tuple[ReferenceEntry, ...]
    data: Mapping[str, Any]
    warnings: tuple[str, ...]
    control: bool
    fingerprints: Mapping[str, str]
    cache: Mapping[str, float] | None = None
    appended: tuple[Mapping[str, Any], ...] = ()
    start: StartEntry | None = None

    @staticmethod
    def from_json(document: object) -> Summary:
        """A summary from parsed JSON.

        Raises:
            ValueError: a field is missing or of another type; the message names the field.
        """
        return from_json(Summary, document)

    def to_json(self) -> dict[str, Any]:
        """The content of ``summary.json``."""
        found = asdict(self)
        for name in ("cache", "appended", "start"):
            if not found[name]:
                del found[name]
        return found

    @property
    def flops_all_in(self) -> int | None:
        """FLOPs of the run and of training all the frozen models that it stands on; ``None`` where not known."""
        return known_total((self.flops["total"], self.pretrain_total))

    @property
    def pretrain_total(self) -> int | None:
        """FLOPs of training all the frozen models that the run stands on; ``None`` where those of one are not known."""
        return known_total(self.pretrain_flops.values())


def begun(resolved: Resolved, allowance: Allowance, status: Ending) -> Summary:
    """The summary of a run that has done no step."""
    run, start = resolved.run, resolved.start
    part: Literal["whole", "image"] = "image" if run.model.freeze else "whole"
    return Summary(
        arm=run.arm,
        policy=resolved.policy_name,
        config_hash=resolved.config_hash,
        frontier_hash=resolved.frontier_hash,
        schedule=ScheduleRecord(run.optimizer.schedule, allowance.rungs, allowance.cooldown),
        seed=run.seed,
        status=status,
        steps=0,
        pairs_seen=0,
        pairs_trained=0,
        budget=None if run.budget is None else int(run.budget),
        overshoot=None if allowance.flops is None else -allowance.flops,
        flops={"total": 0},
        macs_total=0,
        flops_amortised=0,
        pretrain_flops={},
        pretrain_in_budget=allowance.pretrain,
        added_to_budget=allowance.added,
        seconds=0.0,
        learning_rate=run.optimizer.learning_rate,
        measures={},
        metrics={},
        references=(),
        data={},
        warnings=(),
        control=run.control or not resolved.policy.needs,
        fingerprints={},
        start=None if start is None else StartEntry(start.label, start.run_dir, start.flops, part),
    )
