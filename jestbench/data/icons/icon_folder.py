"""The folder of a prepared data set of icons: an array of images, shards where they are asked for, and an index.

* ``images-<pixels>.npy``: uint8 ``[N, pixels, pixels, 3]``, memory-mapped;
* ``index.npz``, ``captions.txt``, ``names.txt``: what is known of each image (its whole name as words);
* ``<split>-00000.tar`` …, ``shards.json``: WebDataset shards, and their names;
* ``tokenizer.json``: a byte-pair tokenizer trained on the captions;
* ``licences.json``: title, authors, licence of every set;
* ``manifest.json``: how it was made, counts, what was left out and why, checksums.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jestbench.batch import DataError
from jestbench.data.icons.icon_drawings import Drawings, Info, gather, render_icons
from jestbench.data.icons.icon_groups import Icon, rank
from jestbench.data.icons.icon_looks import LOOKS
from jestbench.data.icons.icon_render import IconPart
from jestbench.data.icons.icon_splits import copies_left, count_hands, divide
from jestbench.data.icons.icon_tars import write_shards
from jestbench.data.icons.packages import INSTALL, IconSet, fetch
from jestbench.data.icons.recipe import Recipe
from jestbench.disk import LEFTOVERS, file_digest, whole, write_all
from jestbench.model.tokenizer import train_bpe

PNG_BYTES = 3_000
"""Disk that the PNG of an icon takes, its place in a shard included."""


def prepare_folder(folder: Path, recipe: Recipe, vocab_size: int, tarballs: Path) -> None:
    """Fetch, render, split and write; the folder appears when it is complete.

    Args:
        folder: what to make; must not exist. The parts lie beside it until then.
        recipe: what goes into it.
        vocab_size: of the tokenizer, at most.
        tarballs: where the fetched packages are kept.

    Raises:
        DataError: the data set cannot be prepared; the message names the remedy.
        OSError: it cannot be written.
    """
    if importlib.util.find_spec("resvg_py") is None:
        raise DataError(f"icons are rendered with resvg_py, which is not installed: {INSTALL}")
    parts = folder.with_name(f"{folder.name}.parts")
    for unfinished in folder.parent.glob(f".{folder.name}{LEFTOVERS.lstrip('.')}"):  # of a preparation that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    _check_space(folder.parent, parts, recipe)
    fetch(recipe.packages, tarballs)
    drawings = gather(render_icons(recipe, tarballs, parts))
    split, left_out = divide(drawings, recipe)
    with whole(folder) as work:
        work.mkdir()
        counts = write_files(work, drawings, split, recipe, vocab_size)
        _write_json(work / "manifest.json", _manifest(work, recipe) | counts | {"left_out": left_out})
    shutil.rmtree(parts)


def _check_space(folder: Path, parts: Path, recipe: Recipe) -> None:
    """Raise ``OSError`` before minutes of work if the disk has no room for parts and finished folder together."""
    there = sum(path.stat().st_size for path in parts.iterdir()) if parts.is_dir() else 0
    an_icon = 3 * recipe.image_size**2 + PNG_BYTES * recipe.form.encoded
    needed, free = 2 * recipe.icons * an_icon - there, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{needed / 1e9:.1f} GB are needed while it is made and {free / 1e9:.1f} GB are free")


def write_files(
    work: Path, drawings: Drawings, split: Sequence[str], recipe: Recipe, vocab_size: int
) -> dict[str, Any]:
    """Write all files except the manifest.

    Args:
        work: an empty folder.
        drawings: all drawings.
        split: split of each drawing; ``""`` where it is left out.
        recipe: which files are written.
        vocab_size: largest vocabulary of the tokenizer.

    Returns:
        Counts for the manifest.
    """

    def order(i: int) -> tuple[int, bytes, int]:
        shuffled = rank("order", drawings.icons[i].set, drawings.icons[i].name) if recipe.shard else b""
        return recipe.places.index(split[i]), shuffled, i

    kept = sorted((i for i, name in enumerate(split) if name), key=order)
    hands = count_hands((icon.caption for icon in drawings.icons), drawings.groups)
    drawings, split_N = drawings.taken(kept), np.array(split)[kept]
    icons = drawings.icons
    if recipe.hands == "kept":
        hands = count_hands((icon.caption for icon in icons), (icon.hand for icon in icons))
    numbers = {name: number for number, name in enumerate(drawings.sets)}
    _, group_N = np.unique(drawings.groups, return_inverse=True)
    index: dict[str, Any] = {
        "split": np.array([recipe.places.index(name) for name in split_N], dtype=np.int8),
        "key": drawings.key_NK[:, 1],
        "group": group_N.astype(np.int32),
        "hands": np.array([hands[icon.caption] for icon in icons], dtype=np.int16),
        "set": np.array([numbers[icon.set] for icon in icons], dtype=np.int16),
    }
    if recipe.shard:
        facts = (_facts(icon, *drawings.sets[icon.set], int(g)) for icon, g in zip(icons, group_N, strict=True))
        texts = [json.dumps(some, ensure_ascii=False).encode() for some in facts]
        names, columns = write_shards(work, drawings, split_N, texts, recipe.shard)
        index |= columns
        _write_json(work / "shards.json", names)
    np.savez(work / "index.npz", **index)
    _write_images(work / recipe.images, drawings, recipe.image_size)
    captions, whole = [icon.caption for icon in icons], [spoken(icon.name) for icon in icons]
    for name, lines in (("captions.txt", captions), ("names.txt", whole)):
        (work / name).write_text("\n".join(lines), encoding="utf-8")
    _write_json(work / "licences.json", _licences(drawings.sets.values(), Counter(icon.set for icon in icons)))
    backend = train_bpe([*captions, *(whole if recipe.named else ())], vocab_size)
    (work / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    return _counts(icons, split_N, group_N, hands, recipe) | {
        "copies_left": copies_left(split_N, drawings.look_NW, recipe)
    }


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


def _write_images(path: Path, drawings: Drawings, pixels: int) -> None:
    """Write the images into an array file, each to its place.

    Written, not memory-mapped: a full disk is then an error with a message, and not a killed process.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(drawings), pixels, pixels, 3)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        begin = file.tell()
        for position, image in drawings.each(IconPart.images):
            write_all(file.fileno(), image.tobytes(), begin + position * image.nbytes)


