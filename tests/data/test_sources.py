"""The data that users already have: shards, tables and Hugging Face data sets, whole and damaged."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from helpers import rows_of, summary_of
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import TOKENIZER, caption, encoded, files_of, half, jpeg, photo, tar_of
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from jestbench.batch import DataError
from jestbench.compare.analysis import analyse
from jestbench.data.captions import Captions
from jestbench.data.decode import Damage, DamagedImage, decode, probe
from jestbench.data.file_pairs import FilePairs
from jestbench.data.sources.csv_tables import Csv
from jestbench.data.sources.hugging_face import HuggingFace
from jestbench.data.sources.source import Source
from jestbench.data.sources.web_dataset import WebDataset
from jestbench.data.super_batches import EpochPlan, SuperBatches
from jestbench.disk import content_key
from jestbench.launch import command
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.model.tokenizer_choice import TokenizerChoice
from jestbench.runs.folder import RunFolder
from jestbench.runs.saved_model import towers_of

GIN = Path(__file__).resolve().parents[2] / "gin"


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


# Decoding


def bomb(side: int = 50_000) -> bytes:
    """A PNG of that many pixels a side in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "1"])
def test_every_kind_of_pixel_becomes_rgb(mode):
    kind = {"CMYK": "JPEG", "RGB": "PNG", "L": "PNG", "P": "PNG", "1": "PNG"}[mode]
    image = photo(3, 32, 32, mode)
    expected = np.asarray(image.convert("RGB"), dtype=float)
    found = decode(encoded(image, kind, **({"quality": 100} if kind == "JPEG" else {})), 32)
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    assert np.abs(found - expected).mean() < 2


def test_sixteen_bits_are_scaled_not_cut():
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        found = decode(encoded(Image.fromarray(ramp), kind), 32)
        assert np.array_equal(found[..., 0], ramp >> 8)


def test_alpha_lies_over_white():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (200, 0, 0, 255)
    found = decode(encoded(Image.fromarray(pixels), "PNG"), 8)
    assert found[0, 0].tolist() == [200, 0, 0]
    assert found[7, 7].tolist() == [255, 255, 255], "transparent black is not black"
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert decode(encoded(palette, "PNG", transparency=0), 8)[0, 0].tolist() == [255, 255, 255]


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(content, 8)[4, 4].tolist() == [255, 0, 0], kind


