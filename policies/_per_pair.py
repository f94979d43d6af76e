"""Parameters, checks and the draw that policies with one score per pair share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from jestbench.batch import Selection
from jestbench.select import Draw, PairLoss, Scores, Side, choice_statistics, independent_draw, joint_draw, top_k

Gain = float | tuple[float, float]
"""A factor on scores: one for the whole run, or (from, to), linear in the share of the budget that is spent."""


CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "repetition": (lambda times: math.isfinite(times) and times >= 0, "must be finite and not negative"),
    "gain": (
        lambda gain: len(_ends(gain)) == 2 and all(math.isfinite(end) and end >= 0 for end in _ends(gain)),
        "must be finite and not negative, or (from, to) of two such numbers",
    ),
    "chunks": (lambda chunks: isinstance(chunks, int) and chunks >= 1, "must be a whole number, at least 1"),
    "pair_loss": (lambda kind: kind in get_args(PairLoss), f"must be one of {', '.join(get_args(PairLoss))}"),
    "share": (lambda share: 0 < share <= 1, "lies in (0, 1]"),
    "temperature": (
        lambda degree: degree > 0 and math.isfinite(degree) and math.isfinite(1 / degree),
        "must be finite and positive",
    ),
}
"""Of parameters that several policies have: what is allowed, and the words for it."""


def check(policy: object) -> None:
    """Raise ``ValueError`` unless the parameters in ``CHECKS`` that the policy has are allowed."""
    for name, (allowed, rule) in CHECKS.items():
        if hasattr(policy, name) and not allowed(value := getattr(policy, name)):
            raise ValueError(f"{name} {rule}, got {value!r}")


def _ends(gain: Gain) -> tuple[float, ...]:
    return gain if isinstance(gain, tuple) else (gain, gain)


@dataclass(frozen=True)
class Sampling:
    """Parameters that every policy has which draws pairs by logits.

    Attributes:
        repetition: α of Soft Cap Sampling (FLYT, arXiv 2503.08805), which uses 0.15: α for each time that a pair was
            trained on is taken off its logit. 0 remembers nothing.
    """

    repetition: float = field(default=0.0, kw_only=True)
    remembers: ClassVar[tuple[str, ...]] = ("times",)
    needs: ClassVar[frozenset[str]]

    def __post_init__(self) -> None:
        check(self)
        more = {"memory"} if self.repetition else set()
        more |= {"progress"} if isinstance(getattr(self, "gain", 1.0), tuple) else set()
        object.__setattr__(self, "needs", type(self).needs | more)

    def offset_B(self, scores: Scores) -> Tensor | None:
        """What is added to each pair's logit for the times that it was trained on; ``None`` without repetition."""
        return -self.repetition * scores.memory["times"].nan_to_num(0.0) if self.repetition else None

    def by_score(
        self,
        scores: Scores,
        score_B: Tensor,
        count: int,
        generator: torch.Generator,
        gain: Gain = 1.0,
        deterministic: bool = False,
    ) -> Selection:
        """Draw ``count`` pairs independently, p ∝ exp(gain · score), or take the largest scores."""
        gain, offset_B = gain_now(gain, scores), self.offset_B(scores)
        draw = independent_draw(score_B, count, gain, deterministic, generator, offset_B)
        return self.counted(selected(draw), scores)

    def jointly(
        self, scores: Scores, count: int, generator: torch.Generator, chunks: int, gain: Gain, deterministic: bool
    ) -> Selection:
        """Draw ``count`` pairs jointly, in chunks, from the scores of learner, reference or both."""
        gain, offset_B = gain_now(gain, scores), self.offset_B(scores)
        draw = joint_draw(scores, count, chunks, gain, deterministic, generator, offset_B)
        return self.counted(selected(draw), scores)

    def among(
        self, passed_P: Tensor, scores: Scores, score_B: Tensor, count: int, generator: torch.Generator
    ) -> Selection:
        """``count`` of the pairs that passed a filter, drawn uniformly but for the offset."""
        offset_B = self.offset_B(scores)
        offset_P = None if offset_B is None else offset_B[passed_P]
        zeros_P = torch.zeros(len(passed_P), device=passed_P.device)
        drawn_K = independent_draw(zeros_P, count, generator=generator, offset_B=offset_P).index_K
        index_K = passed_P[drawn_K.to(passed_P.device)]
        return self.counted(Selection(index_K, choice_statistics(score_B, index_K), score_B=score_B), scores)

    def counted(self, selection: Selection, scores: Scores) -> Selection:
        """The selection, and that the chosen pairs were trained on once more."""
        if not self.repetition:
            return selection
        before_B, index_K = scores.memory["times"].nan_to_num(0.0), selection.index_K
        # Nothing is written of the others: another pair of the super-batch may have the key of a chosen one.
        times_B = torch.full_like(before_B, math.nan)
        times_B[index_K] = before_B[index_K] + 1
        return replace(selection, memory={"times": times_B})


def gain_now(gain: Gain, scores: Scores) -> float:
    """The gain at this step."""
    if not isinstance(gain, tuple):
        return gain
    share = 0.0 if scores.progress is None else min(1.0, scores.progress.share)
    return (1 - share) * gain[0] + share * gain[1]


def selected(draw: Draw) -> Selection:
    """Turn a draw into a selection."""
    return Selection(draw.index_K, draw.statistics, score_B=draw.score_B)


def top_share(score_B: Tensor, share: float, count: int) -> Tensor:
    """Positions of the pairs of the largest scores: a share of all, at least ``count``."""
    return top_k(score_B, max(count, math.ceil(share * len(score_B))))


def other_pairs(size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """For a control: the positions of the pairs in random order, by which each is given the score of another."""
    return torch.randperm(size, generator=generator).to(device)


@dataclass(frozen=True)
class PairScorePolicy(Sampling):
    """Parameters of a policy that draws by a pair loss.

    Attributes:
        pair_loss: ``own`` (the pair's own logit) or ``in_batch`` (its row and column of the
            super-batch's loss; a B×B product, computed in tiles and charged).
        joint: draw jointly, in chunks, on conditional logits, instead of independently.
        chunks: N, of a joint draw.
        gain: factor on the scores before the exponential; a pair (from, to) is linear in the share of the budget.
        deterministic: take the largest instead of drawing.
    """

    pair_loss: PairLoss = "own"
    joint: bool = False
    chunks: int = 16
    gain: Gain = 1.0
    deterministic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.joint and self.pair_loss != "own":
            raise ValueError("a joint draw conditions on what is drawn, not on the super-batch: use pair_loss 'own'")

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Draw by the learner's loss less the reference's: those of the two that the policy needs."""
        scores = scores.only(*(side for side in get_args(Side) if side in self.needs))
        if self.joint:
            return self.jointly(scores, count, generator, self.chunks, self.gain, self.deterministic)
        score_B = scores.learnability_B(self.pair_loss)
        return self.by_score(scores, score_B, count, generator, self.gain, self.deterministic)


def random_part(of_N: Tensor, share: float, generator: torch.Generator, shuffle: bool = False) -> Tensor:
    """A random share of the marked pairs, bool ``[N]``; as a control, as many of all pairs."""
    number = round(share * int(of_N.sum()))
    order_N = torch.randperm(len(of_N), generator=generator)
    drawn = (order_N if shuffle else order_N[of_N.cpu()[order_N]])[:number]
    part_N = torch.zeros(len(of_N), dtype=torch.bool)
    part_N[drawn] = True
    return part_N
