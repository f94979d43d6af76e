"""Super-batches from shards that cannot be indexed: URLs, pipes, object stores.

A fixed number of virtual *lanes* is what makes the order a function of seed and sizes alone. Each
epoch the shards are dealt to the lanes anew; a lane reads its shards one after the other and shuffles
within blocks of ``buffer`` pairs; a super-batch takes a pair from each lane in turn. Workers and ranks
divide the lanes among them, so their number changes who reads, never what is read.

Shards are opened and taken apart by webdataset itself (its ``gopen`` knows paths, ``http:``, ``pipe:``,
``gs:``, ``hf:`` …). Hugging Face ``datasets`` streams the same shards, too; webdataset is used because it
leaves the position within a shard to its caller, which an exact resume of many lanes needs, and because it
needs no Arrow. It is also the faster of the two: 1.3 times, as ``python tools/bench.py data`` has measured
(docs/your_data.md).
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch, DataError
from jestbench.data.decode import DamagedImage, decode
from jestbench.data.files import too_many
from jestbench.data.pairs import ArrayPairs, Dataset, Pairs, content_key
from jestbench.data.tokenizer import Tokenizer
from jestbench.data.workers import Workers

IMAGES = ("jpg", "jpeg", "png", "webp")
"""Endings of members that hold an image."""

Place = tuple[int, int, int, int]
"""Where a lane stands: shard of the lane and pairs of that shard before the block, number of the block, and pairs
of the block behind us. Enough to go on from by reading one block again."""

START: Place = (0, 0, 0, 0)


def deal(shards: int, lanes: int, seed: int, epoch: int) -> list[list[int]]:
    """The shards of each lane in an epoch, in the order in which it reads them: each shard in one lane."""
    order = torch.randperm(shards, generator=seeds.generator(seed, "data", epoch)).tolist()
    return [order[lane::lanes] for lane in range(lanes)]


def owner(lane: int, ranks: int, workers: int) -> tuple[int, int]:
    """The rank, and its worker, that read a lane."""
    return lane % ranks, (lane // ranks) % max(1, workers)


def take_turns(available_V: Sequence[int], first: int, need: int) -> tuple[list[int], int]:
    """Who gives the next pairs: one from each lane in turn, lanes that have none left out.

    Args:
        available_V: pairs that each lane can give.
        first: the lane whose turn it is.
        need: pairs wanted.

    Returns:
        The lane of each pair, at most ``need``, and the lane whose turn it is then.
    """
    left, lane = list(available_V), first
    lanes: list[int] = []
    total = min(need, sum(left))
    while len(lanes) < total:
        if left[lane]:
            left[lane] -= 1
            lanes.append(lane)
        lane = (lane + 1) % len(left)
    return lanes, lane


@dataclass(frozen=True)
class Shards:
    """What is streamed, and how.

    Attributes:
        urls: one shard each, as webdataset opens them.
        tokenizer: makes the token ids.
        image_size: pixels, width and height.
        caption: ending of the member that holds the caption, or ``json.FIELD``.
        lanes: V, virtual lanes.
        buffer: pairs of the blocks within which a lane shuffles.
        max_damaged: share of damaged pairs above which a run stops.
        seed: of the order.
    """

    urls: tuple[str, ...]
    tokenizer: Tokenizer
    image_size: int
    caption: str
    lanes: int
    buffer: int
    max_damaged: float
    seed: int = 0


@dataclass
class Chunk:
    """Consecutive pairs of a lane, decoded.

    Attributes:
        images_NHWC: uint8.
        token_NL: their token ids.
        captions: their captions.
        key_N2: content hashes of image and caption, int64.
        place_N: where the lane stands behind each pair.
        damaged_N: pairs left out just before each pair.
        last: where the lane stands behind the chunk.
        rest: pairs left out behind the last one.
        ended: the lane holds no more in this epoch.
    """

    images_NHWC: npt.NDArray[np.uint8]
    token_NL: npt.NDArray[np.int64]
    captions: tuple[str, ...]
    key_N2: npt.NDArray[np.int64]
    place_N: list[Place]
    damaged_N: list[int]
    last: Place
    rest: int
    ended: bool


def open_shard(url: str, damaged: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The samples of a shard by webdataset's reader; what cannot be read is told, and ends the shard or the sample."""
    from webdataset.tariterators import group_by_keys, tar_file_expander, url_opener

    def told(error: Exception) -> bool:
        damaged(f"{url}: {error!r}")
        return True

    files = tar_file_expander(url_opener([{"url": url}], handler=told), handler=told)
    yield from group_by_keys(files, handler=told)


