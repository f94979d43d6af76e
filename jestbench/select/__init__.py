"""What is a pair worth, and which pairs are chosen? Scores in strips, the draws, the losses, a policy's contract.

May import `jestbench.cost` and what stands below it.
A policy may use the names below and `jestbench.batch`.
"""

from jestbench.select.draws import (
    Draw,
    choice_statistics,
    conditional_logits,
    draw_statistics,
    gumbel_top_k,
    independent_draw,
    joint_draw,
    joint_sample,
    top_k,
    uniform_draw,
)
from jestbench.select.given import NO_WORD, Moment, Remembered, Trained
from jestbench.select.losses import Equal, LossName
from jestbench.select.policy import Policy, PolicyError, StatefulPolicy
from jestbench.select.remembering import LearningPolicy, LeavingPolicy
from jestbench.select.scores import Embeddings, NonFiniteScore, NoSuchScore, PairLoss, Role, ScoreError, Scores, Side

__all__ = [
    "NO_WORD",
    "Draw",
    "Embeddings",
    "Equal",
    "LearningPolicy",
    "LeavingPolicy",
    "LossName",
    "Moment",
    "NoSuchScore",
    "NonFiniteScore",
    "PairLoss",
    "Policy",
    "PolicyError",
    "Remembered",
    "Role",
    "ScoreError",
    "Scores",
    "Side",
    "StatefulPolicy",
    "Trained",
    "choice_statistics",
    "conditional_logits",
    "draw_statistics",
    "gumbel_top_k",
    "independent_draw",
    "joint_draw",
    "joint_sample",
    "top_k",
    "uniform_draw",
]
