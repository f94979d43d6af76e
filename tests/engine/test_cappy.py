"""Cappy: corrupted captions and their grades, the pair scorer's training and price, its grades in runs."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU, SHAPE, Passes, kill_before, outcome, rows_of, summary_of
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, spearmanr

import policies
from jestbench import Batch, Scores
from jestbench.batch import DataError, Pass
from jestbench.config import resolve
from jestbench.cost.price import Price
from jestbench.cost.tracing import FLOPS_PER_MAC, forward_macs
from jestbench.data.corrupt import corrupt, other_captions, rouge_l, words_of
from jestbench.data.synthetic import Synthetic
from jestbench.engine.frozen import FrozenActor, keys_of
from jestbench.engine.grade_rows import GradeRows
from jestbench.engine.regression import Regression, captions_of, graded
from jestbench.evals.grading import area_under_curve, rank_correlation
from jestbench.evals.measure import REGRESSION_MEASURES
from jestbench.launch.command import main
from jestbench.model.image_tower import ImageTower
from jestbench.model.regressor import PairHead, Regressor
from jestbench.model.text_tower import TextTower
from jestbench.runs.open_folder import recorded
from jestbench.runs.saved_model import towers_of
from jestbench.select.policy import PolicyError

TINY, SCORER = "gin/run/tiny.gin", "gin/run/tiny_cappy.gin"
QUIET = ("run.device=cpu", "log.every=1", "log.progress=False", "wandb.mode=disabled")
WORLD = ("synthetic.pool=100", "synthetic.curated=64", "synthetic.eval=32", "synthetic.concepts=16")
BATCH = 8
SMALL = ("run.batch_size=8", "run.super_batch_size=24", "evaluate.points=1", *WORLD, *QUIET)
WORDS = st.lists(st.sampled_from("red blue big cat dog arrow up down".split()), min_size=1, max_size=6).map(tuple)


# Rouge-L and corruption


@pytest.mark.parametrize(
    ("words", "original", "expected"),
    [
        ("red cat", "red cat", 1.0),
        ("cat", "red cat", 2 / 3),  # precision 1, recall 1/2
        ("cat red", "red cat", 0.5),  # one of two in order
        ("cat cat", "cat", 2 / 3),
        ("blue dog", "red cat", 0.0),
        ("police killed the gunman", "police kill the gunman", 0.75),  # Lin 2004, section 3.1
        ("the gunman kill police", "police kill the gunman", 0.5),
    ],
)
def test_rouge_l_by_hand(words, original, expected):
    assert rouge_l(words_of(words), words_of(original)) == pytest.approx(expected)


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return 1 + longest_common(one[:-1], other[:-1])
    return max(longest_common(one[:-1], other), longest_common(one, other[:-1]))


@given(WORDS, WORDS)
def test_rouge_l_is_the_harmonic_mean_of_precision_and_recall(words, original):
    common = longest_common(words, original)
    precision, recall = common / len(words), common / len(original)
    expected = 2 * precision * recall / (precision + recall) if common else 0.0
    assert rouge_l(words, original) == pytest.approx(expected)
    assert (rouge_l(words, original) == 1) == (words == original)


@given(WORDS, st.floats(0.01, 1.0), st.integers(0, 10_000))
def test_a_corruption_stays_near_its_caption(original, share, seed):
    foreign = ("foreign", "words")
    damaged = corrupt(original, foreign, share, random.Random(seed))
    assert damaged == corrupt(original, foreign, share, random.Random(seed))
    assert damaged, "never empty"
    assert set(damaged) <= {*original, *foreign}
    edits = max(1, -(-len(original) * round(share * 100) // 100)) + 1  # one more: the test rounds otherwise
    assert abs(len(damaged) - len(original)) <= edits
    assert longest_common(damaged, original) >= len(original) - 2 * edits, "an edit breaks two places at most"


def test_every_edit_that_a_length_allows_is_made():
    def found(caption: str) -> set[str]:
        return {" ".join(corrupt(words_of(caption), ("x",), 0.5, random.Random(seed))) for seed in range(200)}

    assert found("cat") == {"x", "cat cat", "cat x", "x cat"}
    doubled, inserted = {"red red cat", "red cat cat"}, {"x red cat", "red x cat", "red cat x"}
    assert found("red cat") == {"x cat", "red x", *doubled, *inserted, "red", "cat", "cat red"}


@pytest.mark.parametrize(("share", "most"), [(0.2, 1), (0.21, 2), (1.0, 5)])
def test_the_share_bounds_the_edits(share, most):
    original = words_of("a b c d e")
    lengths = {len(corrupt(original, ("x",), share, random.Random(seed))) for seed in range(2000)}
    assert max(lengths) == 5 + most
    assert min(lengths) == max(1, 5 - most)


@given(st.lists(WORDS, min_size=1, max_size=8), st.integers(1, 4), st.integers(0, 1000))
def test_another_caption_says_something_else(captions, count, seed):
    found = other_captions(captions, count, random.Random(seed))
    assert [len(row) for row in found] == [count] * len(captions)
    for position, row in enumerate(found):
        if len(set(captions)) == 1:
            assert row == [position] * count
        else:
            assert all(captions[other] != captions[position] for other in row)


def test_other_captions_are_drawn_uniformly():
    captions = [("a",), ("b",), ("a",), ("c",), ("b",)]
    row = other_captions(captions, 3000, random.Random(0))[0]
    times = [row.count(position) for position in range(5)]
    assert times[0] == times[2] == 0
    assert chi2.sf(sum((n - 1000) ** 2 / 1000 for n in times if n), 2) > 1e-3


@given(st.lists(WORDS, min_size=1, max_size=6), st.integers(1, 3), st.integers(0, 3), st.integers(0, 1000))
def test_examples_are_labelled_by_what_their_texts_say(words_N, others, corruptions, seed):
    captions = [" ".join(words) for words in words_N]
    objective = Regression(others=others, corruptions=corruptions, share=1.0)
    examples = graded(captions, objective, seed)
    assert len(examples.label_E) == objective.examples_of(len(captions)) == sum(examples.sizes)
    assert len(examples.corrupted) == corruptions * len(captions)
    texts = [words_of(text) for text in (*captions, *examples.corrupted)]
    kind_E = [kind for kind, size in enumerate(examples.sizes) for _ in range(size)]
    rows = zip(kind_E, *(part.tolist() for part in (examples.image_E, examples.text_E, examples.label_E)), strict=True)
    for kind, image, text, label in rows:
        same = texts[text] == words_N[image]
        assert label == pytest.approx(1.0 if same else rouge_l(texts[text], words_N[image]) if kind == 2 else 0.0)
        assert kind != 0 or image == text
    again, other = graded(captions, objective, seed), graded([*captions, "one more"], objective, seed + 1)
    assert torch.equal(again.text_E, examples.text_E)
    assert again.corrupted == examples.corrupted
    assert len(other.label_E) > len(examples.label_E)


def test_captions_that_differ_in_case_alone_are_the_same():
    examples = graded(["Red cat", "red  CAT"], Regression(others=2, corruptions=0), 0)
    assert examples.label_E.tolist() == [1.0] * 6


def test_each_kind_counts_alike():
    examples = graded(["red cat", "blue dog"], Regression(others=3, corruptions=1), 0)
    assert float(examples.mean_of_kinds(torch.tensor([0.0] * 2 + [3.0] * 6 + [9.0] * 2))) == 4.0
    without = graded(["red cat", "blue dog"], Regression(others=3, corruptions=0), 0)
    assert float(without.mean_of_kinds(torch.tensor([0.0] * 2 + [3.0] * 6))) == 1.5


@pytest.mark.parametrize(("name", "value"), [("others", 0), ("corruptions", -1), ("share", 0.0), ("hidden", 0)])
def test_wrong_parameters_of_the_regression(name, value):
    with pytest.raises(ValueError, match=rf"regression\.{name}"):
        Regression(**{name: value})


# Evaluation


SMALL_INTEGERS = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@given(SMALL_INTEGERS, SMALL_INTEGERS)
def test_area_under_the_curve_is_the_share_of_right_orders(right, wrong):
    won = sum((a > b) + (a == b) / 2 for a in right for b in wrong)
    found = area_under_curve(torch.tensor(right).float(), torch.tensor(wrong).float())
    assert found == pytest.approx(won / (len(right) * len(wrong)))
    assert area_under_curve(torch.tensor([]), torch.tensor([1.0])) == 0.5


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_rank_correlation_is_spearmans(pairs):
    one, other = (torch.tensor(side).float() for side in zip(*pairs, strict=True))
    constant = len(one.unique()) == 1 or len(other.unique()) == 1
    expected = 0.0 if constant else float(spearmanr(one, other).statistic)
    assert rank_correlation(one, other) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(torch.tensor([]), torch.tensor([])) == 0.0


# The model and its remembered grades


def regressor() -> Regressor:
    """With a head that has left its zeros."""
    model = Regressor.build(SHAPE, Synthetic().split("pool").tokenizer, hidden=4, seed=0)
    random_weights = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.head.out.weight.normal_(generator=random_weights)
    return model


def pool_batch(*positions: int) -> Batch:
    return Synthetic().split("pool").batch(torch.tensor(positions))


def frozen(model: Regressor, accounting: str, folder: Path, microbatch: int) -> FrozenActor:
    return FrozenActor("scorer", GradeRows(model, CPU, pool_batch(0)), accounting, folder, microbatch)


def grades(scorer: FrozenActor, batch: Batch) -> tuple[torch.Tensor, tuple[Pass, ...]]:
    scores = scorer.score(batch)
    return scores.values["g"], scores.model_passes


def test_a_grade_is_a_share_and_starts_from_the_cosine():
    model = Regressor.build(SHAPE, Synthetic().split("pool").tokenizer, hidden=4, seed=0).eval()
    batch = pool_batch(*range(6))
    with torch.no_grad():
        image_BD, text_BD = model(batch)
        expected = torch.sigmoid(model.scale * (image_BD * text_BD).sum(1))
        assert torch.allclose(model.score(batch), expected, atol=1e-6)
        moved = regressor().eval().score(batch)
    assert moved.dtype == torch.float32
    assert not torch.allclose(moved, expected, atol=1e-3)
    assert bool(((moved >= 0) & (moved <= 1)).all())


def test_the_head_costs_its_closed_form():
    width, hidden = SHAPE.embed_dim, 4
    assert regressor().head_macs() == width + 2 * width * hidden + hidden


@pytest.mark.parametrize("microbatch", [2, 100])
def test_each_pair_is_graded_and_charged_once(tmp_path, microbatch):
    model = regressor()
    first, second = pool_batch(0, 1, 2, 1), pool_batch(2, 3, 0)
    one = Price.of(model, first).pair + model.head_macs()
    online = frozen(model, "online", tmp_path / "online", microbatch)
    remembering = frozen(model, "first_sight", tmp_path / "first", microbatch)
    amortised = frozen(model, "amortised", tmp_path / "amortised", microbatch)
    for batch, distinct in ((first, 3), (second, 1)):
        grade_B, passes = grades(online, batch)
        assert [(item.purpose, item.macs) for item in passes] == [("scorer_score", len(batch) * one)]
        kept_B, passes = grades(remembering, batch)
        assert torch.allclose(kept_B, grade_B, atol=1e-6)
        assert [(item.purpose, item.macs) for item in passes] == [("scorer_score", distinct * one)]
        assert torch.equal(grades(amortised, batch)[0], kept_B)
    assert remembering.hits == 1 + 2
    assert (amortised.amortised_macs, remembering.amortised_macs, online.hits) == (4 * one, 0, 0)
    assert not (tmp_path / "online").exists()


def test_what_is_amortised_outlives_a_resume(tmp_path):
    model, batch = regressor(), pool_batch(0, 1, 2)
    before = frozen(model, "amortised", tmp_path / "run", 100)
    grades(before, batch)
    state = before.state_dict()
    before.close(remove=False)
    after = frozen(model, "amortised", tmp_path / "run", 100)
    after.load_state_dict(state)
    grades(after, batch)
    assert after.amortised_macs == before.amortised_macs > 0


def test_no_grade_is_computed_of_a_damaged_pair(tmp_path, monkeypatch):
    scorer, graded = frozen(regressor(), "first_sight", tmp_path, 100), []
    monkeypatch.setattr(scorer, "encode", lambda name, batch: (graded.append(len(batch)), torch.ones(len(batch), 1))[1])
    asked = pool_batch(0, 1, 2)
    key_B = keys_of("pair", asked.image_key_B, asked.text_key_B)
    row_B1 = scorer.tried_rows("pair", key_B, lambda index_M: (asked.take(index_M), {1: "damaged"}))
    assert row_B1.isnan().flatten().tolist() == [False, True, False]
    assert graded == [2]


def test_an_image_with_another_caption_is_another_pair(tmp_path):
    scorer = frozen(regressor(), "first_sight", tmp_path, 100)
    right = pool_batch(0, 1)
    order = torch.tensor([1, 0])
    wrong = Batch(
        right.images_BCHW,
        {name: ids[order] for name, ids in right.token_ids.items()},
        right.image_key_B,
        right.text_key_B[order],
    )
    assert not torch.equal(right.text_key_B, wrong.text_key_B)
    (grade_B, _), (other_B, passes) = grades(scorer, right), grades(scorer, wrong)
    assert scorer.hits == 0
    assert passes[0].macs > 0
    assert not torch.allclose(grade_B, other_B)


def test_grades_come_back_from_the_file(tmp_path):
    scorer = frozen(regressor(), "first_sight", tmp_path, 100)
    kept = grades(scorer, pool_batch(0, 1, 2))[0].clone()
    state = scorer.state_dict()
    grades(scorer, pool_batch(7, 8))  # past the checkpoint
    scorer.close(remove=False)
    model = regressor()
    with torch.no_grad():
        model.bias.add_(1.0)  # computed anew, a grade would be another
    again = frozen(model, "first_sight", tmp_path, 100)
    again.load_state_dict(state)
    grade_B, passes = grades(again, pool_batch(2, 1, 0, 7))
    assert torch.equal(grade_B[:3], kept.flip(0))
    assert passes[0].macs == Price.of(model, pool_batch(0)).pair + model.head_macs(), "pair 7 alone was cut"
    again.close(remove=True)
    assert not tmp_path.exists()


# The policy


def drawn(policy: Any, grade_B: torch.Tensor, count: int, seed: int = 0) -> Any:
    return policy.select(Scores(values={"g": grade_B}), count, torch.Generator().manual_seed(seed))


def test_pairs_are_drawn_by_the_grade_over_the_temperature():
    grade_B, draws = torch.tensor([0.1, 0.4, 0.5, 0.9]), 2000
    policy, generator = policies.create("cappy", temperature=0.5), torch.Generator().manual_seed(0)
    times = torch.zeros(4)
    for _ in range(draws):
        times[policy.select(Scores(values={"g": grade_B}), 1, generator).index_K] += 1
    expected = draws * torch.softmax(grade_B / 0.5, 0)
    assert chi2.sf(float(((times - expected) ** 2 / expected).sum()), 3) > 1e-3


def test_the_best_grades_and_the_control():
    grade_B = torch.rand(32, generator=torch.Generator().manual_seed(3))
    best = drawn(policies.create("cappy", deterministic=True), grade_B, 8)
    assert best.index_K.tolist() == grade_B.topk(8).indices.tolist()
    assert best.statistics["select/score_chosen"] == pytest.approx(float(grade_B.topk(8).values.mean()))
    shuffled = policies.create("cappy", deterministic=True, shuffle=True)
    chosen = [drawn(shuffled, grade_B, 8, seed) for seed in range(300)]
    assert chosen[0].statistics["select/score_chosen"] == best.statistics["select/score_chosen"], "same grades"
    mean = sum(float(grade_B[each.index_K].mean()) for each in chosen) / len(chosen)
    assert mean == pytest.approx(float(grade_B.mean()), abs=0.02), "of other pairs"


def test_scores_without_grades_are_refused():
    with pytest.raises(PolicyError, match=r"run\.scorer"):
        policies.create("cappy").select(Scores(size=8), 2, torch.Generator())


# Runs


def train(run_dir: Path, *words: str) -> int:
    return main([*words, "--run_dir", str(run_dir)])


def steps(count: int) -> tuple[str, ...]:
    return ("run.budget=None", f"budget.steps={count}")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair scorer that has learned its world."""
    folder = tmp_path_factory.mktemp("scorer") / "run"
    learn = ("synthetic.concepts=16", "run.budget=2.5e10", "optimizer.warmup=0.1", "evaluate.points=1", *QUIET)
    assert train(folder, "--gin_file", SCORER, *learn) == 0
    return folder


