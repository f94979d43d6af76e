"""The learner and its update: the only optimizer step of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jestbench.batch import Batch, Pass
from jestbench.flops import TRAINING_PASSES, forward_macs
from jestbench.model.losses import LOSSES, LossName
from jestbench.model.towers import TwoTowers
from jestbench.precision import Arithmetic

# Positions, and tokens that are learned: arrays by shape, vectors by what they are.
NOT_MATRICES = ("pos_embed", "positions", "cls_token", "dist_token", "reg_token", "latent")


class NonFiniteLoss(Exception):
    """The training loss, or a score that it rests on, is NaN or infinite (exit status 4)."""


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

    def build(self, model: TwoTowers) -> torch.optim.AdamW:
        """AdamW over two groups: matrices decay, the rest does not."""
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim >= 2 and not n.endswith(NOT_MATRICES)]
        ids = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in ids]
        return torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
        )


@dataclass(frozen=True)
class Price:
    """Multiply-adds of one forward pass of one example through each tower."""

    image: int
    text: int

    @classmethod
    def of(cls, model: TwoTowers, batch: Batch) -> Price:
        """Trace both towers on the first pair of a batch."""
        device = model.log_scale.device
        first = torch.zeros(1, dtype=torch.int64)
        one = batch.take(first)
        return cls(
            forward_macs(model.image, one.images_BCHW.to(device)),
            forward_macs(model.text, one.tokens(model.tokenizer).to(device)),
        )

    @property
    def pair(self) -> int:
        """Both towers."""
        return self.image + self.text


@dataclass(frozen=True)
class Update:
    """What one training step did."""

    loss: float
    learning_rate: float
    gradient_norm: float
    passes: tuple[Pass, ...]


class Learner:
    """The model in training."""

    def __init__(
        self, model: TwoTowers, loss: LossName, optimizer: Optimizer, arithmetic: Arithmetic, price: Price
    ) -> None:
        self.model = model.to(arithmetic.device)
        self.loss: LossName = loss
        self.arithmetic, self.price = arithmetic, price
        self.schedule = optimizer
        self.optimizer = optimizer.build(self.model)

    def update(self, batch: Batch, weight_K: Tensor | None, share: float, seed: int) -> Update:
        """One optimizer step on the chosen pairs.

        Args:
            batch: the sub-batch.
            weight_K: loss weight of each pair, or ``None``.
            share: of the budget spent before this step.
            seed: for the model's own randomness (drop path and the like) in this step.

        Raises:
            NonFiniteLoss: before anything is changed.
        """
        torch.manual_seed(seed)
        self.model.train()
        with self.arithmetic.autocast():
            image_KD, text_KD = self.model(batch)
        weights = None if weight_K is None else weight_K.to(image_KD.device)
        loss = LOSSES[self.loss](image_KD, text_KD, self.model.scale, self.model.bias, weights)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the loss is {value}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip = self.schedule.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip))
        if not math.isfinite(norm):
            raise NonFiniteLoss(f"the loss is {value}, but its gradient's norm is {norm}")
        rate = self.schedule.rate(share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.loss == "softmax":
            self.model.clamp_scale()
        return Update(value, rate, norm, self.training_passes(len(batch)))

    def training_passes(self, count: int) -> tuple[Pass, ...]:
        """What training on ``count`` pairs is charged: the towers and the K×K logits, three times forward."""
        logits = count * count * self.model.width
        return (
            Pass(
                "learner_train",
                TRAINING_PASSES * count * self.price.pair,
                f"learner, training on {count} pairs",
            ),
            Pass("pairwise", TRAINING_PASSES * logits, f"loss logits, {count}×{count}"),
        )

    def state(self) -> dict[str, Any]:
        """The optimizer's state."""
        return self.optimizer.state_dict()
