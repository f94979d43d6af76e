"""WebDataset shards that lie on a disk: tar files as img2dataset and ``webdataset.ShardWriter`` write them.

Shards are read once, when they are indexed; after that, images are read from where they lie in the tar, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

from jestbench.batch import DataError
from jestbench.data.damage import Damaged
from jestbench.data.sources.columns import KEY
from jestbench.data.sources.patterns import is_url
from jestbench.data.sources.shard_index import ShardIndex, image_key
from jestbench.data.sources.shard_options import ShardOptions
from jestbench.data.sources.shards import COMPRESSED, paths_of
from jestbench.data.sources.source import Shard, Source, file_shard


@dataclass(frozen=True)
class WebDataset(ShardOptions, Source):
    """Local WebDataset shards, drawn from at random like any indexed data.

    A split is a brace pattern (``/data/{00000..00331}.tar``), a glob, a folder, one file, or several of these
    in a tuple or joined by ``::``.

    Attributes:
        allow_missing: leave out shards that a brace pattern names and that are not there.
    """

    allow_missing: bool = False
    label: ClassVar[str] = "webdataset"
    wanted: ClassVar[str] = "shards ('/data/{00000..00331}.tar')"

    def metadata_files(self, split: str) -> list[Path]:
        """The files beside the split's shards, else those from the working directory."""
        return self.metadata_beside(self.shards(split)[0].path) if self.joined else []

    @property
    def reading(self) -> str:
        """The members that are read, as a string for the index's identity."""
        return f"{self.images}/{self.caption}/{self.lines}"

    def shards(self, split: str) -> list[Shard]:
        """The split's shards, in the order of their pattern."""
        named = [path for pattern in self.where(split) for path in paths_of(pattern)]
        if urls := [path for path in named if is_url(path)]:
            raise DataError(
                f"{urls[0]}: an indexed source reads at random from a disk: fetch the shards, or stream them"
            )
        missing = [path for path in named if not Path(path).is_file()]
        if missing and not (self.allow_missing and len(missing) < len(named)):
            raise DataError(
                f"webdataset.{split}: {len(missing)} of {len(named)} shards are missing, the first is {missing[0]}: "
                "mend the pattern, or set webdataset.allow_missing = True"
            )
        return [file_shard(Path(path)) for path in named if path not in missing]

    def index(self, shard: Shard, verified: int | None, most: int | None = None) -> ShardIndex:
        """Read a shard once; what is damaged is counted and left out."""
        index = ShardIndex()
        with Path(shard.path).open("rb") as tar:
            if tar.read(6).startswith(COMPRESSED):
                raise DataError(
                    f"{shard.path} is compressed, so nothing in it can be read at random: unpack it (gunzip) first"
                )
            tar.seek(0)
            for found in islice(self.members.pairs(tar), most):
                name = "" if isinstance(found, Damaged) else f": {found.name.lstrip('/')}"
                with index.leaving_out(f"{Path(shard.path).name}{name}"):
                    if isinstance(found, Damaged):
                        raise found
                    image, hints = found.image, {f"no value of {name}": said for name, said in found.hints.items()}
                    index.examples = hints | index.examples
                    key = image_key(image.content, verified)
                    index.add(
                        image.offset,
                        image.size,
                        key,
                        found.captions,
                        None,
                        found.values,
                        KEY if self.uid == KEY else found.uid,
                    )
        return index