@pytest.fixture(scope="module")
def contrastive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary run of the same world."""
    folder = tmp_path_factory.mktemp("contrastive") / "run"
    assert train(folder, "--gin_file", "gin/run/tiny_reference.gin", *SMALL, *steps(2)) == 0
    return folder


def cappy(scorer: Path | str, *more: str, policy: str = "cappy") -> list[str]:
    files = ["--gin_file", TINY, "--gin_file", f"gin/policy/{policy}.gin"]
    return [*files, f"run.scorer={scorer}", *SMALL, *more]


def test_the_scorer_learns_which_pairs_match(scorer):
    end = summary_of(scorer)
    assert set(end["metrics"]) == set(REGRESSION_MEASURES)
    assert end["metrics"]["eval/auc"] > 0.85
    assert end["metrics"]["eval/rank_correlation"] > 0.4
    assert end["metrics"]["eval/mse"] < 0.6 * rows_of(scorer)[0]["eval/mse"]
    pairs = Synthetic(concepts=16).split("pool")
    batch = pairs.batch(torch.arange(600))
    with torch.no_grad():
        grade_B = towers_of(scorer, "regression").eval().score(batch)
    noisy_B = batch.marks["noisy"]
    assert area_under_curve(grade_B[~noisy_B], grade_B[noisy_B]) > 0.85


def test_cappy_chooses_what_matches_and_its_control_does_not(scorer, tmp_path):
    noisy = {}
    for policy in ("cappy", "cappy_shuffled"):
        assert train(tmp_path / policy, *cappy(scorer, *steps(12), policy=policy)) == 0
        rows = rows_of(tmp_path / policy)[1:]
        noisy[policy] = sum(row["select/share_noisy"] for row in rows) / len(rows)
        world = sum(row["select/share_noisy_super_batch"] for row in rows) / len(rows)
        end = summary_of(tmp_path / policy)
        assert (end["arm"], end["policy"]) == (policy, "cappy")
        assert end["pretrain_flops"] == {"scorer": summary_of(scorer)["flops"]["total"]}
        assert end["flops"]["learner_score"] == end["flops"]["reference_score"] == 0
        assert not (tmp_path / policy / "cache").exists()
    assert noisy["cappy"] < 0.65 * world  # 0.52 of it, from a scorer of few steps
    assert abs(noisy["cappy_shuffled"] - world) < 0.12


@pytest.mark.parametrize(("others", "corruptions"), [(1, 0), (3, 2)])
def test_training_is_charged_its_closed_form(tmp_path, others, corruptions):
    more = (f"regression.others={others}", f"regression.corruptions={corruptions}", "regression.hidden=16")
    with Passes() as passes:
        assert train(tmp_path / "run", "--gin_file", SCORER, *SMALL, *steps(4), *more) == 0
    model, world = (
        towers_of(tmp_path / "run", "regression"),
        Synthetic(concepts=16).split("pool").batch(torch.tensor([0])),
    )
    image = forward_macs(model.image, world.images_BCHW)
    text = forward_macs(model.text, world.tokens(model.tokenizer))
    head = model.width + 2 * model.width * 16 + 16
    pairs = 4 * BATCH
    images, texts, heads = pairs, pairs * (1 + corruptions), pairs * (1 + others + corruptions)
    run = {kind: count for (kind, gradient), count in passes.by_type().items() if gradient}
    assert run == {ImageTower: images, TextTower: texts, PairHead: heads}, "what was run"
    flops = summary_of(tmp_path / "run")["flops"]
    spent = 3 * FLOPS_PER_MAC * (images * image + texts * text + heads * head)
    assert {name: value for name, value in flops.items() if value and name != "eval"} == {
        "total": spent,
        "learner_train": spent,
    }
    once = 32 * image + 32 * (1 + corruptions) * text + 32 * (1 + others + corruptions) * head
    evaluations = len([row for row in rows_of(tmp_path / "run") if "eval/auc" in row])
    assert flops["eval"] == evaluations * FLOPS_PER_MAC * once


@pytest.mark.parametrize("accounting", ["online", "first_sight", "amortised"])
def test_grading_is_charged_as_the_accounting_says(scorer, tmp_path, accounting):
    with Passes() as passes:
        assert train(tmp_path / "run", *cappy(scorer, *steps(8), f"run.reference_accounting={accounting}")) == 0
    model, world = towers_of(scorer, "regression"), Synthetic(concepts=16).split("pool").batch(torch.tensor([0]))
    towers = forward_macs(model.image, world.images_BCHW) + forward_macs(model.text, world.tokens(model.tokenizer))
    graded_pairs = passes.by_type()[PairHead, False]
    end, last = summary_of(tmp_path / "run"), rows_of(tmp_path / "run")[-1]
    spent = FLOPS_PER_MAC * graded_pairs * (towers + model.head_macs())
    assert end["flops"]["scorer_score"] == (0 if accounting == "amortised" else spent)
    assert end["flops_amortised"] == (spent if accounting == "amortised" else 0)
    assert graded_pairs + last["cache/hits"] == 8 * 24
    assert (last["cache/hits"] == 0) == (accounting == "online")


@pytest.mark.parametrize("kind", ["cappy", "scorer"])
def test_a_killed_run_goes_on_to_the_last_bit(scorer, tmp_path, kind):
    command = cappy(scorer) if kind == "cappy" else ["--gin_file", SCORER, *SMALL]
    command += [*steps(12), "run.checkpoints=3"]
    assert train(tmp_path / "whole", *command) == 0
    for step in (0, 7):
        killed = tmp_path / f"killed-{step}"
        kill_before(step, [*command, "--run_dir", str(killed)])
        assert train(killed, *command, "--resume") == 0
        assert outcome(killed) == outcome(tmp_path / "whole")


def test_a_scorer_is_trained_once_on_demand_and_counted_all_in(tmp_path, capsys):
    on_demand = repr((SCORER, *SMALL, *steps(3)))
    budget = ("run.budget=3e9", "budget.includes=('scorer',)")
    for name in ("first", "second"):
        assert train(tmp_path / name, *cappy(on_demand, *budget)) == 0
        said = capsys.readouterr().err
        assert ("training the scorer 'tiny_cappy'" in said) == (name == "first")
    assert outcome(tmp_path / "first") == outcome(tmp_path / "second")
    end, spent = summary_of(tmp_path / "first"), [row["flops/total"] for row in rows_of(tmp_path / "first")]
    trained = end["pretrain_flops"]["scorer"]
    assert end["pretrain_in_budget"] == trained > 0
    assert spent[-2] + trained < 3_000_000_000 <= spent[-1] + trained


def said(capsys: pytest.CaptureFixture[str]) -> str:
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_models_of_the_wrong_kind_are_refused(scorer, contrastive, tmp_path, capsys):
    assert train(tmp_path / "a", *cappy(contrastive, *steps(2))) == 3
    message = said(capsys)
    assert all(word in message for word in ("'contrastive'", "run.scorer", "gin/run/cappy.gin"))
    jest = ["--gin_file", TINY, "run.policy=jest", f"run.reference={scorer}", *SMALL, *steps(2)]
    assert train(tmp_path / "b", *jest) == 3
    message = said(capsys)
    assert "'regression'" in message
    assert "gin/run/reference.gin" in message
    assert train(tmp_path / "c", *cappy("gin/run/tiny_reference.gin")) == 2
    assert "run.objective" in said(capsys)
    assert train(tmp_path / "d", "--gin_file", TINY, "run.policy=jest", f"run.reference={SCORER}", *SMALL) == 2
    assert "trains a pair scorer" in said(capsys)
    assert not any((tmp_path / name).exists() for name in "cd"), "found before anything is made"
    old = tmp_path / "old"
    shutil.copytree(contrastive, old)
    (described,) = max((old / "checkpoints").glob("step-*")).glob("model.json")
    model = json.loads(described.read_text(encoding="utf-8"))
    assert model.pop("kind") == "contrastive"
    described.write_text(json.dumps(model), encoding="utf-8")
    jest = ["--gin_file", TINY, "run.policy=jest", f"run.reference={old}", *SMALL, *steps(2)]
    assert train(tmp_path / "e", *jest) == 3
    assert "model.json holds no 'kind'" in said(capsys)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gin_file", TINY, "run.policy=cappy"], ["Cappy", "needs a scorer", "run.scorer", "gin/run/cappy.gin"]),
        (["--gin_file", TINY, "run.policy=cappy", "run.scorer=no/such.gin"], ["no/such.gin", "run.scorer"]),
        (["--gin_file", SCORER, "run.policy=hard_learner"], ["run.objective", "hard_learner", "uniform"]),
        (["--gin_file", SCORER, "run.train_views=[(1.0, @view())]"], ["run.train_views", "run.objective"]),
        (["--gin_file", SCORER, "evaluate.sets=('here',)"], ["evaluate.sets", "run.objective"]),
        (["--gin_file", SCORER, "run.objective=3"], ["run.objective", "Regression"]),
        (["--gin_file", SCORER, "regression.others=0"], ["regression.others"]),
        (["--gin_file", TINY, "regression.others=2"], ["never uses regression.others"]),
    ],
    ids=["no scorer", "no such scorer", "selecting", "views", "sets", "no object", "value", "unused"],
)
def test_what_makes_no_sense_is_refused(capsys, words, expected):
    assert main([*words, "--check", *QUIET]) == 2
    message = said(capsys)
    assert all(word in message for word in expected), message


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path, capsys):
    absurd = ("optimizer.learning_rate=1e25", "optimizer.warmup=0.0", "evaluate.points=4")
    assert train(tmp_path / "run", "--gin_file", SCORER, *SMALL, *steps(4), *absurd) == 4
    assert "step 1:" in said(capsys)


# The arm's identity


def digest(*bindings: str, file: str = "gin/policy/cappy.gin") -> str:
    return resolve.resolve([TINY, file], [f"run.scorer={SCORER}", *bindings], recorded=recorded).config_hash


def test_the_scorer_is_part_of_the_arm():
    assert digest() == digest(f"run.scorer=({SCORER!r},)")
    others = ["cappy.temperature=0.2", "run.reference_accounting=online", f"run.scorer=({SCORER!r}, 'run.seed=1')"]
    others.append(f"run.scorer=({SCORER!r}, 'regression.share=0.4')")
    assert len({digest(), *map(digest, others)}) == 1 + len(others)
    assert digest(file="gin/policy/uniform.gin") == resolve.resolve([TINY]).config_hash


def test_a_scorer_by_its_folder_is_the_same_arm(tmp_path):
    words = [*SMALL, *steps(1)]
    assert train(tmp_path / "run", "--gin_file", SCORER, *words) == 0
    assert digest(f"run.scorer={tmp_path / 'run'}") == digest(f"run.scorer={(SCORER, *words)!r}")


def test_a_batch_without_captions_trains_no_scorer():
    batch = pool_batch(0, 1)
    bare = Batch(batch.images_BCHW, batch.token_ids, batch.image_key_B, batch.text_key_B)
    with pytest.raises(DataError, match="captions"):
        captions_of(bare)
