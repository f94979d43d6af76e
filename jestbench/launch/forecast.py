"""What one step costs, by purpose, before anything is trained."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from jestbench import seeds
from jestbench.batch import FULL, FULL_MIX, PURPOSES, Batch, Pass, Purpose, View
from jestbench.config.run import Resolved
from jestbench.cost.budget import Pretrained
from jestbench.cost.price import Price, pair_macs
from jestbench.cost.tracing import FLOPS_PER_MAC, TRAINING_PASSES
from jestbench.launch.rehearse import stand_ins
from jestbench.launch.stages import build_stages, fitted
from jestbench.launch.train_run import pretrain_flops
from jestbench.loop import Stages
from jestbench.model.regressor import Regressor
from jestbench.model.towers import TwoTowers
from jestbench.model.views import check
from jestbench.select.policy import choose
from jestbench.select.scores import Embeddings, Scores


@dataclass(frozen=True)
class StepPrice:
    """FLOPs of one step by purpose, and of the uniform step with the same b under the full view.

    Attributes:
        flops: by purpose; ``reference_score`` at the price of a super-batch that this run has not
            met before.
        uniform: FLOPs of a uniform step, nothing of it run again to save memory.
        reference_pair: FLOPs of one pair through the reference, under its view.
        first_sight: FLOPs of a step that are charged for pairs met for the first time alone: all that frozen models
            score, and the own logits that a cascade takes from them; 0 under ``amortised``.
        cascade_pair: FLOPs of one candidate of a cascade, met for the first time.
        closed_form: cost relative to a uniform step as the formulas have it (arXiv 2406.17711; towers
            only): train + r·learner/3 + r·frozen/3, r = B/b, each the price of a pair under the views
            of the run over its price under the full view; train is 1 without views. An online scorer adds
            its own train + r·scorer/3.
    """

    flops: dict[Purpose, int]
    uniform: int
    reference_pair: int
    closed_form: float
    first_sight: int = 0
    cascade_pair: int = 0

    @property
    def total(self) -> int:
        """FLOPs of one step, all purposes."""
        return sum(self.flops.values())


def _sum(passes: Iterable[Pass]) -> dict[Purpose, int]:
    flops = dict.fromkeys(PURPOSES, 0)
    for item in passes:
        flops[item.purpose] += FLOPS_PER_MAC * item.macs
    return flops


def _selection_passes(resolved: Resolved, stages: Stages, reference: TwoTowers | None) -> tuple[Pass, ...]:
    """The similarity products of one selection at full size, counted by the same meter.

    The policy chooses among random embeddings: products are linear in the width, so that the models' widths
    over their common divisor will do (1 where all meet in as many dimensions).
    """
    random, needs, online = seeds.generator(0, "check"), resolved.policy.needs, stages.scorer.online
    models: dict[str, TwoTowers | None] = {
        "learner": stages.learner.model if "learner" in needs else None,
        "reference": reference if "reference" in needs else None,
        "scorer": None if online is None else online.model,
    }
    widths = {side: model.width for side, model in models.items() if model is not None}
    divisor = math.gcd(*widths.values()) or 1

    def embeddings(side: str) -> Embeddings | None:
        if side not in widths:
            return None
        width = widths[side] // divisor
        image_BD, text_BD = (torch.randn(resolved.draw_size, width, generator=random) / 10 for _ in range(2))
        return Embeddings(image_BD, text_BD)

    scores = Scores(
        embeddings("learner"),
        embeddings("reference"),
        embeddings("scorer"),
        values={} if online or "scorer" not in needs else {"g": torch.rand(resolved.draw_size, generator=random)},
        size=resolved.draw_size,
        loss=resolved.run.loss,
    )
    if resolved.twin is not None and scores.reference is not None:
        # As if both halves were equally large; in a run their sizes vary from step to step.
        halves = [index for index in torch.arange(resolved.draw_size).chunk(2) if len(index)]
        unseen = tuple((index, scores.reference.take(index)) for index in halves)
        scores = replace(scores, reference=None, unseen=unseen)
    choose(resolved.policy, scores, resolved.run.batch_size, random)
    return (Pass("pairwise", scores.meter.macs * divisor, "selection"),)


def _scorer_passes(resolved: Resolved, stages: Stages) -> tuple[Pass, ...]:
    """One step of an online scorer, where there is one: the super-batch scored, the chosen pairs trained on."""
    online = stages.scorer.online
    if online is None:
        return ()
    scored = online.prices[online.view].pairs(resolved.draw_size, resolved.run.microbatch)
    return (Pass("scorer_score", scored, "online scorer"), *online.training_passes(resolved.run.batch_size))


def step_price(resolved: Resolved) -> StepPrice:
    """Price a run's step from its shapes; data and reference may be stand-ins."""
    return _step_price(resolved, *_built(resolved))


