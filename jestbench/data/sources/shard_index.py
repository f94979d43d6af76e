"""The index of a data set, made by one reading and cached: each image's location, key and captions, and the damage.

A *shard index* (one ``.npz``) is bound to path, size and time of one file; a *table* (a folder of memory-mapped
arrays) joins the indexes of a split, with captions normalised. Both are written atomically.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jestbench import disk
from jestbench.batch import DataError
from jestbench.data.captions import Captions
from jestbench.data.damage import Damaged
from jestbench.data.decode import decode, probe
from jestbench.data.file_pairs import Texts, text_keys
from jestbench.data.sources.columns import KEY, Beside, Came, short_names

VERSION = 7
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

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        texts = Texts.of([caption for captions in self.captions for caption in captions])
        paths, uids = Texts.of(self.paths), Texts.of(self.uids)
        with disk.whole(path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                place=np.array([self.offset, self.size, self.key], dtype=np.int64),
                count=np.array([len(captions) for captions in self.captions], dtype=np.int64),
                utf8=texts.utf8,
                end=texts.end_M,
                path_utf8=paths.utf8,
                path_end=paths.end_M,
                values=np.array(self.values, dtype=np.float64).reshape(len(self.key), -1 if self.key else 0),
                uid_utf8=uids.utf8,
                uid_end=uids.end_M,
                damage=np.frombuffer(json.dumps([self.damage, self.examples]).encode(), dtype=np.uint8),
            )

    @classmethod
    def load(cls, path: Path) -> ShardIndex:
        """Read it."""
        with np.load(path) as held:
            texts, ends = list(Texts(held["utf8"], held["end"])), np.cumsum(held["count"]).tolist()
            offset, size, key = held["place"].tolist()
            captions = [texts[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
            paths = list(Texts(held["path_utf8"], held["path_end"]))
            values, uids = (
                [tuple(row) for row in held["values"].tolist()],
                list(Texts(held["uid_utf8"], held["uid_end"])),
            )
            damage, examples = json.loads(held["damage"].tobytes())
        return cls(offset, size, key, captions, paths, values, uids, Counter(damage), examples)

    @staticmethod
    def came(path: Path, count: int) -> Came:
        """What a stored index holds beside images and captions: ``count`` numbers an image, and uids."""
        with np.load(path) as held:
            values = held["values"].reshape(held["place"].shape[1], count)
            return Came(values, list(Texts(held["uid_utf8"], held["uid_end"])))


@dataclass(frozen=True, eq=False)
class SplitTable:
    """A split as it lies in the cache.

    Attributes:
        shards: paths of the shards, or of the images where they are files of their own.
        shard_N, offset_N, size_N: where each image lies.
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

    shards: Sequence[str]
    shard_N: npt.NDArray[np.int32]
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

        try:
            meta = json.loads((folder / "table.json").read_text(encoding="utf-8"))
            numbers = {name: array(name) for name in ("shard_N", "offset_N", "size_N", "image_key_N")}
            texts = Texts(array("utf8"), array("end_M"))
            shards = meta["shards"] or Texts(array("path_utf8"), array("path_end"))
            return cls(
                shards,
                **numbers,
                captions=texts,
                text_key_M=array("text_key_M"),
                first_N=array("first_N"),
                damage=meta["damage"],
                examples=meta["examples"],
                cut=meta["cut"],
                fingerprint=meta["fingerprint"],
                columns={name: array(f"column_{number}_N") for number, name in enumerate(meta["columns"])},
                uids=Texts(array("uid_utf8"), array("uid_end")) if meta["uids"] else Texts.of([]),
                beside=meta["beside"],
            )
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"the index {folder} is damaged ({error}): remove that folder and start again") from error


