"""CSV and TSV files of image path and caption, as open_clip reads them."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jestbench.batch import DataError
from jestbench.data.captions import text_of
from jestbench.data.damage import Damaged
from jestbench.data.file_pairs import WHOLE
from jestbench.data.sources.shard_index import ShardIndex, image_key
from jestbench.data.sources.source import Shard, Source, column, file_shard


@dataclass(frozen=True)
class Csv(Source):
    """Tables whose rows hold an image's path and a caption; rows with the same path give one image several captions.

    Attributes:
        image_column: column of the image's path; a relative path is relative to the table's folder.
        caption_column: column of the caption.
        separator: separator of columns; ``None`` is a tab in ``.tsv`` files and a comma in all other files.
    """

    image_column: str = "filepath"
    caption_column: str = "title"
    separator: str | None = None
    label: ClassVar[str] = "csv"
    wanted: ClassVar[str] = "table ('/data/train.csv')"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.separator is not None and len(self.separator) != 1:
            raise ValueError(f"csv.separator is one character, got {self.separator!r}")

    @property
    def reading(self) -> str:
        """Which columns are read."""
        return f"{self.image_column}/{self.caption_column}/{self.separator}"

    def shards(self, split: str) -> list[Shard]:
        """The split's tables."""
        found = []
        for name in self.where(split):
            path = Path(name).expanduser()
            if not path.is_file():
                raise DataError(f"csv.{split}: there is no file {path}")
            found.append(file_shard(path))
        return found

    def index(self, shard: Shard, verified: int | None) -> ShardIndex:
        """Read a table and its images once; what is damaged is counted and left out."""
        index, captions_of = ShardIndex(), dict[str, list[str]]()
        folder = Path(shard.path).absolute().parent
        for path, caption in self._rows(Path(shard.path), index):
            captions_of.setdefault(path, []).append(caption)
        for path, captions in captions_of.items():
            file = folder / path
            with index.leaving_out():
                try:
                    content = file.read_bytes()
                except (OSError, ValueError):  # ValueError: a path with a zero byte
                    raise Damaged("no image") from None
                index.add(0, WHOLE, image_key(content, verified), captions, str(file))
        return index

    def _rows(self, path: Path, index: ShardIndex) -> Iterator[tuple[str, str]]:
        separator = self.separator or ("\t" if path.suffix.lower() == ".tsv" else ",")
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file, _long_fields():
            reader = csv.reader(file, delimiter=separator)
            try:
                header = next(reader, [])
                other = ", or csv.separator" if len(header) < 2 else ""
                image, caption = (
                    header.index(column(header, getattr(self, name), str(path), f"csv.{name}{other}"))
                    for name in ("image_column", "caption_column")
                )
                for row in filter(None, reader):
                    with index.leaving_out():
                        if len(row) <= max(image, caption):
                            raise Damaged("too few columns")
                        if not row[image].strip():
                            raise Damaged("no image")
                        yield text_of(row[image]), text_of(row[caption])
            except csv.Error as error:
                raise DataError(f"{path}, line {reader.line_num}: {error}") from error


@contextmanager
def _long_fields() -> Iterator[None]:
    """Allow fields of any length: Python's global limit on CSV fields is 128 KiB."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
