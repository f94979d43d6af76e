"""Super-batches decoded ahead of time, in worker processes.

What is in a super-batch, and in which order, is said by the source alone; the workers only turn
positions into pairs. So a run is the same for any number of them, and can be resumed with another.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jestbench.batch import Batch
from jestbench.data.augment import AugmentedPairs, RandomResizedCrop
from jestbench.data.loader import SuperBatches, SuperBatchSource
from jestbench.data.pairs import Pairs, Wrapped, attempt, decoded, drawn, mended
from jestbench.data.processes import usable_cores
from jestbench.data.shared import spread
from jestbench.data.stream import StreamBatches, StreamPairs
from jestbench.data.tokenizer import Tokenizer
from jestbench.data.workers import Workers
from jestbench.distributed import World

MOST = 16
"""Workers that ``auto`` starts at most."""


@dataclass(frozen=True)
class Loader:
    """Who decodes, and how far ahead. None of it changes what a run does, only its seconds.

    Attributes:
        workers: processes that read and decode; ``auto`` is none for images that lie decoded in memory
            and else one a core, at most 16; 0 decodes in the main process.
        prefetch: super-batches made ahead of the one that is trained on.
        part: pairs that a worker decodes at a time; a super-batch is decoded by several at once.
        pin_memory: page-locked memory for the images, which a GPU fetches by itself; ``auto`` where the
            run is on CUDA.
        timeout: seconds that a part may take before its worker is taken for lost.
        restarts: lost workers that are replaced before the run gives up.
    """

    workers: int | Literal["auto"] = "auto"
    prefetch: int = 2
    part: int = 256
    pin_memory: bool | Literal["auto"] = "auto"
    timeout: float = 300.0
    restarts: int = 3

    def __post_init__(self) -> None:
        if isinstance(self.workers, bool) or (self.workers != "auto" and self.workers < 0):
            raise ValueError(f"loader.workers is a number of processes (0: none) or 'auto', got {self.workers}")
        for name, low, high in (("prefetch", 0, 64), ("part", 1, 8192), ("restarts", 0, 1000)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"loader.{name} lies between {low} and {high}, got {getattr(self, name)}")
        if not self.timeout > 0:
            raise ValueError(f"loader.timeout is a positive number of seconds, got {self.timeout}")

    def workers_for(self, pairs: object) -> int:
        """How many processes decode these pairs."""
        if self.workers != "auto":
            return self.workers
        return 0 if decoded(pairs) else min(MOST, usable_cores())

    def pins(self, device: str) -> bool:
        """Whether images go to page-locked memory, for a run on this device."""
        if self.pin_memory == "auto":
            return torch.device(device).type == "cuda"
        return self.pin_memory and torch.cuda.is_available()


@runtime_checkable
class IndexedSource(SuperBatchSource, Protocol):
    """A source whose super-batches are known before anything is decoded."""

    def index_B(self, step: int) -> Tensor:
        """Positions in the split of the super-batch drawn at a step."""
        ...

    def pairs_at(self, step: int) -> Pairs:
        """The split in the epoch of a step: a pair of several captions has one of them drawn."""
        ...


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


class Prefetched:
    """A source whose next super-batches are being decoded while one is trained on.

    Args:
        source: says what is in a super-batch.
        decoders: decode for it; ``None`` where nothing runs ahead and ``source`` decodes by itself.
        ahead: super-batches made ahead; ``None`` where only the source knows what it will have decoded (a cascade).
    """

    def __init__(self, source: SuperBatchSource, decoders: Decoders | None = None, ahead: int | None = 0) -> None:
        self.source, self.decoders, self.ahead = source, decoders, ahead
        self._waited, self._restarts = 0.0, 0

    @property
    def tokenizer(self) -> Tokenizer:
        """The source's."""
        return self.source.tokenizer

    @property
    def pool(self) -> int | None:
        """The source's."""
        return self.source.pool

    @property
    def restarts(self) -> int:
        """Workers lost and replaced, before a resume too."""
        return self._restarts + (0 if self.decoders is None else self.decoders.restarts)

    def at(self, step: int) -> Batch:
        """The super-batch of a step, in any order of steps; quickest in theirs."""
        begin = time.perf_counter()
        if self.decoders is not None and self.ahead is not None:
            self.decoders.expect([self._asked(ahead) for ahead in range(step, step + self.ahead + 1)])
        batch = self.source.at(step)
        self._waited += time.perf_counter() - begin
        return batch

    def _asked(self, step: int) -> tuple[Draw, Tensor]:
        assert isinstance(self.source, IndexedSource), "nothing is made ahead that is not known ahead"
        pairs = self.source.pairs_at(step)
        assert isinstance(pairs, WorkerPairs)
        return pairs.draw, self.source.index_B(step)

    def counts(self, step: int) -> dict[str, float]:
        """The source's, the seconds that the run waited for pairs, and workers lost and replaced."""
        if self.decoders is None:
            return self.source.counts(step)
        waited = {"time/data_wait": round(self._waited, 6), "data/worker_restarts": self.restarts}
        return {**self.source.counts(step), **waited}

    def state(self) -> object:
        """The source's, and the counters: the same with workers and without."""
        return {"source": self.source.state(), "waited": self._waited, "restarts": self.restarts}

    def restore(self, state: object) -> None:
        """Go on from a checkpoint."""
        if isinstance(state, dict) and "waited" in state:  # one written before there were workers has none
            self._waited, self._restarts = state["waited"], state["restarts"]
            state = state["source"]
        self.source.restore(state)

    def close(self) -> None:
        """End the workers."""
        if self.decoders is not None:
            self.decoders.close()
        self.source.close()


