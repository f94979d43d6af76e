"""The kind of a file that stands where another was named, by its first bytes, and what reads it."""

from __future__ import annotations

from pathlib import Path

from jestbench.batch import DataError
from jestbench.data.decode import OTHER_KINDS

FIRST = 512
"""Bytes that show the kind of a file."""
_MAGIC = (
    (0, b"PAR1", "a parquet file (gin/run/huggingface.gin reads it)"),
    (0, b"ARROW1", "an arrow file (gin/run/huggingface.gin reads it)"),
    (257, b"ustar", "a tar (gin/run/webdataset.gin reads it)"),
    (0, b"\x1f\x8b", "compressed (unpack it first: gunzip)"),
    (0, b"PK\x03\x04", "a zip archive or a spreadsheet (unpack it, or save it as CSV)"),
)
"""Place, bytes there, and what a file with them is."""


def kind_of(start: bytes) -> str:
    """What a file is that begins with these bytes, and what to do with it; empty where that is not known."""
    for pattern, what, remedy in OTHER_KINDS:
        if pattern.match(start):
            return f"{what} ({remedy})"
    for place, magic, what in _MAGIC:
        if start[place : place + len(magic)] == magic:
            return what
    if b"\0" in start:
        return ""
    if start.lstrip()[:1] in (b"{", b"["):
        return "JSON (gin/run/huggingface.gin reads it as .jsonl or .json)"
    return "a table (gin/run/csv.gin reads it)" if any(mark in start for mark in (b",", b"\t", b";")) else ""


def kind_of_file(path: Path) -> str:
    """The same of a file."""
    with path.open("rb") as file:
        return kind_of(file.read(FIRST))


def refuse_other_kind(path: Path) -> None:
    """Refuse a file that is no table of text.

    Raises:
        DataError: naming its kind, and what reads it.
    """
    found = kind_of_file(path)
    if found and not found.startswith("a table"):
        raise DataError(f"{path} is no table but {found}")
