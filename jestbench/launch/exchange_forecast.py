"""Forecasts the bytes that each process of a run sends in a step, by purpose; docs/scale.md has the formulas."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln
from torch import Tensor

from jestbench.batch import split_counts
from jestbench.config.resolved import Resolved
from jestbench.engine.actor import Actor
from jestbench.engine.learner import Learner
from jestbench.engine.spread_weights import SpreadWeights
from jestbench.loop import Stages
from jestbench.parallel.distributed import HEAD
from jestbench.parallel.traffic import TRADED, TRAFFIC, Joined, Traded, gathered, reduced
from jestbench.select.losses import LossName

SHOWN = 8
"""Number of processes that a command of one process prints the forecast for."""
_FLOAT, _INDEX = 4, 8
_T = TypeVar("_T")


@dataclass(frozen=True)
class StepSizes:
    """What the bytes that a step sends depend on.

    Attributes:
        super_batch: B, pairs of a super-batch.
        parts: pairs that are trained on, b in all, by the views of the mix.
        score: bytes of what the policy reads of one pair: embeddings, grades.
        losses: bytes of one embedding of each model in training.
        loss: which one.
        pair: bytes of one pair's image and token ids.
        description: bytes of one pair's keys, marks and columns.
        weights: bytes of the trainable weights of all towers that every process holds whole.
        joined: what a selection joins.
        spread: the weights of each model in training that processes spread (``run.shard``).
    """

    super_batch: int
    parts: tuple[int, ...]
    score: int
    losses: tuple[int, ...]
    loss: LossName
    pair: int
    description: int
    weights: int
    joined: Joined
    spread: tuple[SpreadWeights, ...] = ()

    @classmethod
    def of(cls, resolved: Resolved, stages: Stages, joined: Joined) -> StepSizes:
        """Take the sizes of a run, whose stages one process has built.

        Args:
            joined: in the forecast of its selection, whose embeddings are as narrow as one common divisor allows.
        """
        run, needs = resolved.run, resolved.policy.needs
        example = stages.learner.model.tokenized(stages.pairs.example())
        scored = [actor for role, actor in stages.scorer.actors.items() if role in needs]
        divisor = math.gcd(*(actor.width for actor in scored)) or 1
        trained = {id(one): one for one in (stages.learner, *scored) if isinstance(one, Learner)}.values()
        spread = [_spread(one, run.batch_size, one in scored) for one in trained] if run.shard else []
        return cls(
            resolved.draw_size,
            split_counts(run.batch_size, [share for share, _ in run.mix]),
            score=sum(map(_score_bytes, scored)),
            losses=tuple(_FLOAT * one.width for one in trained),
            loss=run.loss,
            pair=_row_bytes([example.images_BCHW, *example.token_ids.values()]),
            description=_row_bytes([*example.keys, *example.marks.values(), *example.columns.values()]),
            weights=0 if run.shard else sum(map(_trained_bytes, trained)),
            # Gradients by embeddings alone depend on the width, and they are summed.
            joined=replace(joined, sums=joined.sums * divisor),
            spread=tuple(spread),
        )

    def sent(self, processes: int) -> dict[Traded, int]:
        """Bytes that each of ``processes`` processes sends in a step, by purpose.

        Not in it: evaluation, checkpoints, words of captions, what a cascade and twins read, pairs in the place of
        damaged ones, the norm of sharded gradients.
        """
        batch = sum(self.parts)
        own_B, own_K = (-(-rows // processes) for rows in (self.super_batch, batch))
        sent = dict.fromkeys(TRADED, 0)
        sent["embeddings"] = gathered(own_B * self.score + own_K * 2 * sum(self.losses), processes)
        moved = sum(_moved(part, self.super_batch, processes) for part in self.parts)
        sent["chosen_pairs"] = round(moved * self.pair)
        sent["strip_sums"] = self.joined.sent(processes)
        sums = 0 if self.loss == "sigmoid" else 2 * _FLOAT  # each row's and each column's: log-sum-exp, own logit
        for embedding in self.losses:
            loss = Joined({batch: embedding + sums}, batch * sums, batch * embedding + 3 * _FLOAT)
            sent["loss_gradients"] += loss.sent(processes)
        sent["weight_gradients"] = reduced(self.weights, processes)
        for each in self.spread:
            weights, gradients = each.sent(processes)
            sent["weights"] += weights
            sent["weight_gradients"] += gradients
        agreed = 2 * (_INDEX + HEAD) + max(0, _INDEX * batch - HEAD)  # what was read and damaged; the choice
        sent["bookkeeping"] = gathered(own_B * self.description + agreed, processes)
        return sent


def joined_in(forecast: Callable[[], _T]) -> tuple[_T, Joined]:
    """What a forecast returns, and what processes would join of what it computes."""
    TRAFFIC.since_alone()
    return forecast(), TRAFFIC.since_alone()


def _moved(part: int, super_batch: int, processes: int) -> float:
    """Rows that leave a process, in expectation: those of a part that it holds beyond its share of ⌈part/n⌉ rows.

    How many of the part it holds is hypergeometric, as the choice does not depend on who holds a pair.
    """
    share = -(-super_batch // processes)
    held = np.arange(max(0, part + share - super_batch), min(part, share) + 1)
    drawn = _log_binomial(share, held) + _log_binomial(super_batch - share, part - held)
    chance = np.exp(drawn - _log_binomial(super_batch, np.asarray(part)))
    return float((np.maximum(0, held - -(-part // processes)) * chance).sum())


def _log_binomial(total: int, chosen_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Logarithm of the binomial coefficient: of the ways to choose so many of a total."""
    logs = gammaln(total + 1.0) - gammaln(chosen_N + 1.0) - gammaln(total - chosen_N + 1.0)
    return np.asarray(logs, dtype=np.float64)


def _spread(learner: Learner, count: int, scored: bool) -> SpreadWeights:
    """The weights of a model that is trained on ``count`` pairs a step."""
    passes = partial(learner.objective.passes_through, count)
    return SpreadWeights.of(learner.model, learner.trained_under, passes, scored)


def _trained_bytes(learner: Learner) -> int:
    """Bytes of the weights that have a gradient under some view."""
    names = frozenset[str]().union(*learner.model.trained_by(learner.trained_under).values())
    return sum(value.nbytes for name, value in learner.model.named_parameters() if name in names)


def _row_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of one row of all these tensors."""
    return sum(tensor[:1].nbytes for tensor in tensors)


def _score_bytes(actor: Actor) -> int:
    """Bytes of what an actor gives of one pair: two embeddings, or one grade."""
    return _FLOAT * (2 * actor.width or 1)


def sent_line(sizes: StepSizes) -> str:
    """A line on the bytes that are sent a step: by each process of torchrun, or of ``SHOWN`` processes."""
    number = int(os.environ.get("WORLD_SIZE", "1"))
    processes = number if number > 1 else SHOWN
    sent = sizes.sent(processes)
    parts = ", ".join(f"{name.replace('_', ' ')} {sent[name]:,}" for name in TRADED if sent[name])
    return f"each of {processes} processes sends {sum(sent.values()):,} bytes a step: {parts}"
