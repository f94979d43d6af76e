"""What ``run.split`` asks for: the share of largest numbers, and mixtures of several splits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import kill_before, outcome, summary_of
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import jpeg

from jestbench.batch import FULL, DataError, split_counts
from jestbench.config import resolve
from jestbench.cost.price import Price
from jestbench.data.fetch import WorkerFetch
from jestbench.data.joined_pairs import JoinedPairs, MixturePlan
from jestbench.data.loader import Loader
from jestbench.data.pairs import content_key
from jestbench.data.sources.csv_tables import Csv
from jestbench.data.splits import check_split, names_in, split_of, unranked
from jestbench.data.super_batches import EpochPlan, SuperBatches
from jestbench.data.synthetic import Synthetic
from jestbench.disk import key_text
from jestbench.launch.command import main
from jestbench.model.tokenizer_choice import TokenizerChoice
from jestbench.runs.open_folder import recorded
from jestbench.runs.saved_model import towers_of

WORLD = Synthetic(pool=120, curated=40, holdout=30, eval=16, columns=("similarity", "other"))
WORLD_OF_RUNS = Synthetic(pool=120, curated=64, eval=16)
QUICK = ["run.device=cpu", "log.progress=False", "log.every=1", "evaluate.points=2", "wandb.mode=disabled"]
TINY = ["--gin_file", "gin/run/tiny.gin", *QUICK, "synthetic.pool=120", "synthetic.curated=64", "synthetic.eval=16"]
TOP = "pool[top=0.25, by=column:similarity]"


# The largest numbers


@given(share=st.floats(0.001, 1), seed=st.integers(0, 5))
def test_the_top_of_a_split_is_its_share_of_largest_numbers(share, seed):
    pool = WORLD.split("pool")
    top = split_of(WORLD, f"pool[ top = {share!r} ,by= column:similarity ]")
    assert len(top) == max(1, round(share * 120))
    value_N = pool.columns["similarity"]
    assert np.array_equal(np.sort(top.columns["similarity"]), np.sort(value_N)[120 - len(top) :])
    index_B = torch.randperm(len(top), generator=torch.Generator().manual_seed(seed))[:9]
    batch = top.batch(index_B)
    assert torch.equal(batch.columns["similarity"], torch.from_numpy(top.columns["similarity"]).float()[index_B])
    assert torch.equal(batch.text_key_B, top.text_key_N[index_B])
    assert torch.equal(batch.image_key_B, torch.from_numpy(top.image_key_N)[index_B])


def test_parts_by_another_column_or_share_are_other_data():
    specs = ["pool", TOP, TOP.replace("0.25", "0.3"), TOP.replace("similarity", "other")]
    assert len({split_of(WORLD, spec).fingerprint for spec in specs}) == 4
    assert split_of(WORLD, TOP).fingerprint == split_of(WORLD, TOP).fingerprint
    with pytest.raises(DataError, match=r"synthetic/pool has no column 'clip' .*it has similarity, other"):
        split_of(WORLD, "pool[top=0.1, by=column:clip]")


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("pool[top=5, by=column:a]", "top a share in"),
        ("pool[top=0, by=column:a]", "top a share in"),
        ("pool[by=column:a]", "written 'pool"),
        ("pool[top=0.1, by=learner]", "by names a column.*by=reference .run.reference., by=scorer"),
        ("pool[top=0.1, by=column:]", "by names a column"),
        ({}, "mixes no split"),
        ({"pool": 0}, "the share of 'pool' is a positive number"),
        ({"pool": True}, "the share of 'pool'"),
        ({"pool[": 0.5}, "written 'pool"),
    ],
)
def test_a_split_that_cannot_be_read_is_refused_with_an_example(split, said):
    with pytest.raises(ValueError, match=said):
        check_split(split)


def test_the_names_in_a_split():
    assert names_in("pool+curated") == names_in({TOP: 0.5, "curated": 2}) == {"pool", "curated"}


@pytest.fixture
def captioned(tmp_path, monkeypatch):
    """Words that bind tables of 40 pictures of two captions each, eight of them alone in a second split."""
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    for name, numbers in (("pool", range(40)), ("curated", range(40, 48)), ("eval", range(48, 56))):
        rows = [f"{name}/{i}.jpg,{kind} photo {i},{i}" for i in numbers for kind in ("small", "large")]
        (tmp_path / name).mkdir()
        for i in numbers:
            (tmp_path / name / f"{i}.jpg").write_bytes(jpeg(i))
        (tmp_path / f"{name}.csv").write_text("\n".join(["filepath,title,q", *rows]))
    tables = [f"csv.{name}={tmp_path / name}.csv" for name in ("pool", "curated", "eval")]
    return [*QUICK, *tables, "csv.columns=('q',)", "csv.image_size=32", "run.batch_size=8", "run.super_batch_size=16"]


@pytest.mark.parametrize(
    ("words", "captions"),
    [
        ((), 80),
        (("run.split='pool[top=0.25, by=column:q]'",), 20),
        (("run.split={'pool': 0.75, 'curated': 0.25}",), 96),
        (("run.split={'pool[top=0.25, by=column:q]': 0.75, 'curated': 0.25}",), 36),
        (("run.half=0",), 2 * sum(content_key(jpeg(i)) % 2 == 0 for i in range(40))),
    ],
)
def test_every_caption_of_a_part_or_a_mixture_is_scored_into_the_cache(captioned, tmp_path, capsys, words, captions):
    own = ("gin/run/csv.gin", "run.budget=1e9", "run.batch_size=8")
    files = ["--gin_file", "gin/run/csv.gin", "--gin_file", "gin/policy/jest.gin"]
    cache = ["run.cache=@cache()", f"cache.folder={tmp_path / 'filled'}", f"run.reference={own!r}"]
    assert main([*files, *captioned, *cache, *words, "--fill_cache"]) == 0
    assert json.loads(capsys.readouterr().out)["reference"]["pairs"] == captions


def test_a_reference_is_trained_on_the_top_of_the_pool(tmp_path, monkeypatch, capsys):
    """The way in for those who have no curated set."""
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    files = [
        "--gin_file",
        "gin/policy/jest.gin",
        "synthetic.columns=('similarity',)",
        "run.budget=6e9",
        "run.super_batch_size=64",
    ]
    own = ("gin/run/tiny_reference.gin", f"run.split={TOP!r}", "run.budget=4e9", "run.batch_size=16")
    assert main([*TINY, *files, f"run.reference={own!r}", "--run_dir", str(tmp_path / "run")]) == 0
    reference = summary_of(summary_of(tmp_path / "run")["references"][0]["run_dir"])
    assert (reference["data"]["split"], reference["data"]["pairs"]) == (TOP, 30)
    pool = Synthetic(pool=120, columns=("similarity",)).split("pool")
    top = split_of(Synthetic(pool=120, columns=("similarity",)), TOP)
    assert pool.marks["noisy"].mean() > 0.3
    assert top.batch(torch.arange(30)).marks["noisy"].float().mean() == 0
    assert main([*TINY, "run.split='pool[top=2, by=column:x]'", "--check"]) == 2
    assert "'pool[top=0.05, by=column:similarity]'" in capsys.readouterr().err


# The largest own scores under a frozen model

WORDS = [*TINY, "run.budget=None", "budget.steps=3", "run.batch_size=8", "run.super_batch_size=16", "run.checkpoints=2"]
OWN = ("gin/run/tiny_reference.gin", "run.split=pool", "run.budget=3e9", "run.batch_size=16")
BY = "pool[top=0.25, by=reference]"


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> str:
    """The folder of a reference."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JESTBENCH_CACHE", str(folder / "cache"))
        file, *bindings = OWN
        assert (
            main(["--gin_file", file, *bindings, *QUICK, "synthetic.pool=120", "--run_dir", str(folder / "run")]) == 0
        )
    return str(folder / "run")


