"""Readers of user data: the pairs that they return, and the damage that they count and name."""

from __future__ import annotations

import base64
import json
import pickle
import re
import sqlite3
import struct
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import kill_before, rows_of, summary_of
from photos import caption, encoded, jpeg, photo, tar_of
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from jestbench.batch import DataError
from jestbench.config.grammar import read_file
from jestbench.config.run import ConfigError
from jestbench.data.captions import caption_of, text_of, texts_of
from jestbench.data.damage import Damaged
from jestbench.data.decode import DamagedImage, decode
from jestbench.data.pairs import content_key
from jestbench.data.sources.csv_tables import Csv
from jestbench.data.sources.hugging_face import HuggingFace
from jestbench.data.sources.source import Source
from jestbench.data.sources.stream import Stream, StreamPairs
from jestbench.data.sources.web_dataset import WebDataset
from jestbench.data.synthetic import Synthetic
from jestbench.launch import command
from jestbench.model.tokenizer_choice import TokenizerChoice


def tar_at(path: Path, members: list[tuple[str, bytes]]) -> str:
    return str(tar_of(path, members))


def opened(kind: type[Source], tmp_path: Path, pool: Any, **bound: Any) -> Any:
    """The pool, of whatever damage."""
    tokenizer = TokenizerChoice(length=8, vocab_size=300)
    common = {"image_size": 16, "cache_dir": str(tmp_path / "cache"), "tokenizer": tokenizer, "max_damaged": 1.0}
    source = kind(pool=pool, **common | bound)
    source.prepare()
    return source.split("pool")


def pairs_of(split: Any) -> list[tuple[int, str]]:
    return list(zip(split.image_key_N.tolist(), split.captions, strict=True))


def damage_of(split: Any) -> dict[str, int]:
    return split.facts["damaged_when_indexed"].get("pool", {})


def refused(kind: type[Source], tmp_path: Path, pool: Any, **bound: Any) -> str:
    with pytest.raises(DataError) as error:
        opened(kind, tmp_path, pool, **bound)
    return str(error.value)


# Names with dots


DOTTED = [m for i in range(4) for m in ((f"s{i}.input.jpg", jpeg(i)), (f"s{i}.outputs.txt", caption(i).encode()))]


def test_members_whose_endings_have_dots_are_named_whole_by_index_and_stream(tmp_path):
    pool = tar_at(tmp_path / "x.tar", DOTTED)
    bound = {"images": ["INPUT.jpg"], "caption": "outputs.txt"}
    wanted = [(content_key(jpeg(i)), caption(i)) for i in range(4)]
    assert pairs_of(opened(WebDataset, tmp_path, pool, **bound)) == wanted
    stream = Stream(pool, Synthetic(eval=4), image_size=16, lanes=1, buffer=1, **bound).split("pool")
    assert isinstance(stream, StreamPairs)
    assert stream.example().captions == (caption(0),)


def test_a_member_of_the_whole_name_comes_before_a_field(tmp_path):
    meta = json.dumps({"a": {"b": "deep"}, "txt": "a field"}).encode()
    files = [("0.jpg", jpeg(0)), ("0.meta.json", meta), ("0.json", meta), ("0.json.txt", b"a member")]
    pool = tar_at(tmp_path / "x.tar", files)
    found = {where: opened(WebDataset, tmp_path, pool, caption=where).captions[0] for where in ("json.txt", "json.a.b")}
    assert found == {"json.txt": "a member", "json.a.b": "deep"}
    assert opened(WebDataset, tmp_path, pool, caption="meta.json.a.b").captions[0] == "deep"


def test_what_stands_in_place_of_a_pair_is_shown(tmp_path):
    said = refused(WebDataset, tmp_path, tar_at(tmp_path / "x.tar", DOTTED))
    assert "4 × no image of 4, the first: x.tar: s0: its members end in input.jpg, outputs.txt" in said
    assert "'input.jpg', or write names without dots" in said
    dates = [(f"2024.05.0{i}.{e}", c) for i in range(1, 4) for e, c in (("jpg", jpeg(i)), ("txt", b"x"))]
    said = refused(WebDataset, tmp_path, tar_at(tmp_path / "dates.tar", dates))
    assert "2024: its members end in 05.01.jpg, 05.01.txt, 05.02.jpg" in said
    assert "a name ends at its first dot" in said
    apart = [(f"{i}.jpg", jpeg(i)) for i in range(3)] + [(f"{i}.txt", b"x") for i in range(3)]
    said = refused(WebDataset, tmp_path, tar_at(tmp_path / "apart.tar", apart))
    assert "3 × members of a pair do not stand together of 6, the first: apart.tar: 0: jpg … txt" in said
    fields = [("0.jpg", jpeg(0)), ("0.json", b'{"alt": "x", "url": "y"}')]
    said = refused(WebDataset, tmp_path, tar_at(tmp_path / "f.tar", fields), caption="json.caption")
    assert "its json has the fields alt, url" in said
    with pytest.raises(DataError, match=r"no image: .*s0: its members end in input\.jpg, outputs\.txt"):
        Stream(str(tmp_path / "x.tar"), Synthetic(eval=4), image_size=16, lanes=1, buffer=1).split("pool")


