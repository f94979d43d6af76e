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
        core_hands: captions that so many groups show can be classes.
        eval_classes: captions of the tested split.
        eval_drawings: drawings of each of them, by different hands.
        curated_pairs: the curated split gets whole groups until it has so many pairs.
        holdout_share: of the groups that are left, so many go to ``holdout``.
        names: of the tested split, the curated one, and that of the groups that are left.
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
    """What is prepared. Its hash, with that of the code and the vocabulary's size, names the prepared folder.

    Attributes:
        packages: where the icons come from.
        icons: how many are rendered, for the progress bar and the check of the disk.
        min_hands: a caption that fewer hands drew is left out: nothing else shows what it means.
        variants: of one hand's drawings with one caption, at most so many are rendered; ``None``: all, and
            ``min_hands`` holds for what is rendered alone.
        form: how they are rendered, kept and compared. What looks like a tested drawing is in no later split.
        sizes: of the splits, but for the emoji's.
        emoji: the sets that draw emoji.
        emoji_sizes: of the splits of these, where there are any.
        transfer: those of the emoji sets that are held out: the split ``transfer``.
        tested: splits whose look-alikes are taken out of all others; the earlier keep what looks alike in two.
        curated: the other splits in which every caption is right.
        noisy: the splits in which captions can be exchanged.
        pool: the splits that are ``pool`` together.
        hands: whose drawings count when a caption's hands are counted: groups that were ``drawn``, or hands whose
            drawings were ``kept`` in a split.
        named: whether whole names are captions, too, that the tokenizer is trained on.
        shard: samples in a shard, in a shuffled order; 0: there are no shards, and the order is that of the sets.
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
