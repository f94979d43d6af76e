"""Uniform: no selection, the baseline of every comparison.

It needs no scores, so the loop draws exactly ``count`` pairs for it and nothing is spent on scoring.
Asked to choose from more (in tests, say), it draws them uniformly without replacement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from jestbench.batch import Selection
from jestbench.select import Role, Scores, independent_draw
from policies.registry import register


@register("uniform")
@dataclass(frozen=True)
class Uniform:
    """Every pair alike."""

    needs: ClassVar[frozenset[Role]] = frozenset()
    prefers: ClassVar[Mapping[str, int]] = {}

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """All pairs where there are just ``count``, else a uniform draw."""
        if len(scores) == count:
            return Selection(torch.arange(count))
        return Selection(independent_draw(torch.zeros(len(scores)), count, generator=generator).index_K)
