"""Forecasts the bytes that each process of a run sends in a step, by purpose; the formulas stand in docs/scale.md."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor

from jestbench.batch import Batch
from jestbench.config.run import Resolved
from jestbench.engine.actor import Actor
from jestbench.engine.learner import Learner
from jestbench.loop import Stages
from jestbench.parallel.traffic import TRADED, Traded, gathered, reduced

SHOWN = 8
"""Number of processes that a command of one process prints the forecast for."""
_FLOAT, _INT = 4, 8


def row_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of one row of all these tensors."""
    return sum(tensor[:1].nbytes for tensor in tensors)


def moved_rows(count: int, processes: int) -> float:
    """Chosen rows that leave each process, in expectation, where the places of the chosen are independent of ranks."""
    return count * (processes - 1) / processes**2


def sent_bytes(resolved: Resolved, stages: Stages, processes: int) -> dict[Traded, int]:
    """Bytes that each of ``processes`` processes sends in a step, by purpose.

    Gradients are those of all trainable weights. Not in it: evaluation, words of captions, and what a cascade reads.

    Args:
        resolved: the run.
        stages: its stages, of one process.
        processes: their number.
    """
    needs, count = resolved.policy.needs, resolved.run.batch_size
    example = stages.learner.model.tokenized(stages.pairs.example())
    scored = [actor for role, actor in stages.scorer.actors.items() if role in needs]
    trained = [stages.learner, *(a for a in scored if isinstance(a, Learner) and a is not stages.learner)]
    own_B, own_K = (-(-rows // processes) for rows in (resolved.draw_size, count))
    sent = dict.fromkeys(TRADED, 0)
    sent["embeddings"] = gathered(own_B * sum(map(_score_bytes, scored)), processes)
    sent["embeddings"] += gathered(own_K * sum(map(_score_bytes, trained)), processes)
    sent["chosen_pairs"] = round(moved_rows(count, processes) * row_bytes(_pair(example)))
    for learner in trained:
        sent["weight_gradients"] += reduced(weight_bytes(learner), processes)
    described = [example.image_key_B, example.text_key_B, *example.marks.values(), *example.columns.values()]
    sent["bookkeeping"] = gathered(own_B * row_bytes(described) + _INT * count, processes)
    return sent


def weight_bytes(learner: Learner) -> int:
    """Bytes of a model's trainable weights, which are those of its gradient."""
    return sum(weight.nbytes for weight in learner.model.parameters() if weight.requires_grad)


def _pair(example: Batch) -> list[Tensor]:
    """What moves with a pair: its image and its token ids."""
    return [example.images_BCHW, *example.token_ids.values()]


def _score_bytes(actor: Actor) -> int:
    """Bytes of what a policy reads of one pair: two embeddings, or one grade."""
    return _FLOAT * (2 * actor.width or 1)


def sent_line(resolved: Resolved, stages: Stages) -> str:
    """A line on the bytes that are sent a step: by each process of torchrun, or of ``SHOWN`` processes."""
    number = int(os.environ.get("WORLD_SIZE", "1"))
    processes = number if number > 1 else SHOWN
    sent = sent_bytes(resolved, stages, processes)
    parts = ", ".join(f"{name.replace('_', ' ')} {sent[name]:,}" for name in TRADED if sent[name])
    return f"each of {processes} processes sends {sum(sent.values()):,} bytes a step: {parts}"
