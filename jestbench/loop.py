"""The training loop. Every cost of a run goes through ``ledger.charge``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch, Selection, split_counts
from jestbench.config.resolved import Resolved
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
    progress.memory.limit = resolved.run.memory_bytes
    if progress.step == 0:
        progress.policy_state = initial_state(resolved.policy)
        progress.memory.clear(remembered_names(resolved.policy))
    recorder.start(progress)
    while (share := progress.share(allowance)) < 1 and not recorder.stop_asked:
        turn = Turn(resolved, stages, progress, allowance.position(share, progress.ledger.total))
        with recorder.clock(progress):
            batch = turn.draw()
            scores = turn.score(batch)
            selection = turn.select(scores)
            chosen = turn.take(batch, selection)
            update = turn.update(chosen, selection)
            progress.ledger.charge((*batch.passes, *scores.passes, *update.passes))
            turn.keep(batch, selection, chosen, update)
        recorder.step(progress, batch, selection, update, share, progress.share(allowance))
    return "finished" if progress.ended(allowance) else "interrupted"


@dataclass(frozen=True)
class Turn:
    """One step of a run: its stages in order, and the policy's part in each of them.

    Attributes:
        resolved: the run and its policy.
        stages: the stages.
        progress: of the run before the step.
        position: where the schedule stands, a share of the budget.
    """

    resolved: Resolved
    stages: Stages
    progress: Progress
    position: float

    @property
    def selects(self) -> bool:
        """Whether the policy chooses: before ``run.select_from`` the choice is uniform and nothing is scored."""
        return self.position >= self.resolved.run.select_from

    def moment(self) -> Moment:
        """How far the run is, for the policy."""
        source = self.stages.super_batches
        return Moment(self.position, source.epoch(self.progress.step), source.left_out())

    def draw(self) -> Batch:
        """The next super-batch; where an epoch begins with it, the policy is asked which pairs to leave out."""
        self.stages.super_batches.begin(self.progress.step, self._leave_out)
        return self.stages.learner.tokenized(self.stages.super_batches.at(self.progress.step))

    def _leave_out(self, key_N: Tensor, epoch: int) -> Tensor:
        """Which pairs the policy leaves out of an epoch, bool ``[N]``."""
        run, policy, progress = self.resolved.run, self.resolved.policy, self.progress
        if not self.selects or not isinstance(policy, remembering.LeavingPolicy):
            return torch.zeros(len(key_N), dtype=torch.bool)
        before = Remembered(progress.policy_state, progress.memory.read(key_N))
        generator = seeds.generator(run.seed, "leave", epoch)
        return remembering.leave_out(policy, key_N, before, Moment(self.position, epoch), generator, run.patience)

    def score(self, batch: Batch) -> Scores:
        """What the policy asks for of a super-batch."""
        if not self.selects:
            return Scores(size=len(batch))
        return self.stages.scorer(batch, self.resolved.policy.needs, self.moment(), self.progress.memory)

    def select(self, scores: Scores) -> Selection:
        """The policy's choice.

        Raises:
            PolicyError: it breaks the contract.
        """
        run, before = self.resolved.run, self.progress.policy_state
        generator = seeds.generator(run.seed, "select", self.progress.step)
        if not self.selects:
            return Selection(uniform_draw(len(scores), run.batch_size, generator), state=before)
        return choose(self.resolved.policy, scores, run.batch_size, generator, before, run.patience)

    def take(self, batch: Batch, selection: Selection) -> Batch:
        """The chosen pairs; of each part that is trained under a view of its own, every process holds its share."""
        shares = [share for share, _ in self.resolved.run.mix]
        return batch.take(selection.index_K, split_counts(len(selection.index_K), shares))

    def update(self, chosen: Batch, selection: Selection) -> Update:
        """The optimizer steps on the chosen pairs."""
        seed = update_seed(self.resolved.run.seed, self.progress.step)
        return self.stages.update(chosen, selection.weight_K, self.position, seed, self.selects)

    def keep(self, batch: Batch, selection: Selection, chosen: Batch, update: Update) -> None:
        """Count the step, and keep what the policy remembers of it: its state, its memory, what training showed."""
        progress, policy, moment = self.progress, self.resolved.policy, self.moment()
        progress.policy_state = selection.state
        if selection.memory:
            progress.memory.write(pair_keys(batch.image_key_B, batch.text_key_B), selection.memory)
        if update.trained is not None and isinstance(policy, remembering.LearningPolicy):
            key_K = pair_keys(chosen.image_key_B, chosen.text_key_B)
            before = Remembered(progress.policy_state, progress.memory.read(key_K))
            trained = replace(update.trained, progress=moment, held_K=progress.memory.holds(key_K))
            after = remembering.learn(policy, trained, before, self.resolved.run.patience)
            progress.policy_state = after.state
            progress.memory.write(key_K, after.memory)
        progress.step += 1
        progress.pairs_seen += len(batch)
        progress.pairs_trained += len(chosen)


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
