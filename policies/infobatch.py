"""InfoBatch: leave half of the well-learned pairs out of each epoch, and weigh those that stay by as much.

Source: Qin et al. 2023, "InfoBatch: lossless training speed up by unbiased dynamic data pruning" (arXiv 2303.04947):
of the pairs whose last training loss lies below the mean of all, a share r is left out of an epoch at random, and
those of them that stay are weighted by 1/(1 − r), which keeps the gradient's expectation; the last part of training
leaves nothing out. No scoring pass: the losses are those of the training pass, and what is left out is not even read.
Departures: a contrastive loss has no loss of one pair alone, the mean of its row and column in its sub-batch takes
its place; a weight acts on the pair's row and column alike. A pair is recognised by its key, so that another caption of
an image is another pair; a pair without a loss yet counts in no mean, where the authors' code begins with one for all.
A pair that is left out keeps its last loss, in the paper as here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from jestbench.batch import Selection
from jestbench.select import Moment, Remembered, Scores, Trained, uniform_draw
from policies._per_pair import random_part
from policies.registry import register


@register("infobatch")
@dataclass(frozen=True)
class InfoBatch:
    """All pairs of a super-batch; epochs leave out half of the pairs below the mean loss.

    Attributes:
        prune: r, the share of the pairs below the mean that is left out, in [0, 1).
        until: share of the budget after which an epoch that begins leaves nothing out, in [0, 1].
        shuffle: a control: as many pairs are left out, at random, and none is weighted.
        takes_all: the super-batch is trained on whole.
        remembers: the pair's last training loss.
    """

    prune: float = 0.5
    until: float = 0.875
    shuffle: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"memory", "trained_losses", "progress"})
    prefers: ClassVar[Mapping[str, int]] = {"loss": 1}
    takes_all: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("loss",)

    def __post_init__(self) -> None:
        if not 0 <= self.prune < 1:
            raise ValueError(f"prune lies in [0, 1), got {self.prune}")
        if not 0 <= self.until <= 1:
            raise ValueError(f"until lies in [0, 1], got {self.until}")

    def initial_state(self) -> dict[str, Any]:
        """The sum of all remembered losses and their number; the epoch, and the mean at its start."""
        return {"sum": 0.0, "count": 0, "epoch": -1, "mean": 0.0}

    def leave_out(self, keys_N: Tensor, state: Remembered, progress: Moment, generator: torch.Generator) -> Tensor:
        """A random share of the pairs below the mean."""
        below_N = state.memory["loss"] < _mean(state.state)
        part = self.prune if progress.share < self.until else 0.0
        return random_part(below_N, part, generator, self.shuffle)

    def select(self, scores: Scores, count: int, generator: torch.Generator, *, state: Any) -> Selection:
        """All pairs; where the epoch has left pairs out, those below the mean at its start weigh more."""
        moment = scores.progress or Moment()
        if moment.epoch != state["epoch"]:
            state = {**state, "epoch": moment.epoch, "mean": _mean(state)}
        index_K = uniform_draw(len(scores), count, generator)
        below_K = scores.memory["loss"][index_K] < state["mean"]
        statistics = {"select/share_below_mean": float(below_K.double().mean())}
        if not moment.left_out or self.shuffle:
            return Selection(index_K, statistics, state=state)
        return Selection(index_K, statistics, torch.where(below_K, 1 / (1 - self.prune), 1.0), state)

    def learn(self, trained: Trained, state: Remembered) -> Remembered:
        """Remember the losses, and keep the sum of those that the memory holds."""
        own, loss_K, held_K = state.state, trained.loss_K.float(), trained.held_K
        before_P = state.memory["loss"][held_K]
        total = own["sum"] + float((loss_K[held_K].double() - before_P.double().nan_to_num(0.0)).sum())
        count = own["count"] + int(before_P.isnan().sum())
        return Remembered({**own, "sum": total, "count": count}, {"loss": loss_K})


def _mean(state: Any) -> float:
    """The mean of all remembered losses; below all of them where there is none."""
    return state["sum"] / state["count"] if state["count"] else float("-inf")
