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

VERSION = 3
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
        damage: pairs left out, reason → count.
        examples: of the damage, reason → the first example.
    """

    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    key: list[int] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    damage: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, offset: int, size: int, key: int, captions: list[str], path: str | None = None) -> None:
        """One more image."""
        self.offset.append(offset)
        self.size.append(size)
        self.key.append(key)
        self.captions.append(captions)
        if path is not None:
            self.paths.append(path)

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
        paths = Texts.of(self.paths)
        with disk.whole(path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                place=np.array([self.offset, self.size, self.key], dtype=np.int64),
                count=np.array([len(captions) for captions in self.captions], dtype=np.int64),
                utf8=texts.utf8,
                end=texts.end_M,
                path_utf8=paths.utf8,
                path_end=paths.end_M,
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
            damage, examples = json.loads(held["damage"].tobytes())
        return cls(offset, size, key, captions, paths, Counter(damage), examples)


@dataclass(frozen=True, eq=False)
class Table:
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
        fingerprint: hash of all images and captions, wherever they lie.
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

    def __len__(self) -> int:
        return len(self.image_key_N)

    @property
    def damaged(self) -> int:
        """Pairs left out."""
        return sum(self.damage.values())

    @classmethod
    def open(cls, folder: Path) -> Table:
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
            )
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"the index {folder} is damaged ({error}): remove that folder and start again") from error


def write_table(folder: Path, shards: Sequence[str], indexes: Iterable[ShardIndex], captions: Captions) -> None:
    """Join the indexes of a split's shards into a folder, which appears once it is complete.

    Args:
        folder: folder to make.
        shards: paths of the shards.
        indexes: index of each shard, in the same order.
        captions: how captions are normalised.
    """
    places: list[tuple[int, int, int, int]] = []
    texts, first, paths, damage, cut = list[str](), list[int](), list[str](), Counter[str](), 0
    examples = dict[str, str]()
    for number, index in enumerate(indexes):
        damage += index.damage
        examples = index.examples | examples
        for i, raw in enumerate(index.captions):
            usable = captions.usable(raw)
            cut += sum(len(caption) > captions.max_characters for caption in raw)
            if not usable:
                damage["empty caption"] += 1
                spot = index.paths[i] if index.paths else f"{Path(shards[number]).name}, image {i}"
                examples.setdefault("empty caption", spot)
                continue
            first.append(len(texts))
            texts += usable
            places.append((len(paths) if index.paths else number, index.offset[i], index.size[i], index.key[i]))
            if index.paths:
                paths.append(index.paths[i])
    place = np.array(places, dtype=np.int64).reshape(-1, 4).T
    packed, packed_paths = Texts.of(texts), Texts.of(paths)
    arrays: dict[str, npt.NDArray[Any]] = {
        "shard_N": place[0].astype(np.int32),
        "offset_N": place[1].copy(),
        "size_N": place[2].copy(),
        "image_key_N": place[3].copy(),
        "first_N": np.array(first, dtype=np.int64),
        "text_key_M": text_keys(texts),
        "utf8": packed.utf8,
        "end_M": packed.end_M,
        "path_utf8": packed_paths.utf8,
        "path_end": packed_paths.end_M,
    }
    content = [arrays[name].tobytes() for name in ("image_key_N", "text_key_M", "first_N")]
    fingerprint = disk.digest(b"\0".join(content))
    meta = {
        "shards": [] if paths else list(shards),
        "damage": dict(damage),
        "examples": examples,
        "cut": cut,
        "fingerprint": fingerprint,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with disk.whole(folder) as work:
        work.mkdir()
        for name, values in arrays.items():
            np.save(work / f"{name}.npy", values)
        disk.write_json(work / "table.json", meta)
