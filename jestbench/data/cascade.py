"""A cascade: cached per-pair scores choose a super-batch among many candidates, before anything is decoded.

From ``candidates`` × B keys the B pairs with a low loss under a frozen model are drawn; the policy then
selects its b among them as ever. It is a source of super-batches like any other, so it works with every
policy, and with every score that a pair has by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch, DataError, Pass
from jestbench.data.super_batches import SuperBatches
from jestbench.model.tokenizer import Tokenizer
from jestbench.select.draws import gumbel_top_k, top_k


@dataclass(frozen=True)
class Cascade:
    """How a super-batch is drawn from candidates.

    Attributes:
        candidates: for each pair of the super-batch.
        temperature: T of p ∝ exp(−own loss/T), draws without replacement.
        deterministic: take those of least loss instead of drawing.
        score: whose own loss: ``reference`` is ``run.reference``'s (of an irreducible-loss model, too), ``scorer`` the
            grades of the pretrained ``run.scorer``, p ∝ exp(g/T).
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
    """Scores candidates by key, and reads those that it has to see."""

    def __call__(
        self, image_key_C: Tensor, text_key_C: Tensor, read: Callable[[Tensor], Batch]
    ) -> tuple[Tensor, tuple[Pass, ...]]:
        """A loss of each candidate, and what it cost; ``read`` decodes the pairs at some positions.

        A pair that turns out to be damaged, so that ``read`` gives another in its place, has an infinite loss.
        """
        ...


class CascadedSuperBatches:
    """Super-batches of ``size`` pairs, drawn from ``cascade.candidates`` times as many.

    Candidates are what a plain run with a super-batch of that size would see: they never span two
    passes over the data, and none stands among them twice.

    Raises:
        DataError: the split holds fewer pairs than one draw needs.
    """

    def __init__(self, drawn: SuperBatches, size: int, cascade: Cascade, score: OwnLoss) -> None:
        self.drawn, self.size, self.cascade, self.score = drawn, size, cascade, score
        self.decoded = 0

    @staticmethod
    def candidates(size: int, cascade: Cascade, pool: int) -> int:
        """Pairs that a step draws from.

        Raises:
            DataError: the split holds fewer.
        """
        count = cascade.candidates * size
        if pool < count:
            raise DataError(
                f"the split holds {pool} pairs, fewer than the {cascade.candidates} × {size} candidates of one "
                "super-batch: lower cascade.candidates or run.super_batch_size, or take more data"
            )
        return count

    @property
    def tokenizer(self) -> Tokenizer:
        """The split's."""
        return self.drawn.tokenizer

    @property
    def pool(self) -> int:
        """All pairs of the split."""
        return self.drawn.pool

    def at(self, step: int) -> Batch:
        """The super-batch of a step, with the passes that choosing it cost."""
        index_C, pairs = self.drawn.index_B(step), self.drawn.pairs_at(step)

        def read(position_N: Tensor) -> Batch:
            batch = pairs.batch(index_C[position_N])
            self.decoded += len(batch)
            self.drawn.tally.add(batch.counts)
            return batch

        image_key_C = torch.from_numpy(pairs.image_key_N[index_C.numpy()])
        loss_C, passes = self.score(image_key_C, pairs.text_key_N[index_C], read)
        chosen_B = self.cascade.choose(loss_C, self.size, seeds.generator(self.drawn.seed, "cascade", step))
        return replace(read(chosen_B), passes=passes)

    def counts(self, step: int) -> dict[str, float]:
        """Pairs skipped as tails, and pairs decoded: the chosen, and candidates that no cache knew."""
        return self.drawn.counts(step) | {"data/decoded": self.decoded}

    def state(self) -> object:
        """The counts."""
        return {"decoded": self.decoded, "drawn": self.drawn.state()}

    def restore(self, state: object) -> None:
        """Go on with the counts."""
        assert isinstance(state, dict)
        self.decoded = state["decoded"]
        self.drawn.restore(state["drawn"])

    def close(self) -> None:
        """Let go of what lies below."""
        self.drawn.close()