def cosines_of(folder: str, pairs: Any) -> np.ndarray:
    model = towers_of(Path(folder), "contrastive")
    batch = pairs.batch(torch.arange(len(pairs)))
    with torch.no_grad():
        image_ND = model.encode_image(batch.images_BCHW, FULL, batch.image_key_B)
        text_ND = model.encode_text(batch.tokens(model.tokenizer), FULL)
    return (image_ND.double() * text_ND.double()).sum(1).numpy()


def spent_on_scores(run_dir: Path) -> tuple[int, int]:
    flops = summary_of(run_dir)["flops"]
    return flops["reference_score"], flops["pairwise"]


@pytest.mark.parametrize("split", [BY, {BY: 0.5, "curated": 0.5}], ids=str)
def test_the_top_by_a_references_own_scores_is_that_of_its_cosines_and_is_charged_once(
    split, reference, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    command = [*WORDS, f"run.split={split!r}", f"run.reference={reference!r}", "log.chosen=True"]
    assert main([*command, "--price"]) == 0
    said = re.search(
        r"own scores of 120 pairs, by which the split takes its top: ([\d,]+) FLOPs", capsys.readouterr().out
    )
    assert said is not None
    for name in ("cold", "warm"):
        assert main([*command, "--run_dir", str(tmp_path / name)]) == 0
        assert ("scoring the 120 pairs" in capsys.readouterr().err) == (name == "cold"), "kept by digest"
    pool = WORLD_OF_RUNS.split("pool")
    best = {key_text(key) for key in pool.image_key_N[np.argsort(-cosines_of(reference, pool), kind="stable")[:30]]}
    rows = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "cold" / "chosen.parquet").to_pylist()
    curated = {key_text(key) for key in WORLD_OF_RUNS.split("curated").image_key_N}
    drawn = {row["key"] for row in rows}
    assert drawn - curated <= best
    assert drawn <= best if isinstance(split, str) else drawn & curated
    plain = [*WORDS, f"run.split={'curated'!r}", "--run_dir", str(tmp_path / "plain")]
    assert main(plain) == 0
    (scored, pairwise), (nothing, of_loss) = spent_on_scores(tmp_path / "cold"), spent_on_scores(tmp_path / "plain")
    assert nothing == 0 < scored
    assert int(said[1].replace(",", "")) == scored + pairwise - of_loss
    price = Price.of(towers_of(Path(reference), "contrastive"), pool.example())
    images, texts = len(set(pool.image_key_N.tolist())), len(pool.text_key_N.unique())
    assert scored == 2 * (images * price.image + texts * price.text)
    assert spent_on_scores(tmp_path / "warm") == (scored, pairwise), "whatever lies on the disk"