# Captions


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("a", ["a"]),
        (7, ["7"]),
        (["a", None, float("nan"), "b"], ["a", "b"]),
        ("\ufeffa", ["a"]),
        ("\ufeffä".encode(), ["ä"]),
    ],
)
def test_captions_that_are_texts(content, wanted):
    assert texts_of(content) == wanted


@pytest.mark.parametrize(
    ("content", "reason", "said"),
    [
        (None, "no caption", ""),
        (float("nan"), "no caption", ""),
        ([None, None], "no caption", ""),
        ([], "no caption", ""),
        (True, "caption is no text (bool)", "True"),
        ({"raw": "x", "en": "y"}, "caption is no text (dict)", "name one of its fields: raw, en"),
        ([["nested"]], "caption is no text (list)", "nested"),
        (["a", {"raw": "x"}], "caption is no text (dict)", "raw"),
        ("café".encode("latin-1"), "caption is not UTF-8", "as Latin-1 it reads 'café'"),
        ("a cat".encode("utf-16"), "caption is not UTF-8", "it is UTF-16"),
        ("a cat".encode("utf-16-le"), "caption is not UTF-8", "it is UTF-16"),
        ("a cat".encode("utf-16-be"), "caption is not UTF-8", "it is UTF-16"),
        ("caf\udce9", "caption is not UTF-8", "as Latin-1 it reads 'café'"),
    ],
)
def test_what_is_no_text_is_no_caption(content, reason, said):
    with pytest.raises(Damaged) as error:
        texts_of(content)
    assert error.value.reason == reason
    assert said in error.value.example


def test_a_short_text_is_no_utf_16():
    assert [text_of(text.encode()) for text in ("a", "ab", "é", "猫")] == ["a", "ab", "é", "猫"]


def test_a_null_in_a_list_and_nan_in_a_field_lose_no_more_than_themselves(tmp_path):
    kinds = ["NaN", "null", "true", '{"raw": "x"}', '["good", null]', '"plain"']
    members = [m for i, kind in enumerate(kinds) for m in ((f"{i}.jpg", jpeg(i)), (f"{i}.json", b"%s" % kind.encode()))]
    members = [(name, b'{"c": %s}' % content if name.endswith("json") else content) for name, content in members]
    split = opened(WebDataset, tmp_path, tar_at(tmp_path / "x.tar", members), caption="json.c")
    assert pairs_of(split) == [(content_key(jpeg(4)), "good"), (content_key(jpeg(5)), "plain")]
    assert damage_of(split) == {"no caption": 2, "caption is no text (bool)": 1, "caption is no text (dict)": 1}


# Files of another kind


PARQUET, TAR, TABLE = "a parquet file (gin/run/hug", "a tar (gin/run/web", "a table (gin/run/csv.gin reads it)"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n"


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (Csv, "x.parquet", PARQUET),
        (Csv, "x.tar", TAR),
        (Csv, "lfs.csv", "a pointer of Git LFS (fetch the file: git lfs pull)"),
        (Csv, "x.jsonl", "JSON (gin/run/huggingface.gin reads it"),
        (WebDataset, "x.parquet", PARQUET),
        (WebDataset, "x.csv", TABLE),
        (WebDataset, "lfs.tar", "a pointer of Git LFS"),
        (HuggingFace, "x.tar", TAR),
        (HuggingFace, "x.csv", TABLE),
        (HuggingFace, "lfs.parquet", "a pointer of Git LFS"),
    ],
)
def test_a_file_of_another_kind_is_named_with_what_reads_it(tmp_path, kind, name, said):
    if kind is HuggingFace:
        pytest.importorskip("datasets")
    tar_of(tmp_path / "x.tar", [("0.jpg", jpeg(0)), ("0.txt", b"a car")])
    for file, content in {
        "x.parquet": b"PAR1\x15\0",
        "x.csv": b"filepath,title\n0.jpg,a\n",
        "x.jsonl": b'{"a": 1}\n',
    }.items():
        (tmp_path / file).write_bytes(content)
    for file in ("lfs.csv", "lfs.tar", "lfs.parquet"):
        (tmp_path / file).write_bytes(LFS)
    assert said in refused(kind, tmp_path, str(tmp_path / name))


def sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table pairs (image blob, text)")


STORES: dict[str, tuple[Callable[[Path], object], str]] = {
    "x.npz": (lambda path: np.savez(path, images=np.zeros((2, 8, 8, 3), np.uint8)), "an archive of NumPy (.npz)"),
    "x.npy": (lambda path: np.save(path, np.zeros((2, 8, 8, 3), np.uint8)), "an array of NumPy (.npy)"),
    "x.pkl": (lambda path: path.write_bytes(pickle.dumps([("a", b"x")])), "a pickle"),
    "x.pt": (lambda path: torch.save({"images": torch.zeros(2, 3)}, path), "a file of torch.save (.pt)"),
    "x.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "an HDF5 file"),
    "x.db": (sqlite, "an SQLite database"),
}


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("kind", [Csv, WebDataset, HuggingFace])
def test_a_store_that_no_reader_takes_is_named_with_the_formats_that_are_read(tmp_path, kind, name):
    if kind is HuggingFace:
        pytest.importorskip("datasets")
    (tmp_path / "store").mkdir()
    STORES[name][0](tmp_path / "store" / name)
    formats = (
        "tar shards (gin/run/webdataset.gin), as a parquet, arrow or JSON file (gin/run/huggingface.gin), or as a CSV"
    )
    said = refused(kind, tmp_path, str(tmp_path / "store" / name))
    assert f"{STORES[name][1]}, which is not read: write its pairs as {formats}" in said
    if kind is HuggingFace:
        assert f"{STORES[name][1]}, which is not read" in refused(kind, tmp_path, str(tmp_path / "store"))


