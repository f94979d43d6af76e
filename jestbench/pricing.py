"""What one step costs, by purpose, before anything is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from jestbench import seeds
from jestbench.batch import PURPOSES, Pass, Purpose
from jestbench.data.stream import StreamPairs
from jestbench.flops import FLOPS_PER_MAC, TRAINING_PASSES
from jestbench.launch import stand_ins
from jestbench.learner import Price
from jestbench.model.views import FULL_MIX
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
        uniform: FLOPs of a uniform step.
        reference_pair: FLOPs of one pair through the reference, under its view.
        closed_form: cost relative to a uniform step as the formulas have it (arXiv 2406.17711; towers
            only): train + r·learner/3 + r·reference/3, r = B/b, each the price of a pair under the views
            of the run over its price under the full view; train is 1 without views.
    """

    flops: dict[Purpose, int]
    uniform: int
    reference_pair: int
    closed_form: float

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
    data, reference = stand_ins(resolved)
    run, drawn = resolved.run, resolved.draw_size
    with tempfile.TemporaryDirectory() as folder:
        stages = build_stages(resolved, data, None, Path(folder), draw_size=1)
    one = stages.pairs.batch(torch.zeros(1, dtype=torch.int64))
    learner = stages.learner
    full = learner.price.pair
    reference_price = None
    if reference is not None:
        reference_price = Price.of(reference, one, fitted(run.reference_under, reference, "run.reference_view"))
    training = learner.training_passes(run.batch_size)
    uniform = sum(_sum(learner.training_passes(run.batch_size, FULL_MIX)).values())
    passes = [*training, *_selection_passes(resolved, stages)]
    scored = 0
    if "learner" in resolved.policy.needs:
        scored = learner.prices[stages.scorer.view].pairs(drawn)
        passes.append(Pass("learner_score", scored, "learner"))
    charged = 0
    if reference_price is not None and run.reference_accounting != "amortised":
        charged = reference_price.pairs(drawn)
    passes.append(Pass("reference_score", charged, "reference"))
    trained = sum(item.macs for item in training if item.purpose == "learner_train")
    closed = (trained + scored + charged) / (TRAINING_PASSES * run.batch_size * full)
    reference_pair = 0 if reference_price is None else FLOPS_PER_MAC * reference_price.pair
    return StepPrice(_sum(passes), uniform, reference_pair, closed)


def steps_bought(resolved: Resolved, price: StepPrice, pool: int | None) -> int | None:
    """Steps until ``run.budget`` is reached, for a pool of so many pairs; ``None`` is a stream that never ends.

    Under ``first_sight`` the reference is charged during the first pass over the pool alone.
    """
    if resolved.run.budget is None:
        return None
    budget, first = int(resolved.run.budget), price.total
    later = first if resolved.run.reference_accounting == "online" else first - price.flops["reference_score"]
    in_first_pass = 0 if pool is None else max(1, pool // resolved.draw_size)
    if pool is None or budget <= in_first_pass * first:
        return -(-budget // first)
    return in_first_pass + -(-(budget - in_first_pass * first) // later)


def price_table(resolved: Resolved) -> str:
    """The price of a step as text."""
    price = step_price(resolved)
    run = resolved.run
    data, _ = stand_ins(resolved)
    split = data.split(run.split)
    pool = None if isinstance(split, StreamPairs) else len(split)
    steps = steps_bought(resolved, price, pool)
    lines = [
        f"arm {run.arm}: b = {run.batch_size}, B = {resolved.draw_size}, "
        f"filter ratio {1 - run.batch_size / resolved.draw_size:.2f}, {run.reference_accounting} accounting",
        f"{'purpose':<18}{'FLOPs a step':>16}{'x uniform step':>16}",
    ]
    for purpose, flops in price.flops.items():
        if flops:
            lines.append(f"{purpose:<18}{flops:>16,}{flops / price.uniform:>16.3f}")
    lines.append(f"{'total':<18}{price.total:>16,}{price.total / price.uniform:>16.3f}")
    lines.append(f"closed form, towers only: {price.closed_form:.3f}")
    if price.flops["reference_score"] and run.reference_accounting == "first_sight":
        rest = (price.total - price.flops["reference_score"]) / price.uniform
        lines.append(f"once every pair has been seen: {rest:.3f}")
    if steps is not None:
        note = "" if resolved.run.data.is_prepared() else " (for the stand-in's pool: the data is not prepared yet)"
        drawn_from = "a stream" if pool is None else f"a pool of {pool:,}"
        lines.append(
            f"a budget of {int(run.budget or 0):.4g} FLOPs buys {steps:,} steps, {steps * resolved.draw_size:,} pairs "
            f"seen, {steps * run.batch_size:,} trained on, of {drawn_from}{note}"
        )
    return "\n".join(lines)
