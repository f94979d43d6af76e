"""The training loop. Every cost of a run goes through ``ledger.charge``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch, Selection
from jestbench.config.run import Resolved
from jestbench.cost.budget import BELOW_ONE, Allowance
from jestbench.cost.ledger import Ledger
from jestbench.data.pairs import Pairs
from jestbench.data.super_batches import SuperBatchSource
from jestbench.engine.actor import Update
from jestbench.engine.learner import Learner
from jestbench.engine.scorer import Scorer
from jestbench.evals.evaluate import Evaluator
from jestbench.runs.recorder import Recorder
from jestbench.seeds import update_seed
from jestbench.select import remembering
from jestbench.select.draws import uniform_draw
from jestbench.select.given import Moment, Remembered, pair_keys
from jestbench.select.memory import Memory
from jestbench.select.policy import choose, initial_state
from jestbench.select.remembering import remembered_names
from jestbench.select.scores import Scores

_WITH_STATE = ("ledger", "memory")
Status = Literal["finished", "interrupted"]


@dataclass
class Progress:
    """The counters and the policy state of a run so far; all fields go into a checkpoint.

    Attributes:
        step: steps done, of a ladder on the way that leads here.
        pairs_seen: pairs drawn into super-batches.
        pairs_trained: pairs trained on.
        seconds: of training.
        policy_state: of the policy.
        memory: what the policy remembers of pairs.
        ledger: what was spent.
        rungs: rungs of a ladder that are behind.
        branch: step at which the cool-down of the rung ahead left the trunk; ``None`` on the trunk.
        rung_flops: what the branches that are behind have spent beyond the trunk, their evaluation included.
    """

    step: int = 0
    pairs_seen: int = 0
    pairs_trained: int = 0
    seconds: float = 0.0
    policy_state: object = None
    memory: Memory = field(default_factory=Memory)
    ledger: Ledger = field(default_factory=Ledger)
    rungs: int = 0
    branch: int | None = None
    rung_flops: int = 0

    def state_dict(self) -> dict[str, Any]:
        """All fields as plain values, for a checkpoint."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {name: getattr(self, name).state_dict() for name in _WITH_STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        for name, value in state.items():
            if name in _WITH_STATE:
                getattr(self, name).load_state_dict(value)
            else:
                setattr(self, name, value)

    def share(self, allowance: Allowance) -> float:
        """Share of the budget spent; of a ladder, of the rung ahead."""
        share = allowance.share(self.ledger, self.step, self.pairs_seen, self.rungs)
        return min(share, BELOW_ONE) if self.step == self.branch else share  # a cool-down is at least one step

    def ended(self, allowance: Allowance) -> bool:
        """Whether the budget is spent, of a ladder the last rung."""
        return self.share(allowance) >= 1 and self.rungs >= len(allowance.rungs) - 1


def train(resolved: Resolved, stages: Stages, progress: Progress, allowance: Allowance, recorder: Recorder) -> Status:
    """Train until the budget is spent (the last step may overshoot it) or the process is asked to stop.

    Raises:
        NonFiniteLoss: the loss of a step is not finite; the message names the step.
        PolicyError: the policy's choice breaks its contract.
    """
    run, policy = resolved.run, resolved.policy
    progress.memory.limit = run.memory_bytes
    if progress.step == 0:
        progress.policy_state = initial_state(policy)
        progress.memory.clear(remembered_names(policy))
    recorder.start(progress)
    while (share := progress.share(allowance)) < 1 and not recorder.stop_asked:
        position = allowance.position(share, progress.ledger.total)
        with recorder.clock(progress):
            source = stages.super_batches
            source.begin(progress.step, partial(leave_out, resolved, progress, position))
            batch = source.at(progress.step)
            moment = Moment(position, source.epoch(progress.step), source.left_out())
            scores, selection = select(resolved, stages, progress, batch, moment)
            chosen = batch.take(selection.index_K)
            selects = position >= run.select_from
            update = stages.update(chosen, selection.weight_K, position, update_seed(run.seed, progress.step), selects)
            progress.ledger.charge((*batch.passes, *scores.passes, *update.passes))
            progress.policy_state = selection.state
            learn(resolved, progress, chosen, update, moment)
            progress.step += 1
            progress.pairs_seen += len(batch)
            progress.pairs_trained += len(chosen)
        recorder.step(progress, batch, selection, update, share, progress.share(allowance))
    return "finished" if progress.ended(allowance) else "interrupted"


def select(
    resolved: Resolved, stages: Stages, progress: Progress, batch: Batch, moment: Moment
) -> tuple[Scores, Selection]:
    """The policy's choice of a super-batch; before ``run.select_from`` a uniform one, for which nothing is scored."""
    run, policy = resolved.run, resolved.policy
    generator = seeds.generator(run.seed, "select", progress.step)
    if moment.share < run.select_from:
        index_K = uniform_draw(len(batch), run.batch_size, generator)
        return Scores(size=len(batch)), Selection(index_K, state=progress.policy_state)
    scores = stages.scorer(batch, policy.needs, moment, progress.memory)
    selection = choose(policy, scores, run.batch_size, generator, progress.policy_state, run.patience)
    progress.memory.write(pair_keys(batch.image_key_B, batch.text_key_B), selection.memory)
    return scores, selection


def leave_out(resolved: Resolved, progress: Progress, share: float, key_N: Tensor, epoch: int) -> Tensor:
    """Which pairs the policy leaves out of an epoch, bool ``[N]``; none before ``run.select_from``."""
    run, policy = resolved.run, resolved.policy
    if share < run.select_from or not isinstance(policy, remembering.LeavingPolicy):
        return torch.zeros(len(key_N), dtype=torch.bool)
    state = Remembered(progress.policy_state, progress.memory.read(key_N))
    generator = seeds.generator(run.seed, "leave", epoch)
    return remembering.leave_out(policy, key_N, state, Moment(share, epoch), generator)


def learn(resolved: Resolved, progress: Progress, chosen: Batch, update: Update, moment: Moment) -> None:
    """Hand the policy the losses of the training pass, where it learns from them."""
    if update.trained is None or not isinstance(resolved.policy, remembering.LearningPolicy):
        return
    key_K = pair_keys(chosen.image_key_B, chosen.text_key_B)
    trained, before = (
        replace(update.trained, progress=moment),
        Remembered(progress.policy_state, progress.memory.read(key_K)),
    )
    after = remembering.learn(resolved.policy, trained, before)
    progress.policy_state = after.state
    progress.memory.write(key_K, after.memory)


@dataclass(frozen=True)
class Stages:
    """The stages of a training step, in the loop's order."""

    pairs: Pairs
    super_batches: SuperBatchSource
    scorer: Scorer
    learner: Learner
    evaluator: Evaluator

    def update(self, batch: Batch, weight_K: Tensor | None, position: float, seed: int, beside: bool = True) -> Update:
        """Run the optimizer step of the learner and, on the same pairs, of every other actor in training.

        Args:
            batch: the chosen pairs.
            weight_K: loss weight of each pair, or ``None``.
            position: where the schedule stands.
            seed: for all randomness of this step.
            beside: whether the other actors are trained, too; not before ``run.select_from``.

        Returns:
            The learner's update, with the passes of all these actors.

        Raises:
            NonFiniteLoss: the loss of one of these actors is not finite.
        """
        update = self.learner.update(batch, weight_K, position, seed)
        for role, actor in self.scorer.actors.items():
            other = actor.update(batch, weight_K, position, seed) if beside and role != "learner" else None
            if other is not None:
                update = replace(update, passes=(*update.passes, *other.passes))
        return update
