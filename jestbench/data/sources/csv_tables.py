"""CSV and TSV files of image path and caption, as open_clip reads them."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from jestbench.batch import DataError
from jestbench.data.captions import caption_of, text_of
from jestbench.data.damage import Damaged
from jestbench.data.encoded_images import WHOLE
from jestbench.data.sources.columns import KEY, column, note_missing, number_of
from jestbench.data.sources.other_kinds import refuse_other_kind
from jestbench.data.sources.patterns import globbed, local_path
from jestbench.data.sources.shard_index import ShardIndex, SplitTable, image_key
from jestbench.data.sources.source import Shard, Source, file_shard
from jestbench.disk import decoded, nearest

SEPARATORS = ("\t", ",", ";", "|")
"""Separators that are looked for in a header."""
END = "\ue000endofthetable\n"
"""A line put behind the last one, of letters alone, as a separator is none, so that it is read as a row of one field.

A quote that is still open at the end of the table takes this line into its field, where ``_numbered_rows`` finds it; a
reader of the table alone would give the rows behind the quote as one caption.
"""
_PICTURE = re.compile(r"\.(jpe?g|jfif|png|webp|gif|bmp|tiff?|jp2|avif)(?!\w)", re.IGNORECASE)
"""How the name of a picture ends."""


@dataclass(frozen=True)
class Csv(Source):
    """Tables whose rows hold an image's path and a caption; rows with the same path give one image several captions.

    Numbers and uid of an image are those of its first row.

    Attributes:
        image_column: column of the image's path; a relative path is relative to the table's folder, ``~`` is the home
            folder, and a ``file:`` URL is its path.
        caption_column: column of the caption.
        separator: separator of columns (``tab`` is one); ``None`` is the one by which the header has both columns: a
            tab in ``.tsv`` files and a comma in all other files come first, then tab, comma, semicolon and bar.
        quotes: a field in double quotes may hold separators and line breaks; ``None`` is true for every separator
            but the tab, with which quotes are text like any other.
    """

    image_column: str = "filepath"
    caption_column: str = "title"
    separator: str | None = None
    quotes: bool | None = None
    label: ClassVar[str] = "csv"
    wanted: ClassVar[str] = "table ('/data/train.csv')"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.separator in ("\\t", "tab"):  # as a shell hands a tab on
            object.__setattr__(self, "separator", "\t")
        if self.separator is not None and (len(self.separator) != 1 or self.separator.isalnum()):
            raise ValueError(f"csv.separator is one character, such as ';' or 'tab', got {self.separator!r}")

    @property
    def reading(self) -> str:
        """Which columns are read."""
        return f"{self.image_column}/{self.caption_column}/{self.separator}/{self.quotes}"

    def shards(self, split: str) -> list[Shard]:
        """The split's tables."""
        found = [path for name in self.where(split) for path in (globbed(name) or [local_path(name)])]
        if folders := [path for path in found if path.is_dir()]:
            raise DataError(
                f"csv.{split}: {folders[0]} is a folder: name its tables, as in '{folders[0]}/*.csv' (a folder of "
                "pictures is read by gin/run/huggingface.gin, one of shards by gin/run/webdataset.gin)"
            )
        if missing := [path for path in found if not path.is_file()]:
            near = nearest(missing[0].name, (path.name for path in missing[0].parent.glob("*")), "; did you mean {}?")
            raise DataError(f"csv.{split}: there is no file {missing[0]}{near}")
        return [file_shard(path) for path in found]

    def come_since(self, split: str, table: SplitTable, time: float) -> bool:
        """Whether images that were left out of a table have come or changed since a time (seconds since the epoch)."""
        known = set(table.paths)
        for shard in self.shards(split):
            folder = Path(shard.path).absolute().parent
            for path, *_ in self._rows(Path(shard.path), ShardIndex()):
                file = folder / local_path(path)
                with suppress(OSError, ValueError):  # it is not there
                    if str(file) not in known and file.stat().st_ctime >= time:
                        return True
        return False

    def index(self, shard: Shard, verified: int | None, most: int | None = None) -> ShardIndex:
        """Read a table and its images once; what is damaged is counted and left out."""
        index, captions_of, first = ShardIndex(), dict[str, list[str]](), dict[str, tuple[tuple[float, ...], str]]()
        folder = Path(shard.path).absolute().parent
        for path, caption, values, uid in islice(self._rows(Path(shard.path), index), most):
            captions_of.setdefault(path, []).append(caption)
            first.setdefault(path, (values, uid))
        for path, captions in captions_of.items():
            file = folder / local_path(path)
            with index.leaving_out(path):
                try:
                    content = file.read_bytes()
                except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
                    cause = ""
                    with suppress(OSError):  # too long a name
                        cause = f"paths are relative to the table's folder, {folder}" if Path(path).is_file() else ""
                    raise Damaged("no image", getattr(error, "strerror", "") or str(error), cause) from None
                index.add(0, WHOLE, image_key(content, verified), captions, str(file), *first[path])
        return index

    def _rows(self, path: Path, index: ShardIndex) -> Iterator[tuple[str, str, tuple[float, ...], str]]:
        """Path, caption, numbers and uid of each row."""
        refuse_other_kind(path)
        with path.open("rb") as start:
            try:
                header_line = decoded(start.readline()).partition("\r")[0]  # line breaks of old Macs too
            except ValueError as error:
                raise DataError(f"{path}: {error}") from None
        separator = self._separator(path, header_line)
        quotes = separator != "\t" if self.quotes is None else self.quotes
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file, _long_fields():
            rows = _numbered_rows(file, path, separator, quotes)
            _, given = next(rows, (1, []))
            header = [name.strip() for name in given]
            padded = header != given
            self._check_header(path, header, separator)
            other = ", or csv.separator" if len(header) < 2 else ""
            image, caption = (
                header.index(column(header, wanted, str(path), f"csv.{name}{other}"))
                for name, wanted in zip(("image_column", "caption_column"), self._wanted, strict=True)
            )
            places = [header.index(name) if name in header else None for name in (*self.columns, self.uid_field)]
            for line, row in rows:
                if not row:
                    continue
                with index.leaving_out(f"{path.name}, line {line}"):
                    _check_width(row, len(header), max(image, caption), separator)
                    if not row[image].strip():
                        raise Damaged("no image", "the path is empty")
                    fields = ["" if place is None or place >= len(row) else row[place] for place in places]
                    values = tuple(map(number_of, fields[:-1]))
                    note_missing(index.examples, self.columns, values, f"{path.name}, line {line}", fields, header)
                    yield (
                        text_of(row[image].strip() if padded else row[image]),
                        caption_of(row[caption]),
                        values,
                        KEY if self.uid == KEY else fields[-1].strip(),
                    )

    @property
    def _wanted(self) -> tuple[str, str]:
        """The names of both columns, which blanks around the separators of a header are no part of."""
        return self.image_column.strip(), self.caption_column.strip()

    def _check_header(self, path: Path, header: Sequence[str], separator: str) -> None:
        """Refuse (``DataError``) a table of which a column comes twice, or whose first row is a pair, no names."""
        for name in self._wanted:
            if header.count(name) > 1:
                raise DataError(f"{path} has {header.count(name)} columns {name!r}: rename all but one")
        if not {*self._wanted} & {*header} and any(map(_PICTURE.search, header)):
            raise DataError(
                f"{path} names no columns: its first row ({', '.join(header)[:80]}) looks like a pair; put a row with "
                f"the names above it, {separator.join(self._wanted)!r}"
            )

    def _separator(self, path: Path, header: str) -> str:
        """The separator by which the header has both columns, or the usual one."""
        if self.separator is not None:
            return self.separator
        usual = "\t" if path.suffix.lower() == ".tsv" else ","

        def has_both(separator: str) -> bool:
            names = next(csv.reader([header.rstrip("\r\n")], delimiter=separator), [])
            return {*self._wanted} <= {name.strip() for name in names}

        return next((separator for separator in (usual, *SEPARATORS) if has_both(separator)), usual)


