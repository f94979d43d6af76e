"""The price of a run's step, by purpose, from the shapes of its stages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jestbench import seeds
from jestbench.batch import Pass, Purpose
from jestbench.config.resolved import Resolved
from jestbench.cost.ledger import Ledger, flops_of
from jestbench.cost.tracing import FLOPS_PER_MAC, TRAINING_PASSES
from jestbench.engine.actor import Actor
from jestbench.loop import Stages
from jestbench.select.policy import choose, initial_state
from jestbench.select.remembering import imagined
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
        drawn: FLOPs of the candidates of a step, all encountered for the first time; 0 without a cascade by a model.
        closed_form: cost relative to a uniform step by the paper's formulas (arXiv 2406.17711; towers
            only): train + r·learner/3 + r·frozen/3, r = B/b, each the price of a pair under the views
            of the run over its price under the full view; train is 1 without views. An online scorer adds
            its own train + r·scorer/3.
        unselected: FLOPs of a step before ``run.select_from``, for which the policy scores nothing; candidates of a
            cascade are among them where every pass is charged, and all images of a locked tower that are remembered.
        unselected_sights: FLOPs of those images, where each is charged when it is met for the first time.
    """

    flops: dict[Purpose, int]
    uniform: int
    closed_form: float
    first_sight: int = 0
    cascade_pair: int = 0
    drawn: int = 0
    unselected: int = 0
    unselected_sights: int = 0

    @property
    def total(self) -> int:
        """FLOPs of one step, all purposes."""
        return sum(self.flops.values())


def _selection_pass(resolved: Resolved, stages: Stages) -> Pass:
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
    return Pass("pairwise", scores.meter.macs * divisor, "selection")


def step_price(resolved: Resolved, stages: Stages) -> StepPrice:
    """Price a run's step on stages that were built with the shapes of the run."""
    actors, learner, batch_size = stages.scorer.actors, stages.learner, resolved.run.batch_size
    accounting = resolved.run.reference_accounting
    scoring = {role: _scoring(resolved, role, actor) for role, actor in actors.items()}
    once = [item for role, found in scoring.items() if actors[role].remembers for item in found]
    once = [] if accounting == "amortised" else once
    each = [item for role, found in scoring.items() if not actors[role].remembers for item in found]
    each += [item for actor in actors.values() for item in actor.forecast_update(batch_size)]
    uniform_images: tuple[Pass, ...] = ()
    if learner.images is not None:  # a locked tower, whose embeddings are remembered
        scored = resolved.draw_size if "learner" in resolved.policy.needs else 0
        (each if accounting == "online" else once).extend(learner.images.forecast_step(accounting, scored, batch_size))
        uniform_images = learner.images.forecast_step(accounting, 0, batch_size)
    towers = sum(item.macs for item in (*each, *once) if item.purpose not in ("pairwise", "recompute"))
    closed = towers / (TRAINING_PASSES * batch_size * learner.price.pair)
    uniform = flops_of([*learner.objective.plain().passes(learner, batch_size), *uniform_images])
    ledger = Ledger()
    ledger.charge([*each, *once, _selection_pass(resolved, stages)])
    spent = {purpose: FLOPS_PER_MAC * macs for purpose, macs in ledger.macs.items()}
    one, two, drawn = (_own_losses(resolved, stages, count) for count in (1, 2, resolved.candidates))
    unselected = flops_of([*learner.forecast_update(batch_size), *uniform_images])
    unselected += drawn if accounting == "online" else 0
    sights = flops_of(uniform_images) if accounting == "first_sight" else 0
    return StepPrice(spent, uniform, closed, flops_of(once), two - one, drawn, unselected, sights)


def _scoring(resolved: Resolved, role: Role, actor: Actor) -> tuple[Pass, ...]:
    """Passes of an actor's scoring in a step of pairs new to this run."""
    run = resolved.run
    cascaded = run.cascade is not None and run.cascade.score == role
    own = actor.forecast_own_loss(resolved.candidates) if cascaded else ()
    # A pair that the cascade has scored is charged to the policy again only under online accounting.
    asked = role in resolved.policy.needs and not (cascaded and run.reference_accounting != "online")
    return (*own, *(actor.forecast(resolved.draw_size) if asked else ()))


def _own_losses(resolved: Resolved, stages: Stages, count: int) -> int:
    """FLOPs of so many new candidates of a cascade; 0 without one that draws by a model."""
    if resolved.run.cascade is None or resolved.run.cascade.role is None:
        return 0
    return flops_of(stages.scorer.actors[resolved.run.cascade.role].forecast_own_loss(count))