class LaneReader:
    """Reads lanes; runs in a worker. A task that goes on where the last one of its lane ended finds the lane open."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self._open: dict[int, tuple[int, Place, Iterator[tuple[dict[str, Any], Place, int]]]] = {}
        self._damaged = 0

    def __call__(self, task: tuple[int, int, Place, int]) -> Chunk:
        """Up to so many pairs of a lane, from a place on: ``(epoch, lane, place, count)``."""
        epoch, lane, place, count = task
        held = self._open.pop(lane, None)
        if held is None or held[:2] != (epoch, place):
            held = (epoch, place, self._samples(epoch, lane, place))
        rows: list[tuple[npt.NDArray[np.uint8], str, tuple[int, int], Place, int]] = []
        pairs, skipped, ended = held[2], 0, True
        for sample, after, lost in pairs:
            place, skipped = after, skipped + lost
            try:
                rows.append((*self._pair(sample), after, skipped))
                skipped = 0
            except DamagedImage:
                skipped += 1
            if len(rows) == count:
                ended = False
                break
        if not ended:
            self._open[lane] = (epoch, place, pairs)
        else:
            skipped, self._damaged = skipped + self._damaged, 0
        return self._chunk(rows, place, skipped, ended)

    def _chunk(self, rows: Sequence[Any], last: Place, rest: int, ended: bool) -> Chunk:
        size, captions = self.shards.image_size, tuple(row[1] for row in rows)
        return Chunk(
            images_NHWC=np.stack([row[0] for row in rows]) if rows else np.empty((0, size, size, 3), np.uint8),
            token_NL=self.shards.tokenizer.encode(captions).numpy(),
            captions=captions,
            key_N2=np.array([row[2] for row in rows], dtype=np.int64).reshape(len(rows), 2),
            place_N=[row[3] for row in rows],
            damaged_N=[row[4] for row in rows],
            last=last,
            rest=rest,
            ended=ended,
        )

    def _pair(self, sample: Mapping[str, Any]) -> tuple[npt.NDArray[np.uint8], str, tuple[int, int]]:
        content = next((sample[name] for name in IMAGES if name in sample), None)
        if content is None:
            raise DamagedImage("no image")
        caption = caption_of(sample, self.shards.caption)
        if caption is None:
            raise DamagedImage("unreadable file", "no caption")
        keys = content_key(content), content_key(caption.encode())
        return decode(content, self.shards.image_size), caption, keys

    def _samples(self, epoch: int, lane: int, place: Place) -> Iterator[tuple[dict[str, Any], Place, int]]:
        """Samples of a lane from a place on, where the lane stands behind each, and what was lost before it."""
        mine = deal(len(self.shards.urls), self.shards.lanes, self.shards.seed, epoch)[lane]
        shard, offset, block, behind = place
        raw = self._in_order(mine, shard, offset)
        self._damaged, start = 0, (shard, offset)
        while held := [sample for _, sample in zip(range(self.shards.buffer), raw, strict=False)]:
            position = (epoch * self.shards.lanes + lane) << 32 | block
            if behind:
                self._damaged = 0  # read a second time, for what is left of it; counted the first time
            order = np.random.default_rng(seeds.derive(self.shards.seed, "stream", position)).permutation(len(held))
            for number in range(behind, len(held)):
                lost, self._damaged = self._damaged, 0
                yield held[order[number]][0], (*start, block, number + 1), lost
            start, block, behind = held[-1][1], block + 1, 0

    def _in_order(
        self, mine: Sequence[int], shard: int, offset: int
    ) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
        """Samples of shards as they lie, and the place behind each."""
        for number in range(shard, len(mine)):
            samples = open_shard(self.shards.urls[mine[number]], self._lose)
            for index, sample in enumerate(samples):
                if number > shard or index >= offset:
                    yield sample, (number, index + 1)

    def _lose(self, what: str) -> None:
        self._damaged += 1


def caption_of(sample: Mapping[str, Any], where: str) -> str | None:
    """The caption of a sample, on one line; ``None`` where there is none that can be read."""
    key = where.removeprefix("json.") if where.startswith("json.") else ""
    try:
        text = sample["json" if key else where].decode()
        text = json.loads(text)[key] if key else text
        return " ".join(text.split()) or None
    except (KeyError, UnicodeDecodeError, ValueError, TypeError, AttributeError):
        return None


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
        rank: of this process.
        ranks: how many processes share each super-batch; each holds the pairs of its own lanes.
        exchange: value of this rank → the values of all, in the order of ranks.

    Raises:
        DataError: fewer shards than lanes, or fewer lanes than readers.
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
        rank: int = 0,
        ranks: int = 1,
        exchange: Callable[[Any], list[Any]] | None = None,
    ) -> None:
        check_lanes(len(shards.urls), shards.lanes, ranks, workers)
        self.shards, self.size, self.pinned, self.ranks = shards, size, pinned, ranks
        self._exchange = exchange or (lambda value: [value])
        self._mine = [lane for lane in range(shards.lanes) if owner(lane, ranks, workers)[0] == rank]
        self._share = -(-size // shards.lanes)
        self._chunk, self._target = min(self._share, part), (ahead + 1) * self._share
        self._read = LaneReader(shards)
        self._workers: Workers[Any, Chunk] | None = None
        self._making = (workers, restarts, timeout)
        self._lock = threading.Lock()
        self._lanes: dict[int, _Lane] = {lane: _Lane(lane) for lane in self._mine}
        self._epoch, self._turn, self._step, self._waited = 0, 0, 0, 0.0
        self._counts = {"skipped": 0.0, "duplicates": 0.0, "read": 0.0, "damaged": 0.0}
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
        """The super-batch of the next step; under several ranks, this rank's pairs of it.

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
        """This rank's pairs of the next super-batch; ``None`` where the epoch holds no whole one."""
        rows: list[tuple[Chunk, int]] = []
        seen: set[tuple[int, int]] = set()
        while len(seen) < self.size:
            need = self.size - len(seen)
            quota = -(-need // self.shards.lanes)
            ready = self._exchange({lane: self._ready(held, quota) for lane, held in self._lanes.items()})
            available = {lane: count for part in ready for lane, count in part.items()}
            lanes, turn = take_turns([available[lane] for lane in range(self.shards.lanes)], self._turn, need)
            if not lanes:
                self._counts["skipped"] += len(seen)
                return None
            self._turn = turn
            popped = [self._pop(self._lanes[lane]) if lane in self._lanes else None for lane in lanes]
            mine = [None if pair is None else tuple(pair[0].key_N2[pair[1]].tolist()) for pair in popped]
            for slot, keys in enumerate(zip(*self._exchange(mine), strict=True)):
                key = next(key for key in keys if key is not None)
                if key in seen:
                    self._counts["duplicates"] += 1
                    continue
                seen.add(key)
                pair = popped[slot]
                if pair is not None:
                    rows.append(pair)
        return rows

    def _next_epoch(self) -> list[tuple[Chunk, int]] | None:
        if self._barren == self._step:
            raise DataError(
                f"the stream's {len(self.shards.urls)} shards hold fewer pairs than the {self.size} of one "
                "super-batch: lower run.super_batch_size (or run.batch_size), or take more data"
            )
        self._barren = self._step
        for held in self._lanes.values():
            self._count(0, held.rest)
        self._lanes = {lane: _Lane(lane) for lane in self._mine}
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
                to = owner(lane.number, self.ranks, workers)[1]
                task = (self._epoch, lane.number, lane.read, self._chunk)
                lane.asked = self._workers.submit(task, to, then=partial(self._arrived, lane))

    def _arrived(self, lane: _Lane, chunk: Chunk) -> None:
        """In the thread that receives: a lane that runs low goes on reading while the run trains."""
        with self._lock:
            self._put(lane, chunk)
            lane.asked = None
        if self._lanes.get(lane.number) is lane:
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
        self._counts["read"] += good + damaged
        self._counts["damaged"] += damaged
        if damaged and too_many(self._counts["damaged"], self._counts["read"], self.shards.max_damaged):
            raise DataError(
                f"{self._counts['damaged']:.0f} of {self._counts['read']:.0f} streamed pairs are damaged, more than "
                f"stream.max_damaged = {self.shards.max_damaged:g} allows: mend the data, or raise it"
            )

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
        counts = {f"data/{name}": count for name, count in self._counts.items()}
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
            "counts": dict(self._counts),
            "waited": self._waited,
            "restarts": self.restarts,
            "lanes": {lane: list(held.taken) for lane, held in self._lanes.items()},
        }

    def restore(self, state: object) -> None:
        """Go on from a checkpoint, with any number of readers.

        Raises:
            DataError: it is that of another number of lanes.
        """
        assert isinstance(state, dict)
        if state["lanes"].keys() != self._lanes.keys():
            raise DataError(f"the checkpoint stands in {len(state['lanes'])} lanes, not {len(self._lanes)}: keep them")
        self._epoch, self._turn, self._step = state["epoch"], state["turn"], state["step"]
        self._barren, self._waited, self._restarts = state["barren"], state["waited"], state["restarts"]
        self._counts = dict(state["counts"])
        places = {lane: tuple(place) for lane, place in state["lanes"].items()}
        self._lanes = {lane: _Lane(lane, read=place, taken=place) for lane, place in places.items()}

    def close(self) -> None:
        """End the readers."""
        if self._workers is not None:
            self._workers.close()


