"""Importance sampling by a bound on each pair's gradient norm.

Source: Katharopoulos & Fleuret 2018, "Not All Samples Are Created Equal" (arXiv 1803.00942): p_i ∝ Ĝ_i, the
norm of the loss's gradient at the last layer, which bounds the norm of the whole gradient up to a constant; the
chosen are weighted by 1/(B·p_i), which keeps the gradient's expectation. Here the last layer's output is the pair's
two normalised embeddings, and Ĝ_i the norm of both gradients together, in closed form from the learner's
embeddings of the super-batch (``Scores.gradient_norm_B``).
Departures: the loss is the super-batch's, which the pairs share; p_i ∝ Ĝ_i^(1/temperature), the paper's rule at
temperature 1. The paper draws with replacement; here ``count`` distinct pairs are drawn without replacement, and
the with-replacement weights are kept, normalised to a mean of 1 over the chosen: the estimate is then biased, the
more so the larger the share of the super-batch that is chosen. A weight acts on the pair's row and column of the
sub-batch's loss (``jestbench.select.losses``). The paper starts to sample once sampling pays (its τ); here sampling
starts at the first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from jestbench.batch import Selection
from jestbench.select import Role, Scores, choice_statistics, draw_statistics, gumbel_top_k
from policies._per_pair import Sampling
from policies.registry import register


@register("grad_norm")
@dataclass(frozen=True)
class GradNorm(Sampling):
    """p ∝ (gradient norm of the pair's embeddings)^(1/temperature), with importance weights.

    Attributes:
        temperature: 1 is the paper's rule; towards infinity the draw becomes uniform.
        weighted: weigh the chosen by 1/(B·p), normalised to mean 1; otherwise all alike.
    """

    temperature: float = 1.0
    weighted: bool = True
    needs: ClassVar[frozenset[Role]] = frozenset({"learner"})
    prefers: ClassVar[Mapping[str, int]] = {"learner": 1}

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Draw by the norms; weigh the chosen pairs by their probabilities."""
        norm_B = scores.gradient_norm_B("learner").double()
        # A gradient of exactly 0 would exclude the pair: it becomes the smallest number instead.
        logit_B = norm_B.clamp(min=torch.finfo(torch.float32).tiny).log() / self.temperature
        offset_B = self.offset_B(scores)
        logit_B = logit_B if offset_B is None else logit_B + offset_B
        index_K = gumbel_top_k(logit_B, count, generator)
        statistics = draw_statistics(logit_B) | choice_statistics(norm_B, index_K)
        if not self.weighted:
            return self.counted(Selection(index_K, statistics), scores)
        # 1/(B·p) over its mean, in log space: B and the normalisation of p cancel, and nothing overflows.
        weight_K = count * torch.softmax(-logit_B[index_K], dim=0)
        more = {"select/weight_max": float(weight_K.max()), "select/weight_min": float(weight_K.min())}
        return self.counted(Selection(index_K, statistics | more, weight_K.float()), scores)
