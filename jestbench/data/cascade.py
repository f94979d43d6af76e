"""A cascade: cached per-pair scores choose a super-batch among many candidates, before anything is decoded.

From ``candidates`` × B keys, B pairs with a low loss under a frozen model are drawn; the policy then
selects its b among those B as usual. A cascade is a plan of super-batches like any other, so it works with
every policy, and with every score that depends on one pair alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch, DataError, Pass
from jestbench.data.fetch import Positions
from jestbench.data.pairs import IndexedPairs
from jestbench.data.super_batches import EpochPlan, StepPlan
from jestbench.select.draws import gumbel_top_k, top_k


@dataclass(frozen=True)
class Cascade:
    """How a super-batch is drawn from candidates.

    Attributes:
        candidates: number of candidates for each pair of the super-batch.
        temperature: T of p ∝ exp(−own loss/T), draws without replacement.
        deterministic: take the candidates of least loss instead of drawing.
        score: model that gives the own loss: ``reference`` is ``run.reference`` (an irreducible-loss model, too);
            ``scorer`` is the pretrained ``run.scorer``, whose grades g give p ∝ exp(g/T).
    """

    candidates: int = 5
    temperature: float = 1.0
    deterministic: bool = False
    score: Literal["reference", "scorer"] = "reference"

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"cascade.candidates must be at least 1, got {self.candidates}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"cascade.temperature must be positive, got {self.temperature}")
        if self.score not in ("reference", "scorer"):
            raise ValueError(f"cascade.score is 'reference' or 'scorer', got {self.score!r}")

    def choose(self, loss_C: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Positions ``[B]`` of the chosen among the candidates, in the order of the draws."""
        if self.deterministic:
            return top_k(-loss_C, count)
        return gumbel_top_k(-loss_C / self.temperature, count, generator)


class OwnLoss(Protocol):
    """A function that gives each candidate's loss by key, and reads the pairs whose loss must be computed."""

    def __call__(
        self, image_key_C: Tensor, text_key_C: Tensor, read: Callable[[Tensor], Batch]
    ) -> tuple[Tensor, tuple[Pass, ...]]:
        """The loss of each candidate, and the passes it cost; ``read`` decodes the pairs at given positions.

        A pair that turns out to be damaged, so that ``read`` gives another in its place, has an infinite loss.
        """
        ...


class CascadePlan(StepPlan):
    """A plan whose super-batches are drawn from ``cascade.candidates`` times as many pairs.

    The candidates of a step are one large super-batch of an :class:`EpochPlan`: they never span two epochs, and no
    pair is a candidate twice.

    Args:
        pairs: the split.
        size: B, pairs of a super-batch.
        seed: of the run.
        cascade: how they are drawn.
        score: of the candidates.

    Raises:
        DataError: the split holds fewer pairs than the candidates of one super-batch.
    """

    reads: ClassVar[bool] = True

    def __init__(self, pairs: IndexedPairs, size: int, seed: int, cascade: Cascade, score: OwnLoss) -> None:
        if len(pairs) < cascade.candidates * size:
            raise DataError(
                f"the split holds {len(pairs)} pairs, fewer than the {cascade.candidates} × {size} candidates of one "
                "super-batch: lower cascade.candidates or run.super_batch_size, or take more data"
            )
        self.pairs, self.size, self.seed, self.cascade, self.score = pairs, size, seed, cascade, score
        self.candidates = EpochPlan(pairs, cascade.candidates * size, seed)

    def positions(self, step: int, read: Callable[[Positions], Batch]) -> Positions:
        """The drawn pairs, with the passes that drawing cost; candidates whose loss is not cached are read."""
        candidates = self.candidates.positions(step)
        index_C = candidates.index_B
        drawn = self.pairs.drawn(self.seed, candidates.epoch)
        image_key_C = torch.from_numpy(drawn.image_key_N[index_C.numpy()])
        loss_C, passes = self.score(
            image_key_C,
            drawn.text_key_N[index_C],
            lambda position_N: read(replace(candidates, index_B=index_C[position_N])),
        )
        chosen_B = self.cascade.choose(loss_C, self.size, seeds.generator(self.seed, "cascade", step))
        return replace(candidates, index_B=index_C[chosen_B], passes=passes)

    def skipped(self, step: int) -> int:
        """Pairs left out as tails, too few to be all the candidates of a super-batch."""
        return self.candidates.skipped(step)
