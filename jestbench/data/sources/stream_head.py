"""The head of a stream: its first pairs, read before a run for the checks that an index allows of local data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jestbench.data.damage import Damaged
from jestbench.data.sources.lanes import LaneReader, Shards, open_shard
from jestbench.data.sources.shard_index import image_key

PAIRS = 256
"""Pairs of a head, damaged ones among them."""
BYTES = 2**25
"""Bytes of images and captions at which fewer pairs are enough."""
SHARDS = 3
"""Shards that the pairs are taken from, one after the other."""


@dataclass(frozen=True)
class Head:
    """The first pairs of a stream, their images left encoded.

    Attributes:
        captions: all captions of these pairs, normalised.
        image_key_N: content keys of the images, int64.
        damage: pairs left out, reason → count.
        examples: of that damage, reason → the first example.
    """

    captions: tuple[str, ...]
    image_key_N: npt.NDArray[np.int64]
    damage: Mapping[str, int]
    examples: Mapping[str, str]

    @property
    def damaged(self) -> int:
        """Pairs left out as damaged."""
        return sum(self.damage.values())

    @property
    def read(self) -> int:
        """Pairs read, damaged ones among them; those outside of a list of uids are not."""
        return len(self.image_key_N) + self.damaged


class _Enough(Exception):
    """No more pairs are to be read."""


def read_head(shards: Shards) -> Head:
    """The head of a stream, from the shards in the order of their names.

    Raises:
        DataError: a command is silent for too long.
    """
    captions, keys, damage, examples = list[str](), list[int](), Counter[str](), dict[str, str]()
    reader, pairs, room = LaneReader(shards), PAIRS, BYTES

    def count(size: int) -> None:
        nonlocal pairs, room
        pairs, room = pairs - 1, room - size
        if pairs <= 0 or room <= 0:
            raise _Enough

    def lose(damaged: Damaged) -> None:
        damage[damaged.reason] += 1
        examples.setdefault(damaged.reason, damaged.example)
        count(0)

    with suppress(_Enough):
        for url in shards.urls[:SHARDS]:
            with closing(open_shard(url, shards.members, lose, shards.patience)) as opened:
                for found in opened:
                    content, texts = found.image.content, shards.captions.usable(found.captions)
                    try:
                        key = image_key(content, None)
                        if not texts:
                            raise Damaged("empty caption")
                    except Damaged as damaged:
                        lose(damaged.at(f"{url}: {found.name.lstrip('/')}"))
                        continue
                    if reader.wanted(found) is not None:
                        keys.append(key)
                        captions += texts
                    count(len(content) + sum(map(len, texts)))
    return Head(tuple(captions), np.array(keys, np.int64), damage, examples)
