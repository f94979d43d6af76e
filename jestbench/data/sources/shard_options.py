"""What can be bound alike of shards that are indexed and of shards that are streamed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jestbench.batch import DataError
from jestbench.data.sources.columns import Numbers
from jestbench.data.sources.patterns import globbed, is_url, local_path
from jestbench.data.sources.shards import IMAGES, MemberRules


@dataclass(frozen=True, kw_only=True)
class ShardOptions(Numbers):
    """Which members of shards hold the pairs, and what is read beside them.

    Attributes:
        images: endings of image members (``jpg``, ``input.jpg``); the first that a sample has is taken.
        caption: member that holds the caption (``txt``, ``outputs.txt``; ``json`` where it is one JSON text or a list
            of them), or a field of a JSON member (``json.caption``, ``meta.json.a.b``; of a list of objects that of
            each); a member whose whole ending is that name comes first.
        lines: each line of a text member is a caption of its own.
        metadata: parquet files with a row a uid: a glob (``*.parquet``) beside the shards, where they lie on a disk, or
            from the working directory.
        columns: members or JSON fields (``json.similarity``) that hold numbers, for policies that read ``column:NAME``;
            with ``metadata``, names without a dot are columns of its files. A pair without a number is damage, of an
            index in a split in which any pair has one.
    """

    images: tuple[str, ...] = IMAGES
    caption: str = "txt"
    lines: bool = False
    metadata: str = ""
    usual_uid: ClassVar[str] = "json.uid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.caption or not self.images:
            named = f"{self.label}.caption and {self.label}.images"
            raise ValueError(f"{named} name the members to read; they cannot be empty")

    @property
    def members(self) -> MemberRules:
        """Which members are read."""
        return MemberRules(self.images, self.caption, self.lines, self.own_columns, self.uid_field)

    @property
    def joined(self) -> tuple[str, ...]:
        """The columns of ``metadata``: those without a dot."""
        return tuple(name for name in self.columns if "." not in name) if self.metadata else ()

    def metadata_beside(self, shard: str) -> list[Path]:
        """The files of ``metadata`` beside a shard, else those from the working directory.

        Raises:
            DataError: there are none.
        """
        places = [*([] if is_url(shard) else [str(Path(shard).parent / self.metadata)]), self.metadata]
        for place in places:
            one = local_path(place)
            if files := globbed(place) or ([one] if one.is_file() else []):
                return files
        beside = f", neither beside the shards ({places[0]})" if len(places) > 1 else ""
        raise DataError(f"{self.label}.metadata = {self.metadata!r}: no such file{beside}")
