"""Runs the models that a policy asks for over the super-batch: the only place besides the update."""

from __future__ import annotations

import torch
from torch import Tensor

from jestbench.batch import Batch, Pass
from jestbench.learner import Learner
from jestbench.ledger import Pretrained
from jestbench.model.views import FULL, View
from jestbench.pair_scorer import PairScorer
from jestbench.reference import FrozenModel
from jestbench.scores import Embeddings, Scores, Side


class Scorer:
    """Scores of super-batches, in eval mode, without gradient, under training's autocast.

    Args:
        learner: scored when a policy needs ``learner``.
        reference: scored when it needs ``reference``.
        microbatch: pairs that a tower sees at once.
        view: the learner is scored under; the reference knows its own.
        pairs: grades pairs (``values["g"]``) when a policy needs ``scorer``.
    """

    def __init__(
        self,
        learner: Learner,
        reference: FrozenModel | None,
        microbatch: int,
        view: View = FULL,
        pairs: PairScorer | None = None,
    ) -> None:
        self.learner, self.reference, self.microbatch, self.view = learner, reference, microbatch, view
        self.pairs = pairs

    @property
    def frozen(self) -> dict[Pretrained, FrozenModel | PairScorer]:
        """The frozen models by their role: what remembers, is checkpointed and closed."""
        models: dict[Pretrained, FrozenModel | PairScorer | None] = {"reference": self.reference, "scorer": self.pairs}
        return {role: model for role, model in models.items() if model is not None}

    def __call__(self, batch: Batch, needs: frozenset[Side]) -> Scores:
        """What the policy asked for and nothing else, with the passes that it cost."""
        learner, reference = None, None
        passes: tuple[Pass, ...] = ()
        if "learner" in needs:
            learner, spent = self._learner(batch)
            passes += spent
        if "reference" in needs:
            assert self.reference is not None, "a run whose policy needs a reference is built with one"
            reference, spent = self.reference.embeddings(batch)
            passes += spent
        values: dict[str, Tensor] = {}
        if "scorer" in needs:
            assert self.pairs is not None, "a run whose policy needs a scorer is built with one"
            values["g"], spent = self.pairs.grades(batch)
            passes += spent
        return Scores(learner, reference, values=values, size=len(batch), loss=self.learner.loss, model_passes=passes)

    def _learner(self, batch: Batch) -> tuple[Embeddings, tuple[Pass, ...]]:
        model = self.learner.model.eval()
        image, text = [], []
        with torch.no_grad(), self.learner.arithmetic.autocast():
            for part in torch.arange(len(batch)).split(self.microbatch):
                image_PD, text_PD = model(batch.take(part) if len(part) < len(batch) else batch, self.view)
                image.append(image_PD)
                text.append(text_PD)
        embeddings = Embeddings(torch.cat(image), torch.cat(text), *model.scale_and_bias())
        macs = self.learner.prices[self.view].pairs(len(batch))
        return embeddings, (Pass("learner_score", macs, f"learner, scoring {len(batch)} pairs{_under(self.view)}"),)


def _under(view: View) -> str:
    return "" if view == FULL else f" under {view.label}"
