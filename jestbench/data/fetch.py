"""From positions to pairs: in this process, or by worker processes that decode super-batches ahead of time.

Positions alone decide what is in a batch, so a run is the same for any number of workers, and can be resumed with
another number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jestbench.batch import Batch, Pass, row_by_row
from jestbench.data.loader import Loader
from jestbench.data.pairs import IndexedPairs
from jestbench.data.workers import Workers
from jestbench.parallel.placement import Placement


@dataclass(frozen=True, eq=False)
class Positions:
    """Which pairs of a split make a batch.

    Attributes:
        epoch: by which captions are drawn, where images have several.
        index_B: positions in the split.
        passes: what choosing these pairs has cost.
        placement: the process that reads each pair; ``None`` where this process reads all of them.
    """

    epoch: int
    index_B: Tensor
    passes: tuple[Pass, ...] = ()
    placement: Placement | None = None

    @property
    def own_P(self) -> Tensor:
        """Positions of the pairs that this process reads."""
        return self.index_B if self.placement is None else self.index_B[self.placement.rows]


@dataclass(frozen=True)
class Attempt:
    """The pairs of a batch that this process reads, damaged ones not replaced yet.

    Attributes:
        pairs: the split, as it stands in the epoch.
        batch: the pairs.
        damaged: the damage by place among these pairs, in ascending order.
        positions: of the whole batch.
    """

    pairs: IndexedPairs
    batch: Batch
    damaged: Mapping[int, Any]
    positions: Positions


class Fetch:
    """Pairs of a split by their positions, read in this process.

    Attributes:
        pairs: the split.
        seed: seed by which captions are drawn.
        workers: worker processes that read; ``None`` where this process reads.
    """

    workers: Workers[Any, Any] | None = None

    def __init__(self, pairs: IndexedPairs, seed: int) -> None:
        self.pairs, self.seed = pairs, seed

    def attempt(self, positions: Positions) -> Attempt:
        """The pairs at these positions that this process reads.

        Raises:
            DataError: the data is wrong, or workers were lost again and again.
        """
        pairs = self.pairs.drawn(self.seed, positions.epoch)
        return Attempt(pairs, *pairs.attempt(positions.own_P), positions)

    def at(self, step: int, positions: Callable[[int], Positions], last: int | None = None) -> Attempt:
        """The pairs of a step that this process reads.

        ``positions`` may be called for later steps, too, to begin reading ahead.

        Args:
            step: the step.
            positions: gives the positions of a step.
            last: the last step whose positions are known; ``None`` where all are.

        Raises:
            DataError: as ``attempt``.
        """
        return self.attempt(positions(step))

    def forget(self) -> None:
        """Drop what was read ahead: the positions of later steps may have changed."""


@dataclass(frozen=True)
class Packed:
    """A batch as it travels between processes.

    Attributes:
        images_BCHW: the images, in shared memory.
        rest: the batch without them, arrays in the place of its tensors: these travel by value.
        damaged: the damage by place.
    """

    images_BCHW: Tensor
    rest: Batch
    damaged: Mapping[int, Any]

    @classmethod
    def of(cls, batch: Batch, damaged: Mapping[int, Any]) -> Packed:
        """Pack."""
        none_BCHW = torch.empty(len(batch), 0, 0, 0, dtype=torch.uint8)
        rest = replace(batch, images_BCHW=none_BCHW, **row_by_row(Tensor.numpy, batch))
        return cls(batch.images_BCHW.contiguous(), rest, damaged)


class Assembly:
    """One batch in the making; its parts may come in any order.

    Attributes:
        positions: of its pairs.
        pinned: its images lie in page-locked memory.
        futures: of its parts.
    """

    def __init__(self, positions: Positions, pinned: bool) -> None:
        self.positions, self.pinned = positions, pinned
        self.futures: list[Future[None]] = []
        self._images_BCHW: Tensor | None = None
        self._rest: dict[int, Batch] = {}
        self._damaged: dict[int, Any] = {}

    def put(self, start: int, part: Packed) -> None:
        """Bring a part to its place."""
        images_PCHW = part.images_BCHW
        if self._images_BCHW is None:
            shape = (len(self.positions.own_P), *images_PCHW.shape[1:])
            self._images_BCHW = torch.empty(shape, dtype=torch.uint8, pin_memory=self.pinned)
        self._images_BCHW[start : start + len(images_PCHW)].copy_(images_PCHW)
        self._rest[start] = part.rest
        self._damaged |= {start + slot: error for slot, error in part.damaged.items()}

    @property
    def damaged(self) -> dict[int, Any]:
        """The damaged pairs by their place in the batch, in ascending order."""
        return dict(sorted(self._damaged.items()))

    def batch(self) -> Batch:
        """The whole, once all parts are there; a part of a mixture has the marks and columns of its own splits."""
        assert self._images_BCHW is not None
        parts = [self._rest[start] for start in sorted(self._rest)]
        return Batch(
            images_BCHW=self._images_BCHW,
            captions=tuple(caption for part in parts for caption in part.captions),
            counts={name: sum(part.counts[name] for part in parts) for name in parts[0].counts},
            **row_by_row(lambda *arrays: torch.from_numpy(np.concatenate(arrays)), *parts),
        )


class WorkerFetch(Fetch):
    """Pairs of a split, decoded in parts by worker processes; the same pairs, bit for bit.

    Args:
        pairs: the split.
        seed: by which captions are drawn.
        workers: how many processes; they start with the first pairs that are asked for.
        loader: what else holds for them.
        ahead: steps that are begun ahead of the one that is asked for.
        device: that the run is on.
    """

    def __init__(
        self, pairs: IndexedPairs, seed: int, workers: int, loader: Loader, ahead: int = 0, device: str = "cpu"
    ) -> None:
        super().__init__(pairs, seed)
        self.part, self.ahead, self.pinned = loader.part, ahead, loader.pins(device)
        self.workers: Workers[tuple[int, npt.NDArray[np.int64]], Packed] = Workers(
            partial(_decoded, pairs, seed), workers, loader.restarts, loader.timeout
        )
        self._begun: dict[int, Assembly] = {}

    def attempt(self, positions: Positions) -> Attempt:
        """The pairs at these positions that this process reads."""
        return self._whole(self._begin(positions))

    def at(self, step: int, positions: Callable[[int], Positions], last: int | None = None) -> Attempt:
        """The pairs of a step that this process reads; steps may come in any order, ascending order is the fastest."""
        wanted = range(step, (step + self.ahead if last is None else min(last, step + self.ahead)) + 1)
        self._drop([begun for begun in self._begun if begun not in wanted])
        for each in wanted:
            if each not in self._begun:
                self._begun[each] = self._begin(positions(each))
        return self._whole(self._begun.pop(step))

    def forget(self) -> None:
        """Drop what was read ahead."""
        self._drop(list(self._begun))

    def _drop(self, steps: Sequence[int]) -> None:
        for step in steps:
            for future in self._begun.pop(step).futures:
                future.cancel()

    def _begin(self, positions: Positions) -> Assembly:
        assembly, own_P = Assembly(positions, self.pinned), positions.own_P
        for start in range(0, len(own_P), self.part):
            task = positions.epoch, own_P[start : start + self.part].numpy()
            assembly.futures.append(self.workers.submit(task, then=partial(assembly.put, start)))
        return assembly

    def _whole(self, assembly: Assembly) -> Attempt:
        if not assembly.futures:  # a process to which no pair of the super-batch belongs
            return super().attempt(assembly.positions)
        for future in assembly.futures:
            self.workers.wait(future)
        positions = assembly.positions
        return Attempt(self.pairs.drawn(self.seed, positions.epoch), assembly.batch(), assembly.damaged, positions)


def _decoded(pairs: IndexedPairs, seed: int, task: tuple[int, npt.NDArray[np.int64]]) -> Packed:
    """In a worker: a part of a batch, by its epoch and its positions."""
    epoch, index = task
    return Packed.of(*pairs.drawn(seed, epoch).attempt(torch.from_numpy(index)))
