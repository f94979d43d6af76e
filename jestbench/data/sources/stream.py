"""Super-batches from shards that cannot be indexed: URLs, pipes, object stores.

A fixed number of virtual *lanes* is what makes the order a function of seed and sizes alone. Each
epoch the shards are dealt to the lanes anew; a lane reads its shards one after the other and shuffles
within blocks of ``buffer`` pairs; a super-batch takes a pair from each lane in turn. Workers divide the
lanes among them, so the number of workers never changes what is read.

Shards are opened by webdataset (its ``gopen`` takes paths, ``http:``, ``pipe:``, ``gs:``, ``hf:`` …) and read by the
code that indexes local shards (``shards.py``), so that the lane holds the position within a shard, which an exact
resume needs. Hugging Face ``datasets`` streams the same shards, but needs Arrow and is slower (docs/your_data.md).
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar

from jestbench.batch import Batch, DataError
from jestbench.data.captions import Captions
from jestbench.data.pairs import Dataset, Pairs
from jestbench.data.sources.columns import lists_of
from jestbench.data.sources.lanes import START, LaneReader, Shards, batch_of, check_lanes
from jestbench.data.sources.patterns import is_url
from jestbench.data.sources.shard_options import ShardOptions
from jestbench.data.sources.shards import paths_of
from jestbench.data.sources.source import Fetched, Source, file_shard, needs, refuse_twice
from jestbench.data.sources.stream_head import Head, read_head
from jestbench.disk import digest

HEAD = 1 << 16
"""Bytes of a shard that its stream's fingerprint holds."""


class StreamPairs(Pairs):
    """A split that is streamed: how its pairs are read, and the first of them, by which a run is priced.

    Its fingerprint is of what is asked for, and of size and first bytes of each shard that lies on a disk: what the
    shards hold is seen when they are read.
    """

    def __init__(self, shards: Shards, first: Batch) -> None:
        self.shards, self._first = shards, first
        self.name, self.tokenizer = "stream/pool", shards.tokenizer
        texts = (shards.captions.identity, shards.captions.several, shards.tokenizer.identity)
        files = [*map(_state, shards.urls)], shards.uids, shards.metadata, shards.joined
        self.fingerprint = digest(repr((shards.urls, shards.image_size, shards.members, *texts, files)))

    @property
    def column_names(self) -> tuple[str, ...]:
        """The numbers that come with each pair."""
        return self.shards.column_names

    def example(self) -> Batch:
        """The first pair."""
        return self._first

    @cached_property
    def head(self) -> Head:
        """The first pairs of the first shards, read when they are first asked for.

        Raises:
            DataError: a command is silent for too long.
        """
        return read_head(self.shards)


@dataclass(frozen=True)
class Stream(ShardOptions):
    """Shards that are read once, in order, without an index, from any URL that webdataset opens.

    Where the shards lie on a disk, an indexed data set is better: its super-batches are drawn from all
    pairs at once.

    Attributes:
        shards: brace patterns of URLs and paths (``https://…/{00000..00999}.tar``, ``pipe:aws s3 cp … -``); globs and
            folders of paths too.
        beside: the data set that holds every other split (``eval``), and whose tokenizer is used.
        image_size: pixels, width and height.
        captions: how captions are normalised, and which of an image's several captions is used.
        lanes: virtual lanes that share the shards; their number determines the order, and is a multiple of the workers.
        buffer: pairs of the blocks within which a lane shuffles; ``lanes`` × ``buffer`` encoded images are held.
        max_damaged: share of damaged pairs above which a run stops.
        patience: seconds that the command or server of a shard may be silent before the run ends with an error.
    """

    shards: str | tuple[str, ...]
    beside: Dataset
    image_size: int = 224
    captions: Captions = field(default_factory=Captions)
    lanes: int = 16
    buffer: int = 256
    max_damaged: float = 0.01
    patience: float = 120.0
    label: ClassVar[str] = "stream"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "lanes", "buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"stream.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.max_damaged <= 1:
            raise ValueError(f"stream.max_damaged is a share in [0, 1], got {self.max_damaged}")
        if not self.patience > 0:
            raise ValueError(f"stream.patience is a positive number of seconds, got {self.patience}")

    def prepare(self) -> None:
        """Prepare the data set ``beside``; a stream needs no preparation."""
        self.beside.prepare()

    def is_prepared(self) -> bool:
        """Whether the data set ``beside`` is prepared."""
        return self.beside.is_prepared()

    @property
    def urls(self) -> tuple[str, ...]:
        """One path, URL or command for each shard."""
        patterns = (self.shards,) if isinstance(self.shards, str) else self.shards
        return tuple(url for pattern in patterns for url in paths_of(pattern))

    def check_urls(self) -> None:
        """Refuse shards of which one is named twice, or that are fewer than the lanes.

        Raises:
            DataError: they are.
        """
        urls = self.urls
        refuse_twice("stream.shards", [(url, url if is_url(url) else str(Path(url).resolve())) for url in urls])
        check_lanes(len(urls), self.lanes, 0)

    def fetched(self) -> dict[str, Fetched]:
        """What must be fetched before it can be read, and how."""
        found: dict[str, Fetched] = {} if not isinstance(self.beside, Source) else self.beside.fetched()
        if away := [url for url in self.urls if is_url(url)]:
            kind: Fetched = "command" if away[0].startswith("pipe:") else "download"
            found[f"stream.shards ({len(away)}, the first {away[0]})"] = kind
        return found

    def stand_in(self) -> Dataset:
        """The stand-in of the data set ``beside``."""
        return self.beside.stand_in()

    def split(self, name: str) -> Pairs:
        """The stream for ``pool``; any other split comes from the data set ``beside``.

        Raises:
            DataError: nothing can be read from the first shards, or there are too few.
        """
        if name != "pool":
            return self.beside.split(name)
        metadata = self.metadata_beside(self.urls[0]) if self.joined else []
        shards = Shards(
            urls=self.urls,
            tokenizer=self.beside.split("eval").tokenizer,
            image_size=self.image_size,
            members=self.members,
            lanes=self.lanes,
            buffer=self.buffer,
            max_damaged=self.max_damaged,
            captions=self.captions,
            uids=tuple(map(file_shard, lists_of(self.uids, "stream.uids"))),
            metadata=tuple(map(file_shard, metadata)),
            joined=self.joined,
            patience=self.patience,
        )
        self.check_urls()
        needs(lambda: __import__("webdataset"), "webdataset")
        return StreamPairs(shards, _first(shards))


def _state(url: str) -> tuple[int, str]:
    """Size and hash of the first bytes of a shard on a disk, which change when it is packed anew; else nothing."""
    path = Path(url)
    if is_url(url) or not path.is_file():
        return 0, ""
    with path.open("rb") as file:
        return path.stat().st_size, digest(file.read(HEAD))


@lru_cache(maxsize=4)
def _first(shards: Shards) -> Batch:
    alone = replace(shards, urls=shards.urls[:3], lanes=1, buffer=1)
    with closing(LaneReader(alone)) as reader:
        chunk = reader((0, 0, START, 1))
    if not chunk.captions:
        shown = "; ".join(f"{reason}: {example}" for reason, example in chunk.examples.items())
        raise DataError(
            f"no pair can be read from {', '.join(alone.urls)}: an image ({', '.join(shards.members.images)}) and its "
            f"caption (stream.caption = {shards.members.caption!r}){f'; {shown}' if shown else ''}"
        )
    return batch_of(shards, [(chunk, 0)])
