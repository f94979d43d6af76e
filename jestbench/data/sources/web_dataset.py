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
from jestbench.data.sources.columns import KEY, joined_names, metadata_files
from jestbench.data.sources.patterns import is_url
from jestbench.data.sources.shard_index import ShardIndex, image_key
from jestbench.data.sources.shards import COMPRESSED, IMAGES, MemberRules, paths_of
from jestbench.data.sources.source import Shard, Source, file_shard


@dataclass(frozen=True)
class WebDataset(Source):
    """Local WebDataset shards, drawn from at random like any indexed data.

    A split is a brace pattern (``/data/{00000..00331}.tar``), a glob, a folder, one file, or several of these
    in a tuple or joined by ``::``.

    Attributes:
        images: endings of image members (``jpg``, ``input.jpg``); the first that a sample has is taken.
        caption: member that holds the caption (``txt``, ``outputs.txt``; ``json`` where it is one JSON text or a list
            of them), or a field of a JSON member (``json.caption``; of a list of objects that of each); a member whose
            whole ending is that name comes first.
        lines: each line of a text member is a caption of its own.
        allow_missing: leave out shards that a brace pattern names and that are not there.
        columns: numbers that come with each pair: members or JSON fields (``json.similarity``), named as a caption is;
            with ``metadata``, names without a dot are columns of its files.
        metadata: parquet files with a row a uid: a glob (``*.parquet``) beside the shards, or from the working
            directory.
    """

    images: tuple[str, ...] = IMAGES
    caption: str = "txt"
    lines: bool = False
    allow_missing: bool = False
    metadata: str = ""
    usual_uid: ClassVar[str] = "json.uid"
    label: ClassVar[str] = "webdataset"
    wanted: ClassVar[str] = "shards ('/data/{00000..00331}.tar')"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.caption or not self.images:
            raise ValueError("webdataset.caption and webdataset.images name the members to read; they cannot be empty")

    @property
    def members(self) -> MemberRules:
        """Which members are read."""
        return MemberRules(
            self.images, self.caption, self.lines, self.own_columns, "" if self.uid_field == KEY else self.uid_field
        )

    @property
    def joined(self) -> tuple[str, ...]:
        """The columns of ``metadata``."""
        return joined_names(self.columns, self.metadata)

    def metadata_files(self, split: str) -> list[Path]:
        """The files beside the split's shards, else those from the working directory."""
        if not self.joined:
            return []
        return metadata_files(self.metadata, Path(self.shards(split)[0].path).parent, "webdataset.metadata")

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
