"""Hard learner: prefer the pairs with a large loss under the learner, s = ℓ(θ).

Source: Evans et al. 2024 (arXiv 2406.17711), section 2.1, "hard learner"; the online batch selection
of Loshchilov & Hutter 2015. The policy also prefers noise; learnability is the remedy.
Departures: drawn independently by default; ``joint`` gives the conditional, chunked draw on the
learner's terms alone. The paper's gain on the scores is unknown: ``gain`` = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jestbench.select import Role
from policies._per_pair import PairScorePolicy
from policies.registry import register


@register("hard_learner")
@dataclass(frozen=True)
class HardLearner(PairScorePolicy):
    """p ∝ exp(gain · ℓ(θ))."""

    needs: ClassVar[frozenset[Role]] = frozenset({"learner"})
    prefers: ClassVar[Mapping[str, int]] = {"learner": 1}
