"""Cappy: prefer the pairs that a small pretrained scorer grades well, p ∝ exp(g / T).

Source: Cappy (Tan et al. 2023, tanyuqian/cappy), a small pretrained scorer g ∈ [0, 1] of an answer to an instruction;
its use as a selection score of image–text pairs, g(image, text), is our design. The scorer is trained by
``gin/run/cappy.gin`` and bound as ``run.scorer``; a grade depends neither on the learner nor on the
rest of the super-batch, so grades are cached.
Departures: Cappy ranks candidates and takes the best (``deterministic``); here pairs are drawn by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from jestbench.batch import Selection
from jestbench.select import PolicyError, Role, Scores
from policies._per_pair import Sampling, other_pairs
from policies.registry import register


@register("cappy")
@dataclass(frozen=True)
class Cappy(Sampling):
    """p ∝ exp(g / T), g the pretrained scorer's grade of the pair.

    Attributes:
        temperature: T; at 0.1 a pair of grade 1 is e¹⁰ times as likely as one of grade 0, at the first draw.
        deterministic: take the best grades instead of drawing.
        shuffle: a control: every pair is given the grade of another pair of the super-batch, so the
            grades keep their distribution and lose their meaning.
    """

    temperature: float = 0.1
    deterministic: bool = False
    shuffle: bool = False
    needs: ClassVar[frozenset[Role]] = frozenset({"scorer"})
    prefers: ClassVar[Mapping[str, int]] = {"g": 1}

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Draw by the grade over the temperature.

        Raises:
            PolicyError: the scorer does not grade pairs.
        """
        if "g" not in scores.values:
            raise PolicyError("cappy draws by the grades of a pretrained scorer: bind run.scorer to gin/run/cappy.gin")
        grade_B = scores.values["g"]
        if self.shuffle:
            grade_B = grade_B[other_pairs(len(scores), generator, grade_B.device)]
        return self.by_score(scores, grade_B, count, generator, 1 / self.temperature, self.deterministic)
