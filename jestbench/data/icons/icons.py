"""Icons and their names: real image–text pairs that npm and pip alone can bring.

Some hundred icon sets by different hands draw the same concepts. A drawing is the image, the name that
its maker gave it is the caption. The sets are fetched and rendered once, into the user's cache folder:

* ``images.npy``: uint8 ``[N, pixels, pixels, 3]``, memory-mapped;
* ``table.json``: one column each for caption, style, set, icon, group, hands, split and image key;
* ``tokenizer.json``: a byte-pair tokenizer trained on the captions;
* ``licences.json``: title, authors, licence of every set;
* ``manifest.json``: how it was made, counts, checksums.

**Splits.** All versions of one drawing (weight, fill, size, skin tone, gender, colour) are one *group*, and
so are drawings whose pixels are equal; a group lies in one split. A caption that many hands drew (at least
``Recipe.core_hands`` groups) is a *core* caption.

* ``eval``: 1,000 core captions, each with 2 drawings by different hands. Classes are captions. Always clean.
  No other split holds a drawing that looks the same, and no drawing stands for two classes.
* ``curated``: some 3,000 pairs of core captions, those of ``eval`` and others. Always clean.
* ``pool``: the rest, noisy as asked for.
* ``holdout``: a tenth of the rest, as noisy as the pool (RHO-LOSS trains its irreducible-loss model on it).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from jestbench.batch import DataError
from jestbench.data.icons.icon_groups import Icon, assign_splits, catalogue, merge_groups, near_copies, rank
from jestbench.data.icons.icon_render import THUMBNAIL, render_all, thumbnail
from jestbench.data.icons.packages import INSTALL, SETS, Content, IconSet, fetch, npm_pack, read_set
from jestbench.data.icons.prepared_icons import (
    Chosen,
    PreparedIcons,
    Table,
    file_hash,
    licences,
    write_images,
    write_json,
)
from jestbench.data.pairs import Dataset, Pairs
from jestbench.disk import content_key
from jestbench.model.tokenizer import train_bpe

CODE_VERSION = 1
"""Counted up when the preparation below makes something else of the same recipe."""

CLEAN_SPLITS = ("curated", "eval")
SPLITS = (*CLEAN_SPLITS, "pool", "holdout")


@dataclass(frozen=True)
class Recipe:
    """What is prepared. Its hash, with that of the code and the vocabulary's size, names the prepared folder.

    Attributes:
        sets: the icon sets.
        pixels: width and height of the images.
        min_hands: a caption that fewer hands drew is left out: nothing else shows what it means.
        variants: of one hand's drawings with one caption, at most so many are kept.
        core_hands: a caption of so many groups is a core caption.
        eval_classes: captions of the ``eval`` split.
        eval_drawings: drawings of each of them, by different hands.
        curated_pairs: the ``curated`` split gets whole groups until it has so many pairs.
        holdout_share: of the groups that are left, so many go to ``holdout``.
    """

    sets: tuple[IconSet, ...] = SETS
    pixels: int = 64
    min_hands: int = 2
    variants: int = 3
    core_hands: int = 8
    eval_classes: int = 1000
    eval_drawings: int = 2
    curated_pairs: int = 3000
    holdout_share: float = 0.1

    def __post_init__(self) -> None:
        if self.pixels < THUMBNAIL:
            raise ValueError(f"icons are rendered at {THUMBNAIL} pixels or more, got {self.pixels}")
        if self.core_hands <= self.eval_drawings:
            raise ValueError(
                f"core_hands ({self.core_hands}) must exceed eval_drawings ({self.eval_drawings}): "
                "a class needs drawings to learn from beside those it is tested on"
            )


def choose(icons: Iterable[Icon], recipe: Recipe) -> list[Icon]:
    """The icons worth rendering: captions of several hands, few versions of each drawing.

    Which versions stay is decided by the hash of their names, so it does not change with the other sets.
    """
    versions: dict[tuple[str, str], list[Icon]] = defaultdict(list)
    hands: dict[str, set[str]] = defaultdict(set)
    for icon in icons:
        hand, _ = icon.drawing
        versions[hand, icon.caption].append(icon)
        hands[icon.caption].add(hand)
    chosen: list[Icon] = []
    for (_, caption), candidates in sorted(versions.items()):
        if len(hands[caption]) >= recipe.min_hands:
            candidates.sort(key=lambda icon: rank("version", icon.set, icon.name))
            chosen += candidates[: recipe.variants]
    return chosen


def prepare_folder(folder: Path, recipe: Recipe, vocab_size: int, tarballs: Path) -> None:
    """Fetch, render and split; the folder appears when it is complete.

    Args:
        folder: what to make; must not exist.
        recipe: what goes into it.
        vocab_size: of the tokenizer, at most.
        tarballs: where fetched packages are kept.

    Raises:
        DataError: it cannot be made; the message says what to do.
    """
    if importlib.util.find_spec("resvg_py") is None:
        raise DataError(f"icons are rendered with resvg_py, which is not installed: {INSTALL}")
    fetch(recipe.sets, tarballs, npm_pack)
    contents = {icon_set.name: read_set(tarballs / icon_set.tarball) for icon_set in recipe.sets}
    every = [icon for icon_set in recipe.sets for icon in catalogue(icon_set, contents[icon_set.name])]
    chosen = choose(every, recipe)

    work = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        raw = work / "rendered"
        rendered = _render_icons(chosen, contents, recipe.pixels, raw)
        rows, table, left_out = _make_table(rendered, recipe)
        write_images(work / "images.npy", raw, rows, recipe.pixels)
        raw.unlink()
        write_json(work / "table.json", table)
        made = [(icon_set, contents[icon_set.name].info) for icon_set in recipe.sets]
        write_json(work / "licences.json", licences(made, Counter(table["set"])))
        (work / "tokenizer.json").write_text(train_bpe(table["caption"], vocab_size).to_str(), encoding="utf-8")
        left_out |= {"not chosen": len(every) - len(chosen), "blank": len(chosen) - len(rendered.icons)}
        write_json(work / "manifest.json", _manifest(work, recipe, table, left_out))
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class _Rendered:
    """What is known of the rendered drawings that are not blank.

    Attributes:
        icons: what was drawn.
        keys: content hash of each image.
        thumbnail_ND: float32, small grey images.
    """

    icons: list[Icon]
    keys: list[int]
    thumbnail_ND: npt.NDArray[np.float32]


def _render_icons(icons: Sequence[Icon], contents: Mapping[str, Content], pixels: int, path: Path) -> _Rendered:
    """Render all icons and write the pixels of those that are not blank (of one colour), one after another."""
    drawings = [contents[icon.set].svg(icon.name, pixels) for icon in icons]
    kept: list[Icon] = []
    keys: list[int] = []
    thumbnails: list[npt.NDArray[np.float32]] = [np.empty((0, THUMBNAIL**2), dtype=np.float32)]
    done = 0
    try:
        with path.open("wb") as file:
            for chunk in render_all(drawings, pixels):
                drawn = np.flatnonzero((chunk != chunk[:, :1, :1]).any(axis=(1, 2, 3)))
                kept += [icons[done + i] for i in drawn]
                keys += [content_key(chunk[i].tobytes()) for i in drawn]
                thumbnails.append(thumbnail(chunk[drawn]))
                file.write(chunk[drawn].tobytes())
                done += len(chunk)
    except BrokenProcessPool:
        raise DataError("a process that rendered icons was killed (out of memory?): start again") from None
    return _Rendered(kept, keys, np.concatenate(thumbnails))


def _make_table(rendered: _Rendered, recipe: Recipe) -> tuple[list[int], dict[str, list[Any]], dict[str, int]]:
    """Group the rendered icons and give each its split.

    Returns:
        Positions of the icons that are in a split, ordered by split; what is known about them, column by
        column; how many icons are in no split, and why.
    """
    first: dict[tuple[str, int], int] = {}
    for i, (icon, key) in enumerate(zip(rendered.icons, rendered.keys, strict=True)):
        first.setdefault((icon.caption, key), i)
    distinct = list(first.values())
    icons, keys = [rendered.icons[i] for i in distinct], [rendered.keys[i] for i in distinct]
    groups = merge_groups([icon.drawing for icon in icons], keys)
    makers: dict[str, set[str]] = defaultdict(set)
    for icon, group in zip(icons, groups, strict=True):
        makers[icon.caption].add(group)
    splits = assign_splits([icon.caption for icon in icons], groups, recipe)
    tested = [i for i, split in zip(distinct, splits, strict=True) if split == "eval"]
    copies = near_copies(rendered.thumbnail_ND[distinct], rendered.thumbnail_ND[tested])

    left_out = Counter({"equal in pixels and caption": len(rendered.icons) - len(distinct)})
    numbers: dict[str, int] = {}
    rows: list[tuple[Any, ...]] = []
    for i, icon, key, group, split, copy in zip(distinct, icons, keys, groups, splits, copies, strict=True):
        if not split:
            left_out["other versions of what is in eval or curated"] += 1
        elif copy and split != "eval":
            left_out["copies of what is in eval"] += 1
        elif len(makers[icon.caption]) < recipe.min_hands:  # equal drawings in two sets are one hand's
            left_out["too few hands"] += 1
        else:
            number, hands = numbers.setdefault(group, len(numbers)), len(makers[icon.caption])
            rows.append((split, i, icon.caption, icon.style, icon.set, icon.name, number, hands, key))
    rows.sort(key=lambda row: (SPLITS.index(row[0]), row[1]))
    columns = ("split", "position", "caption", "style", "set", "icon", "group", "hands", "key")
    table: dict[str, list[Any]] = {name: [row[c] for row in rows] for c, name in enumerate(columns)}
    return table.pop("position"), table, dict(left_out)


def _manifest(
    folder: Path, recipe: Recipe, table: Mapping[str, Sequence[Any]], left_out: Mapping[str, int]
) -> dict[str, Any]:
    """How the folder was made, what is in it, and the checksum of every file."""
    splits = np.array(table["split"])
    counts = {}
    for split in SPLITS:
        rows = np.flatnonzero(splits == split)
        counts[split] = {"pairs": len(rows)} | {
            f"{column}s": len({table[column][row] for row in rows}) for column in ("caption", "group", "set")
        }
    drawn: dict[str, set[int]] = defaultdict(set)
    for row in np.flatnonzero(splits == "pool"):
        drawn[table["caption"][row]].add(table["group"][row])
    return {
        "recipe": asdict(recipe),
        "code_version": CODE_VERSION,
        "made_with": {name: importlib.metadata.version(name) for name in ("resvg_py", "tokenizers")},
        "splits": counts,
        "pool_captions_by_hands": {
            str(k): sum(len(hands) >= k for hands in drawn.values()) for k in (1, 2, 3, 4, 6, 8, 12, 16, 24)
        },
        "left_out": left_out,
        "files": {
            path.name: {"bytes": path.stat().st_size, "blake2b": file_hash(path)} for path in sorted(folder.iterdir())
        },
    }


@dataclass(frozen=True)
class Icons(PreparedIcons):
    """Icons and their names, with as many wrong captions as asked for.

    Attributes:
        noise: share of the pairs in ``pool`` and ``holdout`` whose captions are exchanged, in [0, 1).
        noise_seed: decides which, and for what.
        min_hands: leave out of ``pool`` and ``holdout`` the captions that fewer hands drew.
        length: L, tokens a caption is cut or padded to.
        vocab_size: of the tokenizer, at most.
        cache_dir: where to prepare; by default the folder that the environment variable
            ``JESTBENCH_CACHE`` names, else the user's cache folder.
        recipe: what is prepared.
    """

    min_hands: int = 2
    recipe: Recipe = field(default=Recipe(), repr=False)
    label: ClassVar[str] = "icons"
    splits: ClassVar[tuple[str, ...]] = SPLITS
    clean: ClassVar[tuple[str, ...]] = CLEAN_SPLITS
    code_version: ClassVar[int] = CODE_VERSION

    def make(self, folder: Path, tarballs: Path) -> None:
        """Fetch, render and split."""
        prepare_folder(folder, self.recipe, self.vocab_size, tarballs)

    def table(self) -> Table:
        """What is known of the prepared images."""
        table = json.loads((self.folder / "table.json").read_text(encoding="utf-8"))
        split_N = np.array(table["split"])
        return Table(
            key_N=np.array(table["key"], dtype=np.int64),
            hands_N=np.array(table["hands"]),
            curated_N=split_N == "curated",
            rows=lambda part: split_N == part,
            captions=lambda part: table["caption"],
        )

    def pairs(self, chosen: Chosen) -> Pairs:
        """These pairs, with their images."""
        return chosen.in_array(self.folder / "images.npy")

    def stand_in(self) -> Dataset:
        """Synthetic pairs of the same shapes, that need no download."""
        from jestbench.data.synthetic import Synthetic

        return Synthetic(length=self.length, image_size=self.recipe.pixels).stand_in()