def test_a_photo_is_turned_as_exif_says():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise: left becomes top
    found = decode(encoded(Image.fromarray(pixels), "JPEG", quality=100, exif=exif), 16)
    assert found[:6].min() > 200
    assert found[10:].max() < 55
    broken = encoded(Image.fromarray(pixels), "JPEG", quality=100, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(broken, 16)[:, :6].min() > 200


def test_the_shortest_side_is_scaled_and_the_centre_cropped():
    image = photo(1, 90, 30)
    whole = image.resize((48, 16), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((16, 0, 32, 16)), dtype=float)
    assert np.abs(decode(encoded(image, "PNG"), 16) - expected).max() <= 1
    assert decode(encoded(photo(1, 1, 3000), "PNG"), 16).shape == (16, 16, 3), "a thread is no bomb"


def test_a_large_jpeg_decoded_at_a_reduced_scale_looks_the_same():
    image = photo(5, 800, 640)
    content = encoded(image, quality=95)
    side = image.crop((80, 0, 720, 640)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(decode(content, 32) - np.asarray(side, dtype=float)).max() < 6


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty image"),
        (b"<html>404</html>", "no image"),
        (bomb(), "too many pixels"),
        (bomb(9_000), "too many pixels"),
        (half(encoded(photo(1, 200, 160))), "undecodable image"),
        (encoded(photo(1), "PNG")[:-200], "undecodable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
    ],
)
def test_damaged_images_are_named(content, reason, monkeypatch):
    if reason == "too many pixels":
        monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were touched"))
        with pytest.raises(DamagedImage):
            probe(content)
    with pytest.raises(DamagedImage) as damaged:
        decode(content, 16)
    assert damaged.value.reason == reason
    assert pickle.loads(pickle.dumps(damaged.value)).reason == reason


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_damage_to_a_file_gets_past_its_name(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]))
    content = bytearray(encoded(photo(2, 24, 20), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        decode(bytes(content[:cut]), 8, max_pixels=10_000)
    except DamagedImage as damaged:
        said = damaged.reason
    else:
        said = "undecodable image"
    assert said in get_args(Damage)


# Damage found when an image is read


def test_a_damaged_image_is_replaced_and_counted(tmp_path):
    good = [jpeg(i) for i in range(20)]
    pairs = files_of(tmp_path, [*good[:3], good[3][:300], *good[4:]])
    (tmp_path / "5.jpg").unlink()
    (tmp_path / "7.jpg").write_bytes(jpeg(77))
    asked = torch.tensor([3, 0, 5, 7, 19])
    batch = pairs.batch(asked)
    assert batch.counts["damaged"] >= 3
    assert batch.counts["read"] == 5 + batch.counts["damaged"]
    assert batch.captions[1] == caption(0)
    assert batch.captions[4] == caption(19)
    keys = batch.image_key_B.tolist()
    assert len(set(keys)) == 5, "no pair twice"
    for slot, key in enumerate(keys):  # image, caption and keys are of one pair
        position = pairs.image_key_N.tolist().index(key)
        assert batch.captions[slot] == caption(position)
        assert position not in (3, 5, 7)
        expected = torch.from_numpy(decode(good[position], 16)).permute(2, 0, 1)
        assert torch.equal(batch.images_BCHW[slot], expected)
    again = pairs.batch(asked)
    assert again.captions == batch.captions
    assert again.counts == batch.counts


def test_what_is_evaluated_is_refused_rather_than_replaced(tmp_path):
    pairs = files_of(tmp_path, [jpeg(i) for i in range(4)], exact=True)
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"files/pool: pair 2: unreadable file.*2\.jpg"):
        pairs.batch(torch.arange(4))


def test_where_nothing_can_be_read_the_run_ends(tmp_path):
    pairs = files_of(tmp_path, [jpeg(i) for i in range(8)])
    for file in tmp_path.glob("*.jpg"):
        file.unlink()
    with pytest.raises(DataError, match="unreadable file"):
        pairs.batch(torch.arange(4))


def test_too_much_damage_stops_the_run_and_a_resumed_run_counts_on(tmp_path):
    contents = [jpeg(i) for i in range(40)]
    pairs = files_of(tmp_path, contents, max_damaged=0.01)
    batches = SuperBatches(EpochPlan(pairs, 8, seed=0))
    for number in (3, 11):
        (tmp_path / f"{number}.jpg").unlink()
    steps = iter(range(200))
    with pytest.raises(DataError, match=r"1[0-9] of \d+ images read are damaged.*max_damaged"):
        any(len(batches.at(step)) == 0 for step in steps)
    step = next(steps) - 1
    before = batches.counts(step)
    assert before["data/damaged"] > 10, "a share of at least 1,000: ten are let pass"
    resumed = SuperBatches(EpochPlan(pairs, 8, seed=0))
    resumed.load_state_dict(pickle.loads(pickle.dumps(batches.state_dict())))
    assert resumed.counts(step) == before
    assert "data/damaged" not in SuperBatches(EpochPlan(pairs, 8, 0)).counts(0)


# Captions and tokenizers


def test_captions_are_normalised_and_cut():
    assert Captions().normalise("  Ａ ﬁne\n\n day\u3000 ") == "A fine day"
    assert Captions(lower=True).normalise("A Red Cat") == "a red cat"
    assert Captions(nfkc=False, spaces=False).normalise("Ａ  b") == "Ａ  b"
    assert len(Captions(max_characters=50).normalise("word " * 200_000)) <= 50
    assert Captions().usable(["a", " a ", "", "\u3000", "b"]) == ["a", "b"]


def several(tmp_path: Path) -> FilePairs:
    captions = [f"{letter} of {i}" for i in range(30) for letter in "abc"[: 1 + i % 3]]
    first = np.cumsum([0] + [1 + i % 3 for i in range(29)])
    return files_of(tmp_path, [jpeg(i) for i in range(30)], captions, first_N=first)


def test_one_of_several_captions_is_drawn_anew_each_epoch(tmp_path):
    pairs = several(tmp_path)
    index = torch.arange(30)
    assert pairs.batch(index).captions == tuple(f"a of {i}" for i in range(30))
    drawn = [pairs.drawn(7, epoch) for epoch in range(60)]
    for epoch in (0, 1):
        batch = drawn[epoch].batch(index)
        assert [text.split()[-1] for text in batch.captions] == [str(i) for i in range(30)], "its own captions alone"
        assert batch.text_key_B.tolist() == [content_key(text.encode()) for text in batch.captions]
        assert torch.equal(batch.text_key_B, drawn[epoch].text_key_N)
        assert torch.equal(batch.token_ids[TOKENIZER.identity], TOKENIZER.encode(batch.captions))
    keys = torch.stack([pairs.text_key_N for pairs in drawn])
    assert all(len(keys[:, i].unique()) == 1 + i % 3 for i in range(30)), "in the end each is drawn"
    shares = [(keys[:, i] == keys[:, i].unique()[0]).double().mean() for i in range(2, 30, 3)]
    assert 0.25 < float(np.mean(shares)) < 0.42
    assert torch.equal(pairs.drawn(7, 3).text_key_N, keys[3])
    assert not torch.equal(pairs.drawn(8, 3).text_key_N, keys[3])
    sent = pickle.loads(pickle.dumps(drawn[3]))
    assert torch.equal(sent.text_key_N, keys[3])


def test_super_batches_draw_by_epoch(tmp_path):
    batches = SuperBatches(EpochPlan(several(tmp_path), 30, seed=1))
    texts = [dict(zip(b.image_key_B.tolist(), b.captions, strict=True)) for b in map(batches.at, (0, 1, 2))]
    assert texts[0] != texts[1]
    assert dict(zip(batches.at(0).image_key_B.tolist(), batches.at(0).captions, strict=True)) == texts[0]


def test_all_captions_can_be_pairs_of_their_own(tmp_path):
    pairs = several(tmp_path)
    every = pairs.expanded()
    assert len(every) == 60
    batch = every.batch(torch.arange(60))
    assert list(batch.captions) == list(pairs.captions)
    assert len(batch.image_key_B.unique()) == 30
    assert len(pickle.loads(pickle.dumps(every))) == 60


def clip_like(pad_with_end: bool = True) -> Backend:
    """A tokenizer.json as CLIP's: opened and closed by special tokens, padded with the end token, fixed length."""
    words = {word: i for i, word in enumerate(["<unk>", "a", "red", "cat", "<|startoftext|>", "<|endoftext|>"])}
    backend = Backend(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", 4), ("<|endoftext|>", 5)]
    )
    backend.enable_truncation(77)
    if pad_with_end:
        backend.enable_padding(length=77, pad_id=5, pad_token="<|endoftext|>")
    return backend


def test_a_foreign_tokenizer_keeps_its_frame_and_gets_a_padding_that_is_no_end(tmp_path):
    (tmp_path / "tokenizer.json").write_text(clip_like().to_str())
    tokenizer = TokenizerChoice(source=str(tmp_path), length=6).load(tmp_path, "")
    assert tokenizer.pad != tokenizer.end == "<|endoftext|>"
    assert tokenizer.pad_id not in (4, 5)
    assert tokenizer.encode(["a red cat"]).tolist() == [[4, 1, 2, 3, 5, tokenizer.pad_id]]
    assert tokenizer.encode(["cat cat cat cat cat cat"]).tolist() == [[4, 3, 3, 3, 3, 5]]
    assert int(tokenizer.encode(["cat"]).max()) < tokenizer.vocab_size


def test_special_tokens_are_found_or_named(tmp_path):
    words = {word: i for i, word in enumerate(["[UNK]", "cat", "[CLS]", "[SEP]", "[PAD]", "[X]"])}
    backend = Backend(models.WordLevel(words, unk_token="[UNK]"))
    backend.add_special_tokens(["[CLS]", "[SEP]", "[PAD]", "[X]"])
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    (tmp_path / "bert.json").write_text(backend.to_str())
    choice = TokenizerChoice(source=str(tmp_path / "bert.json"), length=5)
    found = choice.load(tmp_path, "")
    assert (found.pad, found.end) == ("[PAD]", "[SEP]")
    assert found.encode(["cat"]).tolist() == [[2, 1, 3, 4, 4]]
    named = replace(choice, pad="[X]").load(tmp_path, "")
    assert named.encode(["cat"]).tolist() == [[2, 1, 3, 5, 5]]
    assert named.identity != found.identity, "a model of one is not offered ids of the other"
    with pytest.raises(DataError, match=r"tokenizer\.pad = '\[Y\]'"):
        replace(choice, pad="[Y]").load(tmp_path, "")
    with pytest.raises(ValueError, match=r"tokenizer\.length"):
        TokenizerChoice(length=1)


def test_a_tokenizer_that_is_none_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.source = .*x\.json' is no tokenizer\.json"):
        TokenizerChoice(source=str(tmp_path / "x.json")).load(tmp_path, "")
    with pytest.raises(DataError, match="there is no such file"):
        TokenizerChoice(source="no/such/place/tokenizer.json").prepare(tmp_path, "", list)


def test_a_tokenizer_of_the_hub_is_fetched_once(tmp_path, monkeypatch):
    asked = []

    def from_pretrained(name: str, revision: str = "main") -> Backend:
        asked.append((name, revision))
        return clip_like()

    monkeypatch.setattr(
        "jestbench.model.tokenizer_choice.Backend",
        type("Hub", (), {"from_pretrained": staticmethod(from_pretrained), "from_str": staticmethod(Backend.from_str)}),
    )
    choice = TokenizerChoice(source="openai/clip-vit-base-patch32", length=6)
    assert not choice.is_prepared(tmp_path, "x")
    for _ in range(2):
        choice.prepare(tmp_path, "x", lambda: pytest.fail("nothing is trained"))
    assert asked == [("openai/clip-vit-base-patch32", "main")]
    assert choice.is_prepared(tmp_path, "other captions")
    assert choice.load(tmp_path, "x").encode(["a cat"]).tolist()[0][:4] == [4, 1, 3, 5]


# Sources


def folder_of_photos(folder: Path, count: int, start: int = 0) -> list[tuple[Path, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(start, start + count):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
        found.append((folder / f"{number}.jpg", caption(number)))
    return found


def write_shards(pattern: str, photos: list[tuple[Path, str]], per_shard: int = 20) -> None:
    """As the README says, with webdataset's own writer."""
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as shards:
        for number, (path, text) in enumerate(photos):
            shards.write({"__key__": f"{number:06d}", "jpg": path.read_bytes(), "txt": text})


def sample(number: int, **members: bytes) -> list[tuple[str, bytes]]:
    found = {"jpg": jpeg(number), "txt": caption(number).encode()} | members
    return [(f"{number:04d}.{ending}", content) for ending, content in found.items() if content is not None]


def small(kind: type[Source], tmp_path: Path, **bound: Any) -> Any:
    defaults = {"image_size": 16, "cache_dir": str(tmp_path / "cache")}
    return kind(**defaults | {"tokenizer": TokenizerChoice(length=8, vocab_size=300)} | bound)


def prepared(kind: type[Source], tmp_path: Path, **bound: Any) -> Any:
    source = small(kind, tmp_path, **bound)
    assert not source.is_prepared()
    source.prepare()
    assert source.is_prepared()
    return source


def expect(pairs: Any, numbers: list[int]) -> None:
    """The pairs hold these photos and their captions, in this order."""
    batch = pairs.batch(torch.arange(len(pairs)))
    assert list(batch.captions) == [caption(number) for number in numbers]
    images = [torch.from_numpy(decode(jpeg(number), 16)).permute(2, 0, 1) for number in numbers]
    assert torch.equal(batch.images_BCHW, torch.stack(images))
    assert batch.image_key_B.tolist() == [content_key(jpeg(number)) for number in numbers]
    assert batch.text_key_B.tolist() == [content_key(caption(number).encode()) for number in numbers]


def test_shards_of_webdatasets_writer(tmp_path):
    photos = folder_of_photos(tmp_path / "photos", 60)
    write_shards(str(tmp_path / "pool-%02d.tar"), photos[:50])
    write_shards(str(tmp_path / "eval-%02d.tar"), photos[50:])
    source = prepared(
        WebDataset,
        tmp_path,
        pool=f"{tmp_path}/pool-{{00..02}}.tar",
        eval=f"{tmp_path}/eval-*.tar",
        curated=str(tmp_path),
    )
    expect(source.split("pool"), list(range(50)))
    expect(source.split("eval"), list(range(50, 60)))
    joined = source.split("pool+eval")
    expect(joined, list(range(60)))
    assert joined.fingerprint != source.split("pool").fingerprint
    assert source.split("pool+curated").marks["curated"].sum() == 60
    assert source.split("pool").exact is False
    assert source.split("eval").exact
    assert torch.equal(joined.text_key_N, source.split("pool+eval").text_key_N)
    order = torch.tensor([47, 3, 22])
    sent = pickle.dumps(joined)
    assert len(sent) < 5000, "a worker is sent where the index lies, not the index"
    assert torch.equal(pickle.loads(sent).batch(order).images_BCHW, joined.batch(order).images_BCHW)


def test_an_index_is_made_once_and_anew_where_a_shard_changed(tmp_path, monkeypatch):
    for number in (0, 1):
        tar_of(tmp_path / f"{number}.tar", [m for i in range(4) for m in sample(10 * number + i)])
    bound = {"pool": f"{tmp_path}/{{0..1}}.tar"}
    before = prepared(WebDataset, tmp_path, **bound).split("pool").fingerprint
    read = []
    index = WebDataset.index
    monkeypatch.setattr(
        WebDataset, "index", lambda self, shard, *more: read.append(shard.path) or index(self, shard, *more)
    )
    small(WebDataset, tmp_path, **bound).prepare()
    assert read == []
    lower = small(WebDataset, tmp_path, **bound, captions=Captions(max_characters=5))
    lower.prepare()
    assert read == [], "captions are normalised from the index"
    assert set(lower.split("pool").captions) <= {caption(i)[:5].strip() for i in range(20)}
    tar_of(tmp_path / "1.tar", [m for i in range(5) for m in sample(30 + i)])
    source = small(WebDataset, tmp_path, **bound)
    assert not source.is_prepared()
    with pytest.raises(DataError, match=r"webdataset\.pool is not indexed, or has changed"):
        source.split("pool")
    source.prepare()
    assert read == [str(tmp_path / "1.tar")]
    expect(source.split("pool"), [0, 1, 2, 3, 30, 31, 32, 33, 34])
    now = source.split("pool").fingerprint
    assert now != before
    (tmp_path / "elsewhere").mkdir()
    for number in (0, 1):
        (tmp_path / f"{number}.tar").rename(tmp_path / "elsewhere" / f"{number}.tar")
    moved = prepared(WebDataset, tmp_path, pool=str(tmp_path / "elsewhere"))
    assert moved.split("pool").fingerprint == now, "of content, not of place"


@pytest.mark.slow  # each process imports torch
def test_many_shards_are_indexed_by_all_cores_alike(tmp_path, monkeypatch):
    for number in range(2):
        tar_of(tmp_path / f"{number}.tar", [m for i in range(4) for m in sample(10 * number + i)])
    monkeypatch.setattr("jestbench.data.sources.indexing.TOGETHER", 2)
    source = prepared(WebDataset, tmp_path, pool=f"{tmp_path}/{{0..1}}.tar")
    expect(source.split("pool"), [10 * number + i for number in range(2) for i in range(4)])


def test_captions_from_json_and_from_lines(tmp_path):
    texts = {"caption": "a cat", "all": {"long": ["one  cat", "two cats", "", "one cat"]}}
    tar_of(tmp_path / "j.tar", sample(1, json=json.dumps(texts).encode(), txt=b"first\nsecond\n"))
    where = str(tmp_path / "j.tar")
    json_caption = prepared(WebDataset, tmp_path, pool=where, caption="json.caption").split("pool")
    assert list(json_caption.captions) == ["a cat"]
    several = prepared(WebDataset, tmp_path, pool=where, eval=where, caption="json.all.long")
    assert list(several.split("pool").captions) == ["one cat", "two cats"]
    drawn = {several.split("pool").drawn(0, epoch).batch(torch.tensor([0])).captions[0] for epoch in range(20)}
    assert drawn == {"one cat", "two cats"}
    assert several.split("eval").batch(torch.tensor([0])).captions == ("one cat",)
    every = replace(several, captions=Captions(several_exact="all"))
    assert every.split("eval").batch(torch.arange(2)).captions == ("one cat", "two cats")
    lines = prepared(WebDataset, tmp_path, pool=where, lines=True).split("pool")
    assert list(lines.captions) == ["first", "second"]


DAMAGED = {
    "no image": sample(2, jpg=None),
    "no caption": sample(3, txt=None),
    "empty image": sample(4, jpg=b""),
    "caption is not UTF-8": sample(5, txt=b"caf\xe9"),
    "empty caption": sample(6, txt=" \n\u3000".encode()),
    "too many pixels": sample(7, jpg=bomb()),
    "duplicate key": sample(1),
}


def test_damage_in_a_shard_is_counted_and_left_out(tmp_path):
    members = [*sample(0), *sample(1), *[m for damaged in DAMAGED.values() for m in damaged], *sample(8)]
    members += sample(9, txt=b"word " * 200_000)
    shard = tar_of(tmp_path / "d.tar", members)
    pairs = prepared(WebDataset, tmp_path, pool=str(shard)).split("pool")
    assert pairs.facts["damaged_when_indexed"] == {"pool": dict.fromkeys(DAMAGED, 1)}
    assert pairs.facts["captions_cut"] == 1
    expect_first = pairs.batch(torch.arange(4))
    assert expect_first.captions[:3] == (caption(0), caption(1), caption(8))
    assert len(expect_first.captions[3]) <= 1000
    with pytest.raises(
        DataError,
        match=r"(?s)webdataset\.pool: \n  1 × caption is not UTF-8 of 11, the first: .*\.max_damaged",
    ):
        small(WebDataset, tmp_path, pool=str(shard), max_damaged=0.001).prepare()


def test_a_jpeg_cut_in_half_is_found_when_it_is_verified_else_when_it_is_read(tmp_path):
    cut = half(encoded(photo(3, 200, 160)))
    shard = tar_of(tmp_path / "d.tar", [*sample(0), *sample(1), *sample(2), *sample(3, jpg=cut)])
    source = prepared(WebDataset, tmp_path, pool=str(shard), eval=str(shard))
    expect(source.split("eval"), [0, 1, 2])
    assert source.split("eval").facts["damaged_when_indexed"] == {"eval": {"undecodable image": 1}}
    batch = source.split("pool").batch(torch.tensor([3, 0]))
    assert batch.counts == {"read": 3, "damaged": 1, "damaged/undecodable image": 1}
    assert batch.captions[0] in (caption(1), caption(2))


def overwritten_header(content: bytes) -> bytes:
    start = content.index(b"0013.jpg")
    return content[:start] + b"\xff" * 512 + content[start + 512 :]


@pytest.mark.parametrize(
    ("change", "reason", "left"),
    [
        (lambda content: content[: len(content) * 5 // 8], "truncated tar", True),
        (lambda content: overwritten_header(content), "broken tar", True),
        (lambda content: b"", "empty shard", False),
        (lambda content: b"not a tar " * 500, "broken tar", False),
    ],
)
def test_a_shard_that_breaks_off_is_used_up_to_there(tmp_path, change, reason, left):
    tar_of(tmp_path / "0.tar", [m for i in range(4) for m in sample(i)])
    whole = tar_of(tmp_path / "1.tar", [m for i in range(10, 18) for m in sample(i)])
    whole.write_bytes(change(whole.read_bytes()))
    pairs = prepared(WebDataset, tmp_path, pool=f"{tmp_path}/{{0..1}}.tar").split("pool")
    damage = pairs.facts["damaged_when_indexed"]["pool"]
    assert damage[reason] == 1
    count = len(pairs)
    assert (4 < count < 12) if left else count == 4
    expect(pairs, [*range(4), *range(10, 10 + count - 4)])


def test_images_of_a_table_that_come_later_are_read(tmp_path):
    """A table that stays was refused for ever, by its index in the cache."""
    rows = "".join(f"{i}.jpg,{caption(i)}\n" for i in range(20))
    (tmp_path / "pool.csv").write_text(f"filepath,title\n{rows}", encoding="utf-8")
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    source = small(Csv, tmp_path, pool=str(tmp_path / "pool.csv"))
    with pytest.raises(DataError, match="15 × no image of 20"):
        source.prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Csv, "index", lambda *words: pytest.fail("nothing has come: nothing is read again"))
        with pytest.raises(DataError, match="15 × no image of 20"):
            source.prepare()
    for i in range(5, 20):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    source.prepare()
    expect(source.split("pool"), list(range(20)))


def test_one_pair_an_image_and_one_a_caption_are_two_data_sets(tmp_path):
    """What is kept by a split's fingerprint (a reference's own score) would be that of the other."""
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "eval.csv").write_text("filepath,title\n0.jpg,one\n0.jpg,two\n", encoding="utf-8")
    found = {}
    for several in ("first", "all"):
        captions = Captions(several_exact=several)
        source = small(Csv, tmp_path, eval=str(tmp_path / "eval.csv"), captions=captions)
        source.prepare()
        found[len(source.split("eval"))] = source.split("eval").fingerprint
    assert [*found] == [1, 2]
    assert found[1] != found[2]


@pytest.mark.parametrize("kind", [Csv, HuggingFace])
def test_a_table_that_is_named_twice_is_refused(tmp_path, kind):
    path = tmp_path / ("pool.csv" if kind is Csv else "pool.parquet")
    path.touch()
    places = rf"\.pool: a file is named twice, as number 1 \({path}\) and as number 2 \({path}\) of 2; its pairs would"
    with pytest.raises(DataError, match=places):
        small(kind, tmp_path, pool=(str(path), str(path))).prepare()


def test_a_file_that_two_patterns_of_a_data_set_name_is_refused(tmp_path):
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).touch()
    source = small(HuggingFace, tmp_path, pool=(f"{tmp_path}/*.parquet", f"{tmp_path}/b.parquet"))
    named = (
        rf"as number 2 \({tmp_path}/b\.parquet of {tmp_path}/\*\.parquet\) and as number 3 \({tmp_path}/b\.parquet\)"
    )
    with pytest.raises(DataError, match=named):
        source.shards("pool")
    slices = (f"{tmp_path}/a.parquet:train[:50%]", f"{tmp_path}/a.parquet:train[50%:]")
    assert len(small(HuggingFace, tmp_path, pool=slices).shards("pool")) == 2, "two parts of one file"


def test_shards_that_cannot_be_used_are_refused(tmp_path):
    tar_of(tmp_path / "0.tar", sample(0))

    def refused(match: str, **bound: Any) -> None:
        with pytest.raises(DataError, match=match):
            small(WebDataset, tmp_path, **bound).prepare()

    refused(r"webdataset\.pool: 2 of 3 shards are missing, the first is .*1\.tar", pool=f"{tmp_path}/{{0..2}}.tar")
    refused("named twice", pool=f"{tmp_path}/0.tar::{tmp_path}/*.tar")
    refused("stream them", pool="https://example.org/{0..2}.tar")
    (tmp_path / "z.tar").write_bytes(b"\x1f\x8b" + b"0" * 100)
    refused("is compressed", pool=str(tmp_path / "z.tar"))
    refused(r"'pool' is not given: bind webdataset\.pool")
    expect(prepared(WebDataset, tmp_path, pool=f"{tmp_path}/{{0..2}}.tar", allow_missing=True).split("pool"), [0])
    with pytest.raises(DataError, match=r"'curated' is not given: bind webdataset\.curated .*\(given: pool\)"):
        small(WebDataset, tmp_path, pool=str(tmp_path / "0.tar")).split("curated")
    with pytest.raises(DataError, match="no split 'curate'; did you mean 'curated'"):
        small(WebDataset, tmp_path, pool=str(tmp_path / "0.tar")).split("curate")


@pytest.mark.parametrize(
    "wrong", [{"image_size": 2}, {"max_damaged": 1.5}, {"verify": ("evl",)}, {"caption": ""}], ids=str
)
def test_values_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=f"webdataset.{next(iter(wrong))}"):
        WebDataset(**wrong)


# CSV


def write_csv(path: Path, rows: list[tuple[str, str]], separator: str = ",", header=("filepath", "title")) -> str:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([header, *rows])
    return str(path)


def test_tables_of_paths_and_captions(tmp_path):
    photos = folder_of_photos(tmp_path / "photos", 8)
    relative = [(f"photos/{path.name}", text) for path, text in photos]
    absolute = [(str(path), text) for path, text in photos]
    tables = write_csv(tmp_path / "a.csv", relative[:4]), write_csv(tmp_path / "b.tsv", absolute[4:], "\t")
    source = prepared(Csv, tmp_path, pool=tables, eval=tables[1])
    expect(source.split("pool"), list(range(8)))
    expect(source.split("eval"), list(range(4, 8)))
    named = write_csv(tmp_path / "c.txt", relative[:2], ";", ("bild", "text"))
    other = prepared(Csv, tmp_path, pool=named, image_column="bild", caption_column="text", separator=";")
    expect(other.split("pool"), [0, 1])


def test_rows_of_one_image_are_its_captions(tmp_path):
    folder_of_photos(tmp_path, 2)
    table = write_csv(tmp_path / "a.csv", [("0.jpg", "x"), ("1.jpg", "y"), ("0.jpg", "z")])
    pairs = prepared(Csv, tmp_path, pool=table).split("pool")
    assert len(pairs) == 2
    assert {pairs.drawn(0, epoch).batch(torch.tensor([0])).captions[0] for epoch in range(20)} == {"x", "z"}


def test_damage_in_a_table_is_counted_and_left_out(tmp_path):
    folder_of_photos(tmp_path, 3)
    (tmp_path / "empty.jpg").write_bytes(b"")
    rows = [("0.jpg", caption(0)), ("gone.jpg", "x"), ("empty.jpg", "x"), ("1.jpg", "caf\udce9"), ("1.jpg", " ")]
    table = write_csv(tmp_path / "a.csv", [*rows, ("", "x"), ("2.jpg", "long " * 200_000), ("2.jpg",)])
    pairs = prepared(Csv, tmp_path, pool=table).split("pool")
    found = pairs.facts["damaged_when_indexed"]["pool"]
    wanted = {"no image": 2, "empty image": 1, "caption is not UTF-8": 1, "empty caption": 1, "too few columns": 1}
    assert found == wanted
    assert [text[:9] for text in pairs.captions] == [caption(0)[:9], "long long"]
    assert csv.field_size_limit() == 131072, "a limit that all readers share is left as it was"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (("filepth", "title"), r"no column 'filepath' .*did you mean 'filepth'\? set csv\.image_column"),
        (("filepath", "text"), r"no column 'title' \(its columns: filepath, text\): .*csv\.caption_column"),
        (("filepath:title",), r"csv\.separator"),
    ],
)
def test_a_missing_column_is_named(tmp_path, header, said):
    table = write_csv(tmp_path / "a.csv", [("0.jpg", "x")], header=header)
    with pytest.raises(DataError, match=said):
        small(Csv, tmp_path, pool=table).prepare()
    with pytest.raises(DataError, match=r"csv\.eval: there is no file"):
        small(Csv, tmp_path, eval=str(tmp_path / "gone.csv")).prepare()


