"""A cascade: per-pair scores choose a super-batch among many candidates, before anything is decoded.

From ``candidates`` × B keys, B pairs with a low loss under a frozen model, or with a large number of their own (a
similarity that came with the data), are drawn; the policy then selects its b among those B as usual. A cascade is a
plan of super-batches like any other, so it works with every policy, and with every score of one pair alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import COLUMN, DataError, Pass
from jestbench.data.fetch import Positions
from jestbench.data.pairs import IndexedPairs, ReadPairs
from jestbench.data.super_batches import EpochPlan, StepPlan
from jestbench.parallel.distributed import World
from jestbench.parallel.placement import Placement
from jestbench.select.draws import gumbel_top_k, top_k

OwnScorer = Literal["reference", "scorer"]
"""The role of a frozen model that scores pairs of its own."""


def own_score(text: str) -> tuple[OwnScorer | None, str | None]:
    """What a text ranks pairs by: a frozen model's role or, written ``column:NAME``, a column; else two ``None``."""
    column = text.removeprefix(COLUMN) if text.startswith(COLUMN) else ""
    return next((role for role in get_args(OwnScorer) if role == text), None), column or None


@dataclass(frozen=True)
class Cascade:
    """How a super-batch is drawn from candidates.

    Attributes:
        candidates: number of candidates for each pair of the super-batch.
        temperature: T of p ∝ exp(−own loss/T), draws without replacement.
        deterministic: take the candidates of least loss instead of drawing.
        score: model that gives the own loss: ``reference`` is ``run.reference`` (an irreducible-loss model, too);
            ``scorer`` is the pretrained ``run.scorer``, whose grades g give p ∝ exp(g/T); ``column:NAME`` is a number
            that came with the pairs (``webdataset.columns``), p ∝ exp(number/T), and costs no pass.
    """

    candidates: int = 5
    temperature: float = 1.0
    deterministic: bool = False
    score: str = "reference"

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"cascade.candidates must be at least 1, got {self.candidates}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"cascade.temperature must be positive, got {self.temperature}")
        if own_score(self.score) == (None, None):
            raise ValueError(
                f"cascade.score is 'reference', 'scorer', or a column such as 'column:similarity', got {self.score!r}"
            )

    @property
    def column(self) -> str | None:
        """The column that is drawn by, without its prefix; ``None`` where a model's score is."""
        return own_score(self.score)[1]

    @property
    def role(self) -> OwnScorer | None:
        """The role of the model that is drawn by; ``None`` where a column is."""
        return own_score(self.score)[0]

    def choose(self, loss_C: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Positions ``[B]`` of the chosen among the candidates, in the order of the draws.

        Damaged candidates, whose loss is infinite, come behind all others, where these are too few.
        """
        whole_C = loss_C.isfinite()
        if (missing := count - int(whole_C.sum())) > 0:
            index_C = whole_C.nonzero().flatten()
            drawn = index_C[self.choose(loss_C[index_C], len(index_C), generator)]
            return torch.cat([drawn, (~whole_C).nonzero().flatten()[:missing]])
        if self.deterministic:
            return top_k(-loss_C, count)
        return gumbel_top_k(-loss_C / self.temperature, count, generator)


class OwnLoss(Protocol):
    """A function that gives candidates' losses by key, and reads the pairs whose loss must be computed."""

    def __call__(
        self, image_key_C: Tensor, text_key_C: Tensor, read: Callable[[Tensor], ReadPairs], own_P: Tensor
    ) -> Tensor:
        """The loss of the candidates at positions ``own_P``; infinite where a pair that ``read`` decodes is damaged."""
        ...


@dataclass(frozen=True)
class CandidateScoring:
    """How a model scores the candidates of a cascade.

    Attributes:
        loss: gives the losses of those that this process reads.
        passes: gives the passes that scoring pairs of these image and text keys is charged.
    """

    loss: OwnLoss
    passes: Callable[[Tensor, Tensor], tuple[Pass, ...]]


class CascadePlan(StepPlan):
    """A plan whose super-batches are drawn from ``cascade.candidates`` times as many pairs.

    The candidates of a step are one large super-batch of an :class:`EpochPlan`: they never span two epochs, and no
    pair is a candidate twice.

    A candidate that turns out to be damaged is counted, and no other pair is read in its place: nobody trains on a
    candidate that is not drawn. Its loss is infinite, so that it is drawn only where fewer than B candidates are whole
    (another pair then stands for it in the super-batch). No model runs over it, so it is not charged.

    Args:
        pairs: the split.
        size: B, pairs of a super-batch.
        seed: of the run.
        cascade: how they are drawn.
        scoring: of the candidates; ``None`` where they are drawn by a column.
        world: the processes that share the candidates. A pair belongs to one process, by its image's key, whenever it
            is a candidate: this process alone reads and scores it, and finds its score and embeddings again.

    Raises:
        DataError: the split holds fewer pairs than the candidates of one super-batch.
    """

    def __init__(
        self,
        pairs: IndexedPairs,
        size: int,
        seed: int,
        cascade: Cascade,
        scoring: CandidateScoring | None,
        world: World | None = None,
    ) -> None:
        self.reads, self.world = scoring is not None, world or World()
        if len(pairs) < cascade.candidates * size:
            raise DataError(
                f"the split holds {len(pairs)} pairs, fewer than the {cascade.candidates} × {size} candidates of one "
                "super-batch: lower cascade.candidates or run.super_batch_size, or take more data"
            )
        self.pairs, self.size, self.seed, self.cascade, self.scoring = pairs, size, seed, cascade, scoring
        self.candidates = EpochPlan(pairs, cascade.candidates * size, seed)

    def positions(self, step: int, read: Callable[[Positions], ReadPairs]) -> Positions:
        """The drawn pairs, with the passes that drawing cost; candidates whose loss is not cached are read."""
        candidates = self.candidates.positions(step)
        index_C, generator = candidates.index_B, seeds.generator(self.seed, "cascade", step)
        if self.scoring is None:
            assert self.cascade.column is not None
            value_C = torch.from_numpy(self.pairs.columns[self.cascade.column][index_C.numpy()])
            return replace(candidates, index_B=index_C[self.cascade.choose(-value_C, self.size, generator)])
        drawn = self.pairs.drawn(self.seed, candidates.epoch)
        image_key_C = torch.from_numpy(drawn.image_key_N[index_C.numpy()])
        home = Placement(seeds.mixed(image_key_C) % self.world.size, self.world)
        text_key_C = drawn.text_keys_at(index_C)
        loss_P = self.scoring.loss(
            image_key_C,
            text_key_C,
            lambda position_N: read(replace(candidates, index_B=index_C[position_N])),
            home.rows,
        )
        loss_C = home.collect(loss_P)
        whole_C = loss_C.isfinite()
        passes = self.scoring.passes(image_key_C[whole_C], text_key_C[whole_C])
        chosen_B = self.cascade.choose(loss_C, self.size, generator)
        return replace(candidates, index_B=index_C[chosen_B], passes=passes, placement=home.taken(chosen_B))

    def epoch(self, step: int) -> int:
        """Completed passes over the candidates."""
        return self.candidates.epoch(step)

    def skipped(self, step: int) -> int:
        """Pairs left out as tails, too few to be all the candidates of a super-batch."""
        return self.candidates.skipped(step)
