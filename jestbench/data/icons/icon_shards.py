"""From the package of all icons to WebDataset shards: rendering in parts, splits, samples in their places.

Rendering takes nearly all of the time, so each thousand drawings are one file (a part); a preparation that was
killed goes on with the parts that are there. What follows is a pass over the parts: names, hashes and thumbnails
decide which drawing goes where, and by that the place of every sample in its shard is known before it is written.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jestbench.batch import DataError
from jestbench.data.icons.icon_groups import (
    LOOK_BITS,
    NEAR,
    Icon,
    assign_splits,
    catalogue,
    look_alike,
    looks,
    merge_groups,
    rank,
)
from jestbench.data.icons.icon_render import Part, render_parts
from jestbench.data.icons.icon_tars import BLOCK, Place, member, opened, placed
from jestbench.data.icons.packages import INSTALL, IconSet, fetch, npm_pack, read_collection
from jestbench.data.icons.prepared_icons import file_hash, licences, write_json
from jestbench.data.icons.recipe import PLACES, POOL, TESTED, Recipe, Sizes
from jestbench.disk import LEFTOVERS, content_key, write_all
from jestbench.model.tokenizer import train_bpe

PART = 1000
"""Drawings rendered into one file: a second of work, all that a kill can lose on each core."""
BYTES_AN_ICON = 12_000
"""Disk that the preparation needs at its height, the parts and the finished folder together."""
Info = Mapping[str, Any]
"""What a set's metadata say of it: title, author, licence, palette."""


@dataclass(frozen=True)
class Rendered:
    """The parts, and what is in them.

    Attributes:
        parts: file and icons of each.
        sets: name → set and what is known of it.
    """

    parts: list[tuple[Path, list[Icon]]]
    sets: dict[str, tuple[IconSet, Info]]


@dataclass(frozen=True)
class Drawings:
    """All drawings that are not blank; of equal ones with one caption, the first.

    Attributes:
        icons: what was drawn.
        part_N: int64, which part holds each.
        place_N: int64, where in the part it stands.
        size_N: int64, bytes of its PNG.
        key_NK: int64 ``[N, 2]``, content hash of the pixels, whole and halved.
        look_NW: what each looks like, packed bits.
        groups: the group of each.
        left_out: icons that are not here, by reason.
    """

    icons: list[Icon]
    part_N: npt.NDArray[np.int64]
    place_N: npt.NDArray[np.int64]
    size_N: npt.NDArray[np.int64]
    key_NK: npt.NDArray[np.int64]
    look_NW: npt.NDArray[np.uint8]
    groups: list[str]
    left_out: Counter[str]


def prepare_folder(folder: Path, recipe: Recipe, vocab_size: int, tarballs: Path) -> None:
    """Fetch, render, split and write; the folder appears when it is complete.

    Args:
        folder: what to make; must not exist. The parts lie beside it until then.
        recipe: what goes into it.
        vocab_size: of the tokenizer, at most.
        tarballs: where the fetched package is kept.

    Raises:
        DataError: it cannot be made; the message says what to do.
        OSError: it cannot be written.
    """
    if importlib.util.find_spec("resvg_py") is None:
        raise DataError(f"icons are rendered with resvg_py, which is not installed: {INSTALL}")
    parts, work = folder.with_name(f"{folder.name}.parts"), folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    _check_space(folder.parent, parts, recipe.collection.icons)
    fetch([recipe.collection], tarballs, npm_pack)
    rendered = render_collection(tarballs / recipe.collection.tarball, recipe, parts)
    drawings = gather(rendered)
    split, left_out = divide(drawings, recipe)
    work.mkdir()
    try:
        counts = _write(work, rendered, drawings, split, recipe, vocab_size)
        _write_manifest(work, recipe, counts, left_out)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(parts)


def _check_space(folder: Path, parts: Path, icons: int) -> None:
    """Find out before minutes of work that the disk is too small.

    Raises:
        OSError: it is.
    """
    there = sum(path.stat().st_size for path in parts.iterdir()) if parts.is_dir() else 0
    needed, free = icons * BYTES_AN_ICON - there, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{needed / 1e9:.1f} GB are needed while it is made and {free / 1e9:.1f} GB are free")


