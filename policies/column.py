"""Column: choose by a number that came with the pairs, such as a similarity that somebody else has computed.

Source: filters of DataComp's kind (Gadre et al. 2023, arXiv 2304.14108) by any per-pair number v: the top share, a
threshold, or a draw with p ∝ exp(v/T). No model scores, and nothing is charged.
Departures: the share is taken of each super-batch, not of the whole pool; the sub-batch is drawn uniformly among the
pairs that pass, and where fewer than ``count`` pass, the best ``count`` are taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from jestbench.batch import COLUMN, Selection
from jestbench.select import Scores, top_k
from policies._per_pair import Sampling, other_pairs, top_share
from policies.registry import register

By = Literal["top", "threshold", "draw"]


@register("column")
@dataclass(frozen=True)
class Column(Sampling):
    """By a number that came with the pairs, ``column.name``.

    Attributes:
        name: the column, as in ``webdataset.columns``.
        by: ``top``, uniform among the top share; ``threshold``, uniform among the pairs of at least that value;
            ``draw``, p ∝ exp(v/T).
        share: of ``top``, in (0, 1].
        threshold: of ``threshold``.
        temperature: T of ``draw``.
        shuffle: a control: every pair is given the number of another pair of the super-batch.
    """

    name: str = "similarity"
    by: By = "top"
    share: float = 0.3
    threshold: float = 0.0
    temperature: float = 0.1
    shuffle: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({f"{COLUMN}similarity"})

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise ValueError(f"by must be one of {', '.join(get_args(By))}, got {self.by!r}")
        if not self.name:
            raise ValueError("name is that of a column, and is empty")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be finite, got {self.threshold}")
        super().__post_init__()
        object.__setattr__(self, "needs", self.needs - type(self).needs | {f"{COLUMN}{self.name}"})

    @property
    def prefers(self) -> Mapping[str, int]:
        """Larger numbers."""
        return {f"{COLUMN}{self.name}": 1}

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Filter by the number and draw among what passes, or draw by the number."""
        value_B = scores.values[f"{COLUMN}{self.name}"]
        if self.shuffle:
            value_B = value_B[other_pairs(len(scores), generator, value_B.device)]
        if self.by == "draw":
            return self.by_score(scores, value_B, count, generator, 1 / self.temperature)
        if self.by == "top":
            passed_P = top_share(value_B, self.share, count)
        else:
            passed_P = top_k(value_B, max(count, int((value_B >= self.threshold).sum())))
        return self.among(passed_P, scores, value_B, count, generator)