def _counts(
    icons: Sequence[Icon],
    split_N: npt.NDArray[np.str_],
    group_N: npt.NDArray[np.int64],
    hands: Mapping[str, int],
    recipe: Recipe,
) -> dict[str, Any]:
    """How many pairs, captions, groups and sets there are in each split, and captions by hands."""
    counts = {}
    for name, places in {**{place: (place,) for place in recipe.places}, "pool": recipe.pool}.items():
        rows = np.flatnonzero(np.isin(split_N, places)).tolist()
        counts[name] = {
            "pairs": len(rows),
            "captions": len({icons[row].caption for row in rows}),
            "groups": len(np.unique(group_N[rows])),
            "sets": len({icons[row].set for row in rows}),
        }
    pool = Counter(icon.caption for icon, name in zip(icons, split_N, strict=True) if name in recipe.pool)
    by_hands = {}
    for least in (1, 2, 3, 4, 6, 8, 12, 16, 24):
        counted = [pairs for caption, pairs in pool.items() if hands[caption] >= least]
        by_hands[str(least)] = {"captions": len(counted), "pairs": sum(counted)}
    return {"splits": counts, "pool_captions_by_hands": by_hands}


def _licences(sets: Iterable[tuple[IconSet, Info]], count: Mapping[str, int]) -> list[dict[str, Any]]:
    """Title, authors and licence of each set.

    Args:
        sets: each set with its ``info.json``.
        count: set's name → number of its icons that were kept.
    """
    return [
        {
            "set": icon_set.name,
            "version": icon_set.version,
            "title": info.get("name"),
            "author": info.get("author", {}).get("name"),
            "url": info.get("author", {}).get("url"),
            "licence": info.get("license", {}).get("title"),
            "spdx": info.get("license", {}).get("spdx"),
            "licence_url": info.get("license", {}).get("url"),
            "count": count.get(icon_set.name, 0),
        }
        for icon_set, info in sets
    ]


def _manifest(work: Path, recipe: Recipe) -> dict[str, Any]:
    """How the folder was made, and the checksum of every file."""
    return {
        "recipe": asdict(recipe),
        "made_with": {name: importlib.metadata.version(name) for name in ("resvg_py", "pillow", "tokenizers")},
        "near": LOOKS[recipe.form.alike].near,
        "files": {
            path.name: {"bytes": path.stat().st_size, "blake2b": file_digest(path)} for path in sorted(work.iterdir())
        },
    }


def _write_json(path: Path, content: object) -> None:
    """Write a JSON file on one line."""
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
