"""Data sets of icons that are prepared once, into a folder: what the dozen sets and all of Iconify share.

One process prepares at a time, checksums tell whether the folder is whole, and the splits' captions are exchanged
where noise is asked for.
"""

from __future__ import annotations

import json
import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from jestbench.batch import DataError
from jestbench.data.icons.packages import IconSet
from jestbench.data.noise import exchange_captions
from jestbench.data.pairs import ArrayPairs, Pairs
from jestbench.disk import cache_root, digest
from jestbench.model.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)

CHECKED_BYTES = 2**25
"""Files up to this size are compared with their checksum whenever the data are opened."""


@dataclass(frozen=True)
class Table:
    """What is known of the prepared images before any is read.

    Attributes:
        key_N: int64, content hash of each image.
        hands_N: how many hands drew its caption.
        curated_N: bool, whether it is in a curated split.
        rows: split → bool ``[N]``, which images are in it.
        captions: split → one caption an image, before any is exchanged.
    """

    key_N: npt.NDArray[np.int64]
    hands_N: npt.NDArray[np.integer[Any]]
    curated_N: npt.NDArray[np.bool_]
    rows: Callable[[str], npt.NDArray[np.bool_]]
    captions: Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Chosen:
    """The pairs of a split, but for their images: see :class:`jestbench.data.pairs.ArrayPairs`.

    Attributes:
        clean: whether all the splits that are joined are.
    """

    name: str
    fingerprint: str
    row_N: npt.NDArray[np.int64]
    captions: Sequence[str]
    tokenizer: Tokenizer
    image_key_N: npt.NDArray[np.int64]
    marks: Mapping[str, npt.NDArray[np.bool_]]
    clean: bool

    def in_array(self, path: Path, ahead: bool = True) -> ArrayPairs:
        """These pairs, with images that lie in an array file."""
        return ArrayPairs(
            name=self.name,
            fingerprint=self.fingerprint,
            images_NHWC=np.load(path, mmap_mode="r"),
            row_N=self.row_N,
            captions=self.captions,
            tokenizer=self.tokenizer,
            image_key_N=self.image_key_N,
            marks=self.marks,
            ahead=ahead,
        )


