"""One arm as a value: everything that decides what a run does, validated when built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jestbench.data.augment import RandomResizedCrop
from jestbench.data.pairs import Dataset
from jestbench.data.prefetch import Loader
from jestbench.evals import Evaluate
from jestbench.learner import Optimizer
from jestbench.ledger import Allowance, Budget
from jestbench.metrics import Log, WandB
from jestbench.model.losses import LossName
from jestbench.model.towers import Model
from jestbench.model.views import FULL, Mix, View, mix_of
from jestbench.precision import Precision
from jestbench.reference import Accounting
from jestbench.selection import Policy


class ConfigError(ValueError):
    """The configuration is wrong; the message says where and what to do (exit status 2)."""


@dataclass(frozen=True)
class Run:
    """One learner under one policy.

    Attributes:
        policy: a policy, or its registered name.
        data: the data set.
        batch_size: b, pairs a step trains on.
        super_batch_size: B, pairs it is chosen from; filter ratio = 1 − b/B. A policy that scores
            nothing draws its b pairs straight from the pool.
        budget: FLOPs that the run may spend (``flops/total``); ``None`` where ``limit`` sets steps
            or pairs.
        arm: the arm's label.
        seed: of initialisation, data order and selection.
        loss: ``sigmoid`` (SigLIP) or ``softmax`` (CLIP).
        split: that super-batches are drawn from; several joined by ``+``.
        model: the two towers.
        optimizer: AdamW and its schedule.
        evaluate: when and on what.
        limit: how the budget is counted.
        reference: a gin run file (trained on demand, once) or an existing run folder; a sequence
            is a file followed by bindings.
        reference_accounting: what reference scoring is charged: ``online``, ``first_sight``,
            ``amortised``.
        train_views: ``((share, view), …)``: the parts of each sub-batch and the views that they are
            trained under, under one loss; empty for the full view.
        score_view: the view that the learner is scored under; ``None`` is full.
        reference_view: the view that the reference is scored under.
        precision: ``auto`` is bf16 autocast on CUDA and fp32 on CPUs.
        device: ``auto`` is CUDA where there is one.
        microbatch: pairs that a tower scores at once.
        checkpoints: checkpoints over the budget, evenly spaced, the last at its end.
        log: how often metrics are written.
        wandb: Weights & Biases.
        loader: who decodes the pairs, and how far ahead.
        augment: what is done to each image at each step; ``None`` is nothing.
    """

    policy: Policy | str
    data: Dataset
    batch_size: int
    super_batch_size: int
    budget: float | None = None
    arm: str = ""
    seed: int = 0
    loss: LossName = "softmax"
    split: str = "pool"
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    evaluate: Evaluate = field(default_factory=Evaluate)
    limit: Budget = field(default_factory=Budget)
    reference: str | tuple[str, ...] | None = None
    reference_accounting: Accounting = "first_sight"
    train_views: tuple[tuple[float, View], ...] | None = None
    score_view: View | None = None
    reference_view: View | None = None
    precision: Precision = "auto"
    device: str = "auto"
    microbatch: int = 4096
    checkpoints: int = 4
    log: Log = field(default_factory=Log)
    wandb: WandB = field(default_factory=WandB)
    loader: Loader = field(default_factory=Loader)
    augment: RandomResizedCrop | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "super_batch_size", "microbatch", "checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size > self.super_batch_size:
            raise ValueError(
                f"run.batch_size = {self.batch_size} pairs cannot be chosen from a super-batch of "
                f"run.super_batch_size = {self.super_batch_size}"
            )
        counted = self.limit.steps is not None or self.limit.pairs is not None
        if (self.budget is None) != counted:
            raise ValueError(
                "give run.budget (FLOPs), or budget.steps or budget.pairs"
                if self.budget is None
                else "run.budget (FLOPs) and budget.steps or budget.pairs exclude each other"
            )
        if self.budget is not None and not (self.budget > 0 and self.budget == int(self.budget)):
            raise ValueError(f"run.budget is a positive whole number of FLOPs, got {self.budget}")
        object.__setattr__(self, "train_views", mix_of(self.train_views) if self.train_views else None)

    @property
    def mix(self) -> Mix:
        """The views that a batch is trained under, and their shares."""
        return mix_of(self.train_views)

    @property
    def scored_under(self) -> View:
        """The learner's view when it is scored."""
        return self.score_view or FULL

    @property
    def reference_under(self) -> View:
        """The reference's view."""
        return self.reference_view or FULL

    def allowance(self, pretrain: Mapping[str, int]) -> Allowance:
        """What may be spent, pre-training taken out where the budget includes it.

        Args:
            pretrain: FLOPs of each model's pre-training.

        Raises:
            ValueError: nothing is left.
        """
        taken = sum(pretrain.get(name, 0) for name in self.limit.includes)
        if self.budget is None:
            return Allowance(None, self.limit.steps, self.limit.pairs, taken)
        flops = int(self.budget) - taken
        if flops <= 0:
            raise ValueError(
                f"run.budget = {int(self.budget):.3g} FLOPs, but the pre-training that budget.includes takes "
                f"out of it costs {taken:.3g}: raise the budget or train a smaller reference"
            )
        return Allowance(flops, None, None, taken)


@dataclass(frozen=True)
class Resolved:
    """A run with the text that it came from.

    Attributes:
        run: the run itself; its policy is an object.
        policy_name: the registered name.
        config: the bindings as parsed, as gin text.
        operative: the bindings as used, as gin text; starts the same run again.
        flat: the operative configuration, full parameter name → value.
        config_hash: of the arm: the operative configuration without seed, label, logging and paths.
        reference: the reference's own run, where it is to be trained on demand.
        reference_dir: the reference's run folder, where one was given.
    """

    run: Run
    policy_name: str
    config: str
    operative: str
    flat: Mapping[str, Any]
    config_hash: str
    reference: Resolved | None = None
    reference_dir: Path | None = None

    @property
    def policy(self) -> Policy:
        """The policy, as an object."""
        assert not isinstance(self.run.policy, str)
        return self.run.policy

    @property
    def draw_size(self) -> int:
        """Pairs drawn a step: B, or b for a policy that scores nothing."""
        return self.run.super_batch_size if self.policy.needs else self.run.batch_size
