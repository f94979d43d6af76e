"""The draw against brute force: conditional logits, tiles, counts, laws, extremes, cost, and known faults.

The oracles are written in numpy, in float64, over dense B×B matrices, and share no code with the
package.
"""

from __future__ import annotations

import itertools
import math
import runpy
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jestbench import Embeddings, Scores
from jestbench.select import tiles as tiles_module
from jestbench.select.draws import (
    Draw,
    JointLogits,
    chunk_sizes,
    conditional_logits,
    gumbel_top_k,
    independent_draw,
    joint_draw,
    joint_sample,
    top_k,
)
from jestbench.select.losses import LOSSES
from jestbench.select.scores import ScoreError
from jestbench.select.strips import strip_sums
from jestbench.select.tiles import tiles

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "example_open_clip_loop.py"
BOTH = ("learner", "reference")
SIDES = (("learner",), ("reference",), BOTH)
SIGN = {"learner": 1.0, "reference": -1.0}
each_loss = pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
each_sides = pytest.mark.parametrize("sides", SIDES, ids="+".join)
examples = settings(max_examples=100, deadline=None, derandomize=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_embeddings(rng: np.random.Generator, size: int, width: int, scale: float, bias: float) -> Embeddings:
    image, text = rng.standard_normal((2, size, width))
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    return Embeddings(torch.from_numpy(image), torch.from_numpy(text), scale, bias)


def random_scores(size: int, sides: Sequence[str] = BOTH, loss: str = "sigmoid", seed: int = 0, width: int = 8):
    """Float64 scores; each model has its own multiplier and offset."""
    rng = np.random.default_rng(seed)
    parts = {side: random_embeddings(rng, size, width, rng.uniform(3, 12), rng.uniform(-8, 2)) for side in BOTH}
    return Scores(**{side: parts[side] for side in sides}, loss=loss)


def cast(scores: Scores, dtype: torch.dtype) -> Scores:
    def lower(part: Embeddings | None) -> Embeddings | None:
        return part and Embeddings(part.image_BD.to(dtype), part.text_BD.to(dtype), part.scale, part.bias)

    return Scores(lower(scores.learner), lower(scores.reference), loss=scores.loss)


def with_own_logits(values: Sequence[float]) -> Scores:
    """Scores whose diagonal is exactly ``values``: a softmax reference alone, of one dimension."""
    image_B1 = torch.tensor(values, dtype=torch.float64)[:, None]
    return Scores(reference=Embeddings(image_B1, torch.ones_like(image_B1)), loss="softmax")


def sides_of(scores: Scores) -> list[tuple[float, Embeddings]]:
    return [(SIGN[side], getattr(scores, side)) for side in BOTH if getattr(scores, side) is not None]


def dense_logits(model: Embeddings, bias: float) -> np.ndarray:
    return model.scale * model.image_BD.double().numpy() @ model.text_BD.double().numpy().T + bias


def pair_losses(model: Embeddings) -> np.ndarray:
    """M: softplus(−u_ii) on the diagonal, softplus(u_ij) beside it."""
    logits = dense_logits(model, model.bias)
    return np.logaddexp(0, np.where(np.eye(len(logits), dtype=bool), -logits, logits))


def sigmoid_oracle(scores: Scores, drawn: Sequence[int]) -> np.ndarray:
    """By how much the summed loss difference over S×S grows when i joins S, literally."""
    difference = sum(sign * pair_losses(model) for sign, model in sides_of(scores))

    def summed(pairs: list[int]) -> float:
        return difference[np.ix_(pairs, pairs)].sum()

    already = summed([*drawn])
    increase = [-math.inf if i in drawn else summed([*drawn, i]) - already for i in range(len(scores))]
    return np.array(increase)


def softmax_oracle(scores: Scores, drawn: Sequence[int]) -> np.ndarray:
    """[−a_ii + ½(LSE_{j∈S} a_ij + LSE_{j∈S} a_ji)] of the learner minus the same of the reference."""
    total = np.zeros(len(scores))
    for sign, model in sides_of(scores):
        a = dense_logits(model, 0)
        total -= sign * a.diagonal()
        if len(drawn):
            rows, columns = a[:, drawn], a[drawn, :]
            total += sign * (np.logaddexp.reduce(rows, axis=1) + np.logaddexp.reduce(columns, axis=0)) / 2
    total[[*drawn]] = -math.inf
    return total


ORACLE = {"sigmoid": sigmoid_oracle, "softmax": softmax_oracle}


def index(drawn: Sequence[int]) -> Tensor:
    return torch.tensor([*drawn], dtype=torch.int64)


def random_case(rng: np.random.Generator, loss: str) -> tuple[Scores, list[int]]:
    """Any sides, sizes, multipliers and offsets; any S, the empty and the full one too."""
    size, width = int(rng.integers(2, 65)), int(rng.integers(1, 17))
    models = {
        side: random_embeddings(rng, size, width, np.exp(rng.uniform(-2, 5)), rng.uniform(-15, 5))
        for side in SIDES[rng.integers(3)]
    }
    share = rng.choice([0.0, 1.0, rng.uniform()], p=[0.1, 0.05, 0.85])
    drawn = rng.permutation(size)[: round(size * share)].tolist()
    return Scores(**models, loss=loss), drawn


class TestConditionalLogits:
    @pytest.mark.parametrize("block", range(4))
    @each_loss
    def test_equal_brute_force(self, loss: str, block: int) -> None:
        rng = np.random.default_rng([block, len(loss)])
        for _ in range(500):
            scores, drawn = random_case(rng, loss)
            found, wanted = conditional_logits(scores, index(drawn)).numpy(), ORACLE[loss](scores, drawn)
            assert found.dtype == np.float64
            # torch's softplus(x) is x from 20 on: off by 2e-9 a term.
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-8 * (1 + len(drawn)))

    @each_loss
    def test_fp32_is_near_brute_force(self, loss: str) -> None:
        rng = np.random.default_rng(7)
        for _ in range(200):
            scores, drawn = random_case(rng, loss)
            scores = cast(scores, torch.float32)
            found, wanted = conditional_logits(scores, index(drawn)), ORACLE[loss](scores, drawn)
            assert found.dtype == torch.float32
            size_of_terms = sum(np.abs(dense_logits(model, abs(model.bias))).max() for _, model in sides_of(scores))
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6 * (1 + len(drawn)) * (1 + size_of_terms))

    @each_loss
    @each_sides
    def test_chunks_extend_to_the_same_logits_in_any_order(self, loss: str, sides: Sequence[str]) -> None:
        scores, drawn = random_scores(24, sides, loss), torch.randperm(24, generator=seeded())[:13]
        joint = JointLogits(scores)
        for chunk in drawn.split(4):
            joint.extend(chunk)
            joint.exclude(chunk)
        torch.testing.assert_close(joint.logit_B(), conditional_logits(scores, drawn.flip(0)))

    def test_the_empty_set_gives_the_own_score(self) -> None:
        scores = random_scores(9)
        assert torch.equal(conditional_logits(scores, index([])), scores.learnability_B("own"))

    def test_neither_learner_nor_reference_is_refused(self) -> None:
        with pytest.raises(ScoreError, match="neither learner nor reference"):
            conditional_logits(Scores(size=4), index([]))


