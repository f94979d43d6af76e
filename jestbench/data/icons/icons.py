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
from jestbench.data.synthetic import Synthetic


@dataclass(frozen=True)
class Icons(PreparedIcons):
    """Icons and their names, with a given share of wrong captions.

    Attributes:
        noise: share of the pairs in ``pool`` and ``holdout`` whose captions are exchanged, in [0, 1).
        min_hands: leave out of ``pool`` and ``holdout`` the captions that fewer hands drew.
        curated: number of pairs that ``curated`` is cut to; 0 for all. A smaller number's are among a larger number's.
        tail: exponent s of a Zipf law in ``pool`` and ``holdout``: a caption of rank k keeps at most n/k^s pairs, n the
            number of the most frequent one; 0 for no such law.
        partial: share of the pairs in ``pool`` and ``holdout`` whose captions have one wrong word, beside those that
            ``noise`` exchanges.
        repeats: exponent of a Zipf law in ``pool`` and ``holdout``: as many pairs as there are, drawn with
            replacement, so that some drawings stand there often; 0 for each once.
    """

    min_hands: int = 2
    curated: int = 0
    tail: float = 0.0
    partial: float = 0.0
    repeats: float = 0.0
    recipe: Recipe = field(default=QUICK_START, repr=False)
    label: ClassVar[str] = "icons"
    of_noisy: ClassVar[frozenset[str]] = PreparedIcons.of_noisy | {"tail", "partial", "repeats"}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("curated", "tail", "repeats"):
            if getattr(self, name) < 0:
                raise ValueError(f"icons.{name} must not be negative, got {getattr(self, name)}")
        if not 0.0 <= self.partial <= 1.0 - self.noise:
            raise ValueError(
                f"icons.partial is a share of the pairs that icons.noise = {self.noise} leaves, got {self.partial}"
            )

    def stand_in(self) -> Dataset:
        """Synthetic pairs of the same shapes, that need no download."""
        return Synthetic(length=self.length, image_size=self.recipe.image_size).stand_in()