def test_a_folder_without_shards_names_what_is_there(tmp_path):
    tar_of(tmp_path / "deep/a/0.tar", [("0.jpg", jpeg(0)), ("0.txt", b"a car")])
    said = refused(WebDataset, tmp_path, str(tmp_path / "deep"))
    assert said.endswith(f"holds no .tar; for those that lie deeper name '{tmp_path}/deep/**/*.tar'")
    assert list(opened(WebDataset, tmp_path, f"{tmp_path}/deep/**/*.tar").captions) == ["a car"]
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/0.tar.gz").write_bytes(b"x")
    assert refused(WebDataset, tmp_path, str(tmp_path / "packed")).endswith("holds no .tar (its files end in .tar.gz)")


def csv_of(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize("bound", [{}, {"separator": "tab"}, {"separator": "\\t"}])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_of_any_line_break_and_spelling_of_a_tab_are_read(tmp_path, end, bound):
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    table = csv_of(tmp_path / "x.csv", end.join(["filepath\ttitle", "0.jpg\ta car", ""]))
    assert pairs_of(opened(Csv, tmp_path, table, **bound)) == [(content_key(jpeg(0)), "a car")]


def test_what_a_table_would_be_misread_by_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    twice = csv_of(tmp_path / "x.csv", "filepath,title,title\n0.jpg,1,a car\n")
    assert refused(Csv, tmp_path, twice).endswith("x.csv has 2 columns 'title': rename all but one")
    with pytest.raises(ValueError, match=r"csv\.separator is one character, such as ';' or 'tab', got 't'"):
        Csv(separator="t")
    Path("in").mkdir()
    Path("0.jpg").write_bytes(jpeg(0))
    from_here = csv_of(tmp_path / "in/x.csv", "filepath,title\n0.jpg,a car\n")
    said = f"No such file or directory (paths are relative to the table's folder, {tmp_path}/in)"
    assert said in refused(Csv, tmp_path, from_here)
    assert "there is no file x.cvs; did you mean x.csv?" in refused(Csv, tmp_path, "x.cvs")
    assert list(opened(Csv, tmp_path, csv_of(tmp_path / "in/y.csv", "filepath,title\n../0.jpg,a\n")).captions) == ["a"]


def json_shard(path: Path, contents: list[bytes]) -> str:
    return tar_at(path, [m for i, one in enumerate(contents) for m in ((f"{i}.jpg", jpeg(i)), (f"{i}.json", one))])


@pytest.mark.parametrize(
    ("where", "content"),
    [
        ("json", '["a car", null, "a boat"]'),
        ("json.raw", '[{"raw": "a car", "id": 1}, {"id": 2}, {"raw": "a boat"}]'),
        ("json.c.raw", '{"c": [{"raw": "a car"}, {"raw": "a boat"}]}'),
        ("json.c.raw", '{"c": {"raw": ["a car", "a boat"]}}'),
    ],
)
def test_json_members_give_captions_not_their_own_text(tmp_path, where, content):
    pool = json_shard(tmp_path / "x.tar", [content.encode()])
    assert list(opened(WebDataset, tmp_path, pool, caption=where).captions) == ["a car", "a boat"]
    stream = Stream(pool, Synthetic(eval=4), image_size=16, lanes=1, buffer=1, caption=where).split("pool")
    assert stream.example().captions[0] in ("a car", "a boat")


def test_the_way_to_a_caption_is_named(tmp_path):
    """What a message names is then read, whatever the member holds."""
    plain = json_shard(tmp_path / "plain.tar", [b'"a car"'])
    assert "its members end in jpg, json (caption = 'json')" in refused(WebDataset, tmp_path, plain)
    assert list(opened(WebDataset, tmp_path, plain, caption="json").captions) == ["a car"]
    fields = json_shard(tmp_path / "fields.tar", [b'{"alt": "a car", "url": "x"}'])
    assert "name the field: caption = 'json.NAME', of alt, url" in refused(WebDataset, tmp_path, fields)
    assert "name one of its fields: alt, url" in refused(WebDataset, tmp_path, fields, caption="json")
    other = tar_at(tmp_path / "other.tar", [("0.pic", jpeg(0)), ("0.txt", b"a car")])
    assert "name another ending: images = ('pic',)" in refused(WebDataset, tmp_path, other)
    assert list(opened(WebDataset, tmp_path, other, images=("pic",)).captions) == ["a car"]


def test_fields_of_structs_and_slices_of_saved_data_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [[{"raw": f"{caption(i)}, {way}", "id": i} for way in ("one", "other")] for i in range(4)]
    data = {"image": [jpeg(i) for i in range(4)], "text": rows, "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(data).save_to_disk(tmp_path / "saved")
    saved, wanted = str(tmp_path / "saved"), [one["raw"] for row in rows for one in row]
    said = refused(HuggingFace, tmp_path, saved)
    assert "name one of its fields: raw, id" in said
    found = opened(HuggingFace, tmp_path, saved, caption_column="text.raw")
    assert list(found.captions) == wanted
    assert list(opened(HuggingFace, tmp_path, f"{saved}:train[:3]", caption_column="text.raw").captions) == wanted[:6]
    assert "has no split 'test'; there are: train" in refused(HuggingFace, tmp_path, f"{saved}:test")
    datasets.Dataset.from_dict({**data, "words": ["x"] * 4}).remove_columns("text").to_parquet(tmp_path / "x.parquet")
    said = refused(HuggingFace, tmp_path, str(tmp_path / "x.parquet"))
    assert "has no column 'text' (its columns: image, label, words)" in said, "a number is no class name"


def test_a_gin_file_may_begin_with_a_byte_order_mark_and_its_encoding_is_named(tmp_path):
    (tmp_path / "a.gin").write_bytes("\ufeffrun.seed = 3\n".encode())
    assert [(binding.key, binding.value) for binding in read_file(tmp_path / "a.gin")] == [("run.seed", 3)]
    (tmp_path / "b.gin").write_bytes("run.seed = 3\n".encode("utf-16"))
    with pytest.raises(ConfigError, match="it is UTF-16"):
        read_file(tmp_path / "b.gin")
    (tmp_path / "c.gin").write_bytes("run.arm = 'é'\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="as Latin-1 it reads"):
        read_file(tmp_path / "c.gin")


# Captions that tokenise to nothing


def test_captions_of_unseen_characters_differ_and_none_of_any_token_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    pool = [f"{i}.jpg,{caption(i)}" for i in range(6)] + ["6.jpg,\U0001f600", "7.jpg,\U0001f643"]
    table_of(tmp_path / "x.csv", "filepath,title\n" + "\n".join(pool) + "\n")
    for i in range(8):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    split = opened(Csv, tmp_path, "x.csv")
    ids_BL = split.batch(torch.arange(8)).tokens(split.tokenizer.identity)
    assert len({tuple(ids) for ids in ids_BL.tolist()}) == 8
    assert split.tokenizer.wordless(ids_BL) == 0
    words = {word: i for i, word in enumerate(("<pad>", "<end>", "<unk>", "a", "number"))}
    backend = Backend(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save("words.json")
    (tmp_path / "x.gin").write_text(
        'include "gin/run/csv.gin"\ncsv.pool = "x.csv"\ncsv.eval = "x.csv"\ntokenizer.source = "words.json"\n'
        "run.batch_size = 4\nbudget.steps = 4\nrun.budget = None\nrun.device = 'cpu'\nlog.progress = False\n"
    )
    assert command.main(["--gin_file", "x.gin", "--check"]) == 0
    assert "csv.pool: 2 of 8 captions tokenise to nothing, the first: '\U0001f600'" in capsys.readouterr().out
    assert command.main(["--gin_file", "x.gin", "--run_dir", "out", "wandb.mode=disabled"]) == 0
    assert summary_of("out")["data"]["counts"] == {"skipped": 0, "read": 16, "damaged": 0, "wordless": 4}


# Tables


def table_of(path: Path, text: str) -> str:
    for i in range(6):
        (path.parent / f"{i}.jpg").write_bytes(jpeg(i))
    path.write_bytes(text.encode())
    return str(path)


def test_a_quote_in_a_tab_separated_table_is_a_quote(tmp_path):
    rows = [f"{i}.jpg\t{chr(34) * (i == 2)}dog {i}{' 5' + chr(34) if i == 1 else ''}" for i in range(6)]
    pool = table_of(tmp_path / "x.tsv", "filepath\ttitle\n" + "\n".join(rows))
    wanted = ["dog 0", 'dog 1 5"', '"dog 2', "dog 3", "dog 4", "dog 5"]
    assert list(opened(Csv, tmp_path, pool).captions) == wanted
    assert "x.tsv, line 4: a quote opens" in refused(Csv, tmp_path, pool, quotes=True)
    quoted = table_of(tmp_path / "q.tsv", 'filepath\ttitle\n0.jpg\t"two\nlines"\n1.jpg\tb\n')
    assert list(opened(Csv, tmp_path, quoted, quotes=True).captions) == ["two lines", "b"]


def test_a_quote_that_swallows_rows_is_refused_with_its_line(tmp_path):
    head = "filepath,title\n0.jpg,a\n"
    never = table_of(tmp_path / "a.csv", head + '1.jpg,"b\n2.jpg,c\n3.jpg,d')
    assert "a.csv, line 3: a quote opens here and is never closed" in refused(Csv, tmp_path, never)
    later = table_of(tmp_path / "b.csv", head + '1.jpg,"b\n2.jpg,c\n3.jpg,"d\n4.jpg,e\n')
    assert "b.csv, line 3: a quote that opens in this row closes within a field of line 5" in refused(
        Csv, tmp_path, later
    )
    assert list(opened(Csv, tmp_path, later, quotes=False).captions) == ["a", '"b', "c", '"d', "e"]
    good = table_of(tmp_path / "c.csv", head + '1.jpg,"b, ""c""\nd"\n2.jpg,5" pipe\n3.jpg,"x" y\n')
    assert list(opened(Csv, tmp_path, good).captions) == ["a", 'b, "c" d', '5" pipe', "x y"]


def test_rows_of_too_many_columns_are_damage_never_cut(tmp_path):
    pool = table_of(tmp_path / "x.csv", "filepath,title\n0.jpg,a dog, a cat\n1.jpg,a bird,,\n2.jpg\n")
    split = opened(Csv, tmp_path, pool)
    assert list(split.captions) == ["a bird"]
    assert damage_of(split) == {"too many columns": 1, "too few columns": 1}
    alone = table_of(tmp_path / "y.csv", "filepath,title\n0.jpg,a dog, a cat\n")
    assert "y.csv, line 2: 3 columns, the header has 2 (a caption with ','" in refused(Csv, tmp_path, alone)


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.txt"])
@pytest.mark.parametrize("separator", ["\t", ",", ";", "|"])
def test_the_separator_is_found_from_the_header(tmp_path, name, separator):
    rows = [("title", "filepath"), ("a dog", "0.jpg"), ("a cat", "1.jpg")]
    pool = table_of(tmp_path / name, "\ufeff" + "\r\n".join(map(separator.join, rows)))
    assert list(opened(Csv, tmp_path, pool).captions) == ["a dog", "a cat"]


def test_a_table_of_columns_between_blanks_is_read_to_its_end(tmp_path):
    pool = table_of(tmp_path / "x.txt", 'filepath title\n0.jpg dog\n1.jpg "a cat"\n')
    split = opened(Csv, tmp_path, pool, separator=" ")
    assert list(split.captions) == ["dog", "a cat"]
    assert damage_of(split) == {}


@pytest.mark.parametrize(("name", "separator"), [("x.csv", ","), ("x.tsv", "\t"), ("tabs.csv", "\t")])
def test_a_table_without_names_of_its_columns_is_refused_with_what_to_do(tmp_path, name, separator):
    said = refused(Csv, tmp_path, table_of(tmp_path / name, f"0.jpg{separator}a dog\n1.jpg{separator}a cat\n"))
    assert f"{name} names no columns: its first row (0.jpg" in said
    assert f"looks like a pair; put a row with the names above it, 'filepath{',' if name[0] == 't' else separator}" in (
        said.replace("\\t", "\t")
    )
    other = refused(Csv, tmp_path, table_of(tmp_path / "y.csv", "picture,text\n0.jpg,a dog\n"))
    assert "y.csv has no column 'filepath' (its columns: picture, text)" in other, "names of other columns"


FLICKR = (
    "image_name| comment_number| comment\n0.jpg| 0| Two dogs , one black .\n0.jpg| 1| Dogs play .\n1.jpg| 0| A cat .\n"
)


@pytest.mark.parametrize("named", ["comment", " comment"])
def test_the_table_of_flickr30k_is_read_with_blanks_around_its_separators(tmp_path, named):
    pool = table_of(tmp_path / "results.csv", FLICKR)
    split = opened(Csv, tmp_path, pool, image_column="image_name", caption_column=named, columns=("comment_number",))
    assert list(split.captions) == ["Two dogs , one black .", "Dogs play .", "A cat ."]
    assert split.columns["comment_number"].tolist() == [0, 0]
    assert damage_of(split) == {}
    turned = table_of(tmp_path / "turned.csv", "comment | image_name\nA cat . | 1.jpg\n")
    other = opened(Csv, tmp_path, turned, image_column="image_name", caption_column=named)
    assert pairs_of(other) == [(content_key(jpeg(1)), "A cat .")], "nor is a blank part of a path"


def test_paths_of_images_below_the_home_folder_and_by_file_urls_are_read(tmp_path, monkeypatch, parquet):
    home = tmp_path / "home"
    (home / "my photos").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for i in range(2):
        (home / f"my photos/{i}.jpg").write_bytes(jpeg(i))
    paths = ["~/my photos/0.jpg", f"file://{home}/my%20photos/1.jpg", "~backup.jpg"]
    (tmp_path / "~backup.jpg").write_bytes(jpeg(2))
    rows = "".join(f"{path},{caption(i)}\n" for i, path in enumerate(paths))
    wanted = [(content_key(jpeg(i)), caption(i)) for i in range(3)]
    csv_of(tmp_path / "x.csv", f"filepath,title\n{rows}")
    for table in (f"{tmp_path}/x.csv", f"file://{tmp_path}/x.csv"):
        assert pairs_of(opened(Csv, tmp_path, table)) == wanted
    assert "fetch the images" not in refused(
        Csv, tmp_path, csv_of(tmp_path / "y.csv", "filepath,title\nfile:///0.jpg,a")
    )
    parquet(tmp_path / "x.parquet", image=paths, text=[caption(i) for i in range(3)])
    for table in (f"{tmp_path}/x.parquet", f"file://{tmp_path}/x.parquet"):
        assert [key for key, _ in pairs_of(opened(HuggingFace, tmp_path, table))] == [key for key, _ in wanted]


@pytest.mark.parametrize("kind", [Csv, HuggingFace, WebDataset])
def test_the_home_folder_of_an_unknown_user_is_no_file(tmp_path, kind):
    said = refused(kind, tmp_path, "~nobody-at-all/x.parquet")
    assert said.startswith(f"{kind.label}.pool: ")
    assert "~nobody-at-all/x.parquet" in said


def test_images_that_are_not_there_are_shown_with_the_likely_cause(tmp_path):
    def said(path: str) -> str:
        return refused(Csv, tmp_path, table_of(tmp_path / "x.csv", f"filepath,title\n{path},a\n"))

    assert "1 × no image of 1, the first: a\\b.jpg" in said("a\\b.jpg")
    assert "backslashes divide paths on Windows alone" in said("a\\b.jpg")
    assert "fetch the images first" in said("https://host/a.jpg")
    (tmp_path / "page.jpg").write_bytes(b"\n<!DOCTYPE html><html>404</html>")
    assert "page.jpg: an HTML page (a download that failed)" in said("page.jpg")
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    assert "phone.jpg: a HEIC picture (Pillow does not read it: save it as JPEG)" in said("phone.jpg")


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        (base64.b64encode(jpeg(0)).decode(), "a picture written as text"),
        (f"data:image/png;base64,{'x' * 200}", "a picture written as text"),
        (jpeg(0).hex(), "a picture written as text"),
        (str(jpeg(0)[:60]), "what Python prints for a picture"),
        ("<PIL.PngImagePlugin.PngImageFile image mode=RGB size=9x9 at 0x7>", "what Python prints for a picture"),
    ],
    ids=["base64", "data URL", "hexadecimal", "bytes", "object"],
)
def test_a_picture_in_place_of_its_path_is_named_with_the_remedy(tmp_path, path, cause):
    """The message shows the beginning of the cell, and the remedy, however long the cell is."""
    quoted = '"' + path.replace('"', '""') + '"'
    said = refused(Csv, tmp_path, table_of(tmp_path / "x.csv", f"filepath,title\n{quoted},a\n"))
    assert "1 × no image of 1, the first: " in said
    assert cause in said
    assert "into a file or into a parquet column" in said or "into a file or a parquet column" in said
    assert len(said) < 400
    shard = str(tar_of(tmp_path / "0.tar", [("0.jpg", path.encode()), ("0.txt", b"a")]))
    assert "0.tar: 0: " in refused(WebDataset, tmp_path, shard)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("['a cat', 'a kitty']", "a list"),
        ('["a cat", null]', "a list"),
        ("['a cat', nan]", "a list"),
        ("['a cat'\n 'a kitty']", "a list"),
        ("('a cat', 'a kitty')", "a list"),
        ("[]", "a list"),
        ("[3, 7]", "a list"),
        ("['" + "a cat" * 20000 + "']", "a list"),
        ('{"en": "a cat"}', "an object"),
        ("b'a cat'", "bytes"),
        ("[a cat]", ""),
        ("[1]", ""),
        ("[...]", ""),
        ("(2019)", ""),
        ("{c}", ""),
        ("'a cat'", ""),
        ("['a cat'] on a mat", ""),
        ("[" * 3000 + "]" * 3000, ""),
    ],
)
def test_what_a_program_has_written_is_no_caption(text, reason):
    """Python, numpy and JSON write lists, objects and bytes so; brackets of running text stay."""
    if not reason:
        assert caption_of(text) == text
        return
    with pytest.raises(Damaged, match=f"caption is {reason} written as text") as found:
        caption_of(text.encode())
    assert found.value.cause


