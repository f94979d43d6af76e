"""The index of a data set, made by one reading and cached: each image's location, key and captions, and the damage.

A *shard index* (one ``.npz``) is bound to path, size and time of one file; a *table* (a folder of memory-mapped
arrays) joins the indexes of a split, with captions normalised. Both are written atomically.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jestbench import disk
from jestbench.batch import DataError, common
from jestbench.data.captions import Captions
from jestbench.data.damage import Damaged
from jestbench.data.decode import decode, probe
from jestbench.data.file_pairs import Texts, text_keys
from jestbench.data.sources.columns import KEY, Beside, Came, refuse_missing, short_names

VERSION = 8
"""Version of the index, incremented when the same data give a different index."""


def digest(*parts: object) -> str:
    """A name in the cache."""
    return disk.digest(json.dumps(parts, default=str), 10)


def image_key(content: bytes, verified: int | None) -> int:
    """The content key of an image, after a check of its header or a full decoding.

    Args:
        content: the encoded image.
        verified: pixels at which to decode the image; ``None`` checks the header alone.

    Raises:
        DamagedImage: the image is unusable.
    """
    if verified is None:
        probe(content)
    else:
        decode(content, verified)
    return disk.content_key(content)


@dataclass
class ShardIndex:
    """The pairs of one shard, captions not normalised yet.

    Attributes:
        offset: offset of each image in bytes (in a table of rows: its row).
        size: size of each image in bytes.
        key: content hash of each encoded image.
        captions: captions of each image, unchanged.
        paths: path of each image, where the images are files of their own.
        values: numbers that came with each image, as many for each as are asked for; NaN where there is none.
        uids: of each image, where they are asked for.
        damage: pairs left out, reason → count.
        examples: of the damage, reason → the first example.
    """

    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    key: list[int] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    values: list[tuple[float, ...]] = field(default_factory=list)
    uids: list[str] = field(default_factory=list)
    damage: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        offset: int,
        size: int,
        key: int,
        captions: list[str],
        path: str | None = None,
        values: tuple[float, ...] = (),
        uid: str | None = None,
    ) -> None:
        """One more image; its uid may be ``KEY``, the image's content key."""
        self.offset.append(offset)
        self.size.append(size)
        self.key.append(key)
        self.captions.append(captions)
        self.values.append(values)
        if path is not None:
            self.paths.append(path)
        if uid is not None:
            self.uids.append(disk.key_text(key) if uid == KEY else uid)

    @contextmanager
    def leaving_out(self, where: str) -> Iterator[None]:
        """Count, and suppress, a :class:`Damaged` that is raised within, at this place."""
        try:
            yield
        except Damaged as damaged:
            self.damage[damaged.reason] += 1
            if damaged.reason not in self.examples:
                damaged.where = ": ".join(part for part in (where, damaged.where) if part)
                self.examples[damaged.reason] = damaged.example

    def arrays(self) -> dict[str, Any]:
        """Its columns by name, as the files of an index and of a table hold them."""
        count_N = [len(captions) for captions in self.captions]
        value_NC = np.array(self.values, dtype=np.float64).reshape(len(self.key), -1 if self.key else 0)
        return {
            "offset_N": np.array(self.offset, dtype=np.int64),
            "size_N": np.array(self.size, dtype=np.int64),
            "image_key_N": np.array(self.key, dtype=np.int64),
            "first_N": np.cumsum([0, *count_N], dtype=np.int64)[:-1],
            "value_CN": np.ascontiguousarray(value_NC.T),
            **_packed("caption", [caption for captions in self.captions for caption in captions]),
            **_packed("path", self.paths),
            **_packed("uid", self.uids),
        }

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        damage = np.frombuffer(json.dumps([self.damage, self.examples]).encode(), dtype=np.uint8)
        with disk.whole(path) as partial, partial.open("wb") as file:
            np.savez(file, damage=damage, **self.arrays())

    @classmethod
    def load(cls, path: Path) -> ShardIndex:
        """Read it."""
        with np.load(path) as held:
            offset, size, key, first = (held[f"{name}_N"].tolist() for name in ("offset", "size", "image_key", "first"))
            texts, paths, uids = (list(_unpacked(held.__getitem__, name)) for name in ("caption", "path", "uid"))
            values = [tuple(row) for row in held["value_CN"].T.tolist()]
            damage, examples = json.loads(held["damage"].tobytes())
        captions = [texts[start:end] for start, end in pairwise([*first, len(texts)])]
        return cls(offset, size, key, captions, paths, values, uids, Counter(damage), examples)

    @staticmethod
    def came(path: Path, count: int) -> Came:
        """What a stored index holds beside images and captions: ``count`` numbers an image, and uids."""
        with np.load(path) as held:
            value_NC = held["value_CN"].T.reshape(len(held["offset_N"]), count)
            return Came(value_NC, list(_unpacked(held.__getitem__, "uid")))


