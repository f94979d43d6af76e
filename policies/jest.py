"""JEST: draw the sub-batch that is jointly most learnable.

Source: Evans, Parthasarathy, Merzic, Hénaff 2024, "Data curation via joint example selection further
accelerates multimodal learning" (arXiv 2406.17711), sections 2.1 and 2.2 and the listing.
The logits are those of ``jestbench.select.draws.JointLogits``: of the learner's loss minus the
reference's, conditional on the chunks already drawn.
Departures: exactly ``count`` pairs are drawn, whatever ``chunks`` is (the listing truncates);
a Gumbel top-k replaces the sequential draw (same distribution). The paper's gain is unknown: ``gain`` = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from jestbench.batch import Selection
from jestbench.select import Role, Scores
from policies._per_pair import Gain, Sampling, other_pairs
from policies.registry import register


@register("jest")
@dataclass(frozen=True)
class Jest(Sampling):
    """Joint example selection by learnability.

    Attributes:
        chunks: N, the number of chunks that the sub-batch is drawn in; 1 is an independent draw.
        gain: factor on the logits; a pair (from, to) is linear in the share of the budget.
        deterministic: take each chunk's best instead of drawing.
        shuffle_reference: a control: every pair is given the reference embeddings of another pair of
            the super-batch, so the reference's scores keep their distribution and lose their meaning.
    """

    chunks: int = 16
    gain: Gain = 1.0
    deterministic: bool = False
    shuffle_reference: bool = False
    needs: ClassVar[frozenset[Role]] = frozenset({"learner", "reference"})
    prefers: ClassVar[Mapping[str, int]] = {"learner": 1, "reference": -1}

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Draw jointly, chunk by chunk."""
        if self.shuffle_reference:
            reference = scores.side("reference")
            others_B = other_pairs(len(scores), generator, scores.device)
            scores = replace(scores, reference=reference.take(others_B))
        return self.jointly(scores, count, generator, self.chunks, self.gain, self.deterministic)
