"""The budget that ends a run, as configured and in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jestbench.cost.ledger import Ledger

Pretrained = Literal["reference", "scorer"]


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

    Attributes:
        flops: FLOPs of this run's own passes, or ``None``.
        steps: steps, or ``None``.
        pairs: pairs seen, or ``None``.
        pretrain: FLOPs of pre-training that were taken out of the budget.
        added: FLOPs that were added to the budget.
    """

    flops: int | None
    steps: int | None
    pairs: int | None
    pretrain: int = 0
    added: int = 0

    def share(self, ledger: Ledger, step: int, pairs_seen: int) -> float:
        """Share of the budget spent; the learning rate is a function of it, the run ends at 1."""
        if self.steps is not None:
            return step / self.steps
        if self.pairs is not None:
            return pairs_seen / self.pairs
        assert self.flops is not None
        # Integers first: a quotient of 1 must mean that the budget is reached.
        return 1.0 if ledger.total >= self.flops else min(ledger.total / self.flops, 1 - 2**-53)