@pytest.mark.parametrize("accounting", ["online", "first_sight", "amortised"])
def test_what_a_split_has_scored_is_charged_to_the_policy_by_the_same_accounting(
    accounting, reference, tmp_path, monkeypatch, capsys
):
    """The policy's scores of pairs that the split was chosen by are no first sights; resumed exactly."""
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    jest = ["--gin_file", "gin/policy/jest.gin", f"run.reference={reference!r}"]
    command = [*WORDS, *jest, f"run.split={BY!r}", f"run.reference_accounting={accounting}"]
    assert main([*command, "--price"]) == 0
    out = capsys.readouterr().out
    ranking = int(re.search(r"takes its top: ([\d,]+) FLOPs", out)[1].replace(",", ""))
    assert main([*command, "--run_dir", str(tmp_path / "whole")]) == 0
    kill_before(2, [*command, "--run_dir", str(tmp_path / "cut")])
    shutil.rmtree(tmp_path / "cache" / "own_scores")
    assert main([*command, "--resume", "--run_dir", str(tmp_path / "cut")]) == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    flops = summary_of(tmp_path / "whole")["flops"]
    model, pool = towers_of(Path(reference), "contrastive"), WORLD_OF_RUNS.split("pool")
    price = Price.of(model, pool.example())
    each = 2 * (price.image + price.text)
    of_pool = 2 * (len(set(pool.image_key_N.tolist())) * price.image + len(pool.text_key_N.unique()) * price.text)
    wanted = {"online": (120 + 3 * 16) * each, "first_sight": of_pool, "amortised": 0}
    assert flops["reference_score"] == wanted[accounting]
    pairs = len({*zip(pool.image_key_N.tolist(), pool.text_key_N.tolist(), strict=True)})
    once = of_pool + 2 * pairs * model.width
    assert summary_of(tmp_path / "whole")["flops_amortised"] == (once if accounting == "amortised" else 0)
    assert ranking == {"online": 120 * (each + 2 * model.width), "first_sight": once, "amortised": 0}[accounting]
    if accounting == "first_sight":
        assert "first sights in 3 steps: 0 FLOPs" in out