def render_collection(tarball: Path, recipe: Recipe, folder: Path) -> Rendered:
    """Render every icon into parts; those that are there are passed over.

    Raises:
        DataError: a worker was killed, or the package holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(LEFTOVERS):  # of workers that were killed
        unfinished.unlink()
    rendered = Rendered([], {})

    def texts() -> Iterator[tuple[Path, Sequence[str]]]:
        for icon_set, content in read_collection(tarball):
            icons = catalogue(icon_set, content)
            rendered.sets[icon_set.name] = (icon_set, content.info)
            for start in range(0, len(icons), PART):
                some = icons[start : start + PART]
                path = folder / f"{icon_set.name}-{start:05d}.npz"
                rendered.parts.append((path, some))
                yield path, [content.svg(icon.name, recipe.pixels) for icon in some]

    try:
        render_parts(texts(), recipe.pixels, recipe.collection.icons)
    except BrokenProcessPool:
        raise DataError(
            "a process that rendered icons was killed (out of memory?): start again, what is rendered is kept"
        ) from None
    if missing := {*recipe.emoji, *recipe.transfer} - rendered.sets.keys():
        raise DataError(f"{recipe.collection.spec} has no set {', '.join(sorted(missing))}")
    return rendered


def gather(rendered: Rendered) -> Drawings:
    """What the parts hold, but for the pixels.

    Raises:
        DataError: a part is damaged; it is removed, so that it is rendered again.
    """
    icons: list[Icon] = []
    rows: list[tuple[int, int, int]] = []
    keys: list[npt.NDArray[np.int64]] = []
    thumbnails: list[npt.NDArray[np.uint8]] = []
    known: set[tuple[str, int]] = set()
    left_out: Counter[str] = Counter()
    for number, (path, some) in enumerate(rendered.parts):
        part = Part.read(path)
        if part is None or len(part.size_N) != len(some):
            raise _damaged(path)
        for place, (icon, size) in enumerate(zip(some, part.size_N.tolist(), strict=True)):
            content = (icon.caption, int(part.key_NK[place, 0]))
            if not size:
                left_out["blank"] += 1
            elif content in known:
                left_out["equal in pixels and caption"] += 1
            else:
                known.add(content)
                icons.append(icon)
                rows.append((number, place, size))
                keys.append(part.key_NK[place])
                thumbnails.append(part.thumbnail_ND[place])
    row_NK, key_NK = np.array(rows, dtype=np.int64).reshape(-1, 3), np.array(keys, dtype=np.int64).reshape(-1, 2)
    groups = merge_groups([icon.drawing for icon in icons], key_NK[:, 0].tolist())
    part_N, place_N, size_N = row_NK.T
    return Drawings(icons, part_N, place_N, size_N, key_NK, looks(np.array(thumbnails)), groups, left_out)


def _damaged(path: Path) -> DataError:
    path.unlink(missing_ok=True)
    return DataError(f"{path} was damaged: start again, it is rendered anew")


def divide(drawings: Drawings, recipe: Recipe) -> tuple[list[str], Counter[str]]:
    """Which part of the data each drawing goes to: see :mod:`jestbench.data.all_icons`.

    Returns:
        For each drawing one of ``PLACES``, or ``""`` where it is left out; how many are left out, and why.

    Raises:
        DataError: there are too few captions that many hands drew.
    """
    icons, groups, left_out = drawings.icons, drawings.groups, drawings.left_out.copy()
    split = [""] * len(icons)
    in_emoji = [icon.set in recipe.emoji for icon in icons]
    held_out = {group for icon, group in zip(icons, groups, strict=True) if icon.set in recipe.transfer}
    emoji = {group for group, drawn in zip(groups, in_emoji, strict=True) if drawn} - held_out

    def assign(rows: list[int], sizes: Sizes, names: Mapping[str, str]) -> None:
        found = assign_splits([icons[i].caption for i in rows], [groups[i] for i in rows], sizes)
        for i, name in zip(rows, found, strict=True):
            split[i] = names.get(name, name)

    faces = [i for i, group in enumerate(groups) if in_emoji[i] and group in emoji]
    assign(faces, recipe.emoji_sizes, {"pool": "curated"})
    assign(
        [i for i, group in enumerate(groups) if group not in emoji and group not in held_out],
        recipe.broad_sizes,
        {"pool": "other", "curated": "broad_curated", "eval": "broad_eval"},
    )
    # What the hand of an emoji drew of the same thing elsewhere keeps it company.
    home = {groups[i]: split[i] for i in reversed(faces) if split[i]}
    home |= {groups[i]: "eval" for i in faces if split[i] == "eval"}
    for i, group in enumerate(groups):
        if group in emoji and not in_emoji[i]:
            split[i] = {"curated": "other", "holdout": "holdout"}.get(home[group], "")

    shown = {icons[i].caption for i in faces if split[i] == "curated"}
    of_caption: dict[str, list[int]] = defaultdict(list)
    for i, icon in enumerate(icons):
        if icon.set in recipe.transfer and icon.caption in shown:
            of_caption[icon.caption].append(i)
    for candidates in of_caption.values():
        split[min(candidates, key=lambda i: (icons[i].style, icons[i].name))] = "transfer"
    left_out["other versions of what is tested, and captions of the held-out hand that nobody else drew"] += (
        split.count("")
    )
    left_out["look like what is tested"] += _drop_copies(split, drawings.look_NW)
    return split, left_out


def _drop_copies(split: list[str], look_NW: npt.NDArray[np.uint8]) -> int:
    """Take out of later splits what looks like a drawing of a tested one; the tested ones come first, in order."""
    dropped = 0
    for place, tested in enumerate(TESTED):
        split_N = np.array(split)
        later = np.flatnonzero(~np.isin(split_N, ["", *TESTED[: place + 1]]))
        copies = later[look_alike(look_NW[later], look_NW[split_N == tested])]
        dropped += len(copies)
        for i in copies.tolist():
            split[i] = ""
    return dropped


def copies_left(split_N: npt.NDArray[np.str_], look_NW: npt.NDArray[np.uint8]) -> dict[str, int]:
    """Drawings of each split that is trained on that look like one of a tested split: what must be 0."""
    return {
        f"{trained} like {tested}": int(look_alike(look_NW[split_N == trained], look_NW[split_N == tested]).sum())
        for tested in TESTED
        for trained in PLACES
        if trained not in TESTED
    }


def _write(
    work: Path, rendered: Rendered, drawings: Drawings, split: list[str], recipe: Recipe, vocab_size: int
) -> dict[str, Any]:
    """Write all but the manifest.

    Returns:
        What the manifest tells of the splits.
    """
    kept = [i for i, name in enumerate(split) if name]
    kept.sort(key=lambda i: (PLACES.index(split[i]), rank("order", drawings.icons[i].set, drawings.icons[i].name)))
    icons = [drawings.icons[i] for i in kept]
    split_N = np.array(split)[kept]
    hands: dict[str, set[str]] = defaultdict(set)
    for icon in icons:
        hands[icon.caption].add(icon.drawing[0])
    number_of = {name: number for number, name in enumerate(rendered.sets)}
    _, group_N = np.unique([drawings.groups[i] for i in kept], return_inverse=True)
    texts = [
        json.dumps(_facts(icon, *rendered.sets[icon.set], int(group)), ensure_ascii=False).encode()
        for icon, group in zip(icons, group_N, strict=True)
    ]
    place = placed(split_N, drawings.size_N[kept], [len(text) for text in texts], recipe.shard)
    png_key_N = _write_samples(work, rendered, drawings, np.array(kept), place, texts, recipe.pixels // 2)
    np.savez(
        work / "index.npz",
        split=np.array([PLACES.index(name) for name in split_N], dtype=np.int8),
        shard=place.shard_N,
        offset=place.offset_N + BLOCK,
        size=drawings.size_N[kept],
        key=png_key_N,
        half_key=drawings.key_NK[kept, 1],
        look=drawings.look_NW[kept],
        group=group_N.astype(np.int32),
        hands=np.array([len(hands[icon.caption]) for icon in icons], dtype=np.int16),
        set=np.array([number_of[icon.set] for icon in icons], dtype=np.int16),
    )
    write_json(work / "shards.json", place.names)
    for name, lines in (("captions.txt", [i.caption for i in icons]), ("names.txt", [spoken(i.name) for i in icons])):
        (work / name).write_text("\n".join(lines), encoding="utf-8")
    write_json(work / "licences.json", licences(rendered.sets.values(), Counter(icon.set for icon in icons)))
    vocabulary = [text for icon in icons for text in (icon.caption, spoken(icon.name))]
    (work / "tokenizer.json").write_text(train_bpe(vocabulary, vocab_size).to_str(), encoding="utf-8")
    return _counts(icons, split_N, group_N, hands) | {"copies_left": copies_left(split_N, drawings.look_NW[kept])}


def spoken(name: str) -> str:
    """An icon's whole name as words, never empty."""
    return " ".join(name.lower().replace("_", "-").replace("-", " ").split()) or name


