"""The kind of a file that stands where another was named, by its first bytes, and what reads it."""

from __future__ import annotations

import re
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
READ = (
    "which is not read: write its pairs as tar shards (gin/run/webdataset.gin), as a parquet, arrow or JSON file "
    "(gin/run/huggingface.gin), or as a CSV or TSV table (gin/run/csv.gin)"
)
"""What to do with a file that no reader takes, and the formats that are read."""
_STORES = (
    (re.compile(rb"PK\x03\x04.{26}[^\0]{0,99}?\.npy", re.DOTALL), "an archive of NumPy (.npz)"),
    (re.compile(rb"PK\x03\x04.{26}[^\0]{0,99}?data\.pkl", re.DOTALL), "a file of torch.save (.pt)"),
    (re.compile(rb"\x93NUMPY"), "an array of NumPy (.npy)"),
    (re.compile(rb"\x80[\x02-\x05]"), "a pickle"),
    (re.compile(rb"\x89HDF\r\n"), "an HDF5 file"),
    (re.compile(rb"SQLite format 3\0"), "an SQLite database"),
)
"""First bytes of files that hold data of any kind, and what such a file is."""


def kind_of(start: bytes) -> str:
    """What a file is that begins with these bytes, and what to do with it; empty where that is not known."""
    for pattern, what in _STORES:
        if pattern.match(start):
            return f"{what}, {READ}"
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
