"""Super-batches of a stream, taken from its lanes in turns."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from typing import Any, NamedTuple

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
    batch_of,
    check_lanes,
    take_turns,
)
from jestbench.data.super_batches import SuperBatchSource
from jestbench.data.workers import Workers
from jestbench.parallel.distributed import World
from jestbench.parallel.placement import Placement

_Taken = tuple[Chunk, int, int]
"""A pair of a super-batch: its chunk, its row there, and its lane."""


@dataclass
class _Lane:
    """The main process's state of a lane, which this process or another one reads.

    Attributes:
        number: of the lane.
        own: whether this process reads the lane.
        read: place of its reader.
        taken: place after the last pair that went into a super-batch.
        ready: pairs that come next; without images where another process reads the lane.
        sent: how many of these pairs the other processes have an outline of.
        asked: chunk that the reader has been asked for.
        ended: whether nothing comes behind the pairs that are ready.
        rest: what was left out after the last pair.
        examples: of the damage in the lane, by reason.
    """

    number: int
    own: bool
    read: Place = START
    taken: Place = START
    ready: deque[tuple[Chunk, int]] = field(default_factory=deque)
    sent: int = 0
    asked: Future[Any] | None = None
    ended: bool = False
    rest: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def put(self, chunk: Chunk) -> None:
        """Add a chunk from the reader, or from the process that reads the lane."""
        self.read = chunk.last
        self.ready.extend((chunk, row) for row in range(len(chunk.place_N)))
        self.rest.update(chunk.rest)
        self.examples = chunk.examples | self.examples
        self.ended = chunk.ended

    def send(self, quota: int) -> _Outline:
        """The outline of the first ``quota`` pairs that are ready, without those that were sent before."""
        rows = list(islice(self.ready, self.sent, quota))
        self.sent += len(rows)
        chunks = []
        for _, held in groupby(rows, key=lambda row: id(row[0])):
            (chunk, first), *more = held
            chunks.append(chunk.outline(slice(first, first + 1 + len(more))))
        ended = self.ended and self.sent == len(self.ready)
        return _Outline(chunks, (self.rest, self.examples) if ended else None)

    def receive(self, outline: _Outline) -> None:
        """Add the pairs of a lane that another process reads."""
        for chunk in outline.chunks:
            self.put(chunk)
        if outline.end is not None:
            self.ended, (self.rest, self.examples) = True, outline.end


class _Outline(NamedTuple):
    """What is next in a lane that another process reads; at the lane's end what was left out after its last pair."""

    chunks: list[Chunk]
    end: tuple[Counter[str], dict[str, str]] | None


