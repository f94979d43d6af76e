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

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from torch import Tensor

from jestbench.batch import Batch, DataError
from jestbench.data.pairs import ArrayPairs, Dataset, Pairs
from jestbench.data.sources.lanes import IMAGES, START, LaneReader, Shards, check_lanes
from jestbench.disk import digest
from jestbench.model.tokenizer import Tokenizer


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
        return digest(repr(asked))

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