@dataclass(frozen=True)
class PreparedIcons(ABC):
    """Icons and their names, with as many wrong captions as asked for.

    Attributes:
        noise: share of the pairs in splits that are not ``clean`` whose captions are exchanged, in [0, 1).
        noise_seed: decides which, and for what.
        min_hands: leave out of these splits the captions that fewer hands drew.
        length: L, tokens a caption is cut or padded to.
        vocab_size: of the tokenizer, at most.
        cache_dir: where to prepare; by default the folder that the environment variable
            ``JESTBENCH_CACHE`` names, else the user's cache folder.
        recipe: a dataclass; what is prepared.
        label: what a configuration, the command and the folder call the data set.
        splits: their names.
        clean: those in which every caption is right.
        code_version: counted up when the preparation makes something else of the same recipe.
        kept: what a preparation that failed says of its beginnings.
    """

    noise: float = 0.0
    noise_seed: int = 0
    min_hands: int = 1
    length: int = 16
    vocab_size: int = 4096
    cache_dir: str | None = None
    label: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    clean: ClassVar[tuple[str, ...]]
    code_version: ClassVar[int]
    kept: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise < 1.0:
            raise ValueError(f"{self.label}.noise is a share of the pairs in [0, 1), got {self.noise}")
        if self.noise_seed < 0:
            raise ValueError(f"{self.label}.noise_seed must not be negative, got {self.noise_seed}")
        if self.length < 2:
            raise ValueError(
                f"{self.label}.length: a text needs at least 2 tokens (one and the end token), got {self.length}"
            )

    # What each data set says

    @property
    @abstractmethod
    def recipe(self) -> Any:
        """What is prepared."""

    @abstractmethod
    def make(self, folder: Path, tarballs: Path) -> None:
        """Fetch, render and split into a folder that is not there yet; it appears when it is complete."""

    @abstractmethod
    def table(self) -> Table:
        """What is known of the prepared images."""

    @abstractmethod
    def pairs(self, chosen: Chosen) -> Pairs:
        """These pairs, with their images."""

    # What is the same for all of them

    @property
    def folder(self) -> Path:
        """Where the prepared data lie; its name tells everything that they depend on."""
        root = self.cache_dir or cache_root()
        text = json.dumps([self.code_version, self.vocab_size, asdict(self.recipe)], sort_keys=True)
        return Path(root).expanduser() / f"{self.label}-{digest(text, 6)}"

    def is_prepared(self) -> bool:
        """Whether the prepared data are there, every file of its size, the small ones with their checksums."""
        try:
            files = self.manifest()["files"]
        except DataError:
            return False
        return all(is_complete(self.folder / name, **expected) for name, expected in files.items())

    def damaged(self) -> list[str]:
        """The files that do not have the checksum that the manifest gives; reads all of them.

        Raises:
            DataError: there is no manifest.
        """
        files = self.manifest()["files"]
        return [
            name
            for name, expected in files.items()
            if not (self.folder / name).is_file() or file_hash(self.folder / name) != expected["blake2b"]
        ]

    def prepare(self, thorough: bool = False) -> None:
        """Fetch and render what is missing; of several processes that start at once, one does it.

        Args:
            thorough: read everything that is there, and make it anew where it is damaged.

        Raises:
            DataError: it cannot be had; the message says what to do.
        """
        if self.is_prepared() and not thorough:
            return
        folder = self.folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(folder.with_name(f"{self.label}.lock")):
                if self.is_prepared() and not (thorough and self.damaged()):
                    return
                if folder.exists():
                    _LOG.warning("%s is damaged: preparing it anew", folder)
                    shutil.rmtree(folder)
                self.make(folder, folder.with_name("iconify"))
        except OSError as error:
            raise DataError(
                f"the icons cannot be prepared in {folder}: {error}; "
                f"free space there, or name another folder in JESTBENCH_CACHE{self.kept}"
            ) from error

    def manifest(self) -> dict[str, Any]:
        """How the prepared data were made, how many there are in each split, and their checksums.

        Raises:
            DataError: they are not there.
        """
        try:
            manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: cut off, or not JSON at all
            raise DataError(
                f"the data set {self.label} is not prepared in {self.folder.parent}: "
                f"run python tools/prepare.py {self.label}"
            ) from None
        return manifest

    def split(self, name: str) -> Pairs:
        """The split of that name, or several joined by ``+``, as in ``pool+curated``; no pair comes twice.

        Raises:
            DataError: there is no such split, or the data are not prepared or damaged.
        """
        parts = self.known(name)
        if not self.is_prepared():
            raise DataError(f"{self.folder} is missing or damaged: run python tools/prepare.py {self.label}")
        table = self.table()
        row_N, captions, noisy_N = self._choose(parts, table)
        tokenizer = Tokenizer.load(self.folder / "tokenizer.json", self.length)
        key_N = table.key_N[row_N]
        content = [key_N.tobytes(), "\0".join(captions).encode(), tokenizer.identity.encode()]
        fingerprint = digest(b"\0".join(content))
        marks = {"noisy": noisy_N, "curated": table.curated_N[row_N]}
        clean = all(part in self.clean for part in parts)
        return self.pairs(Chosen(f"{self.label}/{name}", fingerprint, row_N, captions, tokenizer, key_N, marks, clean))

    @classmethod
    def known(cls, name: str) -> list[str]:
        """The splits that are joined.

        Raises:
            DataError: there is no such split.
        """
        parts = name.split("+")
        if unknown := [part for part in parts if part not in cls.splits]:
            raise DataError(f"{cls.label} has no split {unknown[0]!r}: there are {', '.join(cls.splits)}")
        return parts

    def _choose(
        self, parts: Sequence[str], table: Table
    ) -> tuple[npt.NDArray[np.int64], list[str], npt.NDArray[np.bool_]]:
        """Rows of the pairs, their captions, and which of these were exchanged."""
        rows: list[int] = []
        captions: list[str] = []
        noisy: list[bool] = []
        taken = np.zeros(len(table.key_N), dtype=np.bool_)
        for part in parts:
            clean = part in self.clean
            some = np.flatnonzero(table.rows(part) & ((table.hands_N >= self.min_hands) | clean))
            if not len(some):
                raise DataError(
                    f"{self.label}.min_hands = {self.min_hands} leaves nothing of {part}: choose a lower one"
                )
            texts = table.captions(part)
            exchanged, wrong = [texts[row] for row in some], np.zeros(len(some), dtype=np.bool_)
            if self.noise and not clean:
                # One stream a split: the pool's noise stays the same whatever else is asked for.
                exchanged, wrong = exchange_captions(exchanged, self.noise, [self.noise_seed, self.splits.index(part)])
            new = np.flatnonzero(~taken[some])
            taken[some] = True
            rows += some[new].tolist()
            captions += [exchanged[i] for i in new]
            noisy += wrong[new].tolist()
        return np.array(rows, dtype=np.int64), captions, np.array(noisy, dtype=np.bool_)


def write_images(path: Path, raw: Path, rows: Sequence[int], pixels: int) -> None:
    """Copy these images of a file of pixels into an array file.

    Written, not memory-mapped: a full disk is then an error with a message, and not a killed process.
    """
    images = np.memmap(raw, dtype=np.uint8, mode="r").reshape(-1, pixels, pixels, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *images.shape[1:])}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), 4096):
            file.write(images[rows[start : start + 4096]].tobytes())


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock between processes; who has to wait for it says so."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _LOG.warning("another process is preparing icons in %s: waiting for it", path.parent)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def licences(sets: Iterable[tuple[IconSet, Mapping[str, Any]]], count: Mapping[str, int]) -> list[dict[str, Any]]:
    """Who made each set, and under which licence.

    Args:
        sets: each with its ``info.json``.
        count: of its icons that were kept.
    """
    return [
        {
            "set": icon_set.name,
            "version": icon_set.version,
            "title": info.get("name"),
            "author": info.get("author", {}).get("name"),
            "url": info.get("author", {}).get("url"),
            "licence": info.get("license", {}).get("title"),
            "spdx": info.get("license", {}).get("spdx"),
            "licence_url": info.get("license", {}).get("url"),
            "count": count.get(icon_set.name, 0),
        }
        for icon_set, info in sets
    ]


def is_complete(path: Path, bytes: int, blake2b: str) -> bool:
    """Whether a file has the size that the manifest gives and, where reading it costs nothing, the checksum.

    Shards are not read through each time: a pair that is damaged is found when it is decoded.
    """
    if not path.is_file() or path.stat().st_size != bytes:
        return False
    return bytes > CHECKED_BYTES or path.suffix == ".tar" or file_hash(path) == blake2b


def file_hash(path: Path) -> str:
    """Checksum of a file (BLAKE2b, 16 bytes)."""
    with path.open("rb") as file:
        return digest(iter(lambda: file.read(1 << 20), b""), 16)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file on one line."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=None), encoding="utf-8")
