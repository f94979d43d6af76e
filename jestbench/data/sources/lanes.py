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
from jestbench.batch import Batch, DataError
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

    def outline(self, rows: slice) -> Chunk:
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

    def unreadable(error: Exception) -> bool:
        lose(Damaged("unreadable shard", f"{type(error).__name__}: {error}").at(url))
        return True

    for opened in url_opener([{"url": url}], handler=unreadable):
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
        self.beside: Beside | None = None
        if shards.members.uid:
            self.beside = _beside(shards.members, shards.joined, shards.metadata, shards.uids)
        self._open: dict[int, _OpenLane] = {}
        self._examples = dict[str, str]()

    def close(self) -> None:
        """Close the shards that are open: a forked process would hold them open, and their commands running."""
        while self._open:
            self._open.popitem()[1].pairs.close()

    def __call__(self, task: tuple[int, int, Place, int]) -> Chunk:
        """Up to ``count`` pairs of a lane from a place on; the task is ``(epoch, lane, place, count)``."""
        epoch, lane, place, count = task
        held = self._open.pop(lane, None)
        if held is None or (held.epoch, held.place) != (epoch, place):
            if held is not None:
                held.pairs.close()
            left_out = Counter[str]()
            held = _OpenLane(epoch, place, self._pairs(epoch, lane, place, left_out), left_out)
        rows: list[_Row] = []
        skipped, ended = Counter[str](), True
        for found, url, after, lost in held.pairs:
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
            held.place = place
            self._open[lane] = held
        else:
            skipped.update(held.lost)
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
        """A pair, decoded; ``Damaged`` where a number is missing, no caption is left, or the image is damaged."""
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

    def _pairs(
        self, epoch: int, lane: int, place: Place, lost: Counter[str]
    ) -> Generator[tuple[Pair, str, Place, Lost]]:
        """Pairs of a lane from a place on: with its shard, the place after each, and what was left out before it.

        ``lost`` counts what has been left out since the pair that was given last.
        """
        mine = deal(len(self.shards.urls), self.shards.lanes, self.shards.seed, epoch)[lane]
        shard, offset, block, behind = place
        start = shard, offset
        with closing(self._in_order(mine, shard, offset, lost)) as raw:
            while held := self._block(raw):
                position = (epoch * self.shards.lanes + lane) << 32 | block
                if behind:
                    lost.clear()  # what the block left out was counted when it was first read
                order = np.random.default_rng(seeds.derive(self.shards.seed, "stream", position)).permutation(len(held))
                for number in range(behind, len(held)):
                    found, (of_shard, _) = held[order[number]]
                    before = dict(lost)
                    lost.clear()
                    yield found, self.shards.urls[mine[of_shard]], (*start, block, number + 1), before
                start, block, behind = held[-1][1], block + 1, 0

    def _block(self, raw: Iterator[tuple[Pair, tuple[int, int]]]) -> list[tuple[Pair, tuple[int, int]]]:
        """The pairs of the next block: as many as ``buffer``, or fewer where their images are very large."""
        held, size, most = list[tuple[Pair, tuple[int, int]]](), 0, MAX_BLOCKS // self.shards.lanes
        while len(held) < self.shards.buffer and size < most and (found := next(raw, None)) is not None:
            held.append(found)
            size += len(found[0].image.content) + sum(map(len, found[0].captions))
        return held

    def _in_order(
        self, mine: Sequence[int], shard: int, offset: int, lost: Counter[str]
    ) -> Generator[tuple[Pair, tuple[int, int]]]:
        """Pairs of shards as they lie, and the place behind each; ``lost`` counts what is left out."""
        shards = self.shards

        def lose(damaged: Damaged) -> None:
            lost.update(self._noted(damaged))

        for number in range(shard, len(mine)):
            with closing(open_shard(shards.urls[mine[number]], shards.members, lose, shards.patience)) as opened:
                given = 0
                for found in opened:
                    if (pair := self.wanted(found)) is None:
                        lost["outside_uids"] += 1
                        continue
                    given += 1
                    if number > shard or given > offset:
                        yield pair, (number, given)

    def wanted(self, found: Pair) -> Pair | None:
        """The pair with the numbers that are joined; ``None`` where its uid is not wanted."""
        if self.beside is None:
            return found
        uid = key_text(content_key(found.image.content)) if self.shards.members.uid == KEY else found.uid
        came = Came(np.array([found.values]).reshape(1, -1), (uid,))
        if not self.beside.inside(came)[0]:
            return None
        return replace(found, values=tuple(self.beside.numbers(came)[0].tolist()), uid=uid)

    def _noted(self, damaged: Damaged) -> Lost:
        """What a damaged pair counts as; it becomes the example of its kind where there is none yet."""
        self._examples.setdefault(damaged.reason, damaged.example)
        return {"damaged": 1, f"{KIND}{damaged.reason}": 1}


@dataclass
class _OpenLane:
    """A lane whose shard is open.

    Attributes:
        epoch, place: where its next pair stands.
        pairs: from there on, as ``LaneReader._pairs`` gives them.
        lost: what has been left out since the pair that was given last.
    """

    epoch: int
    place: Place
    pairs: Generator[tuple[Pair, str, Place, Lost]]
    lost: Counter[str]


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


def batch_of(shards: Shards, rows: Sequence[tuple[Chunk, int]], pinned: bool = False) -> Batch:
    """The pairs in these rows of chunks, the images in page-locked memory where ``pinned``."""
    size, count = shards.image_size, len(rows)
    images = torch.empty((count, size, size, 3), dtype=torch.uint8, pin_memory=pinned)
    into = images.numpy()
    for slot, (chunk, row) in enumerate(rows):
        into[slot] = chunk.images_NHWC[row]
    key_B2 = np.array([chunk.key_N2[row] for chunk, row in rows], np.int64).reshape(count, 2)
    value_BC = np.array([chunk.value_NC[row] for chunk, row in rows], np.float32)
    value_BC = value_BC.reshape(count, len(shards.column_names))
    token_BL = np.stack([chunk.token_NL[row] for chunk, row in rows]) if rows else shards.tokenizer.encode(()).numpy()
    return Batch(
        images_BCHW=images.permute(0, 3, 1, 2),
        token_ids={shards.tokenizer.identity: torch.from_numpy(token_BL)},
        image_key_B=torch.from_numpy(key_B2[:, 0].copy()),
        text_key_B=torch.from_numpy(key_B2[:, 1].copy()),
        captions=tuple(chunk.captions[row] for chunk, row in rows),
        columns={name: torch.from_numpy(value_BC[:, i].copy()) for i, name in enumerate(shards.column_names)},
    )


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
