"""Forecasts the cost of one step, by purpose, before anything is trained."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jestbench import seeds
from jestbench.batch import FULL, PURPOSES, Batch, Pass, Purpose, View
from jestbench.config.resolved import Resolved
from jestbench.cost.closed_forms import FILTER_RATIOS, closed_forms
from jestbench.cost.ledger import flops_of
from jestbench.cost.price import Price
from jestbench.cost.tracing import FLOPS_PER_MAC, TRAINING_PASSES
from jestbench.data.pairs import Dataset
from jestbench.data.splits import least_draw
from jestbench.engine.actor import Actor
from jestbench.launch import calibrate, own_scores
from jestbench.launch.charges import Charges, charges_of
from jestbench.launch.data_report import epoch_warning, epochs, walk, waste_warnings
from jestbench.launch.exchange_forecast import Sizes, joined_in, sent_line
from jestbench.launch.stages import build_stages
from jestbench.launch.stands import ended, stand_ins, with_start
from jestbench.loop import Stages
from jestbench.model.towers import TwoTowers
from jestbench.runs.summary import known_total
from jestbench.select.policy import choose, initial_state
from jestbench.select.remembering import imagined, takes_all
from jestbench.select.scores import Role, Scores


@dataclass(frozen=True)
class StepPrice:
    """FLOPs of one step by purpose, and of the uniform step with the same b under the full view.

    Attributes:
        flops: by purpose; ``reference_score`` at the price of a super-batch of pairs new to
            this run.
        uniform: FLOPs of a uniform step, without recomputation to save memory.
        first_sight: FLOPs of a step that are charged only for pairs encountered for the first time: all scoring by
            frozen models, and the own logits that a cascade takes from them; 0 under ``amortised``.
        cascade_pair: FLOPs of one candidate of a cascade, encountered for the first time.
        closed_form: cost relative to a uniform step by the paper's formulas (arXiv 2406.17711; towers
            only): train + r·learner/3 + r·frozen/3, r = B/b, each the price of a pair under the views
            of the run over its price under the full view; train is 1 without views. An online scorer adds
            its own train + r·scorer/3.
        unselected: FLOPs of a step before ``run.select_from``, in which nothing is scored.
    """

    flops: dict[Purpose, int]
    uniform: int
    closed_form: float
    first_sight: int = 0
    cascade_pair: int = 0
    unselected: int = 0

    @property
    def total(self) -> int:
        """FLOPs of one step, all purposes."""
        return sum(self.flops.values())


def _by_purpose(passes: Iterable[Pass]) -> dict[Purpose, int]:
    flops = dict.fromkeys(PURPOSES, 0)
    for item in passes:
        flops[item.purpose] += FLOPS_PER_MAC * item.macs
    return flops


def _selection_passes(resolved: Resolved, stages: Stages) -> tuple[Pass, ...]:
    """The similarity products of one selection at full size, counted by the same meter.

    The policy chooses among random scores. Products are linear in the width, so the actors' widths over
    their common divisor suffice (1 where all widths are equal).
    """
    random, size = seeds.generator(0, "check"), resolved.draw_size
    actors = [actor for role, actor in stages.scorer.actors.items() if role in resolved.policy.needs]
    divisor = math.gcd(*(actor.width for actor in actors)) or 1
    scores = Scores.joined((actor.imagined(size, divisor, random) for actor in actors), size, resolved.run.loss)
    scores = imagined(resolved.policy, scores, random)
    choose(resolved.policy, scores, resolved.run.batch_size, random, initial_state(resolved.policy))
    return (Pass("pairwise", scores.meter.macs * divisor, "selection"),)


def step_price(resolved: Resolved) -> StepPrice:
    """Price a run's step from its shapes; data and reference may be stand-ins."""
    return step_price_of(resolved, _built_on(resolved)[0])


