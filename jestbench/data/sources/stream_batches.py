"""Super-batches of a stream, taken from its lanes in turns."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from jestbench.batch import Batch, DataError
from jestbench.data.damage import Tally
from jestbench.data.loader import Loader
from jestbench.data.sources.lanes import (
    START,
    Chunk,
    LaneReader,
    Lost,
    Place,
    Shards,
    check_lanes,
    columns_of,
    take_turns,
)
from jestbench.data.super_batches import SuperBatchSource
from jestbench.data.workers import Workers
from jestbench.parallel.distributed import World


@dataclass
class _Lane:
    """The main process's state of a lane."""

    number: int
    read: Place = START  # place of its reader
    taken: Place = START  # after the last pair that went into a super-batch
    ready: deque[tuple[Chunk, int]] = field(default_factory=deque)
    asked: Future[Any] | None = None
    ended: bool = False
    rest: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def put(self, chunk: Chunk) -> None:
        """Add a chunk from the reader."""
        self.read = chunk.last
        self.ready.extend((chunk, row) for row in range(len(chunk.place_N)))
        self.rest.update(chunk.rest)
        self.examples = chunk.examples | self.examples
        self.ended = chunk.ended


class StreamBatches(SuperBatchSource):
    """Super-batches of streamed pairs, in the order of their steps.

    Args:
        shards: what is streamed.
        size: B, pairs of a super-batch.
        loader: who reads, and how far ahead; by default this process.
        device: that the run is on.
        world: the processes that share each super-batch; each reads the whole of it.

    Raises:
        DataError: fewer shards than lanes, or fewer lanes than readers.
    """

    def __init__(
        self,
        shards: Shards,
        size: int,
        loader: Loader | None = None,
        device: str = "cpu",
        world: World | None = None,
    ) -> None:
        loader = loader or Loader(workers=0)
        count = loader.workers_for()
        if loader.workers == "auto":
            count = min(count, shards.lanes)
        check_lanes(len(shards.urls), shards.lanes, count)
        self._read_lane = LaneReader(shards)
        workers = Workers(self._read_lane, count, loader.restarts, loader.timeout) if count else None
        tally = Tally("stream/pool", shards.max_damaged, "streamed pairs")
        super().__init__(shards.tokenizer, tally, None, size, world, True, workers)
        self.shards, self.pinned = shards, loader.pins(device)
        self._share = -(-size // shards.lanes)
        ahead = loader.pairs_ahead(size, 3 * shards.image_size**2) // shards.lanes
        self._chunk, self._target = min(self._share, loader.part), self._share + ahead
        self._lock = threading.Lock()
        self._lanes = [_Lane(number) for number in range(shards.lanes)]
        self._epoch, self._turn, self._step = 0, 0, 0
        self._barren = 0  # step at which the epoch began
        self.tally.add({"skipped": 0.0, "duplicates": 0.0, "read": 0.0, "damaged": 0.0, "wordless": 0.0})
        if shards.uids:
            self.tally.add({"outside_uids": 0.0})
        self._uid_of = dict[int, str]()

    @property
    def uid_of(self) -> Mapping[int, str]:
        """The uids of the super-batch that was read last, by content key of the image."""
        return self._uid_of

    def epoch(self, step: int) -> int:
        """Completed passes over the shards."""
        return self._epoch

    def _read(self, step: int) -> Batch:
        """The super-batch of the next step.

        Raises:
            DataError: too many pairs are damaged, or an epoch does not fill one super-batch.
            ValueError: another step than the next was asked for.
        """
        if step != self._step:
            raise ValueError(f"a stream stands at step {self._step} and cannot go to {step}: restore its state")
        rows = self._fill()
        while rows is None:
            rows = self._next_epoch()
        self._step += 1
        return self._batch(rows)

    def _fill(self) -> list[tuple[Chunk, int]] | None:
        """The pairs of the next super-batch; ``None`` where the rest of the epoch does not fill one."""
        rows: list[tuple[Chunk, int]] = []
        seen: set[tuple[int, int]] = set()
        while len(rows) < self.size:
            need = self.size - len(rows)
            quota = -(-need // self.shards.lanes)
            lanes, turn = take_turns([self._ready(lane, quota) for lane in self._lanes], self._turn, need)
            if not lanes:
                self.tally.add({"skipped": len(rows)})
                return None
            self._turn = turn
            for chunk, row in [self._pop(self._lanes[lane]) for lane in lanes]:
                key = tuple(chunk.key_N2[row].tolist())
                if key in seen:
                    self.tally.add({"duplicates": 1})
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
        for lane in self._lanes:
            self._leave_out(lane.rest, lane.examples)
        self._lanes = [_Lane(number) for number in range(self.shards.lanes)]
        self._epoch, self._turn = self._epoch + 1, 0
        return self._fill()

    def _ready(self, lane: _Lane, quota: int) -> int:
        """Number of pairs that a lane can give, up to a quota; waits for the lane's reader."""
        while len(lane.ready) < quota and not lane.ended:
            self._ask(lane)
            asked = lane.asked
            if asked is not None and self.workers is not None:
                self.workers.wait(asked)
        self._ask(lane)
        return min(quota, len(lane.ready))

    def _ask(self, lane: _Lane) -> None:
        """Request more pairs of a lane, if it runs low and no request is pending."""
        if self.workers is None:
            if len(lane.ready) < self._share and not lane.ended:
                lane.put(self._read_lane((self._epoch, lane.number, lane.read, self._chunk)))
            return
        with self._lock:
            if lane.asked is None and not lane.ended and len(lane.ready) < self._target:
                task = (self._epoch, lane.number, lane.read, self._chunk)
                # Always the same worker: it has the lane's shard open.
                lane.asked = self.workers.submit(task, lane.number, then=partial(self._arrived, lane))

    def _arrived(self, lane: _Lane, chunk: Chunk) -> None:
        """Add a chunk and request the next, in the receiving thread, so that lanes are read while the run trains."""
        with self._lock:
            lane.put(chunk)
            lane.asked = None
        if self._lanes[lane.number] is lane:
            self._ask(lane)

    def _pop(self, lane: _Lane) -> tuple[Chunk, int]:
        chunk, row = lane.ready.popleft()
        lane.taken = chunk.place_N[row]
        self._leave_out(chunk.lost_N[row], chunk.examples, 1)
        return chunk, row

    def _leave_out(self, lost: Lost, examples: Mapping[str, str], taken: int = 0) -> None:
        """Count what was left out before so many pairs that were taken."""
        self.tally.add({**lost, "read": taken + lost.get("damaged", 0)}, examples if lost else None)

    def _batch(self, rows: Sequence[tuple[Chunk, int]]) -> Batch:
        size = self.shards.image_size
        images = torch.empty((len(rows), size, size, 3), dtype=torch.uint8, pin_memory=self.pinned)
        into = images.numpy()
        for slot, (chunk, row) in enumerate(rows):
            into[slot] = chunk.images_NHWC[row]
        key_B2 = torch.from_numpy(np.stack([chunk.key_N2[row] for chunk, row in rows]))
        token_BL = torch.from_numpy(np.stack([chunk.token_NL[row] for chunk, row in rows]))
        self.tally.add({"wordless": self.tokenizer.wordless(token_BL)})
        keyed = ((chunk.key_N2[row, 0], chunk.uids[row]) for chunk, row in rows if chunk.uids)
        self._uid_of = {int(key): uid for key, uid in keyed}
        return Batch(
            images_BCHW=images.permute(0, 3, 1, 2),
            token_ids={self.tokenizer.identity: token_BL},
            image_key_B=key_B2[:, 0].contiguous(),
            text_key_B=key_B2[:, 1].contiguous(),
            captions=tuple(chunk.captions[row] for chunk, row in rows),
            columns=columns_of(self.shards, np.stack([chunk.value_NC[row] for chunk, row in rows])),
        )

    def _counts(self, step: int) -> dict[str, float]:
        """Pairs skipped as tails, dropped as duplicates within a super-batch, read, and damaged."""
        return self.tally.counts()

    def _state_dict(self) -> dict[str, Any]:
        """Where each lane stands: epoch, shard, offset, block."""
        return {
            "epoch": self._epoch,
            "turn": self._turn,
            "step": self._step,
            "barren": self._barren,
            "tally": self.tally.state_dict(),
            "lanes": [list(lane.taken) for lane in self._lanes],
        }

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            DataError: it is that of another number of lanes.
        """
        if len(state["lanes"]) != len(self._lanes):
            raise DataError(f"the checkpoint stands in {len(state['lanes'])} lanes, not {len(self._lanes)}: keep them")
        self._epoch, self._turn, self._step = state["epoch"], state["turn"], state["step"]
        self._barren = state["barren"]
        self.tally.load_state_dict(state["tally"])
        places = [tuple(place) for place in state["lanes"]]
        self._lanes = [_Lane(number, read=place, taken=place) for number, place in enumerate(places)]
