"""One arm as a value: everything that decides what a run does, validated when built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import ClassVar, Literal

from jestbench.batch import COLUMN, FULL, Mix, View, mix_of
from jestbench.config.log import Log, WandB
from jestbench.cost.budget import Allowance, Budget
from jestbench.data.augment import RandomResizedCrop
from jestbench.data.cascade import Cascade
from jestbench.data.loader import Loader
from jestbench.data.pairs import Dataset
from jestbench.data.part_pairs import Half
from jestbench.data.splits import check_split, roles_in
from jestbench.engine.cache import Cache
from jestbench.engine.casting import Casting, Training, TwinCasting
from jestbench.engine.contrastive import ContrastiveTraining
from jestbench.engine.frozen import Accounting
from jestbench.engine.optimizer import Optimizer
from jestbench.engine.regression import Regression
from jestbench.evals.evaluate import Evaluate
from jestbench.model.towers import Model
from jestbench.parallel.arithmetic import Precision
from jestbench.select.losses import EqualRule, LossName
from jestbench.select.policy import Policy
from jestbench.select.scores import ROLES, Role


class ConfigError(ValueError):
    """The configuration is wrong; the message names the place and the remedy."""

    exit_status: ClassVar[int] = 2


@dataclass(frozen=True)
class Recorded:
    """What a run folder records of the run in it; ``None`` where it cannot be read.

    Attributes:
        operative: the file of its operative configuration.
        identity: configuration hash and seed.
        loss: contrastive, of the model in the newest checkpoint; ``None`` for a pair scorer too.
        data: what summary.json holds of the data.
    """

    operative: Path
    identity: str | None = None
    loss: LossName | None = None
    data: object = None


ReadFolder = Callable[[Path], Recorded]
"""Reads a run folder. It is handed in, since the files of a run folder are read in ``jestbench.runs`` alone."""


ReferenceSeed = Literal["shared", "own"]
MOST_PATIENCE = 100_000
"""Minutes, ten weeks: a timer takes no more than a number of seconds that fits the system's clock."""


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
            or pairs; of a ladder its last rung, and may be left out.
        arm: the arm's label.
        control: whether other arms are held against it, besides the baseline, where selection pays; an arm of a policy
            that scores nothing is.
        seed: of initialisation, data order and selection.
        loss: ``sigmoid`` (SigLIP) or ``softmax`` (CLIP).
        split: that super-batches are drawn from: several joined by ``+``; ``pool[top=0.05, by=column:similarity]``, the
            share of largest numbers in a column, or ``by=reference`` (``scorer``) of the largest own scores under that
            frozen model, charged once before the first step; or a mixture, ``{"pool": 0.9, "curated": 0.1}``, a share
            of each super-batch (its counts by largest remainder) for each of several splits, which walk their own
            epochs.
        model: the two towers.
        optimizer: AdamW and its schedule.
        evaluate: when and on what.
        limit: how the budget is counted.
        reference: a gin run file (trained on demand, once) or an existing run folder; a sequence is a file followed by
            bindings. A file's run takes over this run's data, loss and image size where neither the file itself nor a
            binding that follows it binds them (``config/hand_over.py``).
        reference_accounting: what scoring by frozen models (reference and scorer) is charged: ``online``,
            ``first_sight``, ``amortised``.
        reference_seed: ``shared``, the reference's own: one reference serves all seeds of an arm; or ``own``: the run
            hands its seed over, so that one reference is trained for each seed.
        reference_calibrate: fit the reference's t and b₀ to this run's loss before the first step, where they are
            used, on up to 16 batches of the split that it was trained on. Without it a reference of another loss is
            refused. The passes are charged: ``flops/reference_score`` by ``reference_accounting`` as for any pair,
            ``flops/pairwise`` for the logits.
        twin: train the reference's run file twice, on two halves of its split (``half`` 0 and 1), and score
            each pair by the one that has not seen it; both are charged.
        half: draw only from the half of the split whose images' content keys have this low bit.
        scorer: a third model, where the policy needs one: a pretrained pair scorer, given like ``reference``
            (``gin/run/cappy.gin``), or an ``@online_scorer()``, trained beside the learner.
        objective: train a pair scorer by regression instead of the contrastive loss; ``loss`` is not
            used then, and nothing is selected.
        cache: where frozen models' embeddings and grades outlive the run; ``None`` keeps them for the run alone.
        cascade: draws the super-batch from more candidates by a frozen model's own score; ``None`` draws it plainly.
        train_views: ``((share, view), …)``: the parts of each sub-batch and the views that they are
            trained under, under one loss; empty for the full view.
        score_view: the view that the learner is scored under; ``None`` is full.
        reference_view: the view that the reference is scored under.
        precision: ``auto`` is bf16 autocast on CUDA and fp32 on CPUs; ``fp64`` is for checks, such as that of several
            processes against one (sums in another order then differ in the last of 16 digits). The format that it is on
            the machine is part of the arm.
        device: ``auto`` is CUDA where there is one.
        microbatch: pairs that a tower scores at once; ``auto``: the largest power of two that the GPU has memory for,
            found at the start; 4,096 on a CPU.
        train_microbatch: pairs of the whole run that hold activations at once in training, m; each of n processes holds
            ⌈m/n⌉ of them. More pairs are embedded twice (cached gradients: the loss stays one over all b pairs, the
            update is the same). ``None``: all. ``auto``: all where the GPUs have memory for them, else n times the
            largest power of two. What is found is charged, stands in ``summary.json`` (``data.microbatches``) and in
            checkpoints, and is no part of the arm.
        shard: whether each of several processes holds a part of the towers' weights, gradients and optimizer state
            (FSDP2), gathered block by block as they are needed. One process runs as without. A locked image tower
            (``model.freeze``) stays whole. Checkpoints are the same with and without.
        compile: whether the models in training run blocks compiled by ``torch.compile``; ``auto``: on CUDA for
            budgets of at least 1e17 FLOPs, which pay back the time that compiling takes.
        grad_checkpointing: keep one activation a block and run the blocks again in the backward pass.
        checkpoints: checkpoints over the budget, evenly spaced, the last at its end.
        log: how often metrics are written.
        wandb: Weights & Biases.
        loader: who decodes the pairs, and how far ahead.
        patience: minutes within which the policy must choose; a longer selection ends the run, with status 2.
        augment: what is done to each image at each step; ``None`` is nothing.
        equal: what two pairs of a sub-batch are to each other that share their image or their caption: ``negative``, as
            in CLIP; ``masked``, in no sum and no denominator, of the loss and of scores; ``positive``, label +1 for
            sigmoid, and for softmax the mean of −log p over the positives, in the loss alone (scores over several pairs
            of the softmax loss are refused). Priced alike.
        select_from: share of the budget before which pairs are drawn uniformly from the super-batch, whatever the
            policy: nothing is scored, charged or left out for it.
        memory_bytes: most that a policy's memory of pairs takes (8 bytes a pair, and 4 for each number); pairs that are
            new once it is full are not remembered, and counted (``memory/refused``).
        init: what training begins from: the folder of a finished run, or a model of another library (``@open_clip()``).
            Its towers, tokenizer, scale and bias take the place of ``model``'s; under ``model.freeze = "image"`` its
            image tower alone. Its FLOPs stand apart. ``None``: random weights.
        remember_images: whether the embeddings of a locked image tower (``model.freeze``) are kept for the run, as a
            frozen model's are: each image is embedded once, and charged by ``reference_accounting`` (``online``: in
            each pass; ``first_sight``: once; ``amortised``: nothing, shown apart). It goes with the full view and
            without augmentation alone.
    """

    policy: Policy | str
    data: Dataset
    batch_size: int
    super_batch_size: int
    budget: float | None = None
    arm: str = ""
    control: bool = False
    seed: int = 0
    loss: LossName = "softmax"
    split: str | dict[str, float] = "pool"
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    evaluate: Evaluate = field(default_factory=Evaluate)
    limit: Budget = field(default_factory=Budget)
    reference: Casting | tuple[Casting, Casting] | str | tuple[str, ...] | None = None
    reference_accounting: Accounting = "first_sight"
    reference_seed: ReferenceSeed = "shared"
    reference_calibrate: bool = False
    twin: bool = False
    half: Half | None = None
    scorer: Casting | str | tuple[str, ...] | None = None
    objective: Regression | None = None
    cache: Cache | None = None
    cascade: Cascade | None = None
    train_views: tuple[tuple[float, View], ...] | None = None
    score_view: View | None = None
    reference_view: View | None = None
    precision: Precision = "auto"
    device: str = "auto"
    microbatch: int | Literal["auto"] = 4096
    checkpoints: int = 4
    log: Log = field(default_factory=Log)
    wandb: WandB = field(default_factory=WandB)
    train_microbatch: int | Literal["auto"] | None = None
    shard: bool = False
    grad_checkpointing: bool = False
    compile: bool | Literal["auto"] = "auto"
    loader: Loader = field(default_factory=Loader)
    patience: float = 30.0
    augment: RandomResizedCrop | None = None
    equal: EqualRule = "negative"
    select_from: float = 0.0
    memory_bytes: int = 8 << 30
    init: Casting | str | None = None
    remember_images: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "super_batch_size", "microbatch", "train_microbatch", "checkpoints"):
            if isinstance(value := getattr(self, name), int) and value < 1:
                raise ValueError(f"run.{name} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"run.seed is a whole number from 0 to 2^63 − 1, got {self.seed}")
        if not 0 < self.patience <= MOST_PATIENCE:
            raise ValueError(f"run.patience is above 0 and at most {MOST_PATIENCE:,} minutes, got {self.patience}")
        if self.batch_size > self.super_batch_size:
            raise ValueError(
                f"run.batch_size = {self.batch_size} pairs cannot be chosen from a super-batch of "
                f"run.super_batch_size = {self.super_batch_size}"
            )
        if not 0 <= self.select_from <= 1:
            raise ValueError(f"run.select_from is a share of the budget in [0, 1], got {self.select_from}")
        if self.memory_bytes < 0:
            raise ValueError(f"run.memory_bytes must not be negative, got {self.memory_bytes}")
        if self.half not in (None, 0, 1):
            raise ValueError(f"run.half is 0 or 1 (or None for the whole split), got {self.half}")
        counted = self.limit.steps is not None or self.limit.pairs is not None
        rungs = self.optimizer.rungs
        if rungs and counted:
            raise ValueError("optimizer.rungs are in FLOPs: they go with neither budget.steps nor budget.pairs")
        if rungs and self.budget is not None and self.budget != rungs[-1]:
            raise ValueError(
                f"run.budget = {self.budget:.12g}, but a ladder ends at its last rung, optimizer.rungs = "
                f"{[*rungs]}: leave run.budget out (run.budget=None), or set it to {rungs[-1]}"
            )
        if rungs:
            object.__setattr__(self, "budget", rungs[-1])
        if (self.budget is None) != counted:
            raise ValueError(
                "give run.budget (FLOPs), or budget.steps or budget.pairs"
                if self.budget is None
                else "run.budget (FLOPs) and budget.steps or budget.pairs exclude each other"
            )
        if self.budget is not None and not (self.budget > 0 and self.budget == int(self.budget)):
            raise ValueError(f"run.budget is a positive whole number of FLOPs, got {self.budget}")
        self._check_combinations()
        object.__setattr__(self, "train_views", mix_of(self.train_views) if self.train_views else None)

    def _check_combinations(self) -> None:
        """Refuse what cannot go together."""
        check_split(self.split)
        if not isinstance(self.split, str):
            for name in ("cascade", "half", "augment"):
                if getattr(self, name) is not None:
                    raise ValueError(f"run.{name} takes one split: run.split = {self.split} mixes several")
        for name, reason in self.training.refuses.items():
            if attrgetter(name)(self):
                raise ValueError(reason)
        for name, roles in (("reference", {"reference"}), ("scorer", {"scorer", "online"})):
            bound = getattr(self, name)
            for one in bound if isinstance(bound, tuple) else (bound,):
                if isinstance(one, Casting) and one.role not in roles:
                    raise ValueError(f"run.{name} cannot be a model that fills the role {one.role!r}")
        if self._two and not (self.twin and len(self._two) == 2):
            raise ValueError(
                "run.reference takes two models where run.twin = True scores each half of the pairs by one"
            )
        if self.twin and isinstance(self.reference, Casting):
            raise ValueError(
                "run.twin scores by two references: run.reference = [@one/open_clip(), @other/open_clip()]"
            )
        if self.twin and self.cascade is not None and self.cascade.score == "reference":
            raise ValueError("run.cascade draws by one reference, run.twin scores by two: set run.twin = False")
        if self.twin and "reference" in self.ranks:
            raise ValueError("run.split takes the top by one reference, run.twin scores by two: set run.twin = False")
        if self.augment is not None and self.cascade is not None:
            raise ValueError("run.cascade looks pairs up by key, run.augment changes them at each step: leave one out")
        if self.augment is not None and self.cache is not None and self.cache.mode == "shared":
            raise ValueError('run.cache keeps embeddings by key, run.augment changes the images: cache.mode = "off"')

    @property
    def built_policy(self) -> Policy:
        """The policy as an object, which a name has been replaced by once the run is resolved."""
        assert not isinstance(self.policy, str)
        return self.policy

    @property
    def ranks(self) -> frozenset[Role]:
        """The roles whose own scores the split takes a top by."""
        return roles_in(self.split)

    @property
    def needs(self) -> frozenset[Role]:
        """The roles that the policy, the cascade before it, or the choice of the split scores with."""
        return frozenset(role for role in ROLES if role in self.step_needs | self.ranks)

    @property
    def step_needs(self) -> frozenset[Role]:
        """The roles that the policy, or the cascade before it, scores with at each step."""
        drawn = self.cascade.role if self.cascade is not None else None
        return frozenset(role for role in ROLES if role in self.built_policy.needs or role == drawn)

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the data that are used, each with what uses it."""
        names = sorted(need for need in self.built_policy.needs if need.startswith(COLUMN))
        used = {name.removeprefix(COLUMN): f"the policy {type(self.policy).__name__} needs" for name in names}
        if self.cascade is not None and self.cascade.column is not None:
            used[self.cascade.column] = f"cascade.score = {self.cascade.score!r} draws by"
        return used

    @property
    def mix(self) -> Mix:
        """The views that a batch is trained under, and their shares."""
        return mix_of(self.train_views)

    @property
    def training(self) -> Training:
        """What the model is trained for."""
        return self.objective or ContrastiveTraining()

    @property
    def castings(self) -> dict[Role, Casting]:
        """What is bound to fill a role by itself, without a run behind it."""
        both = (self.reference, self.scorer)
        found = {bound.role: bound for bound in both if isinstance(bound, Casting)}
        return found | ({"reference": TwinCasting("reference", self._two)} if self._two else {})

    @property
    def _two(self) -> tuple[Casting, ...]:
        """Two models that are bound to score one half of the pairs each."""
        bound = self.reference if isinstance(self.reference, tuple) else ()
        return tuple(one for one in bound if isinstance(one, Casting))

    def view_of(self, role: Role) -> tuple[str, View]:
        """The parameter that sets the view which a role is scored under, and the view."""
        bound = {"learner": "score_view", "reference": "reference_view"}.get(role)
        return (f"run.{bound}", getattr(self, bound) or FULL) if bound else (f"the view of the {role}", FULL)

    def taken(self, pretrain: Mapping[str, int | None]) -> int:
        """FLOPs of pre-training that ``budget.includes`` takes out of the budget.

        Raises:
            ValueError: they are not known.
        """
        unknown = [name for name in self.limit.includes if pretrain.get(name, 0) is None]
        if unknown:
            raise ValueError(
                f"budget.includes takes the pre-training of the {unknown[0]} out of the budget, and what it took is "
                f"not known: state it (pretrain_flops of what run.{unknown[0]} binds), or leave budget.includes out"
            )
        return sum(pretrain.get(name) or 0 for name in self.limit.includes)

    def allowance(self, pretrain: Mapping[str, int | None], added: int = 0) -> Allowance:
        """What may be spent, pre-training taken out where the budget includes it.

        Args:
            pretrain: FLOPs of each model's pre-training; ``None`` where they are not known.
            added: FLOPs that ``budget.adds`` adds (``Resolved.added_flops``).

        Raises:
            ValueError: nothing is left, or what is to be taken out is not known.
        """
        taken = self.taken(pretrain)
        if self.budget is None:
            return Allowance(None, self.limit.steps, self.limit.pairs, taken)
        rungs, cooldown = self.optimizer.rungs, self.optimizer.cooldown if self.optimizer.rungs else 0.0
        least = rungs[0] if rungs else self.budget
        name = "the first of optimizer.rungs" if rungs else "run.budget"
        if least + added - taken <= 0:
            raise ValueError(
                f"{name} = {least:.3g} FLOPs, but the pre-training that budget.includes takes "
                f"out of it costs {taken:.3g}: raise the budget or train a smaller reference"
            )
        if rungs and (1 - cooldown) * (least + added - taken) < self.optimizer.warmup * least:
            raise ValueError(
                f"{name} = {least:.3g} FLOPs leaves {least + added - taken:.3g} without the pre-training that "
                f"budget.includes takes out of it, so that its cool-down (optimizer.cooldown = {cooldown}) would begin "
                f"inside the warm-up (optimizer.warmup = {self.optimizer.warmup} of it): begin with a higher rung"
            )
        own = tuple(int(rung) + added for rung in rungs)
        return Allowance(int(self.budget) + added - taken, None, None, taken, added, own, cooldown)
