"""Runs the models that a policy asks for over the super-batch: the only place besides the update."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from jestbench.batch import FULL, Batch, Pass, Purpose, View
from jestbench.cost.budget import Pretrained
from jestbench.engine.frozen import FrozenModel
from jestbench.engine.learner import Learner
from jestbench.engine.online_scorer import OnlineLearner
from jestbench.engine.pair_scorer import PairScorer
from jestbench.engine.twin import TwinModel
from jestbench.select.scores import Embeddings, Scores, Side


class Scorer:
    """Scores of super-batches, in eval mode, without gradient, under training's autocast.

    Args:
        learner: scored when a policy needs ``learner``.
        reference: scored when it needs ``reference``; or two, each scoring what it has not seen.
        microbatch: pairs that a tower sees at once.
        view: the learner is scored under; the reference and an online scorer know their own.
        pairs: grades pairs (``values["g"]``) when a policy needs ``scorer``.
        online: a scorer in training, scored instead when a policy needs ``scorer``.
    """

    def __init__(
        self,
        learner: Learner,
        reference: FrozenModel | TwinModel | None,
        microbatch: int,
        view: View = FULL,
        pairs: PairScorer | None = None,
        online: OnlineLearner | None = None,
    ) -> None:
        self.learner, self.reference, self.microbatch, self.view = learner, reference, microbatch, view
        self.pairs, self.online = pairs, online

    @property
    def frozen(self) -> dict[Pretrained, FrozenModel | TwinModel | PairScorer]:
        """The frozen models by their role: what remembers, is checkpointed and closed."""
        models: dict[Pretrained, FrozenModel | TwinModel | PairScorer | None] = {
            "reference": self.reference,
            "scorer": self.pairs,
        }
        return {role: model for role, model in models.items() if model is not None}

    def cache_counts(self) -> dict[str, int]:
        """``cache/…``, summed over the frozen models; ``cache/hits`` always."""
        found = Counter({"cache/hits": 0})
        for model in self.frozen.values():
            found.update(model.counts())
        return dict(found)

    def __call__(self, batch: Batch, needs: frozenset[Side]) -> Scores:
        """What the policy asked for and nothing else, with the passes that it cost."""
        learner, reference, scorer = None, None, None
        unseen: tuple[tuple[torch.Tensor, Embeddings], ...] = ()
        passes: tuple[Pass, ...] = ()
        if "learner" in needs:
            learner, spent = self._in_training(self.learner, self.view, "learner_score", batch)
            passes += spent
        if "reference" in needs:
            assert self.reference is not None, "a run whose policy needs a reference is built with one"
            if isinstance(self.reference, TwinModel):
                unseen, spent = self.reference.unseen(batch)
            else:
                reference, spent = self.reference.embeddings(batch)
            passes += spent
        values: dict[str, Tensor] = {}
        if "scorer" in needs and self.online is not None:
            scorer, spent = self._in_training(self.online, self.online.view, "scorer_score", batch)
            passes += spent
        elif "scorer" in needs:
            assert self.pairs is not None, "a run whose policy needs a scorer is built with one"
            values["g"], spent = self.pairs.grades(batch)
            passes += spent
        models, loss = (learner, reference, scorer), self.learner.loss
        return Scores(*models, values=values, size=len(batch), loss=loss, model_passes=passes, unseen=unseen)

    def _in_training(
        self, learner: Learner, view: View, purpose: Purpose, batch: Batch
    ) -> tuple[Embeddings, tuple[Pass, ...]]:
        model, own, world = learner.model.eval(), batch.own, learner.world
        image, text = [], []
        with torch.no_grad(), learner.arithmetic.autocast():
            for part in torch.arange(len(own)).split(self.microbatch):
                image_PD, text_PD = model(own.take(part) if len(part) < len(own) else own, view)
                image.append(image_PD)
                text.append(text_PD)
        image_BD, text_BD = (world.collect(torch.cat(parts), len(batch)) for parts in (image, text))
        embeddings = Embeddings(image_BD, text_BD, *model.scale_and_bias())
        who = purpose.removesuffix("_score")
        macs = learner.prices[view].pairs(len(batch), self.microbatch)
        return embeddings, (Pass(purpose, macs, f"{who}, scoring {len(batch)} pairs{_under(view)}"),)


def _under(view: View) -> str:
    return "" if view == FULL else f" under {view.label}"
