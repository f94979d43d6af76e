"""Zero-shot and retrieval metrics against brute force, and when evaluations are due."""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import small_learner
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_world import by_threads
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jestbench.batch import DataError
from jestbench.data.pairs import ArrayPairs
from jestbench.data.synthetic import Synthetic
from jestbench.evals import shares
from jestbench.evals.evaluate import Evaluate, Evaluator, points_reached
from jestbench.evals.measure import RANKS, embedding_measures
from jestbench.evals.metrics import evaluate_embeddings
from jestbench.evals.results import Results
from jestbench.parallel.distributed import World
from jestbench.runs.folder import RunFolder


def rank(score: float, others: list[float]) -> int:
    """1 is best; an equal score counts against."""
    return 1 + sum(other >= score for other in others)


def brute_force(image_ND: Tensor, class_CD: Tensor, class_N: Tensor) -> dict[str, float]:
    """Retrieval over all N captions as they stand, repeated ones too; nothing clever."""
    image, names, own = image_ND.tolist(), class_CD.tolist(), class_N.tolist()
    score = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in names] for x in image]
    everyone = range(len(image))
    zero_shot = [rank(score[i][own[i]], [score[i][c] for c in range(len(names)) if c != own[i]]) for i in everyone]
    to_text = [rank(score[i][own[i]], [score[i][own[j]] for j in everyone if own[j] != own[i]]) for i in everyone]
    to_image = [
        rank(
            max(score[i][c] for i in everyone if own[i] == c),
            [score[i][c] for i in everyone if own[i] != c],
        )
        for c in sorted(set(own))
    ]

    def share(ranks: list[int], k: int) -> float:
        return sum(r <= k for r in ranks) / len(ranks)

    def reciprocal(ranks: list[int]) -> float:
        return sum(1 / r for r in ranks) / len(ranks)

    def wrong(i: int) -> float:
        return math.log(sum(math.exp(SCALE * s) for s in score[i])) - SCALE * score[i][own[i]]

    return (
        {f"eval/zero_shot_top{k}": share(zero_shot, k) for k in (1, 5)}
        | {f"eval/image_to_text_recall{k}": share(to_text, k) for k in RANKS}
        | {f"eval/text_to_image_recall{k}": share(to_image, k) for k in RANKS}
        | {
            "eval/zero_shot_mrr": reciprocal(zero_shot),
            "eval/zero_shot_nll": sum(wrong(i) for i in everyone) / len(image),
            "eval/retrieval_mrr": (reciprocal(to_text) + reciprocal(to_image)) / 2,
        }
    )


SCALE = 3.0


