"""Virtual lanes of a stream of shards: which shards a lane reads, in which order, from which pair on."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jestbench import seeds
from jestbench.batch import DataError
from jestbench.data.captions import Captions
from jestbench.data.damage import Damaged
from jestbench.data.decode import decode
from jestbench.data.file_pairs import drawn_captions
from jestbench.data.sources.columns import KEY, among, keys_of, short_names, wanted_keys
from jestbench.data.sources.pipes import CommandOutput
from jestbench.data.sources.shards import Forward, MemberRules, Pair
from jestbench.disk import content_key, key_text
from jestbench.model.tokenizer import Tokenizer

Place = tuple[int, int, int, int]
"""Where a lane stands: shard of the lane and pairs of that shard before the block, number of the block, and pairs
of the block that were given already. Resuming from a place reads one block again."""
START: Place = (0, 0, 0, 0)
MAX_BLOCKS = 2**31
"""Bytes of images and captions in the blocks of all lanes; a lane's block ends at its share, however few its pairs."""


def deal(shards: int, lanes: int, seed: int, epoch: int) -> list[list[int]]:
    """The shards of each lane in an epoch, in the order in which it reads them: each shard in one lane."""
    order = torch.randperm(shards, generator=seeds.generator(seed, "data", epoch)).tolist()
    return [order[lane::lanes] for lane in range(lanes)]


