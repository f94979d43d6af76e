"""The budget that ends a run, as configured and in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jestbench.cost.ledger import Ledger

Pretrained = Literal["reference", "scorer"]
BELOW_ONE = 1 - 2**-53
"""The largest float below 1: the share of a budget that is not spent yet."""


@dataclass(frozen=True)
class Budget:
    """How a run's budget is counted.

    Attributes:
        includes: pre-training that is taken out of ``run.budget`` before the first step (an
            *all-in* arm): ``reference``, ``scorer``.
        adds: pre-training whose FLOPs are added to ``run.budget``, so that a control may spend all that a
            selecting arm and its ``reference`` spend together. The amount added is the budget that
            ``run.reference`` configures; no model is trained for it.
        steps: end after this many steps instead of at ``run.budget`` FLOPs.
        pairs: end after this many pairs seen instead.
    """

    includes: tuple[Pretrained, ...] = ()
    adds: tuple[Pretrained, ...] = ()
    steps: int | None = None
    pairs: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "includes", tuple(self.includes))
        foreign = set(self.includes) - {"reference", "scorer"}
        if foreign:
            raise ValueError(f"budget.includes takes 'reference' and 'scorer', got {sorted(foreign)}")
        object.__setattr__(self, "adds", tuple(self.adds))
        if set(self.adds) - {"reference"}:
            raise ValueError(f"budget.adds takes 'reference', got {list(self.adds)}")
        for name in ("includes", "adds"):
            if len(set(named := getattr(self, name))) < len(named):
                raise ValueError(f"budget.{name} names a model twice: {list(named)}")
        if self.adds and (self.steps is not None or self.pairs is not None):
            raise ValueError("budget.adds adds FLOPs to run.budget: it goes with neither budget.steps nor budget.pairs")
        both = sorted(set(self.adds) & set(self.includes))
        if both:
            raise ValueError(f"budget.adds and budget.includes exclude each other, both name {both}")
        if self.steps is not None and self.pairs is not None:
            raise ValueError("budget.steps and budget.pairs exclude each other")
        for name in ("steps", "pairs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"budget.{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Allowance:
    """The budget of one run in numbers; one of ``flops``, ``steps`` and ``pairs`` ends it.

    The rungs of a ladder are counted like its budget, which is the last of them: on the run's own ledger, less the
    pre-training that ``budget.includes`` takes out, and with that which ``budget.adds`` adds. The warm-up alone is a
    share of the first rung as configured, so that it is the same for every arm.

    Attributes:
        flops: FLOPs of this run's own passes, or ``None``.
        steps: steps, or ``None``.
        pairs: pairs seen, or ``None``.
        pretrain: FLOPs of pre-training that were taken out of the budget.
        added: FLOPs that were added to the budget.
        rungs: of a ladder, FLOPs as configured, with those that were added, ascending; empty for a run without.
        cooldown: share of each rung that is its cool-down.
    """

    flops: int | None
    steps: int | None
    pairs: int | None
    pretrain: int = 0
    added: int = 0
    rungs: tuple[int, ...] = ()
    cooldown: float = 0.0

    def share(self, ledger: Ledger, step: int, pairs_seen: int, rungs_done: int = 0) -> float:
        """Share of the budget spent, of a ladder the share of the rung ahead; it is reached at 1.

        Args:
            ledger: what was spent.
            step: steps done.
            pairs_seen: pairs drawn into super-batches.
            rungs_done: how many rungs of a ladder are behind; −1: of the whole ladder, whose end is its last rung.
        """
        if self.steps is not None:
            return step / self.steps
        if self.pairs is not None:
            return pairs_seen / self.pairs
        assert self.flops is not None
        flops = self.rungs[rungs_done] - self.pretrain if self.rungs else self.flops
        # Integers first: a quotient of 1 must mean that the budget is reached.
        return 1.0 if ledger.total >= flops else min(ledger.total / flops, BELOW_ONE)

    def position(self, share: float, spent: int) -> float:
        """Where a schedule stands: the share of the budget spent.

        On a ladder, the share of the rung ahead once its cool-down has begun, and the share of the first rung before
        that; 1 − ``cooldown`` from where the first cool-down begins.

        Args:
            share: as ``share`` gives it.
            spent: FLOPs, all but evaluation.
        """
        if not self.rungs or share >= 1 - self.cooldown:
            return share
        return min(spent / (self.rungs[0] - self.added), 1 - self.cooldown)
