"""The one reader of WebDataset shards: members of a tar → samples → an image and its captions, or a named damage.

A sample is a run of members with one name up to the first dot: ``000123.jpg``, ``000123.txt``, ``000123.json``. An
index, a stream and an evaluation set read tars in the same way; they differ in how they use pairs and damage.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import math
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from jestbench.batch import DataError
from jestbench.data.captions import caption_of, field_at, text_of, texts_of
from jestbench.data.damage import Damaged
from jestbench.data.sources.columns import KEY, number_of
from jestbench.data.sources.other_kinds import kind_of
from jestbench.data.sources.patterns import globbed, is_url, local_path
from jestbench.data.sources.source import needs

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "jp2", "avif")
"""Endings of image members."""
TEXTS = ("caption", "text", "json", "cls")
"""Endings of members that may hold the caption in place of ``txt``, the likely ones first."""
UNPACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
"""First bytes of compressed files → function that opens them."""
COMPRESSED = (*UNPACKERS, b"\x28\xb5\x2f\xfd")
"""First bytes of gzip, bzip2, xz and zstd files."""
MAX_IMAGE = 2**28
"""Bytes of an encoded image; larger members are not read."""
MAX_TEXT = 2**24
"""Bytes of a text or JSON member; larger ones are not read."""
MAX_SAMPLE = 2**29
"""Bytes of all members of a sample; a larger one is not held."""
SORT = "write the members of a sample one behind the other: tar --sort=name, webdataset.ShardWriter"
"""What to do where the members of a pair do not stand together."""
BLOCK = 512
"""Bytes of a tar's header, and the multiple to which members are padded."""


