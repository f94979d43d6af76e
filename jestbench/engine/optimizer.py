"""AdamW and its schedule, a function of the share of the budget spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from jestbench.model.towers import TwoTowers

# Learned positions and tokens: two or more axes in shape, but vectors in meaning, so they do not decay.
NOT_MATRICES = (
    *("pos_embed", "positions", "cls_token", "dist_token", "reg_token", "latent"),
    *("positional_embedding", "position_embedding.weight", "probe"),  # of open_clip and transformers
)


@dataclass(frozen=True)
class Optimizer:
    """AdamW and its schedule, a function of the share of the budget spent.

    A ladder has a constant rate on its trunk, and in each rung's branch a decay by 1 − √(share of the cool-down), which
    Hägele et al. find better than a linear one (arXiv 2405.18392).

    Attributes:
        learning_rate: at the peak.
        weight_decay: on matrices only (not on biases, norms, positions, scale and offset).
        beta1: AdamW's.
        beta2: AdamW's; 0.98 as in CLIP.
        epsilon: AdamW's.
        warmup: share of the budget over which the rate rises from 0; of a ladder, the share of its first rung.
        final: rate at the end of the decay, as a share of the peak.
        clip: largest gradient norm; 0 for no clipping.
        schedule: ``cosine`` decays over the whole budget; ``ladder`` is one run with decayed values at several budgets.
        rungs: FLOPs of a ladder's budgets, ascending; the run ends at the last one.
        cooldown: c: a rung of F FLOPs leaves the trunk at (1 − c)·F, and its decay ends at F.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    warmup: float = 0.05
    final: float = 0.0
    clip: float = 1.0
    schedule: Literal["cosine", "ladder"] = "cosine"
    rungs: Sequence[float] = ()
    cooldown: float = 0.2

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"optimizer.learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"optimizer.warmup is a share of the budget in [0, 1), got {self.warmup}")
        for name in ("weight_decay", "epsilon", "clip", "final"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} must not be negative, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} must lie in [0, 1), got {getattr(self, name)}")
        self._check_rungs()
        object.__setattr__(self, "rungs", tuple(map(int, self.rungs)))

    def _check_rungs(self) -> None:
        """Refuse rungs that make no ladder."""
        if self.schedule not in ("cosine", "ladder"):
            raise ValueError(f"optimizer.schedule is 'cosine' or 'ladder', got {self.schedule!r}")
        if bool(self.rungs) != (self.schedule == "ladder"):
            raise ValueError(
                "optimizer.rungs are the budgets of a ladder: set optimizer.schedule = 'ladder'"
                if self.rungs
                else "optimizer.schedule = 'ladder' needs optimizer.rungs, the FLOPs of its budgets, ascending"
            )
        if not all(rung > 0 and rung == int(rung) for rung in self.rungs):
            raise ValueError(f"optimizer.rungs are positive whole numbers of FLOPs, got {list(self.rungs)}")
        if any(one >= other for one, other in pairwise(self.rungs)):
            raise ValueError(f"optimizer.rungs must ascend, got {list(self.rungs)}")
        if not 0 < self.cooldown < 1:
            raise ValueError(f"optimizer.cooldown is a share of a rung in (0, 1), got {self.cooldown}")
        if self.rungs and self.warmup > 1 - self.cooldown:
            raise ValueError(
                f"optimizer.cooldown = {self.cooldown}: the first rung's cool-down would begin inside the warm-up "
                f"(optimizer.warmup = {self.warmup} of that rung): lower one of them"
            )

    def rate(self, position: float) -> float:
        """Learning rate at a position of the schedule, as ``Allowance.position`` gives it.

        Linear warm-up; then a cosine, or a constant rate until a position of 1 − ``cooldown`` and a decay by the root.
        """
        if position < self.warmup:
            return self.learning_rate * position / self.warmup
        if self.schedule == "ladder":
            cooled = min(1.0, max(0.0, position - (1 - self.cooldown)) / self.cooldown)
            left = 1 - math.sqrt(cooled)
        else:
            left = (1 + math.cos(math.pi * min(1.0, (position - self.warmup) / (1 - self.warmup)))) / 2
        return self.learning_rate * (self.final + (1 - self.final) * left)

    def groups(self, model: TwoTowers) -> list[tuple[float, list[nn.Parameter]]]:
        """The parameters in training by their weight decay: matrices decay, the rest does not."""
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim >= 2 and not n.endswith(NOT_MATRICES)]
        ids = {id(p) for p in matrices}
        return [(self.weight_decay, matrices), (0.0, [p for _, p in named if id(p) not in ids])]

    def build(self, model: TwoTowers) -> torch.optim.AdamW:
        """AdamW in one kernel a group; whole and sharded parameters are groups apart, as no kernel takes both."""
        return torch.optim.AdamW(
            [
                {"params": [p for p in group if type(p) is kind], "weight_decay": decay}
                for decay, group in self.groups(model)
                for kind in dict.fromkeys(map(type, group))
            ],
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            fused=not model.log_scale.is_meta,  # on a CPU too, where a step of towers then takes 7 to 9 % less
        )
