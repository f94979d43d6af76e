"""What one step costs, by purpose, before anything is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from jestbench import seeds
from jestbench.batch import PURPOSES, Batch, Pass, Purpose
from jestbench.flops import FLOPS_PER_MAC, TRAINING_PASSES
from jestbench.launch import pretrain_flops, stand_ins
from jestbench.learner import Price
from jestbench.model.towers import TwoTowers
from jestbench.model.views import FULL, FULL_MIX, View, check
from jestbench.run import Resolved
from jestbench.scores import Embeddings, Scores
from jestbench.selection import choose
from jestbench.stages import Stages, build_stages, fitted


@dataclass(frozen=True)
class StepPrice:
    """FLOPs of one step by purpose, and of the uniform step with the same b under the full view.

    Attributes:
        flops: by purpose; ``reference_score`` at the price of a super-batch that this run has not
            met before.
        uniform: FLOPs of a uniform step, nothing of it run again to save memory.
        reference_pair: FLOPs of one pair through the reference, under its view.
        first_sight: FLOPs of a step that are charged for pairs met for the first time alone: those of the reference,
            and of the own logits that a cascade takes from it; 0 under ``amortised``.
        cascade_pair: FLOPs of one candidate of a cascade, met for the first time.
        closed_form: cost relative to a uniform step as the formulas have it (arXiv 2406.17711; towers
            only): train + r·learner/3 + r·reference/3, r = B/b, each the price of a pair under the views
            of the run over its price under the full view; train is 1 without views.
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


def _selection_passes(resolved: Resolved, stages: Stages) -> tuple[Pass, ...]:
    """The similarity products of one selection at full size, counted by the same meter.

    The policy chooses among random embeddings of width 1: products are linear in the width.
    """
    random = seeds.generator(0, "check")

    def embeddings() -> Embeddings:
        image_B1, text_B1 = (torch.randn(resolved.draw_size, 1, generator=random) / 10 for _ in range(2))
        return Embeddings(image_B1, text_B1)

    needs = resolved.policy.needs
    scores = Scores(
        embeddings() if "learner" in needs else None,
        embeddings() if "reference" in needs else None,
        size=resolved.draw_size,
        loss=resolved.run.loss,
    )
    choose(resolved.policy, scores, resolved.run.batch_size, random)
    return (Pass("pairwise", scores.meter.macs * stages.learner.model.width, "selection"),)


def step_price(resolved: Resolved) -> StepPrice:
    """Price a run's step from its shapes; data and reference may be stand-ins."""
    return _step_price(resolved, *_built(resolved))


def _built(resolved: Resolved) -> tuple[Stages, TwoTowers | None]:
    """What a run is priced by: its stages, and the reference."""
    data, reference = stand_ins(resolved)
    with tempfile.TemporaryDirectory() as folder:
        return build_stages(resolved, data, None, Path(folder), draw_size=1), reference


def _one(stages: Stages) -> Batch:
    return stages.pairs.batch(torch.zeros(1, dtype=torch.int64))


def _step_price(resolved: Resolved, stages: Stages, reference: TwoTowers | None) -> StepPrice:
    run, drawn = resolved.run, resolved.draw_size
    one, learner = _one(stages), stages.learner
    full = learner.price.pair
    reference_price = None
    if reference is not None:
        reference_price = Price.of(reference, one, fitted(run.reference_under, reference, "run.reference_view"))
    training = learner.training_passes(run.batch_size)
    plain = _sum(learner.training_passes(run.batch_size, FULL_MIX))
    uniform = sum(flops for purpose, flops in plain.items() if purpose != "recompute")
    passes = [*training, *_selection_passes(resolved, stages)]
    scored = 0
    if "learner" in resolved.policy.needs:
        scored = learner.prices[stages.scorer.view].pairs(drawn)
        passes.append(Pass("learner_score", scored, "learner"))
    charged = 0
    if reference_price is not None and run.reference_accounting != "amortised":
        charged = sum(reference_price.pairs(count) for count in _reference_scored(resolved))
    passes.append(Pass("reference_score", charged, "reference"))
    if charged and reference is not None and run.cascade is not None:
        passes.append(Pass("pairwise", resolved.candidates * reference.width, "own logits of the candidates"))
    trained = sum(item.macs for item in training if item.purpose == "learner_train")
    closed = (trained + scored + charged) / (TRAINING_PASSES * run.batch_size * full)
    reference_pair = 0 if reference_price is None else FLOPS_PER_MAC * reference_price.pair
    dot = 0 if reference is None or run.cascade is None else FLOPS_PER_MAC * reference.width
    first_sight = FLOPS_PER_MAC * charged + (dot * resolved.candidates if charged else 0)
    cascade_pair = reference_pair + dot if run.cascade is not None else 0
    return StepPrice(_sum(passes), uniform, reference_pair, closed, first_sight, cascade_pair)


