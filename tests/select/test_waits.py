"""Selection and losses on a pretended GPU: the CPU's choices, and few waits of the host for the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pretended_device import Pretended

import policies
from jestbench.bench.selection import random_scores
from jestbench.select import Embeddings, Scores, independent_draw, joint_draw, losses
from jestbench.select.draws import Draw
from jestbench.select.losses import LOSSES, LossName
from jestbench.select.policy import choose

each_loss = pytest.mark.parametrize("loss", ["sigmoid", "softmax"])


def moved(scores: Scores, device: str) -> Scores:
    learner, reference = (
        Embeddings(part.image_BD.to(device), part.text_BD.to(device), part.scale, part.bias)
        for part in (scores.side("learner"), scores.side("reference"))
    )
    return Scores(learner, reference, loss=scores.loss)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def waits(gpu: Pretended) -> dict[str, int]:
    """All but what the host does not wait for."""
    return {what: count for what, count in gpu.totals().items() if what != "to device: pinned, async"}


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JESTBENCH_FUSED", "0")


@each_loss
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_joint_draw_is_the_cpus_and_is_read_once(loss: LossName, deterministic: bool) -> None:
    scores = random_scores(300, 16, loss)()
    wanted = joint_draw(scores, 60, 16, deterministic=deterministic, generator=generator())
    with Pretended() as gpu:
        there = moved(scores, "cuda")
        gpu.clear()
        draw = joint_draw(there, 60, 16, deterministic=deterministic, generator=generator())
        counted = waits(gpu)
        assert draw.index_K.tolist() == wanted.index_K.tolist()
    assert sum(counted.values()) == 1, gpu.report()
    assert draw.statistics == pytest.approx(wanted.statistics, rel=1e-4)


def test_an_independent_draw_is_read_once() -> None:
    score_B = torch.linspace(0, 5, 80).round()  # with ties
    calls: list[Callable[[torch.Tensor], Draw]] = [
        lambda score_B: independent_draw(score_B, 20, generator=generator()),
        lambda score_B: independent_draw(score_B, 20, deterministic=True),
    ]
    for call in calls:
        with Pretended() as gpu:
            there = score_B.to("cuda")
            gpu.clear()
            found = call(there)
            assert sum(waits(gpu).values()) == 1, gpu.report()
            assert found.index_K.tolist() == call(score_B).index_K.tolist()


@pytest.mark.parametrize(
    ("policy", "most"),
    [("jest", 2), ("rho_loss", 2), ("learnability", 2), ("selective_backprop", 4), ("grad_norm", 7), ("clip_score", 4)],
)
def test_a_choice_costs_few_waits(policy: str, most: int) -> None:
    scores, chooser = random_scores(200, 8, "sigmoid")(), policies.create(policy)
    wanted = choose(chooser, scores, 40, generator())
    with Pretended() as gpu:
        there = moved(scores, "cuda")
        gpu.clear()
        found = choose(chooser, there, 40, generator())
        counted = waits(gpu)
    assert sum(counted.values()) <= most, gpu.report()
    assert found.index_K.device.type == "cpu", "the batch reads it there"
    assert found.index_K.tolist() == wanted.index_K.tolist()


def test_embeddings_are_checked_in_one_read() -> None:
    image_BD, text_BD = torch.ones(4, 3), torch.ones(4, 3)
    with Pretended() as gpu:
        there = (image_BD.to("cuda"), text_BD.to("cuda"))
        gpu.clear()
        Embeddings(*there, 10.0, -10.0)
        assert sum(waits(gpu).values()) == 1, gpu.report()


@each_loss
@pytest.mark.parametrize("dense_bytes", [0, 2**40])
def test_a_loss_and_its_gradients_wait_for_nothing(
    loss: LossName, dense_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "DENSE_BYTES", dense_bytes)
    with Pretended() as gpu:
        image_KD, text_KD, scale, bias, weight_K = (
            torch.rand(shape).to("cuda").requires_grad_() for shape in ((40, 8), (40, 8), (), (), (40,))
        )
        gpu.clear()
        LOSSES[loss](image_KD, text_KD, scale, bias, weight_K.detach()).backward()
        assert gpu.ops > 10
        assert not waits(gpu), gpu.report()
