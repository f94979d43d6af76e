"""What the steps of a run are charged, one after the other: frozen models by the pairs that are new to the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from jestbench import seeds
from jestbench.batch import DataError
from jestbench.config.resolved import Resolved
from jestbench.cost.ledger import flops_of
from jestbench.data.fetch import Positions
from jestbench.data.pairs import ReadPairs
from jestbench.data.super_batches import EpochPlan, StepPlan
from jestbench.engine.actor import Actor, Met
from jestbench.launch.own_scores import keys_at
from jestbench.launch.stages import plan_of
from jestbench.launch.step_price import StepPrice
from jestbench.loop import Stages
from jestbench.select.draws import uniform_draw

PAIRS, STEPS = 1 << 22, 1 << 14
"""Pairs, and steps, whose keys a forecast looks at; it takes those behind them for new in a split's first epoch."""


@dataclass(frozen=True, eq=False)
class Charges:
    """FLOPs of the steps of a run.

    Attributes:
        each: of a step in which the policy selects and no pair is new to the run.
        new: what scoring new pairs adds to each of the first of these steps; nothing to those behind them.
        before: steps before ``run.select_from``, for which the policy scores nothing.
        unselected: of such a step.
        drawn: of a cascade, the first steps of the run, in which its candidates are new, and what they add to each.
        early: what new images of a locked tower add to each of the first steps before ``run.select_from``.
    """

    each: int
    new: Sequence[int] = ()
    before: int = 0
    unselected: int = 0
    drawn: tuple[int, int] = (0, 0)
    early: Sequence[int] = ()

    def total(self, steps: int) -> int:
        """FLOPs of the first steps."""
        selecting = max(0, steps - self.before)
        return (steps - selecting) * self.unselected + selecting * self.each + self.sights(steps)

    def sights(self, steps: int) -> int:
        """FLOPs of scoring pairs that are new to the run, in the first steps."""
        first, more = self.drawn
        early = sum(self.early[: min(steps, self.before)])
        return early + sum(self.new[: max(0, steps - self.before)]) + min(steps, first) * more

    def steps(self, budget: int) -> int:
        """Steps until so many FLOPs are spent."""
        least, most = 0, -(-budget // (min(self.each, self.unselected) if self.before else self.each))
        while least < most:
            middle = (least + most) // 2
            least, most = (middle + 1, most) if self.total(middle) < budget else (least, middle)
        return least


def charges_of(resolved: Resolved, stages: Stages, price: StepPrice, most: int, before: int = 0) -> Charges:
    """The charges of a run's steps: exact where positions are known before anything is scored, up to ``PAIRS``.

    Where a cascade draws by a model, every candidate counts as new in the first pass over the pool, and so does every
    pair of a stream at every step.

    Args:
        stages: built with the shapes of the run, on its data or a stand-in.
        most: steps that are asked about, at most.
        before: steps before ``run.select_from``.

    Raises:
        DataError: the split does not fill a super-batch.
    """
    run, met = resolved.run, Met()
    uniform = uniform_charges(resolved, stages, price, before, met)
    found = Charges(price.total, (), before, uniform.each, early=uniform.new)
    if stages.super_batches.pool is None or run.reference_accounting != "first_sight" or not price.first_sight:
        return found
    found = replace(found, each=price.total - price.first_sight)
    if price.drawn:
        drawn = drawn_in(resolved, stages, price)
        return replace(found, new=[price.first_sight - price.drawn] * min(most, drawn[0]), drawn=drawn)
    if (plan := _plan(resolved, stages)) is None:
        return replace(found, new=[price.first_sight])
    scoring: list[Actor] = [
        actor for role, actor in stages.scorer.actors.items() if actor.remembers and role in resolved.policy.needs
    ]
    if (images := stages.learner.images) is not None:
        if "learner" not in resolved.policy.needs and resolved.draw_size > run.batch_size:
            # Which pairs are chosen, and with them which images are new, no forecast can tell.
            return replace(found, each=price.total)
        scoring.append(images)
    return replace(found, new=_sights(plan, scoring, most, before, met))


def uniform_charges(resolved: Resolved, stages: Stages, price: StepPrice, most: int, met: Met | None = None) -> Charges:
    """The charges of a run that has not come to ``run.select_from`` yet.

    Its choices are uniform, so that the images of a locked tower which are new to the run are known before anything is
    scored, but where a cascade or a stream draws them.

    Args:
        most: steps that are asked about, at most.
        met: takes up the images that these steps have met.
    """
    images, drawn, run = stages.learner.images, drawn_in(resolved, stages, price), resolved.run
    known = most and price.unselected_sights and not price.drawn and stages.super_batches.pool is not None
    if not known or images is None or (plan := _plan(resolved, stages)) is None:
        return Charges(price.unselected, drawn=drawn)
    met, new = Met() if met is None else met, list[int]()
    for step in range(min(most, STEPS, -(-PAIRS // plan.size))):
        positions = plan.positions(step, _unread)
        choice_K = uniform_draw(plan.size, run.batch_size, seeds.generator(run.seed, "select", step))
        keys = keys_at(plan.pairs.drawn(plan.seed, positions.epoch), positions.index_B[choice_K])
        new.append(flops_of(images.forecast_new(*keys, met)))
    last = min(most, max((source.per_epoch for source in _sources(plan).values()), default=0))
    new += [price.unselected_sights] * (last - len(new))
    return Charges(price.unselected - price.unselected_sights, new, drawn=drawn)


def _plan(resolved: Resolved, stages: Stages) -> StepPlan | None:
    """The plan of a run's super-batches; ``None`` on a stand-in, which may be smaller than one of them.

    Raises:
        DataError: the split does not fill a super-batch.
    """
    run = resolved.run
    try:
        return plan_of(run, stages.pairs, resolved.draw_size, stages.scorer.actors)
    except DataError:
        if run.data.is_prepared():
            raise
        return None


def _sources(plan: StepPlan) -> Mapping[str, EpochPlan]:
    """The plans of the splits that a plan draws from, each with epochs of its own."""
    return plan.sources or ({"": plan} if isinstance(plan, EpochPlan) else {})


def drawn_in(resolved: Resolved, stages: Stages, price: StepPrice) -> tuple[int, int]:
    """The steps of one pass over the pool, in which a cascade's candidates are new; FLOPs of their scores in each."""
    pool = stages.super_batches.pool
    if pool is None or resolved.run.reference_accounting != "first_sight" or not price.drawn:
        return 0, 0
    return max(1, pool // resolved.candidates), price.drawn


def _sights(plan: StepPlan, scoring: Sequence[Actor], most: int, before: int, met: Met) -> list[int]:
    """FLOPs of scoring the pairs that are new in each step behind so many, until there are none."""
    steps = range(before, before + min(most, STEPS, -(-PAIRS // plan.size)))
    found, sources = list(_by_keys(plan, scoring, steps, met)), _sources(plan)

    @cache
    def of_pairs(count: int) -> int:
        return sum(flops_of(actor.forecast(count)) for actor in scoring if count)

    last = min(most, max((source.per_epoch for source in sources.values()), default=0))
    return found + [
        of_pairs(sum(source.size for source in sources.values() if step < source.per_epoch))
        for step in range(len(found), last)
    ]


def _by_keys(plan: StepPlan, scoring: Sequence[Actor], steps: Iterable[int], met: Met) -> Iterator[int]:
    """FLOPs of scoring the pairs of each step whose keys were not met before; ends once every pair was drawn."""
    pairs = plan.pairs
    for role, ranked in pairs.ranked:  # what the split's top is taken by is charged before the first step
        for actor in scoring:
            if actor.role == role:
                actor.forecast_new(torch.from_numpy(np.asarray(ranked.image_key_N)), ranked.text_key_N, met)
    undrawn_N, left = np.ones(len(pairs), bool), len(pairs)
    for step in steps:
        positions = plan.positions(step, _unread)
        drawn, index = pairs.drawn(plan.seed, positions.epoch), positions.index_B.numpy()
        keys = keys_at(drawn, positions.index_B)
        yield sum(flops_of(actor.forecast_new(*keys, met)) for actor in scoring)
        left -= int(undrawn_N[index].sum())
        undrawn_N[index] = False
        if not left and not pairs.redraws:
            return


def _unread(positions: Positions) -> ReadPairs:
    raise AssertionError("positions are known before anything is read")
