"""Concept balance: fill the sub-batch greedily with pairs whose words it has too few of. No model scores.

Source: CABS-DM (arXiv 2511.20643): greedy; h(i) = 1/|C_i| · Σ over the concepts c of pair i with n_c < t_c of (t_c −
n_c)/t_c + 1/F_c, where n_c counts c in the sub-batch so far, t_c is a cap and F_c the global frequency.
Departures: concepts are the words of the caption, instead of a detector's tags; F_c counts the super-batches so far,
this one among them; the cap is one number for all words; ties are broken at random. Several processes each do all of
this work, which grows with the words alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from jestbench.batch import Selection
from jestbench.select import NO_WORD, PolicyError, Scores
from policies._per_pair import other_pairs
from policies.registry import register


@register("concept_balance")
@dataclass(frozen=True)
class ConceptBalance:
    """Greedy, by the words that the sub-batch has too few of.

    Attributes:
        cap: t, the number of pairs of a sub-batch with a word from which on the word counts no more.
        shuffle: a control: every pair is given the words of another pair of the super-batch.
    """

    cap: int = 8
    shuffle: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"captions"})
    prefers: ClassVar[Mapping[str, int]] = {}

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise ValueError(f"cap must be at least 1, got {self.cap}")

    def initial_state(self) -> dict[str, Any]:
        """The words of all super-batches so far, in the order of their ids, and the number of pairs with each."""
        return {"word": torch.empty(0, dtype=torch.int64), "times": torch.empty(0, dtype=torch.int64)}

    def select(self, scores: Scores, count: int, generator: torch.Generator, *, state: Any) -> Selection:
        """Count the words, then choose pair by pair."""
        if scores.words_BL is None:
            raise PolicyError("concept_balance chooses by the words of captions, and there are none")
        words_BL = scores.words_BL.cpu()
        if self.shuffle:
            words_BL = words_BL[other_pairs(len(scores), generator, words_BL.device)]
        word, place_W = torch.unique(
            torch.cat([state["word"].cpu(), words_BL[words_BL != NO_WORD]]), return_inverse=True
        )
        times = torch.zeros(len(word), dtype=torch.int64).index_add_(
            0,
            place_W,
            torch.cat([state["times"].cpu(), torch.ones(len(place_W) - len(state["word"]), dtype=torch.int64)]),
        )
        rank_B = torch.randperm(len(scores), generator=generator)
        index_K, first_B = _greedy(
            words_BL, dict(zip(word.tolist(), times.tolist(), strict=True)), self.cap, count, rank_B
        )
        chosen = words_BL[index_K]
        most = torch.unique(chosen[chosen != NO_WORD], return_counts=True)[1]
        statistics = {
            "select/words": float(len(most)),
            "select/most_of_a_word": float(most.max()) if len(most) else 0.0,
        }
        return Selection(index_K, statistics, state={"word": word, "times": times}, score_B=first_B)


def _greedy(words_BL: Tensor, times: Mapping[int, int], cap: int, count: int, rank_B: Tensor) -> tuple[Tensor, Tensor]:
    """The greedy choice, and each pair's score before any is chosen.

    A score only falls as pairs are chosen: the pair whose score is computed anew and is still the best of the others'
    older ones is the best (lazy greedy, Minoux 1978).
    """
    concepts = [[word for word in row if word != NO_WORD] for row in words_BL.tolist()]
    in_batch: dict[int, int] = {}

    def score(pair: int) -> float:
        terms = [
            (cap - held) / cap + 1 / times[word] for word in concepts[pair] if (held := in_batch.get(word, 0)) < cap
        ]
        return sum(terms) / len(concepts[pair]) if terms else 0.0

    first, ranks = [score(pair) for pair in range(len(concepts))], rank_B.tolist()
    heap = [(-value, ranks[pair], pair) for pair, value in enumerate(first)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < count:
        value, rank, pair = heapq.heappop(heap)
        now = -score(pair)
        if now != value:
            heapq.heappush(heap, (now, rank, pair))
            continue
        chosen.append(pair)
        for word in concepts[pair]:
            in_batch[word] = in_batch.get(word, 0) + 1
    return torch.tensor(chosen, dtype=torch.int64), torch.tensor(first)
