"""Super-batches decoded ahead of time, in worker processes.

What is in a super-batch, and in which order, is said by the source alone; the workers only turn
positions into pairs. So a run is the same for any number of them, and can be resumed with another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jestbench.batch import Batch
from jestbench.data.loader import Loader
from jestbench.data.pairs import Pairs, Wrapped, attempt, drawn, mended
from jestbench.data.workers import Workers


@dataclass(frozen=True)
class Packed:
    """A batch as it travels between processes: its images in shared memory, the rest by value."""

    images_BCHW: Tensor
    rest: dict[str, Any]
    damaged: Mapping[int, Any]

    @classmethod
    def of(cls, batch: Batch, damaged: Mapping[int, Any]) -> Packed:
        """Pack."""
        rest: dict[str, Any] = {"captions": batch.captions, "counts": batch.counts}
        for name in ("token_ids", "marks"):
            rest[name] = {key: value.numpy() for key, value in getattr(batch, name).items()}
        for name in ("image_key_B", "text_key_B"):
            rest[name] = getattr(batch, name).numpy()
        return cls(batch.images_BCHW.contiguous(), rest, damaged)


assert {field.name for field in fields(Batch)} == {
    *("images_BCHW", "token_ids", "image_key_B", "text_key_B", "marks", "captions", "passes", "counts")
}, "what a batch carries, a part must carry"


class Assembly:
    """One super-batch in the making; parts may come in any order."""

    def __init__(self, size: int, pinned: bool) -> None:
        self.size, self.pinned = size, pinned
        self.images_BCHW: Tensor | None = None
        self.rest: dict[int, dict[str, Any]] = {}
        self.damaged: dict[int, Any] = {}

    def put(self, start: int, part: Packed) -> None:
        """Bring a part to its place."""
        images_PCHW = part.images_BCHW
        if self.images_BCHW is None:
            shape = (self.size, *images_PCHW.shape[1:])
            self.images_BCHW = torch.empty(shape, dtype=torch.uint8, pin_memory=self.pinned)
        self.images_BCHW[start : start + len(images_PCHW)].copy_(images_PCHW)
        self.rest[start] = part.rest
        self.damaged |= {start + slot: error for slot, error in part.damaged.items()}

    def batch(self) -> Batch:
        """The whole, once all parts are there."""
        assert self.images_BCHW is not None
        parts = [self.rest[start] for start in sorted(self.rest)]

        def joined(values: Sequence[npt.NDArray[Any]]) -> Tensor:
            return torch.from_numpy(np.concatenate(values))

        return Batch(
            images_BCHW=self.images_BCHW,
            image_key_B=joined([part["image_key_B"] for part in parts]),
            text_key_B=joined([part["text_key_B"] for part in parts]),
            token_ids={key: joined([part["token_ids"][key] for part in parts]) for key in parts[0]["token_ids"]},
            marks={key: joined([part["marks"][key] for part in parts]) for key in parts[0]["marks"]},
            captions=tuple(caption for part in parts for caption in part["captions"]),
            counts={name: sum(part["counts"][name] for part in parts) for name in parts[0]["counts"]},
        )


Draw = tuple[int, int] | None
"""Seed and epoch by which the captions were drawn, where images have several."""


class Decoders:
    """Worker processes that decode the pairs of one split, some of them ahead of time.

    They start with the first pairs that are asked for.
    """

    def __init__(self, pairs: Pairs, workers: int, loader: Loader, pinned: bool) -> None:
        self.pairs, self.count, self.loader, self.pinned = pairs, workers, loader, pinned
        self._workers: Workers[tuple[Draw, npt.NDArray[np.int64]], Packed] | None = None
        self._expected: dict[tuple[Draw, bytes], tuple[Assembly, list[Future[None]]]] = {}
        self._drawn: tuple[Draw, Pairs] = (None, pairs)

    @property
    def restarts(self) -> int:
        """Workers lost and replaced."""
        return 0 if self._workers is None else self._workers.restarts

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [] if self._workers is None else self._workers.pids

    def expect(self, wanted: Sequence[tuple[Draw, Tensor]]) -> None:
        """Start on these pairs, in this order; what was expected before and is not now is dropped."""
        asked = {(draw, index_B.numpy().tobytes()): (draw, index_B) for draw, index_B in wanted}
        for key in [key for key in self._expected if key not in asked]:
            for future in self._expected.pop(key)[1]:
                future.cancel()
        for key, (draw, index_B) in asked.items():
            if key not in self._expected:
                self._expected[key] = self._begin(draw, index_B)

    def batch(self, draw: Draw, index_B: Tensor) -> Batch:
        """The pairs at these positions; waits for those that are not there yet.

        Raises:
            DataError: the data is wrong, or workers were lost again and again.
        """
        key = (draw, index_B.numpy().tobytes())
        if key not in self._expected:
            self._expected[key] = self._begin(draw, index_B)
        assembly, futures = self._expected.pop(key)
        assert self._workers is not None
        for future in futures:
            self._workers.wait(future)
        damaged = dict(sorted(assembly.damaged.items()))  # by place, as in one piece
        return mended(self._as_drawn(draw), assembly.batch(), damaged, index_B)

    def close(self) -> None:
        """End the workers."""
        self._expected.clear()
        if self._workers is not None:
            self._workers.close()

    def _begin(self, draw: Draw, index_B: Tensor) -> tuple[Assembly, list[Future[None]]]:
        if self._workers is None:
            self._workers = Workers(self._decode, self.count, self.loader.restarts, self.loader.timeout)
        assembly = Assembly(len(index_B), self.pinned)
        futures = []
        for start in range(0, len(index_B), self.loader.part):
            part = index_B[start : start + self.loader.part].numpy()
            futures.append(self._workers.submit((draw, part), then=partial(assembly.put, start)))
        return assembly, futures

    def _decode(self, task: tuple[Draw, npt.NDArray[np.int64]]) -> Packed:
        """In a worker: a part of a super-batch."""
        draw, index = task
        return Packed.of(*attempt(self._as_drawn(draw), torch.from_numpy(index)))

    def _as_drawn(self, draw: Draw) -> Pairs:
        if self._drawn[0] != draw:
            self._drawn = (draw, self.pairs if draw is None else drawn(self.pairs, *draw))
        return self._drawn[1]


@dataclass(frozen=True)
class WorkerPairs(Wrapped):
    """A split whose pairs are decoded by worker processes; the same pairs, bit for bit."""

    decoders: Decoders
    draw: Draw = None

    @property
    def text_key_N(self) -> Tensor:
        """Those of the captions as drawn."""
        return (self.pairs if self.draw is None else drawn(self.pairs, *self.draw)).text_key_N

    def drawn(self, seed: int, epoch: int) -> WorkerPairs:
        """The split as it stands in an epoch; captions are drawn by the workers."""
        return replace(self, draw=(seed, epoch))

    def batch(self, index_B: Tensor) -> Batch:
        """The pairs at these positions, decoded in parts by several workers."""
        return self.decoders.batch(self.draw, index_B)


def decoders_for(pairs: Pairs, loader: Loader, device: str) -> Decoders | None:
    """Worker processes that decode a split for a run on a device, as many as a loader says; ``None`` for none."""
    workers = loader.workers_for(pairs)
    return Decoders(pairs, workers, loader, loader.pins(device)) if workers else None
