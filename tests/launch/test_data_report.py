"""Reports on user data: samples of --check, warnings of waste, and the fingerprints that a resume compares."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import kill_before, rows_of, summary_of
from photos import caption, encoded, jpeg, photo, tar_of

from jestbench.launch.command import main

QUIET = ("run.device=cpu", "wandb.mode=disabled", "log.progress=False", "log.every=1", "evaluate.points=1")
SIZES = ("run.batch_size=8", "run.super_batch_size=18", "run.policy=hard_learner", *QUIET)
LITTLE = ("run.budget=None", "budget.steps=4", *SIZES)


def table(name: str, numbers: range, more: str = "") -> None:
    for i in numbers:
        Path(f"{i}.jpg").write_bytes(jpeg(i))
    rows = "".join(f"{i}.jpg,{caption(i)}\n" for i in numbers)
    Path(f"{name}.csv").write_text(f"filepath,title\n{rows}{more}")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    table("pool", range(50), "gone.jpg,x\n")
    table("eval", range(50, 60))
    Path("mine.gin").write_text('include "gin/run/csv.gin"\ncsv.pool = "pool.csv"\ncsv.eval = "eval.csv"\n')

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["--gin_file", "mine.gin", *words])
        said = capsys.readouterr()
        return status, re.sub(r"\n {15}(?=\S)", " ", said.out), said.err  # lines whole again

    return call


def test_a_check_opens_what_is_bound_and_reports_it(run):
    status, out, err = run("--check", *LITTLE)
    assert status == 0, err
    assert f"csv.pool: 50 images, 50 captions, such as {caption(0)!r}; 32 decoded, 0 of them damaged\n" in out
    assert "csv.pool: left out: 1 × no image of 51, the first: gone.jpg: No such file or directory\n" in out
    assert f"csv.eval: 10 images, 10 captions, such as {caption(50)!r}; 10 decoded" in out
    assert "2 epochs of a pool of 50, each without 14 pairs (too few for a step)\n" in out
    assert "metrics    eval/zero_shot_top1, " in out
    assert "workers read 2 super-batches of " in out
    assert "not checked" not in out
    assert not Path("runs").exists()
    assert "14 of the pool's 50 pairs are left out of each epoch" in err


def test_a_check_counts_what_is_there_several_times(run):
    """The check reports how many of the images and of the captions are distinct, where some stand there again."""
    rows = "".join(f"{i}.jpg,{'nan' if i % 2 else caption(i)}\n" for i in range(20))
    Path("same.csv").write_text(f"filepath,title\n{rows}")
    for i in range(5):
        Path(f"{i}.jpg").write_bytes(jpeg(0))
    status, out, err = run("--check", "csv.pool=same.csv", *LITTLE)
    assert status == 0, err
    assert f"csv.pool: 20 images (16 distinct), 20 captions (11 distinct), such as {caption(0)!r}" in out


def test_a_check_of_local_data_that_cannot_be_read_ends_with_3(run):
    assert run("--check", "csv.curated=none.csv", *LITTLE)[0] == 3
    Path("pool.csv").write_text('filepath,title\n0.jpg,"a\n1.jpg,b\n')
    status, _, err = run("--check", *LITTLE)
    assert status == 3
    assert "pool.csv, line 2: a quote opens here and is never closed" in err


def test_a_sample_is_decoded_by_a_check(run):
    whole = encoded(photo(25, 200, 160))
    Path("25.jpg").write_bytes(whole[: len(whole) // 2])
    table_of = Path("pool.csv").read_text().splitlines()
    Path("part.csv").write_text("\n".join([table_of[0], *table_of[21:51]]))
    status, out, err = run("--check", "csv.pool='part.csv'", *LITTLE)
    assert status == 0, err
    shown = " ".join(out.split())
    assert re.search(r"30 decoded, 1 of them damaged, the first: undecodable image: .*/25\.jpg: OSError: ", shown), out


def test_captions_that_are_cut_are_counted_and_warned_of_where_they_are_many(run):
    def pool(long: int) -> None:
        rows = "".join(f"{i}.jpg,{caption(i)}{' car' * 40 if i < long else ''}\n" for i in range(50))
        Path("pool.csv").write_text(f"filepath,title\n{rows}")

    pool(4)
    status, out, err = run("--check", *LITTLE)
    said = r"csv\.pool: 4 of 50 captions \(8%\) are cut to the 32 tokens of tokenizer\.length; 99% have at most (\d+)\n"
    found = re.search(said, out)
    assert found, out
    assert "are cut" not in err, "outliers"
    assert re.findall(r"(\S+): \d+ of \d+ captions \(", out) == ["csv.pool"], "those of eval are short"
    longest = int(found[1])
    assert "are cut" not in run("--check", *LITTLE, f"tokenizer.length={longest}")[1], "it has room for the longest"
    assert re.search("[1-4] of 50 captions .* are cut", run("--check", *LITTLE, f"tokenizer.length={longest - 1}")[1])

    pool(6)
    status, _, err = run(*LITTLE, "budget.steps=1", "--run_dir", "out")
    assert status == 0, err
    (warning,) = [one for one in summary_of("out")["warnings"] if "are cut" in one]
    assert warning.startswith("csv.pool: 6 of 50 captions (12%) are cut to the 32 tokens of tokenizer.length; ")
    assert warning.endswith("; a larger tokenizer.length keeps more of longer texts (and costs more FLOPs)")
    assert f"warning: {warning}\n" in err


def test_evaluated_classes_that_read_alike_or_have_no_names_are_warned_of(run):
    def evaluated(*titles: str, more: str = "captions.lower=False") -> str:
        rows = "".join(f"{50 + i}.jpg,{titles[i % len(titles)]}\n" for i in range(10))
        Path("eval.csv").write_text(f"filepath,title\n{rows}")
        status, _, err = run("--check", *LITTLE, more)
        assert status == 0, err
        return err

    alike = r"csv/eval: 1 of 3 classes have the tokens of another, such as '[Cc]rane' and '[Cc]rane', so that no model"
    assert re.search(alike, evaluated("Crane", "crane", "a boat"))
    assert "tokens of another" not in evaluated("Crane", "crane", "a boat", more="captions.lower=True")
    ids = evaluated("n01440764", "a boat")
    assert "csv.eval: captions: 5 of 10 are WordNet ids or numbers, such as 'n01440764', which a model reads as" in ids
    assert "bind csv.caption_column to a field that holds names" in ids
    assert "csv.eval: captions: 10 of 10 are WordNet ids or numbers, such as '7'" in evaluated("7", "8")
    assert "WordNet" not in evaluated("747", "a boat"), "a name may be a number"


def test_captions_that_are_all_one_or_urls_are_warned_of_once(run):
    def pool(*titles: str) -> list[str]:
        rows = "".join(f"{i}.jpg,{titles[i % len(titles)]}\n" for i in range(50))
        Path("pool.csv").write_text(f"filepath,title\n{rows}")
        status, _, err = run("--check", *LITTLE)
        assert status == 0, err
        return [line for line in err.splitlines() if "field that holds texts" in line]

    (one,) = pool("a photo")
    assert "csv.pool: all of 50 captions that were looked at are 'a photo'; bind csv.caption_column to a field" in one
    (urls,) = pool("https://h/a.jpg", "http://h/b?c=1", "a boat", "www.host.org/x")
    assert "csv.pool: 38 of 50 captions are URLs, such as 'https://h/a.jpg'; bind csv.caption_column to a" in urls
    assert pool("see https://h/a.jpg", "a boat", "http://h/c") == []


def test_a_split_that_a_run_below_lacks_is_said_with_that_run(run):
    arm = ("run.policy=easy_reference", f"run.reference={('gin/run/reference.gin', *SMALL)}", *SMALL)
    for way in (["--check"], ["--run_dir", "out"]):
        status, _, err = run(*arm, *way)
        assert status == 3
        assert "the split 'curated' is not given: bind csv.curated" in err
        assert "(in the run 'reference', on which this run stands)" in err
        assert "run.split = 'pool[top=0.05, by=column:NAME]'" in err


def test_what_must_be_fetched_is_listed_and_opened_when_allowed(run, monkeypatch):
    pytest.importorskip("webdataset")
    import io
    import tarfile

    for name, numbers in (("s0", range(25)), ("s1", range(25, 50)), ("e", range(50, 60))):
        with tarfile.open(f"{name}.tar", "w") as tar:
            for i in numbers:
                for ending, content in (("jpg", jpeg(i)), ("txt", caption(i).encode())):
                    info = tarfile.TarInfo(f"{i:03d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    text = 'include "gin/run/webdataset.gin"\ninclude "gin/data/stream.gin"\nwebdataset.eval = "e.tar"\n'
    Path("mine.gin").write_text(text + 'stream.shards = "pipe:cat s{0..1}.tar; touch ran"\nstream.lanes = 2\n')
    words = ("--check", "stream.image_size=32", *LITTLE)
    status, out, err = run(*words)
    assert status == 0, err
    assert "not checked: stream.shards (2, the first pipe:cat s0.tar; touch ran) (a command: --allow_pipes" in out
    assert "webdataset.eval: 10 images" in out
    assert not Path("ran").exists()
    status, out, err = run(*words, "--allow_pipes")
    assert status == 0, err
    assert "not checked" not in out
    assert Path("ran").exists()
    status, out, err = run(*words, "stream.shards='pipe:false {0..1}'", "--allow_pipes")
    assert status == 3
    assert "no pair can be read from pipe:false 0" in err


def test_hub_names_and_tokenizers_are_listed_not_fetched(run, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("nothing is fetched"))
    Path("mine.gin").write_text(
        'include "gin/run/huggingface.gin"\nhuggingface.pool = "a/b"\nhuggingface.eval = "a/c"\n'
    )
    status, out, err = run("--check", "tokenizer.source='openai/clip'", *LITTLE)
    assert status == 0, err
    for what in ("huggingface.pool", "huggingface.eval", "tokenizer.source = 'openai/clip'"):
        assert f"not checked: {what} (--allow_downloads opens it)" in out


def test_a_run_says_what_it_left_out_enlarged_and_repeated(run):
    bound = (*LITTLE, "budget.steps=64", "csv.image_size=16", "csv.max_damaged=0.5", "--run_dir", "out")
    status, _, err = run(*bound)
    assert status == 0, err
    found = summary_of("out")
    assert found["data"]["walk"] == {
        "prepared_pixels": 16,
        "model_pixels": 32,
        "steps_an_epoch": 2,
        "left_out_an_epoch": 14,
        "epochs": 32.0,
    }
    warnings = " | ".join(found["warnings"])
    assert "images are prepared at 16 px and enlarged to the 32 px of the model" in warnings
    assert "14 of the pool's 50 pairs are left out of each epoch" in warnings
    assert "the pool is walked through 32 times in 64 steps" in warnings
    out = run("--price", *SIZES, "run.budget=1e10", "csv.image_size=16")[1]
    assert "warning: images are prepared at 16 px and enlarged to the 32 px of the model" in out
    assert "warning: 14 of the pool's 50 pairs are left out of each epoch" in out
    assert "epochs of a pool of 50, each without 14 pairs (too few for a step)" in out


def test_a_run_does_not_go_on_with_other_data(run):
    command = ["--gin_file", "mine.gin", *LITTLE, "run.checkpoints=2", "--run_dir", "out"]
    kill_before(3, command)
    before = Path("pool.csv").read_text()
    Path("pool.csv").write_text(before.replace(caption(3), "another caption"))
    status, _, err = run(*command[2:], "--resume")
    assert status == 3
    assert "the data csv/pool changed since step-0000000002 was written" in err
    assert "the tokenizer" in err, "it is trained on the pool's captions"
    Path("pool.csv").write_text(before)
    held_out = Path("eval.csv").read_text()
    Path("eval.csv").write_text(held_out.replace(caption(51), "another caption"))
    status, _, err = run(*command[2:], "--resume")
    assert (status, "the data csv/eval changed since" in err, "csv/pool" in err) == (3, True, False)
    Path("eval.csv").write_text(held_out)
    assert run(*command[2:], "--resume")[0] == 0
    assert rows_of("out")[-1]["step"] == 4
    json.loads(Path("out/summary.json").read_text())


SMALL = ("run.batch_size=8", "run.super_batch_size=8", "run.budget=None", "budget.steps=2", *QUIET)


def shared_rows(name: str, numbers: range) -> None:
    rows = "".join(f"{i}.jpg,{caption(i)}\n" for i in numbers)
    Path(f"{name}.csv").write_text(f"filepath,title\n{rows}")


def test_evaluated_images_that_are_trained_on_are_warned_of(run):
    """Whoever is trained on them: the run itself, a reference on demand, or one in a folder; nobody else is named."""
    shared_rows("curated", range(40, 54))
    reference = str(("gin/run/reference.gin", *SMALL))
    arm = ("run.policy=easy_reference", "csv.curated=curated.csv", *SMALL)
    assert "evaluated images" not in run("--check", *SMALL)[2]

    own = "4 of the 10 evaluated images (csv/eval) lie in {}, too, which {} is trained on"
    assert (
        own.format("pool+curated", "this run")
        in run("--check", *arm, "run.policy=uniform", "run.split=pool+curated")[2]
    )
    status, _, err = run(*arm, f"run.reference={reference}", "--run_dir", "arm")
    assert status == 0, err
    (warning,) = summary_of("arm")["warnings"]
    assert warning.startswith(own.format("curated", "the reference 'reference'"))

    (there,) = Path("cache/models").glob("reference-*[0-9a-f]")
    status, _, err = run("--check", *arm, f"run.reference={str(there)!r}")
    assert (status, f"the reference in {there}: {own.format('curated', 'this run')}" in err) == (0, True), err
    shared_rows("curated", range(10, 40))
    assert "evaluated images" not in run("--check", *arm, f"run.reference={reference}")[2], "a curated part of the pool"


def test_an_error_of_the_run_that_a_run_stands_on_names_that_run(run):
    """The arm's own sizes are no remedy; the one that the message gives is."""
    shared_rows("curated", range(20))
    Path("theirs.gin").write_text('include "gin/run/reference.gin"\nrun.batch_size = 32\nrun.super_batch_size = 32\n')
    arm = ("--check", "run.policy=easy_reference", "csv.curated=curated.csv", *SMALL)
    status, _, err = run(*arm, "run.reference=theirs.gin")
    assert status == 3
    assert "csv/curated holds 20 pairs, fewer than the 32 of one super-batch" in err
    assert "(in the run 'reference', on which this run stands; what is bound for it stands behind its file" in err
    sizes = "('theirs.gin', 'run.batch_size=8', 'run.super_batch_size=8')"
    assert run(*arm, f"run.reference={sizes}")[0] == 0
    status, _, err = run(*arm, "run.reference=gin/run/refrence.gin")
    assert (status, "no such file or run folder; did you mean reference.gin?" in err) == (2, True)


