"""A resolved run: the run, the text that it came from, and the runs that it stands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jestbench.config.run import ConfigError, Run
from jestbench.cost.budget import Pretrained
from jestbench.engine.start import Start
from jestbench.select.policy import Policy
from jestbench.select.remembering import takes_all


@dataclass(frozen=True)
class Inherited:
    """What a run took over from the run that stands on it.

    Attributes:
        taken: parameters that the includes of its file bind otherwise, or leave at a default: the value taken over.
        kept: parameters that its file itself binds otherwise: the file's value, and the other run's.
    """

    taken: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def described(self) -> tuple[list[str], list[str]]:
        """What was taken over and what was kept, a text for each parameter."""
        kept = [f"{key} = {own!r} (the arm's is {other!r})" for key, (own, other) in self.kept.items()]
        return [f"{key} = {value!r}" for key, value in self.taken.items()], kept


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
        frontier_hash: the same without budget and schedule: what separate runs and ladders of one curve share.
        stands_on: by role, the runs whose models fill it: to be trained on demand, or the folder of a finished one. Two
            under ``run.twin``, by the half of the split that each is trained on.
        warnings: what is doubtful about the configuration.
        inherited: what it took over from the run that stands on it.
        calibrated_on: the split that the reference's t and b₀ are fitted on; ``None`` where they are left alone.
        init_folder: the run folder that ``run.init`` names; ``None`` where it names none.
        start: what training begins from, once it is loaded (``launch.stands.with_start``).
    """

    run: Run
    policy_name: str
    config: str
    operative: str
    flat: Mapping[str, Any]
    config_hash: str
    frontier_hash: str
    stands_on: Mapping[Pretrained, tuple[Resolved | Path, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    inherited: Inherited = field(default_factory=Inherited)
    calibrated_on: str | None = None
    init_folder: Path | None = None
    start: Start | None = None

    @property
    def policy(self) -> Policy:
        """The policy, as an object."""
        return self.run.built_policy

    @property
    def scored_by(self) -> dict[Pretrained, tuple[Resolved | Path, ...]]:
        """What the run stands on, without a reference that its budget adds and nothing scores with."""
        return {role: stands for role, stands in self.stands_on.items() if role in self.run.needs}

    @property
    def below(self) -> tuple[Resolved, ...]:
        """The runs in ``stands_on`` that are to be trained on demand."""
        return tuple(stand for stands in self.stands_on.values() for stand in stands if isinstance(stand, Resolved))

    @property
    def draw_size(self) -> int:
        """Pairs drawn a step: B, or b for a policy that takes all pairs of a super-batch."""
        return self.run.batch_size if takes_all(self.policy) else self.run.super_batch_size

    @property
    def stated_flops(self) -> dict[str, int | None]:
        """FLOPs of the training of other libraries' models that the run scores with, by role; ``None`` if unknown."""
        found: dict[str, int | None] = {}
        for role, casting in self.run.castings.items():
            found |= casting.stated_flops() if role in self.run.needs else {}
        return found

    @property
    def added_flops(self) -> int:
        """FLOPs that ``budget.adds`` adds to the run's own budget: what the reference's training is configured to cost.

        Raises:
            ConfigError: the reference's run has no budget in FLOPs.
        """
        return sum(configured_pretraining(self) for _ in self.run.limit.adds)

    @property
    def candidates(self) -> int:
        """Pairs that a step considers: those that it draws, or the candidates that a cascade draws them from."""
        return self.draw_size * (1 if self.run.cascade is None else self.run.cascade.candidates)


def configured_pretraining(resolved: Resolved) -> int:
    """What training the reference of a run is configured to cost, with the references that it needs itself.

    Raises:
        ConfigError: no FLOPs are configured, so that the cost is not known before it is trained.
    """
    if (casting := resolved.run.castings.get("reference")) is not None:
        stated = casting.stated_flops().get("reference")
        if stated is None:
            raise ConfigError(
                f"budget.adds needs to know what the training of {casting.label} took: state it in pretrain_flops of "
                "what run.reference binds"
            )
        return stated
    total = 0
    for stand in resolved.stands_on.get("reference", ()) or (None,):
        if not isinstance(stand, Resolved) or stand.run.budget is None:
            raise ConfigError(
                "budget.adds needs to know what the reference's training costs: bind run.reference to a run file "
                "whose run.budget is in FLOPs (gin/run/reference.gin)"
            )
        total += int(stand.run.budget) + stand.added_flops
        if "reference" in stand.run.needs and "reference" not in stand.run.limit.includes:
            total += configured_pretraining(stand)
    return total