def _built(resolved: Resolved) -> tuple[Stages, TwoTowers | None, Regressor | None]:
    """What a run is priced by: its stages, the reference and the pair scorer."""
    data, reference, regressor = stand_ins(resolved)
    with tempfile.TemporaryDirectory() as folder:
        return build_stages(resolved, data, None, Path(folder), draw_size=1), reference, regressor


def _one(stages: Stages) -> Batch:
    return stages.pairs.example()


def _step_price(
    resolved: Resolved, stages: Stages, reference: TwoTowers | None, regressor: Regressor | None
) -> StepPrice:
    run, drawn = resolved.run, resolved.draw_size
    one, learner = _one(stages), stages.learner
    full = learner.price.pair
    training = learner.training_passes(run.batch_size)
    plain = _sum(learner.training_passes(run.batch_size, FULL_MIX))
    uniform = sum(flops for purpose, flops in plain.items() if purpose != "recompute")
    beside = _scorer_passes(resolved, stages)
    passes = [*training, *_selection_passes(resolved, stages, reference), *beside]
    scored = 0
    if "learner" in resolved.policy.needs:
        scored = learner.prices[stages.scorer.view].pairs(drawn, run.microbatch)
        passes.append(Pass("learner_score", scored, "learner"))
    models = _FrozenPrices.of(resolved, one, reference, regressor)
    frozen: tuple[Pass, ...] = ()
    if run.reference_accounting != "amortised":
        frozen = tuple(_frozen_passes(resolved, models))
    passes += frozen
    towers = sum(item.macs for item in frozen if item.purpose != "pairwise")
    trained = sum(item.macs for item in (*training, *beside) if item.purpose in ("learner_train", "scorer_train"))
    closed = (trained + scored + towers) / (TRAINING_PASSES * run.batch_size * full)
    reference_pair = 0 if models.reference is None else FLOPS_PER_MAC * models.reference.pair
    first_sight = FLOPS_PER_MAC * sum(item.macs for item in frozen)
    cascade_pair = _cascade_pair(resolved, models)
    return StepPrice(_sum(passes), uniform, reference_pair, closed, first_sight, cascade_pair)


@dataclass(frozen=True)
class _FrozenPrices:
    """What frozen models cost, traced once: the reference's towers and width, the pair scorer's towers and head."""

    reference: Price | None
    width: int
    scorer: Price | None
    head: int

    @classmethod
    def of(
        cls, resolved: Resolved, one: Batch, reference: TwoTowers | None, regressor: Regressor | None
    ) -> _FrozenPrices:
        price, width = None, 0
        if reference is not None:
            view = fitted(resolved.run.reference_under, reference, "run.reference_view")
            price, width = Price.of(reference, one, view), reference.width
        if regressor is None:
            return cls(price, width, None, 0)
        return cls(price, width, Price.of(regressor, one), regressor.head_macs())