# Hugging Face


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try:
        import datasets
    except ImportError as error:
        pytest.skip(f"datasets cannot be loaded: {error}")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    return datasets


def hub_table(datasets: Any, numbers: range, **more: Any) -> Any:
    columns = {"image": [{"bytes": jpeg(i), "path": None} for i in numbers], "text": [caption(i) for i in numbers]}
    data = datasets.Dataset.from_dict(columns | more)
    return data.cast_column("image", datasets.Image())


def test_parquet_arrow_and_saved_folders(tmp_path, datasets):
    hub_table(datasets, range(6)).to_parquet(tmp_path / "pool.parquet")
    hub_table(datasets, range(6, 9)).save_to_disk(tmp_path / "saved")
    hub_table(datasets, range(9, 12)).to_parquet(tmp_path / "eval.parquet")
    source = prepared(
        HuggingFace,
        tmp_path,
        pool=(str(tmp_path / "pool.parquet"), str(tmp_path / "saved")),
        curated=f"{tmp_path}/pool.parquet:train[:2]",
        eval=f"{tmp_path}/ev*.parquet",
    )
    expect(source.split("pool"), list(range(9)))
    expect(source.split("curated"), [0, 1])
    expect(source.split("eval"), [9, 10, 11])
    sent = pickle.loads(pickle.dumps(source.split("pool+eval")))
    expect(sent, list(range(12)))


