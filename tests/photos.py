"""Photographs by number, their captions, and files and shards of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jestbench.data.encoded_images import WHOLE, ByteRanges
from jestbench.data.file_pairs import FilePairs, Texts
from jestbench.disk import content_key
from jestbench.model.tokenizer import Tokenizer, train_bpe

COLOURS = ("red", "green", "blue", "white", "black", "orange", "purple", "grey")
THINGS = ("car", "boat", "house", "tree", "dog", "lamp")


def caption(number: int) -> str:
    return f"a {COLOURS[number % 8]} {THINGS[number % 6]} number {number}"


def photo(number: int, width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    """Something smooth and noisy, unlike that of every other number."""
    generator = np.random.default_rng(number)
    grid = generator.uniform(0, 255, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(number: int) -> bytes:
    return encoded(photo(number), quality=90)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


TOKENIZER = Tokenizer(train_bpe([caption(i) for i in range(64)], 512).to_str(), 8)


def files_of(folder: Path, contents: list[bytes], captions: list[str] | None = None, **more) -> FilePairs:
    paths = []
    for number, content in enumerate(contents):
        paths.append(str(folder / f"{number}.jpg"))
        Path(paths[-1]).write_bytes(content)
    count = len(contents)
    source = ByteRanges(paths, np.arange(count, dtype=np.int32), np.zeros(count, np.int64), np.full(count, WHOLE))
    keys = np.array([content_key(content) for content in contents], dtype=np.int64)
    captions = captions or [caption(i) for i in range(count)]
    return FilePairs("files/pool", "print", source, Texts.of(captions), TOKENIZER, keys, 16, **more)


def write_numbered_shards(folder: Path, sizes: list[int]) -> tuple[str, ...]:
    """Tar shards of so many pairs, as webdataset's writer makes them; every image another one."""
    webdataset = pytest.importorskip("webdataset")

    number, paths = 0, []
    for shard, size in enumerate(sizes):
        paths.append(str(folder / f"{shard:03d}.tar"))
        with webdataset.TarWriter(paths[-1]) as writer:
            for _ in range(size):
                writer.write({"__key__": f"{number:06d}", "jpg": jpeg(number), "txt": f"number {number}"})
                number += 1
    return tuple(paths)


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar with these members, in this order, names twice or not."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def tar_of(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """The same as a file, its folder made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return path