def _built_on(resolved: Resolved) -> tuple[Stages, Dataset]:
    """The stages to price a run by, without values of models, and the data or stand-in that they were built on."""
    resolved = with_start(resolved)
    run = replace(resolved.run, reference_accounting="online", cache=None)
    data, castings = stand_ins(resolved, "meta")
    few = min(least_draw(run.split), resolved.draw_size)
    with tempfile.TemporaryDirectory() as folder:
        return build_stages(replace(resolved, run=run), data, castings, Path(folder), few, shapes=True), data


def sizes(resolved: Resolved) -> Sizes:
    """What the bytes that a run's processes send depend on; data and reference may be stand-ins."""
    stages, _ = _built_on(resolved)
    return Sizes.of(resolved, stages, joined_in(lambda: step_price_of(resolved, stages))[1])


def _one(stages: Stages) -> Batch:
    return stages.learner.model.tokenized(stages.pairs.example())


def step_price_of(resolved: Resolved, stages: Stages) -> StepPrice:
    """Price a run's step on stages that were built with the shapes of the run."""
    actors, learner, batch_size = stages.scorer.actors, stages.learner, resolved.run.batch_size
    free = resolved.run.reference_accounting == "amortised"
    scoring = {role: _scoring(resolved, role, actor) for role, actor in actors.items()}
    once = [item for role, found in scoring.items() if actors[role].remembers and not free for item in found]
    each = [item for role, found in scoring.items() if not actors[role].remembers for item in found]
    each += [item for actor in actors.values() for item in actor.forecast_update(batch_size)]
    images, uniform_images = _locked(resolved, stages), tuple[Pass, ...]()
    if learner.images is not None:
        accounting = resolved.run.reference_accounting
        (each if accounting == "online" else once).extend(images)
        uniform_images = learner.images.forecast_step(accounting, 0, batch_size)
    towers = sum(item.macs for item in (*each, *once) if item.purpose not in ("pairwise", "recompute"))
    closed = towers / (TRAINING_PASSES * batch_size * learner.price.pair)
    uniform = flops_of([*learner.objective.plain().passes(learner, batch_size), *uniform_images])
    spent = _by_purpose([*each, *once, *_selection_passes(resolved, stages)])
    unselected = flops_of([*learner.forecast_update(batch_size), *uniform_images])
    return StepPrice(spent, uniform, closed, flops_of(once), _cascade_pair(resolved, stages), unselected)


def _locked(resolved: Resolved, stages: Stages) -> tuple[Pass, ...]:
    """Passes of a locked tower over the images of a step that are new to this run, where they are remembered."""
    if (images := stages.learner.images) is None:
        return ()
    scored = resolved.draw_size if "learner" in resolved.policy.needs else 0
    return images.forecast_step(resolved.run.reference_accounting, scored, resolved.run.batch_size)


def _scoring(resolved: Resolved, role: Role, actor: Actor) -> tuple[Pass, ...]:
    """Passes of an actor's scoring in a step of pairs new to this run."""
    run = resolved.run
    cascaded = run.cascade is not None and run.cascade.score == role
    own = actor.forecast_own_loss(resolved.candidates) if cascaded else ()
    # A pair that the cascade has scored is charged to the policy again only under online accounting.
    asked = role in resolved.policy.needs and not (cascaded and run.reference_accounting != "online")
    return (*own, *(actor.forecast(resolved.draw_size) if asked else ()))


def _cascade_pair(resolved: Resolved, stages: Stages) -> int:
    """FLOPs of one more new candidate of a cascade; 0 without a cascade."""
    if resolved.run.cascade is None or resolved.run.cascade.role is None:
        return 0
    actor = stages.scorer.actors[resolved.run.cascade.role]
    return flops_of(actor.forecast_own_loss(2)) - flops_of(actor.forecast_own_loss(1))


