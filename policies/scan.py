"""SCAN: leave redundant and ill-matched pairs out of some epochs, by the losses of the training pass.

Source: SCAN (arXiv 2411.09126), read as code: of each batch, *ill* are the pairs in the top share of the losses and
*redundant* those in the bottom share, each in both directions (image to text, text to image). The next epochs e = 1 …
E leave out a random share ½·(1 + cos(π·(E − e)/E)) of their union; then an epoch of all pairs makes the sets anew. No
scoring pass: the losses are those of the training pass, and what is left out is not even read.
Departures: a pair is recognised by its key. The share left out is exact, not a draw for each pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jestbench.batch import Selection
from jestbench.select import Moment, Remembered, Scores, Trained, top_k, uniform_draw
from policies._per_pair import random_part
from policies.registry import register


@register("scan")
@dataclass(frozen=True)
class Scan:
    """All pairs of a super-batch; epochs leave out pairs of very large and very small losses.

    Attributes:
        share: part of a batch on either side, in (0, 0.5].
        epochs: E, epochs that leave pairs out after one that makes the sets.
        shuffle: a control: as many pairs are left out, at random.
        takes_all: the super-batch is trained on whole.
        remembers: the epoch in which the pair was last in one of the sets; −1 where it was in neither.
    """

    share: float = 0.25
    epochs: int = 3
    shuffle: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"memory", "trained_losses", "progress"})
    prefers: ClassVar[Mapping[str, int]] = {}
    takes_all: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("marked",)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.5:
            raise ValueError(f"share lies in (0, 0.5], got {self.share}")
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")

    def leave_out(self, keys_N: Tensor, state: Remembered, progress: Moment, generator: torch.Generator) -> Tensor:
        """A random share of the pairs that the last whole epoch has marked."""
        since = progress.epoch % (self.epochs + 1)
        marked_N = state.memory["marked"] == progress.epoch - since
        part = (1 + math.cos(math.pi * (self.epochs - since) / self.epochs)) / 2 if since else 0.0
        return random_part(marked_N, part, generator, self.shuffle)

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """All pairs."""
        return Selection(uniform_draw(len(scores), count, generator))

    def learn(self, trained: Trained, state: Remembered) -> Remembered:
        """Mark the pairs in the top and in the bottom of both directions, in an epoch of all pairs."""
        epoch = trained.progress.epoch
        if epoch % (self.epochs + 1):
            return Remembered()
        number = int(self.share * len(trained))
        ill_K, redundant_K = (
            _in_top(sign * trained.image_loss_K, number) & _in_top(sign * trained.text_loss_K, number)
            for sign in (1, -1)
        )
        marked_K = torch.where(ill_K | redundant_K, float(epoch), -1.0)
        return Remembered(memory={"marked": marked_K})


def _in_top(loss_K: Tensor, number: int) -> Tensor:
    """Which pairs are among the largest, bool ``[K]``."""
    in_top_K = torch.zeros(len(loss_K), dtype=torch.bool, device=loss_K.device)
    in_top_K[top_k(loss_K, number)] = True
    return in_top_K
