"""Gradient norms against autograd, and the importance weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import policies
from jestbench import Embeddings, Scores
from jestbench.select import tiles
from jestbench.select.losses import LOSSES
from jestbench.select.scores import ScoreError

each_loss = pytest.mark.parametrize("loss", ["sigmoid", "softmax"])


def embeddings(size: int, width: int, seed: int, scale: float, bias: float) -> Embeddings:
    random = torch.Generator().manual_seed(seed)
    image_BD, text_BD = torch.nn.functional.normalize(
        torch.randn(2, size, width, generator=random, dtype=torch.float64), dim=2
    )
    return Embeddings(image_BD, text_BD, scale, bias)


def by_autograd(model: Embeddings, loss: str) -> Tensor:
    image_BD, text_BD = (part.clone().requires_grad_() for part in (model.image_BD, model.text_BD))
    scale, bias = (torch.tensor(value, dtype=torch.float64) for value in (model.scale, model.bias))
    LOSSES[loss](image_BD, text_BD, scale, bias).backward()
    assert image_BD.grad is not None
    assert text_BD.grad is not None
    return torch.cat([image_BD.grad, text_BD.grad], dim=1).norm(dim=1)


@each_loss
@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**20),
    scale=st.floats(0.1, 100),
    bias=st.floats(-15, 5),
    columns=st.integers(1, 50),
)
def test_the_norms_are_autograds(
    loss: str, size: int, width: int, seed: int, scale: float, bias: float, columns: int
) -> None:
    """In float64, whatever the width of a tile."""
    model = embeddings(size, width, seed, scale, bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiles.TILE_BYTES, "cpu", 8 * size * columns)
        found_B = Scores(learner=model, loss=loss).gradient_norm_B("learner")
    assert found_B.dtype == torch.float64
    torch.testing.assert_close(found_B, by_autograd(model, loss), rtol=1e-8, atol=1e-12)


@each_loss
@pytest.mark.parametrize("side", ["learner", "reference", "online"])
def test_any_model_that_is_there(loss: str, side: str) -> None:
    model = embeddings(12, 4, 3, 7.0, -2.0)
    torch.testing.assert_close(Scores(**{side: model}, loss=loss).gradient_norm_B(side), by_autograd(model, loss))
    with pytest.raises(ScoreError, match="needs"):
        Scores(size=12).gradient_norm_B(side)


@each_loss
def test_single_precision_comes_close_and_stays_so_under_autocast(loss: str) -> None:
    model = embeddings(48, 16, 5, 10.0, -10.0)
    single = Embeddings(model.image_BD.float(), model.text_BD.float(), model.scale, model.bias)
    with torch.autocast("cpu", torch.bfloat16):
        found_B = Scores(learner=single, loss=loss).gradient_norm_B("learner")
    assert found_B.dtype == torch.float32
    torch.testing.assert_close(found_B.double(), by_autograd(model, loss), rtol=1e-4, atol=1e-6)


@each_loss
def test_extreme_scales_stay_finite(loss: str) -> None:
    model = replace(embeddings(16, 4, 1, 1e4, 0.0))
    assert torch.isfinite(Scores(learner=model, loss=loss).gradient_norm_B("learner")).all()


@each_loss
@pytest.mark.parametrize("columns", [3, 64])
def test_every_product_is_charged(loss: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", 8 * 20 * columns)
    made = Scores(learner=embeddings(20, 6, 0, 5.0, -5.0), loss=loss)
    made.gradient_norm_B("learner")
    assert made.meter.macs == (3 if loss == "sigmoid" else 4) * 20 * 20 * 6


@each_loss
def test_weights_are_the_inverse_of_the_probabilities(loss: str) -> None:
    made = Scores(learner=embeddings(30, 6, 2, 10.0, -5.0), loss=loss)
    norm_B = by_autograd(made.side("learner"), loss)
    for temperature in (1.0, 3.0):
        policy = policies.create("grad_norm", temperature=temperature)
        chosen = policy.select(made, 7, torch.Generator().manual_seed(0))
        assert chosen.weight_K is not None
        p_B = norm_B ** (1 / temperature) / (norm_B ** (1 / temperature)).sum()
        expected_K = 1 / (len(made) * p_B[chosen.index_K])
        torch.testing.assert_close(chosen.weight_K.double(), expected_K / expected_K.mean(), rtol=1e-5, atol=1e-7)
        assert float(chosen.weight_K.mean()) == pytest.approx(1.0)


def test_large_gradients_are_drawn_more_often() -> None:
    """First draws follow p ∝ norm."""
    made = Scores(learner=embeddings(6, 4, 8, 10.0, -5.0))
    norm_B, random = by_autograd(made.side("learner"), "sigmoid"), torch.Generator().manual_seed(1)
    policy, draws = policies.create("grad_norm"), 4000
    first = torch.cat([policy.select(made, 1, random).index_K for _ in range(draws)])
    share_B = torch.bincount(first, minlength=6).double() / draws
    torch.testing.assert_close(share_B, norm_B / norm_B.sum(), rtol=0, atol=0.03)


def test_without_weights_there_are_none() -> None:
    made = Scores(learner=embeddings(8, 4, 0, 5.0, 0.0))
    assert policies.create("grad_norm", weighted=False).select(made, 3, torch.Generator()).weight_K is None


def test_no_gradient_excludes_nobody() -> None:
    """One pair has no gradient under the softmax loss, and is drawn all the same."""
    made = Scores(learner=embeddings(1, 4, 0, 5.0, 0.0), loss="softmax")
    chosen = policies.create("grad_norm").select(made, 1, torch.Generator())
    assert chosen.index_K.tolist() == [0]
    assert chosen.weight_K is not None
    assert chosen.weight_K.tolist() == [1.0]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_wrong_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        policies.create("grad_norm", temperature=temperature)