def test_a_file_or_folder_whose_name_holds_marks_of_a_glob_is_read_itself(tmp_path, datasets):
    hub_table(datasets, range(2)).to_parquet(tmp_path / "pool1.parquet")
    hub_table(datasets, range(2, 4)).to_parquet(tmp_path / "other.parquet")
    (tmp_path / "other.parquet").rename(tmp_path / "pool[1].parquet")
    hub_table(datasets, range(4, 6)).to_parquet(tmp_path / "tables.parquet")
    (tmp_path / "tables[1]").mkdir()
    (tmp_path / "tables.parquet").rename(tmp_path / "tables[1]" / "0.parquet")
    photos = folder_of_photos(tmp_path / "photos[1]", 2)
    write_csv(tmp_path / "photos[1]" / "metadata.csv", [(p.name, t) for p, t in photos], header=("file_name", "text"))
    named = (f"{tmp_path}/pool[1].parquet", f"{tmp_path}/tables[1]", f"{tmp_path}/photos[1]")
    expect(prepared(HuggingFace, tmp_path, pool=named).split("pool"), [2, 3, 4, 5, 0, 1])
    expect(prepared(HuggingFace, tmp_path, pool=f"{tmp_path}/pool[12].parquet:train[:1]").split("pool"), [0])
    for name, (path, text) in zip(("t1.csv", "t[1].csv"), photos, strict=True):
        write_csv(tmp_path / name, [(str(path), text)])
    expect(prepared(Csv, tmp_path, pool=f"{tmp_path}/t[1].csv").split("pool"), [1])