@dataclass
class _Gathered:
    """The images of a split as they are joined, an entry an image (``texts``: a caption)."""

    places: list[tuple[int, int, int, int]] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    values: list[tuple[float, ...]] = field(default_factory=list)
    uids: list[str] = field(default_factory=list)
    lost: ShardIndex = field(default_factory=ShardIndex)
    cut: int = 0

    def add(self, number: int, shard: str, index: ShardIndex, captions: Captions, beside: Beside) -> None:
        """The images of a shard that are in the split; what is left out is counted in ``lost``."""
        self.lost.damage += index.damage
        self.lost.examples = index.examples | self.lost.examples
        own_NC = np.array(index.values, dtype=np.float64).reshape(len(index.key), beside.own)
        came = beside.rows(Came(own_NC, index.uids))
        for i in np.flatnonzero(came.inside_N).tolist():
            with self.lost.leaving_out(index.paths[i] if index.paths else f"{Path(shard).name}, image {i}"):
                row, uid = came.at(i)
                raw = index.captions[i]
                usable = captions.usable(raw)
                self.cut += sum(len(caption) > captions.max_characters for caption in raw)
                if not usable:
                    raise Damaged("empty caption")
                at = len(self.paths) if index.paths else number
                self.places.append((at, index.offset[i], index.size[i], index.key[i]))
                self.first.append(len(self.texts))
                self.texts += usable
                self.paths += index.paths[i : i + 1]
                self.values.append(row)
                self.uids.append(uid)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a table, by name."""
        place = np.array(self.places, dtype=np.int64).reshape(-1, 4).T
        found: dict[str, npt.NDArray[Any]] = {
            "shard_N": place[0].astype(np.int32),
            "offset_N": place[1].copy(),
            "size_N": place[2].copy(),
            "image_key_N": place[3].copy(),
            "first_N": np.array(self.first, dtype=np.int64),
            "text_key_M": text_keys(self.texts),
        }
        packed = {"": self.texts, "path_": self.paths, "uid_": self.uids if any(self.uids) else []}
        for name, texts in packed.items():
            held = Texts.of(texts)
            found |= {f"{name}utf8": held.utf8, f"{name}end{'' if name else '_M'}": held.end_M}
        return found


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
    beside, gathered = beside or Beside(), _Gathered()
    for number, index in enumerate(indexes):
        gathered.add(number, shards[number], index, captions, beside)
    arrays, count = gathered.arrays(), len(gathered.values)
    columns = np.array(gathered.values, dtype=np.float64).reshape(count, -1 if count else 0).T
    arrays |= {f"column_{number}_N": column.copy() for number, column in enumerate(columns)}
    content = [arrays[name].tobytes() for name in ("image_key_N", "text_key_M", "first_N")]
    content += [f"{name}\0".encode() + column.tobytes() for name, column in zip(beside.kept, columns, strict=False)]
    meta = {
        "shards": [] if gathered.paths else list(shards),
        "damage": dict(gathered.lost.damage),
        "examples": gathered.lost.examples,
        "columns": [*beside.kept][: len(columns)],
        "beside": beside.facts,
        "uids": len(arrays["uid_end"]) > 0,
        "cut": gathered.cut,
        "fingerprint": disk.digest(b"\0".join(content)),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with disk.whole(folder) as work:
        work.mkdir()
        for name, content_of in arrays.items():
            np.save(work / f"{name}.npy", content_of)
        disk.write_json(work / "table.json", meta)


def joined_tables(tables: Sequence[SplitTable]) -> tuple[Texts, Any, Any, Any]:
    """Captions, their keys, each image's first caption (``None``: one each) and image keys of several tables."""
    if len(tables) == 1:
        captions, keys, first = tables[0].captions, tables[0].text_key_M, tables[0].first_N
        images = tables[0].image_key_N
    else:
        ends, firsts, bytes_before, texts_before = [], [], 0, 0
        for table in tables:
            ends.append(table.captions.end_M + bytes_before)
            firsts.append(table.first_N + texts_before)
            bytes_before += len(table.captions.utf8)
            texts_before += len(table.captions)
        captions = Texts(np.concatenate([table.captions.utf8 for table in tables]), np.concatenate(ends))
        keys = np.concatenate([table.text_key_M for table in tables])
        first, images = np.concatenate(firsts), np.concatenate([table.image_key_N for table in tables])
    return captions, keys, first if len(captions) > len(first) else None, images


def joined_columns(tables: Sequence[SplitTable]) -> dict[str, Any]:
    """The columns that all of several tables have."""
    if len(tables) == 1:
        return tables[0].columns
    common = [name for name in tables[0].columns if all(name in table.columns for table in tables)]
    return {name: np.concatenate([table.columns[name] for table in tables]) for name in common}


def check_columns(tables: Sequence[SplitTable], names: Sequence[str], binding: str) -> None:
    """Refuse a column that no image of any table has.

    Raises:
        DataError: with what was found in its place.
    """
    for name, short in zip(names, short_names(names, binding), strict=True):
        if not any(short in table.columns for table in tables):
            found = next((said for table in tables if (said := table.examples.get(f"no value of {short}"))), "")
            raise DataError(f"{binding} names {name!r}, of which no pair has a number: {found}")
