"""Selective backprop: prefer high losses, by their rank.

Source: Jiang et al. 2019 (arXiv 1910.00762): a pair is kept with probability (percentile of its loss)^β.
Departures: the percentile is taken within the super-batch, not in a history of recent losses, and exactly
``count`` pairs are drawn without replacement with p ∝ percentile^β, instead of a number that varies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from jestbench.batch import Selection
from jestbench.select import PairLoss, Role, Scores, choice_statistics, draw_statistics, gumbel_top_k
from policies._per_pair import Sampling
from policies.registry import register


@register("selective_backprop")
@dataclass(frozen=True)
class SelectiveBackprop(Sampling):
    """p ∝ (percentile of the learner's loss)^beta.

    Attributes:
        beta: selectivity; 0 is uniform. The paper uses 1 to 3.
        pair_loss: ``in_batch`` or ``own``, as in ``Scores.pair_loss_B``.
    """

    beta: float = 1.0
    pair_loss: PairLoss = "in_batch"
    needs: ClassVar[frozenset[Role]] = frozenset({"learner"})
    prefers: ClassVar[Mapping[str, int]] = {"learner": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ValueError(f"beta must be finite and not negative, got {self.beta}")

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Rank the losses (equal losses share a rank), then draw by a power of the percentile."""
        loss_B = scores.pair_loss_B("learner", self.pair_loss)
        ordered_B = loss_B.sort().values
        percentile_B = torch.searchsorted(ordered_B, loss_B, right=True).double() / len(scores)
        logit_B = self.beta * percentile_B.log()
        offset_B = self.offset_B(scores)
        logit_B = logit_B if offset_B is None else logit_B + offset_B
        index_K = gumbel_top_k(logit_B, count, generator)
        statistics = draw_statistics(logit_B) | choice_statistics(loss_B, index_K)
        return self.counted(Selection(index_K, statistics, score_B=loss_B), scores)
