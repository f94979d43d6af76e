"""Easy reference: prefer the pairs with a small loss under the reference, s = −ℓ(θ*).

Source: Evans et al. 2024 (arXiv 2406.17711), section 2.1, "easy reference"; with a reference larger
than the learner it is I-ACID (arXiv 2411.18674). The choice does not depend on the learner, so it also
prefers pairs that the learner has long learned.
Departures: drawn independently by default; ``joint`` gives the conditional, chunked draw on the
reference's terms alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jestbench.select import Role
from policies._per_pair import PairScorePolicy
from policies.registry import register


@register("easy_reference")
@dataclass(frozen=True)
class EasyReference(PairScorePolicy):
    """p ∝ exp(−gain · ℓ(θ*))."""

    needs: ClassVar[frozenset[Role]] = frozenset({"reference"})
    prefers: ClassVar[Mapping[str, int]] = {"reference": -1}
