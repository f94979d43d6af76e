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
)
from jestbench.select.losses import LossName
from jestbench.select.policy import Policy, PolicyError, StatefulPolicy
from jestbench.select.scores import Embeddings, NonFiniteScore, PairLoss, Role, ScoreError, Scores, Side

__all__ = [
    "Draw",
    "Embeddings",
    "LossName",
    "NonFiniteScore",
    "PairLoss",
    "Policy",
    "PolicyError",
    "Role",
    "ScoreError",
    "Scores",
    "Side",
    "StatefulPolicy",
    "choice_statistics",
    "conditional_logits",
    "draw_statistics",
    "gumbel_top_k",
    "independent_draw",
    "joint_draw",
    "joint_sample",
    "top_k",
]