def test_image_folders_with_metadata_or_classes(tmp_path, datasets):
    photos = folder_of_photos(tmp_path / "meta", 4)
    write_csv(tmp_path / "meta" / "metadata.csv", [(p.name, t) for p, t in photos], header=("file_name", "text"))
    source = prepared(HuggingFace, tmp_path, pool=str(tmp_path / "meta"))
    found = source.split("pool").batch(torch.arange(4))
    assert sorted(found.captions) == sorted(text for _, text in photos)
    for key, text in zip(found.image_key_B.tolist(), found.captions, strict=True):
        assert key == content_key(jpeg(int(text.split()[-1])))
    for name in ("red_car", "blue_boat"):
        folder_of_photos(tmp_path / "classes" / name, 2, 10 * len(name))
    classes = prepared(HuggingFace, tmp_path, pool=str(tmp_path / "classes")).split("pool")
    assert sorted(classes.batch(torch.arange(4)).captions) == ["blue boat"] * 2 + ["red car"] * 2


def test_columns_of_bytes_and_of_paths_and_several_captions(tmp_path, datasets):
    folder_of_photos(tmp_path, 2)
    texts = [["a", "b"], ["c"]]
    for name, column in (("bytes", [jpeg(0), jpeg(1)]), ("paths", ["0.jpg", "1.jpg"])):
        path = tmp_path / f"{name}.parquet"
        datasets.Dataset.from_dict({"picture": column, "texts": texts}).to_parquet(path)
        bound = {"pool": str(path), "image_column": "picture", "caption_column": "texts"}
        pairs = prepared(HuggingFace, tmp_path, **bound).split("pool")
        assert pairs.batch(torch.arange(2)).captions == ("a", "c")
        assert {pairs.drawn(0, e).batch(torch.tensor([0])).captions[0] for e in range(20)} == {"a", "b"}
        assert pairs.batch(torch.arange(2)).image_key_B.tolist() == [content_key(jpeg(0)), content_key(jpeg(1))]


