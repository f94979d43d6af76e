"""Uniform: no selection, the baseline of every comparison.

The policy needs no scores, so the super-batch holds exactly ``count`` pairs and scoring costs nothing.
Of a larger super-batch (in tests, say) ``count`` pairs are drawn uniformly without replacement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from jestbench.batch import Selection
from jestbench.select import Role, Scores, uniform_draw
from policies.registry import register


@register("uniform")
@dataclass(frozen=True)
class Uniform:
    """Every pair alike."""

    needs: ClassVar[frozenset[Role]] = frozenset()
    prefers: ClassVar[Mapping[str, int]] = {}

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Choose all pairs where there are exactly ``count``, else draw uniformly."""
        return Selection(uniform_draw(len(scores), count, generator))
