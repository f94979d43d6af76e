"""CLIP-score filter: draw among the pairs that a frozen reference finds best matched.

Source: DataComp (Gadre et al. 2023, arXiv 2304.14108), which keeps the top 30 % of a pool by the cosine of a
frozen CLIP model. Departures: the share is taken of each super-batch, not of the whole pool at once, and the
sub-batch is drawn uniformly among the pairs that pass; where fewer than ``count`` pass, the best ``count`` are
taken. The choice does not depend on the learner, and is cheap once the reference's embeddings are cached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from jestbench.batch import Selection
from jestbench.select import Role, Scores
from policies._per_pair import Sampling, top_share
from policies.registry import register


@register("clip_score")
@dataclass(frozen=True)
class ClipScore(Sampling):
    """Uniform among the top share by the reference's cosine.

    Attributes:
        share: part of the super-batch that passes the filter, in (0, 1].
        cosine_only: pairs are ordered by the reference's cosines, so its loss may differ from the run's.
    """

    share: float = 0.3
    needs: ClassVar[frozenset[Role]] = frozenset({"reference"})
    prefers: ClassVar[Mapping[str, int]] = {"reference": -1}
    cosine_only: ClassVar[bool] = True

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Filter by the pair's own logit, which orders pairs as their cosine does, then draw."""
        score_B = scores.own_logit_B("reference")
        passed_P = top_share(score_B, self.share, count)
        return self.among(passed_P, scores, score_B, count, generator)