def test_json_of_a_row_an_image_and_of_images_apart(tmp_path, datasets, monkeypatch):
    """Objects by lines and in a list are rows; COCO's are refused with the page whose lines make rows of them."""
    monkeypatch.chdir(tmp_path)
    photos = folder_of_photos(tmp_path / "coco" / "train2017", 4)
    (tmp_path / "coco" / "annotations").mkdir()
    apart = tmp_path / "coco" / "annotations" / "captions_train2017.json"
    images = [{"id": 10 + i, "file_name": path.name} for i, (path, _) in enumerate(photos)]
    texts = [
        {"image_id": 10 + i, "caption": text} for i, (_, one) in enumerate(photos) for text in (one, f"{one} again")
    ]
    apart.write_text(json.dumps({"info": {}, "images": images, "annotations": texts}))
    with pytest.raises(DataError, match="holds images and annotations apart, as COCO does"):
        small(HuggingFace, tmp_path, pool=str(apart)).prepare()
    exec(documented("python", "annotations"), {})
    lines = tmp_path / "coco" / "pool.jsonl"
    listed = tmp_path / "coco" / "pool.json"
    listed.write_text(json.dumps([json.loads(line) for line in lines.read_text().splitlines()]))
    for path in (lines, listed):
        source = prepared(HuggingFace, tmp_path, pool=str(path))
        expect(source.split("pool"), list(range(4)))
        assert sorted(source.indexed("pool").captions) == sorted(one["caption"] for one in texts)


def test_a_table_beside_pictures_with_texts_is_what_img2dataset_fetched(tmp_path, datasets):
    for path, text in folder_of_photos(tmp_path / "found" / "00000", 4):
        path.with_suffix(".txt").write_text(text)
    datasets.Dataset.from_dict({"url": ["u"] * 4, "status": ["success"] * 4}).to_parquet(
        tmp_path / "found/00000.parquet"
    )
    (tmp_path / "found" / "00000_stats.json").write_text("{}")
    for ending in ("jpg", "txt"):  # as macOS leaves them
        (tmp_path / "found" / "00000" / f"._0.{ending}").write_bytes(b"\0\5\26\7")
    expect(prepared(HuggingFace, tmp_path, pool=str(tmp_path / "found")).split("pool"), list(range(4)))
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "0.jpg").write_bytes(jpeg(0))
    with pytest.raises(DataError, match="holds pictures without captions: write a text of its name beside each"):
        small(HuggingFace, tmp_path, pool=str(tmp_path / "alone")).prepare()


def test_damage_in_rows_is_counted_and_left_out(tmp_path, datasets):
    images = [jpeg(0), b"", None, jpeg(3), jpeg(4), b"no image"]
    texts = ["good", "x", "x", None, " ", "x"]
    rows = {"image": images, "text": texts}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "x.parquet")
    pairs = prepared(HuggingFace, tmp_path, pool=str(tmp_path / "x.parquet")).split("pool")
    found = pairs.facts["damaged_when_indexed"]["pool"]
    assert found == {"empty image": 1, "no image": 2, "no caption": 1, "empty caption": 1}
    assert list(pairs.captions) == ["good"]


def test_data_sets_that_cannot_be_opened_are_refused(tmp_path, datasets, monkeypatch):
    def refused(match: str, **bound: Any) -> None:
        with pytest.raises(DataError, match=match):
            small(HuggingFace, tmp_path, **bound).prepare()

    hub_table(datasets, range(2)).to_parquet(tmp_path / "x.parquet")
    refused(r"there is no file .*gone\.parquet", pool=str(tmp_path / "gone.parquet"))
    known = str(tmp_path / "x.parquet")
    refused(r"no column 'txt' \(its columns: image, text\): did you mean", pool=known, caption_column="txt")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:500])
    refused(r"cut\.parquet cannot be opened", pool=str(tmp_path / "cut.parquet"))

    def unreachable(*words: Any, **named: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nat all")

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset", unreachable)
        refused("someone/pairs cannot be opened: Couldn't reach the Hub$", pool="someone/pairs")
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "new.parquet").write_bytes(Path(known).read_bytes())
    refused(r"datasets.*pip install 'jestbench\[data\]'", pool=str(tmp_path / "new.parquet"))


def test_a_name_on_the_hub_is_opened_once_and_never_asked_for_again(tmp_path, datasets, monkeypatch):
    asked, data = [], hub_table(datasets, range(4))

    def load_dataset(*words: Any, **named: Any) -> Any:
        asked.append((*words, named))
        return data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    bound = {"pool": "someone/pairs:validation", "config_name": "small", "revision": "v1"}
    source = prepared(HuggingFace, tmp_path, **bound)
    assert asked == [("someone/pairs", "small", {"split": "validation", "revision": "v1"})]
    again = small(HuggingFace, tmp_path, **bound)
    assert again.is_prepared()
    again.prepare()
    assert len(asked) == 1
    expect(source.split("pool"), [0, 1, 2, 3])


