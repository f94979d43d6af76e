"""AdamW and its schedule, a function of the share of the budget spent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from jestbench.model.towers import TwoTowers

# Learned positions and tokens: two or more axes in shape, but vectors in meaning, so they do not decay.
NOT_MATRICES = ("pos_embed", "positions", "cls_token", "dist_token", "reg_token", "latent")


@dataclass(frozen=True)
class Optimizer:
    """AdamW and its schedule, a function of the share of the budget spent.

    Attributes:
        learning_rate: at the peak.
        weight_decay: on matrices only (not on biases, norms, positions, scale and offset).
        beta1: AdamW's.
        beta2: AdamW's; 0.98 as in CLIP.
        epsilon: AdamW's.
        warmup: share of the budget over which the rate rises from 0.
        final: rate at the end of the cosine, as a share of the peak.
        clip: largest gradient norm; 0 for no clipping.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    warmup: float = 0.05
    final: float = 0.0
    clip: float = 1.0

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

    def rate(self, share: float) -> float:
        """Learning rate when this share of the budget is spent: linear warm-up, then a cosine."""
        if share < self.warmup:
            return self.learning_rate * share / self.warmup
        cosine = (1 + math.cos(math.pi * min(1.0, (share - self.warmup) / (1 - self.warmup)))) / 2
        return self.learning_rate * (self.final + (1 - self.final) * cosine)

    def build(self, model: TwoTowers, fused: bool = False) -> torch.optim.AdamW:
        """AdamW over two groups: matrices decay, the rest does not; ``fused`` is one kernel, for CUDA."""
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim >= 2 and not n.endswith(NOT_MATRICES)]
        ids = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in ids]
        return torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            fused=fused,
        )