def test_an_object_in_a_text_member_is_read_by_its_field(tmp_path):
    shard = str(tar_of(tmp_path / "0.tar", [("0.jpg", jpeg(0)), ("0.txt", b'{"caption": "a cat", "url": "u"}')]))
    assert "its fields are caption, url: " in refused(WebDataset, tmp_path, shard)
    assert [*opened(WebDataset, tmp_path, shard, caption="txt.caption").captions] == ["a cat"]


def test_each_kind_of_damage_has_a_line_of_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    table_of(tmp_path / "x.csv", "filepath,title\ngone.jpg,a\n0.jpg,\n1.jpg,a,b\n")
    (tmp_path / "x.gin").write_text(
        'include "gin/run/csv.gin"\ncsv.pool = csv.eval = "x.csv"\n'.replace("csv.pool = ", "")
    )
    assert command.main(["--gin_file", "x.gin", "csv.pool='x.csv'", "--run_dir", "out", "wandb.mode=disabled"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" of ")[0].strip() for line in lines[-3:]] == [
        "1 × empty caption",
        "1 × no image",
        "1 × too many columns",
    ]


def test_damaged_pairs_stand_on_one_page_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    rows = "".join(f"{i}.jpg,a photo of number {i}\n" for i in range(12))
    table_of(tmp_path / "x.csv", f"filepath,title\n{rows}gone.jpg,a|b\nlost.jpg,a\n1.jpg,a,b\n")
    table_of(tmp_path / "few.csv", "filepath,title\n4.jpg,a\n5.jpg,\n")
    (tmp_path / "3.jpg").write_bytes(jpeg(3)[:-60])
    quick = ["run.device=cpu", "log.progress=False", "wandb.mode=disabled", "run.budget=None", "budget.steps=9"]
    run = ["--gin_file", "gin/run/csv.gin", "csv.pool='x.csv'", "run.batch_size=8", *quick]
    assert command.main([*run, "csv.eval='few.csv'", "--run_dir", "out"]) == 0
    page = Path("out/damage.md").read_text(encoding="utf-8")
    assert summary_of("out")["data"]["damage_page"] == "damage.md"
    pool, evaluated, read = page.split("## ")[1:]
    assert pool.startswith("Left out of `pool` when it was indexed: 3\n")
    assert pool.index("| no image | 2 | gone.jpg: No such file") < pool.index(
        "| too many columns | 1 | x.csv, line 16: "
    )
    assert evaluated.startswith("Left out of `eval` when it was indexed: 1\n")
    assert "| empty caption | 1 | " in evaluated
    counts = summary_of("out")["data"]["counts"]
    assert counts["damaged"] > 0
    assert f"{counts['damaged']} of {counts['read']} reads gave a damaged pair" in read
    table_of(tmp_path / "whole.csv", "filepath,title\n" + "".join(f"{i}.jpg,number {i}\n" for i in range(4, 12)))
    assert command.main([*run, "csv.pool='whole.csv'", "csv.eval='whole.csv'", "--run_dir", "whole"]) == 0
    assert not Path("whole/damage.md").exists()
    assert "damage_page" not in summary_of("whole")["data"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["csv", "webdataset", "huggingface", "stream"])