def take_turns(available_V: Sequence[int], first: int, need: int) -> tuple[list[int], int]:
    """Choose the lanes of the next pairs: one pair from each lane in turn, skipping lanes that have none.

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
    """The shards of a stream, and how they are read.

    Attributes:
        urls: one path, URL or command for each shard, as webdataset opens it.
        tokenizer: makes the token ids.
        image_size: pixels, width and height.
        members: which members of a shard are read.
        lanes: V, virtual lanes.
        buffer: pairs of the blocks within which a lane shuffles.
        max_damaged: share of damaged pairs above which a run stops.
        captions: how captions are normalised, and which of several of one image is taken.
        seed: of the order, and of the captions drawn.
        uids: lists of uids to which the stream is restricted; empty: it is not.
        patience: seconds that a shard's command may be silent.
    """

    urls: tuple[str, ...]
    tokenizer: Tokenizer
    image_size: int
    members: MemberRules
    lanes: int
    buffer: int
    max_damaged: float
    captions: Captions = field(default_factory=Captions)
    seed: int = 0
    uids: tuple[str, ...] = ()
    patience: float = 120.0

    @property
    def column_names(self) -> tuple[str, ...]:
        """The numbers that come with each pair."""
        return short_names(self.members.columns, "stream.columns")


@dataclass
class Chunk:
    """Consecutive pairs of a lane, decoded.

    Attributes:
        images_NHWC: uint8.
        token_NL: token ids.
        captions: captions.
        key_N2: content hashes of image and caption, int64.
        value_NC: numbers that came with each pair, float32.
        place_N: place of the lane after each pair.
        damaged_N: number of damaged pairs left out just before each pair.
        last: place of the lane after the chunk.
        rest: number of damaged pairs left out after the last pair.
        ended: whether the lane holds no more pairs in this epoch.
        examples: of the damage since the chunk before, reason → the first example.
    """

    images_NHWC: npt.NDArray[np.uint8]
    token_NL: npt.NDArray[np.int64]
    captions: tuple[str, ...]
    key_N2: npt.NDArray[np.int64]
    value_NC: npt.NDArray[np.float32]
    place_N: list[Place]
    damaged_N: list[int]
    last: Place
    rest: int
    ended: bool
    examples: dict[str, str] = field(default_factory=dict)


def open_shard(
    url: str, members: MemberRules, lose: Callable[[Damaged], None], patience: float = Shards.patience
) -> Generator[Pair]:
    """The pairs of a shard that webdataset opens; closing the generator closes the shard.

    Args:
        url: a path, a URL or a command.
        members: which of its members are read.
        lose: called for each pair that is damaged, and where the shard cannot be opened or breaks off.
        patience: seconds that a command may be silent.

    Raises:
        DataError: a command is silent for longer.
    """
    from webdataset.tariterators import url_opener

    def told(error: Exception) -> bool:
        lose(Damaged("unreadable shard", f"{type(error).__name__}: {error}").at(url))
        return True

    for opened in url_opener([{"url": url}], handler=told):
        stream = opened["stream"]
        if hasattr(stream, "proc"):
            stream = io.BufferedReader(CommandOutput(stream, url, patience), 2**16)
        with stream:
            try:
                for found in members.pairs(Forward.unpacked(stream)):
                    if isinstance(found, Damaged):
                        found.where = ": ".join(part for part in (url, found.where) if part)
                        lose(found)
                    else:
                        yield found
            except tarfile.ReadError as error:  # the shard breaks off within its first bytes
                lose(Damaged("truncated tar", str(error)).at(url))


class LaneReader:
    """Reader of lanes, run in a worker; a lane stays open for a task that goes on where the previous task ended."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self.wanted = wanted_keys([Path(path) for path in shards.uids], shards.members.uid) if shards.uids else None
        self._open: dict[int, tuple[int, Place, Generator[tuple[Pair, Place, int]]]] = {}
        self._damaged, self._examples = 0, dict[str, str]()

    def close(self) -> None:
        """Close the shards that are open: a forked process would hold them open, and their commands running."""
        while self._open:
            self._open.popitem()[1][2].close()

    def __call__(self, task: tuple[int, int, Place, int]) -> Chunk:
        """Up to ``count`` pairs of a lane from a place on; the task is ``(epoch, lane, place, count)``."""
        epoch, lane, place, count = task
        held = self._open.pop(lane, None)
        if held is None or held[:2] != (epoch, place):
            if held is not None:
                held[2].close()
            held = (epoch, place, self._pairs(epoch, lane, place))
        rows: list[tuple[npt.NDArray[np.uint8], str, tuple[int, int], tuple[float, ...], Place, int]] = []
        pairs, skipped, ended = held[2], 0, True
        for found, after, lost in pairs:
            place, skipped = after, skipped + lost
            try:
                rows.append((*self._pair(found, epoch), after, skipped))
                skipped = 0
            except Damaged as damaged:
                self._note(damaged)
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
        examples, self._examples = self._examples, {}
        return Chunk(
            images_NHWC=np.stack([row[0] for row in rows]) if rows else np.empty((0, size, size, 3), np.uint8),
            token_NL=self.shards.tokenizer.encode(captions).numpy(),
            captions=captions,
            key_N2=np.array([row[2] for row in rows], dtype=np.int64).reshape(len(rows), 2),
            value_NC=np.array([row[3] for row in rows], dtype=np.float32).reshape(
                len(rows), len(self.shards.column_names)
            ),
            place_N=[row[4] for row in rows],
            damaged_N=[row[5] for row in rows],
            last=last,
            rest=rest,
            ended=ended,
            examples=examples,
        )

    def _pair(self, found: Pair, epoch: int) -> tuple[npt.NDArray[np.uint8], str, tuple[int, int], tuple[float, ...]]:
        for name, said in found.hints.items():
            raise Damaged(f"no value of {name}", said)
        content, captions = found.image.content, self.shards.captions.usable(found.captions)
        if not captions:
            raise Damaged("empty caption")
        key, drawn = content_key(content), 0
        if self.shards.captions.several == "draw":
            drawn = int(drawn_captions(np.array([key]), np.array([len(captions)]), self.shards.seed, epoch)[0])
        keys = key, content_key(captions[drawn].encode())
        return decode(content, self.shards.image_size), captions[drawn], keys, found.values

    def _pairs(self, epoch: int, lane: int, place: Place) -> Generator[tuple[Pair, Place, int]]:
        """Pairs of a lane from a place on, with the place after each pair and the number of pairs lost before it."""
        mine = deal(len(self.shards.urls), self.shards.lanes, self.shards.seed, epoch)[lane]
        shard, offset, block, behind = place
        self._damaged, start = 0, (shard, offset)
        with closing(self._in_order(mine, shard, offset)) as raw:
            while held := self._block(raw):
                position = (epoch * self.shards.lanes + lane) << 32 | block
                if behind:
                    self._damaged = 0  # the block's damage was counted when it was first read
                order = np.random.default_rng(seeds.derive(self.shards.seed, "stream", position)).permutation(len(held))
                for number in range(behind, len(held)):
                    lost, self._damaged = self._damaged, 0
                    yield held[order[number]][0], (*start, block, number + 1), lost
                start, block, behind = held[-1][1], block + 1, 0

    def _block(self, raw: Iterator[tuple[Pair, tuple[int, int]]]) -> list[tuple[Pair, tuple[int, int]]]:
        """The pairs of the next block: as many as ``buffer``, or fewer where their images are very large."""
        held, size, most = list[tuple[Pair, tuple[int, int]]](), 0, MAX_BLOCKS // self.shards.lanes
        while len(held) < self.shards.buffer and size < most and (found := next(raw, None)) is not None:
            held.append(found)
            size += len(found[0].image.content) + sum(map(len, found[0].captions))
        return held

    def _in_order(self, mine: Sequence[int], shard: int, offset: int) -> Generator[tuple[Pair, tuple[int, int]]]:
        """Pairs of shards as they lie, and the place behind each."""
        shards = self.shards
        for number in range(shard, len(mine)):
            with closing(open_shard(shards.urls[mine[number]], shards.members, self._lose, shards.patience)) as opened:
                pairs: Iterator[Pair] = opened if self.wanted is None else filter(self._wanted, opened)
                for index, found in enumerate(pairs):
                    if number > shard or index >= offset:
                        yield found, (number, index + 1)

    def _wanted(self, found: Pair) -> bool:
        assert self.wanted is not None
        of_image = self.shards.members.uid == KEY
        return bool(
            among(self.wanted, keys_of([key_text(content_key(found.image.content)) if of_image else found.uid]))[0]
        )

    def _lose(self, damaged: Damaged) -> None:
        self._damaged += 1
        self._note(damaged)

    def _note(self, damaged: Damaged) -> None:
        self._examples.setdefault(damaged.reason, damaged.example)


def columns_of(shards: Shards, value_BC: npt.NDArray[np.float32]) -> dict[str, torch.Tensor]:
    """Numbers of pairs by the name of their column, as a batch holds them."""
    return {name: torch.from_numpy(value_BC[:, i].copy()) for i, name in enumerate(shards.column_names)}


def check_lanes(shards: int, lanes: int, workers: int) -> None:
    """Check, before anything is read, that every reader has a shard (webdataset hangs otherwise: webdataset#188).

    Raises:
        DataError: there are fewer shards than lanes, or fewer lanes than workers; the message gives the remedy.
    """
    if shards < lanes:
        raise DataError(
            f"{shards} shards cannot feed {lanes} lanes: lower stream.lanes to {shards} or less (it is part of the "
            "order, so keep it for all arms), or write more, smaller shards"
        )
    if lanes < workers:
        raise DataError(
            f"{lanes} lanes leave some of {workers} workers without one: lower loader.workers to {lanes} or less, "
            "or raise stream.lanes"
        )