# As a new user would: a folder of photos, three lines of gin, one command

QUIET = ("run.device=cpu", "wandb.mode=disabled", "log.progress=False", "log.every=1", "evaluate.points=2")
LITTLE = ("run.budget=2e9", "run.batch_size=8", "run.super_batch_size=32", *QUIET)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))

    def call(*words: str) -> tuple[int, str]:
        status = command.main([*words])
        return status, capsys.readouterr().err

    return call


def gin_file(name: str, *lines: str) -> str:
    Path(name).write_text("\n".join(lines) + "\n")
    return name


def documented(kind: str, which: int | str = 0) -> str:
    """A block of docs/your_data.md, by its number or by what stands in it."""
    text = (GIN.parent / "docs" / "your_data.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fences if language == kind]
    return blocks[which] if isinstance(which, int) else next(block for block in blocks if which in block)


def commands(*more: str) -> list[list[str]]:
    """The words of each documented command."""
    lines = [line.partition("#")[0].split() for line in documented("sh").splitlines()]
    return [[*words[2:], *more] for words in lines]


def test_three_lines_for_shards(run, tmp_path):
    for path, text in folder_of_photos(tmp_path / "photos", 80):
        path.with_suffix(".txt").write_text(text)
    exec(documented("python").replace("10000", "16"), {})
    Path("shards/pool-00004.tar").rename("shards/eval-00000.tar")
    (tmp_path / "mine.gin").write_text(documented("gin", 0))
    check, train = commands(*QUIET)
    assert run(*check)[0] == 0
    assert not Path("runs").exists(), "--check writes no run"
    status, said = run(*train, "--run_dir", "out", *LITTLE)
    assert status == 0, said
    found = summary_of("out")
    assert found["arm"] == "hard"
    assert found["data"]["pairs"] == 64
    assert found["data"]["eval_images"] == 16
    assert found["data"]["damaged_when_indexed"] == {}
    last = rows_of("out")[-1]
    assert last["data/damaged"] == 0
    assert last["data/read"] == last["pairs/seen"] == found["pairs_seen"]
    model = json.loads((RunFolder(Path("out")).newest_checkpoint() / "model.json").read_text())
    assert towers_of(Path("out")).tokenizer == Tokenizer(model["tokenizer"], 32).identity
    assert run(*check)[0] == 0, "of the data themselves, now that they are indexed"


def test_a_stream_as_documented(run, tmp_path):
    for path, text in folder_of_photos(tmp_path / "photos", 80):
        path.with_suffix(".txt").write_text(text)
    exec(documented("python").replace("10000", "4"), {})
    shards = sorted(Path("shards").glob("*.tar"))
    shards[-1].rename("shards/eval-00000.tar")
    backend = train_bpe(["a photo of number one two three"] * 3, 300)
    Path("tokenizer.json").write_text(backend.to_str())
    text = documented("gin", "stream.shards").replace(
        "curl -s https://host/shards/{00000..00999}.tar", "cat shards/pool-{00000..00018}.tar"
    )
    assert "pipe:cat" in text
    (tmp_path / "mine.gin").write_text(text)
    sizes = ("stream.image_size=32", "loader.workers=0", "run.batch_size=8", "run.arm=stream")
    assert run("--gin_file", "mine.gin", *sizes, "--check")[0] == 0
    status, said = run("--gin_file", "mine.gin", *sizes, *LITTLE, "--run_dir", "out")
    assert status == 0, said
    assert summary_of("out")["data"]["pairs"] is None
    assert rows_of("out")[-1]["pairs/seen"] > 0


def test_three_lines_for_parquet(run, tmp_path, datasets):
    hub_table(datasets, range(64)).to_parquet(tmp_path / "pool.parquet")
    hub_table(datasets, range(64, 80)).to_parquet(tmp_path / "eval.parquet")
    (tmp_path / "mine.gin").write_text(documented("gin", 1))
    status, said = run(*commands("--run_dir", "out", *LITTLE)[1])
    assert status == 0, said
    assert summary_of("out")["data"]["pairs"] == 64


def test_three_lines_for_a_folder_of_photos_with_texts_beside_them(run, tmp_path, datasets):
    for name, start, count in (("photos", 0, 64), ("photos-eval", 64, 16)):
        for path, text in folder_of_photos(tmp_path / name, count, start):
            path.with_suffix(".txt").write_text(text)
    lines = documented("gin", '"photos"')
    assert len(lines.splitlines()) == 3
    (tmp_path / "mine.gin").write_text(lines)
    status, said = run(*commands("--run_dir", "out", *LITTLE)[1])
    assert status == 0, said
    assert summary_of("out")["data"]["pairs"] == 64
    pairs = HuggingFace(pool="photos", image_size=32, cache_dir=str(tmp_path / "cache"))
    pairs.prepare()
    assert sorted(pairs.split("pool").captions) == sorted(caption(i) for i in range(64))


def test_a_set_of_own_classes_and_templates_is_evaluated_by_one_line(run, tmp_path):
    """The layout as it is documented, with the images of a run's own."""
    layout = documented("", "classnames.txt")
    names, templates = ["red car", "blue boat"], ["a photo of a {c}", "{c}"]
    assert all(text in layout for text in (*names, *templates))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "classnames.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "mine" / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    for part, numbers in (("test", range(6)), ("train", range(6, 14))):
        members = [
            (f"{i}.jpg", jpeg(i)) if kind else (f"{i}.cls", str(i % 2).encode()) for i in numbers for kind in (1, 0)
        ]
        tar_of(tmp_path / "mine" / part / "0.tar", members)
    photos = folder_of_photos(tmp_path, 48)
    for name, part in (("pool", photos[:32]), ("eval", photos[32:])):
        write_csv(tmp_path / f"{name}.csv", [(path.name, text) for path, text in part])
    (tmp_path / "mine.gin").write_text(documented("gin", 2) + documented("gin", "evaluate.sets"))
    status, said = run("--gin_file", "mine.gin", *LITTLE, "--run_dir", "out")
    assert status == 0, said
    end = summary_of("out")
    assert end["data"]["eval_sets"]["mine"] == {"task": "zero_shot", "images": 6, "classes": 2, "templates": 2}
    assert 0 <= end["metrics"]["eval/mine/zero_shot_top1"] <= 1
    assert any("eval/mine/zero_shot_top5 is always 1" in warning for warning in end["warnings"])


def test_three_lines_for_a_table_and_a_reference_of_their_own(run, tmp_path):
    photos = folder_of_photos(tmp_path, 80)
    for name, part in (("pool", photos[:48]), ("curated", photos[48:64]), ("eval", photos[64:])):
        write_csv(tmp_path / f"{name}.csv", [(path.name, text) for path, text in part])
    bound = [f'csv.{name} = "{name}.csv"' for name in ("pool", "curated", "eval")]
    assert documented("gin", 2).splitlines() == ['include "gin/run/csv.gin"', bound[0], bound[2]]
    gin_file("mine.gin", 'include "gin/run/csv.gin"', *bound)
    little = [line.partition("=")[0] + " = " + line.partition("=")[2] for line in LITTLE if line.startswith("run.b")]
    gin_file("reference.gin", 'include "mine.gin"', 'run.arm = "reference"', 'run.split = "curated"', *little)
    gin_file("jest.gin", 'include "mine.gin"', f'include "{GIN}/policy/jest.gin"', 'run.reference = "reference.gin"')
    status, said = run("--gin_file", "jest.gin", "--run_dir", "out", "jest.chunks=2", *LITTLE)
    assert status == 0, said
    assert summary_of("out")["policy"] == "jest"
    assert rows_of("out")[-1]["flops/reference_score"] > 0


def test_two_tables_with_one_evaluation_set_are_two_worlds(run, tmp_path):
    photos = folder_of_photos(tmp_path, 80)
    for name, part in (("one", photos[:48]), ("two", photos[16:64]), ("eval", photos[64:])):
        write_csv(tmp_path / f"{name}.csv", [(path.name, text) for path, text in part])
    mine = gin_file("mine.gin", 'include "gin/run/csv.gin"', 'csv.eval = "eval.csv"', 'run.policy = "uniform"')
    runs = {"uniform": ("one", "1"), "seed": ("one", "2"), "other": ("two", "1"), "cropped": ("one", "1")}
    for arm, (pool, seed) in runs.items():
        words = [f'csv.pool="{pool}.csv"', f"run.arm={arm}", f"run.seed={seed}", "csv.cache_dir='kept'"]
        words += ["run.augment=@random_resized_crop()"] * (arm == "cropped")
        status, said = run("--gin_file", mine, "--run_dir", f"runs/{arm}", *LITTLE, *words)
        assert status == 0, said
    comparison = analyse([Path("runs")], "eval/zero_shot_top5", "uniform", None, "again")
    worlds = [sorted(arm.label for arm in table.arms) for table in comparison.tables]
    assert worlds == [["cropped", "seed", "uniform"], ["other"]]
    assert comparison.warnings[0].startswith("2 WORLDS")
    assert "training data is" in comparison.warnings[0]


def test_a_run_on_damaged_pairs_counts_them_and_resumes_as_if_never_stopped(run, tmp_path):
    photos = folder_of_photos(tmp_path, 80)
    for name, part in (("pool", photos[:64]), ("eval", photos[64:])):
        write_csv(tmp_path / f"{name}.csv", [(path.name, text) for path, text in part])
    gin_file("mine.gin", 'include "gin/run/csv.gin"', 'csv.pool = "pool.csv"', 'csv.eval = "eval.csv"')
    words = ("--gin_file", "mine.gin", *LITTLE, "run.checkpoints=4", "csv.max_damaged=0.5")
    source = Csv(pool="pool.csv", eval="eval.csv", image_size=32, cache_dir=str(tmp_path / "cache"))
    source.prepare()
    for number in range(3):  # damaged after they were indexed
        (tmp_path / f"{number}.jpg").write_bytes(half(jpeg(number)))
    (tmp_path / "3.jpg").unlink()
    assert run(*words, "--run_dir", "whole")[0] == 0
    whole = rows_of("whole")
    assert whole[-1]["data/damaged"] >= 4
    assert run(*words, "--run_dir", "again")[0] == 0
    steps = sorted(int(path.name.removeprefix("step-")) for path in Path("again/checkpoints").glob("step-*"))
    (Path("again") / "summary.json").unlink()
    (RunFolder(Path("again")).newest_checkpoint() or Path()).rename(tmp_path / "gone")
    assert run(*words, "--run_dir", "again", "--resume")[0] == 0
    resumed = rows_of("again")
    assert steps[0] < steps[-1] == resumed[-1]["step"]
    timeless = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in resumed]
    assert timeless == [{key: value for key, value in row.items() if not key.startswith("time/")} for row in whole]