def pretraining(resolved: Resolved) -> dict[str, int | None]:
    """FLOPs of training the frozen models of a run, by role: read from their folders, forecast, or stated.

    ``None`` where they are not known.
    """
    found: dict[str, int | None] = {}
    for role, stands in resolved.stands_on.items():
        # The runs of two halves differ only in the half of the pool that they draw from.
        flops = ended(one).flops_all_in if isinstance(one := stands[0], Path) else _forecast(one)
        found[role] = None if flops is None else len(stands) * flops
    return found | resolved.stated_flops


def _known(flops: Mapping[str, int | None], roles: Collection[str]) -> int | None:
    """The sum over some roles; ``None`` where those of one are not known."""
    return known_total(amount for role, amount in flops.items() if role in roles)


def _forecast(resolved: Resolved) -> int | None:
    """FLOPs of a run that is not trained yet, with the pre-training of its frozen models; ``None`` where not known."""
    stages, data = _built_on(resolved)
    price, below = step_price_of(resolved, stages), pretraining(resolved)
    included = _known(below, resolved.run.limit.includes) or 0
    fitted = FLOPS_PER_MAC * calibrate.forecast(resolved, data, stages)[1] + own_scores.forecast(resolved, stages)
    charges, steps = bought_charges(resolved, stages, price, included + fitted)
    pretrained = _known(below, below)
    if pretrained is None:
        return None
    return fitted + charges.total(_counted_steps(resolved) if steps is None else steps) + pretrained