def prefetched(
    pairs: Pairs,
    size: int,
    seed: int,
    loader: Loader | None = None,
    augment: RandomResizedCrop | None = None,
    device: str = "cpu",
    world: World | None = None,
) -> SuperBatchSource:
    """Super-batches of a split, read and decoded as a loader says.

    Args:
        pairs: the split.
        size: pairs of a super-batch.
        seed: of the run.
        loader: who decodes; by default as the split asks for.
        augment: what is done to each image at each step.
        device: that the run is on.
        world: the processes that share each super-batch: each reads its own rows of it, or a stream as a whole.

    Raises:
        DataError: the split holds fewer pairs than one super-batch needs, or a stream cannot be divided.
        ValueError: a stream is to be augmented.
    """
    loader, world = loader or Loader(), world or World()
    if isinstance(pairs, StreamPairs):
        if augment is not None:
            raise ValueError("run.augment needs an indexed data set: a stream's pairs are not augmented")
        workers = loader.workers if loader.workers != "auto" else min(loader.workers_for(pairs), pairs.shards.lanes)
        shards, pinned = replace(pairs.shards, seed=seed), loader.pins(device)
        limits = loader.timeout, loader.restarts, pinned
        stream = StreamBatches(shards, size, workers, loader.prefetch, loader.part, *limits)
        return spread(stream, size, world, read_whole=True)
    if augment is not None:
        pairs = AugmentedPairs(pairs, augment, seed)
    decoders = decoders_for(pairs, loader, device)
    drawn_from = pairs if decoders is None else WorkerPairs(pairs, decoders)
    batches = SuperBatches(drawn_from, size, seed, augment is not None, world)
    return spread(Prefetched(batches, decoders, loader.prefetch), size, world, read_whole=False)


def decoders_for(pairs: Pairs, loader: Loader, device: str) -> Decoders | None:
    """Worker processes that decode a split for a run on a device, as many as a loader says; ``None`` for none."""
    workers = loader.workers_for(pairs)
    return Decoders(pairs, workers, loader, loader.pins(device)) if workers else None