def test_a_reference_is_trained_on_the_top_by_another_ones_scores(reference, tmp_path, monkeypatch, capsys):
    """The way in without a curated set and without a column; the top by a pair scorer's grades alike."""
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    own = ("gin/run/tiny_reference.gin", f"run.split={BY!r}", f"run.reference={reference!r}", *OWN[2:])
    command = [*WORDS, "--gin_file", "gin/policy/jest.gin", f"run.reference={own!r}"]
    assert main([*command, "--check", "--verbose"]) == 0
    said = "not checked: the top of the 120 pairs of synthetic/pool by the reference; its first pairs stand in"
    assert said in capsys.readouterr().out
    assert main([*command, "--run_dir", str(tmp_path / "run")]) == 0
    found = summary_of(summary_of(tmp_path / "run")["references"][0]["run_dir"])
    assert (found["data"]["split"], found["data"]["pairs"]) == (BY, 30)
    assert found["flops"]["reference_score"] > 0
    assert found["pretrain_flops"]["reference"] == summary_of(reference)["flops"]["total"]
    capsys.readouterr()
    graded = ["run.split='pool[top=0.5, by=scorer]'", "run.scorer=('gin/run/tiny_cappy.gin', 'run.budget=2e9')"]
    assert main([*WORDS, *graded, "--run_dir", str(tmp_path / "graded")]) == 0
    graded_end = summary_of(tmp_path / "graded")
    assert graded_end["data"]["pairs"] == 60
    assert graded_end["flops"]["scorer_score"] > 0 == graded_end["flops"]["reference_score"]


def test_two_arms_by_two_references_are_two_arms_and_what_cannot_rank_is_refused(reference, tmp_path, capsys):
    def arm(*more: str) -> str:
        return resolve.resolve(TINY[1:2], [*WORDS[2:], f"run.split={BY!r}", *more], recorded=recorded).config_hash

    here = arm(f"run.reference={reference!r}")
    assert here != arm(f"run.reference={OWN!r}")
    assert here != arm(f"run.reference={reference!r}", "run.reference_accounting=online")
    assert main([*WORDS, f"run.split={BY!r}", "--check"]) == 2
    assert f"run.split = {BY!r} needs a reference: bind run.reference" in capsys.readouterr().err
    twin = ["--gin_file", "gin/policy/rho_loss_twin.gin", f"run.reference={OWN!r}"]
    assert main([*WORDS, *twin, f"run.split={BY!r}", "--check"]) == 2
    assert "run.twin scores by two" in capsys.readouterr().err
    little = ["run.budget=3e7", "budget.steps=None", "run.batch_size=1", f"run.reference={reference!r}"]
    assert main([*WORDS, *little, f"run.split={BY!r}", "--run_dir", str(tmp_path / "poor")]) == 2
    assert "scoring the pool to take its top spends" in capsys.readouterr().err
    assert unranked({BY: 1, TOP: 1, "curated": 1}) == f"pool+{TOP}+curated"


# Mixtures


@settings(deadline=None, max_examples=40)
@given(
    shares=st.lists(st.floats(0.05, 5), min_size=1, max_size=3),
    size=st.integers(20, 29),
    seed=st.integers(0, 3),
)
def test_a_mixture_holds_its_shares_and_each_split_walks_its_own_epochs(shares, size, seed):
    split = dict(zip(("pool", "curated", TOP), shares, strict=False))
    counts = split_counts(size, shares)
    pairs = split_of(WORLD, split)
    if 0 in counts:
        with pytest.raises(DataError, match="a share of which nothing is left"):
            MixturePlan(pairs, size, seed)
        return
    plan = MixturePlan(pairs, size, seed)
    drawn: list[list[int]] = [[] for _ in split]
    for step in range(12):
        index_B = plan.positions(step).index_B
        part_B = np.searchsorted(pairs.start_P, index_B.numpy(), side="right") - 1
        for number, count in enumerate(counts):
            own = index_B[torch.from_numpy(part_B == number)].tolist()
            assert len(own) == count
            drawn[number] += own
    for own, part, count in zip(drawn, pairs.parts, counts, strict=True):
        epoch = len(part) // count * count
        for start in range(0, len(own) - epoch + 1, epoch):
            assert len(set(own[start : start + epoch])) == epoch, "an epoch holds no pair twice"
    again = MixturePlan(split_of(WORLD, split), size, seed)
    assert torch.equal(again.positions(7).index_B, plan.positions(7).index_B), "a function of the step alone"


