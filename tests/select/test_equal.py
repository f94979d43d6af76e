"""Equal captions: which pairs are equal, both losses and all scores against sums written out pair by pair."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from jestbench import Embeddings, Scores, conditional_logits
from jestbench.select import NoSuchScore, losses
from jestbench.select.given import equal_groups, equal_pairs, word_ids
from jestbench.select.losses import LOSSES, EqualPairs

each_loss = pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
each_rule = pytest.mark.parametrize("rule", ["masked", "positive"])
GROUP = torch.tensor([0, 1, 0, 2, 1, 0, 3, 4])


def embeddings(seed: int, count: int = len(GROUP)) -> Embeddings:
    random = torch.Generator().manual_seed(seed)
    image, text = torch.nn.functional.normalize(torch.randn(2, count, 5, generator=random, dtype=torch.float64), dim=2)
    return Embeddings(image, text, 6.0, -3.0)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def plain_losses(model: Embeddings, loss: str, rule: str, group: list[int]) -> list[list[float]]:
    """Each image's and each text's loss, by the formulas, with loops."""
    cosine = (model.image_BD @ model.text_BD.T).tolist()
    size, found = len(group), [[], []]
    for side in (0, 1):
        for i in range(size):
            u = [model.scale * (cosine[i][j] if side == 0 else cosine[j][i]) for j in range(size)]
            equal = [j != i and group[j] == group[i] for j in range(size)]
            if loss == "sigmoid":
                u = [value + model.bias for value in u]
                total = softplus(-u[i])
                for j in range(size):
                    if j != i and not equal[j]:
                        total += softplus(u[j])
                    elif equal[j] and rule == "positive":
                        total += softplus(-u[j])
            else:
                below = [j for j in range(size) if rule == "positive" or not equal[j]]
                lse = math.log(sum(math.exp(u[j]) for j in below))
                aims = [i, *(j for j in range(size) if equal[j])] if rule == "positive" else [i]
                total = sum(lse - u[j] for j in aims) / len(aims)
            found[side].append(total)
    return found


@each_loss
@each_rule
@pytest.mark.parametrize("form", ["dense", "blocks"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_sum_written_out(
    loss: str, rule: str, form: str, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "blocks":
        monkeypatch.setattr(losses, "DENSE_BYTES", 0)
    model, size = embeddings(1), len(GROUP)
    parts = (model.image_BD.clone(), model.text_BD.clone(), torch.tensor(6.0), torch.tensor(-3.0))
    parts = tuple(part.double().requires_grad_() for part in parts)
    weight_K = torch.linspace(0.2, 2, size, dtype=torch.float64) if weighted else None
    each: list[tuple[Tensor, Tensor]] = []
    value = LOSSES[loss](*parts, weight_K, EqualPairs(GROUP, rule), each)
    image_loss, text_loss = plain_losses(model, loss, rule, GROUP.tolist())
    assert each[0][0].tolist() == pytest.approx(image_loss)
    assert each[0][1].tolist() == pytest.approx(text_loss)
    weights = [1.0] * size if weight_K is None else weight_K.tolist()
    # A weight acts on a pair's row and column; the sigmoid loss shares each term between the two.
    expected = sum(w * (a + b) / 2 for w, a, b in zip(weights, image_loss, text_loss, strict=True)) / size
    assert float(value) == pytest.approx(expected)

    def again(*inputs: Tensor) -> Tensor:
        return LOSSES[loss](*inputs, weight_K, EqualPairs(GROUP, rule))

    assert torch.autograd.gradcheck(again, parts)


@each_loss
@each_rule
def test_without_equal_pairs_nothing_changes(loss: str, rule: str) -> None:
    model = embeddings(2)
    parts = (model.image_BD, model.text_BD, torch.tensor(6.0), torch.tensor(-3.0))
    alone = EqualPairs(torch.arange(len(GROUP)), rule)
    assert float(LOSSES[loss](*parts, None, alone)) == pytest.approx(float(LOSSES[loss](*parts)))


@each_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_each_pairs_losses_are_parts_of_the_plain_loss(
    loss: str, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, weight_K = embeddings(3), torch.linspace(0.5, 2, len(GROUP)).double() if weighted else None
    parts = (model.image_BD, model.text_BD, torch.tensor(6.0), torch.tensor(-3.0))
    found = []
    for limit in (losses.DENSE_BYTES, 0):
        monkeypatch.setattr(losses, "DENSE_BYTES", limit)
        each: list[tuple[Tensor, Tensor]] = []
        LOSSES[loss](*parts, weight_K, None, each)
        found.append(torch.stack(each[0]))
    assert torch.allclose(*found)
    assert float(found[0].sum(1).mean() / len(GROUP)) == pytest.approx(float(LOSSES[loss](*parts)))


def plain_conditional(scores: Scores, chosen: list[int], rule: str) -> list[float]:
    """The conditional logits by facts.md's formulas, with the terms of equal pairs masked or turned round."""
    group = scores.group_B.tolist()
    found = [0.0] * len(group)
    for sign, model in ((1.0, scores.learner), (-1.0, scores.reference)):
        cosine = (model.image_BD @ model.text_BD.T).tolist()
        for i in range(len(group)):
            others = [j for j in chosen if rule == "positive" or group[j] != group[i]]
            if scores.loss == "sigmoid":

                def term(a: int, b: int, model=model, cosine=cosine) -> float:
                    logit = model.scale * cosine[a][b] + model.bias
                    return softplus(-logit if group[a] == group[b] else logit)

                found[i] += sign * (term(i, i) + sum(term(i, j) + term(j, i) for j in others))
            else:
                value = -model.scale * cosine[i][i]
                if others:
                    row = math.log(sum(math.exp(model.scale * cosine[i][j]) for j in others))
                    column = math.log(sum(math.exp(model.scale * cosine[j][i]) for j in others))
                    value += (row + column) / 2
                found[i] += sign * value
    return [-math.inf if i in chosen else value for i, value in enumerate(found)]


