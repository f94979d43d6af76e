"""All of Iconify: 380,000 drawings with names.

The package ``@iconify/json`` holds every icon set that Iconify knows. It is fetched, rendered at 64 px and split
once (:mod:`jestbench.data.icon_shards`), into the user's cache folder:

* ``<part>-00000.tar`` …: WebDataset shards in a shuffled order. A sample is a ``png`` and a ``json`` (caption, name,
  style, set, hand, licence, palette, group);
* ``images-32.npy``: uint8 ``[N, 32, 32, 3]``, the same images at half the size, memory-mapped;
* ``index.npz``, ``shards.json``, ``captions.txt``, ``names.txt``: where each sample lies, and what is known of it;
* ``tokenizer.json``, ``licences.json``, ``manifest.json`` (counts, what was left out and why, checksums).

**Splits.** All versions of one drawing are one group (:mod:`jestbench.data.icon_groups`); all sets of an author are
one hand. A drawing lies in one part:

* ``eval``: 1,000 captions of emoji, each with 2 held-out drawings. Always clean.
* ``transfer``: a held-out hand (OpenMoji), one drawing of each caption that ``curated`` shows. Always clean.
* ``curated``: all other emoji. Clean as a split of its own; also in the pool.
* ``broad_eval``, ``broad_curated``: the like for icons of all sorts: 1,000 captions that many hands drew, 2 drawings
  each, and a small clean sample of some 3,000 pairs. Not in the pool.
* ``holdout``: 5 % of the drawings that are left, as noisy as the pool (for RHO-LOSS's irreducible-loss model).
* ``other``: the rest.

The split ``pool`` is all there is to train on: ``curated`` and ``other`` together, as noisy as asked for. Versions of
a tested drawing, and whatever looks like one whoever drew it, are in no split that is trained on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jestbench.batch import Batch, DataError
from jestbench.data.files import ByteRanges, FilePairs, Texts, text_keys
from jestbench.data.icon_shards import CLEAN, PLACES, POOL, Recipe, prepare_folder
from jestbench.data.noise import exchange_captions
from jestbench.data.pairs import Dataset, Pairs
from jestbench.data.prepared import file_hash, is_complete, one_at_a_time
from jestbench.data.tokenizer import Tokenizer
from jestbench.paths import cache_root

_LOG = logging.getLogger(__name__)

CODE_VERSION = 1
"""Counted up when the preparation makes something else of the same recipe."""

SPLITS = ("pool", *PLACES)


@dataclass(frozen=True)
class Iconify:
    """All icons and their names, with as many wrong captions as asked for.

    Attributes:
        noise: share of the pairs in ``pool``, ``other`` and ``holdout`` whose captions are exchanged, in [0, 1).
        noise_seed: decides which, and for what.
        min_hands: leave out of these the captions that fewer hands drew.
        captions: what these splits are captioned with: ``name``, the icon's whole name as its maker wrote it ("home
            outline sharp", natural noise), or ``plain``, without words of style. All other splits are plain.
        pixels: 32: read from an array, nothing is decoded; 64: PNGs are decoded when they are asked for.
        length: L, tokens a caption is cut or padded to.
        vocab_size: of the tokenizer, at most.
        cache_dir: where to prepare; by default the folder that the environment variable
            ``JESTBENCH_CACHE`` names, else the user's cache folder.
        recipe: what is prepared.
    """

    noise: float = 0.0
    noise_seed: int = 0
    min_hands: int = 1
    captions: Literal["name", "plain"] = "name"
    pixels: Literal[32, 64] = 32
    length: int = 16
    vocab_size: int = 8192
    cache_dir: str | None = None
    recipe: Recipe = field(default=Recipe(), repr=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise < 1.0:
            raise ValueError(f"iconify.noise is a share of the pairs in [0, 1), got {self.noise}")
        if self.noise_seed < 0:
            raise ValueError(f"iconify.noise_seed must not be negative, got {self.noise_seed}")
        if self.captions not in ("name", "plain"):
            raise ValueError(f"iconify.captions must be 'name' or 'plain', got {self.captions!r}")
        if self.pixels not in (32, 64):
            raise ValueError(f"iconify.pixels must be 32 or 64, got {self.pixels}")
        if self.min_hands < 1:
            raise ValueError(f"iconify.min_hands must be at least 1, got {self.min_hands}")
        if self.vocab_size < 256:
            raise ValueError(f"iconify.vocab_size must be at least 256, got {self.vocab_size}")
        if self.length < 2:
            raise ValueError(
                f"iconify.length: a text needs at least 2 tokens (one and the end token), got {self.length}"
            )

    @property
    def folder(self) -> Path:
        """Where the prepared data lie; its name tells everything that they depend on."""
        root = self.cache_dir or cache_root()
        text = json.dumps([CODE_VERSION, self.vocab_size, asdict(self.recipe)], sort_keys=True)
        return Path(root).expanduser() / f"iconify-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"

    def is_prepared(self) -> bool:
        """Whether the prepared data are there, every file of its size, the small ones with their checksums.

        Shards are not read through each time: a pair that is damaged is found when it is decoded.
        """
        try:
            files = self.manifest()["files"]
        except DataError:
            return False
        return all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == expected["bytes"]
            if name.endswith(".tar")
            else is_complete(self.folder / name, **expected)
            for name, expected in files.items()
        )

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

        A preparation that was killed goes on where it was.

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
            with one_at_a_time(folder.with_name("iconify.lock")):
                if self.is_prepared() and not (thorough and self.damaged()):
                    return
                if folder.exists():
                    _LOG.warning("%s is damaged: preparing it anew", folder)
                    shutil.rmtree(folder)
                prepare_folder(folder, self.recipe, self.vocab_size, tarballs=folder.with_name("iconify"))
        except OSError as error:
            raise DataError(
                f"the icons cannot be prepared in {folder}: {error}; "
                "free space there, or name another folder in JESTBENCH_CACHE; what is rendered is kept"
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
                f"iconify is not prepared in {self.folder.parent}: run python tools/prepare.py iconify"
            ) from None
        return manifest

    def split(self, name: str) -> Pairs:
        """The split of that name, or several joined by ``+``, as in ``pool+broad_curated``; no pair comes twice.

        Raises:
            DataError: there is no such split, or the data are not prepared or damaged.
        """
        parts = name.split("+")
        if unknown := [part for part in parts if part not in SPLITS]:
            raise DataError(f"iconify has no split {unknown[0]!r}: there are {', '.join(SPLITS)}")
        if not self.is_prepared():
            raise DataError(f"{self.folder} is missing or damaged: run python tools/prepare.py iconify")
        with np.load(self.folder / "index.npz") as file:
            index = {column: file[column] for column in file.files if column != "look"}
        row_N, captions, noisy_N = self._chosen(parts, index)
        marks = {"noisy": noisy_N, "curated": np.isin(index["split"][row_N], _numbers("curated", "broad_curated"))}
        tokenizer = Tokenizer.load(self.folder / "tokenizer.json", self.length)
        key_N = index["half_key" if self.pixels == 32 else "key"][row_N]
        content = [key_N.tobytes(), "\0".join(captions).encode(), tokenizer.identity.encode()]
        fingerprint = hashlib.blake2b(b"\0".join(content), digest_size=8).hexdigest()
        texts = Texts.of(captions)
        if self.pixels == 32:
            images = self.folder / "images-32.npy"
            return StoredPairs(f"iconify/{name}", fingerprint, images, row_N, texts, tokenizer, key_N, marks)
        shards = json.loads((self.folder / "shards.json").read_text(encoding="utf-8"))
        paths = [str(self.folder / shard) for shard in shards]
        source = ByteRanges(paths, *(index[column][row_N] for column in ("shard", "offset", "size")))
        exact = all(part in CLEAN for part in parts)
        return FilePairs(
            f"iconify/{name}", fingerprint, source, texts, tokenizer, key_N, self.recipe.pixels, marks, exact=exact
        )

    def _chosen(
        self, parts: list[str], index: dict[str, npt.NDArray[Any]]
    ) -> tuple[npt.NDArray[np.int64], list[str], npt.NDArray[np.bool_]]:
        """Rows of the pairs, their captions, and which of these were exchanged."""
        plain, names = (_lines(self.folder / f"{column}.txt") for column in ("captions", "names"))
        rows: list[int] = []
        captions: list[str] = []
        noisy: list[bool] = []
        taken = np.zeros(len(plain), dtype=np.bool_)
        for part in parts:
            clean = part in CLEAN
            wanted = np.isin(index["split"], _numbers(*(POOL if part == "pool" else (part,))))
            wanted &= (index["hands"] >= self.min_hands) | clean
            some = np.flatnonzero(wanted)
            if not len(some):
                raise DataError(f"iconify.min_hands = {self.min_hands} leaves nothing of {part}: choose a lower one")
            texts = plain if clean or self.captions == "plain" else names
            # One stream a split: the pool's noise stays the same whatever else is asked for.
            seed = [self.noise_seed, SPLITS.index(part)]
            exchanged, wrong = [texts[row] for row in some], np.zeros(len(some), dtype=np.bool_)
            if self.noise and not clean:
                exchanged, wrong = exchange_captions(exchanged, self.noise, seed)
            new = np.flatnonzero(~taken[some])
            taken[some] = True
            rows += some[new].tolist()
            captions += [exchanged[i] for i in new]
            noisy += wrong[new].tolist()
        return np.array(rows, dtype=np.int64), captions, np.array(noisy, dtype=np.bool_)

    def stand_in(self) -> Dataset:
        """Synthetic pairs of the same shapes, that need no download."""
        return _StandIn(self.length, self.pixels)


@dataclass(frozen=True, eq=False)
class StoredPairs:
    """A split whose images lie decoded in a file that is mapped into memory; texts are tokenized when asked for.

    Tokenizing hundreds of thousands of names would hold up the start of every run; those of a super-batch take a
    millisecond.

    Attributes:
        name: of the split, for messages.
        fingerprint: hash of everything that the pairs depend on (content, captions, noise).
        path: of a ``.npy`` file, uint8 ``[M, H, W, 3]``; opened when it is first read, in each process.
        row_N: row that holds the image of each pair.
        captions: one caption a pair, none empty.
        tokenizer: makes the token ids.
        image_key_N: int64 content hash of each image.
        marks: diagnostics, name → bool ``[N]``.
        text_key_N: int64 content hash of each caption.
        decoded: reading is all that a pair takes: no worker processes are started for it.
    """

    decoded: ClassVar[bool] = True
    name: str
    fingerprint: str
    path: Path
    row_N: npt.NDArray[np.int64]
    captions: Sequence[str]
    tokenizer: Tokenizer
    image_key_N: npt.NDArray[np.int64]
    marks: Mapping[str, npt.NDArray[np.bool_]]
    text_key_N: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text_key_N", torch.from_numpy(text_keys(self.captions)))

    def __len__(self) -> int:
        return len(self.row_N)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "images_NHWC"}

    @cached_property
    def images_NHWC(self) -> npt.NDArray[np.uint8]:
        """All images of the file."""
        images: npt.NDArray[np.uint8] = np.load(self.path, mmap_mode="r")
        return images

    def batch(self, index_B: Tensor) -> Batch:
        """The pairs at these positions, read and ready for a model."""
        index = index_B.numpy()
        captions = tuple(self.captions[i] for i in index.tolist())
        images = torch.from_numpy(np.ascontiguousarray(self.images_NHWC[self.row_N[index]]))
        return Batch(
            images_BCHW=images.permute(0, 3, 1, 2),
            token_ids={self.tokenizer.identity: self.tokenizer.encode(captions)},
            image_key_B=torch.from_numpy(self.image_key_N[index]),
            text_key_B=self.text_key_N[index_B],
            marks={name: torch.from_numpy(mark[index]) for name, mark in self.marks.items()},
            captions=captions,
        )


@dataclass(frozen=True)
class _StandIn:
    """Synthetic pairs under the names of these splits."""

    length: int
    pixels: int

    def prepare(self) -> None:
        """Nothing to fetch."""

    def is_prepared(self) -> bool:
        """Always."""
        return True

    def split(self, name: str) -> Pairs:
        """The synthetic split that is the most like it."""
        from jestbench.data.synthetic import Synthetic

        if unknown := [part for part in name.split("+") if part not in SPLITS]:
            raise DataError(f"iconify has no split {unknown[0]!r}: there are {', '.join(SPLITS)}")
        like = {"broad_curated": "curated", "transfer": "eval", "broad_eval": "eval", "other": "pool"}
        parts = dict.fromkeys(like.get(part, part) for part in name.split("+"))
        return Synthetic(length=self.length, image_size=self.pixels).stand_in().split("+".join(parts))

    def stand_in(self) -> Dataset:
        """Itself."""
        return replace(self)


def _numbers(*places: str) -> list[int]:
    return [PLACES.index(place) for place in places]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")