def test_a_shard_that_vanishes_in_a_run_stops_it_with_status_3(run, tmp_path, monkeypatch):
    write_shards("pool-%05d.tar", folder_of_photos(tmp_path / "photos", 64), per_shard=16)
    write_shards("eval-%05d.tar", folder_of_photos(tmp_path / "more", 16, 64))
    lines = ['webdataset.pool = "pool-{00000..00003}.tar"', 'webdataset.eval = "eval-00000.tar"']
    mine = gin_file("mine.gin", 'include "gin/run/webdataset.gin"', *lines)
    at = SuperBatches.at

    def vanishing(self: SuperBatches, step: int) -> Any:
        if step == 1:
            os.truncate("pool-00001.tar", 100)
        return at(self, step)

    monkeypatch.setattr(SuperBatches, "at", vanishing)
    status, said = run("--gin_file", mine, "--run_dir", "out", *LITTLE, "run.budget=2e10")
    assert status == 3
    assert said.startswith("error: webdataset/pool: ")
    assert "images read are damaged, more than max_damaged = 0.01" in said
    assert summary_of("out")["status"] == "failed"


def test_an_evaluation_never_takes_one_image_for_another(run, tmp_path):
    photos = folder_of_photos(tmp_path, 80)
    (tmp_path / "70.jpg").write_bytes(half(encoded(photo(70, 200, 160))))
    for name, part in (("pool", photos[:64]), ("eval", photos[64:])):
        write_csv(tmp_path / f"{name}.csv", [(path.name, text) for path, text in part])
    mine = gin_file("mine.gin", 'include "gin/run/csv.gin"', 'csv.pool = "pool.csv"', 'csv.eval = "eval.csv"')
    status, said = run("--gin_file", mine, "--run_dir", "out", *LITTLE, "csv.verify=()", "evaluate.batch_size=8")
    assert status == 3
    assert "csv/eval: image 6 cannot be read, so the split cannot be evaluated as it is" in said
    assert run("--gin_file", mine, "--run_dir", "verified", *LITTLE)[0] == 0
    assert summary_of("verified")["data"]["eval_images"] == 15


@pytest.mark.parametrize(
    ("lines", "status", "words"),
    [
        ([], 3, ["'pool' is not given: bind webdataset.pool"]),
        (['webdataset.pool = "none-{0..3}.tar"'], 3, ["4 of 4 shards are missing", "none-0.tar"]),
        (['webdataset.pol = "x.tar"'], 2, ["webdataset has no parameter 'pol'", "'pool'"]),
        (["webdataset.max_damaged = 2.0"], 2, ["webdataset.max_damaged", "mine.gin:2"]),
        (["tokenizer.length = 1"], 2, ["tokenizer.length", "mine.gin:2"]),
        (["captions.max_characters = 0"], 2, ["captions.max_characters"]),
        (['captions.several = "all"'], 2, ["captions.several", "mine.gin:2"]),
    ],
)
def test_mistakes_are_said_in_one_line(run, lines, status, words):
    mine = gin_file("mine.gin", 'include "gin/run/webdataset.gin"', *lines)
    found, said = run("--gin_file", mine, "--run_dir", "out", *LITTLE)
    assert found == status
    assert said.count("\n") == 1
    for word in words:
        assert word in said
