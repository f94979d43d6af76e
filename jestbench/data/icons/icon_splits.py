"""Assignment of drawings to splits.

A group lies in one split, and no split that is trained on holds a drawing that looks like a tested drawing, by any
hand. A caption that many hands drew is a *core* caption; only core captions are classes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jestbench.batch import DataError
from jestbench.data.icons.icon_drawings import Drawings
from jestbench.data.icons.icon_groups import rank, share
from jestbench.data.icons.icon_looks import LOOKS
from jestbench.data.icons.recipe import Recipe, Sizes


def divide(drawings: Drawings, recipe: Recipe) -> tuple[list[str], Counter[str]]:
    """Which split each drawing goes to: see :mod:`jestbench.data.icons.icons` and ``iconify``.

    Returns:
        For each drawing one of ``recipe.places``, or ``""`` where it is left out; how many icons are left out, and why.

    Raises:
        DataError: there are too few captions that many hands drew.
    """
    icons, groups, left_out = drawings.icons, drawings.groups, drawings.left_out.copy()
    split = _divide_groups(drawings, recipe)
    left_out["other versions of what is tested or curated, and what the held-out hand alone drew"] += split.count("")
    left_out["look like what is tested"] += _drop_look_alikes(split, drawings.look_NW, recipe)
    hands = count_hands((icon.caption for icon in icons), groups)  # equal drawings in two sets count as one hand's
    few = [i for i, icon in enumerate(icons) if split[i] and hands[icon.caption] < recipe.min_hands]
    left_out["too few hands"] += len(few)
    for i in few:
        split[i] = ""
    return split, left_out


def count_hands(captions: Iterable[str], hands: Iterable[str]) -> dict[str, int]:
    """Number of hands that drew each caption; drawing ``i`` has ``captions[i]`` and is by ``hands[i]``."""
    drawn_by: dict[str, set[str]] = defaultdict(set)
    for caption, hand in zip(captions, hands, strict=True):
        drawn_by[caption].add(hand)
    return {caption: len(some) for caption, some in drawn_by.items()}


def _divide_groups(drawings: Drawings, recipe: Recipe) -> list[str]:
    """The split of each drawing, by its group and caption."""
    icons, groups = drawings.icons, drawings.groups
    split = [""] * len(icons)
    held_out = {group for icon, group in zip(icons, groups, strict=True) if icon.set in recipe.transfer}
    emoji = {group for icon, group in zip(icons, groups, strict=True) if icon.set in recipe.emoji} - held_out
    faces = [i for i, group in enumerate(groups) if group in emoji and icons[i].set in recipe.emoji]
    rest = [i for i, group in enumerate(groups) if group not in emoji and group not in held_out]
    for rows, sizes in ((faces, recipe.emoji_sizes), (rest, recipe.sizes)):
        if sizes is not None:
            found = assign_splits([icons[i].caption for i in rows], [groups[i] for i in rows], sizes)
            for i, name in zip(rows, found, strict=True):
                split[i] = name
    if recipe.emoji_sizes is None:
        return split

    # Icons of other sets in an emoji's group: trained on or held out like that emoji, left out where it is tested.
    tested, _, trained = recipe.emoji_sizes.names
    home = {groups[i]: split[i] for i in reversed(faces) if split[i]}
    home |= {groups[i]: tested for i in faces if split[i] == tested}
    company = {trained: recipe.sizes.names[-1], "holdout": "holdout"}
    for i, group in enumerate(groups):
        if group in emoji and icons[i].set not in recipe.emoji:
            split[i] = company.get(home[group], "")

    shown = {icons[i].caption for i in faces if split[i] == trained}
    of_caption: dict[str, list[int]] = defaultdict(list)
    for i, icon in enumerate(icons):
        if icon.set in recipe.transfer and icon.caption in shown:
            of_caption[icon.caption].append(i)
    for candidates in of_caption.values():
        split[min(candidates, key=lambda i: (icons[i].style, icons[i].name))] = "transfer"
    return split


def assign_splits(captions: Sequence[str], groups: Sequence[str], sizes: Sizes) -> list[str]:
    """Which split each icon goes to, by hashes of its group and caption alone.

    Args:
        captions: of the icons.
        groups: the group of each icon.
        sizes: of the splits.

    Returns:
        The split of each icon: one of ``sizes.names``, or ``holdout``; ``""`` where the icon is left out,
        because its group lies in the tested or the curated split, which needs no other version of it.

    Raises:
        DataError: there are too few core captions for the tested split.
    """
    tested, curated, rest = sizes.names
    members: dict[str, list[int]] = defaultdict(list)
    makers: dict[str, set[str]] = defaultdict(set)
    for position, (caption, group) in enumerate(zip(captions, groups, strict=True)):
        members[group].append(position)
        makers[caption].add(group)
    core = {caption for caption, drawn_by in makers.items() if len(drawn_by) >= sizes.core_hands}
    splits = [""] * len(captions)
    taken: set[str] = set()
    classes = 0
    for caption in sorted(core, key=lambda caption: rank("class", caption)):
        # A drawing with two names stands for one class only, and each class leaves some drawings to learn from.
        free = sorted(makers[caption] - taken, key=lambda group: rank("eval", group))
        if classes < sizes.eval_classes and len(free) > sizes.eval_drawings:
            classes += 1
            for group in free[: sizes.eval_drawings]:
                taken.add(group)
                splits[next(i for i in members[group] if captions[i] == caption)] = tested
    if classes < sizes.eval_classes:
        raise DataError(
            f"only {classes} captions are drawn by {sizes.core_hands} hands or more, and eval needs "
            f"{sizes.eval_classes}: take more sets, fewer classes or fewer hands"
        )

    pairs = 0
    for group in sorted(members.keys() - taken, key=lambda group: rank("curated", group)):
        fitting = [i for i in members[group] if captions[i] in core]
        if pairs >= sizes.curated_pairs:
            break
        if fitting:
            taken.add(group)
            pairs += len(fitting)
            for i in fitting:
                splits[i] = curated

    for group in members.keys() - taken:
        split = "holdout" if share("holdout", group) < sizes.holdout_share else rest
        for i in members[group]:
            splits[i] = split
    return splits


def _drop_look_alikes(split: list[str], look_NW: npt.NDArray[Any], recipe: Recipe) -> int:
    """Take out of later splits what looks like a drawing of a tested one; the tested ones come first, in order."""
    dropped = 0
    for place, tested in enumerate(recipe.tested):
        split_N = np.array(split)
        later = np.flatnonzero(~np.isin(split_N, ["", *recipe.tested[: place + 1]]))
        copies = later[LOOKS[recipe.form.alike].alike(look_NW[later], look_NW[split_N == tested])]
        dropped += len(copies)
        for i in copies.tolist():
            split[i] = ""
    return dropped


def copies_left(split_N: npt.NDArray[np.str_], look_NW: npt.NDArray[Any], recipe: Recipe) -> dict[str, int]:
    """Number of drawings in each training split that look like a drawing of a tested split; must be 0."""
    alike = LOOKS[recipe.form.alike].alike
    return {
        f"{trained} like {tested}": int(alike(look_NW[split_N == trained], look_NW[split_N == tested]).sum())
        for tested in recipe.tested
        for trained in (*recipe.curated, *recipe.noisy)
    }