def _frozen_passes(resolved: Resolved, models: _FrozenPrices) -> Iterator[Pass]:
    """What frozen models are run for in a step whose pairs this run has not met."""
    cascade = resolved.run.cascade
    if (price := models.reference) is not None:
        for count in _scored_by("reference", resolved):
            # Each of two makes passes of its own, over its half.
            parts = (count,) if resolved.twin is None else (count - count // 2, count // 2)
            macs = sum(price.pairs(part, resolved.run.microbatch) for part in parts)
            yield Pass("reference_score", macs, "reference")
        if cascade is not None and cascade.score == "reference":
            yield Pass("pairwise", resolved.candidates * models.width, "own logits of the candidates")
    if models.scorer is not None:
        for count in _scored_by("scorer", resolved):
            macs = pair_macs(models.scorer, models.head, count)
            yield Pass("scorer_score", macs, "pair scorer")


def _scored_by(role: Pretrained, resolved: Resolved) -> tuple[int, ...]:
    """Pairs that each use of a frozen model is charged for in a step whose pairs this run has not met."""
    run = resolved.run
    cascaded = run.cascade is not None and run.cascade.score == role
    # A pair that the cascade has met is not charged to the policy again, but under online accounting.
    policy = role in resolved.policy.needs and not (cascaded and run.reference_accounting != "online")
    return (*((resolved.candidates,) if cascaded else ()), *((resolved.draw_size,) if policy else ()))


def _cascade_pair(resolved: Resolved, models: _FrozenPrices) -> int:
    """FLOPs of one candidate of a cascade, met for the first time; 0 without one."""
    cascade = resolved.run.cascade
    if cascade is None:
        return 0
    if cascade.score == "reference" and models.reference is not None:
        return FLOPS_PER_MAC * (models.reference.pair + models.width)
    assert models.scorer is not None, "a cascade is built with the model that it scores with"
    return FLOPS_PER_MAC * pair_macs(models.scorer, models.head, 1)


def pretraining(resolved: Resolved) -> dict[Pretrained, int]:
    """FLOPs of training the frozen models of a run, by role: read from their folders, or forecast."""
    found: dict[Pretrained, int] = {}
    for role in get_args(Pretrained):
        own, folder = resolved.pretrained(role)
        if folder is not None:
            found[role] = pretrain_flops({role: folder})[role]
        elif own is not None:
            # The twin's run differs in the half of the pool that it draws from alone.
            found[role] = _forecast(own) * (2 if role == "reference" and resolved.twin is not None else 1)
    return found


def _forecast(resolved: Resolved) -> int:
    """FLOPs of a run that is not trained yet, with what it stands on."""
    built = _built(resolved)
    price, below = _step_price(resolved, *built), pretraining(resolved)
    included = sum(flops for role, flops in below.items() if role in resolved.run.limit.includes)
    steps = steps_bought(resolved, price, built[0].super_batches.pool, included)
    if steps is None:
        limit = resolved.run.limit
        steps = limit.steps or -(-(limit.pairs or 0) // resolved.draw_size)
    return steps * price.total + sum(below.values())


def steps_bought(resolved: Resolved, price: StepPrice, pool: int | None, taken: int = 0) -> int | None:
    """Steps until ``run.budget`` is reached, for a pool of so many pairs; ``None`` without a budget in FLOPs.

    Under ``first_sight`` frozen models (and the own logits that a cascade takes from them) are charged during the
    first pass over the pool alone.

    Args:
        resolved: the run.
        price: of its steps.
        pool: pairs in its split; ``None`` is a stream that never ends.
        taken: FLOPs of pre-training that are taken out of the budget first.
    """
    if resolved.run.budget is None:
        return None
    budget, first = max(0, int(resolved.run.budget) + resolved.added_flops - taken), price.total
    later = first if resolved.run.reference_accounting == "online" else first - price.first_sight
    in_first_pass = 0 if pool is None else max(1, pool // resolved.candidates)
    if pool is None or budget <= in_first_pass * first:
        return -(-budget // first)
    return in_first_pass + -(-(budget - in_first_pass * first) // later)


def _cascade_charged(resolved: Resolved) -> str:
    return {
        "online": "charged at every step, with the policy's own scoring",
        "first_sight": "charged once each, as they are met",
        "amortised": "shown apart, not charged",
    }[resolved.run.reference_accounting]


def convention_error(model: TwoTowers, price: Price, batch: Batch) -> float:
    """Forward and backward of a pair as torch counts them over the three forward passes that are charged.

    A little under 1: nothing asks for the gradient of pixels, so the patch embedding's backward pass costs one
    product instead of two.

    Args:
        model: the towers.
        price: theirs, under the full view.
        batch: its first pair gives the shapes.
    """
    return Price.of_training(model, batch).pair / (TRAINING_PASSES * price.pair)


def cheap_view(resolved: Resolved, model: TwoTowers) -> View | None:
    """The view that approximate scoring stands for in the closed forms.

    The run's own where it scores under one, else twice the patch size; ``None`` where the tower cannot run it.
    """
    patch = resolved.run.model.patch_size
    view = resolved.run.score_view or View(patch_size=2 * patch)
    try:
        view = check(view, model)
    except ValueError:
        return None
    return None if view == FULL else view


FILTER_RATIOS = (0.5, 0.8, 0.9)


def closed_forms(cheap: float | None) -> dict[str, list[float]]:
    """Cost of an update over a uniform one's, towers only, by scheme and filter ratio f (arXiv 2406.17711).

    A training pass is 3 forward passes, r = B/b = 1/(1 − f).

    Args:
        cheap: a cheap pass over a full one, as measured; without it the schemes that need one are left out.

    Returns:
        Scheme with its formula → the cost at each of ``FILTER_RATIOS``.
    """
    ratios = [1 / (1 - f) for f in FILTER_RATIOS]
    found = {
        "reference remembered: 1 + r/3": [1 + r / 3 for r in ratios],
        "and the selected not run twice: 1 + (r-1)/3": [1 + (r - 1) / 3 for r in ratios],
        "reference of the same size run: 1 + 2r/3": [1 + 2 * r / 3 for r in ratios],
    }
    if cheap is not None:
        half = (1 + cheap) / 2
        found[f"cheap scoring: 1 + {cheap:.2f}r/3"] = [1 + cheap * r / 3 for r in ratios]
        found[f"half of it trained so: {half:.2f} + {cheap:.2f}r/3"] = [half + cheap * r / 3 for r in ratios]
    return found


def _closed_form_lines(resolved: Resolved, stages: Stages) -> list[str]:
    """The closed forms for this model, and the view that they call cheap."""
    model, full = stages.learner.model, stages.learner.price.pair
    view = cheap_view(resolved, model)
    cheap = None if view is None else Price.of(model, _one(stages), view).pair / full
    heads = "".join(f"{f'f = {f}':>9}" for f in FILTER_RATIOS)
    lines = [f"{'closed forms for this model, x uniform step':<46}{heads}"]
    lines += [
        f"  {scheme:<44}" + "".join(f"{cost:>9.2f}" for cost in costs) for scheme, costs in closed_forms(cheap).items()
    ]
    if view is not None:
        lines.append(f"  a cheap pass ({view.label}) costs {cheap:.3f} of a full one")
    return lines


def _pair_lines(stages: Stages) -> list[str]:
    """What a pair costs, and how far the 3x convention errs for this model."""
    model, price = stages.learner.model, stages.learner.price
    counted = convention_error(model, price, _one(stages))
    return [
        f"one pair, one forward pass: {price.pair:,} MACs (image {price.image:,}, text {price.text:,}), "
        f"{FLOPS_PER_MAC * price.pair:,} FLOPs",
        f"3x convention: torch counts {counted:.4f} of it forward and backward; "
        f"the ledger charges {1 / counted - 1:+.2%} too much",
    ]


def price_table(resolved: Resolved) -> str:
    """The price of a step as text."""
    built = _built(resolved)
    stages, price = built[0], _step_price(resolved, *built)
    run = resolved.run
    pool = stages.super_batches.pool
    taken = sum(flops for role, flops in pretraining(resolved).items() if role in run.limit.includes)
    steps = steps_bought(resolved, price, pool, taken)
    lines = [
        f"arm {run.arm}: b = {run.batch_size}, B = {resolved.draw_size}, "
        f"filter ratio {1 - run.batch_size / resolved.draw_size:.2f}, {run.reference_accounting} accounting",
        f"{'purpose':<18}{'FLOPs a step':>22}{'MACs a step':>22}{'x uniform step':>16}",
    ]
    for purpose, flops in price.flops.items():
        if flops:
            lines.append(_row(purpose, flops, price.uniform))
    lines.append(_row("total", price.total, price.uniform))
    lines.append(f"closed form, towers only: {price.closed_form:.3f}")
    if price.first_sight and run.reference_accounting == "first_sight":
        rest = (price.total - price.first_sight) / price.uniform
        lines.append(f"once every pair has been seen: {rest:.3f}")
    if run.cascade is not None and pool is not None:
        lines.append(
            f"cascade: {resolved.candidates} candidates a step; one met for the first time costs "
            f"{price.cascade_pair:,} FLOPs, all {pool:,} of the pool {pool * price.cascade_pair:.4g} "
            f"({_cascade_charged(resolved)})"
        )
    if steps is not None:
        lines.append(_bought(resolved, steps, pool, taken))
    return "\n".join([*lines, *_pair_lines(stages), *_closed_form_lines(resolved, stages)])


def _row(name: str, flops: int, uniform: int) -> str:
    return f"{name:<18}{flops:>22,}{flops // FLOPS_PER_MAC:>22,}{flops / uniform:>16.3f}"


def _bought(resolved: Resolved, steps: int, pool: int | None, taken: int) -> str:
    run = resolved.run
    note = "" if run.data.is_prepared() else " (for the stand-in's pool: the data is not prepared yet)"
    less = f", less {taken:.4g} for pre-training," if taken else ""
    whole = int(run.budget or 0) + resolved.added_flops
    drawn_from = "a stream" if pool is None else f"a pool of {pool:,}"
    return (
        f"a budget of {whole:.4g} FLOPs{less} buys {steps:,} steps, {steps * resolved.draw_size:,} "
        f"pairs seen, {steps * run.batch_size:,} trained on, of {drawn_from}{note}"
    )