def _facts(icon: Icon, icon_set: IconSet, info: Info, group: int) -> dict[str, Any]:
    """The JSON member of a sample."""
    return {
        "caption": icon.caption,
        "name": icon.name,
        "style": icon.style,
        "set": icon.set,
        "hand": icon_set.hand,
        "licence": info.get("license", {}).get("spdx"),
        "palette": bool(info.get("palette")),
        "group": group,
    }


def _write_samples(
    work: Path,
    rendered: Rendered,
    drawings: Drawings,
    kept_N: npt.NDArray[np.int64],
    place: Place,
    texts: Sequence[bytes],
    half: int,
) -> npt.NDArray[np.int64]:
    """Write shards and halved images, each sample to its place, one part after another.

    Written, not memory-mapped: a full disk is then an error with a message, and not a killed process.

    Returns:
        int64 content hash of each PNG.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(kept_N), half, half, 3)}
    row_of_part: dict[int, list[int]] = defaultdict(list)
    for row, part in enumerate(drawings.part_N[kept_N].tolist()):
        row_of_part[part].append(row)
    key_N = np.empty(len(kept_N), dtype=np.int64)
    with (work / "images-32.npy").open("wb") as array, opened(work, place) as shards:
        np.lib.format.write_array_header_1_0(array, header)
        array.flush()
        begin, each = array.tell(), half * half * 3
        for number, rows in row_of_part.items():
            path = rendered.parts[number][0]
            pixels = Part.pixels(path)
            if pixels is None:
                raise _damaged(path)
            pngs, halved = pixels
            for row in rows:
                where = int(drawings.place_N[kept_N[row]])
                sample = member(f"{row:07d}.png", pngs[where]) + member(f"{row:07d}.json", texts[row])
                write_all(shards[int(place.shard_N[row])], sample, int(place.offset_N[row]))
                write_all(array.fileno(), halved[where].tobytes(), begin + row * each)
                key_N[row] = content_key(pngs[where])
    return key_N


def _counts(
    icons: Sequence[Icon], split_N: npt.NDArray[np.str_], group_N: npt.NDArray[np.int64], hands: Mapping[str, set[str]]
) -> dict[str, Any]:
    """How many pairs, captions, groups and sets there are in each split, and captions by hands."""
    counts = {}
    for name, places in {"pool": POOL, **{place: (place,) for place in PLACES}}.items():
        rows = np.flatnonzero(np.isin(split_N, places))
        counts[name] = {
            "pairs": len(rows),
            "captions": len({icons[row].caption for row in rows}),
            "groups": len(np.unique(group_N[rows])),
            "sets": len({icons[row].set for row in rows}),
        }
    pool = Counter(icon.caption for icon, name in zip(icons, split_N, strict=True) if name in POOL)
    by_hands = {}
    for least in (1, 2, 3, 4, 6, 8, 12, 16):
        counted = [pairs for caption, pairs in pool.items() if len(hands[caption]) >= least]
        by_hands[str(least)] = {"captions": len(counted), "pairs": sum(counted)}
    return {"splits": counts, "pool_captions_by_hands": by_hands}


def _write_manifest(work: Path, recipe: Recipe, counts: Mapping[str, Any], left_out: Mapping[str, int]) -> None:
    """How the folder was made, what is in it, and the checksum of every file."""
    files = {path.name: {"bytes": path.stat().st_size, "blake2b": file_hash(path)} for path in sorted(work.iterdir())}
    manifest = {
        "recipe": asdict(recipe),
        "made_with": {name: importlib.metadata.version(name) for name in ("resvg_py", "pillow", "tokenizers")},
        **counts,
        "left_out": dict(left_out),
        "near": {"bits": LOOK_BITS, "distance": NEAR},
        "files": files,
    }
    write_json(work / "manifest.json", manifest)
