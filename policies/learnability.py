"""Learnability per pair: prefer pairs hard for the learner and easy for the reference, s = ℓ(θ) − ℓ(θ*).

Source: ActiveCLIP / ClassAct (Evans et al. 2023, arXiv 2312.05328), p ∝ exp(s) with the pair's own
dot product (``pair_loss`` = ``own``); ``in_batch`` takes the pair's row and column of the
super-batch's loss. JEST with one chunk is this policy with ``own``.
Departures: the learner itself scores; ActiveCLIP's small online scorer is another policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jestbench.select import Role
from policies._per_pair import PairScorePolicy
from policies.registry import register


@register("learnability")
@dataclass(frozen=True)
class Learnability(PairScorePolicy):
    """p ∝ exp(gain · (ℓ(θ) − ℓ(θ*)))."""

    needs: ClassVar[frozenset[Role]] = frozenset({"learner", "reference"})
    prefers: ClassVar[Mapping[str, int]] = {"learner": 1, "reference": -1}
