"""RHO-LOSS: keep the pairs whose training loss exceeds their irreducible loss most.

Source: Mindermann et al. 2022 (arXiv 2206.07137), equation 3: arg top-k of L[y|x; D_t] − L[y|x; D_ho];
the n_b best of n_B, deterministically, no re-weighting. The irreducible loss comes from a model
trained on a holdout of the same data: the run's reference, trained by ``gin/run/irreducible.gin``. Without
a holdout (the paper's variant; ``run.twin``, ``gin/policy/rho_loss_twin.gin``) two models are trained on two halves
of the pool and each scores the half that it was not trained on; a pair's row and column are then taken among the
pairs of its own half.
Departures: a contrastive loss has no loss of one example alone; by default the pair's row and column
of the super-batch's loss take its place (``pair_loss`` = ``in_batch``), under both models alike. The
paper keeps the checkpoint with the lowest training-set loss; here the irreducible model's last checkpoint is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from jestbench.batch import Selection
from jestbench.select import PairLoss, Role, Scores, independent_draw
from policies._per_pair import check, selected
from policies.registry import register


@register("rho_loss")
@dataclass(frozen=True)
class RhoLoss:
    """The top ``count`` by reducible holdout loss.

    Attributes:
        pair_loss: ``in_batch`` or ``own``, as in ``Scores.pair_loss_B``.
        by_parts: each part of ``Scores.parts`` is compared within itself.
    """

    pair_loss: PairLoss = "in_batch"
    needs: ClassVar[frozenset[Role]] = frozenset({"learner", "reference"})
    prefers: ClassVar[Mapping[str, int]] = {"learner": 1, "reference": -1}
    by_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self)

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Take the pairs with the largest reducible loss, deterministically."""
        found = [(index_P, part.learnability_B(self.pair_loss)) for index_P, part in scores.parts()]
        score_B = torch.cat([score_P for _, score_P in found])[torch.cat([index_P for index_P, _ in found]).argsort()]
        return selected(independent_draw(score_B, count, deterministic=True))