class TestTiles:
    @given(
        size=st.integers(2, 40),
        width=st.integers(1, 45),
        drawn=st.integers(0, 40),
        loss=st.sampled_from(["sigmoid", "softmax"]),
        seed=st.integers(0, 10**6),
    )
    @examples
    def test_joint_logits_equal_dense(self, size: int, width: int, drawn: int, loss: str, seed: int) -> None:
        scores = cast(random_scores(size, loss=loss, seed=seed), torch.float32)
        index_S = torch.randperm(size, generator=seeded(seed))[:drawn]
        whole = conditional_logits(scores, index_S)
        with mock.patch.dict(tiles_module.TILE_BYTES, cpu=4 * size * width):
            tiled = conditional_logits(scores, index_S)
        # Learner minus reference cancels: relative to what each of them sums up.
        each = [conditional_logits(scores.only(side), index_S)[~whole.isneginf()] for side in BOTH]
        magnitude = max((float(term.abs().max()) for term in each if len(term)), default=0.0)
        torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5 * magnitude)

    @pytest.mark.parametrize("tile_bytes", [1, 4 * 37, 8 * 37, 4 * 37 * 5, 4 * 37 * 36, 4 * 37 * 37, 2**25])
    @each_loss
    def test_in_batch_losses_equal_dense(self, loss: str, tile_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = cast(random_scores(37, loss=loss), torch.float32)
        monkeypatch.setitem(tiles_module.TILE_BYTES, "cpu", tile_bytes)
        for side in BOTH:
            found, wanted = scores.pair_loss_B(side, "in_batch"), in_batch_oracle(getattr(scores, side), loss)
            torch.testing.assert_close(found, torch.from_numpy(wanted).float(), rtol=1e-5, atol=0)

    @given(columns=st.integers(1, 50), rows=st.integers(1, 50), tile_bytes=st.integers(1, 10**4))
    @examples
    def test_slices_cover_the_columns_and_stay_below_the_bound(self, columns: int, rows: int, tile_bytes: int) -> None:
        with mock.patch.dict(tiles_module.TILE_BYTES, cpu=tile_bytes):
            slices = list(tiles(columns, rows, torch.zeros(1)))
        assert [i for part in slices for i in range(columns)[part]] == list(range(columns))
        assert all(4 * rows * (part.stop - part.start) <= max(tile_bytes, 4 * rows) for part in slices)


@given(
    columns=st.integers(1, 40),
    scale=st.sampled_from([0.1, 10.0, 100.0, 1e4]),
    bias=st.sampled_from([-300.0, -100.0, -59.0, -20.0, -10.0, 0.0, 30.0, 100.0]),
    loss=st.sampled_from(["sigmoid", "softmax"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
@examples
def test_strips_keep_small_terms_and_survive_large_ones(
    columns: int, scale: float, bias: float, loss: str, dtype: torch.dtype, seed: int
) -> None:
    generator = seeded(seed)
    # Cosines that are multiples of 2^-10, so that the logits are exact and what is compared is the sum alone.
    cosine_BC = torch.randint(-1024, 1025, (7, columns), generator=generator) / 1024
    model = Embeddings(torch.eye(7, dtype=dtype), torch.eye(7, dtype=dtype), scale, bias)
    found_B = strip_sums(torch.eye(7, dtype=dtype), cosine_BC.T.to(dtype).contiguous(), model, loss)
    logit_BC = scale * cosine_BC.double().numpy() + (bias if loss == "sigmoid" else 0.0)
    terms_BC = np.logaddexp(0, logit_BC) if loss == "sigmoid" else logit_BC
    wanted_B = terms_BC.sum(1) if loss == "sigmoid" else np.logaddexp.reduce(logit_BC, axis=1)
    # A rounded logit moves a term by as much: relative to the term where that is a small exponential.
    epsilon = 4 * torch.finfo(dtype).eps * max(1.0, scale, abs(bias))
    slack = epsilon * (terms_BC.sum(1) if loss == "sigmoid" else 1.0)
    smallest = torch.finfo(torch.float32).tiny * columns
    assert found_B.dtype == dtype
    assert np.all(np.abs(found_B.double().numpy() - wanted_B) <= slack + 1e-5 * np.abs(wanted_B) + smallest)


def in_batch_oracle(model: Embeddings, loss: str) -> np.ndarray:
    if loss == "sigmoid":
        losses = pair_losses(model)
        return (losses.sum(0) + losses.sum(1)) / 2
    a = dense_logits(model, 0)
    return (np.logaddexp.reduce(a, axis=0) + np.logaddexp.reduce(a, axis=1)) / 2 - a.diagonal()


class TestPairLosses:
    @pytest.mark.parametrize("size", [1, 2, 17, 64])
    @each_loss
    def test_shares_sum_to_the_batch_loss(self, loss: str, size: int) -> None:
        scores = random_scores(size, loss=loss)
        for side in BOTH:
            model = getattr(scores, side)
            batch_loss = LOSSES[loss](
                model.image_BD, model.text_BD, torch.tensor(model.scale), torch.tensor(model.bias)
            )
            torch.testing.assert_close(scores.pair_loss_B(side, "in_batch").sum(), size * batch_loss.double())

    @each_loss
    def test_own_is_of_the_pair_alone(self, loss: str) -> None:
        scores = random_scores(12, loss=loss)
        model = scores.learner
        wanted = pair_losses(model).diagonal() if loss == "sigmoid" else -dense_logits(model, 0).diagonal()
        np.testing.assert_allclose(scores.pair_loss_B("learner", "own"), wanted, atol=1e-8)

    @each_loss
    @pytest.mark.parametrize("kind", ["own", "in_batch"])
    def test_learnability_is_learner_minus_reference(self, loss: str, kind: str) -> None:
        scores = random_scores(12, loss=loss)
        learner_B, reference_B = (scores.pair_loss_B(side, kind) for side in BOTH)
        torch.testing.assert_close(scores.learnability_B(kind), learner_B - reference_B)
        torch.testing.assert_close(scores.only("learner").learnability_B(kind), learner_B)
        torch.testing.assert_close(scores.only("reference").learnability_B(kind), -reference_B)


class TestCount:
    @each_loss
    @pytest.mark.parametrize("deterministic", [False, True])
    def test_exact_and_distinct_for_every_small_case(self, loss: str, deterministic: bool) -> None:
        for size in (1, 2, 5, 8):
            scores = random_scores(size, loss=loss)
            for count, chunks in itertools.product(range(1, size + 1), range(1, size + 3)):
                draw = joint_draw(scores, count, chunks, deterministic=deterministic, generator=seeded())
                assert_a_choice(draw, size, count)

    @given(st.data())
    @examples
    def test_exact_and_distinct(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(1, 80))
        count, chunks = data.draw(st.integers(1, size)), data.draw(st.integers(1, 100))
        scores, generator = random_scores(size, seed=size), seeded(chunks)
        assert_a_choice(joint_draw(scores, count, chunks, generator=generator), size, count)
        assert_a_choice(independent_draw(scores.learnability_B(), count, generator=generator), size, count)

    @given(count=st.integers(1, 10**6), chunks=st.integers(1, 3000))
    @examples
    def test_chunk_sizes_sum_up_and_differ_by_one_at_most(self, count: int, chunks: int) -> None:
        sizes = chunk_sizes(count, chunks)
        assert sum(sizes) == count
        assert len(sizes) == min(count, chunks)
        assert 1 <= min(sizes) <= max(sizes) <= min(sizes) + 1

    def test_without_gain_the_drawn_stay_drawn(self) -> None:
        assert_a_choice(joint_draw(random_scores(6), 6, 3, gain=0.0, generator=seeded()), 6, 6)

    def test_ties_go_to_the_lower_index(self) -> None:
        assert top_k(torch.zeros(1000), 7).tolist() == list(range(7))
        assert top_k(torch.tensor([0.0, 2.0, 1.0, 2.0, 1.0, 1.0]), 4).tolist() == [1, 3, 2, 4]

    @pytest.mark.parametrize(
        ("size", "filter_ratio", "count", "truncated"),
        [(163840, 0.8, 32768, 2047), (1280, 0.8, 256, 15), (160, 0.9, 16, 0)],
    )
    def test_floats_truncate_and_integers_do_not(
        self, size: int, filter_ratio: float, count: int, truncated: int
    ) -> None:
        assert int(size * (1 - filter_ratio) / 16) == truncated
        assert chunk_sizes(count, 16) == (count // 16,) * 16

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ({"count": 0}, "count"),
            ({"count": 7}, "count"),
            ({"count": 3, "chunks": 0}, "chunks"),
            ({"count": 3, "gain": -1.0}, "gain"),
            ({"count": 3, "gain": math.nan}, "gain"),
            ({"count": 3, "gain": math.inf}, "gain"),
        ],
    )
    def test_arguments_out_of_range_are_named(self, arguments: dict, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            joint_draw(random_scores(6), **arguments)


def assert_a_choice(draw: Draw, size: int, count: int) -> None:
    chosen = draw.index_K
    assert chosen.dtype == torch.int64
    assert chosen.shape == (count,)
    assert len(set(chosen.tolist())) == count
    assert set(chosen.tolist()) <= set(range(size))
    assert all(math.isfinite(value) for value in draw.statistics.values()), draw.statistics


Law = dict[tuple[int, ...], float]


def one_after_the_other(logits: np.ndarray, size: int) -> Law:
    """Sequential draws without replacement, p ∝ exp(logit): the probability of each ordered draw."""
    weights = np.exp(logits - logits.max())
    law = {}
    for order in itertools.permutations(np.flatnonzero(weights).tolist(), size):
        probability, left = 1.0, weights.sum()
        for i in order:
            probability *= weights[i] / left
            left -= weights[i]
        law[order] = probability
    return law


def chunked_law(logits_given: Callable[[Sequence[int]], np.ndarray], sizes: Sequence[int]) -> Law:
    """Chunk after chunk, each on the logits given all pairs of the chunks before."""
    law: Law = {(): 1.0}
    for size in sizes:
        law = {
            (*drawn, *more): before * then
            for drawn, before in law.items()
            for more, then in one_after_the_other(logits_given(drawn), size).items()
        }
    return law


def p_value(observed: Counter, law: Law) -> float:
    """Chi-square; what is expected less than five times is thrown together."""
    draws = observed.total()
    assert set(observed) <= set(law), "impossible draws"
    common = [draw for draw, p in law.items() if draws * p >= 5]
    expected, found = [draws * law[draw] for draw in common], [observed[draw] for draw in common]
    if draws - sum(expected) > 1:
        expected.append(draws - sum(expected))
        found.append(draws - sum(found))
    return float(chisquare(found, np.array(expected) * draws / sum(expected)).pvalue)


def assert_law(draw: Callable[[torch.Generator], Tensor], law: Law, draws: int = 800) -> None:
    """Both the ordered draws and the subsets follow the law."""
    assert sum(law.values()) == pytest.approx(1)
    generator = seeded(1)
    ordered = Counter(tuple(draw(generator).tolist()) for _ in range(draws))
    assert p_value(ordered, law) > 1e-3
    subsets, subset_law = Counter(), Counter()
    for order, times in ordered.items():
        subsets[tuple(sorted(order))] += times
    for order, p in law.items():
        subset_law[tuple(sorted(order))] += p
    assert p_value(subsets, subset_law) > 1e-3


class TestLaw:
    @pytest.mark.parametrize("gain", [0.0, 0.5, 2.0])
    def test_independent_draw(self, gain: float) -> None:
        score_B = torch.tensor([-1.0, 0.0, 0.3, 1.5])
        law = one_after_the_other(gain * score_B.double().numpy(), 2)
        assert_law(lambda generator: independent_draw(score_B, 2, gain, generator=generator).index_K, law, 3000)

    @each_loss
    @pytest.mark.parametrize(("count", "chunks"), [(3, 3), (4, 2)])
    def test_joint_draw(self, loss: str, count: int, chunks: int) -> None:
        scores, gain = random_scores(5, loss=loss, seed=7), 0.5
        law = chunked_law(lambda drawn: gain * ORACLE[loss](scores, drawn), chunk_sizes(count, chunks))
        unconditional = one_after_the_other(gain * ORACLE[loss](scores, []), count)
        assert sum(abs(law[order] - unconditional[order]) for order in law) / 2 > 0.3, "they could be told apart"
        assert_law(lambda generator: joint_sample(scores, count, chunks, gain, generator), law)

    @each_loss
    def test_learner_equal_to_reference_is_uniform(self, loss: str) -> None:
        model = random_scores(5, loss=loss).learner
        orders = list(itertools.permutations(range(5), 3))
        law = dict.fromkeys(orders, 1 / len(orders))
        assert_law(lambda generator: joint_sample(Scores(model, model, loss=loss), 3, 3, 4.0, generator), law, 700)

    @each_loss
    @each_sides
    @pytest.mark.parametrize("gain", [1.0, 0.3])
    def test_one_chunk_is_independent_sampling_by_the_diagonal(
        self, loss: str, sides: Sequence[str], gain: float
    ) -> None:
        scores = random_scores(50, sides, loss)
        one_chunk = joint_sample(scores, 20, chunks=1, gain=gain, generator=seeded())
        alone = independent_draw(scores.learnability_B("own"), 20, gain, generator=seeded())
        assert torch.equal(one_chunk, alone.index_K)

    @each_loss
    @each_sides
    def test_a_large_gain_is_greedy(self, loss: str, sides: Sequence[str]) -> None:
        scores = random_scores(30, sides, loss)
        greedy = joint_draw(scores, 10, 10, deterministic=True).index_K
        assert joint_sample(scores, 10, 10, gain=1e9, generator=seeded()).tolist() == greedy.tolist()
        drawn: list[int] = []
        for _ in range(10):
            drawn.append(int(ORACLE[loss](scores, drawn).argmax()))
        assert greedy.tolist() == drawn

    def test_the_generator_alone_decides(self) -> None:
        scores = random_scores(40)
        assert torch.equal(joint_sample(scores, 9, generator=seeded(5)), joint_sample(scores, 9, generator=seeded(5)))
        assert len({tuple(joint_sample(scores, 9, generator=seeded(s)).tolist()) for s in range(20)}) > 1


class TestExtremes:
    @each_loss
    @each_sides
    @pytest.mark.parametrize("scale", [1e-4, 1e4])
    def test_any_scale(self, loss: str, sides: Sequence[str], scale: float) -> None:
        rng = np.random.default_rng(0)
        models = {side: random_embeddings(rng, 20, 4, scale, -scale) for side in sides}
        scores = cast(Scores(**models, loss=loss), torch.float32)
        assert_a_choice(joint_draw(scores, 11, 4, generator=seeded()), 20, 11)

    @each_loss
    @each_sides
    def test_identical_embeddings(self, loss: str, sides: Sequence[str]) -> None:
        alike = Embeddings(torch.ones(12, 4) / 2, torch.ones(12, 4) / 2, 10.0, -10.0)
        scores = Scores(**dict.fromkeys(sides, alike), loss=loss)
        draw = joint_draw(scores, 7, 3, generator=seeded())
        assert_a_choice(draw, 12, 7)
        assert draw.statistics["select/entropy_share"] == pytest.approx(1)

    @each_loss
    def test_one_pair(self, loss: str) -> None:
        assert joint_sample(random_scores(1, loss=loss), 1).tolist() == [0]

    @each_loss
    @pytest.mark.parametrize("chunks", [1, 4, 9, 30])
    def test_all_pairs(self, loss: str, chunks: int) -> None:
        chosen = joint_sample(random_scores(9, loss=loss), 9, chunks, generator=seeded())
        assert sorted(chosen.tolist()) == list(range(9))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_embeddings_that_are_not_finite_are_named(self, value: float, dtype: torch.dtype) -> None:
        fine, broken = torch.ones(4, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype)
        broken[2, 1] = value
        with pytest.raises(ScoreError, match=r"image_BD .* 1 rows, the first is 2"):
            Embeddings(broken, fine)
        with pytest.raises(ScoreError, match="text_BD"):
            Embeddings(fine, broken)
        with pytest.raises(ScoreError, match="scale and bias"):
            Embeddings(fine, fine, value)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_values_that_are_not_finite_are_named(self, value: float) -> None:
        with pytest.raises(ScoreError, match=r"values\['g'\]"):
            Scores(values={"g": torch.tensor([0.0, value])})
        with pytest.raises(ScoreError, match="NaN or infinite"):
            independent_draw(torch.tensor([0.0, value]), 1)

    def test_parts_of_different_length_are_named(self) -> None:
        with pytest.raises(ScoreError, match=r"'learner': 4, .*values\['g'\].*: 3"):
            Scores(random_scores(4).learner, values={"g": torch.ones(3)})
        with pytest.raises(ScoreError, match="scores of nothing"):
            Scores()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @each_loss
    def test_half_precision_is_raised(self, loss: str, dtype: torch.dtype) -> None:
        scores = cast(random_scores(20, loss=loss), dtype)
        assert scores.learner.image_BD.dtype == scores.learner.text_BD.dtype == torch.float32
        for kind in ("own", "in_batch"):
            assert scores.pair_loss_B("learner", kind).dtype == torch.float32
        assert conditional_logits(scores, index([3, 4])).dtype == torch.float32

    @each_loss
    def test_autocast_around_the_draw_changes_nothing(self, loss: str) -> None:
        scores = cast(random_scores(20, loss=loss), torch.float32)
        wanted, shares = conditional_logits(scores, index([3, 4])), scores.learnability_B("in_batch")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(conditional_logits(scores, index([3, 4])), wanted)
            assert torch.equal(scores.learnability_B("in_batch"), shares)

    @each_loss
    @pytest.mark.filterwarnings("error")
    def test_embeddings_with_gradients_are_drawn_from_without(self, loss: str) -> None:
        image_BD, text_BD = torch.randn(2, 10, 4, generator=seeded()).requires_grad_()
        log_scale, bias = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.tensor(-3.0))
        scores = Scores(Embeddings(image_BD, text_BD, log_scale.exp(), bias), loss=loss)
        assert not conditional_logits(scores, index([1])).requires_grad
        assert_a_choice(joint_draw(scores, 4, 2, generator=seeded()), 10, 4)

    @given(st.lists(st.one_of(st.just(-math.inf), st.floats(-(2.0**99), 2.0**99, width=32)), min_size=1, max_size=30))
    @examples
    def test_masked_pairs_are_never_drawn(self, logits: list[float]) -> None:
        logit_B, free = torch.tensor(logits), {i for i, logit in enumerate(logits) if logit > -math.inf}
        assert set(gumbel_top_k(logit_B, len(free), seeded()).tolist()) == free
        assert set(gumbel_top_k(logit_B, len(free) // 2, seeded()).tolist()) <= free
        with pytest.raises(ScoreError, match=f"{len(free)} of {len(logits)} can be drawn"):
            gumbel_top_k(logit_B, len(free) + 1, seeded())

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_logits_that_cannot_be_drawn_by_are_refused(self, value: float) -> None:
        with pytest.raises(ScoreError, match="NaN or"):
            gumbel_top_k(torch.tensor([0.0, value, 1.0]), 1, seeded())

    def test_sums_that_overflow_are_refused(self) -> None:
        scores = cast(random_scores(6), torch.float32)
        models = (Embeddings(part.image_BD, part.text_BD, 3e38) for part in (scores.learner, scores.reference))
        with pytest.raises(ScoreError, match="NaN or"):
            joint_draw(Scores(*models), 5, 5, generator=seeded())

    @each_loss
    def test_inputs_and_global_randomness_are_left_alone(self, loss: str) -> None:
        scores, score_B = random_scores(30, loss=loss), torch.linspace(-1, 1, 30)
        tensors = [score_B, *(t for _, model in sides_of(scores) for t in (model.image_BD, model.text_BD))]
        copies, state = [tensor.clone() for tensor in tensors], torch.get_rng_state()
        joint_draw(scores, 10, 4, generator=seeded())
        scores.learnability_B("in_batch")
        independent_draw(score_B, 10, generator=seeded())
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


class TestStatistics:
    def test_of_an_independent_draw(self) -> None:
        score_B = torch.tensor([0.0, math.log(2), math.log(5)], dtype=torch.float64)
        p_B = np.array([1, 2, 5]) / 8
        statistics = independent_draw(score_B, 2, deterministic=True).statistics
        entropy = float(-(p_B * np.log(p_B)).sum())
        assert statistics == pytest.approx(
            {
                "select/entropy": entropy,
                "select/entropy_share": entropy / math.log(3),
                "select/effective_size": 1 / float((p_B**2).sum()),
                "select/score_chosen": math.log(10) / 2,
                "select/score_super_batch": math.log(10) / 3,
                "select/overlap_top": 1.0,
            }
        )

    @each_loss
    def test_what_is_drawn_is_out_of_the_entropy(self, loss: str) -> None:
        model = random_scores(8, loss=loss).learner
        entropy = joint_draw(Scores(model, model, loss=loss), 8, 8).statistics["select/entropy"]
        assert entropy == pytest.approx(math.log(math.factorial(8)) / 8)


class TestMeter:
    @each_loss
    @each_sides
    @pytest.mark.parametrize(("count", "chunks"), [(7, 1), (7, 3), (12, 4), (20, 16), (3, 9)])
    def test_joint_draw_costs_the_closed_form(
        self, loss: str, sides: Sequence[str], count: int, chunks: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size, width, models = 20, 8, len(sides)
        monkeypatch.setitem(tiles_module.TILE_BYTES, "cpu", 2 * 8 * size)
        scores = cast(random_scores(size, sides, loss, width=width), torch.float32)
        with FlopCounterMode(display=False) as counted:
            joint_draw(scores, count, chunks, generator=seeded())
        conditioned_on = count - chunk_sizes(count, chunks)[-1]
        diagonal, strips = models * size * width, models * 2 * size * conditioned_on * width
        assert scores.meter.macs == diagonal + strips
        # The diagonal is an element-wise product there, which torch does not count.
        assert counted.get_total_flops() == 2 * strips
        assert scores.passes[-1].purpose == "pairwise"
        assert scores.passes[-1].macs == scores.meter.macs

    @each_loss
    def test_in_batch_losses_cost_a_square(self, loss: str) -> None:
        scores = random_scores(20, loss=loss, width=8)
        with FlopCounterMode(display=False) as counted:
            scores.learnability_B("in_batch")
        assert scores.meter.macs == 2 * (20 * 8 + 20 * 20 * 8)
        assert counted.get_total_flops() == 2 * 2 * 20 * 20 * 8

    def test_the_meter_is_shared_with_parts_of_the_scores(self) -> None:
        scores = random_scores(20, width=8)
        scores.only("reference").pair_loss_B("reference", "own")
        assert scores.meter.macs == 20 * 8


class TestFaultsOfPublicSelectors:
    def test_one_process_needs_no_process_group(self) -> None:
        assert not torch.distributed.is_initialized()
        assert len(joint_sample(random_scores(10), 4, generator=seeded())) == 4

    def test_no_exponential_overflows(self) -> None:
        scores = with_own_logits([2000.0, 0.0, 1000.0, -1000.0])
        draw = independent_draw(scores.learnability_B(), 3, generator=seeded())
        assert draw.index_K.tolist() == [0, 2, 1]
        assert draw.statistics["select/entropy"] == pytest.approx(0)
        assert joint_sample(scores, 1, generator=seeded()).tolist() == [0]

    def test_the_first_chunk_goes_by_the_exponential_of_the_diagonal(self) -> None:
        """Not by (diagonal − min), under which the last pair could never be drawn."""
        scores = with_own_logits([math.log(4), math.log(3), math.log(2), 0.0])
        law = {(0,): 0.4, (1,): 0.3, (2,): 0.2, (3,): 0.1}
        assert_law(lambda generator: joint_sample(scores, 1, generator=generator), law, 2000)

    @each_loss
    def test_each_model_has_its_own_multiplier_and_offset(self, loss: str) -> None:
        learner = random_scores(6, loss=loss).learner
        image_BD, text_BD = learner.image_BD, learner.text_BD
        reference = Embeddings(image_BD, text_BD, 3 * learner.scale, learner.bias - 2)
        found = conditional_logits(Scores(learner, reference, loss=loss), index([]))
        cosine_B = (image_BD * text_BD).sum(1)
        u, v = learner.scale * cosine_B + learner.bias, 3 * learner.scale * cosine_B + learner.bias - 2
        sigmoid, softmax = torch.log((1 + torch.exp(-u)) / (1 + torch.exp(-v))), 2 * learner.scale * cosine_B
        torch.testing.assert_close(found, sigmoid if loss == "sigmoid" else softmax)

    @each_loss
    def test_pair_terms_are_no_outer_difference_of_losses(self, loss: str) -> None:
        """All pairs have the same own loss, yet those that confuse the drawn pair are preferred."""
        image_BD, text_BD = torch.eye(5), torch.eye(5)
        text_BD[3, 0] = 0.5
        scores = Scores(learner=Embeddings(image_BD, text_BD, 10.0, -5.0), loss=loss)
        assert len(scores.pair_loss_B("learner", "own").unique()) == 1
        logit_B = conditional_logits(scores, index([0]))
        assert int(logit_B.argmax()) == 3
        assert len(logit_B[1:].unique()) == 2


def test_uniform_inclusion_over_many_pairs() -> None:
    """Drawn from equal scores, each of many pairs is as likely as any other."""
    size, count, draws = 200, 50, 400
    generator, times_B = seeded(2), torch.zeros(size)
    for _ in range(draws):
        times_B[gumbel_top_k(torch.zeros(size), count, generator)] += 1
    expected = draws * count / size
    # Inclusions of one draw repel each other, which shrinks the statistic by (B − b) / (B − 1).
    statistic = float(((times_B - expected) ** 2).sum()) / expected * (size - 1) / (size - count)
    assert chi2.sf(statistic, size - 1) > 1e-3


def test_the_open_clip_loop_of_the_docs_runs() -> None:
    example = runpy.run_path(str(EXAMPLE))
    with torch.random.fork_rng():
        losses, chosen_clean = example["main"]()
    assert losses[-1] < losses[0] / 2
    assert chosen_clean > 1.4 * example["CLEAN_SHARE"]
