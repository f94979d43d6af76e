"""Neighbours: fill the sub-batch with groups of pairs that a frozen reference finds similar, as hard negatives.

Source: B3 (arXiv 2505.11293), which makes batches of communities of a teacher's nearest neighbours, the nearest few
left out as false negatives. The form for a super-batch is ours: repeat, until there are ``count`` pairs: a seed i
uniform among the rest, then its neighbours of ranks p … p + m − 1 by (c_ij + c_ji)/2.
Departures: ranks are among the pairs of the super-batch that are not chosen yet; where fewer are left, the last m.
Several processes share each seed's cosines out, by two all-gathers a seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from jestbench.batch import Selection
from jestbench.select import Role, Scores, top_k
from policies.registry import register


@register("neighbours")
@dataclass(frozen=True)
class Neighbours:
    """Random pairs, each with its neighbours under the reference.

    Attributes:
        skip: p, the nearest neighbours that are left out.
        size: m, the neighbours that each seed brings.
        cosine_only: pairs are ordered by the reference's cosines, so its loss may differ from the run's.
    """

    skip: int = 4
    size: int = 7
    needs: ClassVar[frozenset[Role]] = frozenset({"reference"})
    prefers: ClassVar[Mapping[str, int]] = {}
    cosine_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.skip < 0 or self.size < 0:
            raise ValueError(f"skip and size must not be negative, got {self.skip} and {self.size}")

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Draw a seed and take its neighbours, until the sub-batch is full."""
        device = scores.device
        order = iter(torch.randperm(len(scores), generator=generator).tolist())
        free_B = torch.ones(len(scores), dtype=torch.bool, device=device)
        chosen: list[int] = []
        near, pairs = 0.0, 0
        while len(chosen) < count:
            seed = next(pair for pair in order if free_B[pair])
            free_B[seed] = False
            chosen.append(seed)
            wanted = min(self.size, count - len(chosen))
            if not wanted:
                continue
            index_1 = torch.tensor([seed], device=device)
            rows = scores.cosines("reference", index_1)[0], scores.cosines("reference", None, index_1)[:, 0]
            near_B = ((rows[0] + rows[1]) / 2).masked_fill(~free_B, -torch.inf)
            left = int(free_B.sum())
            ranked = top_k(near_B, min(left, self.skip + wanted))[-wanted:]
            free_B[ranked] = False
            chosen += ranked.tolist()
            near, pairs = near + float(near_B[ranked].sum()), pairs + len(ranked)
        index_K = torch.tensor(chosen, dtype=torch.int64, device=device)
        return Selection(index_K, {"select/cosine_neighbours": near / pairs} if pairs else {})