def test_images_that_break_when_they_are_decoded_are_shown_by_kind_with_their_place(
    tmp_path, monkeypatch, kind, workers
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    parquet = pytest.importorskip("pyarrow.parquet")
    contents = [jpeg(i)[:-60] if i in (3, 8) else jpeg(i) for i in range(12)]
    texts = [f"a photo of number {i}" for i in range(12)]
    for i, content in enumerate(contents):
        (tmp_path / f"{i:03d}.jpg").write_bytes(content)
    if kind == "csv":
        rows = "".join(f"{i:03d}.jpg,{text}\n" for i, text in enumerate(texts))
        pool, shown = table_of(tmp_path / "x.csv", f"filepath,title\n{rows}"), r"\S*00[38]\.jpg"
    elif kind != "huggingface":
        pairs = [[(f"{i:03d}.jpg", contents[i]), (f"{i:03d}.txt", texts[i].encode())] for i in range(12)]
        pool, shown = (
            tar_of(tmp_path / "x.tar", [member for pair in pairs for member in pair]),
            r"x\.tar: 00[38](\.jpg)?",
        )
    else:
        pool, shown = tmp_path / "x.parquet", r"x\.parquet, row [38]"
        parquet.write_table(pytest.importorskip("pyarrow").table({"image": contents, "text": texts}), pool)
    quick = ["run.device=cpu", "log.progress=False", "wandb.mode=disabled", "run.budget=None", "budget.steps=9"]
    indexed = "webdataset" if kind == "stream" else kind
    run = ["--gin_file", f"gin/run/{indexed}.gin", f"{indexed}.pool='{pool}'", "run.batch_size=8", *quick]
    if kind == "stream":
        run += ["--gin_file", "gin/data/stream.gin", f"stream.shards='{pool}'", "stream.lanes=1"]
    run += [f"{indexed}.eval='{pool}'", f"{indexed}.verify=()", "evaluate.split='eval'", "evaluate.limit=2"]
    run += [f"loader.workers={min(workers, 1 if kind == 'stream' else workers)}", f"{indexed}.image_size=32"]
    run += [f"{kind}.image_size=32", f"{kind}.max_damaged=1.0", "run.checkpoints=3", "log.every=1"]
    command_of_run = [*run, "--run_dir", "out"]
    kill_before(6, command_of_run)
    assert command.main([*command_of_run, "--resume"]) == 0
    read = Path("out/damage.md").read_text(encoding="utf-8").partition("## While the run read")[2]
    counts = summary_of("out")["data"]["counts"]
    assert counts["damaged"] > 4
    assert re.search(rf"\| undecodable image \| {counts['damaged']:.0f} \| \S*{shown}: OSError: ", read), read
    assert not any("/" in name.removeprefix("data/") for name in rows_of("out")[-1] if name.startswith("data/"))


# Images


def png(depth: int, colour: int, rows: list[bytes], width: int, transparent: bytes = b"") -> bytes:
    """A PNG of any depth, written by hand."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + key + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("keyed", [False, True])
def test_grey_of_any_depth_and_its_key_colour(depth, keyed):
    levels = np.arange(16) * 4099 % 2**depth
    if depth == 16:
        row = struct.pack(">16H", *levels.tolist())
    else:
        bits = "".join(f"{level:0{depth}b}" for level in levels.tolist())
        row = int(bits, 2).to_bytes(len(bits) // 8, "big")
    key = int(levels[3])
    found = decode(png(depth, 0, [row] * 16, 16, struct.pack(">H", key) if keyed else b""), 16)
    grey = levels >> 8 if depth == 16 else levels * 255 // (2**depth - 1)
    wanted = np.where(keyed & (levels == key), 255, grey)
    assert (found == wanted[None, :, None]).all()


@pytest.mark.parametrize("depth", [8, 16])
def test_a_key_colour_of_rgb_is_compared_at_its_full_depth(depth):
    key = (0x1234, 0x5678, 0x9ABC) if depth == 16 else (0x12, 0x56, 0x9A)
    near = (key[0], key[1], key[2] + 1)
    letter = "H" if depth == 16 else "B"
    row = struct.pack(f">{24}{letter}", *(key + near) * 4)
    found = decode(png(depth, 2, [row] * 8, 8, struct.pack(">3H", *key)), 8)
    shown = tuple(channel >> (depth - 8) for channel in near)
    assert (found[:, 0::2] == 255).all()
    assert (found[:, 1::2] == np.array(shown)).all()


def test_a_keyed_png_is_turned_as_exif_says():
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 3
    image = photo(3, 16, 16, "L")
    plain = decode(encoded(image, "PNG", exif=exif), 16)
    keyed = decode(encoded(image, "PNG", exif=exif, transparency=int(np.asarray(image)[0, 0])), 16)
    assert (keyed[-1, -1] == 255).all()
    clear = (plain == plain[-1, -1]).all(-1)
    assert (keyed[~clear] == plain[~clear]).all()


# Parquet


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets, arrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()

    def write(path: Path, **columns: Any) -> str:
        import pyarrow.parquet

        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(arrow.table(columns), path)
        return str(path)

    return write


TEXTS = [caption(i) for i in range(3)]
WANTED = [(content_key(jpeg(i)), caption(i)) for i in range(3)]


@pytest.mark.parametrize(
    "cells",
    [
        [[jpeg(i)] for i in range(3)],
        [{"bytes": jpeg(i), "path": None} for i in range(3)],
        [[{"bytes": jpeg(i), "path": None}] for i in range(3)],
        [list(jpeg(i)) for i in range(3)],
    ],
    ids=["list", "struct", "list of structs", "bytes as numbers"],
)
def test_a_list_of_one_image_is_that_image(tmp_path, parquet, cells):
    import pyarrow as pa

    column = pa.array(cells, pa.list_(pa.uint8())) if isinstance(cells[0], list) and cells[0][0] == 255 else cells
    pool = parquet(tmp_path / "x.parquet", image=column, text=TEXTS)
    assert pairs_of(opened(HuggingFace, tmp_path, pool)) == WANTED


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([10**10 + i for i in range(3)], "the column 'image' is int64, no image (its columns: image, text)"),
        ([0.5] * 3, "the column 'image' is double"),
        ([[1.0, 2.0]] * 3, "the column 'image' is a list of double"),
        ([{"width": 3}] * 3, "the column 'image' is a struct of width"),
        ([[jpeg(0), jpeg(1)]] * 3, "x.parquet, row 0: the column 'image' holds a list of 2 images"),
    ],
    ids=["int", "float", "list of floats", "struct", "several"],
)
def test_a_column_that_holds_no_images_is_refused_by_its_type(tmp_path, parquet, cells, said):
    pool = parquet(tmp_path / "x.parquet", image=cells, text=TEXTS)
    assert said in refused(HuggingFace, tmp_path, pool).replace("float64", "double")


def test_a_picture_beside_tables_is_no_pair(tmp_path, parquet):
    folder = tmp_path / "set"
    parquet(folder / "data" / "train-00000-of-00001.parquet", image=[jpeg(i) for i in range(3)], text=TEXTS)
    (folder / "thumbnail.png").write_bytes(encoded(photo(9), "PNG"))
    assert pairs_of(opened(HuggingFace, tmp_path, str(folder))) == WANTED


def test_a_folder_of_pictures_with_texts_beside_them(tmp_path, parquet):
    folder = tmp_path / "set" / "10_things"
    folder.mkdir(parents=True)
    for i in range(4):
        (folder / f"photo {i}.v1.jpg").write_bytes(jpeg(i))
        (folder / f"photo {i}.v1.{'caption' if i == 1 else 'txt'}").write_bytes(("\ufeff" + caption(i)).encode())
    (folder / "photo 3.v1.txt").unlink()
    split = opened(HuggingFace, tmp_path, str(tmp_path / "set"))
    assert pairs_of(split) == WANTED
    assert damage_of(split) == {"no caption": 1}
    assert pairs_of(opened(HuggingFace, tmp_path, f"{tmp_path}/set:train[1:3]")) == WANTED[1:]


def test_index_stream_and_datasets_give_the_same_pairs(tmp_path, parquet):
    datasets = pytest.importorskip("datasets")
    members = [m for i in range(12) for m in ((f"{i:03d}.jpg", jpeg(i)), (f"{i:03d}.txt", caption(i).encode()))]
    pool = tar_at(tmp_path / "x.tar", members)
    indexed = opened(WebDataset, tmp_path, pool)
    batch = indexed.batch(torch.arange(12))
    found = [(decode(jpeg(i), 16), caption(i)) for i in range(12)]
    stream = Stream(pool, Synthetic(eval=4), image_size=16, lanes=1, buffer=1).split("pool")
    from jestbench.data.sources.lanes import START, LaneReader

    chunk = LaneReader(stream.shards)((0, 0, START, 100))
    theirs = datasets.load_dataset("webdataset", data_files={"train": [pool]}, split="train", streaming=True)
    theirs = list(theirs.cast_column("jpg", datasets.Image(decode=False)))
    for i, (image, text) in enumerate(found):
        assert batch.captions[i] == chunk.captions[i] == theirs[i]["txt"] == text
        assert np.array_equal(batch.images_BCHW[i].permute(1, 2, 0).numpy(), image)
        assert np.array_equal(chunk.images_NHWC[i], image)
        assert theirs[i]["jpg"]["bytes"] == jpeg(i)


def test_damage_survives_the_way_between_processes():
    import pickle

    damaged = pickle.loads(pickle.dumps(DamagedImage("no image", "said", "cause").at("here")))
    assert (damaged.reason, damaged.said, damaged.example) == ("no image", "said", "here: said (cause)")
