"""A look at the first pairs of local data, before a sweep: it takes no index and writes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path

from jestbench.batch import DataError
from jestbench.data.damage import Damaged, listed
from jestbench.data.pairs import Dataset
from jestbench.data.sources.patterns import is_url
from jestbench.data.sources.shard_index import ShardIndex
from jestbench.data.sources.shards import Forward
from jestbench.data.sources.source import LOOK, Source
from jestbench.data.sources.stream import Stream


def look_at(data: Dataset, splits: Collection[str]) -> None:
    """Read the first pairs of the splits that lie here and are not indexed.

    Args:
        data: local data or a stream; of any other there is nothing to read.
        splits: those that must be given; all that are bound are read.

    Raises:
        DataError: a split is not given or cannot be read, or none of its first pairs is usable.
    """
    local, asked = data, set(splits)
    if isinstance(data, Stream):
        _refuse_unusable("stream.shards", _first_of(data))
        local, asked = data.beside, asked - {"pool"}
    if isinstance(local, Source):
        away = local.fetched()
        for split in dict.fromkeys((*sorted(asked), *local.bound)):
            local.where(split)
            if f"{local.label}.{split}" not in away and not local.has_indexed(split):
                _refuse_unusable(f"{local.label}.{split}", local.first(split))


def _first_of(stream: Stream) -> ShardIndex:
    """The first pairs of a stream's first shard on a disk.

    Raises:
        DataError: none of the shards on a disk is there, one is named twice, or there are fewer than lanes.
    """
    urls, index = stream.urls, ShardIndex()
    stream.check_urls()
    named = [Path(url) for url in urls if not is_url(url)]
    there = next((path for path in named if path.is_file()), None)
    if named and there is None:
        raise DataError(f"stream.shards: none of the {len(named)} shards is there, the first is {named[0]}")
    if there is not None:
        with there.open("rb") as file:
            for found in islice(stream.members.pairs(Forward.unpacked(file)), LOOK):
                with index.leaving_out(there.name):
                    if isinstance(found, Damaged):
                        raise found
                    index.add(found.image.offset, found.image.size, 0, found.captions)
    return index


def _refuse_unusable(what: str, first: ShardIndex) -> None:
    """Refuse data of whose first pairs every one is damaged."""
    damage: Mapping[str, int] = first.damage
    if damage and not first.key:
        shown = listed(damage, first.examples, sum(damage.values()))
        raise DataError(f"{what}: none of its first pairs is usable: {shown}")