def test_a_mixture_of_one_split_is_that_split():
    mixed, plain = MixturePlan(split_of(WORLD, {"pool": 3}), 32, 5), EpochPlan(WORLD.split("pool"), 32, 5)
    for step in range(9):
        assert torch.equal(mixed.positions(step).index_B, plain.positions(step).index_B)
        assert mixed.skipped(step) == plain.skipped(step)


def test_pairs_of_a_mixture_are_those_of_their_splits():
    pairs = split_of(WORLD, {"pool": 0.5, TOP: 0.25, "curated": 0.25})
    assert isinstance(pairs, JoinedPairs)
    index_B = torch.tensor([151, 3, 120, 0, 149, 189, 121])
    batch = pairs.batch(index_B)
    assert torch.equal(batch.image_key_B, torch.from_numpy(pairs.image_key_N)[index_B])
    assert torch.equal(batch.text_key_B, pairs.text_key_N[index_B])
    for slot, position in enumerate(index_B.tolist()):
        number = int(np.searchsorted(pairs.start_P, position, side="right")) - 1
        alone = pairs.parts[number].batch(torch.tensor([position - int(pairs.start_P[number])]))
        assert torch.equal(batch.images_BCHW[slot], alone.images_BCHW[0])
        assert batch.captions[slot] == alone.captions[0]
        assert bool(batch.marks["curated"][slot]) == (number == 2)


def tables(tmp_path: Path) -> Csv:
    """A pool of which two images are damaged, and a curated split."""
    for i in range(40):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i)[:-60] if i in (2, 7, 33) else jpeg(i))
    for name, numbers in (("pool", range(30)), ("curated", range(30, 40)), ("eval", range(3, 6))):
        rows = [f"{i}.jpg,a photo of number {i}" for i in numbers]
        (tmp_path / f"{name}.csv").write_text("filepath,title\n" + "\n".join(rows) + "\n", encoding="utf-8")
    places = {name: str(tmp_path / f"{name}.csv") for name in ("pool", "curated", "eval")}
    tokenizer = TokenizerChoice(length=8, vocab_size=300)
    source = Csv(**places, image_size=16, cache_dir=str(tmp_path / "cache"), tokenizer=tokenizer, max_damaged=1.0)
    source.prepare()
    return source


def test_a_damaged_pair_is_replaced_from_its_own_split_with_workers_and_without(tmp_path):
    pairs: Any = split_of(tables(tmp_path), {"pool": 0.7, "curated": 0.3})
    own = [{content_key(jpeg(i)) for i in numbers} for numbers in (range(30), range(30, 40))]
    here, there = (
        SuperBatches(MixturePlan(pairs, 20, 0), fetch)
        for fetch in (None, WorkerFetch(pairs, 0, 2, Loader(workers=2, part=3)))
    )
    damaged = 0
    try:
        for step in range(4):
            one, other = here.at(step), there.at(step)
            assert torch.equal(one.images_BCHW, other.images_BCHW)
            assert one.captions == other.captions
            keys = one.image_key_B.tolist()
            assert [len(set(keys) & split) for split in own] == [14, 6]
            damaged = one.counts["damaged"]
            assert one.counts["read"] == 20 + damaged
            assert here.counts(step).items() <= there.counts(step).items()
        assert here.counts(3)["data/damaged"] >= 4, "three of forty are damaged, each replaced whenever it is drawn"
    finally:
        there.close()


