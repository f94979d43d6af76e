"""Super-batches of a stream, taken from its lanes in turns."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from jestbench.batch import Batch, DataError
from jestbench.data.damage import Tally
from jestbench.data.sources.lanes import START, Chunk, LaneReader, Place, Shards, check_lanes, take_turns
from jestbench.data.workers import Workers
from jestbench.model.tokenizer import Tokenizer


@dataclass
class _Lane:
    """What the main process holds of a lane."""

    number: int
    read: Place = START  # where its reader stands
    taken: Place = START  # behind the last pair that went into a super-batch
    ready: deque[tuple[Chunk, int]] = field(default_factory=deque)
    asked: Future[Any] | None = None
    ended: bool = False
    rest: int = 0


class StreamBatches:
    """Super-batches of streamed pairs, in the order of their steps.

    Args:
        shards: what is streamed.
        size: B.
        workers: processes that read; 0 reads in this one.
        ahead: super-batches read ahead.
        part: pairs of a lane that a reader hands over at a time, at most.
        timeout: seconds that a reader may be silent.
        restarts: lost readers that are replaced.
        pinned: images go to page-locked memory.

    Raises:
        DataError: fewer shards than lanes, or fewer lanes than workers.
    """

    def __init__(
        self,
        shards: Shards,
        size: int,
        workers: int = 0,
        ahead: int = 2,
        part: int = 256,
        timeout: float = 300.0,
        restarts: int = 3,
        pinned: bool = False,
    ) -> None:
        check_lanes(len(shards.urls), shards.lanes, workers)
        self.shards, self.size, self.pinned = shards, size, pinned
        self._share = -(-size // shards.lanes)
        self._chunk, self._target = min(self._share, part), (ahead + 1) * self._share
        self._read = LaneReader(shards)
        self._workers: Workers[Any, Chunk] | None = None
        self._making = (workers, restarts, timeout)
        self._lock = threading.Lock()
        self._lanes = [_Lane(lane) for lane in range(shards.lanes)]
        self._epoch, self._turn, self._step, self._waited = 0, 0, 0, 0.0
        self._tally = Tally("stream/pool", shards.max_damaged, "streamed pairs")
        self._tally.add({"skipped": 0.0, "duplicates": 0.0, "read": 0.0, "damaged": 0.0})
        self._restarts, self._barren = 0, 0  # the latter: step at which the epoch began

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the stream."""
        return self.shards.tokenizer

    @property
    def pool(self) -> None:
        """A stream does not tell."""
        return

    @property
    def pids(self) -> list[int]:
        """Process ids of the readers."""
        return [] if self._workers is None else self._workers.pids

    @property
    def restarts(self) -> int:
        """Readers lost and replaced."""
        return self._restarts + (0 if self._workers is None else self._workers.restarts)

    def at(self, step: int) -> Batch:
        """The super-batch of the next step.

        Raises:
            DataError: too many pairs are damaged, or an epoch does not fill one super-batch.
            ValueError: another step than the next was asked for.
        """
        if step != self._step:
            raise ValueError(f"a stream stands at step {self._step} and cannot go to {step}: restore its state")
        begin = time.perf_counter()
        rows = self._fill()
        while rows is None:
            rows = self._next_epoch()
        self._step += 1
        batch = self._batch(rows)
        self._waited += time.perf_counter() - begin
        return batch

    def _fill(self) -> list[tuple[Chunk, int]] | None:
        """The pairs of the next super-batch; ``None`` where the epoch holds no whole one."""
        rows: list[tuple[Chunk, int]] = []
        seen: set[tuple[int, int]] = set()
        while len(seen) < self.size:
            need = self.size - len(seen)
            quota = -(-need // self.shards.lanes)
            lanes, turn = take_turns([self._ready(lane, quota) for lane in self._lanes], self._turn, need)
            if not lanes:
                self._tally.add({"skipped": len(seen)})
                return None
            self._turn = turn
            for chunk, row in [self._pop(self._lanes[lane]) for lane in lanes]:
                key = tuple(chunk.key_N2[row].tolist())
                if key in seen:
                    self._tally.add({"duplicates": 1})
                    continue
                seen.add(key)
                rows.append((chunk, row))
        return rows

    def _next_epoch(self) -> list[tuple[Chunk, int]] | None:
        if self._barren == self._step:
            raise DataError(
                f"the stream's {len(self.shards.urls)} shards hold fewer pairs than the {self.size} of one "
                "super-batch: lower run.super_batch_size (or run.batch_size), or take more data"
            )
        self._barren = self._step
        for held in self._lanes:
            self._count(0, held.rest)
        self._lanes = [_Lane(lane) for lane in range(self.shards.lanes)]
        self._epoch, self._turn = self._epoch + 1, 0
        return self._fill()

    def _ready(self, lane: _Lane, quota: int) -> int:
        """How many pairs a lane can give, up to a quota; waits until it is known."""
        while len(lane.ready) < quota and not lane.ended:
            self._ask(lane)
            asked = lane.asked
            if asked is not None and self._workers is not None:
                self._workers.wait(asked)
        self._ask(lane)
        return min(quota, len(lane.ready))

    def _ask(self, lane: _Lane) -> None:
        """Have a lane read on, if it is not at it and runs low."""
        workers, restarts, timeout = self._making
        if not workers:
            if len(lane.ready) < self._share and not lane.ended:
                self._put(lane, self._read((self._epoch, lane.number, lane.read, self._chunk)))
            return
        if self._workers is None:
            self._workers = Workers(self._read, workers, restarts, timeout)
        with self._lock:
            if lane.asked is None and not lane.ended and len(lane.ready) < self._target:
                task = (self._epoch, lane.number, lane.read, self._chunk)
                lane.asked = self._workers.submit(task, lane.number % workers, then=partial(self._arrived, lane))

    def _arrived(self, lane: _Lane, chunk: Chunk) -> None:
        """In the thread that receives: a lane that runs low goes on reading while the run trains."""
        with self._lock:
            self._put(lane, chunk)
            lane.asked = None
        if self._lanes[lane.number] is lane:
            self._ask(lane)

    @staticmethod
    def _put(lane: _Lane, chunk: Chunk) -> None:
        lane.read = chunk.last
        lane.ready.extend((chunk, row) for row in range(len(chunk.place_N)))
        lane.rest += chunk.rest
        lane.ended = chunk.ended

    def _pop(self, lane: _Lane) -> tuple[Chunk, int]:
        chunk, row = lane.ready.popleft()
        lane.taken = chunk.place_N[row]
        self._count(1, chunk.damaged_N[row])
        return chunk, row

    def _count(self, good: int, damaged: int) -> None:
        self._tally.add({"read": good + damaged, "damaged": damaged})

    def _batch(self, rows: Sequence[tuple[Chunk, int]]) -> Batch:
        size = self.shards.image_size
        images = torch.empty((len(rows), size, size, 3), dtype=torch.uint8, pin_memory=self.pinned)
        into = images.numpy()
        for slot, (chunk, row) in enumerate(rows):
            into[slot] = chunk.images_NHWC[row]
        keys = torch.from_numpy(np.array([chunk.key_N2[row] for chunk, row in rows], dtype=np.int64).reshape(-1, 2))
        tokens = np.array([chunk.token_NL[row] for chunk, row in rows], dtype=np.int64)
        tokens = tokens.reshape(len(rows), self.shards.tokenizer.length)
        return Batch(
            images_BCHW=images.permute(0, 3, 1, 2),
            token_ids={self.shards.tokenizer.identity: torch.from_numpy(tokens)},
            image_key_B=keys[:, 0].contiguous(),
            text_key_B=keys[:, 1].contiguous(),
            captions=tuple(chunk.captions[row] for chunk, row in rows),
        )

    def counts(self, step: int) -> dict[str, float]:
        """Pairs skipped as tails, dropped as duplicates within a super-batch, read, and damaged."""
        counts = self._tally.counts()
        if self._making[0]:
            counts |= {"time/data_wait": round(self._waited, 6), "data/worker_restarts": self.restarts}
        return counts

    def state(self) -> object:
        """Where each lane stands: epoch, shard, offset, block."""
        return {
            "epoch": self._epoch,
            "turn": self._turn,
            "step": self._step,
            "barren": self._barren,
            "counts": self._tally.state(),
            "waited": self._waited,
            "restarts": self.restarts,
            "lanes": [list(lane.taken) for lane in self._lanes],
        }

    def restore(self, state: object) -> None:
        """Go on from a checkpoint, with any number of readers.

        Raises:
            DataError: it is that of another number of lanes.
        """
        assert isinstance(state, dict)
        if len(state["lanes"]) != len(self._lanes):
            raise DataError(f"the checkpoint stands in {len(state['lanes'])} lanes, not {len(self._lanes)}: keep them")
        self._epoch, self._turn, self._step = state["epoch"], state["turn"], state["step"]
        self._barren, self._waited, self._restarts = state["barren"], state["waited"], state["restarts"]
        self._tally.restore(state["counts"])
        places = map(tuple, state["lanes"])
        self._lanes = [_Lane(lane, read=place, taken=place) for lane, place in enumerate(places)]

    def close(self) -> None:
        """End the readers."""
        if self._workers is not None:
            self._workers.close()
