"""An online scorer: a small model trained beside the learner, on the pairs that are chosen.

It scores the super-batch in the learner's place (ActiveCLIP, arXiv 2312.05328). It has towers, an
optimizer and a view of its own; loss and schedule are the learner's. All that it does is
charged: ``scorer_score``, ``scorer_train``, and its own loss logits as ``pairwise``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jestbench import seeds
from jestbench.batch import FULL, View
from jestbench.cost.price import Price
from jestbench.engine.casting import Casting, Setting, check_training, fitted
from jestbench.engine.contrastive import Contrastive
from jestbench.engine.learner import ONLINE, Learner
from jestbench.engine.optimizer import Optimizer
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import Model, TwoTowers
from jestbench.select.losses import LossName


@dataclass(frozen=True)
class OnlineScorer(Casting):
    """A scorer that is trained beside the learner.

    Attributes:
        model: its towers (bind it as ``@scorer/model()``); ``None`` is the learner's shape with half
            its blocks in both towers, at least one each, from random weights.
        optimizer: its own (``@scorer/optimizer()``), with the learner's kind of schedule (cosine, or its ladder).
        view: the view that the scorer scores and is trained under; ``None`` is full.
    """

    model: Model | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    view: View | None = None

    role = "online"

    def cast(self, setting: Setting, learner: Learner) -> Learner:
        """The scorer in training, scored and trained under one view: never under one that it was not trained under."""
        run, arithmetic = setting.run, setting.arithmetic
        model = self.build(run.model, learner.model, setting.tokenizer, run.loss, run.seed).to(arithmetic.device)
        check_training(model, setting)
        view = fitted("online_scorer.view", self.view or FULL, model)
        prices = {each: Price.of(model, setting.example, each) for each in {FULL, view}}
        objective = Contrastive(run.loss, ((1.0, view),), equal=run.equal)
        if setting.compiled:
            model.compile_blocks()
        own, micro = run.optimizer, replace(setting.micro, found=False)  # its own objective is never split
        optimizer = replace(self.optimizer, schedule=own.schedule, rungs=own.rungs, cooldown=own.cooldown)
        return Learner(model, objective, optimizer, arithmetic, prices, view, micro, ONLINE, run.shard)

    def towers(self, learner: Model, built: TwoTowers) -> Model:
        """The shape of its towers.

        Args:
            learner: the learner's shape.
            built: the learner's model, whose image blocks are counted.

        Raises:
            ValueError: the learner's image tower has no blocks, and no towers are bound.
        """
        if self.model is not None:
            return self.model
        if not built.image.transformer:
            raise ValueError(
                f"online_scorer.model: a {type(built.image.backbone).__name__} has no blocks to halve: bind the "
                "scorer's own towers (online_scorer.model = @scorer/model())"
            )
        depth = max(1, len(built.image.backbone.blocks) // 2)
        return replace(
            learner,
            pretrained=False,
            freeze="",
            image_options={**learner.image_options, "depth": depth},
            text_layers=max(1, learner.text_layers // 2),
        )

    def build(self, learner: Model, built: TwoTowers, tokenizer: Tokenizer, loss: LossName, seed: int) -> TwoTowers:
        """Its model, initialised from a stream of its own.

        Raises:
            ValueError: timm cannot build that tower.
        """
        return self.towers(learner, built).build(tokenizer, loss, seeds.derive(seed, "init", 1))
