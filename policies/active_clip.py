"""ActiveCLIP: learnability by two cheap models, a small online scorer in training and a frozen reference.

Source: Evans et al. 2023, "Bad Students Make Great Teachers" (ClassAct / ActiveCLIP, arXiv 2312.05328):
s = ℓ(online scorer) − ℓ(reference) of each pair by its own dot product, p ∝ exp(s). The scorer is trained
beside the learner on the same chosen pairs (``run.scorer = @online_scorer()``), and the learner itself
scores nothing: this saves its forward passes over the super-batch.
Departures: exactly ``count`` pairs are drawn without replacement; the reference is pre-trained and frozen, as
in the paper's own ablations, while the paper's main runs train the reference online too; the paper's
gain on the scores is taken as 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from jestbench.batch import Selection
from jestbench.select import PairLoss, Role, Scores
from policies._per_pair import Gain, Sampling
from policies.registry import register


@register("active_clip")
@dataclass(frozen=True)
class ActiveClip(Sampling):
    """p ∝ exp(gain · (ℓ(online scorer) − ℓ(reference))).

    Attributes:
        pair_loss: ``own`` (the paper's) or ``in_batch``, as in ``Scores.pair_loss_B``.
        gain: factor on the scores before the exponential; a pair (from, to) is linear in the share of the budget.
        deterministic: take the largest instead of drawing.
    """

    pair_loss: PairLoss = "own"
    gain: Gain = 1.0
    deterministic: bool = False
    needs: ClassVar[frozenset[Role]] = frozenset({"online", "reference"})
    prefers: ClassVar[Mapping[str, int]] = {"online": 1, "reference": -1}

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Draw by the scorer's loss over the reference's."""
        score_B = scores.pair_loss_B("online", self.pair_loss) - scores.pair_loss_B("reference", self.pair_loss)
        return self.by_score(scores, score_B, count, generator, self.gain, self.deterministic)