class StreamBatches(SuperBatchSource):
    """Super-batches of streamed pairs, in the order of their steps.

    With several processes lane v belongs to rank v mod n, which alone reads and decodes its pairs, and holds them in
    the super-batch. All processes take turns among all lanes: they exchange the keys of the pairs that come next, so
    that each of them finds the super-batch that one process would.

    Args:
        shards: what is streamed.
        size: B, pairs of a super-batch.
        loader: who reads, and how far ahead; by default this process.
        device: that the run is on.
        world: the processes that share the lanes.

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
        loader, world = loader or Loader(workers=0), world or World()
        count = loader.workers_for()
        if loader.workers == "auto":
            count = min(count, shards.lanes)
        check_lanes(len(shards.urls), shards.lanes, count)
        count = min(count, len(world.rows(shards.lanes)))
        self._read_lane = LaneReader(shards)
        workers = Workers(self._read_lane, count, loader.restarts, loader.timeout) if count else None
        tally = Tally("stream/pool", shards.max_damaged, "streamed pairs")
        super().__init__(shards.tokenizer, tally, None, size, world, workers, device)
        self.shards, self.pinned = shards, loader.pins(device)
        self._share = -(-size // shards.lanes)
        ahead = loader.pairs_ahead(size, 3 * shards.image_size**2) // shards.lanes
        self._chunk, self._target = min(self._share, loader.part), self._share + ahead
        self._lock = threading.Lock()
        self._lanes = self._lanes_at([START] * shards.lanes)
        self._epoch, self._turn, self._step = 0, 0, 0
        self._barren = 0  # step at which the epoch began
        self.evaluated = frozenset[int]()  # keys of images that are evaluated, whose pairs are counted
        names = ("skipped", "duplicates", "read", "damaged", "wordless", "evaluated")
        self.tally.add(dict.fromkeys(names, 0.0))
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

    def close(self) -> None:
        """End the workers, and the commands whose output this process reads."""
        super().close()
        self._read_lane.close()

    def _read(self, step: int) -> tuple[Batch, Placement]:
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

    def _lanes_at(self, places: Sequence[Place]) -> list[_Lane]:
        """All lanes, each at a place."""
        return [
            _Lane(number, number % self.world.size == self.world.rank, read=place, taken=place)
            for number, place in enumerate(places)
        ]

    def _fill(self) -> list[_Taken] | None:
        """The pairs of the next super-batch; ``None`` where the rest of the epoch does not fill one."""
        rows: list[_Taken] = []
        seen: set[tuple[int, int]] = set()
        while len(rows) < self.size:
            need = self.size - len(rows)
            quota = -(-need // self.shards.lanes)
            own = [lane for lane in self._lanes if lane.own]
            for lane in own:
                self._await(lane, quota)
            self._exchange(own, quota)
            ready = [min(quota, len(lane.ready)) for lane in self._lanes]
            lanes, turn = take_turns(ready, self._turn, need)
            if not lanes:
                self.tally.add({"skipped": len(rows)})
                return None
            self._turn = turn
            for number, (chunk, row) in [(number, self._pop(self._lanes[number])) for number in lanes]:
                key = tuple(chunk.key_N2[row].tolist())
                if key in seen:
                    self.tally.add({"duplicates": 1})
                    continue
                seen.add(key)
                rows.append((chunk, row, number))
        return rows

    def _exchange(self, own: Sequence[_Lane], quota: int) -> None:
        """Send the other processes the outline of what comes next in this process's lanes, and receive theirs."""
        if self.world.size == 1:
            return
        with self._lock:  # chunks arrive in another thread
            outlines = {lane.number: lane.send(quota) for lane in own}
        for number, outline in (item for part in self.world.everybodys(outlines) for item in part.items()):
            if not self._lanes[number].own:
                self._lanes[number].receive(outline)

    def _next_epoch(self) -> list[_Taken] | None:
        if self._barren == self._step:
            raise DataError(
                f"the stream's {len(self.shards.urls)} shards hold fewer pairs than the {self.size} of one "
                "super-batch: lower run.super_batch_size (or run.batch_size), or take more data"
            )
        self._barren = self._step
        for lane in self._lanes:
            self._leave_out(lane.rest, lane.examples)
        self._lanes = self._lanes_at([START] * self.shards.lanes)
        self._epoch, self._turn = self._epoch + 1, 0
        return self._fill()

    def _await(self, lane: _Lane, quota: int) -> None:
        """Wait until a lane's reader has brought a quota of pairs, or all that are left."""
        while len(lane.ready) < quota and not lane.ended:
            self._ask(lane)
            asked = lane.asked
            if asked is not None and self.workers is not None:
                self.workers.wait(asked)
        self._ask(lane)

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
                lane.asked = self.workers.submit(
                    task, lane.number // self.world.size, then=partial(self._arrived, lane)
                )

    def _arrived(self, lane: _Lane, chunk: Chunk) -> None:
        """Add a chunk and request the next, in the receiving thread, so that lanes are read while the run trains."""
        with self._lock:
            lane.put(chunk)
            lane.asked = None
        if self._lanes[lane.number] is lane:
            self._ask(lane)

    def _pop(self, lane: _Lane) -> tuple[Chunk, int]:
        chunk, row = lane.ready.popleft()
        lane.taken, lane.sent = chunk.place_N[row], max(0, lane.sent - 1)
        self._leave_out(chunk.lost_N[row], chunk.examples, 1)
        return chunk, row

    def _leave_out(self, lost: Lost, examples: Mapping[str, str], taken: int = 0) -> None:
        """Count what was left out before so many pairs that were taken."""
        self.tally.add({**lost, "read": taken + lost.get("damaged", 0)}, examples if lost else None)

    def _batch(self, rows: Sequence[_Taken]) -> tuple[Batch, Placement]:
        """This process's pairs of a super-batch, and which process holds each pair."""
        self.tally.add({"wordless": sum(int(chunk.wordless_N[row]) for chunk, row, _ in rows)})
        if self.evaluated:
            self.tally.add({"evaluated": sum(int(chunk.key_N2[row, 0]) in self.evaluated for chunk, row, _ in rows)})
        keyed = ((chunk.key_N2[row, 0], chunk.uids[row]) for chunk, row, _ in rows if chunk.uids)
        self._uid_of = {int(key): uid for key, uid in keyed}
        placement = Placement(torch.tensor([lane % self.world.size for *_, lane in rows]), self.world)
        own = [rows[at][:2] for at in placement.rows.tolist()]
        return batch_of(self.shards, own, self.pinned), placement

    def _counts(self, step: int) -> dict[str, float]:
        """Pairs skipped as tails, dropped as duplicates within a super-batch, read, and damaged."""
        return self.tally.counts()

    def _state_dict(self) -> dict[str, Any]:
        """Where each lane stands, whoever reads it: epoch, shard, offset, block."""
        return {
            "epoch": self._epoch,
            "turn": self._turn,
            "step": self._step,
            "barren": self._barren,
            "tally": self.tally.state_dict(),
            "lanes": [list(lane.taken) for lane in self._lanes],
        }

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; ``DataError`` where it is that of another number of lanes."""
        if len(state["lanes"]) != len(self._lanes):
            raise DataError(f"the checkpoint stands in {len(state['lanes'])} lanes, not {len(self._lanes)}: keep them")
        self._epoch, self._turn, self._step = state["epoch"], state["turn"], state["step"]
        self._barren = state["barren"]
        self.tally.load_state_dict(state["tally"])
        self._lanes = self._lanes_at([tuple(place) for place in state["lanes"]])
