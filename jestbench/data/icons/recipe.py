"""Which icon sets, filters and splits make a data set of icons."""

from __future__ import annotations

from dataclasses import dataclass

from jestbench.data.icons.packages import Collection

ICONIFY = Collection()
TESTED = ("eval", "transfer", "broad_eval")
CLEAN = (*TESTED, "curated", "broad_curated")
PLACES = (*CLEAN, "holdout", "other")
POOL = ("curated", "other")
EMOJI = tuple(
    "openmoji twemoji noto noto-v1 fluent-emoji fluent-emoji-flat fluent-emoji-high-contrast emojione "
    "emojione-monotone emojione-v1 fxemoji streamline-emojis".split()
)


@dataclass(frozen=True)
class Sizes:
    """How many drawings a tested and a curated split get: see :func:`jestbench.data.icon_groups.assign_splits`.

    Attributes:
        core_hands: captions that so many drawings show can be classes.
        eval_classes: captions of the tested split.
        eval_drawings: drawings of each of them.
        curated_pairs: the curated split gets whole groups until it has so many pairs.
        holdout_share: of the groups that are left, so many go to ``holdout``.
    """

    core_hands: int
    eval_classes: int = 1000
    eval_drawings: int = 2
    curated_pairs: int = 0
    holdout_share: float = 0.05

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
        collection: the pinned package.
        emoji: the sets that draw emoji.
        transfer: those of them that are held out.
        pixels: width and height of the images; even.
        emoji_sizes: of ``eval``.
        broad_sizes: of ``broad_eval`` and ``broad_curated``.
        shard: samples in a shard.
    """

    collection: Collection = ICONIFY
    emoji: tuple[str, ...] = EMOJI
    transfer: tuple[str, ...] = ("openmoji",)
    pixels: int = 64
    emoji_sizes: Sizes = Sizes(core_hands=3)
    broad_sizes: Sizes = Sizes(core_hands=8, curated_pairs=3000)
    shard: int = 10_000