@pytest.mark.parametrize(("loss", "rule"), [("sigmoid", "masked"), ("softmax", "masked"), ("sigmoid", "positive")])
@pytest.mark.parametrize("chosen", [[], [0], [0, 2, 5], [1, 3, 6, 7]])
def test_conditional_logits_are_those_written_out(loss: str, rule: str, chosen: list[int]) -> None:
    scores = Scores(embeddings(4), replace(embeddings(5), scale=9.0), loss=loss, group_B=GROUP, equal=rule)
    found = conditional_logits(scores, torch.tensor(chosen, dtype=torch.int64))
    assert found.tolist() == pytest.approx(plain_conditional(scores, chosen, rule))
    assert scores.meter.macs == _metered(loss, chosen), "priced as without equal pairs"


def _metered(loss: str, chosen: list[int]) -> int:
    scores = Scores(embeddings(4), embeddings(5), loss=loss)
    conditional_logits(scores, torch.tensor(chosen, dtype=torch.int64))
    return scores.meter.macs


@pytest.mark.parametrize(("loss", "rule"), [("sigmoid", "masked"), ("softmax", "masked"), ("sigmoid", "positive")])
def test_pair_losses_and_gradient_norms_are_those_of_the_loss(loss: str, rule: str) -> None:
    model = embeddings(6)
    scores = Scores(model, loss=loss, group_B=GROUP, equal=rule)
    image_loss, text_loss = plain_losses(model, loss, rule, GROUP.tolist())
    parts = [part.clone().requires_grad_() for part in (model.image_BD, model.text_BD)]
    value = LOSSES[loss](*parts, torch.tensor(6.0), torch.tensor(-3.0), None, EqualPairs(GROUP, rule))
    value.backward()
    norm_B = sum(part.grad.square().sum(1) for part in parts).sqrt()
    mean = [(a + b) / 2 for a, b in zip(image_loss, text_loss, strict=True)]
    assert scores.pair_loss_B("learner", "in_batch").tolist() == pytest.approx(mean)
    assert torch.allclose(scores.gradient_norm_B("learner"), norm_B)


def test_softmax_scores_of_several_pairs_refuse_positives() -> None:
    scores = Scores(embeddings(7), loss="softmax", group_B=GROUP, equal="positive")
    for ask in (
        lambda: conditional_logits(scores, torch.tensor([0])),
        lambda: scores.pair_loss_B("learner", "in_batch"),
        lambda: scores.gradient_norm_B("learner"),
    ):
        with pytest.raises(NoSuchScore, match=r"run\.equal = 'positive'.*masked"):
            ask()
    assert torch.isfinite(scores.pair_loss_B("learner")).all(), "a pair by itself has a score"


def test_pairs_of_one_image_or_one_caption_are_equal() -> None:
    image, text = torch.tensor([1, 2, 3, 1, 5, 6]), torch.tensor([7, 8, 7, 9, 9, 10])
    group_B = equal_groups(image, text)
    together = {frozenset((group_B == group).nonzero().flatten().tolist()) for group in group_B}
    assert together == {frozenset({0, 2, 3, 4}), frozenset({1}), frozenset({5})}, "a chain joins 2 and 4"
    assert equal_pairs(image, text) == 6
    assert equal_pairs(torch.arange(5), torch.arange(5)) == 0


def test_words_are_distinct_normalised_and_the_same_for_every_process() -> None:
    words_BL = word_ids(["A red ﬁsh, a RED fish", "fish", "", "naïve Ⅳ"])
    assert words_BL.shape == (4, 3)
    assert words_BL[0, 2] == words_BL[1, 0], "case, ligatures and repetitions make no other word"
    assert words_BL[1:, :].eq(-1).sum(1).tolist() == [2, 3, 1]
    assert word_ids(["fish"])[0, 0] == words_BL[1, 0]
    assert words_BL[0, 1] == word_ids(["red"]).item() == int(word_ids(["blue red"])[0, 1])
