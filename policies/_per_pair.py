"""Parameters, checks and the draw that policies with one score per pair share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, get_args

import torch
from torch import Tensor

from jestbench.batch import Selection
from jestbench.select import Draw, PairLoss, Scores, choice_statistics, independent_draw, joint_draw, top_k

Gain = float | tuple[float, float]
"""A factor on scores: one for the whole run, or (from, to), linear in the share of the budget that is spent."""


def check_gain(gain: Gain) -> None:
    """Raise ``ValueError`` unless the gain, or both ends of it, are finite and not negative."""
    ends = gain if isinstance(gain, tuple) else (gain, gain)
    if len(ends) != 2 or not all(math.isfinite(end) and end >= 0 for end in ends):
        raise ValueError(f"gain must be finite and not negative, or (from, to) of two such numbers, got {gain}")


def check_chunks(chunks: int) -> None:
    """Raise ``ValueError`` unless ``chunks`` is an integer of at least 1."""
    if not (isinstance(chunks, int) and chunks >= 1):
        raise ValueError(f"chunks must be a whole number, at least 1, got {chunks}")


def check_pair_loss(pair_loss: str) -> None:
    """Raise ``ValueError`` unless ``pair_loss`` is the name of a pair loss."""
    if pair_loss not in get_args(PairLoss):
        raise ValueError(f"pair_loss must be one of {', '.join(get_args(PairLoss))}, got {pair_loss!r}")


def check_share(share: float) -> None:
    """Raise ``ValueError`` unless the share lies in (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"share lies in (0, 1], got {share}")


def check_temperature(temperature: float) -> None:
    """Raise ``ValueError`` unless the temperature and its inverse are finite and positive."""
    if not (temperature > 0 and math.isfinite(temperature) and math.isfinite(1 / temperature)):
        raise ValueError(f"temperature must be finite and positive, got {temperature}")


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
        if not (math.isfinite(self.repetition) and self.repetition >= 0):
            raise ValueError(f"repetition must be finite and not negative, got {self.repetition}")
        more = {"memory"} if self.repetition else set()
        more |= {"progress"} if isinstance(getattr(self, "gain", 1.0), tuple) else set()
        object.__setattr__(self, "needs", type(self).needs | more)

    def offset_B(self, scores: Scores) -> Tensor | None:
        """What is added to each pair's logit for the times that it was trained on; ``None`` without repetition."""
        return -self.repetition * scores.memory["times"].nan_to_num(0.0) if self.repetition else None

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


def among(
    passed_P: Tensor, score_B: Tensor, count: int, generator: torch.Generator, offset_B: Tensor | None
) -> Selection:
    """``count`` of the pairs that passed a filter, drawn uniformly but for the offset."""
    offset_P = None if offset_B is None else offset_B[passed_P]
    zeros_P = torch.zeros(len(passed_P), device=passed_P.device)
    drawn_K = independent_draw(zeros_P, count, generator=generator, offset_B=offset_P).index_K
    index_K = passed_P[drawn_K.to(passed_P.device)]
    return Selection(index_K, choice_statistics(score_B, index_K), score_B=score_B)


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
        check_pair_loss(self.pair_loss)
        check_chunks(self.chunks)
        check_gain(self.gain)
        if self.joint and self.pair_loss != "own":
            raise ValueError("a joint draw conditions on what is drawn, not on the super-batch: use pair_loss 'own'")

    def draw(self, scores: Scores, score_B: Tensor | None, count: int, generator: torch.Generator) -> Selection:
        """Draw independently by ``score_B``, or jointly from the scores where it is ``None``."""
        gain, offset_B = gain_now(self.gain, scores), self.offset_B(scores)
        if score_B is None:
            draw = joint_draw(scores, count, self.chunks, gain, self.deterministic, generator, offset_B)
        else:
            draw = independent_draw(score_B, count, gain, self.deterministic, generator, offset_B)
        return self.counted(selected(draw), scores)


def random_part(of_N: Tensor, share: float, generator: torch.Generator, shuffle: bool = False) -> Tensor:
    """A random share of the marked pairs, bool ``[N]``; as a control, as many of all pairs."""
    number = round(share * int(of_N.sum()))
    order_N = torch.randperm(len(of_N), generator=generator)
    drawn = (order_N if shuffle else order_N[of_N.cpu()[order_N]])[:number]
    part_N = torch.zeros(len(of_N), dtype=torch.bool)
    part_N[drawn] = True
    return part_N
