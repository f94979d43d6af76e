"""A frozen pair scorer over super-batches: g of each distinct pair, run once and remembered."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from jestbench.batch import Batch, Pass
from jestbench.learner import Price
from jestbench.model.regression import Regressor
from jestbench.precision import Arithmetic
from jestbench.reference import Accounting, EmbeddingStore

_ODD = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # splitmix64's, as signed 64-bit integers


def pair_keys(image_key_B: Tensor, text_key_B: Tensor) -> Tensor:
    """One int64 content key a pair, from both of its keys: splitmix64 over the two.

    Equal pairs have equal keys; others collide as 64-bit hashes do.
    """
    return _mixed(_mixed(image_key_B) + text_key_B)


def _mixed(key_B: Tensor) -> Tensor:
    """The finaliser of splitmix64, a bijection; integer arithmetic wraps, shifts are logical."""
    key_B = key_B + _ODD[0]
    for shift, factor in ((30, _ODD[1]), (27, _ODD[2])):
        key_B = (key_B ^ _shifted(key_B, shift)) * factor
    return key_B ^ _shifted(key_B, 31)


def _shifted(key_B: Tensor, bits: int) -> Tensor:
    """Logical shift to the right (torch's keeps the sign)."""
    return (key_B >> bits) & ((1 << (64 - bits)) - 1)


class PairScorer:
    """A frozen scorer, in eval mode, without gradient, its passes reported as ``scorer_score``.

    The accounting is that of ``FrozenModel``: ``online`` runs and charges every pair; ``first_sight``
    charges towers and head the first time this run meets a pair, and remembers its grade; ``amortised``
    remembers too and charges nothing. A grade belongs to image *and* text, so an image that comes back
    with another caption is a pair of its own, and goes through its tower again.
    """

    def __init__(
        self, model: Regressor, accounting: Accounting, arithmetic: Arithmetic, store_dir: Path, microbatch: int
    ) -> None:
        self.model = model.to(arithmetic.device).eval().requires_grad_(False)
        self.accounting, self.arithmetic, self.microbatch = accounting, arithmetic, microbatch
        self.head_macs = self.model.head_macs()
        self.price: Price | None = None
        self.hits = 0
        self.amortised_macs = 0
        self._store = None if accounting == "online" else EmbeddingStore(store_dir / "scorer_score-pairs.bin", 1)

    def grades(self, batch: Batch) -> tuple[Tensor, tuple[Pass, ...]]:
        """g of each pair, float32 ``[B]``, and the passes that it cost."""
        self.price = self.price or Price.of(self.model, batch)
        if self._store is None:
            return self._graded(batch), self._charge(len(batch))
        key_B = pair_keys(batch.image_key_B, batch.text_key_B)
        missing = self._store.missing(key_B)
        self.hits += len(batch) - len(missing)
        if len(missing):
            self._store.add(key_B[missing], self._graded(batch.take(missing))[:, None])
        return self._store.get(key_B)[:, 0].to(self.arithmetic.device), self._charge(len(missing))

    def _graded(self, batch: Batch) -> Tensor:
        parts = torch.arange(len(batch)).split(self.microbatch)
        with torch.no_grad(), self.arithmetic.autocast():
            return torch.cat([self.model.score(batch.take(part)) for part in parts])

    def _charge(self, count: int) -> tuple[Pass, ...]:
        assert self.price is not None
        macs = pair_macs(self.price, self.head_macs, count)
        if self.accounting == "amortised":
            self.amortised_macs += macs
            return ()
        return (Pass("scorer_score", macs, f"pair scorer, {count} pairs"),)

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps: how many grades the store holds, and the counters."""
        if self._store is not None:
            self._store.flush()
        rows = 0 if self._store is None else len(self._store)
        return {"pairs": rows, "hits": self.hits, "amortised_macs": self.amortised_macs}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from a checkpoint."""
        if self._store is not None:
            self._store.restore(state["pairs"])
        self.hits, self.amortised_macs = state["hits"], state["amortised_macs"]

    def close(self, remove: bool) -> None:
        """Close the store, and remove its file when the run has finished."""
        if self._store is not None:
            self._store.close(remove)


def pair_macs(price: Price, head_macs: int, count: int) -> int:
    """Multiply-adds of grading so many pairs: both towers and the head."""
    return price.pairs(count) + count * head_macs
