"""CLIP-loss filter: draw among the pairs that a frozen reference matches best beside the other pairs.

Source: s-CLIPLoss (Wang et al. 2024, "CLIPLoss and Norm-Based Data Selection Methods", arXiv 2405.19547): the cosine
of each pair less its normalisation, s_i = c_ii − (τ/2)·[log Σ_j exp(c_ij/τ) + log Σ_j exp(c_ji/τ)] with j = i in the
sums, under the reference's embeddings of random batches, averaged over several; the top share is kept. The reference
alone scores, so that the choice does not depend on the learner.
Departures: the share is taken of each super-batch, not of the whole pool at once, the random batches are parts of it,
and the sub-batch is drawn uniformly among the pairs that pass. Two equal pairs (``run.equal``) are in no sum of each
other, also where they are positives of the run's loss.
Several processes share each random batch out, by one all-gather a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from jestbench.batch import Selection
from jestbench.select import Role, Scores
from policies._per_pair import Sampling, other_pairs, top_share
from policies.registry import register


@register("clip_loss")
@dataclass(frozen=True)
class ClipLoss(Sampling):
    """Uniform among the top share by the reference's negative CLIP loss.

    Attributes:
        share: part of the super-batch that passes the filter, in (0, 1].
        temperature: τ; the paper's is 0.01, and 0.07 for a teacher trained on filtered data (DFN).
        batch: pairs of a random batch; 0 takes the whole super-batch. Where it does not divide the super-batch, the
            batches are a little larger: a score among few pairs is no match for one among many.
        rounds: number of times that the super-batch is cut into random batches; scores are averaged over them.
        shuffle: a control: every pair is given the score of another pair of the super-batch.
        cosine_only: pairs are ordered by the reference's cosines, so its loss may differ from the run's.
    """

    share: float = 0.3
    temperature: float = 0.01
    batch: int = 0
    rounds: int = 1
    shuffle: bool = False
    needs: ClassVar[frozenset[Role]] = frozenset({"reference"})
    prefers: ClassVar[Mapping[str, int]] = {"reference": -1}
    cosine_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 0 or self.rounds < 1:
            raise ValueError(f"batch is 0 or more and rounds at least 1, got {self.batch} and {self.rounds}")

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Filter by the score, then draw."""
        score_B = self._score_B(scores, generator)
        if self.shuffle:
            score_B = score_B[other_pairs(len(scores), generator, score_B.device)]
        passed_P = top_share(score_B, self.share, count)
        return self.among(passed_P, scores, score_B, count, generator)

    def _score_B(self, scores: Scores, generator: torch.Generator) -> Tensor:
        """−τ times the softmax loss of each pair within its random batches, the reference's scale being 1/τ."""
        reference = replace(scores.side("reference"), scale=1 / self.temperature, bias=0.0)
        alike = replace(scores.only("reference"), reference=reference, loss="softmax", equal="masked")
        size = len(scores)
        if not 0 < self.batch < size:
            return -self.temperature * alike.pair_loss_B("reference", "in_batch")
        total_B = reference.image_BD.new_zeros(size)
        for _ in range(self.rounds):
            for index_P in other_pairs(size, generator, total_B.device).tensor_split(size // self.batch):
                total_B[index_P] -= self.temperature * alike.take(index_P).pair_loss_B("reference", "in_batch")
        return total_B / self.rounds
