"""DISSect: prefer the pairs whose own similarity under the learner has grown least, without a reference.

Source: DISSect (arXiv 2507.12998), read as code: s_i = max(0, 100·c_ii) under the learner now, h_i what is remembered
of it. ``warmup``: the first epochs are random and write h; then the top b of (h − mean h) − (s − mean s).
``momentum``: the top b of h − s, then h ← m·h + (1 − m)·s of every pair that was scored. What a learner memorises
late is noise, so what has grown least since an early model is clean.
Departures: h is a memory by the pair's key, of the last time that the pair was in a super-batch of the warm-up; the
means are over the super-batch; a pair of which nothing is remembered has h = s. Within one epoch nothing is
remembered of any pair, and the choice means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from jestbench.batch import Selection
from jestbench.select import Scores, choice_statistics, top_k, uniform_draw
from policies._per_pair import other_pairs
from policies.registry import register

Mode = Literal["warmup", "momentum"]


@register("dissect")
@dataclass(frozen=True)
class Dissect:
    """The top ``count`` by how little the pair's similarity has grown.

    Attributes:
        mode: ``warmup`` compares with the scores of the random first epochs, ``momentum`` with a moving average.
        epochs: random epochs of ``warmup``.
        momentum: m, the weight of what is remembered in the moving average of ``momentum``, in [0, 1).
        shuffle: a control: every pair is given what is remembered of another pair of the super-batch.
        remembers: h.
    """

    mode: Mode = "warmup"
    epochs: int = 5
    momentum: float = 0.9
    shuffle: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"learner", "memory", "progress"})
    prefers: ClassVar[Mapping[str, int]] = {"learner": 1, "h": 1}
    remembers: ClassVar[tuple[str, ...]] = ("h",)

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        if self.epochs < 0:
            raise ValueError(f"epochs must not be negative, got {self.epochs}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum lies in [0, 1), got {self.momentum}")

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Choose by what is remembered, and remember what was scored."""
        score_B = (100 * scores.own_cosine_B("learner")).clamp(min=0)
        epoch = 0 if scores.progress is None else scores.progress.epoch
        if self.mode == "warmup" and epoch < self.epochs:
            return Selection(uniform_draw(len(scores), count, generator), memory={"h": score_B})
        before_B = scores.memory["h"].to(score_B)
        before_B = torch.where(before_B.isnan(), score_B, before_B)
        held_B = before_B[other_pairs(len(scores), generator, score_B.device)] if self.shuffle else before_B
        if self.mode == "warmup":
            grown_B, after_B = (held_B - held_B.mean()) - (score_B - score_B.mean()), before_B
        else:
            grown_B, after_B = held_B - score_B, self.momentum * before_B + (1 - self.momentum) * score_B
        index_K = top_k(grown_B, count)
        return Selection(index_K, choice_statistics(grown_B, index_K), score_B=grown_B, memory={"h": after_B})