def evaluated(image_ND: torch.Tensor, class_CD: torch.Tensor, class_N: torch.Tensor) -> dict[str, float]:
    results = evaluate_embeddings(
        image_ND, class_CD, class_N, SCALE, torch.arange(len(class_CD)), torch.arange(len(image_ND))
    )
    return {key: results.mean(key) for key in embedding_measures((1,))}


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 14), st.integers(1, 3), st.integers(0, 10_000), st.sampled_from([2, 4096]))
def test_metrics_are_brute_force(classes, images, width, seed, rows):
    """Small integers: many scores are equal, and products are exact. Few rows at once: tiles matter."""
    random = torch.Generator().manual_seed(seed)
    image_ND = torch.randint(-2, 3, (images, width), generator=random).float()
    class_CD = torch.randint(-2, 3, (classes, width), generator=random).float()
    class_N = torch.randint(0, classes, (images,), generator=random)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares, "_ROWS", rows)
        found = evaluated(image_ND, class_CD, class_N)
    assert found == pytest.approx(brute_force(image_ND, class_CD, class_N), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("images", [50, 2])
def test_processes_share_the_similarities_out(images):
    """All processes have the rankings of one, and each multiplies its share of the rows alone."""
    random = torch.Generator().manual_seed(images)
    image_ND = torch.randint(-2, 3, (images, 4), generator=random).float()
    class_CD = torch.randint(-2, 3, (7, 4), generator=random).float()
    class_N = torch.randint(0, 7, (images,), generator=random)

    def ranked(world: World) -> tuple[Results, int]:
        with FlopCounterMode(display=False) as counter:
            found = evaluate_embeddings(
                image_ND, class_CD, class_N, SCALE, torch.arange(7), torch.arange(images), world
            )
        return found, counter.get_total_flops()

    alone, flops = ranked(World())
    for found, own in by_threads(3, ranked):
        for name, ranking in alone.rankings.items():
            for field in fields(ranking):
                one, other = getattr(ranking, field.name), getattr(found.rankings[name], field.name)
                assert one is other is None or np.array_equal(one, other), (name, field.name)
        present = len(class_N.unique())
        assert own <= 2 * 4 * (3 * -(-images // 3) * 7 + -(-present // 3) * images) < flops


def test_perfect_embeddings_hit_every_time():
    class_CD = F.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    class_N = torch.arange(60) % 20
    found = evaluated(class_CD[class_N], class_CD, class_N)
    assert found.pop("eval/zero_shot_nll") < math.log(20)
    assert set(found.values()) == {1.0}


@pytest.mark.parametrize("value", [0.0, float("nan")], ids=["equal", "NaN"])
def test_a_model_that_tells_nothing_apart_hits_never(value):
    """Ties count against it, and so does what is no number."""
    image_ND, class_CD = torch.full((30, 4), value), torch.full((30, 4), value)
    found = evaluated(image_ND, class_CD, torch.arange(30))
    assert found.pop("eval/zero_shot_nll") == pytest.approx(math.log(30) if value == 0 else 1e4)
    assert found.pop("eval/zero_shot_mrr") == pytest.approx(1 / 30)
    assert found.pop("eval/retrieval_mrr") == pytest.approx(1 / 30)
    assert set(found.values()) == {0.0}


def test_every_image_of_the_caption_is_a_hit():
    """Two images under one caption: the text finds either, and both images find the one text."""
    class_CD = torch.eye(2)
    image_ND = torch.tensor([[1.0, 0.0], [0.4, 0.5], [0.0, 1.0]])
    found = evaluated(image_ND, class_CD, torch.tensor([0, 0, 1]))
    assert found["eval/text_to_image_recall1"] == 1.0
    assert found["eval/zero_shot_top1"] == pytest.approx(2 / 3)


# The evaluator


def pairs_of(captions: list[str]) -> ArrayPairs:
    world = Synthetic(eval=len(captions)).split("eval")
    return ArrayPairs("test/eval", "0", world.images_NHWC, world.row_N, captions, world.tokenizer, world.image_key_N)


def test_equal_captions_are_one_class():
    captions = ["red cat", "blue dog", "red cat", "green", "blue dog", "red cat"]
    pairs = pairs_of(captions)
    evaluator = Evaluator(pairs, Evaluate())
    assert [captions[i] for i in evaluator.example_C[evaluator.class_N].tolist()] == captions
    assert len(evaluator.example_C) == 3


@pytest.mark.parametrize("batch_size", [4, 100])
@pytest.mark.parametrize("limit", [0, 7, 1000])
def test_an_evaluation_is_the_metrics_of_the_learner_s_embeddings_and_is_priced(batch_size, limit):
    pairs = pairs_of([f"name {i % 6}" for i in range(20)])
    learner = small_learner(pairs.tokenizer, "sigmoid")
    count = min(limit or 20, 20)
    found, (spent,), results = Evaluator(pairs, Evaluate(limit=limit, batch_size=batch_size))(learner)
    model = learner.model.eval()
    names = sorted(set(pairs.captions[:count]))
    with torch.no_grad():
        image_ND = model.encode_image(pairs.batch(torch.arange(count)).images_BCHW)
        class_CD = model.encode_text(pairs.tokenizer.encode(names))
    class_N = torch.tensor([names.index(caption) for caption in pairs.captions[:count]])
    scale = model.scale_and_bias()[0]
    keys = torch.from_numpy(pairs.image_key_N[:count].copy())
    wanted = evaluate_embeddings(image_ND, class_CD, class_N, scale, torch.arange(len(names)), keys)
    assert found == pytest.approx({key: wanted.mean(key) for key in found})
    assert results.of("eval/zero_shot_top5").key_N.tolist() == keys.tolist()
    assert len(set(results.of("eval/retrieval_mrr").unit_N.tolist())) == len(names), "a unit is a caption"
    assert (spent.purpose, spent.macs) == ("eval", count * 1000 + len(names) * 10)


def test_unseen_classes_have_metrics_of_their_own_among_all_classes():
    """Images of every third class are unseen: their ranks are those of the whole, and no smaller task."""
    pairs = pairs_of([f"name {i % 6}" for i in range(20)])
    learner, captions = small_learner(pairs.tokenizer, "softmax"), np.array(pairs.captions)
    seen = pairs_of([name for name in sorted(set(pairs.captions)) if name not in ("name 0", "name 3")])
    evaluator = Evaluator(pairs, Evaluate(unseen_by="curated"), seen_key_N=seen.text_key_N)
    found, _, results = evaluator(learner)
    unseen_N = np.isin(captions, ["name 0", "name 3"])
    assert evaluator.unseen_N.tolist() == unseen_N.tolist()
    for name in ("top1", "top5", "mrr", "nll"):
        whole_N = Evaluator(pairs, Evaluate())(learner).results.of(f"eval/zero_shot_{name}").value_N
        assert found[f"eval/zero_shot_unseen_{name}"] == pytest.approx(float(whole_N[unseen_N].mean()))
        measure = evaluator.measures[f"eval/zero_shot_unseen_{name}"]
        assert (measure.examples, measure.chance) == (7, evaluator.measures[f"eval/zero_shot_{name}"].chance)
    assert set(found) == set(evaluator.measures)
    assert results.of("eval/zero_shot_unseen_top1").key_N.tolist() == pairs.image_key_N[unseen_N].tolist()


@pytest.mark.parametrize(("captions", "word"), [(["name 0", "name 1"], "every"), (["other"], "no")])
def test_a_split_that_parts_no_classes_is_refused(captions, word):
    pairs = pairs_of(["name 0", "name 1"])
    with pytest.raises(DataError, match=f"evaluate.unseen_by: curated holds {word} class"):
        Evaluator(pairs, Evaluate(unseen_by="curated"), seen_key_N=pairs_of(captions).text_key_N)


# What each example contributes


def test_results_are_read_back_and_mean_the_metrics(tmp_path):
    pairs = pairs_of([f"name {i % 6}" for i in range(20)])
    found = Evaluator(pairs, Evaluate())(small_learner(pairs.tokenizer, "softmax"))
    folder = RunFolder(tmp_path)
    folder.write_results(3 * 10**9, found.results)
    folder.write_results(10**9, Results({}))
    ((budget, results),) = folder.results().items()
    assert budget == 3 * 10**9, "an evaluation without results leaves no file"
    for key, value in found.metrics.items():
        examples = results.of(key)
        assert float(examples.value_N.mean()) == value
        assert len(examples.value_N) == len(examples.unit_N) == len(examples.key_N)
    assert results.of("eval/mse") is None
    assert results.of("eval/other/zero_shot_top1") is None, "no set was evaluated"
    (tmp_path / "eval" / "5.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"5\.npz"):
        folder.results()


def test_chance_is_what_random_rankings_give():
    """Ranks of random embeddings, over many draws: the mean of each metric is its measure's chance."""
    random = torch.Generator().manual_seed(0)
    class_N = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 6, 7])
    measures = embedding_measures(class_N.bincount().numpy())
    draws = []
    for _ in range(3000):
        image_ND, class_CD = (torch.randn(n, 12, generator=random) for n in (12, 8))
        results = evaluate_embeddings(image_ND, class_CD, class_N, 1.0, torch.arange(8), torch.arange(12))
        draws.append([results.mean(key) for key in measures if key != "eval/zero_shot_nll"])
    mean = torch.tensor(draws).mean(0)
    chance = torch.tensor([one.chance for key, one in measures.items() if key != "eval/zero_shot_nll"])
    assert torch.allclose(mean, chance, atol=0.012), (mean, chance)
    assert measures["eval/zero_shot_nll"].chance == math.log(8)
    assert measures["eval/zero_shot_nll"].lower_is_better


# When evaluations are due


@settings(deadline=None)
@given(st.integers(1, 200), st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=60))
def test_each_point_is_hit_once(points, steps):
    """Steps of any size: an evaluation follows the step that reaches or passes a point."""
    total = sum(steps)
    shares = [0.0, *(min(1.0, share / total) for share in np.cumsum(steps).tolist()[:-1]), 1.0]
    due = [Evaluate(points=points).due(a, b) for a, b in pairwise(shares)]
    reached = [points_reached(share, points) for share in shares]
    assert reached == sorted(reached)
    assert reached[0] == 0
    assert reached[-1] == points
    assert due == [a < b for a, b in pairwise(reached)]


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 10))
def test_points_that_fall_on_steps_are_hit_by_them(points, stretch):
    """In floats 29/100 · 100 is less than 29."""
    steps, evaluate = points * stretch, Evaluate(points=points)
    due = [step for step in range(1, steps + 1) if evaluate.due((step - 1) / steps, step / steps)]
    assert due == list(range(stretch, steps + 1, stretch))


@pytest.mark.parametrize("wrong", [{"points": 0}, {"batch_size": 0}, {"limit": -1}])
def test_an_evaluation_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=f"evaluate.{next(iter(wrong))}"):
        Evaluate(**wrong)
