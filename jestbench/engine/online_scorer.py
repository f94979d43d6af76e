"""An online scorer: a small model trained beside the learner, on the pairs that are chosen.

It scores the super-batch in the learner's place (ActiveCLIP, arXiv 2312.05328). It has towers, an
optimizer and a view of its own; loss and share of the budget are the learner's. All that it does is
charged: ``scorer_score``, ``scorer_train``, and its own loss logits as ``pairwise``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from jestbench import seeds
from jestbench.batch import FULL, Batch, Mix, Pass, View
from jestbench.engine.learner import Learner, NonFiniteLoss, Update
from jestbench.engine.optimizer import Optimizer
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import Model, TwoTowers
from jestbench.select.losses import LossName


class OnlineLearner(Learner):
    """A learner whose training is charged as a scorer's; scored and trained under one view."""

    @property
    def view(self) -> View:
        """The only one that it is ever run under: its scores are never those of an untrained view."""
        return self.mix[0][1]

    def update(self, batch: Batch, weight_K: Tensor | None, share: float, seed: int) -> Update:
        """As the learner's, with random numbers of its own.

        Raises:
            NonFiniteLoss: the message says whose loss.
        """
        try:
            return super().update(batch, weight_K, share, seeds.derive(seed, "update", 1))
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f"the online scorer: {error}") from error

    def training_passes(self, count: int, mix: Mix | None = None) -> tuple[Pass, ...]:
        """As the learner's, charged to ``scorer_train``; the loss logits stay ``pairwise``."""
        return tuple(
            replace(
                item,
                purpose="scorer_train" if item.purpose == "learner_train" else item.purpose,
                what=f"online scorer: {item.what.removeprefix('learner, ')}",
            )
            for item in super().training_passes(count, mix)
        )

    def checkpoint(self) -> dict[str, Any]:
        """What a checkpoint keeps: weights and optimizer."""
        weights = {name: value.detach().cpu() for name, value in self.model.state_dict().items()}
        return {"model": weights, "optimizer": self.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


@dataclass(frozen=True)
class OnlineScorer:
    """A scorer that is trained beside the learner.

    Attributes:
        model: its towers (bind it as ``@scorer/model()``); ``None`` is the learner's shape with half
            its blocks in both towers, at least one each, from random weights.
        optimizer: its own (``@scorer/optimizer()``); the schedule follows the learner's share of the budget.
        view: that it is scored and trained under; ``None`` is full.
    """

    model: Model | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    view: View | None = None

    @property
    def under(self) -> View:
        """The view, as a value."""
        return self.view or FULL

    def towers(self, learner: Model, built: TwoTowers) -> Model:
        """The shape of its towers.

        Args:
            learner: the learner's shape.
            built: the learner's model, which knows how many image blocks that is.
        """
        if self.model is not None:
            return self.model
        depth = max(1, len(built.image.backbone.blocks) // 2)
        return replace(
            learner,
            pretrained=False,
            image_options={**learner.image_options, "depth": depth},
            text_layers=max(1, learner.text_layers // 2),
        )

    def build(self, learner: Model, built: TwoTowers, tokenizer: Tokenizer, loss: LossName, seed: int) -> TwoTowers:
        """Its model, initialised from a stream of its own.

        Raises:
            ValueError: timm cannot build that tower.
        """
        return self.towers(learner, built).build(tokenizer, loss, seeds.derive(seed, "init", 1))
