"""All drawings of a recipe, rendered in parts.

Rendering takes nearly all of the time, so each thousand drawings are one file (a part), and a preparation that was
killed resumes from the finished parts. Everything about the drawings except their pixels is held in memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jestbench.batch import DataError
from jestbench.data.icons.icon_groups import Icon, catalogue, choose, merge_groups
from jestbench.data.icons.icon_render import IconPart, render_parts
from jestbench.data.icons.packages import Content, IconSet
from jestbench.data.icons.recipe import Recipe
from jestbench.disk import LEFTOVERS

PART = 1000
"""Drawings rendered into one file: a second of work, all that a kill can lose on each core."""

Info = Mapping[str, Any]
"""A set's ``info.json``: title, author, licence, palette."""


@dataclass(frozen=True)
class Rendered:
    """The parts, and what is in them.

    Attributes:
        parts: file and icons of each part.
        sets: name → the set and its ``info.json``.
        left_out: icons that were not rendered, by reason.
    """

    parts: list[tuple[Path, list[Icon]]]
    sets: dict[str, tuple[IconSet, Info]]
    left_out: Counter[str]


@dataclass(frozen=True)
class Drawings:
    """All drawings except the blank ones, and except repeats of an equal drawing with the same caption.

    Attributes:
        icons: what was drawn.
        groups: the group of each drawing.
        paths: files of the parts.
        part_N: int64, index in ``paths`` of the part that holds each drawing.
        row_N: int64, row of each drawing in its part.
        size_N: int64, bytes of each drawing's PNG.
        key_NK: int64 ``[N, 2]``, content hash of the pixels, whole and as they are kept.
        look_NW: thumbnail or hash by which drawings are compared.
        sets: name → the set and its ``info.json``.
        left_out: icons that were left out, by reason.
    """

    icons: Sequence[Icon]
    groups: Sequence[str]
    paths: Sequence[Path]
    part_N: npt.NDArray[np.int64]
    row_N: npt.NDArray[np.int64]
    size_N: npt.NDArray[np.int64]
    key_NK: npt.NDArray[np.int64]
    look_NW: npt.NDArray[Any]
    sets: Mapping[str, tuple[IconSet, Info]]
    left_out: Counter[str]

    def __len__(self) -> int:
        return len(self.icons)

    def taken(self, positions: Sequence[int]) -> Drawings:
        """These drawings, in this order."""
        columns = {name: getattr(self, name)[positions] for name in ("part_N", "row_N", "size_N", "key_NK", "look_NW")}
        icons, groups = [self.icons[i] for i in positions], [self.groups[i] for i in positions]
        return replace(self, icons=icons, groups=groups, **columns)

    def each(self, read: Callable[[Path], Any]) -> Iterator[tuple[int, Any]]:
        """The position of every drawing and the value that ``read`` takes from its part, part by part.

        Args:
            read: part's file → one value for each of its drawings; ``None`` where the file is damaged.

        Raises:
            DataError: a part is damaged; it is removed, so that it is rendered again.
        """
        in_part: dict[int, list[int]] = defaultdict(list)
        for position, part in enumerate(self.part_N.tolist()):
            in_part[part].append(position)
        for part, positions in in_part.items():
            held = read(self.paths[part])
            if held is None:
                raise _damaged(self.paths[part])
            for position in positions:
                yield position, held[int(self.row_N[position])]


def render_icons(recipe: Recipe, tarballs: Path, folder: Path) -> Rendered:
    """Render the recipe's icons into parts; finished parts are skipped.

    Raises:
        DataError: a worker was killed, or the packages lack a set or enough captions for the recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(LEFTOVERS):  # of workers that were killed
        unfinished.unlink()
    rendered = Rendered([], {}, Counter())

    def icons() -> Iterator[tuple[Icon, Content]]:
        for package in recipe.packages:
            for icon_set, content in package.read(tarballs):
                rendered.sets[icon_set.name] = (icon_set, content.info)
                yield from ((icon, content) for icon in catalogue(icon_set, content))

    def parts() -> Iterator[tuple[Path, Sequence[str]]]:
        drawn = icons()  # one set in memory at a time, where none has to be compared with the others
        if recipe.variants is not None:
            every = list(drawn)
            chosen = choose(every, recipe.min_hands, recipe.variants)
            rendered.left_out["not chosen"] = len(every) - len(chosen)
            drawn = iter(chosen)
        while some := list(islice(drawn, PART)):
            path = folder / f"{len(rendered.parts):05d}.npz"
            rendered.parts.append((path, [icon for icon, _ in some]))
            yield path, [content.svg(icon.name, recipe.form.pixels) for icon, content in some]

    try:
        render_parts(parts(), recipe.form, recipe.icons)
    except BrokenProcessPool:
        raise DataError(
            "a process that rendered icons was killed (out of memory?): start again, what is rendered is kept"
        ) from None
    if missing := {*recipe.emoji, *recipe.transfer} - rendered.sets.keys():
        raise DataError(f"{recipe.packages[0].spec} has no set {', '.join(sorted(missing))}")
    if not rendered.parts:
        raise DataError(f"no caption is drawn by {recipe.min_hands} hands or more: take more sets or fewer hands")
    return rendered


def gather(rendered: Rendered) -> Drawings:
    """What the parts hold, but for the pixels.

    Raises:
        DataError: a part is damaged; it is removed, so that it is rendered again.
    """
    icons: list[Icon] = []
    columns: list[tuple[npt.NDArray[Any], ...]] = []
    known: set[tuple[str, int]] = set()
    left_out = rendered.left_out.copy()
    for number, (path, some) in enumerate(rendered.parts):
        part = IconPart.read(path)
        if part is None or part.count != len(some):
            raise _damaged(path)
        drawn = [some[i] for i in part.which_N.tolist()]
        new = []
        for row, (icon, key) in enumerate(zip(drawn, part.key_NK[:, 0].tolist(), strict=True)):
            if (icon.caption, key) not in known:
                known.add((icon.caption, key))
                icons.append(icon)
                new.append(row)
        left_out["blank"] += len(some) - len(drawn)
        left_out["equal in pixels and caption"] += len(drawn) - len(new)
        row_N = np.array(new, dtype=np.int64)
        columns.append((np.full(len(new), number), row_N, part.size_N[row_N], part.key_NK[row_N], part.look_NW[row_N]))
    part_N, row_N, size_N, key_NK, look_NW = (np.concatenate(column) for column in zip(*columns, strict=True))
    groups = merge_groups([icon.drawing for icon in icons], key_NK[:, 0].tolist())
    paths = [path for path, _ in rendered.parts]
    return Drawings(icons, groups, paths, part_N, row_N, size_N, key_NK, look_NW, rendered.sets, left_out)


def _damaged(path: Path) -> DataError:
    path.unlink(missing_ok=True)
    return DataError(f"{path} was damaged: start again, it is rendered anew")
