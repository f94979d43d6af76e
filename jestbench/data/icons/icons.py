"""Icons and their names: real image–text pairs that npm and pip alone can bring.

Some hundred icon sets by different hands draw the same concepts. A drawing is the image, the name that
its maker gave it is the caption. The sets are fetched, rendered and split once, into a folder of the user's cache:
see :mod:`jestbench.data.icons.icon_folder`.

**Splits.** All versions of one drawing are one *group* (:mod:`jestbench.data.icons.icon_groups`); a group lies in
one split. A caption that many hands drew is a *core* caption.

* ``eval``: 1,000 core captions, each with 2 drawings by different hands. Classes are captions. Always clean.
  No other split holds a drawing that looks the same, and no drawing stands for two classes.
* ``curated``: some 3,000 pairs of core captions, those of ``eval`` and others. Always clean.
* ``pool``: the rest, with the noise that ``noise`` sets.
* ``holdout``: a tenth of the rest, as noisy as the pool (RHO-LOSS trains its irreducible-loss model on it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from jestbench.data.icons.prepared_icons import PreparedIcons
from jestbench.data.icons.recipe import QUICK_START, Recipe
from jestbench.data.pairs import Dataset


@dataclass(frozen=True)
class Icons(PreparedIcons):
    """Icons and their names, with a given share of wrong captions.

    Attributes:
        noise: share of the pairs in ``pool`` and ``holdout`` whose captions are exchanged, in [0, 1).
        noise_seed: decides which captions are exchanged with which.
        min_hands: leave out of ``pool`` and ``holdout`` the captions that fewer hands drew.
        length: L, tokens a caption is cut or padded to.
        vocab_size: of the tokenizer, at most.
        cache_dir: where to prepare; by default the folder that the environment variable
            ``JESTBENCH_CACHE`` names, else the user's cache folder.
        recipe: what is prepared.
    """

    min_hands: int = 2
    recipe: Recipe = field(default=QUICK_START, repr=False)
    label: ClassVar[str] = "icons"

    def stand_in(self) -> Dataset:
        """Synthetic pairs of the same shapes, that need no download."""
        from jestbench.data.synthetic import Synthetic

        return Synthetic(length=self.length, image_size=self.recipe.image_size).stand_in()