def stream_of(captions: Callable[[int], str], pool: range, evaluated: range = range(50, 60)) -> None:
    """A run on a stream of two shards, with the evaluated images on the disk."""
    half = len(pool) // 2
    for name, numbers in (("s0", pool[:half]), ("s1", pool[half:]), ("e", evaluated)):
        members = ((f"{i:03d}.jpg", jpeg(i)) for i in numbers)
        texts = ((f"{i:03d}.txt", (caption(i) if name == "e" else captions(i)).encode()) for i in numbers)
        tar_of(Path(f"{name}.tar"), [one for pair in zip(members, texts, strict=True) for one in pair])
    text = 'include "gin/run/webdataset.gin"\ninclude "gin/data/stream.gin"\nwebdataset.eval = "e.tar"\n'
    Path("mine.gin").write_text(text + 'stream.shards = "s{0..1}.tar"\nstream.lanes = 2\nstream.image_size = 32\n')


@pytest.mark.parametrize(
    ("captions", "first", "said"),
    [
        (
            str,
            0,
            "captions: 40 of 40 are WordNet ids or numbers, such as '0', which a model reads",
        ),
        (
            lambda i: caption(i) + " car" * 40,
            0,
            "40 of 40 captions (100%) are cut to the 32 tokens of tokenizer.length",
        ),
        (
            caption,
            14,
            "4 of the 10 evaluated images (webdataset/eval) lie in pool (its first 40 pairs), too",
        ),
        (caption, 0, ""),
    ],
    ids=["numbers", "cut", "overlap", "nothing"],
)
def test_the_head_of_a_stream_is_checked_as_an_index_is(run, captions, first, said):
    stream_of(captions, range(first, first + 40))
    status, out, err = run("--check", *LITTLE)
    assert status == 0, err
    head = f"stream.shards, the first 40 pairs: 40 images, 40 captions, such as {captions(first)[:60]!r}"
    assert head in out
    assert (said in err) if said else (err == "")