def _reference_scored(resolved: Resolved) -> tuple[int, ...]:
    """Pairs that each use of the reference is charged for in a step whose pairs this run has not met."""
    cascaded = resolved.run.cascade is not None
    policy = "reference" in resolved.policy.needs and not (cascaded and resolved.run.reference_accounting != "online")
    return (*((resolved.candidates,) if cascaded else ()), *((resolved.draw_size,) if policy else ()))


def pretraining(resolved: Resolved) -> int:
    """FLOPs of training a run's reference, with what that stood on: read from its folder, or forecast."""
    if resolved.reference_dir is not None:
        return sum(pretrain_flops(resolved.reference_dir).values())
    if resolved.reference is None:
        return 0
    stages, below = _built(resolved.reference)
    price = _step_price(resolved.reference, stages, below)
    taken = pretraining(resolved.reference)
    included = taken if "reference" in resolved.reference.run.limit.includes else 0
    steps = steps_bought(resolved.reference, price, len(stages.pairs), included)
    if steps is None:
        limit, drawn = resolved.reference.run.limit, resolved.reference.draw_size
        steps = limit.steps or -(-(limit.pairs or 0) // drawn)
    return steps * price.total + taken


def steps_bought(resolved: Resolved, price: StepPrice, pool: int, taken: int = 0) -> int | None:
    """Steps until ``run.budget`` is reached, for a pool of so many pairs; ``None`` without a budget in FLOPs.

    Under ``first_sight`` the reference (and the own logits that a cascade takes from it) is charged during the first
    pass over the pool alone.

    Args:
        resolved: the run.
        price: of its steps.
        pool: pairs in its split.
        taken: FLOPs of pre-training that are taken out of the budget first.
    """
    if resolved.run.budget is None:
        return None
    budget, first = max(0, int(resolved.run.budget) - taken), price.total
    later = first if resolved.run.reference_accounting == "online" else first - price.first_sight
    in_first_pass = max(1, pool // resolved.candidates)
    if budget <= in_first_pass * first:
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
    stages, reference = _built(resolved)
    price = _step_price(resolved, stages, reference)
    run = resolved.run
    pool = len(stages.pairs)
    taken = pretraining(resolved) if "reference" in run.limit.includes else 0
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
    if price.flops["reference_score"] and run.reference_accounting == "first_sight":
        rest = (price.total - price.first_sight) / price.uniform
        lines.append(f"once every pair has been seen: {rest:.3f}")
    if run.cascade is not None:
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


def _bought(resolved: Resolved, steps: int, pool: int, taken: int) -> str:
    run = resolved.run
    note = "" if run.data.is_prepared() else " (for the stand-in's pool: the data is not prepared yet)"
    less = f", less {taken:.4g} for training the reference," if taken else ""
    return (
        f"a budget of {int(run.budget or 0):.4g} FLOPs{less} buys {steps:,} steps, {steps * resolved.draw_size:,} "
        f"pairs seen, {steps * run.batch_size:,} trained on, of a pool of {pool:,}{note}"
    )
