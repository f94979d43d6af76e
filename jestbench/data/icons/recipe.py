"""Which icon sets, filters, splits and files make a data set of icons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jestbench.data.icons.icon_looks import THUMBNAIL
from jestbench.data.icons.icon_render import Form
from jestbench.data.icons.packages import SETS, Collection, Package


@dataclass(frozen=True)
class Sizes:
    """How many drawings each split gets: see :func:`jestbench.data.icons.icon_splits.assign_splits`.

    Attributes:
        core_hands: least number of groups that show a caption for it to be a class.
        eval_classes: number of captions in the tested split.
        eval_drawings: number of drawings of each of these captions, by different hands.
        curated_pairs: the curated split gets whole groups until it has this many pairs.
        holdout_share: share of the remaining groups that go to ``holdout``.
        names: names of the tested split, the curated split, and the split of the remaining groups.
    """

    core_hands: int = 8
    eval_classes: int = 1000
    eval_drawings: int = 2
    curated_pairs: int = 3000
    holdout_share: float = 0.1
    names: tuple[str, str, str] = ("eval", "curated", "pool")

    def __post_init__(self) -> None:
        if self.core_hands <= self.eval_drawings:
            raise ValueError(
                f"core_hands ({self.core_hands}) must exceed eval_drawings ({self.eval_drawings}): "
                "a class needs drawings to learn from beside those it is tested on"
            )


@dataclass(frozen=True)
class Recipe:
    """What is prepared. Its hash, with the code's version and the vocabulary's size, names the prepared folder.

    Attributes:
        packages: packages that hold the icons.
        icons: number of icons rendered, for the progress bar and the check of the disk.
        min_hands: captions that fewer hands drew are left out, as too few drawings show what they mean.
        variants: largest number of one hand's drawings with one caption to render; ``None``: all, and
            ``min_hands`` is not applied before rendering.
        form: how drawings are rendered, kept and compared. No later split holds what looks like a tested drawing.
        sizes: sizes of the splits, except the emoji's.
        emoji: the sets that draw emoji.
        emoji_sizes: sizes of the emoji's splits, where there are any.
        transfer: the emoji sets that are held out as the split ``transfer``.
        tested: splits whose look-alikes are removed from all other splits; of two tested splits the earlier one keeps
            its drawing.
        curated: the other splits in which every caption is right.
        noisy: the splits in which captions can be exchanged.
        pool: the splits that are ``pool`` together.
        hands: how a caption's hands are counted: as groups that were ``drawn``, or as hands whose drawings were
            ``kept`` in a split.
        named: whether the tokenizer is trained on whole names, too.
        shard: samples in a shard, in a shuffled order; 0: no shards, and the images are in the order of the sets.
    """

    packages: tuple[Package, ...] = SETS
    icons: int = 89_032
    min_hands: int = 2
    variants: int | None = 3
    form: Form = field(default=Form())
    sizes: Sizes = Sizes()
    emoji: tuple[str, ...] = ()
    emoji_sizes: Sizes | None = None
    transfer: tuple[str, ...] = ()
    tested: tuple[str, ...] = ("eval",)
    curated: tuple[str, ...] = ("curated",)
    noisy: tuple[str, ...] = ("pool", "holdout")
    pool: tuple[str, ...] = ("pool",)
    hands: Literal["drawn", "kept"] = "drawn"
    named: bool = False
    shard: int = 0

    def __post_init__(self) -> None:
        if self.form.pixels < THUMBNAIL:
            raise ValueError(f"icons are rendered at {THUMBNAIL} pixels or more, got {self.form.pixels}")

    @property
    def places(self) -> tuple[str, ...]:
        """The splits that hold no pair of one another, in the order in which they are written."""
        return (*self.tested, *self.curated, *self.noisy)

    @property
    def image_size(self) -> int:
        """Width and height of the images in the array, in pixels."""
        return self.form.pixels // (2 if self.form.halved else 1)

    @property
    def images(self) -> str:
        """The file that holds the array."""
        return f"images-{self.image_size}.npy"


QUICK_START = Recipe()

ICONIFY = Recipe(
    packages=(
        Collection(
            "2.2.535",
            "sha512-nAV60ACUSHwnsb6fsp+letHlNkrwO4vzBtcC6B4EDHErQQfezk7E3nJdnwJjve6OCfMNO0uVT5Vrgna9/NCmXw==",
        ),
    ),
    icons=380_909,
    min_hands=1,
    variants=None,
    form=Form(halved=True, encoded=True, alike="hash"),
    sizes=Sizes(holdout_share=0.05, names=("broad_eval", "broad_curated", "other")),
    emoji=tuple(
        "openmoji twemoji noto noto-v1 fluent-emoji fluent-emoji-flat fluent-emoji-high-contrast emojione "
        "emojione-monotone emojione-v1 fxemoji streamline-emojis".split()
    ),
    emoji_sizes=Sizes(core_hands=3, curated_pairs=0, holdout_share=0.05, names=("eval", "", "curated")),
    transfer=("openmoji",),
    tested=("eval", "transfer", "broad_eval"),
    curated=("curated", "broad_curated"),
    noisy=("holdout", "other"),
    pool=("curated", "other"),
    hands="kept",
    named=True,
    shard=10_000,
)
