"""WebDataset shards of icons: every sample has its place in its shard before it is written."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jestbench.data.icons.icon_drawings import Drawings
from jestbench.data.icons.icon_render import IconPart
from jestbench.disk import content_key, write_all

BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class ShardPlaces:
    """Shard and offset of each sample.

    Attributes:
        names: names of the shards.
        bytes: size of each shard.
        shard_N: int32, the shard of each sample.
        offset_N: int64, offset in that shard at which the sample begins.
    """

    names: list[str]
    bytes: list[int]
    shard_N: npt.NDArray[np.int32]
    offset_N: npt.NDArray[np.int64]


def write_shards(
    work: Path, drawings: Drawings, split_N: npt.NDArray[np.str_], texts: Sequence[bytes], most: int
) -> tuple[list[str], dict[str, npt.NDArray[Any]]]:
    """Write each sample, a ``png`` and a ``json``, to its place in a shard of its split.

    Args:
        work: where to write.
        drawings: in the order of the samples, split by split.
        split_N: the split of each.
        texts: the JSON member of each.
        most: samples in a shard.

    Returns:
        The names of the shards. Of each sample the shard, offset and size of its PNG, and the content hash of that.
    """
    place = placed(split_N, drawings.size_N, [len(text) for text in texts], most)
    key_N = np.empty(len(drawings), dtype=np.int64)
    with opened(work, place) as shards:
        for position, png in drawings.each(IconPart.pngs):
            sample = member(f"{position:07d}.png", png) + member(f"{position:07d}.json", texts[position])
            write_all(shards[int(place.shard_N[position])], sample, int(place.offset_N[position]))
            key_N[position] = content_key(png)
    offset_N = place.offset_N + BLOCK
    return place.names, {"shard": place.shard_N, "offset": offset_N, "size": drawings.size_N, "png_key": key_N}


def placed(
    split_N: npt.NDArray[np.str_], png_N: npt.NDArray[np.int64], text_N: Sequence[int], most: int
) -> ShardPlaces:
    """Give every sample its place: a header and the padded content of two members each."""
    blocks = [-(-np.asarray(size_N) // BLOCK) for size_N in (png_N, text_N)]
    padded = (2 + blocks[0] + blocks[1]) * BLOCK
    place = ShardPlaces([], [], np.empty(len(split_N), np.int32), np.empty(len(split_N), np.int64))
    for name in dict.fromkeys(split_N.tolist()):
        rows = np.flatnonzero(split_N == name)
        for number, start in enumerate(range(0, len(rows), most)):
            some = rows[start : start + most]
            ends = np.cumsum(padded[some])
            place.shard_N[some] = len(place.names)
            place.offset_N[some] = ends - padded[some]
            place.names.append(f"{name}-{number:05d}.tar")
            place.bytes.append(int(ends[-1]) + 2 * BLOCK)
    return place


@contextmanager
def opened(work: Path, place: ShardPlaces) -> Iterator[list[int]]:
    """File descriptors of all shards, each of its final size: two empty blocks end an archive."""
    files: list[int] = []
    try:
        for name, size in zip(place.names, place.bytes, strict=True):
            files.append(os.open(work / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644))
            os.ftruncate(files[-1], size)
        yield files
    finally:
        for file in files:
            os.close(file)


def member(name: str, content: bytes) -> bytes:
    """A file as it lies in a tar archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % BLOCK)
