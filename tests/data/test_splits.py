"""What ``run.split`` asks for: the share of largest numbers, and mixtures of several splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import kill_before, outcome, summary_of
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import jpeg

from jestbench.batch import DataError, split_counts
from jestbench.data.fetch import WorkerFetch
from jestbench.data.joined_pairs import JoinedPairs, MixturePlan
from jestbench.data.loader import Loader
from jestbench.data.pairs import content_key
from jestbench.data.sources.csv_tables import Csv
from jestbench.data.splits import check_split, names_in, split_of
from jestbench.data.super_batches import EpochPlan, SuperBatches
from jestbench.data.synthetic import Synthetic
from jestbench.launch.command import main
from jestbench.model.tokenizer_choice import TokenizerChoice

WORLD = Synthetic(pool=120, curated=40, holdout=30, eval=16, columns=("similarity", "other"))
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
        ("pool[top=0.1, by=reference]", "by names a column"),
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
