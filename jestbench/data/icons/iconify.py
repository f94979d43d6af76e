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

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from jestbench.data.file_pairs import ByteRanges, FilePairs, Texts
from jestbench.data.icons.icon_shards import prepare_folder
from jestbench.data.icons.prepared_icons import Chosen, PreparedIcons, Table
from jestbench.data.icons.recipe import CLEAN, PLACES, POOL, Recipe
from jestbench.data.pairs import Dataset, Pairs

CODE_VERSION = 1
"""Counted up when the preparation makes something else of the same recipe."""

SPLITS = ("pool", *PLACES)


@dataclass(frozen=True)
class Iconify(PreparedIcons):
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

    vocab_size: int = 8192
    captions: Literal["name", "plain"] = "name"
    pixels: Literal[32, 64] = 32
    recipe: Recipe = field(default=Recipe(), repr=False)
    label: ClassVar[str] = "iconify"
    splits: ClassVar[tuple[str, ...]] = SPLITS
    clean: ClassVar[tuple[str, ...]] = CLEAN
    code_version: ClassVar[int] = CODE_VERSION
    kept: ClassVar[str] = "; what is rendered is kept"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.captions not in ("name", "plain"):
            raise ValueError(f"iconify.captions must be 'name' or 'plain', got {self.captions!r}")
        if self.pixels not in (32, 64):
            raise ValueError(f"iconify.pixels must be 32 or 64, got {self.pixels}")
        if self.min_hands < 1:
            raise ValueError(f"iconify.min_hands must be at least 1, got {self.min_hands}")
        if self.vocab_size < 256:
            raise ValueError(f"iconify.vocab_size must be at least 256, got {self.vocab_size}")

    def make(self, folder: Path, tarballs: Path) -> None:
        """Fetch, render and split; a preparation that was killed goes on where it was."""
        prepare_folder(folder, self.recipe, self.vocab_size, tarballs)

    def table(self) -> Table:
        """What is known of the prepared images."""
        place_N, hands_N, key_N = self._index("split", "hands", "half_key" if self.pixels == 32 else "key")
        plain, names = (_lines(self.folder / f"{column}.txt") for column in ("captions", "names"))
        return Table(
            key_N=key_N,
            hands_N=hands_N,
            curated_N=np.isin(place_N, _numbers("curated", "broad_curated")),
            rows=lambda part: np.isin(place_N, _numbers(*(POOL if part == "pool" else (part,)))),
            captions=lambda part: plain if part in CLEAN or self.captions == "plain" else names,
        )

    def pairs(self, chosen: Chosen) -> Pairs:
        """These pairs, with their images."""
        texts = Texts.of(chosen.captions)
        if self.pixels == 32:
            return replace(chosen, captions=texts).in_array(self.folder / "images-32.npy", ahead=False)
        shards = json.loads((self.folder / "shards.json").read_text(encoding="utf-8"))
        columns = (column[chosen.row_N] for column in self._index("shard", "offset", "size"))
        return FilePairs(
            name=chosen.name,
            fingerprint=chosen.fingerprint,
            source=ByteRanges([str(self.folder / shard) for shard in shards], *columns),
            captions=texts,
            tokenizer=chosen.tokenizer,
            image_key_N=chosen.image_key_N,
            image_size=self.recipe.pixels,
            marks=chosen.marks,
            exact=chosen.clean,
        )

    def _index(self, *columns: str) -> tuple[npt.NDArray[Any], ...]:
        with np.load(self.folder / "index.npz") as file:
            return tuple(file[column] for column in columns)

    def stand_in(self) -> Dataset:
        """Synthetic pairs of the same shapes, that need no download."""
        return _StandIn(self.length, self.pixels)


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

        like = {"broad_curated": "curated", "transfer": "eval", "broad_eval": "eval", "other": "pool"}
        parts = dict.fromkeys(like.get(part, part) for part in Iconify.known(name))
        return Synthetic(length=self.length, image_size=self.pixels).stand_in().split("+".join(parts))

    def stand_in(self) -> Dataset:
        """Itself."""
        return replace(self)


def _numbers(*places: str) -> list[int]:
    return [PLACES.index(place) for place in places]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")
