"""Which icons are versions of one drawing, which look alike, and which split a drawing goes to.

All versions of one drawing (weight, fill, size, skin tone, gender, colour) are one *group*, and so are drawings
whose pixels are equal; a group lies in one split. What is decided here is decided by hashes of names, so it does
not change with the machine, nor much with the other icons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jestbench.batch import DataError
from jestbench.data.icons.icon_names import read_name
from jestbench.data.icons.packages import Content, IconSet
from jestbench.disk import hashed

COPY = 1e-3
"""Mean squared difference of two thumbnails (grey in [0, 1]) below which one drawing is a copy of the other.
Found by looking: below it lie tracings of the same logo and icons that one set took over from another, above
it different hands' drawings of the same simple thing."""


LOOK_BITS = 128
"""Bits of a perceptual hash."""

NEAR = 5
"""Drawings whose hashes differ in at most so many bits look alike. Found by looking: up to here lie recolourings,
skin tones, genders and tracings of one drawing, and simple shapes that anybody draws so; from twice as many on,
things that only share an outline."""


class SplitSizes(Protocol):
    """How many drawings ``assign_splits`` gives to each split: see :class:`jestbench.data.icons.Recipe`."""

    @property
    def core_hands(self) -> int: ...  # noqa: D102
    @property
    def eval_classes(self) -> int: ...  # noqa: D102
    @property
    def eval_drawings(self) -> int: ...  # noqa: D102
    @property
    def curated_pairs(self) -> int: ...  # noqa: D102
    @property
    def holdout_share(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Icon:
    """An icon before it is rendered.

    Attributes:
        set: name of its set.
        name: its name in the set.
        caption: what it shows.
        style: how it shows it.
        drawing: who drew what: the same for all versions of one drawing.
    """

    set: str
    name: str
    caption: str
    style: str
    drawing: tuple[str, str]


def catalogue(icon_set: IconSet, content: Content) -> list[Icon]:
    """All icons of a set with their names taken apart."""
    icons = []
    for name in content.names():
        parts = read_name(name, content.prefixes, (*content.suffixes, *icon_set.styles))
        icons.append(Icon(icon_set.name, name, parts.caption, parts.style, (icon_set.hand, parts.subject)))
    return icons


def merge_groups(drawings: Sequence[tuple[str, str]], keys: Sequence[int]) -> list[str]:
    """Name the group of each icon: icons of one drawing, or of equal pixels, are in one group.

    Args:
        drawings: who drew what, for each icon.
        keys: content hash of each image.

    Returns:
        The name of each icon's group: the first of its drawings, ``hand:subject``.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {drawing: drawing for drawing in drawings}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    seen: dict[int, tuple[str, str]] = {}
    for drawing, key in zip(drawings, keys, strict=True):
        one, other = root(drawing), root(seen.setdefault(key, drawing))
        parent[max(one, other)] = min(one, other)
    return [":".join(root(drawing)) for drawing in drawings]


def assign_splits(captions: Sequence[str], groups: Sequence[str], recipe: SplitSizes) -> list[str]:
    """Which split each icon goes to, by hashes of its group and caption alone.

    Args:
        captions: of the icons.
        groups: the group of each icon.
        recipe: sizes of the splits.

    Returns:
        The split of each icon; ``""`` where it goes to none, because its group lies in ``eval`` or in
        ``curated`` and the split needs no other version of it.

    Raises:
        DataError: there are too few core captions for ``eval``.
    """
    members: dict[str, list[int]] = defaultdict(list)
    makers: dict[str, set[str]] = defaultdict(set)
    for position, (caption, group) in enumerate(zip(captions, groups, strict=True)):
        members[group].append(position)
        makers[caption].add(group)
    core = {caption for caption, drawn_by in makers.items() if len(drawn_by) >= recipe.core_hands}
    splits = [""] * len(captions)
    taken: set[str] = set()
    classes = 0
    for caption in sorted(core, key=lambda caption: rank("class", caption)):
        # A drawing that goes by two names stands for one class only, and a class leaves some drawings to learn from.
        free = sorted(makers[caption] - taken, key=lambda group: rank("eval", group))
        if classes < recipe.eval_classes and len(free) > recipe.eval_drawings:
            classes += 1
            for group in free[: recipe.eval_drawings]:
                taken.add(group)
                splits[next(i for i in members[group] if captions[i] == caption)] = "eval"
    if classes < recipe.eval_classes:
        raise DataError(
            f"only {classes} captions are drawn by {recipe.core_hands} hands or more, and eval needs "
            f"{recipe.eval_classes}: take more sets, fewer classes or fewer hands"
        )

    curated = 0
    for group in sorted(members.keys() - taken, key=lambda group: rank("curated", group)):
        fitting = [i for i in members[group] if captions[i] in core]
        if curated >= recipe.curated_pairs:
            break
        if fitting:
            taken.add(group)
            curated += len(fitting)
            for i in fitting:
                splits[i] = "curated"

    for group in members.keys() - taken:
        split = "holdout" if share("holdout", group) < recipe.holdout_share else "pool"
        for i in members[group]:
            splits[i] = split
    return splits


def rank(*parts: str) -> bytes:
    """A fixed pseudo-random place in an order."""
    return hashed("\0".join(parts), 16)


def share(*parts: str) -> float:
    """A fixed pseudo-random number in [0, 1)."""
    return int.from_bytes(rank(*parts)[:6], "big") / 2**48


def near_copies(thumbnail_ND: npt.NDArray[np.float32], original_MD: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which thumbnails look like one of the originals: bool ``[N]``."""
    copies = np.zeros(len(thumbnail_ND), dtype=np.bool_)
    square_M = (original_MD**2).sum(axis=1)
    for start in range(0, len(thumbnail_ND), 4096):
        block = thumbnail_ND[start : start + 4096]
        distance = (block**2).sum(axis=1)[:, None] + square_M - 2 * block @ original_MD.T
        copies[start : start + 4096] = (distance < COPY * thumbnail_ND.shape[1]).any(axis=1)
    return copies


def looks(thumbnail_ND: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Perceptual hashes that colour and brightness do not change: uint8 ``[N, 16]``, packed bits.

    A difference hash: of each of 8 × 8 blocks, whether it is lighter than its right neighbour, and than the one
    below (the first again for the last). In integers, so that it is the same on every machine.

    Args:
        thumbnail_ND: uint8 grey images of 16 × 16.
    """
    blocks = thumbnail_ND.reshape(-1, 8, 2, 8, 2).sum(axis=(2, 4), dtype=np.int32)
    bits = [blocks > np.roll(blocks, -1, axis=axis) for axis in (2, 1)]
    return np.packbits(np.concatenate(bits, axis=1).reshape(-1, LOOK_BITS), axis=1)


def look_alike(look_NW: npt.NDArray[np.uint8], original_MW: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which hashes differ from one of the originals in at most ``NEAR`` bits: bool ``[N]``."""

    def signs(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1

    alike = np.zeros(len(look_NW), dtype=np.bool_)
    original_DM = signs(original_MW).T
    for start in range(0, len(look_NW), 4096):
        # The dot product of two rows of signs is the number of bits less twice the number that differ.
        product = signs(look_NW[start : start + 4096]) @ original_DM
        alike[start : start + 4096] = (product >= LOOK_BITS - 2 * NEAR).any(axis=1)
    return alike
