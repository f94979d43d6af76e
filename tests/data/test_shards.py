"""One reader of shards: an index, a stream and an evaluation set take the same pairs from the same tars."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from photos import tar_bytes, tar_of
from PIL import Image

from jestbench.batch import DataError
from jestbench.config.resolve import resolve
from jestbench.data.captions import Captions
from jestbench.data.pairs import content_key
from jestbench.data.sources import shards
from jestbench.data.sources.first_pairs import look_at
from jestbench.data.sources.lanes import START, LaneReader, Shards
from jestbench.data.sources.shards import IMAGES, Forward, MemberRules, paths_of
from jestbench.data.sources.stream import Stream, StreamPairs
from jestbench.data.sources.stream_batches import StreamBatches
from jestbench.data.sources.web_dataset import WebDataset
from jestbench.data.synthetic import Synthetic
from jestbench.evals.benchmark_files import read_benchmark
from jestbench.model.tokenizer_choice import TokenizerChoice

ROOT = Path(__file__).resolve().parents[2]
BESIDE = Synthetic(eval=4)
Pair = tuple[int, str]
Files = list[tuple[str, bytes]]


def picture(number: int, kind: str = "PNG") -> bytes:
    grid = np.random.default_rng(number).integers(0, 255, (9, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grid).save(file, kind)
    return file.getvalue()


def plain(count: int, first: int = 0) -> Files:
    numbers = range(first, first + count)
    pairs = [((f"{i:04d}.png", picture(i)), (f"{i:04d}.txt", f"number {i}".encode())) for i in numbers]
    return [file for pair in pairs for file in pair]


def indexed(tmp_path: Path, pool: Any, seed: int = 0, epoch: int = 0, **bound: Any) -> tuple[set[Pair], dict[str, int]]:
    """The pairs of an epoch by way of an index, and the damage by reason."""
    choice = TokenizerChoice(length=8, vocab_size=300)
    cache = str(tmp_path / "cache")
    source = WebDataset(pool=pool, image_size=8, tokenizer=choice, max_damaged=1.0, cache_dir=cache, **bound)
    source.prepare()
    split = source.split("pool").drawn(seed, epoch)
    batch = split.batch(torch.arange(len(split)))
    pairs = list(zip(batch.image_key_B.tolist(), batch.captions, strict=True))
    assert [content_key(text.encode()) for _, text in pairs] == batch.text_key_B.tolist()
    return set(pairs), split.facts["damaged_when_indexed"].get("pool", {})


def streamed(pool: Any, seed: int = 0, epoch: int = 0, lanes: int = 1, **bound: Any) -> tuple[set[Pair], int]:
    """The pairs of an epoch by way of a stream, and how many are damaged."""
    found = Stream(pool, BESIDE, image_size=8, lanes=lanes, buffer=3, max_damaged=1.0, **bound).split("pool")
    assert isinstance(found, StreamPairs)
    return lane_pairs(replace(found.shards, seed=seed), epoch)


def lane_pairs(shards: Shards, epoch: int = 0) -> tuple[set[Pair], int]:
    read, pairs, damaged = LaneReader(shards), list[Pair](), 0
    for lane in range(shards.lanes):
        chunk = read((epoch, lane, START, 1000))
        assert chunk.ended
        pairs += zip(chunk.key_N2[:, 0].tolist(), chunk.captions, strict=True)
        assert [content_key(text.encode()) for text in chunk.captions] == chunk.key_N2[:, 1].tolist()
        damaged += sum(lost.get("damaged", 0) for lost in (*chunk.lost_N, chunk.rest))
    assert len(set(pairs)) == len(pairs)
    return set(pairs), damaged


def both(tmp_path: Path, pool: Any, seed: int = 0, epoch: int = 0, **bound: Any) -> tuple[set[Pair], dict[str, int]]:
    """What an index and a stream both read: pairs and as much damage."""
    pairs, damage = indexed(tmp_path, pool, seed, epoch, **bound)
    assert streamed(pool, seed, epoch, **bound) == (pairs, sum(damage.values()))
    return pairs, damage


def expected(*captions: str) -> set[Pair]:
    """Pair i has picture i."""
    return {(content_key(picture(i)), caption) for i, caption in enumerate(captions)}


def test_every_ending_of_an_image_is_read(tmp_path):
    files = [
        file
        for i, ending in enumerate((*IMAGES, "JPG", "Png"))
        for file in ((f"a/{i:03d}.{ending}", picture(i)), (f"a/{i:03d}.txt", f"of {ending}".encode()))
    ]
    assert len(IMAGES) == 11
    pairs, damage = both(tmp_path, str(tar_of(tmp_path / "x.tar", files)))
    assert pairs == expected(*(f"of {ending}" for ending in (*IMAGES, "JPG", "Png")))
    assert damage == {}


def test_of_several_images_the_first_bound_ending_is_taken(tmp_path):
    files = [("0.webp", picture(0)), ("0.jpg", picture(7)), ("0.txt", b"x"), ("1.jpg", picture(1)), ("1.txt", b"y")]
    pool = str(tar_of(tmp_path / "x.tar", files))
    pairs, damage = both(tmp_path, pool, images=("webp",))
    assert (pairs, damage) == (expected("x"), {"no image": 1})
    assert (content_key(picture(7)), "x") in both(tmp_path, pool)[0]


RAW = "  Ａ ﬁne\n\n DAY\u3000 " + "long " * 9


@pytest.mark.parametrize(
    ("captions", "wanted"),
    [
        (Captions(max_characters=14), "A fine DAY lon"),
        (Captions(lower=True, max_characters=10), "a fine day"),
        (Captions(nfkc=False, max_characters=12), "Ａ ﬁne DAY lo"),
        (Captions(nfkc=False, spaces=False, max_characters=11), "Ａ ﬁne\n\n D"),
        (Captions(), "A fine DAY " + "long " * 8 + "long"),
    ],
)
def test_captions_are_normalised_alike(tmp_path, captions, wanted):
    pool = str(tar_of(tmp_path / "x.tar", [("0.jpg", picture(0)), ("0.txt", RAW.encode())]))
    assert both(tmp_path, pool, captions=captions) == (expected(wanted), {})


NESTED = (
    {"caption": "flat", "info": {"alt": {"en": "deep"}, "year": 1999}},
    {"caption": 1, "info": {"alt": {"en": 2}, "year": None}},
    {"info": "no object"},
    [],
)


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ("json.caption", {"flat", "1"}),
        ("json.info.alt.en", {"deep", "2"}),
        ("json.info.year", {"1999"}),
        ("json.info", {"no object"}),
    ],
)
def test_fields_of_json_members_are_found_at_any_depth(tmp_path, where, wanted):
    found = NESTED if where != "json.info" else NESTED[2:]
    files = [("x.jpg", picture(9)), ("x.json", b"{broken")]
    for i, value in enumerate(found):
        files += [(f"{i}.jpg", picture(i)), (f"{i}.json", json.dumps(value).encode())]
    pairs, damage = both(tmp_path, str(tar_of(tmp_path / "x.tar", files)), caption=where)
    assert {text for _, text in pairs} == wanted
    assert damage == {"broken JSON": 1, "no caption": len(found) - len(wanted)}


def several(tmp_path: Path, count: int = 30) -> tuple[str, dict[str, Any]]:
    """Shards of images with one to three captions, in a list and on lines."""
    for shard in range(3):
        files = []
        for i in range(shard, count, 3):
            texts = [f"{letter} of {i}" for letter in "abc"[: 1 + i % 3]]
            files += [(f"{i:03d}.jpg", picture(i)), (f"{i:03d}.json", json.dumps({"a": {"b": texts}}).encode())]
            files += [(f"{i:03d}.txt", "\n".join(["", *texts, " "]).encode())]
        tar_of(tmp_path / f"{shard}.tar", files)
    return f"{tmp_path}/{{0..2}}.tar", {"list": {"caption": "json.a.b"}, "lines": {"lines": True}}


@pytest.mark.parametrize("kind", ["list", "lines"])
def test_one_of_several_captions_is_drawn_by_seed_image_and_epoch_alike(tmp_path, kind):
    pool, ways = several(tmp_path)
    drawn = {}
    for seed, epoch in ((0, 0), (0, 1), (5, 0)):
        drawn[seed, epoch], damage = both(tmp_path, pool, seed, epoch, **ways[kind])
        assert damage == {}
        assert streamed(pool, seed, epoch, lanes=3, **ways[kind])[0] == drawn[seed, epoch], "whichever lanes read"
    assert len({frozenset(pairs) for pairs in drawn.values()}) == 3
    assert {len(pairs) for pairs in drawn.values()} == {30}
    first, _ = both(tmp_path, pool, captions=Captions(several="first"), **ways[kind])
    assert first == expected(*(f"a of {i}" for i in range(30)))
    assert first != drawn[0, 0]
    every = WebDataset(
        pool=pool,
        image_size=8,
        verify=("pool",),
        captions=Captions(several_exact="all"),
        tokenizer=TokenizerChoice(length=8, vocab_size=300),
        cache_dir=str(tmp_path / "cache"),
        **ways[kind],
    )
    every.prepare()
    split = every.split("pool")
    whole = set(zip(split.image_key_N.tolist(), map(split.captions.__getitem__, range(len(split))), strict=True))
    assert set().union(*drawn.values()) <= whole
    assert len(whole) == 60


def test_super_batches_of_a_stream_draw_a_caption_each_epoch(tmp_path):
    pool, ways = several(tmp_path)
    found = Stream(pool, BESIDE, image_size=8, lanes=3, buffer=4, **ways["list"]).split("pool")
    assert isinstance(found, StreamPairs)
    batches = StreamBatches(replace(found.shards, seed=7), 30)
    for epoch in range(3):
        batch = batches.at(epoch)
        pairs = set(zip(batch.image_key_B.tolist(), batch.captions, strict=True))
        assert pairs == indexed(tmp_path, pool, 7, epoch, **ways["list"])[0]


def bomb() -> bytes:
    """A PNG whose header gives 50,000 pixels a side."""
    content = picture(9)
    header = content[12:16] + (50_000).to_bytes(4, "big") * 2 + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]


def damaged_files() -> Files:
    """Whole pairs, and one of each kind of damage."""
    files = [*plain(1), ("no/image.txt", b"x"), ("no/caption.jpg", picture(2))]
    files += [("empty/a.jpg", b""), ("empty/a.txt", b"x"), ("html/a.jpg", b"<html>404"), ("html/a.txt", b"x")]
    files += [("utf8/a.jpg", picture(3)), ("utf8/a.txt", b"caf\xe9")]
    files += [("blank/a.jpg", picture(4)), ("blank/a.txt", b" \n"), ("big/a.png", bomb()), ("big/a.txt", b"x")]
    files += [("twice/a.jpg", picture(1)), ("twice/a.jpg", picture(5)), ("twice/a.txt", b"kept")]
    return [*files, *plain(1), (".hidden", b""), ("README", b"none")]


DAMAGE = {
    "no image": 2,
    "no caption": 1,
    "empty image": 1,
    "caption is not UTF-8": 1,
    "empty caption": 1,
    "too many pixels": 1,
    "duplicate key": 2,
}


def test_damage_is_left_out_and_counted_alike(tmp_path):
    pool = str(tar_of(tmp_path / "x.tar", damaged_files()))
    pairs, damage = both(tmp_path, pool)
    assert pairs == {(content_key(picture(0)), "number 0"), (content_key(picture(1)), "kept")}
    assert damage == DAMAGE


def test_an_image_that_no_decoder_reads_is_left_out_by_a_stream_as_by_a_verified_index(tmp_path):
    files = plain(3)
    files[2] = ("0001.png", picture(1)[:-60])
    pool = str(tar_of(tmp_path / "x.tar", files))
    pairs, damage = indexed(tmp_path, pool, verify=("pool",))
    assert damage == {"undecodable image": 1}
    assert streamed(pool) == (pairs, 1)


def test_a_member_that_is_too_large_is_damage_where_it_is_asked_for(tmp_path, monkeypatch):
    """A film beside a picture and its caption costs no pair, and a pair that is lost by one counts once."""
    monkeypatch.setattr(shards, "MAX_TEXT", 1000)
    files = [*plain(2), ("0001.mp4", bytes(2000)), ("2.png", picture(2)), ("2.txt", b"long " * 400)]
    pairs, damage = both(tmp_path, str(tar_of(tmp_path / "0.tar", files)))
    assert pairs == expected("number 0", "number 1")
    assert damage == {"member too large": 1}


def test_a_sample_that_is_too_large_is_one_lost_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_SAMPLE", 2000)
    large = [("9.png", picture(9)), ("9.txt", b"number 9"), *((f"9.{part}", bytes(900)) for part in "abcd")]
    pairs, damage = both(tmp_path, str(tar_of(tmp_path / "0.tar", [*plain(2), *large, *plain(1, first=2)])))
    assert pairs == expected("number 0", "number 1", "number 2")
    assert damage == {"sample too large": 1}


def overwritten(content: bytes) -> bytes:
    start = content.index(b"0005.png")
    return content[:start] + b"\xff" * 512 + content[start + 512 :]


BREAKS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut in a member": (lambda content: content[: content.index(b"0005.png") + 600], "truncated tar"),
    "cut in a header": (lambda content: content[: content.index(b"0005.png") + 100], "broken tar"),
    "cut behind a member": (lambda content: content[: content.index(b"0005.png")], "truncated tar"),
    "overwritten header": (overwritten, "broken tar"),
    "empty": (lambda content: b"", "empty shard"),
    "no tar": (lambda content: b"not a tar " * 500, "broken tar"),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_tar_that_breaks_off_is_read_up_to_there_alike(tmp_path, how):
    change, reason = BREAKS[how]
    tar_of(tmp_path / "0.tar", plain(3, first=20))
    whole = tar_of(tmp_path / "1.tar", plain(9))
    whole.write_bytes(change(whole.read_bytes()))
    pairs, damage = both(tmp_path, f"{tmp_path}/{{0..1}}.tar")
    assert damage[reason] == 1
    assert len(pairs) == (3 if how in ("empty", "no tar") else 8)


@pytest.mark.parametrize("name", ["gz", "bz2", "xz"])
def test_a_compressed_shard_is_streamed_as_its_tar_is_indexed(tmp_path, name):
    pack: Callable[[bytes], bytes] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[name]
    files = [*plain(6), ("big.bin", bytes(3 * 2**20)), *plain(3, first=6)]
    whole = tar_of(tmp_path / "x.tar", files)
    packed = tmp_path / f"x.tar.{name}"
    packed.write_bytes(pack(whole.read_bytes()))
    pairs, _ = indexed(tmp_path, str(whole))
    for pool in (str(packed), f"pipe:cat {packed}"):
        assert streamed(pool) == (pairs, 1), "the last one is a sample without an image"
    with pytest.raises(DataError, match="is compressed"):
        indexed(tmp_path, str(packed))
    packed.write_bytes(packed.read_bytes()[: packed.stat().st_size // 2])
    other = tar_of(tmp_path / "y.tar", plain(4, first=20))
    left, damaged = lane_pairs(shards_of(str(packed), str(other)))
    assert indexed(tmp_path, str(other))[0] <= left < pairs | left
    assert damaged >= 1


def shards_of(*urls: str, **more: Any) -> Shards:
    return Shards(urls, BESIDE.split("eval").tokenizer, 8, MemberRules(), 1, 3, 1.0, **more)


@pytest.mark.parametrize("url", ["pipe:false", "pipe:cat {path}; false", "{path}.gone", "pipe:head -c 3 {path}"])
def test_what_cannot_be_opened_or_ends_in_failure_costs_no_other_shard(tmp_path, url):
    whole = tar_of(tmp_path / "x.tar", plain(4))
    other = tar_of(tmp_path / "y.tar", plain(4, first=4))
    pairs, damaged = lane_pairs(shards_of(url.format(path=whole), str(other)))
    assert pairs >= indexed(tmp_path, str(other))[0]
    assert damaged == 1 or "cat" in url


@given(st.binary(max_size=5000), st.lists(st.tuples(st.sampled_from(["read", "back", "on"]), st.integers(0, 1500))))
def test_a_pipe_reads_as_a_file_does(content, moves):
    file, forward = io.BytesIO(content), Forward(Short(content))
    for move, by in moves:
        if move == "read":
            assert forward.read(by) == file.read(by)
        else:
            to = max(0, file.tell() - by % 700) if move == "back" else min(len(content), file.tell() + by)
            file.seek(to)
            forward.seek(to)
        assert forward.tell() == file.tell()
    assert forward.read() == file.read()


class Short:
    """Gives less than is asked for, as a network does."""

    def __init__(self, content: bytes) -> None:
        self.file = io.BytesIO(content)

    def read(self, size: int) -> bytes:
        return self.file.read(size if size < 0 else -(-size // 2))


def members_of(data: Any) -> Files:
    """A sample of any members, whole and damaged."""
    image = st.sampled_from([picture(data.draw(st.integers(0, 40))), b"", b"no image", bomb()])
    text = st.sampled_from([b"a Cat", "ﬁne\n\n two".encode(), b"", b" \n", b"\xff", "\u3000x".encode()])
    values = st.one_of(
        st.none(), st.text(max_size=5), st.integers(), st.lists(st.one_of(st.text(max_size=3), st.none()))
    )
    found: Files = []
    name = f"{data.draw(st.sampled_from(['', 'd/', 'd.e/']))}{data.draw(st.integers(0, 12))}"
    for ending in data.draw(st.lists(st.sampled_from([*IMAGES[:3], "PNG", "txt", "json", "seg.png", ""]), max_size=4)):
        if ending == "json":
            content = data.draw(st.sampled_from([json.dumps({"a": {"b": data.draw(values)}}).encode(), b"{", b"[]"]))
        else:
            content = data.draw(text if ending == "txt" else image)
        found.append((f"{name}.{ending}", content))
    return found


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_shards_hold_both_ways_read_the_same(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    whole = [("whole.png", picture(0)), ("whole.txt", b"whole"), ("whole.json", b'{"a": {"b": "whole"}}')]
    files = [file for _ in range(data.draw(st.integers(1, 12))) for file in members_of(data)]
    content = tar_bytes([*whole, *files])
    (folder / "x.tar").write_bytes(content[: data.draw(st.one_of(st.none(), st.integers(6 * 1024, len(content))))])
    options = [{}, {"lines": True}, {"caption": "json.a.b"}, {"captions": Captions(lower=True)}]
    both(folder, str(folder / "x.tar"), epoch=data.draw(st.integers(0, 3)), **data.draw(st.sampled_from(options)))


# A stream's configuration


def test_bindings_of_captions_reach_a_stream(tmp_path):
    texts = [("0.txt", "Ａ\nTwo".encode()), ("0.json", b'{"a": ["x", "y"]}')]
    pool, held_out = tar_of(tmp_path / "pool.tar", [("0.jpg", picture(0)), *texts]), tmp_path / "eval.tar"
    tar_of(held_out, plain(2))
    (tmp_path / "tokenizer.json").write_text(BESIDE.split("eval").tokenizer.definition)
    gin = [str(ROOT / "gin/run/webdataset.gin"), str(ROOT / "gin/data/stream.gin")]
    bindings = [f"stream.shards='{pool}'", "stream.lanes=1", f"webdataset.eval='{held_out}'"]
    bindings += [f"webdataset.cache_dir='{tmp_path}/cache'", f"tokenizer.source='{tmp_path}/tokenizer.json'"]

    def captions(*more: str) -> str:
        data = resolve(gin, [*bindings, *more]).run.data
        data.prepare()
        split = data.split("pool")
        prints.add(split.fingerprint)
        ((_, caption),) = lane_pairs(split.shards)[0]
        return caption

    prints: set[str] = set()
    assert captions() == "A Two"
    assert captions("captions.lower=True") == "a two"
    assert captions("captions.nfkc=False") == "Ａ Two"
    assert captions("captions.spaces=False") == "A\nTwo"
    assert captions("captions.max_characters=3") == "A T"
    assert captions("stream.lines=True", "captions.several='first'") == "A"
    assert captions("stream.caption='json.a'", "captions.several='first'") == "x"
    assert len(prints) == 7, "each is another stream"


@pytest.mark.parametrize("wrong", [{"caption": ""}, {"images": ()}, {"lanes": 0}, {"max_damaged": 2.0}], ids=str)
def test_a_stream_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=f"stream.{next(iter(wrong))}|stream.caption and stream.images"):
        Stream("x.tar", BESIDE, **wrong)


@pytest.mark.parametrize(
    ("shards", "first", "again"),
    [
        (("{here}/{{0..1}}.tar", "{here}/1.tar"), (2, "{here}/1.tar"), (3, "{here}/1.tar")),
        ("{here}/{{0,1,0}}.tar", (1, "{here}/0.tar"), (3, "{here}/0.tar")),
        (("{here}/0.tar", "{here}/link.tar"), (1, "{here}/0.tar"), (2, "{here}/link.tar")),
        ("pipe:cat {here}/{{0,0}}.tar", (1, "pipe:cat {here}/0.tar"), (2, "pipe:cat {here}/0.tar")),
    ],
    ids=["list", "braces", "link", "pipe"],
)
def test_a_shard_that_a_stream_names_twice_is_refused_with_both_places(tmp_path, shards, first, again):
    for name in ("0.tar", "1.tar"):
        tar_of(tmp_path / name, plain(1))
    (tmp_path / "link.tar").symlink_to(tmp_path / "0.tar")

    def here(text: str) -> str:
        return text.format(here=tmp_path)

    stream = Stream(here(shards) if isinstance(shards, str) else tuple(map(here, shards)), BESIDE, lanes=1)
    said = f"stream.shards: a file is named twice, as number {first[0]} ({here(first[1])}) and as number {again[0]} "
    for refuse in (lambda: stream.split("pool"), lambda: look_at(stream, ())):
        with pytest.raises(DataError, match=re.escape(f"{said}({here(again[1])}) of ")):
            refuse()


def test_shards_below_the_home_folder_and_by_file_urls_are_read(tmp_path, monkeypatch):
    tar_of(tmp_path / "my shards/0.tar", plain(1))
    monkeypatch.setenv("HOME", str(tmp_path))
    there = [f"{tmp_path}/my shards/0.tar"]
    file = f"file://{tmp_path}/my%20shards/"
    for pattern in ("~/my shards/{0..0}.tar", f"{file}{{0..0}}.tar", f"{file}*.tar", file, f"file:{there[0]}"):
        assert paths_of(pattern) == there, pattern
        index = WebDataset(pool=pattern)
        assert [shard.path for shard in index.shards("pool")] == there
        stream = Stream(pattern, BESIDE, image_size=8, lanes=1)
        assert stream.fetched() == {}, "they lie here"
        assert len(stream.split("pool").head.captions) == 1


def test_patterns_are_expanded_alike(tmp_path, monkeypatch):
    for name in ("a/0.tar", "a/1.tar", "b/0.tar"):
        tar_of(tmp_path / name, plain(1))
    monkeypatch.chdir(tmp_path)
    assert paths_of("a/{0..2}.tar") == ["a/0.tar", "a/1.tar", "a/2.tar"]
    assert paths_of("{a,b}/*.tar") == ["a/0.tar", "a/1.tar", "b/0.tar"]
    assert paths_of("a::b/0.tar::c/*.tar") == ["a/0.tar", "a/1.tar", "b/0.tar", "c/*.tar"]
    assert paths_of("https://h/{0..1}*.tar::pipe:cat a/{0..1}.tar") == [
        *("https://h/0*.tar", "https://h/1*.tar"),
        *("pipe:cat a/0.tar", "pipe:cat a/1.tar"),
    ]
    with pytest.raises(DataError, match="cannot be expanded"):
        paths_of("a/{0..2.tar")


# Evaluation sets


def benchmark(folder: Path, files: Files) -> Path:
    tar_of(folder / "test" / "0.tar", files)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return folder


def test_evaluation_sets_are_read_by_the_same_rules(tmp_path):
    files = [
        file
        for i, ending in enumerate((*IMAGES, "JPG"))
        for file in ((f"{i:03d}.{ending}", picture(i)), (f"{i:03d}.txt", f"of {ending}\r\n\nagain\u2028{i} ".encode()))
    ]
    folder = benchmark(tmp_path / "set", files)
    test = read_benchmark(str(folder)).test
    groups = zip(test.images, test.captions, strict=True)
    found = {(content_key(image.read()), text) for image, texts in groups for text in texts}
    pool, as_they_lie = str(folder / "test" / "0.tar"), Captions(several="first", spaces=False)
    first, _ = both(tmp_path, pool, lines=True, captions=as_they_lie)
    assert first <= found
    assert found == expected(*(f"of {e}" for e in (*IMAGES, "JPG"))) | expected(*(f"again\u2028{i}" for i in range(12)))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            [("0.jpg", picture(0)), ("0.jpg", picture(1)), ("0.txt", b"x")],
            r"0\.tar cannot be read: duplicate key: two members .*: an evaluation must be whole",
        ),
        ([*plain(1), *plain(1)], r"0\.tar cannot be read: duplicate key: two members .*: an evaluation must be whole"),
        ([("0.jpg", picture(0)), ("0.txt", b"\xff")], "caption is not UTF-8"),
        ([("0.jpg", picture(0)), ("0.txt", b" \n")], "has no captions"),
        ([("0.jpg", picture(0))], "no caption"),
        ([("0.txt", b"x"), ("1.json", b"{}")], r"no image \(jpg, .*avif\) in 1 tars"),
    ],
)
def test_damage_in_an_evaluation_set_is_refused_by_its_name(tmp_path, files, said):
    with pytest.raises(DataError, match=said):
        read_benchmark(str(benchmark(tmp_path / "set", files)))


@pytest.mark.parametrize("how", BREAKS)
def test_an_evaluation_set_that_breaks_off_is_refused(tmp_path, how):
    folder = benchmark(tmp_path / "set", plain(9))
    tar = folder / "test" / "0.tar"
    tar.write_bytes(BREAKS[how][0](tar.read_bytes()))
    with pytest.raises(DataError, match=rf"0\.tar cannot be read: {BREAKS[how][1]}: an evaluation must be whole"):
        read_benchmark(str(folder))