class Seekable(Protocol):
    """The part of a file's interface that reading a tar needs."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102
    def seek(self, position: int, /) -> Any: ...  # noqa: D102
    def tell(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class TarMember:
    """A file in a tar.

    Attributes:
        offset: where it begins, in bytes.
        size: in bytes.
        content: empty where it was passed over.
        too_large: to be read, which is damage where it is asked for.
    """

    offset: int
    size: int
    content: bytes
    too_large: bool = False

    def whole(self) -> TarMember:
        """The file itself.

        Raises:
            Damaged: it is too large.
        """
        if self.too_large:
            raise Damaged("member too large", f"{self.size:,} bytes")
        return self


Sample = dict[str, TarMember]
"""The members of one name, by ending in lower case."""


@dataclass(frozen=True)
class Pair:
    """What a sample holds.

    Attributes:
        image: its image.
        captions: unchanged: at least one, which may be empty.
        values: numbers that came with it, as many as ``MemberRules.columns``; NaN where there is none.
        uid: empty where there is none, or none is asked for.
        hints: of a number that is missing, by its short name: what was found in its place.
        name: of the sample.
    """

    image: TarMember
    captions: list[str]
    values: tuple[float, ...] = ()
    uid: str = ""
    hints: Mapping[str, str] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class MemberRules:
    """Which members of a sample are read.

    Attributes:
        images, caption, lines: as ``ShardOptions`` describes them.
        columns: members or fields that hold numbers, named as a caption is.
        uid: member or field that holds the uid; empty, or ``KEY``: none is read.
    """

    images: tuple[str, ...] = IMAGES
    caption: str = "txt"
    lines: bool = False
    columns: tuple[str, ...] = ()
    uid: str = ""

    def __post_init__(self) -> None:
        # A list (as gin gives it) would have no hash; endings of samples are in lower case.
        object.__setattr__(self, "images", tuple(ending.lower() for ending in self.images))
        object.__setattr__(self, "columns", tuple(self.columns))

    def pairs(self, tar: Seekable) -> Iterator[Pair | Damaged]:
        """What each sample of a tar holds; or its damage."""
        for name, sample in samples(tar):
            try:
                if isinstance(sample, Damaged):
                    raise sample
                image, captions = self.image(sample), self.captions(sample)
                if not self.columns and not self.uid:
                    yield Pair(image, captions, name=name)
                else:
                    yield self._with_numbers(name, sample, image, captions)
            except Damaged as damaged:
                yield damaged.at(name.lstrip("/"))

    def image(self, sample: Sample) -> TarMember:
        """The image of a sample.

        Raises:
            Damaged: there is none, or it is too large.
        """
        for ending in self.images:
            if ending in sample:
                return sample[ending].whole()
        raise Damaged("no image", *self._found(sample, self.images))

    def captions(self, sample: Sample) -> list[str]:
        """The unchanged captions of a sample: at least one, which may be empty.

        Raises:
            Damaged: the sample has no caption, or its caption cannot be read.
        """
        found = self._content(sample, self.caption)
        if isinstance(found, bytes):
            return [caption_of(line) for line in text_of(found).split("\n")] if self.lines else [caption_of(found)]
        return texts_of(found)

    def _with_numbers(self, name: str, sample: Sample, image: TarMember, captions: list[str]) -> Pair:
        values, hints, uid = [], dict[str, str](), ""
        for column in self.columns:
            value, said = math.nan, ""
            try:
                found = self._content(sample, column)
                value, said = number_of(found), f"{column} holds {str(found)[:80]!r}, no number"
            except Damaged as damaged:
                said = damaged.said
            values.append(value)
            if math.isnan(value):
                hints[column.rpartition(".")[2]] = said
        if self.uid not in ("", KEY):
            with suppress(Damaged):
                found = self._content(sample, self.uid)
                uid = found.decode("utf-8", "replace").strip() if isinstance(found, bytes) else str(found)
        return Pair(image, captions, tuple(values), uid, hints, name)

    def _content(self, sample: Sample, name: str) -> Any:
        """The bytes of the member of that name, or the value of the JSON member or field, never null.

        Raises:
            Damaged: there is none, or it is too large.
        """
        steps = name.split(".")
        ways = ((".".join(steps[:n]).lower(), ".".join(steps[n:])) for n in range(len(steps), 0, -1))
        member, path = next((way for way in ways if way[0] in sample), ("", ""))
        if not member:
            raise Damaged("no caption", *self._found(sample, (steps[0].lower(),)))
        if not path and member.rpartition(".")[2] != "json":
            return sample[member].whole().content
        held = self._parsed(sample[member].whole())
        found = field_at(held, path) if path else held
        if found is None:
            fields = sorted(held) if isinstance(held, dict) else []
            said = f"its {member} has the fields {', '.join(fields[:20])}" if fields else f"its {member} has no fields"
            raise Damaged("no caption", said)
        return found

    @staticmethod
    def _parsed(member: TarMember) -> Any:
        """What a JSON member holds; ``Damaged`` where it is no JSON."""
        try:
            return json.loads(member.content)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            raise Damaged("caption is not UTF-8" if isinstance(error, UnicodeError) else "broken JSON") from None

    def _found(self, sample: Sample, wanted: tuple[str, ...]) -> tuple[str, str]:
        """The endings of a sample that lacks a member, and the likely cause."""
        endings = list(sample)
        said = f"its members end in {', '.join(endings[:8])}{' …' if len(endings) > 8 else ''}"
        dotted = [ending for ending in endings if ending.rpartition(".")[2] in wanted and "." in ending]
        if dotted:
            return said, f"a name ends at its first dot: name the ending, {dotted[0]!r}, or write names without dots"
        if wanted is self.images:
            named = [ending for ending in endings if ending not in TEXTS]
            return said, f"name another ending: images = ({named[0]!r},)" if named else ""
        if (named := [ending for ending in endings if ending in TEXTS]) and wanted == ("txt",):
            names = ""
            with suppress(Damaged):
                fields = self._parsed(sample["json"]) if named[0] == "json" else None
                names = ", ".join([*fields][:20]) if isinstance(fields, dict) else ""
            return said, f"name the field: caption = 'json.NAME', of {names}" if names else f"caption = {named[0]!r}"
        return said, ""


def samples(tar: Seekable, unread: tuple[str, ...] = ()) -> Iterator[tuple[str, Sample | Damaged]]:
    """The samples of a tar by name; and the damage of those left out as too large or duplicate, and of the tar.

    Args:
        tar: tar to read.
        unread: endings of members whose content is skipped.
    """
    name, sample, seen, size = "", Sample(), dict[str, frozenset[str]](), 0

    def ended() -> tuple[str, Sample | Damaged]:
        endings = frozenset(sample)
        before = seen.setdefault(name, endings)
        if size > MAX_SAMPLE:
            return name, Damaged("sample too large", f"its members have more than {MAX_SAMPLE:,} bytes")
        if before is endings:
            return name, sample
        if before & endings:
            return name, Damaged("duplicate key", "two samples of a shard have one name")
        return name, Damaged(
            "members of a pair do not stand together", f"{_listing(before)} … {_listing(endings)}", SORT
        )

    for path, member in members(tar, unread):
        if isinstance(member, Damaged):
            yield path, member
            continue
        folder, _, file = path.rpartition("/")
        stem, _, ending = file.partition(".")
        if not stem or not ending:
            continue
        here = f"{folder}/{stem}"
        if here != name and sample:
            yield ended()
            sample = {}
        size = size + len(member.content) if here == name else len(member.content)
        name, ending = here, ending.lower()
        if ending in sample:
            yield name, Damaged("duplicate key", f"two members {ending}")
        else:
            sample[ending] = member if size <= MAX_SAMPLE else replace(member, content=b"")
    # The sample in which a tar breaks off may lack members, which is counted like in any other sample.
    if sample:
        yield ended()


def _listing(endings: Iterable[str]) -> str:
    return ", ".join(sorted(endings)[:4])


def members(tar: Seekable, unread: tuple[str, ...] = ()) -> Iterator[tuple[str, TarMember | Damaged]]:
    """The path and file of each member of a tar, up to where it breaks off; then the damage of the tar, if any.

    Args:
        tar: tar to read.
        unread: endings of members whose content is skipped.
    """
    start, damage = b"", ""
    try:
        start = tar.read(BLOCK)
        tar.seek(0)
        with tarfile.open(fileobj=_Headers(tar), mode="r:") as opened:  # type: ignore[call-overload]
            for member in opened:
                opened.members = []  # tarfile would keep every header
                if not member.isreg() or member.issparse():
                    continue
                path = member.name.lower()
                if member.size > (MAX_IMAGE if path.endswith(IMAGES) else MAX_TEXT):
                    yield member.name, TarMember(member.offset_data, member.size, b"", too_large=True)
                    continue
                tar.seek(member.offset_data)
                content = b"" if path.endswith(unread) else tar.read(member.size)
                if len(content) < member.size and not path.endswith(unread):
                    raise tarfile.ReadError("unexpected end of data")
                yield member.name, TarMember(member.offset_data, member.size, content)
            # tarfile takes a broken header for the end.
            tar.seek(opened.offset)
            end = tar.read(BLOCK)
            damage = "broken tar" if end.strip(b"\0") else "" if end else "truncated tar"
    except (tarfile.TarError, EOFError, OverflowError, ValueError):
        damage = "truncated tar" if start[257:262] == b"ustar" else "broken tar" if start else "empty shard"
    if damage:
        yield "", Damaged(damage, "" if start[257:262] == b"ustar" else kind_of(start))


class _Headers:
    """A tar as ``tarfile`` reads its headers: a long name or comment of gigabytes is refused, not read."""

    def __init__(self, tar: Seekable) -> None:
        self._tar, self.seek, self.tell = tar, tar.seek, tar.tell

    def read(self, size: int, /) -> bytes:
        if size > MAX_TEXT:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._tar.read(size)


class Forward:
    """A pipe as a file that seeks forward, and back by a few blocks: as much as ``tarfile`` needs in a tar.

    Args:
        stream: any object with ``read``.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._end, self._back, self._kept = 0, 0, b""  # the stream's position, our distance before it, the last bytes

    @classmethod
    def unpacked(cls, stream: Any) -> Forward:
        """The tar that a stream holds, compressed or not.

        Raises:
            tarfile.ReadError: the stream breaks off within its first bytes.
        """
        plain = cls(stream)
        start = plain.read(max(map(len, COMPRESSED)))
        plain.seek(0)
        return next((cls(opened(plain)) for magic, opened in UNPACKERS.items() if start.startswith(magic)), plain)

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes; fewer at the end.

        Raises:
            tarfile.ReadError: the stream breaks off.
            DataError: its command is silent for too long.
        """
        again = self._kept[len(self._kept) - self._back :][: size if size >= 0 else None] if self._back else b""
        self._back -= len(again)
        if len(again) == size:
            return again
        try:
            fresh: bytes = self._stream.read(size - len(again) if size >= 0 else -1)
            while fresh and (left := size - len(again) - len(fresh)) > 0 and (more := self._stream.read(left)):
                fresh += more
        except DataError:
            raise
        except Exception as error:  # whatever a network, a pipe's command or a decompressor raises
            raise tarfile.ReadError(f"{type(error).__name__}: {error}") from error
        self._end += len(fresh)
        self._kept = (self._kept + fresh[-4 * BLOCK :])[-4 * BLOCK :]
        return again + fresh if again else fresh

    def tell(self) -> int:
        """Where the next byte lies."""
        return self._end - self._back

    def seek(self, position: int, /) -> int:
        """Go forward to any place, or back to one of the last bytes read.

        Raises:
            tarfile.ReadError: the place lies too far back.
        """
        if position < self._end - len(self._kept):
            raise tarfile.ReadError("a stream cannot be read twice")
        self._back = max(0, self._end - position)
        while self.tell() < position and self.read(min(position - self.tell(), 2**20)):
            pass
        return self.tell()


def paths_of(pattern: str) -> list[str]:
    """Files and URLs of a brace pattern, a glob, a folder of tars, or several of these joined by ``::``.

    In a URL or a ``pipe:`` command only braces are expanded. Files that do not exist are included.

    Raises:
        DataError: webdataset, which expands braces, is not installed; the braces are unbalanced; a folder holds no tar.
    """
    parts = pattern.split("::")
    if "{" in pattern:
        expand: Any = needs(lambda: __import__("webdataset.shardlists", fromlist=["shardlists"]), "webdataset")
        try:
            parts = expand.expand_urls(pattern)
        except ValueError as error:  # unbalanced
            raise DataError(f"the pattern {pattern!r} cannot be expanded: {error}") from error
    return [path for part in parts for path in ([part] if is_url(part) else map(str, _local(part)))]


def _local(pattern: str) -> list[Path]:
    path = local_path(pattern)
    if path.is_dir():
        if found := sorted(path.glob("*.tar")):
            return found
        deeper = f"; for those that lie deeper name '{path}/**/*.tar'" if any(path.rglob("*.tar")) else ""
        endings = ", ".join(sorted({"".join(one.suffixes[-2:]) for one in path.iterdir() if one.is_file()} - {""})[:8])
        raise DataError(f"the folder {path} holds no .tar{f' (its files end in {endings})' if endings else ''}{deeper}")
    return globbed(pattern) or [path]
