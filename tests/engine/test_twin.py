"""RHO-LOSS without a holdout: two halves of the pool, two models, each scoring what it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import kill_before, outcome, rows_of, small_world, summary_of
from hypothesis import given, settings
from hypothesis import strategies as st

import policies
from jestbench import Embeddings, Scores
from jestbench.batch import Batch, DataError
from jestbench.config import resolve
from jestbench.data import damage
from jestbench.data.pairs import IndexedPairs, Wrapped
from jestbench.data.part_pairs import HALVES, HalfPairs, half_of
from jestbench.data.super_batches import EpochPlan, SuperBatches
from jestbench.data.synthetic import Synthetic
from jestbench.data.tries import TriedPair, Tries
from jestbench.engine.casting import FrozenCasting, TwinCasting
from jestbench.engine.embedding_rows import EmbeddingRows
from jestbench.launch.command import main
from jestbench.launch.stages import build_stages
from jestbench.launch.stands import stand_ins
from jestbench.select.scores import ScoreError

BATCH, SUPER_BATCH = 8, 24
WORLD = small_world(BATCH, SUPER_BATCH)
REFERENCE = ("gin/run/tiny_irreducible.gin", *WORLD, "run.split=pool", "run.budget=3e8", "evaluate.points=1")
ARM = ["--gin_file", "gin/run/tiny.gin", "--gin_file", "gin/policy/rho_loss_twin.gin", *WORLD]
ARM.append(f"run.reference={REFERENCE!r}")
STEPS = ["run.budget=None", "budget.steps=12", "run.checkpoints=4", "evaluate.points=2"]

each_loss = pytest.mark.parametrize("loss", ["sigmoid", "softmax"])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("twin") / "run"
    assert main([*ARM, *STEPS, "--run_dir", str(run_dir)]) == 0
    return run_dir


# Halves


def test_every_pair_belongs_to_one_half_and_an_equal_image_never_to_both() -> None:
    pairs = Synthetic(pool=300, duplicates=0.5).split("pool")
    first, second = (HalfPairs(pairs, half) for half in HALVES)
    assert sorted([*first.index_N.tolist(), *second.index_N.tolist()]) == list(range(300))
    assert min(len(first), len(second)) > 60
    assert len(set(first.image_key_N.tolist())) < len(first), "there are equal images to keep together"
    assert not set(first.image_key_N.tolist()) & set(second.image_key_N.tolist())
    assert len({pairs.fingerprint, first.fingerprint, second.fingerprint}) == 3


def test_a_half_is_a_split_like_any_other() -> None:
    pairs = Synthetic(pool=60).split("pool")
    half = HalfPairs(pairs, 1)
    batch = half.batch(torch.arange(len(half)))
    assert np.array_equal(batch.image_key_B.numpy(), half.image_key_N)
    assert torch.equal(batch.text_key_B, half.text_key_N)
    assert (half_of(batch.image_key_B) == 1).all()
    super_batches = SuperBatches(EpochPlan(half, 7, seed=0))
    assert super_batches.pool == len(half)
    assert set(super_batches.at(0).image_key_B.tolist()) <= set(half.image_key_N.tolist())


class Damaged(Wrapped):
    """A split that puts another pair, of either half, in the place of some; and draws captions anew each epoch."""

    def __init__(self, pairs: IndexedPairs, instead: dict[int, int], epoch: int = 0) -> None:
        super().__init__(pairs)
        self.instead, self.epoch, self.max_damaged = instead, epoch, 0.5

    def drawn(self, seed: int, epoch: int) -> Damaged:
        return self if epoch == self.epoch else Damaged(self.pairs, self.instead, epoch)

    def attempt(self, index_B: torch.Tensor) -> tuple[Batch, dict[int, damage.Damaged]]:
        places = [place for place, position in enumerate(index_B.tolist()) if position in self.instead]
        return self.pairs.batch(index_B), {place: damage.Damaged("gone") for place in places}

    def replaced(self, damaged: Mapping[int, damage.Damaged], index_B: torch.Tensor, tries: Tries) -> list[TriedPair]:
        return [self.tried(self.instead[int(index_B[slot])], tries)[0] for slot in damaged]


def test_what_stands_for_a_damaged_pair_is_of_the_same_half() -> None:
    pairs = Synthetic(pool=60, duplicates=0.0).split("pool")
    first, second = (HalfPairs(pairs, half) for half in HALVES)
    foreign = second.index_N[0].item()
    half = HalfPairs(Damaged(pairs, {position: foreign for position in first.index_N[:3].tolist()}), 0)
    batch = half.batch(torch.tensor([5, 1, 7, 0]))
    assert (half_of(batch.image_key_B) == 0).all()
    assert len(set(batch.image_key_B.tolist())) == 4
    assert batch.image_key_B[[0, 2]].tolist() == first.image_key_N[[5, 7]].tolist()
    assert batch.counts["damaged"] == 3, "0, 1, and 2, which is next to 1"
    assert torch.equal(batch.image_key_B, half.batch(torch.tensor([5, 1, 7, 0])).image_key_B)
    lost = HalfPairs(Damaged(pairs, {position: foreign for position in first.index_N.tolist()}), 0)
    with pytest.raises(DataError, match="no pair is left"):
        lost.batch(torch.tensor([0]))


def test_an_epochs_captions_are_those_of_the_whole_split() -> None:
    half = HalfPairs(Damaged(Synthetic(pool=60).split("pool"), {}), 1)
    assert half.max_damaged == 0.5
    assert half.drawn(0, 0) is half
    later = half.drawn(0, 3)
    assert later.pairs.epoch == 3
    assert torch.equal(later.index_N, half.index_N)
    assert half.pairs.epoch == 0


# Scores


def embeddings(size: int, seed: int, scale: float, bias: float) -> Embeddings:
    random = torch.Generator().manual_seed(seed)
    image_BD, text_BD = torch.nn.functional.normalize(
        torch.randn(2, size, 6, generator=random, dtype=torch.float64), dim=2
    )
    return Embeddings(image_BD, text_BD, scale, bias)


def scores_of(half_B: torch.Tensor, loss: str, seed: int = 0) -> tuple[Scores, Embeddings, list[Embeddings]]:
    size = len(half_B)
    learner, models = embeddings(size, seed, 5.0, -4.0), [embeddings(size, seed + 1 + i, 6.0 + i, -3.0) for i in HALVES]
    index = [(half_B == half).nonzero().flatten() for half in HALVES]
    unseen = tuple((index_P, models[1 - half].take(index_P)) for half, index_P in enumerate(index) if len(index_P))
    return Scores(learner, loss=loss, unseen=unseen), learner, models


@each_loss
@pytest.mark.parametrize("pair_loss", ["own", "in_batch"])
@settings(max_examples=30, deadline=None)
@given(half=st.lists(st.integers(0, 1), min_size=4, max_size=24), seed=st.integers(0, 999))
def test_the_top_by_each_half_of_its_own(loss: str, pair_loss: str, half: list[int], seed: int) -> None:
    """Learner and the model that has not seen the pair, both over the pairs of the half alone."""
    half_B = torch.tensor(half)
    scores, learner, models = scores_of(half_B, loss, seed)
    expected_B = torch.empty(len(half), dtype=torch.float64)
    for number in HALVES:
        index_P = (half_B == number).nonzero().flatten()
        if len(index_P):
            alone = Scores(learner.take(index_P), models[1 - number].take(index_P), loss=loss)
            expected_B[index_P] = alone.learnability_B(pair_loss)
    policy = policies.create("rho_loss", pair_loss=pair_loss)
    chosen = policy.select(scores, 3, torch.Generator())
    best = expected_B.sort(descending=True).values[:3]
    torch.testing.assert_close(expected_B[chosen.index_K].sort(descending=True).values, best)
    assert chosen.statistics["select/score_super_batch"] == pytest.approx(float(expected_B.mean()))


@each_loss
def test_one_reference_is_one_part(loss: str) -> None:
    learner, reference = embeddings(9, 0, 5.0, 0.0), embeddings(9, 1, 5.0, 0.0)
    scores = Scores(learner, reference, loss=loss)
    ((index_P, part),) = scores.parts()
    assert index_P.tolist() == list(range(9))
    assert part is scores


def test_the_products_of_every_part_are_charged() -> None:
    half_B = torch.tensor([0] * 5 + [1] * 8)
    scores, _, _ = scores_of(half_B, "sigmoid")
    policies.create("rho_loss").select(scores, 3, torch.Generator())
    per_model = sum(count * (count + 1) for count in (5, 8))
    assert scores.meter.macs == 2 * 6 * per_model


def test_two_references_are_not_one() -> None:
    scores, learner, _ = scores_of(torch.tensor([0, 1, 1, 0]), "softmax")
    with pytest.raises(ScoreError, match="parts"):
        scores.side("reference")
    with pytest.raises(ScoreError, match="parts"):
        scores.take(torch.arange(2))
    with pytest.raises(ScoreError, match="length"):
        Scores(learner, unseen=((torch.arange(2), embeddings(2, 0, 1.0, 0.0)),))


# Runs


def test_each_pair_is_scored_by_the_model_that_has_not_seen_it(tmp_path: Path) -> None:
    resolved = resolve.resolve([ARM[1], ARM[3]], [*ARM[4:], "run.reference_accounting=online"])
    assert [half.run.half for half in resolved.stands_on["reference"]] == [0, 1]
    tokenizer = resolved.run.data.split("pool").tokenizer
    models = [resolved.run.model.build(tokenizer, resolved.run.loss, seed) for seed in (1, 2)]
    halves = tuple(FrozenCasting("reference", model, EmbeddingRows) for model in models)
    stages = build_stages(resolved, resolved.run.data, {"reference": TwinCasting("reference", halves)}, tmp_path)
    batch = stages.super_batches.at(0)
    scores = stages.scorer(batch, resolved.policy.needs)
    assert scores.reference is None
    assert sum(len(index_P) for index_P, _ in scores.unseen) == SUPER_BATCH
    for index_P, found in scores.unseen:
        half = int(half_of(batch.image_key_B[index_P[:1]]))
        assert (half_of(batch.image_key_B[index_P]) == half).all()
        with torch.no_grad():
            image_PD, text_PD = models[1 - half](batch.take(index_P))
        torch.testing.assert_close(found.image_BD, image_PD)
        torch.testing.assert_close(found.text_BD, text_PD)


def test_both_pre_trainings_are_counted(uninterrupted: Path) -> None:
    said = summary_of(uninterrupted)
    names = [entry["name"] for entry in said["references"]]
    assert names == ["tiny_irreducible (half 0)", "tiny_irreducible (half 1)"]
    trained = [summary_of(Path(entry["run_dir"])) for entry in said["references"]]
    assert said["pretrain_flops"] == {"reference": sum(one["flops"]["total"] for one in trained)}
    assert [one["data"]["pairs"] for one in trained] != [100, 100]
    assert sum(one["data"]["pairs"] for one in trained) == 100
    assert said["policy"] == "rho_loss"
    assert not (uninterrupted / "cache").exists()


def test_scoring_costs_one_reference_pass_a_pair(uninterrupted: Path, tmp_path: Path) -> None:
    flops = {"first_sight": summary_of(uninterrupted)["flops"]["reference_score"]}
    for accounting in ("online", "amortised"):
        more = [*STEPS, f"run.reference_accounting={accounting}"]
        assert main([*ARM, *more, "--run_dir", str(tmp_path / accounting)]) == 0
        flops[accounting] = summary_of(tmp_path / accounting)["flops"]["reference_score"]
    resolved = resolve.resolve([ARM[1], ARM[3]], ARM[4:])
    stages = build_stages(resolved, *stand_ins(resolved), tmp_path / "stages")
    pair = stages.learner.price.pair  # the references have the learner's shape
    assert flops["online"] == 2 * 12 * SUPER_BATCH * pair
    assert 0 == flops["amortised"] < flops["first_sight"] < flops["online"]
    assert summary_of(tmp_path / "amortised")["flops_amortised"] == flops["first_sight"]


@pytest.mark.parametrize("step", [0, 5])
def test_it_goes_on_from_any_step(uninterrupted: Path, tmp_path: Path, step: int) -> None:
    """Rows of both stores past the checkpoint are cut."""
    command = [*ARM, *STEPS, "--run_dir", str(tmp_path / "run")]
    kill_before(step, command)
    assert main([*command, "--resume"]) == 0
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def test_the_price_of_even_halves_comes_close(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["run.reference_accounting=online", "run.budget=5e8", "evaluate.points=1"]
    assert main([*ARM, *more, "--price"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    price = {line[0]: int(line[1].replace(",", "")) for line in lines if line[0] in ("pairwise", "reference_score")}
    assert main([*ARM, *more, "--run_dir", str(tmp_path / "run")]) == 0
    first = rows_of(tmp_path / "run")[1]
    assert first["flops/reference_score"] == price["reference_score"]
    assert price["pairwise"] <= first["flops/pairwise"] < 2 * price["pairwise"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run.policy=jest"], "rho_loss"),
        (["run.half=2"], "run.half"),
        (["run.reference={run}"], "not to the folder"),
        (["run.batch_size=90", "run.super_batch_size=90"], "half 0 holds"),
    ],
)
def test_what_cannot_be_is_said(
    uninterrupted: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [word.format(run=uninterrupted) for word in words]
    if "half 0" in said:
        reference = (*REFERENCE, *more)
        more = [f"run.reference={reference!r}"]
    assert main([*ARM, *more, "--check"]) in (2, 3)
    assert said in capsys.readouterr().err


def test_the_hash_knows_twins_where_they_score() -> None:
    def digest(*words: str) -> str:
        return resolve.resolve(["gin/run/tiny.gin"], [f"run.reference={REFERENCE!r}", *words]).config_hash

    assert digest("run.policy=rho_loss") != digest("run.policy=rho_loss", "run.twin=True")
    assert digest() == digest("run.twin=True")
    assert digest() != digest("run.half=1")
