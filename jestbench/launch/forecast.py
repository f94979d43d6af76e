"""Forecasts what a run's budget buys and what its pre-training costs, before anything is trained."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jestbench.batch import FULL, Batch, View
from jestbench.config.resolved import Resolved
from jestbench.cost.budget import Pretrained
from jestbench.cost.closed_forms import FILTER_RATIOS, closed_forms
from jestbench.cost.price import Price
from jestbench.cost.tracing import FLOPS_PER_MAC, TRAINING_PASSES
from jestbench.data.pairs import Dataset
from jestbench.data.splits import least_draw
from jestbench.launch import calibrate, own_scores
from jestbench.launch.charges import Charges, charges_of, uniform_charges
from jestbench.launch.data_report import epoch_warning, epochs, walk, waste_warnings
from jestbench.launch.demonstration_warnings import Proportions, toy_warnings, view_size_warnings
from jestbench.launch.exchange_forecast import StepSizes, joined_in, sent_line
from jestbench.launch.stages import build_stages
from jestbench.launch.stands import ended, stand_ins, with_start
from jestbench.launch.step_price import StepPrice, step_price
from jestbench.loop import Stages
from jestbench.model.towers import TwoTowers
from jestbench.runs.summary import known_total
from jestbench.select.remembering import takes_all


class RunForecast:
    """What the budget of a run buys, and what its frozen models cost it.

    Attributes:
        resolved: the run.
        stages: built with the shapes of the run, on its data or a stand-in.
        price: of a step.
        calibrated: pairs that the reference is calibrated on; 0 where it is not.
        calibration: FLOPs of that.
        ranking: FLOPs of the own scores that the split takes its top by.
    """

    def __init__(self, resolved: Resolved, stages: Stages, data: Dataset) -> None:
        self.resolved, self.stages = resolved, stages
        self.price, self._joined = joined_in(lambda: step_price(resolved, stages))
        self.calibrated, self.calibration = calibrate.forecast_calibration(resolved, data, stages)
        self.ranking = own_scores.forecast_ranking(resolved, stages)

    @classmethod
    def of(cls, resolved: Resolved) -> RunForecast:
        """Forecast a run on models without values; data and frozen models may be stand-ins."""
        resolved = with_start(resolved)
        run = replace(resolved.run, reference_accounting="online", cache=None)
        data, castings = stand_ins(resolved, "meta")
        few = min(least_draw(run.split), resolved.draw_size)
        with tempfile.TemporaryDirectory() as folder:
            stages = build_stages(replace(resolved, run=run), data, castings, Path(folder), few, shapes=True)
        return cls(resolved, stages, data)

    @property
    def sizes(self) -> StepSizes:
        """What the bytes that the run's processes send depend on."""
        return StepSizes.of(self.resolved, self.stages, self._joined)

    @cached_property
    def below(self) -> dict[Pretrained, RunForecast]:
        """Forecasts of the runs that train its frozen models on demand, by role; one of the two for two halves."""
        first = {role: stands[0] for role, stands in self.resolved.stands_on.items()}
        return {role: RunForecast.of(one) for role, one in first.items() if isinstance(one, Resolved)}

    @cached_property
    def pretrained(self) -> dict[str, int | None]:
        """FLOPs of training the run's frozen models, by role: read from their folders, forecast, or stated.

        ``None`` where they are not known.
        """
        found: dict[str, int | None] = {}
        for role, stands in self.resolved.stands_on.items():
            # The runs of two halves differ only in the half of the pool that they draw from.
            flops = ended(one).flops_all_in if isinstance(one := stands[0], Path) else self.below[role].all_in
            found[role] = None if flops is None else len(stands) * flops
        return found | self.resolved.stated_flops

    @property
    def once(self) -> int:
        """FLOPs that are charged before the first step."""
        return self.calibration + self.ranking

    @cached_property
    def taken(self) -> int:
        """FLOPs that the first step finds spent: ``once``, and the pre-training that ``budget.includes`` takes out.

        Raises:
            ValueError: what is to be taken out is not known.
        """
        return self.once + (self.resolved.run.taken(self.pretrained) if self.resolved.run.limit.includes else 0)

    @cached_property
    def charges(self) -> Charges:
        """What the steps are charged."""
        run, price = self.resolved.run, self.price
        share = 0.0 if takes_all(self.resolved.policy) else run.select_from
        if run.budget is None:
            return charges_of(self.resolved, self.stages, price, self.steps, math.ceil(share * self.steps))
        # The schedule stands still between the first rung and the last one.
        schedule = self.left_of(run.optimizer.rungs[0] if run.optimizer.rungs else run.budget)
        spent = math.ceil(share * schedule)
        most = spent // max(1, price.unselected - price.unselected_sights) + 1 if spent else 0
        before = uniform_charges(self.resolved, self.stages, price, most).steps(spent)
        most = self.left_of(run.budget) // max(1, price.total - price.first_sight) + 1
        return charges_of(self.resolved, self.stages, price, most, before)

    def left_of(self, budget: float) -> int:
        """FLOPs of the steps of a budget, or of a rung."""
        return max(0, int(budget) + self.resolved.added_flops - self.taken)

    @cached_property
    def steps(self) -> int:
        """Steps until the budget is spent."""
        run = self.resolved.run
        if run.budget is not None:
            return self.charges.steps(self.left_of(run.budget))
        return run.limit.steps or -(-(run.limit.pairs or 0) // self.resolved.draw_size)

    @property
    def all_in(self) -> int | None:
        """FLOPs of the whole run, and of the training of its frozen models; ``None`` where those are not known."""
        return known_total((self.once, self.charges.total(self.steps), *self.pretrained.values()))


def sizes(resolved: Resolved) -> StepSizes:
    """What the bytes that a run's processes send depend on; data and reference may be stand-ins."""
    return RunForecast.of(resolved).sizes


def price_table(resolved: Resolved) -> str:
    """The price of a step, and what the budget buys, as text."""
    forecast = RunForecast.of(resolved)
    run, stages, price = resolved.run, forecast.stages, forecast.price
    lines = [
        f"arm {run.arm}: b = {run.batch_size}, B = {resolved.draw_size}, "
        f"filter ratio {1 - run.batch_size / resolved.draw_size:.2f}, {run.reference_accounting} accounting",
        f"{'purpose':<18}{'FLOPs a step':>22}{'MACs a step':>22}{'x uniform step':>16}",
        *(_row(purpose, flops, price.uniform) for purpose, flops in price.flops.items() if flops),
        _row("total", price.total, price.uniform),
        f"closed form, towers only: {price.closed_form:.3f}",
        *_first_sight_lines(forecast),
    ]
    if run.select_from and not takes_all(resolved.policy):
        lines.append(
            f"until {run.select_from:g} of the budget is spent, nothing is scored: {price.unselected:,} FLOPs a step"
        )
    if forecast.calibrated:
        lines.append(
            f"calibrating the reference on {forecast.calibrated:,} pairs: {forecast.calibration:,} FLOPs, once"
        )
    if stages.pairs.ranked:
        count = sum(len(pairs) for _, pairs in stages.pairs.ranked)
        lines.append(
            f"own scores of {count:,} pairs, by which the split takes its top: {forecast.ranking:,} FLOPs, once"
        )
    if run.budget is not None:
        walked = walk(resolved, stages)
        lines += bought(forecast, walked)
        if run.data.is_prepared():  # of a stand-in nothing is wasted
            lines += [f"warning: {text}" for text in waste_warnings(resolved, stages, walked)]
        lines += ladder_lines(forecast)
    lines += [f"warning: {text}" for text in _of_the_demonstration(forecast)]
    lines += [_to_pay(forecast), sent_line(forecast.sizes)]
    return "\n".join([*lines, *_pair_lines(stages), *_closed_form_lines(resolved, stages)])


def _of_the_demonstration(forecast: RunForecast) -> list[str]:
    """Warnings of frozen models and of views that are the demonstration's."""
    resolved, stages = forecast.resolved, forecast.stages
    steps = {role: forecast.below[role].steps for role in resolved.scored_by if role in forecast.below}
    toys = toy_warnings(resolved, Proportions.of(resolved, stages), steps)
    return [*view_size_warnings(resolved, stages), *toys.values()]


def _row(name: str, flops: int, uniform: int) -> str:
    return f"{name:<18}{flops:>22,} {flops // FLOPS_PER_MAC:>21,}{flops / uniform:>16.3f}"


def _first_sight_lines(forecast: RunForecast) -> list[str]:
    """Lines on pairs that are encountered for the first time, by the policy and by a cascade."""
    resolved, price, pool = forecast.resolved, forecast.price, forecast.stages.super_batches.pool
    lines, accounting = [], resolved.run.reference_accounting
    if price.first_sight and accounting == "first_sight":
        rest = (price.total - price.first_sight) / price.uniform
        lines.append(f"once every pair has been seen: {rest:.3f}")
        lines.append(f"first sights in {forecast.steps:,} steps: {forecast.charges.sights(forecast.steps):,} FLOPs")
    if resolved.run.cascade is not None and pool is not None:
        charged = {
            "online": "charged at every step, with the policy's own scoring",
            "first_sight": "charged once each, as they are met",
            "amortised": "shown apart, not charged",
        }[accounting]
        lines.append(
            f"cascade: {resolved.candidates} candidates a step; one met for the first time costs "
            f"{price.cascade_pair:,} FLOPs, all {pool:,} of the pool {pool * price.cascade_pair:.4g} ({charged})"
        )
    return lines


def bought(forecast: RunForecast, walked: Mapping[str, Any]) -> list[str]:
    """Lines on the steps and epochs that the budget is, and the pairs left out of each (``data_report.walk``)."""
    resolved, pool, steps = forecast.resolved, forecast.stages.super_batches.pool, forecast.steps
    run, lines = resolved.run, []
    if run.budget is not None:
        note = "" if run.data.is_prepared() else " (for the stand-in's pool: the data is not prepared yet)"
        less = f", less {forecast.taken:.4g} for pre-training," if forecast.taken else ""
        drawn_from = "a stream" if pool is None else f"a pool of {pool:,}"
        lines.append(
            f"a budget of {int(run.budget) + resolved.added_flops:.4g} FLOPs{less} buys {steps:,} steps, "
            f"{steps * resolved.draw_size:,} pairs seen, {steps * run.batch_size:,} trained on, of {drawn_from}{note}"
        )
    if walked.get("steps_an_epoch"):
        left = f"each without {walked['left_out_an_epoch']:,} pairs (too few for a step)"
        lines.append(f"{epochs(walked, steps):.3g} epochs of a pool of {pool:,}, {left}")
        lines += [f"warning: {text}" for text in epoch_warning(walked, steps)]
    return lines


def ladder_lines(forecast: RunForecast) -> list[str]:
    """Lines on the rungs of a ladder: where each leaves the trunk and ends, and what all branches cost."""
    rungs, cooldown = forecast.resolved.run.optimizer.rungs, forecast.resolved.run.optimizer.cooldown
    if not rungs:
        return []
    lines = [f"{'rung':<18}{'leaves at step':>22}{'ends at step':>22}{'FLOPs of its branch':>22}"]
    apart = 0
    for rung in rungs:
        own = forecast.left_of(rung)
        leaves = forecast.charges.steps(math.ceil((1 - cooldown) * own))
        ends = max(leaves + 1, forecast.charges.steps(own))
        branch = "on the trunk" if rung == rungs[-1] else f"{round(cooldown * own):,}"
        apart += 0 if rung == rungs[-1] else round(cooldown * own)
        lines.append(f"{int(rung):<18.4g}{leaves:>22,}{ends:>22,}{branch:>22}")
    trunk = forecast.left_of(rungs[-1])
    lines.append(
        f"ladder in all: {trunk + apart:.4g} FLOPs, {trunk:.4g} on the trunk and {apart:.4g} in branches "
        "(flops/rungs, outside the total)"
    )
    return lines


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


def _to_pay(forecast: RunForecast) -> str:
    """A line on ``factor_to_pay``, at the configured budget."""
    steps, resolved = forecast.steps, forecast.resolved
    if steps < 1:
        return "to pay, all in: the budget buys no step"
    # A reference that the budget adds and nothing scores with is no cost of the arm.
    costs = {*resolved.scored_by, *resolved.stated_flops}
    pretrained = known_total(flops for role, flops in forecast.pretrained.items() if role in costs)
    alone, whole = (
        factor_to_pay(forecast.price, forecast.charges, steps, forecast.once, flops) for flops in (0, pretrained or 0)
    )
    if pretrained is None:
        return (
            f"to pay, without the reference's pre-training: {steps:,} steps must do what uniform does in "
            f"{steps * alone:,.0f}, a factor of {alone:.3f}; what the reference took is not known (pretrain_flops)"
        )
    apart = f"; {alone:.3f} without the {pretrained:.4g} FLOPs of pre-training" if pretrained else ""
    return (
        f"to pay, all in: {steps:,} steps must do what uniform does in {steps * whole:,.0f}, a factor of "
        f"{whole:.3f}{apart}"
    )


def _one(stages: Stages) -> Batch:
    return stages.learner.model.tokenized(stages.pairs.example())


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


def convention_error(model: TwoTowers, price: Price, batch: Batch) -> float:
    """FLOPs of a pair's forward and backward by torch's counter, over the three forward passes that are charged.

    A little under 1: the gradient of pixels is not needed, so the patch embedding's backward pass costs one
    product instead of two.

    Args:
        price: the price of the towers under the full view.
        batch: its first pair gives the shapes.
    """
    return Price.of_training(model, batch).pair / (TRAINING_PASSES * price.pair)


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