def bought_charges(resolved: Resolved, stages: Stages, price: StepPrice, taken: int) -> tuple[Charges, int | None]:
    """The charges of a run's steps, and how many steps ``run.budget`` buys (``None`` without a budget in FLOPs).

    Args:
        resolved: the run.
        stages: its stages.
        price: the price of one of its steps.
        taken: FLOPs that are taken out of the budget before the first step: pre-training, a calibration.
    """
    share = 0.0 if takes_all(resolved.policy) else resolved.run.select_from
    if resolved.run.budget is None:
        steps = _counted_steps(resolved)
        return charges_of(resolved, stages, price, steps, math.ceil(share * steps)), None
    budget = max(0, int(resolved.run.budget) + resolved.added_flops - taken)
    rungs = resolved.run.optimizer.rungs  # the schedule stands still between the first rung and the last one
    schedule = budget if not rungs else max(0, int(rungs[0]) + resolved.added_flops - taken)
    before = -(-math.ceil(share * schedule) // price.unselected)
    charges = charges_of(resolved, stages, price, budget // max(1, price.total - price.first_sight) + 1, before)
    return charges, charges.steps(budget)


def ladder_lines(resolved: Resolved, charges: Charges, taken: int) -> list[str]:
    """Lines on the rungs of a ladder: where each leaves the trunk and ends, and what all branches cost.

    Args:
        resolved: the run.
        charges: of its steps.
        taken: FLOPs of pre-training that are taken out of each rung.
    """
    rungs, cooldown = resolved.run.optimizer.rungs, resolved.run.optimizer.cooldown
    if not rungs:
        return []
    lines = [f"{'rung':<18}{'leaves at step':>22}{'ends at step':>22}{'FLOPs of its branch':>22}"]
    apart, added = 0, resolved.added_flops
    for rung in map(int, rungs):
        own = max(0, rung + added - taken)
        leaves = charges.steps(math.ceil((1 - cooldown) * own))
        ends = max(leaves + 1, charges.steps(own))
        branch = "on the trunk" if rung == rungs[-1] else f"{round(cooldown * own):,}"
        apart += 0 if rung == rungs[-1] else round(cooldown * own)
        lines.append(f"{rung:<18.4g}{leaves:>22,}{ends:>22,}{branch:>22}")
    trunk = max(0, int(rungs[-1]) + added - taken)
    lines.append(
        f"ladder in all: {trunk + apart:.4g} FLOPs, {trunk:.4g} on the trunk and {apart:.4g} in branches "
        "(flops/rungs, outside the total)"
    )
    return lines


def ladder_table(resolved: Resolved) -> str:
    """The rungs of a run's ladder as text; empty for a run without."""
    if not resolved.run.optimizer.rungs:
        return ""
    stages, _ = _built_on(resolved)
    taken = _taken(resolved) + own_scores.forecast(resolved, stages)
    charges, _ = bought_charges(resolved, stages, step_price_of(resolved, stages), taken)
    return "\n".join(ladder_lines(resolved, charges, taken))


def _taken(resolved: Resolved) -> int:
    """FLOPs of pre-training that are taken out of the budget."""
    if not resolved.run.limit.includes:
        return 0
    return resolved.run.taken(pretraining(resolved))


def _cascade_charged(resolved: Resolved) -> str:
    return {
        "online": "charged at every step, with the policy's own scoring",
        "first_sight": "charged once each, as they are met",
        "amortised": "shown apart, not charged",
    }[resolved.run.reference_accounting]


def convention_error(model: TwoTowers, price: Price, batch: Batch) -> float:
    """FLOPs of a pair's forward and backward by torch's counter, over the three forward passes that are charged.

    A little under 1: the gradient of pixels is not needed, so the patch embedding's backward pass costs one
    product instead of two.

    Args:
        model: the towers.
        price: the price of the towers under the full view.
        batch: its first pair gives the shapes.
    """
    return Price.of_training(model, batch).pair / (TRAINING_PASSES * price.pair)


def cheap_view(resolved: Resolved, model: TwoTowers) -> View | None:
    """The view of approximate scoring in the closed forms.

    The run's own where it scores under a view, else twice the patch size; ``None`` where the tower cannot run that.
    """
    patch = resolved.run.model.patch_size
    view = resolved.run.score_view or View(patch_size=2 * patch)
    try:
        view = model.checked(view)
    except ValueError:
        return None
    return None if view == FULL else view


def _closed_form_lines(resolved: Resolved, stages: Stages) -> list[str]:
    """Lines on the closed forms for this model, and on the view of their cheap passes."""
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
    """Lines on the cost of a pair, and on the error of the 3x convention for this model."""
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
    stages, data = _built_on(resolved)
    price, joined = joined_in(lambda: step_price_of(resolved, stages))
    run = resolved.run
    fitted_on, macs = calibrate.forecast(resolved, data, stages)
    pool = stages.super_batches.pool
    ranking = own_scores.forecast(resolved, stages)
    once = FLOPS_PER_MAC * macs + ranking
    taken = _taken(resolved) + once
    charges, steps = bought_charges(resolved, stages, price, taken)
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
        number = _counted_steps(resolved) if steps is None else steps
        lines.append(f"first sights in {number:,} steps: {sum(charges.new[: max(0, number - charges.before)]):,} FLOPs")
    if run.cascade is not None and pool is not None:
        lines.append(
            f"cascade: {resolved.candidates} candidates a step; one met for the first time costs "
            f"{price.cascade_pair:,} FLOPs, all {pool:,} of the pool {pool * price.cascade_pair:.4g} "
            f"({_cascade_charged(resolved)})"
        )
    if run.select_from and not takes_all(resolved.policy):
        lines.append(
            f"until {run.select_from:g} of the budget is spent, nothing is scored: {price.unselected:,} FLOPs a step"
        )
    if fitted_on:
        lines.append(f"calibrating the reference on {fitted_on:,} pairs: {FLOPS_PER_MAC * macs:,} FLOPs, once")
    if stages.pairs.ranked:
        count = sum(len(pairs) for _, pairs in stages.pairs.ranked)
        lines.append(f"own scores of {count:,} pairs, by which the split takes its top: {ranking:,} FLOPs, once")
    if steps is not None:
        walked = walk(resolved, stages)
        lines += [_bought(resolved, steps, pool, taken), *_epoch_lines(stages, walked, steps)]
        if resolved.run.data.is_prepared():  # of a stand-in nothing is wasted
            lines += [f"warning: {text}" for text in waste_warnings(resolved, stages, walked)]
        lines += ladder_lines(resolved, charges, taken)
    lines += [_to_pay(resolved, price, charges, steps, once)]
    lines.append(sent_line(Sizes.of(resolved, stages, joined)))
    return "\n".join([*lines, *_pair_lines(stages), *_closed_form_lines(resolved, stages)])


def factor_to_pay(price: StepPrice, charges: Charges, steps: int, once: int, pretrained: int) -> float:
    """By which factor an arm must need fewer steps than uniform to pay, all in: its cost a step over uniform's.

    n steps of the arm cost Σ_i c_i + once + pretrained FLOPs, for which uniform takes (…)/u steps; the factor is these
    over n. c_i holds the frozen models' scoring of the pairs that are new in step i alone, under ``first_sight``.

    Args:
        price: the price of one of its steps; ``uniform`` is u.
        charges: c_i.
        steps: n, those that its budget buys.
        once: FLOPs that are charged once, before the first step: a calibration.
        pretrained: FLOPs of training its frozen models, in the budget or beside it.
    """
    return (charges.total(steps) + once + pretrained) / (steps * price.uniform)


def _to_pay(resolved: Resolved, price: StepPrice, charges: Charges, steps: int | None, once: int) -> str:
    """A line on ``factor_to_pay``, at the configured budget."""
    number = _counted_steps(resolved) if steps is None else steps
    if number < 1:
        return "to pay, all in: the budget buys no step"
    # A reference that the budget adds and nothing scores with is no cost of the arm.
    below = pretraining(resolved)
    pretrained = _known(below, {*resolved.scored_by, *resolved.stated_flops})
    if pretrained is None:
        alone = factor_to_pay(price, charges, number, once, 0)
        return (
            f"to pay, without the reference's pre-training: {number:,} steps must do what uniform does in "
            f"{number * alone:,.0f}, a factor of {alone:.3f}; what the reference took is not known (pretrain_flops)"
        )
    alone, whole = (factor_to_pay(price, charges, number, once, flops) for flops in (0, pretrained))
    apart = f"; {alone:.3f} without the {pretrained:.4g} FLOPs of pre-training" if pretrained else ""
    return (
        f"to pay, all in: {number:,} steps must do what uniform does in {number * whole:,.0f}, a factor of "
        f"{whole:.3f}{apart}"
    )


def bought(resolved: Resolved, stages: Stages, walked: Mapping[str, Any], price: StepPrice) -> list[str]:
    """Lines on the steps and epochs that the budget is, and the pairs left out of each (``data_report.walk``)."""
    pool, taken = stages.super_batches.pool, _taken(resolved) + own_scores.forecast(resolved, stages)
    _, steps = bought_charges(resolved, stages, price, taken)
    if steps is None:
        return _epoch_lines(stages, walked, _counted_steps(resolved))
    return [_bought(resolved, steps, pool, taken), *_epoch_lines(stages, walked, steps)]


def _counted_steps(resolved: Resolved) -> int:
    """Steps of a run that counts steps or pairs."""
    limit = resolved.run.limit
    return limit.steps or -(-(limit.pairs or 0) // resolved.draw_size)


def _epoch_lines(stages: Stages, walked: Mapping[str, Any], steps: int) -> list[str]:
    if not walked.get("steps_an_epoch"):
        return []
    left = f"each without {walked['left_out_an_epoch']:,} pairs (too few for a step)"
    line = f"{epochs(walked, steps):.3g} epochs of a pool of {stages.super_batches.pool:,}, {left}"
    return [line, *(f"warning: {text}" for text in epoch_warning(walked, steps))]


def _row(name: str, flops: int, uniform: int) -> str:
    return f"{name:<18}{flops:>22,} {flops // FLOPS_PER_MAC:>21,}{flops / uniform:>16.3f}"


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
