"""WebDataset shards that lie on a disk: tar files as img2dataset and ``webdataset.ShardWriter`` write them.

A sample is a run of members with one name up to the first dot: ``000123.jpg``, ``000123.txt``, ``000123.json``. The
shards are read once, when they are indexed; after that, images are read from where they lie in the tar, in any order.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jestbench.batch import DataError
from jestbench.data.sources.shard_index import Damaged, ShardIndex, image_key, text_of
from jestbench.data.sources.source import Shard, Source, file_shard, needs

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "jp2", "avif")
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""What gzip, bzip2, xz and zstd files begin with."""
MAX_IMAGE = 2**28
"""Bytes of an encoded image; larger members are not read."""
MAX_TEXT = 2**24
"""Bytes of a text or JSON member; larger ones are not read."""


@dataclass(frozen=True)
class WebDataset(Source):
    """Local WebDataset shards, drawn from at random like any indexed data.

    A split is a brace pattern (``/data/{00000..00331}.tar``), a glob, a folder, one file, or several of these
    in a tuple or joined by ``::``.

    Attributes:
        images: endings of image members; the first that a sample has is taken.
        caption: member that holds the caption: ``txt``, or a field of a JSON member: ``json.caption``.
        lines: each line of a text member is a caption of its own.
        allow_missing: leave out shards that a brace pattern names and that are not there.
    """

    images: tuple[str, ...] = IMAGES
    caption: str = "txt"
    lines: bool = False
    allow_missing: bool = False
    label: ClassVar[str] = "webdataset"
    wanted: ClassVar[str] = "shards ('/data/{00000..00331}.tar')"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.caption or not self.images:
            raise ValueError("webdataset.caption and webdataset.images name the members to read; they cannot be empty")

    @property
    def reading(self) -> str:
        """Which members are read."""
        return f"{self.images}/{self.caption}/{self.lines}"

    def shards(self, split: str) -> list[Shard]:
        """The split's shards, in the order of their pattern."""
        named = [path for pattern in self.where(split) for part in pattern.split("::") for path in _expand(part)]
        missing = [path for path in named if not path.is_file()]
        if missing and not (self.allow_missing and len(missing) < len(named)):
            raise DataError(
                f"webdataset.{split}: {len(missing)} of {len(named)} shards are missing, the first is {missing[0]}: "
                "mend the pattern, or set webdataset.allow_missing = True"
            )
        found = [file_shard(path) for path in named if path.is_file()]
        if len({shard.path for shard in found}) < len(found):
            raise DataError(f"webdataset.{split}: a shard is named twice; its pairs would be drawn twice as often")
        return found

    def index(self, shard: Shard, verified: int | None) -> ShardIndex:
        """Read a shard once; what is damaged is counted and left out."""
        index, seen = ShardIndex(), set[str]()
        members = _Members(Path(shard.path))
        try:
            for name, sample in _samples(members, index):
                try:
                    if name in seen:
                        raise Damaged("duplicate key")
                    seen.add(name)
                    self._add(sample, index, verified)
                except Damaged as damaged:
                    index.damage[damaged.reason] += 1
        finally:
            members.close()
        if members.damage:
            index.damage[members.damage] += 1
        return index

    def _add(self, sample: dict[str, _Member], index: ShardIndex, verified: int | None) -> None:
        ending = next((ending for ending in self.images if ending in sample), None)
        if ending is None:
            raise Damaged("no image")
        member, _, path = self.caption.partition(".")
        if member not in sample:
            raise Damaged("no caption")
        captions = self._captions(sample[member].content, path)
        image = sample[ending]
        index.add(image.offset, len(image.content), image_key(image.content, verified), captions)

    def _captions(self, content: bytes, path: str) -> list[str]:
        if not path:
            text = text_of(content)
            return text.splitlines() if self.lines else [text]
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            raise Damaged("caption is not UTF-8" if isinstance(error, UnicodeError) else "broken JSON") from None
        for step in path.split("."):
            found = found.get(step) if isinstance(found, dict) else None
        several = found if isinstance(found, list) else [found]
        return [text_of(caption) for caption in several] or [text_of(None)]


@dataclass(frozen=True)
class _Member:
    offset: int
    content: bytes


class _Members:
    """Files of a tar, one after another, up to where it breaks; then ``damage`` says how."""

    def __init__(self, path: Path) -> None:
        self.path, self.damage = path, ""
        self._file = path.open("rb")
        start = self._file.read(6)
        if (
            start[:2] == b"\x1f\x8b"
            or start[:3] == b"BZh"
            or start == b"\xfd7zXZ\0"
            or start[:4] == b"\x28\xb5\x2f\xfd"
        ):
            self._file.close()
            raise DataError(f"{path} is compressed, so nothing in it can be read at random: unpack it (gunzip) first")
        self._file.seek(0)

    def close(self) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[tuple[str, int, bytes | None]]:
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                    if not member.isreg() or member.issparse():
                        continue
                    limit = MAX_IMAGE if member.name.lower().endswith(IMAGES) else MAX_TEXT
                    self._file.seek(member.offset_data)
                    content = None if member.size > limit else self._file.read(member.size)
                    if content is not None and len(content) < member.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield member.name, member.offset_data, content
                # tarfile takes a broken header for the end.
                self._file.seek(tar.offset)
                end = self._file.read(512)
                if end.strip(b"\0"):
                    self.damage = "broken tar"
                elif not end:
                    self.damage = "truncated tar"
        except (tarfile.TarError, EOFError, OverflowError, ValueError):
            empty = self.path.stat().st_size == 0
            self.damage = "empty shard" if empty else "truncated tar" if self._tell() else "broken tar"

    def _tell(self) -> bool:
        self._file.seek(257)
        return self._file.read(5) == b"ustar"


def _samples(members: _Members, index: ShardIndex) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Runs of members with one name; what is too large, or there twice, is counted and left out."""
    name, sample = "", dict[str, _Member]()
    for path, offset, content in members:
        folder, _, file = path.rpartition("/")
        stem, _, ending = file.partition(".")
        if not stem or not ending:
            continue
        here = f"{folder}/{stem}"
        if here != name and sample:
            yield name, sample
            sample = {}
        name, ending = here, ending.lower()
        if ending in sample:
            index.damage["duplicate key"] += 1
        elif content is None:
            index.damage["member too large"] += 1
        else:
            sample[ending] = _Member(offset, content)
    # The run in which a tar breaks off may lack members: what is missing is counted like anywhere.
    if sample:
        yield name, sample


def _expand(pattern: str) -> list[Path]:
    """Files of a brace pattern, a glob or a folder."""
    if "{" in pattern:
        braceexpand: Any = needs(lambda: __import__("braceexpand").braceexpand, "webdataset")
        try:
            return [path for part in braceexpand(pattern) for path in _expand(part)]
        except ValueError as error:  # unbalanced
            raise DataError(f"the pattern {pattern!r} cannot be expanded: {error}") from error
    if pattern.startswith(("http:", "https:", "s3:", "gs:", "hf:", "pipe:")):
        raise DataError(f"{pattern}: an indexed source reads at random from a disk: fetch the shards, or stream them")
    path = Path(pattern).expanduser()
    if path.is_dir():
        return sorted(path.glob("*.tar")) or [path / "*.tar"]
    if any(mark in pattern for mark in "*?["):
        base = Path(path.anchor) if path.is_absolute() else Path()
        return sorted(base.glob(str(path.relative_to(path.anchor)))) or [path]
    return [path]