@dataclass(frozen=True)
class StreamPairs:
    """A split that is streamed: its first pair, by which a run is priced, and how to come by the rest."""

    shards: Shards
    first: ArrayPairs

    @property
    def name(self) -> str:
        """For messages."""
        return "stream/pool"

    @property
    def fingerprint(self) -> str:
        """Of what is asked for; what the shards hold is seen when they are read."""
        asked = (self.shards.urls, self.shards.image_size, self.shards.caption, self.shards.tokenizer.identity)
        return hashlib.blake2b(repr(asked).encode(), digest_size=8).hexdigest()

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the stream."""
        return self.shards.tokenizer

    @property
    def image_key_N(self) -> npt.NDArray[np.int64]:
        """Of the first pair."""
        return self.first.image_key_N

    @property
    def text_key_N(self) -> Tensor:
        """Of the first pair."""
        return self.first.text_key_N

    def __len__(self) -> int:
        return len(self.first)

    def batch(self, index_B: Tensor) -> Batch:
        """The first pair."""
        return self.first.batch(index_B)


@dataclass(frozen=True)
class Stream:
    """Shards that are read as they come: no index, no second look, any URL that webdataset opens.

    Where the shards lie on a disk, an indexed data set is better: its super-batches are drawn from all
    pairs at once.

    Attributes:
        shards: brace patterns of paths and URLs (``https://…/{00000..00999}.tar``, ``pipe:aws s3 cp … -``).
        beside: the data set that holds every other split (``eval``), and whose tokenizer is used.
        image_size: pixels, width and height.
        caption: ending of the member that holds the caption (``txt``), or ``json.FIELD``.
        lanes: virtual lanes that share the shards; part of the order, a multiple of ranks × workers.
        buffer: pairs within which a lane shuffles; ``lanes`` × ``buffer`` encoded images are held.
        max_damaged: share of damaged pairs above which a run stops.
    """

    shards: str | tuple[str, ...]
    beside: Dataset
    image_size: int = 224
    caption: str = "txt"
    lanes: int = 16
    buffer: int = 256
    max_damaged: float = 0.01

    def __post_init__(self) -> None:
        for name in ("image_size", "lanes", "buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"stream.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.max_damaged <= 1:
            raise ValueError(f"stream.max_damaged is a share in [0, 1], got {self.max_damaged}")

    def prepare(self) -> None:
        """The data set beside; a stream needs nothing."""
        self.beside.prepare()

    def is_prepared(self) -> bool:
        """Whether the data set beside is."""
        return self.beside.is_prepared()

    def stand_in(self) -> Dataset:
        """That of the data set beside."""
        return self.beside.stand_in()

    def split(self, name: str) -> Pairs:
        """The stream as ``pool``; any other split is that of the data set beside.

        Raises:
            DataError: nothing can be read from the first shards, or there are too few.
        """
        if name != "pool":
            return self.beside.split(name)
        patterns = (self.shards,) if isinstance(self.shards, str) else self.shards
        shards = Shards(
            urls=tuple(url for pattern in patterns for url in expanded(pattern)),
            tokenizer=self.beside.split("eval").tokenizer,
            image_size=self.image_size,
            caption=self.caption,
            lanes=self.lanes,
            buffer=self.buffer,
            max_damaged=self.max_damaged,
        )
        check_lanes(len(shards.urls), self.lanes, 1, 0)
        return StreamPairs(shards, _first(shards))


def expanded(pattern: str) -> list[str]:
    """The URLs of a brace pattern.

    Raises:
        DataError: webdataset is not installed.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise DataError("a stream is read by webdataset: pip install webdataset") from error
    return list(expand_urls(pattern))


@lru_cache(maxsize=4)
def _first(shards: Shards) -> ArrayPairs:
    alone = replace(shards, urls=shards.urls[:3], lanes=1, buffer=1)
    chunk = LaneReader(alone)((0, 0, START, 1))
    if not chunk.captions:
        raise DataError(
            f"no pair can be read from {', '.join(alone.urls)}: an image ({', '.join(IMAGES)}) and its caption "
            f"(stream.caption = {shards.caption!r})"
        )
    return ArrayPairs(
        name="stream/pool",
        fingerprint="",
        images_NHWC=chunk.images_NHWC,
        row_N=np.zeros(1, dtype=np.int64),
        captions=chunk.captions,
        tokenizer=shards.tokenizer,
        image_key_N=chunk.key_N2[:, 0],
    )


def check_lanes(shards: int, lanes: int, ranks: int, workers: int) -> None:
    """Say before anything is read what would leave a reader without a shard (webdataset#188: it hangs).

    Raises:
        DataError: with what to do.
    """
    if shards < lanes:
        raise DataError(
            f"{shards} shards cannot feed {lanes} lanes: lower stream.lanes to {shards} or less (it is part of the "
            "order, so keep it for all arms), or write more, smaller shards"
        )
    if lanes < ranks * max(1, workers):
        raise DataError(
            f"{lanes} lanes leave some of {ranks} × {max(1, workers)} readers (ranks × workers) without one: lower "
            f"loader.workers to {max(1, lanes // ranks)} or less, or raise stream.lanes"
        )