def _check_width(row: Sequence[str], columns: int, last: int, separator: str) -> None:
    """Refuse (``Damaged``) a row of other columns than the header's; empty ones behind the last do no harm."""
    said = f"{len(row)} columns, the header has {columns}"
    if len(row) <= last:
        raise Damaged("too few columns", said)
    if any(field.strip() for field in row[columns:]):
        cause = f"a caption with {separator!r} in it that stands in no quotes: quote it, or separate columns by tabs"
        raise Damaged("too many columns", said, cause)


def _numbered_rows(file: Any, path: Path, separator: str, quotes: bool) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table, each with the line that it begins on.

    Raises:
        DataError: a quote is never closed, or closes within a field lines after it opened: the rows between would be
            lost in one caption.
    """
    lines: list[str] = []

    def recorded() -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line
        yield END

    options: dict[str, Any] = {"delimiter": separator}
    options |= {} if quotes else {"quoting": csv.QUOTE_NONE}
    reader, begins = csv.reader(recorded(), **options), 1
    mend = "close it, or bind csv.quotes = False where quotes are text like any other"
    try:
        for row in reader:
            if row == [END.rstrip("\n")]:
                return
            # Line breaks of the fields before the last belong to quotes that were closed.
            opened = begins + sum(field.count("\n") for field in row[:-1])
            if row and row[-1].endswith(END):
                raise DataError(f"{path}, line {opened}: a quote opens here and is never closed: {mend}")
            if len(lines) > 1:
                try:
                    list(csv.reader(lines, strict=True, **options))
                except csv.Error:
                    raise DataError(
                        f"{path}, line {begins}: a quote that opens in this row closes within a field of line "
                        f"{begins + len(lines) - 1}: {mend}"
                    ) from None
            yield begins, row
            begins += len(lines)
            lines.clear()
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
