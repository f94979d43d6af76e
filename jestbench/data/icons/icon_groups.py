"""Icons with their names taken apart, which of them are rendered, and which are versions of one drawing.

All versions of one drawing (weight, fill, size, skin tone, gender, colour) are one *group*, and so are drawings
whose pixels are equal; a group lies in one split. All choices are made by hashes of names, so they do
not change with the machine, and hardly with the other icons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jestbench.data.icons.icon_names import read_name
from jestbench.data.icons.packages import Content, IconSet
from jestbench.disk import hashed


@dataclass(frozen=True)
class Icon:
    """An icon before it is rendered.

    Attributes:
        set: name of the icon's set.
        name: the icon's name in the set.
        caption: what the icon shows.
        style: weight, fill, size and the like.
        drawing: hand and subject, equal for all versions of one drawing.
    """

    set: str
    name: str
    caption: str
    style: str
    drawing: tuple[str, str]

    @property
    def hand(self) -> str:
        """The hand (author) that drew the icon."""
        return self.drawing[0]


def catalogue(icon_set: IconSet, content: Content) -> list[Icon]:
    """All icons of a set with their names taken apart."""
    icons = []
    for name in content.names():
        parts = read_name(name, content.prefixes, (*content.suffixes, *icon_set.styles))
        icons.append(Icon(icon_set.name, name, parts.caption, parts.style, (icon_set.hand, parts.subject)))
    return icons


def choose(icons: Iterable[tuple[Icon, Content]], min_hands: int, variants: int) -> list[tuple[Icon, Content]]:
    """Choose the icons to render: captions that several hands drew, and few versions of each drawing.

    The hash of their names decides which versions are kept, so the choice does not change with the other sets.

    Args:
        icons: all icons, each with the content of its set.
        min_hands: captions that fewer hands drew are left out.
        variants: largest number of drawings kept for one hand and one caption.
    """
    versions: dict[tuple[str, str], list[tuple[Icon, Content]]] = defaultdict(list)
    hands: dict[str, set[str]] = defaultdict(set)
    for icon, content in icons:
        versions[icon.hand, icon.caption].append((icon, content))
        hands[icon.caption].add(icon.hand)
    chosen: list[tuple[Icon, Content]] = []
    for (_, caption), candidates in sorted(versions.items()):
        if len(hands[caption]) >= min_hands:
            candidates.sort(key=lambda candidate: rank("version", candidate[0].set, candidate[0].name))
            chosen += candidates[:variants]
    return chosen


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


def rank(*parts: str) -> bytes:
    """A fixed pseudo-random place in an order."""
    return hashed("\0".join(parts), 16)


def share(*parts: str) -> float:
    """A fixed pseudo-random number in [0, 1)."""
    return int.from_bytes(rank(*parts)[:6], "big") / 2**48
