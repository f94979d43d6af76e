"""Data, names and secrets of others: bombs, credentials, commands, and text that would like to be markup."""

from __future__ import annotations

import gzip
import html
import io
import json
import re
import sys
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_rows import fault
from helpers import own_surroundings, small_world, summary_of
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from jestbench.config.resolve import resolve
from jestbench.data.sources import lanes, shards
from jestbench.data.sources.lanes import START, LaneReader, Shards
from jestbench.data.sources.shards import MemberRules
from jestbench.launch.command import main
from jestbench.masking import MASK, masked
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.runs.choices import Choice
from jestbench.runs.damage_page import write_damage
from jestbench.runs.examples import Example, ExampleTable, save
from jestbench.runs.markdown import as_code, as_text

TINY = ["--gin_file", "gin/run/tiny.gin", *small_world(8, 24), "run.budget=None", "budget.steps=2"]


@pytest.fixture(scope="module", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_surroundings(tmp_path_factory, WANDB_MODE="disabled"):
        yield


# Bombs


def packed(path: Path, members: list[tuple[str, bytes]], headers: list[tarfile.TarInfo] | None = None) -> Path:
    """A gzipped tar of members; of headers before them."""
    with gzip.open(path, "wb", compresslevel=1) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for header in headers or []:
            tar.addfile(header, io.BytesIO(bytes(header.size)))
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sound(name: str) -> list[tuple[str, bytes]]:
    image = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(image, "PNG")
    return [(f"{name}.png", image.getvalue()), (f"{name}.txt", name.encode())]


def read_stream(path: Path, count: int = 4) -> tuple[tuple[str, ...], dict[str, str], int]:
    """Captions and damage of a streamed shard, and the most bytes that Python held while it was read."""
    tokenizer = Tokenizer(train_bpe(["a few words"], 300).to_str(), 8)
    reader = LaneReader(Shards((str(path),), tokenizer, 4, MemberRules(), lanes=1, buffer=256, max_damaged=1.0))
    tracemalloc.start()
    chunk = reader((0, 0, START, count))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return chunk.captions, chunk.examples, most


BIG = 2**20


@fault("guests", "a gzip bomb in a stream (a header, a member, a sample, many members)", "named damage, memory bounded")
@pytest.mark.parametrize("kind", ["header", "member", "sample", "many"])
def test_a_bomb_in_a_stream_is_damage_and_takes_no_memory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, most in (
        (shards, "MAX_IMAGE", BIG),
        (shards, "MAX_TEXT", BIG),
        (shards, "MAX_SAMPLE", 2 * BIG),
        (lanes, "MAX_BLOCKS", 2 * BIG),
    ):
        monkeypatch.setattr(module, name, most)
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 40 * BIG
    bombs = {
        "header": ([], [long_name], ""),
        "member": ([("bomb.png", bytes(40 * BIG)), ("bomb.txt", b"bomb")], [], "member too large"),
        "sample": ([*sound("bomb"), *((f"bomb.{n}.txt", bytes(BIG)) for n in range(40))], [], "sample too large"),
        "many": ([(f"{n:02d}.{end}", bytes(BIG)) for n in range(40) for end in ("png", "txt")], [], ""),
    }
    members, headers, damage = bombs[kind]
    captions, examples, most = read_stream(packed(tmp_path / "bomb.tar", [*sound("first"), *members], headers))
    assert (tmp_path / "bomb.tar").stat().st_size < BIG
    assert most < 12 * BIG
    assert "first" in captions or kind == "header"
    assert examples or kind == "sample"
    assert damage in str(examples)


# Commands


@fault("guests", "a pipe: command under --check or --price", "not run without --allow_pipes, and named")
@pytest.mark.parametrize("asked", ["--check", "--price"])
def test_no_command_is_run_without_being_asked(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even where all that lies beside the stream is prepared already."""
    monkeypatch.chdir(tmp_path)
    for name in ("0", "1", "eval"):
        pairs = [part for n in range(12) for part in sound(f"{name}{n:02d}")]
        (tmp_path / f"{name}.tar").write_bytes(gzip.decompress(packed(tmp_path / "z", pairs).read_bytes()))
    Path("mine.gin").write_text(
        'include "gin/run/tiny.gin"\nrun.data = @stream()\nstream.beside = @webdataset()\n'
        'webdataset.eval = "eval.tar"\nwebdataset.image_size = 16\nwebdataset.tokenizer = @tokenizer()\n'
        "tokenizer.vocab_size = 300\nstream.image_size = 16\nstream.lanes = 2\n"
        'stream.shards = ("pipe:touch ran; cat 0.tar", "pipe:touch ran; cat 1.tar")\n',
        encoding="utf-8",
    )
    words = ["--gin_file", "mine.gin", "run.batch_size=4", "run.super_batch_size=8", "run.device=cpu"]
    words += ["--allow_unused", "synthetic.*"]
    for _ in range(2):  # the second time all beside the stream lies in the cache
        assert main([*words, "--check"]) == 0
        assert main([*words, asked]) == 0
    assert not Path("ran").exists()
    assert main([*words, "--check", "--allow_pipes"]) == 0
    assert Path("ran").exists()


# Credentials

SECRETS = ["hunter22", "abcd1234", "eyJhbGciOi", "s3cr3t-of-the-environment"]
BOUND = {
    "wandb.notes": "a long note, so that gin breaks its line: https://bob:hunter22@example.org/x?token=abcd1234&n=1",
    "run.arm": "curl -H 'Authorization: Bearer eyJhbGciOi'",
    "wandb.name": "${env:JESTBENCH_TEST_SECRET}",
}


def written(folder: Path) -> list[tuple[Path, str]]:
    """The files in which a secret stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [(path, secret) for path in files for secret in SECRETS if secret.encode() in path.read_bytes()]


@fault("guests", "credentials in bindings (Bearer, token=, user:password@)", "masked in the run's files and W&B")
@fault("guests", "a resume that would use a masked credential", "status 2: the binding to give again")
def test_credentials_are_masked_in_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("JESTBENCH_TEST_SECRET", SECRETS[-1])
    run = tmp_path / "run"
    bindings = [f"{key}={value!r}" for key, value in BOUND.items()]
    words = [*TINY, *bindings, "--run_dir", str(run)]
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    assert main(words) == 0
    assert sys.argv[1:] == words, "the command itself goes on with what it was given"
    assert list((run / "wandb").rglob("*.wandb")), "W&B has run"
    assert written(run) == []
    assert summary_of(run)["arm"] == f"curl -H 'Authorization: Bearer {MASK}'"
    assert "'${env:JESTBENCH_TEST_SECRET}'" in (run / "operative.gin").read_text()
    capsys.readouterr()
    assert main(["--run_dir", str(run), "--resume"]) == 2
    said = capsys.readouterr().err
    assert "run.arm holds a credential that was masked" in said
    assert "give the binding again" in said
    assert main(["--run_dir", str(run), "--resume", *bindings]) == 0
    monkeypatch.delenv("JESTBENCH_TEST_SECRET")
    assert main(["--run_dir", str(run), "--resume", *bindings]) == 2
    assert "the variable JESTBENCH_TEST_SECRET is not set" in capsys.readouterr().err


def test_a_variable_is_read_at_the_start_and_is_no_part_of_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another password is the same arm; a masked one has no say either."""
    hashes = set()
    for secret in ("one-password", "another-password"):
        monkeypatch.setenv("JESTBENCH_TEST_SECRET", secret)
        resolved = resolve(["gin/run/tiny.gin"], ["synthetic.columns=('${env:JESTBENCH_TEST_SECRET}',)"])
        assert resolved.run.data.columns == (secret,)  # type: ignore[attr-defined]
        assert resolved.flat["synthetic.columns"] == ["${env:JESTBENCH_TEST_SECRET}"]
        hashes.add(resolved.config_hash)
        plain = resolve(["gin/run/tiny.gin"], [f"synthetic.columns=('https://u:{secret}@h',)"])
        assert plain.run.data.columns == (f"https://u:{secret}@h",)  # type: ignore[attr-defined]
        hashes.add(plain.config_hash)
    assert len(hashes) == 2


@pytest.mark.parametrize(
    "kept",
    [
        "https://example.org/a?b=c",
        "mail@example.org",
        "tokenizer.vocab_size=300",
        "webdataset.uid='key'",
        "a token of love, a key",
        "s3://bucket/{00..09}.tar",
        "token=${env:MINE}",
    ],
)
def test_what_is_no_credential_is_kept(kept: str) -> None:
    assert masked(kept) is kept


@given(st.from_regex(r"[A-Za-z0-9_.~-]{6,20}", fullmatch=True).filter(lambda text: text not in "authorization"))
def test_a_credential_is_masked_wherever_it_stands(secret: str) -> None:
    for text in (
        f"https://user:{secret}@host/x",
        f"https://host/x?a=1&api_key={secret}&b=2",
        f"curl -H 'Authorization: Bearer {secret}' https://host",
        f"X-Amz-Signature={secret}",
        f"hf_{'x' * 20}{secret}".replace(".", "0").replace("~", "0").replace("-", "0"),
    ):
        found = masked({"deep": [(text,)]})["deep"][0][0]
        assert MASK in found
        assert f"{secret}@" not in found
        assert f"={secret}" not in found
        assert f" {secret}" not in found
        assert masked(found) == found, "what is masked stays as it is"


# Text of others

HOSTILE = [
    "<script>alert(1)</script>",
    "![x](https://evil.example/x.png)",
    "[x](javascript:alert(1))",
    "https://evil.example and www.evil.example",
    "a | b",
    "`code` **bold** _soft_ ~~gone~~",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; &#x3c;",
    "two\n\n# lines",
]


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text_in_markdown(text: str) -> None:
    for page in (f"{as_text(text)}", f"| a |\n|---|\n| {as_text(text)} |", f"- **x**: {as_text(text)}"):
        out = rendered(page)
        assert not re.search(r"<(script|img|a|code|em|s|del|h1|b)\b", out), out
        plain = re.sub(r"</?(p|table|thead|tbody|tr|th|td|ul|li|strong)>", "", out)
        assert " ".join(text.split()) in html.unescape(plain)
    assert not re.search(r"://|www\.", as_text(text)), "which GitHub makes links of"
    assert "<script" not in rendered(f"`{as_code(text)}`")


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=30))
def test_any_text_is_text_in_markdown(text: str) -> None:
    out = rendered(f"x {as_text(text)}")
    assert out.startswith("<p>x")
    assert out.count("<") == 2, out


@fault("guests", "markup in captions, names and messages of others", "escaped in HTML and in Markdown")
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text_in_a_runs_pages(text: str, tmp_path: Path) -> None:
    data = {
        "damaged_when_indexed": {text: {text: 1}},
        "damage_examples": {text: {text: text}},
        "counts": {"damaged": 1, "read": 2},
        "examples_read": {text: text},
    }
    assert write_damage(tmp_path / "damage.md", data)
    out = rendered((tmp_path / "damage.md").read_text())
    assert "<script" not in out
    assert "<img" not in out
    assert "<a " not in out


def test_hostile_captions_are_text_on_the_page_of_examples(tmp_path: Path) -> None:
    caption = "</figcaption><script>alert(1)</script>"
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    example = Example(image, caption, True, 1.0, {"<b>": True}, 0)
    choice = Choice(np.zeros(2, np.int64), np.zeros(1, np.int64), None)
    save(ExampleTable(1, (example,), (example,), choice), tmp_path)
    page = (tmp_path / "examples" / "index.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert json.loads(next((tmp_path / "examples").glob("*.json")).read_text())["examples"][0]["caption"] == caption
