"""Virtual lanes of a stream of shards: which shards a lane reads, in which order, from which pair on."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from jestbench import seeds
from jestbench.batch import DataError
from jestbench.data.captions import Captions
from jestbench.data.damage import KIND, Damaged
from jestbench.data.decode import decode
from jestbench.data.file_pairs import drawn_captions
from jestbench.data.sources.columns import KEY, Beside, Came, refuse_missing, short_names
from jestbench.data.sources.pipes import CommandOutput
from jestbench.data.sources.shards import Forward, MemberRules, Pair
from jestbench.data.sources.source import Shard
from jestbench.disk import content_key, key_text
from jestbench.model.tokenizer import Tokenizer

Place = tuple[int, int, int, int]
"""Where a lane stands: shard of the lane and pairs of that shard before the block, number of the block, and pairs
of the block that were given already. Resuming from a place reads one block again."""
START: Place = (0, 0, 0, 0)
Lost = Mapping[str, int]
"""Counts of pairs left out, by reason."""
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
        metadata: files of numbers by uid.
        joined: the columns of ``metadata`` that are read.
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
    uids: tuple[Shard, ...] = ()
    metadata: tuple[Shard, ...] = ()
    joined: tuple[str, ...] = ()
    patience: float = 120.0

    @property
    def column_names(self) -> tuple[str, ...]:
        """The numbers that come with each pair."""
        return short_names((*self.members.columns, *self.joined), "stream.columns")


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
        uids: of the pairs; empty where none was asked for.
        lost_N: what was left out just before each pair: ``damaged`` pairs, those of each kind (``damaged/KIND``), and
            pairs ``outside_uids``.
        last: place of the lane after the chunk.
        rest: what was left out after the last pair.
        ended: whether the lane holds no more pairs in this epoch.
        wordless_N: whether no token of a pair's caption is left.
        examples: of the damage since the chunk before, reason → the first example.
    """

    images_NHWC: npt.NDArray[np.uint8]
    token_NL: npt.NDArray[np.int64]
    captions: tuple[str, ...]
    key_N2: npt.NDArray[np.int64]
    value_NC: npt.NDArray[np.float32]
    place_N: list[Place]
    uids: tuple[str, ...]
    lost_N: list[Lost]
    last: Place
    rest: Lost
    ended: bool
    wordless_N: npt.NDArray[np.bool_]
    examples: dict[str, str] = field(default_factory=dict)

    def told(self, rows: slice) -> Chunk:
        """What processes that do not read the lane need of some of the pairs: all but images, texts and numbers."""
        return replace(
            self,
            images_NHWC=self.images_NHWC[:0],
            token_NL=self.token_NL[:0],
            captions=(),
            key_N2=self.key_N2[rows],
            value_NC=self.value_NC[:0],
            place_N=self.place_N[rows],
            uids=self.uids[rows],
            lost_N=self.lost_N[rows],
            wordless_N=self.wordless_N[rows],
            rest={},
            ended=False,
        )


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
        self.beside = None
        if shards.members.uid:
            self.beside = _beside(shards.members, shards.joined, shards.metadata, shards.uids)
        self._open: dict[int, tuple[int, Place, Generator[tuple[Pair, str, Place, Lost]]]] = {}
        self._lost, self._examples = Counter[str](), dict[str, str]()

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
        rows: list[_Row] = []
        pairs, skipped, ended = held[2], Counter[str](), True
        for found, url, after, lost in pairs:
            place = after
            skipped.update(lost)
            try:
                rows.append(self._row(found, epoch, after, skipped))
                skipped = Counter()
            except Damaged as damaged:
                skipped.update(self._noted(damaged.at(f"{url}: {found.name.lstrip('/')}")))
            if len(rows) == count:
                ended = False
                break
        if not ended:
            self._open[lane] = (epoch, place, pairs)
        else:
            skipped.update(self._lost)
            self._lost = Counter()
        return self._chunk(rows, place, skipped, ended)

    def _chunk(self, rows: Sequence[_Row], last: Place, rest: Lost, ended: bool) -> Chunk:
        size, captions = self.shards.image_size, tuple(row.caption for row in rows)
        examples, self._examples = self._examples, {}
        token_NL = self.shards.tokenizer.encode(captions)
        return Chunk(
            images_NHWC=np.stack([row.image_HWC for row in rows]) if rows else np.empty((0, size, size, 3), np.uint8),
            token_NL=token_NL.numpy(),
            captions=captions,
            key_N2=np.array([row.keys for row in rows], dtype=np.int64).reshape(len(rows), 2),
            value_NC=np.array([row.values for row in rows], dtype=np.float32).reshape(
                len(rows), len(self.shards.column_names)
            ),
            uids=tuple(row.uid for row in rows) if self.beside is not None else (),
            place_N=[row.after for row in rows],
            lost_N=[row.lost for row in rows],
            last=last,
            rest=rest,
            ended=ended,
            wordless_N=self.shards.tokenizer.wordless_N(token_NL).numpy(),
            examples=examples,
        )

    def _row(self, found: Pair, epoch: int, after: Place, lost: Lost) -> _Row:
        """A pair, decoded.

        Raises:
            Damaged: a number is missing, there is no caption, or the image cannot be decoded.
        """
        refuse_missing(self.shards.column_names, found.values, found.uid, found.hints)
        content, captions = found.image.content, self.shards.captions.usable(found.captions)
        if not captions:
            raise Damaged("empty caption")
        key, drawn = content_key(content), 0
        if len(captions) > 1 and self.shards.captions.several == "draw":
            drawn = int(drawn_captions(np.array([key]), np.array([len(captions)]), self.shards.seed, epoch)[0])
        keys = key, content_key(captions[drawn].encode())
        return _Row(
            decode(content, self.shards.image_size), captions[drawn], keys, found.values, found.uid, after, lost
        )

    def _pairs(self, epoch: int, lane: int, place: Place) -> Generator[tuple[Pair, str, Place, Lost]]:
        """Pairs of a lane from a place on: with its shard, the place after each, and what was left out before it."""
        mine = deal(len(self.shards.urls), self.shards.lanes, self.shards.seed, epoch)[lane]
        shard, offset, block, behind = place
        self._lost, start = Counter(), (shard, offset)
        with closing(self._in_order(mine, shard, offset)) as raw:
            while held := self._block(raw):
                position = (epoch * self.shards.lanes + lane) << 32 | block
                if behind:
                    self._lost = Counter()  # what the block left out was counted when it was first read
                order = np.random.default_rng(seeds.derive(self.shards.seed, "stream", position)).permutation(len(held))
                for number in range(behind, len(held)):
                    lost, self._lost = self._lost, Counter()
                    found, (of_shard, _) = held[order[number]]
                    yield found, self.shards.urls[mine[of_shard]], (*start, block, number + 1), lost
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
                pairs: Iterator[Pair] = opened if self.beside is None else self.wanted(opened, self.beside)
                for index, found in enumerate(pairs):
                    if number > shard or index >= offset:
                        yield found, (number, index + 1)

    def wanted(self, pairs: Iterator[Pair], beside: Beside) -> Iterator[Pair]:
        """The pairs whose uids are wanted, with the numbers that are joined; the others are counted."""
        for found in pairs:
            uid = key_text(content_key(found.image.content)) if self.shards.members.uid == KEY else found.uid
            came = Came(np.array([found.values]).reshape(1, -1), (uid,))
            if beside.inside(came)[0]:
                yield replace(found, values=tuple(beside.numbers(came)[0].tolist()), uid=uid)
            else:
                self._lost["outside_uids"] += 1

    def _lose(self, damaged: Damaged) -> None:
        self._lost.update(self._noted(damaged))

    def _noted(self, damaged: Damaged) -> Lost:
        """What a damaged pair counts as; it becomes the example of its kind where there is none yet."""
        self._examples.setdefault(damaged.reason, damaged.example)
        return {"damaged": 1, f"{KIND}{damaged.reason}": 1}


class _Row(NamedTuple):
    """A decoded pair, as ``Chunk`` holds it."""

    image_HWC: npt.NDArray[np.uint8]
    caption: str
    keys: tuple[int, int]
    values: tuple[float, ...]
    uid: str
    after: Place
    lost: Lost


@lru_cache(maxsize=2)
def _beside(
    members: MemberRules, joined: tuple[str, ...], metadata: tuple[Shard, ...], lists: tuple[Shard, ...]
) -> Beside:
    """What comes beside the pairs of a stream, read once for all of its readers in this process."""
    files = ([Path(file.path) for file in held] for held in (metadata, lists))
    return Beside.read(members.columns, joined, members.uid, *files)


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
