"""Parameters, checks and the draw that policies with one score per pair share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from jestbench.batch import Selection
from jestbench.select import Draw, PairLoss, Scores, independent_draw, joint_draw


def check_gain(gain: float) -> None:
    """Raise ``ValueError`` unless the gain is finite and not negative."""
    if not (math.isfinite(gain) and gain >= 0):
        raise ValueError(f"gain must be finite and not negative, got {gain}")


def check_chunks(chunks: int) -> None:
    """Raise ``ValueError`` unless ``chunks`` is an integer of at least 1."""
    if not (isinstance(chunks, int) and chunks >= 1):
        raise ValueError(f"chunks must be a whole number, at least 1, got {chunks}")


def check_pair_loss(pair_loss: str) -> None:
    """Raise ``ValueError`` unless ``pair_loss`` is the name of a pair loss."""
    if pair_loss not in get_args(PairLoss):
        raise ValueError(f"pair_loss must be one of {', '.join(get_args(PairLoss))}, got {pair_loss!r}")


def selected(draw: Draw) -> Selection:
    """Turn a draw into a selection."""
    return Selection(draw.index_K, draw.statistics, score_B=draw.score_B)


@dataclass(frozen=True)
class PairScorePolicy:
    """Parameters of a policy that draws by a pair loss.

    Attributes:
        pair_loss: ``own`` (the pair's own logit) or ``in_batch`` (its row and column of the
            super-batch's loss; a B×B product, computed in tiles and charged).
        joint: draw jointly, in chunks, on conditional logits, instead of independently.
        chunks: N, of a joint draw.
        gain: factor on the scores before the exponential.
        deterministic: take the largest instead of drawing.
    """

    pair_loss: PairLoss = "own"
    joint: bool = False
    chunks: int = 16
    gain: float = 1.0
    deterministic: bool = False

    def __post_init__(self) -> None:
        check_pair_loss(self.pair_loss)
        check_chunks(self.chunks)
        check_gain(self.gain)
        if self.joint and self.pair_loss != "own":
            raise ValueError("a joint draw conditions on what is drawn, not on the super-batch: use pair_loss 'own'")

    def draw(self, scores: Scores, score_B: Tensor | None, count: int, generator: torch.Generator) -> Selection:
        """Draw independently by ``score_B``, or jointly from the scores where it is ``None``."""
        if score_B is None:
            return selected(joint_draw(scores, count, self.chunks, self.gain, self.deterministic, generator))
        return selected(independent_draw(score_B, count, self.gain, self.deterministic, generator))