def test_a_mixture_of_splits_with_other_columns_is_read_by_workers_as_without(tmp_path):
    """A part that a worker decodes may hold pairs of one split alone, whose columns the other one has not."""
    for i in range(40):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    for name, numbers, more in (("pool", range(30), ("sim", 0.5)), ("curated", range(30, 40), ())):
        rows = [("filepath", "title", *more[:1]), *((f"{i}.jpg", f"number {i}", *more[1:]) for i in numbers)]
        (tmp_path / f"{name}.csv").write_text("".join(f"{','.join(map(str, row))}\n" for row in rows), encoding="utf-8")
    places, tokenizer = (
        {name: f"{tmp_path}/{name}.csv" for name in ("pool", "curated")},
        TokenizerChoice(length=8, vocab_size=300),
    )
    source = Csv(**places, image_size=16, cache_dir=f"{tmp_path}/cache", tokenizer=tokenizer, columns=("sim",))
    source.prepare()
    pairs: Any = split_of(source, {"pool": 0.7, "curated": 0.3})
    here, there = (
        SuperBatches(MixturePlan(pairs, 20, 0), fetch)
        for fetch in (None, WorkerFetch(pairs, 0, 2, Loader(workers=2, part=7)))
    )
    try:
        one, other = here.at(0), there.at(0)
    finally:
        there.close()
    assert one.columns.keys() == other.columns.keys() == set()
    assert torch.equal(one.images_BCHW, other.images_BCHW)


def test_an_epoch_of_a_mixture_joins_and_permutes_nothing_twice(monkeypatch):
    """As often as pairs are read, tens of millions of keys were joined, and of five splits permuted."""
    world = Synthetic(pool=300, columns=tuple("abcde"))
    pairs: Any = split_of(world, {f"pool[top=0.5, by=column:{name}]": 1 for name in "abcde"})
    assert pairs.drawn(0, 1).image_key_N is pairs.image_key_N
    permuted, randperm = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *words, **more: permuted.append(words) or randperm(*words, **more))
    plan = MixturePlan(pairs, 20, 0)
    for step in range(30):  # of 4 pairs of each split: its epoch has 37 steps
        plan.positions(step)
    assert len(permuted) == 5


def test_a_run_of_a_mixture_resumes_exactly_and_says_how_it_walks(tmp_path, monkeypatch):
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    run = [*TINY, "run.split={'pool': 0.75, 'curated': 0.25}", "run.batch_size=8", "run.super_batch_size=32"]
    run += ["run.policy=hard_learner", "run.arm=hard", "run.budget=None", "budget.steps=9", "run.checkpoints=3"]
    assert main([*run, "--run_dir", str(tmp_path / "whole")]) == 0
    cut = [*run, "--run_dir", str(tmp_path / "cut")]
    kill_before(7, cut)
    assert main([*cut, "--resume"]) == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    end = summary_of(tmp_path / "whole")
    assert end["data"]["split"] == "pool+curated"
    assert end["data"]["walk"]["sources"] == {
        "pool": {"pairs": 120, "a_super_batch": 24, "steps_an_epoch": 5, "left_out_an_epoch": 0},
        "curated": {"pairs": 64, "a_super_batch": 8, "steps_an_epoch": 8, "left_out_an_epoch": 0},
    }
    assert end["data"]["walk"]["epochs"] == 1.8, "of the split that is walked through most often"


@pytest.mark.parametrize("words", ["--check", "--price"])
def test_a_mixture_of_a_small_share_is_checked_and_priced(words, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    run = [*TINY, "run.batch_size=50", "run.budget=1e9", "synthetic.curated=16"]
    assert main([*run, "run.split={'pool': 0.98, 'curated': 0.02}", words]) == 0
    assert main([*run, "run.split={'pool': 0.998, 'curated': 0.002}", words]) == 3
    assert "run.split gives curated a share of which nothing is left in 50 pairs" in capsys.readouterr().err


@pytest.mark.parametrize("binding", ["run.cascade=@cascade()", "run.half=0", "run.augment=@random_resized_crop()"])
def test_what_takes_one_split_refuses_a_mixture(binding, capsys):
    assert main([*TINY, "run.split={'pool': 0.5, 'curated': 0.5}", binding, "--check"]) == 2
    assert f"{binding.partition('=')[0]} takes one split" in capsys.readouterr().err
