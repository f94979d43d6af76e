"""The rows of a frozen pair scorer: the grades g of pairs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jestbench.batch import FULL, Batch, Pass, Purpose, View
from jestbench.engine.frozen import RowContent, RowName
from jestbench.model.regressor import Regressor
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.losses import LossName
from jestbench.select.scores import Role, Scores


class GradeRows(RowContent):
    """Grades of pairs.

    A grade belongs to image *and* text, so an image that comes back with another caption is a pair of its
    own, and goes through its tower again.
    """

    noun = "grades"
    scored = ("pair",)
    widths: Mapping[RowName, int] = {"pair": 1}
    model: Regressor

    def __init__(self, model: Regressor, arithmetic: Arithmetic, example: Batch, view: View = FULL) -> None:
        super().__init__(model, arithmetic, example, view)
        self.head_macs = self.model.head_macs()

    def encode(self, name: RowName, batch: Batch) -> Tensor:
        """Grades ``[B, 1]``."""
        return self.model.score(batch)[:, None]

    def passes(self, purpose: Purpose, counts: Mapping[RowName, int], microbatch: int) -> tuple[Pass, ...]:
        """Both towers and the head of each pair."""
        count = counts["pair"]
        return (Pass(purpose, self.price.pairs(count) + count * self.head_macs, f"pair scorer, {count} pairs"),)

    def scores(self, role: Role, rows: Mapping[RowName, Tensor]) -> Scores:
        """The grades as ``values["g"]``."""
        return Scores(values={"g": rows["pair"][:, 0]})

    def own_loss_C(self, loss: LossName, value_C: Tensor) -> Tensor:
        """−g, whatever the loss."""
        return -value_C

    def imagined(self, role: Role, count: int, divisor: int, random: torch.Generator) -> Scores:
        """Random grades."""
        return Scores(values={"g": torch.rand(count, generator=random)})
