"""The data that users already have: shards, tables and Hugging Face data sets, whole and damaged."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from jestbench.data.decode import decode
from jestbench.data.files import WHOLE, ByteRanges, FilePairs, Texts
from jestbench.data.pairs import content_key
from jestbench.data.tokenizer import Tokenizer, train_bpe

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


TOKENIZER = Tokenizer(train_bpe([caption(i) for i in range(64)], 256).to_str(), 8)


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


def test_pairs_of_files_are_what_the_files_hold(tmp_path):
    pairs = files_of(tmp_path, [jpeg(i) for i in range(6)])
    batch = pairs.batch(torch.tensor([4, 1]))
    assert batch.captions == (caption(4), caption(1))
    assert torch.equal(batch.images_BCHW[0], torch.from_numpy(decode(jpeg(4), 16)).permute(2, 0, 1))
    assert torch.equal(batch.text_key_B, pairs.text_key_N[[4, 1]])
    assert torch.equal(batch.token_ids[TOKENIZER.identity], TOKENIZER.encode(batch.captions))
    assert batch.counts == {"read": 2, "damaged": 0}
    again = pickle.loads(pickle.dumps(pairs)).batch(torch.tensor([4, 1]))
    assert torch.equal(again.images_BCHW, batch.images_BCHW)
