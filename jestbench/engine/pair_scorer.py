"""A frozen pair scorer over super-batches: g of each distinct pair, run once and remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from jestbench.batch import Batch, Pass
from jestbench.cost.price import Price, pair_macs
from jestbench.engine.cache import Bound
from jestbench.engine.frozen import Accounting, Read, Remembering
from jestbench.engine.rows import pair_key_B
from jestbench.model.regressor import Regressor
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.losses import LossName


class PairScorer(Remembering):
    """A frozen scorer, in eval mode, without gradient, its passes reported as ``scorer_score``.

    A grade belongs to image *and* text, so an image that comes back with another caption is a pair of its
    own, and goes through its tower again.
    """

    def __init__(
        self,
        model: Regressor,
        accounting: Accounting,
        arithmetic: Arithmetic,
        store_dir: Path,
        microbatch: int,
        cache: Bound | None = None,
    ) -> None:
        super().__init__("scorer_score", accounting, microbatch, store_dir, {"pair": 1}, cache, arithmetic.world)
        self.model = model.to(arithmetic.device).eval().requires_grad_(False)
        self.arithmetic = arithmetic
        self.head_macs = self.model.head_macs()

    def grades(self, batch: Batch) -> tuple[Tensor, tuple[Pass, ...]]:
        """g of each pair, float32 ``[B]``, and the passes that it cost."""
        own = batch.own
        self.price = self.price or Price.of(self.model, own)
        charged = self._charged(self._sighted("pair", pair_key_B(batch.image_key_B, batch.text_key_B)))
        own_key_P = pair_key_B(own.image_key_B, own.text_key_B)
        grade_P = self._fetch(own_key_P, lambda index_M: self._graded(own.take(index_M)))
        return self.world.collect(grade_P.to(self.arithmetic.device), len(batch)), charged

    def own_loss(
        self, loss: LossName, image_key_C: Tensor, text_key_C: Tensor, read: Read
    ) -> tuple[Tensor, tuple[Pass, ...]]:
        """−g of each candidate, float64 ``[C]`` on the CPU, infinite where it is damaged; and the passes that it cost.

        As ``FrozenModel.own_loss``; ``loss`` plays no part, and ``price`` must be set before.
        """
        key_C = pair_key_B(image_key_C, text_key_C)
        charged = self._charged(self._sighted("pair", key_C))

        def compute(index_M: Tensor) -> Tensor:
            batch = read(index_M)
            # A damaged pair has another in its place, whose grade is not its own.
            same_M = (batch.image_key_B == image_key_C[index_M]) & (batch.text_key_B == text_key_C[index_M])
            return self._graded(batch).masked_fill(~same_M, torch.nan)

        loss_C = -self._fetch(key_C, compute).double()
        return loss_C.masked_fill(loss_C.isnan(), torch.inf), charged

    def _fetch(self, key_B: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        grade_B1, computed = self._rows["pair"].fetch(key_B, lambda index_M: compute(index_M)[:, None])
        self.hits += len(key_B) - computed
        return grade_B1[:, 0]

    def _graded(self, batch: Batch) -> Tensor:
        graded = []
        with torch.no_grad(), self.arithmetic.autocast():
            for index, count in self._blocks(len(batch)):
                graded.append(self.model.score(batch.take(index))[:count].float().cpu())
        return torch.cat(graded)

    def _charged(self, count: int) -> tuple[Pass, ...]:
        assert self.price is not None, "priced before: nothing may be left to trace"
        return self._charge(self.purpose, pair_macs(self.price, self.head_macs, count), f"pair scorer, {count} pairs")
