"""Forecasts the bytes that each process of a run sends in a step, by purpose; docs/scale.md derives the formulas."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from jestbench.config.run import Resolved
from jestbench.engine.actor import Actor
from jestbench.engine.learner import Learner
from jestbench.loop import Stages
from jestbench.parallel.traffic import TRADED, Traded, gathered, reduced

SHOWN = 8
"""Number of processes that a command of one process prints the forecast for."""
_FLOAT, _INDEX = 4, 8


@dataclass(frozen=True)
class Sizes:
    """What the bytes that a step sends depend on.

    Attributes:
        super_batch: B, pairs of a super-batch.
        batch: b, pairs that are trained on.
        score: bytes of what the policy reads of one pair: embeddings, grades.
        loss: bytes of one pair's embeddings in the losses of all models in training.
        pair: bytes of one pair's image and token ids.
        description: bytes of one pair's keys, marks and columns.
        weights: bytes of the trainable weights, whose gradients are reduced.
        sums: bytes of the sums over strips of similarities that a selection gathers of one pair.
    """

    super_batch: int
    batch: int
    score: int
    loss: int
    pair: int
    description: int
    weights: int
    sums: int

    @classmethod
    def of(cls, resolved: Resolved, stages: Stages) -> Sizes:
        """Take the sizes of a run from its stages, which one process has built."""
        needs = resolved.policy.needs
        example = stages.learner.model.tokenized(stages.pairs.example())
        scored = [actor for role, actor in stages.scorer.actors.items() if role in needs]
        trained = {id(one): one for one in (stages.learner, *scored) if isinstance(one, Learner)}.values()
        return cls(
            resolved.draw_size,
            resolved.run.batch_size,
            score=sum(map(_score_bytes, scored)),
            loss=sum(map(_score_bytes, trained)),
            pair=_row_bytes([example.images_BCHW, *example.token_ids.values()]),
            description=_row_bytes([*example.keys, *example.marks.values(), *example.columns.values()]),
            weights=sum(w.nbytes for one in trained for w in one.model.parameters() if w.requires_grad),
            sums=0,
        )

    def sent(self, processes: int) -> dict[Traded, int]:
        """Bytes that each of ``processes`` processes sends in a step, by purpose.

        Not in it: evaluation, checkpoints, words of captions, and what a cascade reads.
        """
        own_B, own_K = (-(-rows // processes) for rows in (self.super_batch, self.batch))
        sent = dict.fromkeys(TRADED, 0)
        sent["embeddings"] = gathered(own_B * self.score + own_K * self.loss, processes)
        sent["chosen_pairs"] = round(self.batch * (processes - 1) / processes**2 * self.pair)
        sent["strip_sums"] = gathered(own_B * self.sums, processes)
        sent["weight_gradients"] = reduced(self.weights, processes)
        sent["bookkeeping"] = gathered(own_B * self.description + _INDEX * self.batch, processes)
        return sent


def _row_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of one row of all these tensors."""
    return sum(tensor[:1].nbytes for tensor in tensors)


def _score_bytes(actor: Actor) -> int:
    """Bytes of what an actor gives of one pair: two embeddings, or one grade."""
    return _FLOAT * (2 * actor.width or 1)


def sent_line(resolved: Resolved, stages: Stages) -> str:
    """A line on the bytes that are sent a step: by each process of torchrun, or of ``SHOWN`` processes."""
    number = int(os.environ.get("WORLD_SIZE", "1"))
    processes = number if number > 1 else SHOWN
    sent = Sizes.of(resolved, stages).sent(processes)
    parts = ", ".join(f"{name.replace('_', ' ')} {sent[name]:,}" for name in TRADED if sent[name])
    return f"each of {processes} processes sends {sum(sent.values()):,} bytes a step: {parts}"
