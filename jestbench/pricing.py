"""What one step costs, by purpose, before anything is trained."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from jestbench import seeds
from jestbench.batch import PURPOSES, Pass, Purpose
from jestbench.flops import FLOPS_PER_MAC, TRAINING_PASSES
from jestbench.launch import stand_ins
from jestbench.learner import Price
from jestbench.model.towers import TwoTowers
from jestbench.model.views import FULL_MIX
from jestbench.pair_scorer import pair_macs
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
        once: the part of the step that ``first_sight`` charges once a pair: all that frozen models score.
        closed_form: cost relative to a uniform step as the formulas have it (arXiv 2406.17711; towers
            only): train + r·learner/3 + r·frozen/3, r = B/b, each the price of a pair under the views
            of the run over its price under the full view; train is 1 without views. An online scorer adds
            its own train + r·scorer/3.
    """

    flops: dict[Purpose, int]
    uniform: int
    reference_pair: int
    closed_form: float
    once: int = 0

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
    scored = online.prices[online.view].pairs(resolved.draw_size)
    return (Pass("scorer_score", scored, "online scorer"), *online.training_passes(resolved.run.batch_size))


def step_price(resolved: Resolved) -> StepPrice:
    """Price a run's step from its shapes; data and reference may be stand-ins."""
    data, reference, regressor = stand_ins(resolved)
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
    beside = _scorer_passes(resolved, stages)
    passes = [*training, *_selection_passes(resolved, stages, reference), *beside]
    scored = 0
    if "learner" in resolved.policy.needs:
        scored = learner.prices[stages.scorer.view].pairs(drawn)
        passes.append(Pass("learner_score", scored, "learner"))
    frozen: list[Pass] = []
    if run.reference_accounting != "amortised":
        if reference_price is not None:
            again = 0 if resolved.twin is None else reference_price.fixed  # each of the two makes a pass
            frozen.append(Pass("reference_score", reference_price.pairs(drawn) + again, "reference"))
        if regressor is not None:
            macs = pair_macs(Price.of(regressor, one), regressor.head_macs(), drawn)
            frozen.append(Pass("scorer_score", macs, "pair scorer"))
    passes += frozen
    charged = sum(item.macs for item in frozen)
    trained = sum(item.macs for item in (*training, *beside) if item.purpose in ("learner_train", "scorer_train"))
    closed = (trained + scored + charged) / (TRAINING_PASSES * run.batch_size * full)
    reference_pair = 0 if reference_price is None else FLOPS_PER_MAC * reference_price.pair
    return StepPrice(_sum(passes), uniform, reference_pair, closed, FLOPS_PER_MAC * charged)


def steps_bought(resolved: Resolved, price: StepPrice, pool: int) -> int | None:
    """Steps until ``run.budget`` is reached, for a pool of so many pairs.

    Under ``first_sight`` frozen models are charged during the first pass over the pool alone.
    """
    if resolved.run.budget is None:
        return None
    budget, first = int(resolved.run.budget) + resolved.added_flops, price.total
    later = first if resolved.run.reference_accounting == "online" else first - price.once
    in_first_pass = max(1, pool // resolved.draw_size)
    if budget <= in_first_pass * first:
        return -(-budget // first)
    return in_first_pass + -(-(budget - in_first_pass * first) // later)


def price_table(resolved: Resolved) -> str:
    """The price of a step as text."""
    price = step_price(resolved)
    run = resolved.run
    data, *_ = stand_ins(resolved)
    pool = len(data.split(run.split))
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
    if price.once and run.reference_accounting == "first_sight":
        rest = (price.total - price.once) / price.uniform
        lines.append(f"once every pair has been seen: {rest:.3f}")
    if steps is not None:
        note = "" if resolved.run.data.is_prepared() else " (for the stand-in's pool: the data is not prepared yet)"
        whole = int(run.budget or 0) + resolved.added_flops
        lines.append(
            f"a budget of {whole:.4g} FLOPs buys {steps:,} steps, {steps * resolved.draw_size:,} pairs "
            f"seen, {steps * run.batch_size:,} trained on, of a pool of {pool:,}{note}"
        )
    return "\n".join(lines)