def test_more_damage_in_the_head_of_a_stream_than_a_run_allows_is_refused_by_a_check(run):
    stream_of(lambda i: "" if i % 2 else caption(i), range(40))
    status, _, err = run("--check", *LITTLE)
    assert status == 3
    assert "stream.shards, the first 40 pairs: 20 × empty caption of 40, the first: s0.tar: 001" in err
    status, out, err = run("--check", *LITTLE, "stream.max_damaged=0.1")
    assert (status, "left out: 20 × empty caption of 40" in out) == (0, True), err


def test_evaluated_images_are_counted_wherever_in_a_stream_they_come(run, monkeypatch):
    """Behind the head, too: by the end of the run they are warned of with their number."""
    monkeypatch.setattr("jestbench.data.sources.stream_head.PAIRS", 10)
    stream_of(caption, range(14, 54))
    status, _, err = run(*SMALL, "budget.steps=5", "--run_dir", "out")
    assert status == 0, err
    assert "evaluated images" not in err
    found = summary_of("out")
    assert found["data"]["counts"]["evaluated"] == 4
    (warning,) = found["warnings"]
    assert warning.startswith("4 pairs drawn from the stream hold evaluated images (webdataset/eval)")


def test_a_reference_beside_a_stream_is_compared_whole(run):
    stream_of(caption, range(40))
    tar_of(Path("c.tar"), [(f"{i:03d}.{end}", made(i)) for i in range(48, 58) for end, made in MEMBERS.items()])
    reference = str(("gin/run/reference.gin", *SMALL))
    arm = ("run.policy=easy_reference", "webdataset.curated=c.tar", f"run.reference={reference}", *SMALL)
    err = run("--check", *arm)[2]
    assert "8 of the 10 evaluated images (webdataset/eval) lie in curated, too, which the reference 'reference'" in err


MEMBERS = {"jpg": jpeg, "txt": lambda i: caption(i).encode()}


def test_a_holdout_that_lies_in_the_pool_is_warned_of(run):
    shared_rows("holdout", range(45, 50))
    table("apart", range(70, 90))
    reference = str(("gin/run/irreducible.gin", *SMALL, "run.batch_size=4", "run.super_batch_size=4"))
    arm = ("--check", "run.policy=rho_loss", f"run.reference={reference}", *SMALL)
    held = "5 images of holdout, which the reference 'irreducible' is trained on, lie in the pool, too"
    assert held in run(*arm, "csv.holdout=holdout.csv")[2]
    assert run(*arm, "csv.holdout=apart.csv")[2] == ""
