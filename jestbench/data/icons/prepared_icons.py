"""Base class of the data sets of icons, which are prepared once, into a folder.

One process prepares at a time, checksums show whether the folder is whole, and captions of noisy splits are
exchanged. Each process keeps checksums and opened splits for reuse while the files stay the same.
"""

from __future__ import annotations

import atexit
import json
import logging
import shutil
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from jestbench.batch import DataError
from jestbench.data.caption_noise import exchange_captions
from jestbench.data.icons.icon_folder import prepare_folder
from jestbench.data.icons.icon_web import Flags, Index, long_tail, partly_right, repeated
from jestbench.data.icons.recipe import Recipe
from jestbench.data.pairs import ArrayPairs, Pairs
from jestbench.disk import cache_root, digest, file_digest, user_path
from jestbench.model.tokenizer import LEAST_VOCABULARY, Tokenizer
from jestbench.parallel.locks import locked

_LOG = logging.getLogger(__name__)

CODE_VERSION = 3
"""Version of the preparation, incremented when the same recipe gives different data."""

CHECKED_BYTES = 2**25
"""Files up to this size are compared with their checksum whenever the data are opened."""


@dataclass(frozen=True)
class PreparedIcons(ABC):
    """Icons and their names, with a given share of wrong captions.

    Attributes:
        noise: share of the pairs in noisy splits whose captions are exchanged, in [0, 1).
        noise_seed: decides which captions are exchanged with which.
        min_hands: leave out of noisy splits the captions that fewer hands drew.
        length: L, tokens a caption is cut or padded to.
        vocab_size: of the tokenizer, at most.
        cache_dir: where to prepare; by default the folder that the environment variable
            ``JESTBENCH_CACHE`` names, else the user's cache folder.
        recipe: what is prepared.
        label: name of the data set in configurations, the command and the folder.
        of_noisy: parameters that change nothing in a clean split.
    """

    noise: float = 0.0
    noise_seed: int = 0
    min_hands: int = 1
    length: int = 16
    vocab_size: int = 4096
    cache_dir: str | None = None
    label: ClassVar[str]
    of_noisy: ClassVar[frozenset[str]] = frozenset({"noise", "noise_seed", "min_hands"})

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise < 1.0:
            raise ValueError(f"{self.label}.noise is a share of the pairs in [0, 1), got {self.noise}")
        if self.noise_seed < 0:
            raise ValueError(f"{self.label}.noise_seed must not be negative, got {self.noise_seed}")
        if self.length < 2:
            raise ValueError(
                f"{self.label}.length: a text needs at least 2 tokens (one and the end token), got {self.length}"
            )
        if self.vocab_size < LEAST_VOCABULARY:
            raise ValueError(f"{self.label}.vocab_size must be at least {LEAST_VOCABULARY}, got {self.vocab_size}")

    # What differs between the data sets

    # Without a type these are no parameters; Icons makes parameters of them, and describes them.
    curated = 0
    tail = partial = repeats = 0.0

    @property
    @abstractmethod
    def recipe(self) -> Recipe:
        """What is prepared."""

    def pairs(self, row_N: npt.NDArray[np.int64], clean: bool, **common: Any) -> Pairs:
        """Pairs with the images of these rows.

        Args:
            row_N: of the prepared images.
            clean: whether every caption is right.
            common: what all sorts of pairs are made of: name, fingerprint, captions, tokenizer, keys and marks.
        """
        images_NHWC = np.load(self.folder / self.recipe.images, mmap_mode="r")
        return ArrayPairs(images_NHWC=images_NHWC, row_N=row_N, **common)

    def key_column(self) -> str:
        """The column of the index that holds the content hash of each image."""
        return "key"

    def caption_file(self, part: str) -> str:
        """The file that holds the captions of a split, before any is exchanged."""
        return "captions.txt"

    # What is the same for all of them

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(dict.fromkeys((*(() if "pool" in self.recipe.places else ("pool",)), *self.recipe.places)))

    @property
    def clean(self) -> tuple[str, ...]:
        """The splits in which every caption is right."""
        return (*self.recipe.tested, *self.recipe.curated)

    @property
    def folder(self) -> Path:
        """The folder of the prepared data; its name depends on everything that the data depend on."""
        name = f"{self.label}-{_digest(CODE_VERSION, self.vocab_size, self.recipe)}"
        return (user_path(self.cache_dir) if self.cache_dir else cache_root()) / name

    def index(self, *columns: str) -> tuple[npt.NDArray[Any], ...]:
        """Columns of the index, which holds each image's facts apart from its pixels."""
        with np.load(self.folder / "index.npz") as file:
            return tuple(file[column] for column in columns)

    def is_prepared(self) -> bool:
        """Whether the prepared data exist: every file with its recorded size, small files with their checksums, too."""
        try:
            files = self.manifest()["files"]
        except DataError:
            return False
        return all(is_complete(self.folder / name, **expected) for name, expected in files.items())

    def damaged(self) -> list[str]:
        """The files whose checksum differs from the manifest's; reads every file.

        Raises:
            DataError: there is no manifest.
        """
        files = self.manifest()["files"]
        return [
            name
            for name, expected in files.items()
            if not (self.folder / name).is_file() or file_digest(self.folder / name) != expected["blake2b"]
        ]

    def prepare(self, thorough: bool = False) -> None:
        """Fetch and render what is missing; of several processes that start at once, one does the work.

        Args:
            thorough: read all existing files, and prepare the data anew where one is damaged.

        Raises:
            DataError: the data cannot be prepared; the message gives the remedy.
        """
        if self.is_prepared() and not thorough:
            return
        folder = self.folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_name(f"{self.label}.lock"), "preparing icons"):
                if self.is_prepared() and not (thorough and self.damaged()):
                    return
                if folder.exists():
                    _LOG.warning("%s is damaged: preparing it anew", folder)
                    shutil.rmtree(folder)
                prepare_folder(folder, self.recipe, self.vocab_size, folder.with_name("iconify"))
        except OSError as error:
            raise DataError(
                f"the icons cannot be prepared in {folder}: {error}; "
                f"free space there, or name another folder in JESTBENCH_CACHE; what is rendered is kept"
            ) from error

    def manifest(self) -> dict[str, Any]:
        """The manifest: how the data were prepared, counts for each split, and checksums.

        Raises:
            DataError: the data are not prepared.
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
        self.known(name)
        if not self.is_prepared():
            raise DataError(f"{self.folder} is missing or damaged: run python tools/prepare.py {self.label}")
        return _opened(self, name, self.folder, (self.folder / "manifest.json").stat().st_mtime_ns)

    def known(self, name: str) -> list[str]:
        """Names of the splits that a name joins by ``+``.

        Raises:
            DataError: there is no such split.
        """
        parts = name.split("+")
        if unknown := [part for part in parts if part not in self.splits]:
            raise DataError(f"{self.label} has no split {unknown[0]!r}: there are {', '.join(self.splits)}")
        return parts

    def opened(self, name: str) -> Pairs:
        """The split of that name of prepared data."""
        parts, places = self.known(name), self.recipe.places
        place_N, hands_N, all_key_N = self.index("split", "hands", self.key_column())
        rows: list[int] = []
        captions: list[str] = []
        marks: dict[str, list[bool]] = {}
        taken = np.zeros(len(place_N), dtype=np.bool_)
        for part in parts:
            clean = part in self.clean
            joined = self.recipe.pool if part == "pool" else (part,)
            in_part = np.isin(place_N, [places.index(place) for place in joined])
            some = np.flatnonzero(in_part & ((hands_N >= self.min_hands) | clean))
            if not len(some):
                raise DataError(
                    f"{self.label}.min_hands = {self.min_hands} leaves nothing of {part}: choose a lower one"
                )
            if part in self.recipe.curated and self.curated:
                some = _first(some, self.curated, f"{self.label}.curated", part)
            texts = (self.folder / self.caption_file(part)).read_text(encoding="utf-8").split("\n")
            kept, texts_N, marks_N = self._worsened([texts[row] for row in some], part)
            new = np.flatnonzero(~taken[some[kept]])
            taken[some[kept]] = True
            rows += some[kept][new].tolist()
            captions += [texts_N[i] for i in new]
            for mark, mark_N in marks_N.items():
                marks.setdefault(mark, []).extend(mark_N[new].tolist())
        row_N = np.array(rows, dtype=np.int64)
        tokenizer = Tokenizer.load(self.folder / "tokenizer.json", self.length)
        key_N = all_key_N[row_N]
        content = [key_N.tobytes(), "\0".join(captions).encode(), tokenizer.identity.encode()]
        fingerprint = digest(b"\0".join(content))
        curated_N = np.isin(place_N[row_N], [places.index(place) for place in self.recipe.curated])
        known = {mark: np.array(found, dtype=np.bool_) for mark, found in marks.items()}
        return self.pairs(
            row_N,
            clean=all(part in self.clean for part in parts),
            name=f"{self.label}/{name}",
            fingerprint=fingerprint,
            captions=captions,
            tokenizer=tokenizer,
            image_key_N=key_N,
            marks=known | {"curated": curated_N},
        )

    def _worsened(self, texts: list[str], part: str) -> tuple[Index, list[str], dict[str, Flags]]:
        """A part with its noise: positions of its pairs in ``texts``, a caption of each, and what is known of each.

        One random stream for each part and kind of noise: the pool's is the same whichever splits are joined to it.
        """
        noisy, seed = part not in self.clean, [self.noise_seed, self.splits.index(part)]
        kept = np.arange(len(texts))
        if noisy and self.tail:
            kept = long_tail(texts, self.tail, [*seed, 1])
        texts = [texts[i] for i in kept]
        marks = {"noisy": np.zeros(len(texts), dtype=np.bool_)}
        if noisy and self.noise:
            texts, marks["noisy"] = exchange_captions(texts, self.noise, seed)
        if self.partial:
            marks["partial"] = np.zeros(len(texts), dtype=np.bool_)
            if noisy:
                texts, marks["partial"] = partly_right(texts, ~marks["noisy"], self.partial, [*seed, 2])
        if self.repeats:
            drawn, again = np.arange(len(texts)), np.zeros(len(texts), dtype=np.bool_)
            if noisy:
                drawn, again = repeated(len(texts), self.repeats, [*seed, 3])
            kept, texts = kept[drawn], [texts[i] for i in drawn]
            marks = {mark: found[drawn] for mark, found in marks.items()} | {"repeated": again}
        return kept, texts, marks


def _first(some: Index, count: int, name: str, part: str) -> Index:
    """``count`` rows at random, always the same ones: a smaller number's are among a larger number's."""
    if count > len(some):
        raise DataError(f"{name} = {count}: {part} has {len(some)} pairs")
    return np.sort(np.random.default_rng(0).permutation(some)[:count])


@lru_cache
def _digest(code_version: int, vocab_size: int, recipe: Recipe) -> str:
    """A hash of everything that a prepared folder depends on."""
    text = json.dumps([code_version, vocab_size, asdict(recipe)], sort_keys=True)
    return digest(text, 6)


@lru_cache(maxsize=8)
def _opened(data: PreparedIcons, name: str, folder: Path, made_ns: int) -> Pairs:
    """A split of the folder made at ``made_ns``, opened once in each process."""
    return data.opened(name)


atexit.register(_opened.cache_clear)  # shards are closed while the interpreter still can


def is_complete(path: Path, bytes: int, blake2b: str) -> bool:
    """Whether a file has the size that the manifest gives and, where reading it costs nothing, the checksum.

    Shards and large files are not hashed each time: a damaged pair is found when it is decoded.
    """
    if not path.is_file() or (status := path.stat()).st_size != bytes:
        return False
    return bytes > CHECKED_BYTES or path.suffix == ".tar" or _hash_of(path, bytes, status.st_mtime_ns) == blake2b


@lru_cache
def _hash_of(path: Path, size: int, mtime_ns: int) -> str:
    """Checksum of a file, read once while its size and time stay the same."""
    return file_digest(path)
