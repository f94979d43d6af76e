"""All of Iconify: 380,000 drawings with names.

The package ``@iconify/json`` holds every icon set that Iconify publishes. It is fetched, rendered at 64 px and split
once, into a folder of the user's cache: see :mod:`jestbench.data.icons.icon_folder`. The images lie there twice, in
shards at 64 px (a sample's JSON: caption, name, style, set, hand, licence, palette, group), and in an array at 32 px.

**Splits.** All versions of one drawing are one group (:mod:`jestbench.data.icons.icon_groups`); all sets of an author
are one hand. A drawing lies in one part:

* ``eval``: 1,000 captions of emoji, each with 2 held-out drawings. Always clean.
* ``transfer``: a held-out hand (OpenMoji), one drawing of each caption that ``curated`` shows. Always clean.
* ``curated``: all other emoji. Clean as a split of its own; also in the pool.
* ``broad_eval``, ``broad_curated``: the like for icons of all sorts: 1,000 captions that many hands drew, 2 drawings
  each, and a small clean sample of some 3,000 pairs. Not in the pool.
* ``holdout``: 5 % of the drawings that are left, as noisy as the pool (for RHO-LOSS's irreducible-loss model).
* ``other``: the rest.

The split ``pool`` is all the training data: ``curated`` and ``other`` together, with the noise that ``noise`` sets.
Versions of a tested drawing, and drawings by any hand that look like it, are in no split that is trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from jestbench.data.encoded_images import ByteRanges
from jestbench.data.file_pairs import FilePairs, Texts
from jestbench.data.icons.prepared_icons import PreparedIcons
from jestbench.data.icons.recipe import ICONIFY, Recipe
from jestbench.data.pairs import Dataset, Pairs
from jestbench.data.synthetic import Synthetic


@dataclass(frozen=True)
class Iconify(PreparedIcons):
    """All icons and their names, with a given share of wrong captions.

    Attributes:
        noise: share of the pairs in ``pool``, ``other`` and ``holdout`` whose captions are exchanged, in [0, 1).
        min_hands: leave out of these splits the captions that fewer hands drew.
        captions: what these splits are captioned with: ``name``, the icon's whole name as its maker wrote it ("home
            outline sharp", natural noise), or ``plain``, without words of style. All other splits are plain.
        pixels: 32: images are read from an array without decoding; 64: PNGs are decoded on demand.
    """

    vocab_size: int = 8192
    captions: Literal["name", "plain"] = "name"
    pixels: Literal[32, 64] = 32
    recipe: Recipe = field(default=ICONIFY, repr=False)
    label: ClassVar[str] = "iconify"
    of_noisy: ClassVar[frozenset[str]] = PreparedIcons.of_noisy | {"captions"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.captions not in ("name", "plain"):
            raise ValueError(f"iconify.captions must be 'name' or 'plain', got {self.captions!r}")
        if self.pixels not in (32, 64):
            raise ValueError(f"iconify.pixels must be 32 or 64, got {self.pixels}")
        if self.min_hands < 1:
            raise ValueError(f"iconify.min_hands must be at least 1, got {self.min_hands}")

    def key_column(self) -> str:
        """The column of pixel hashes for the array's images, or of file hashes for the shards'."""
        return "key" if self.pixels == 32 else "png_key"

    def caption_file(self, part: str) -> str:
        """The file of whole names for noisy splits with ``captions="name"``, else that of plain captions."""
        return "captions.txt" if part in self.clean or self.captions == "plain" else "names.txt"

    def pairs(self, row_N: npt.NDArray[np.int64], clean: bool, **common: Any) -> Pairs:
        """Pairs with the images of these rows, from the array or from the shards."""
        common["captions"] = Texts.of(common["captions"])
        if self.pixels == 32:
            return super().pairs(row_N, clean, ahead=False, **common)
        shards = json.loads((self.folder / "shards.json").read_text(encoding="utf-8"))
        columns = (column[row_N] for column in self.index("shard", "offset", "size"))
        source = ByteRanges([str(self.folder / shard) for shard in shards], *columns)
        return FilePairs(source=source, image_size=self.recipe.form.pixels, exact=clean, **common)

    def stand_in(self) -> Dataset:
        """Synthetic pairs of the same shapes, that need no download."""
        return _StandIn(length=self.length, image_size=self.pixels, data=self).stand_in()


@dataclass(frozen=True)
class _StandIn(Synthetic):
    """Synthetic pairs under the names of the splits of ``data``."""

    data: Iconify = field(default_factory=Iconify)

    def split(self, name: str) -> Pairs:
        """The synthetic split that is the most like it."""
        like = {"broad_curated": "curated", "transfer": "eval", "broad_eval": "eval", "other": "pool"}
        return super().split("+".join(dict.fromkeys(like.get(part, part) for part in self.data.known(name))))