def _packed(name: str, texts: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The two arrays of texts, by name."""
    held = Texts.of(texts)
    return {f"{name}_utf8": held.utf8, f"{name}_end_M": held.end_M}


def _unpacked(array: Callable[[str], Any], name: str) -> Texts:
    """Texts from their two arrays, given by name."""
    return Texts(array(f"{name}_utf8"), array(f"{name}_end_M"))


def _behind(parts: Sequence[Texts]) -> Texts:
    """The texts of several arrays, one behind the other."""
    before = np.cumsum([0, *(len(part.utf8) for part in parts)])
    ends = [part.end_M + start for part, start in zip(parts, before[:-1], strict=True)]
    return Texts(np.concatenate([part.utf8 for part in parts]), np.concatenate(ends))


@dataclass(frozen=True, eq=False)
class SplitTable:
    """A split as it lies in the cache.

    Attributes:
        paths: of the shards, or of the images where they are files of their own.
        path_N, offset_N, size_N: where each image lies.
        image_key_N: content hash of each encoded image.
        captions: M captions, normalised.
        text_key_M: their content hashes.
        first_N: position of each image's first caption.
        damage: left out when it was indexed, reason → count.
        examples: of that damage, reason → the first example.
        cut: captions that were cut.
        fingerprint: hash of all images, captions and columns, wherever they lie.
        columns: numbers that came with the images, name → float64, one for each image.
        uids: of the images, where they were asked for.
        beside: facts about columns and uids, for the summary.
    """

    paths: Texts
    path_N: npt.NDArray[np.int32]
    offset_N: npt.NDArray[np.int64]
    size_N: npt.NDArray[np.int64]
    image_key_N: npt.NDArray[np.int64]
    captions: Texts
    text_key_M: npt.NDArray[np.int64]
    first_N: npt.NDArray[np.int64]
    damage: dict[str, int]
    examples: dict[str, str]
    cut: int
    fingerprint: str
    columns: dict[str, npt.NDArray[np.float64]]
    uids: Texts
    beside: dict[str, Any]

    def __len__(self) -> int:
        return len(self.image_key_N)

    @property
    def damaged(self) -> int:
        """Pairs left out."""
        return sum(self.damage.values())

    @classmethod
    def open(cls, folder: Path) -> SplitTable:
        """Map a table into memory.

        Raises:
            DataError: the table is not whole.
        """

        def array(name: str) -> Any:
            return np.load(folder / f"{name}.npy", mmap_mode="r")

        names = ("path_N", "offset_N", "size_N", "image_key_N", "text_key_M", "first_N")
        try:
            meta = json.loads((folder / "table.json").read_text(encoding="utf-8"))
            meta["columns"] = dict(zip(meta["columns"], array("value_CN"), strict=True))
            paths, captions, uids = (_unpacked(array, name) for name in ("path", "caption", "uid"))
            return cls(paths, captions=captions, uids=uids, **{name: array(name) for name in names}, **meta)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"the index {folder} is damaged ({error}): remove that folder and start again") from error

    @classmethod
    def joined(cls, tables: Sequence[SplitTable]) -> SplitTable:
        """Several tables as one, the images of each behind those of the table before it, with the columns of all.

        What was left out, and the facts, are those of the first table.
        """
        if len(tables) == 1:
            return tables[0]

        def each(name: str, held: str | None = None) -> Any:
            """An array of all tables, of which positions in what another array holds move behind those before."""
            before = np.cumsum([0, *(len(getattr(table, held)) if held else 0 for table in tables[:-1])]).tolist()
            return np.concatenate([getattr(table, name) + start for table, start in zip(tables, before, strict=True)])

        uids = [table.uids for table in tables]
        if any(map(len, uids)):
            uids = [
                held if len(held) else Texts.of([""] * len(table)) for held, table in zip(uids, tables, strict=True)
            ]
        columns = [table.columns for table in tables]
        return replace(
            tables[0],
            paths=_behind([table.paths for table in tables]),
            path_N=each("path_N", "paths"),
            offset_N=each("offset_N"),
            size_N=each("size_N"),
            image_key_N=each("image_key_N"),
            captions=_behind([table.captions for table in tables]),
            text_key_M=each("text_key_M"),
            first_N=each("first_N", "captions"),
            columns={name: np.concatenate([own[name] for own in columns]) for name in common(columns)},
            uids=_behind(uids),
        )


def write_table(
    folder: Path,
    shards: Sequence[str],
    indexes: Iterable[ShardIndex],
    captions: Captions,
    beside: Beside | None = None,
) -> None:
    """Join the indexes of a split's shards into a folder, which appears once it is complete.

    Args:
        folder: folder to make.
        shards: paths of the shards.
        indexes: index of each shard, in the same order.
        captions: how captions are normalised.
        beside: what came with the images, and which of them are in the split; ``None``: nothing, and all.
    """
    beside, joined, path, cut = beside or Beside(), ShardIndex(), list[int](), 0
    for number, index in enumerate(indexes):
        before = len(joined.key)
        cut += _take(joined, index, Path(shards[number]).name, captions, beside)
        path += range(before, len(joined.key)) if index.paths else [number] * (len(joined.key) - before)
    joined.paths = joined.paths or list(shards)
    if not any(joined.uids):
        joined.uids = []
    arrays = joined.arrays()
    arrays |= {
        "path_N": np.array(path, dtype=np.int32),
        "text_key_M": text_keys([caption for captions in joined.captions for caption in captions]),
    }
    columns = dict(zip(beside.kept, arrays["value_CN"], strict=False))
    content = [arrays[name].tobytes() for name in ("image_key_N", "text_key_M", "first_N")]
    content += [f"{name}\0".encode() + column.tobytes() for name, column in columns.items()]
    meta = {
        "damage": dict(joined.damage),
        "examples": joined.examples,
        "columns": [*columns],
        "beside": beside.facts,
        "cut": cut,
        "fingerprint": disk.digest(b"\0".join(content)),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with disk.whole(folder) as work:
        work.mkdir()
        for name, held in arrays.items():
            np.save(work / f"{name}.npy", held)
        disk.write_json(work / "table.json", meta)


def _take(joined: ShardIndex, index: ShardIndex, shard: str, captions: Captions, beside: Beside) -> int:
    """Add the images of a shard that are in the split, captions normalised; the number of captions that were cut."""
    joined.damage += index.damage
    joined.examples = index.examples | joined.examples
    cut, own_NC = 0, np.array(index.values, dtype=np.float64).reshape(len(index.key), beside.own)
    came = Came(own_NC, index.uids)
    value_NC = beside.numbers(came)
    for i in np.flatnonzero(beside.inside(came)).tolist():
        path, uid = (index.paths[i] if index.paths else None), (index.uids[i] if index.uids else "")
        with joined.leaving_out(path or f"{shard}, image {i}"):
            values = tuple(value_NC[i].tolist())
            refuse_missing(beside.kept, values, uid)
            usable = captions.usable(index.captions[i])
            cut += sum(len(caption) > captions.max_characters for caption in index.captions[i])
            if not usable:
                raise Damaged("empty caption")
            joined.add(index.offset[i], index.size[i], index.key[i], usable, path, values, uid)
    return cut


def check_columns(tables: Sequence[SplitTable], names: Sequence[str], binding: str) -> None:
    """Refuse a column that no image of any table has.

    Raises:
        DataError: with what was found in its place.
    """
    for name, short in zip(names, short_names(names, binding), strict=True):
        if not any(short in table.columns for table in tables):
            found = next((said for table in tables if (said := table.examples.get(f"no value of {short}"))), "")
            raise DataError(f"{binding} names {name!r}, of which no pair has a number: {found}")
