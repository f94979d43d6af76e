"""The training loop. Every cost of a run goes through ``ledger.charge``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch
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
from jestbench.select.policy import choose, initial_state

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
    ledger: Ledger = field(default_factory=Ledger)
    rungs: int = 0
    branch: int | None = None
    rung_flops: int = 0

    def state_dict(self) -> dict[str, Any]:
        """All fields as plain values, for a checkpoint."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {"ledger": self.ledger.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        for name, value in state.items():
            if name != "ledger":
                setattr(self, name, value)
        self.ledger.load_state_dict(state["ledger"])

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
    if progress.step == 0:
        progress.policy_state = initial_state(policy)
    recorder.start(progress)
    while (share := progress.share(allowance)) < 1 and not recorder.stop_asked:
        position = allowance.position(share, progress.ledger.total)
        with recorder.clock(progress):
            batch = stages.super_batches.at(progress.step)
            scores = stages.scorer(batch, policy.needs)
            generator = seeds.generator(run.seed, "select", progress.step)
            selection = choose(policy, scores, run.batch_size, generator, progress.policy_state, run.patience)
            chosen = batch.take(selection.index_K)
            update = stages.update(chosen, selection.weight_K, position, update_seed(run.seed, progress.step))
            progress.ledger.charge((*batch.passes, *scores.passes, *update.passes))
            progress.policy_state = selection.state
            progress.step += 1
            progress.pairs_seen += len(batch)
            progress.pairs_trained += len(chosen)
        recorder.step(progress, batch, selection, update, share, progress.share(allowance))
    return "finished" if progress.ended(allowance) else "interrupted"


@dataclass(frozen=True)
class Stages:
    """The stages of a training step, in the loop's order."""

    pairs: Pairs
    super_batches: SuperBatchSource
    scorer: Scorer
    learner: Learner
    evaluator: Evaluator

    def update(self, batch: Batch, weight_K: Tensor | None, position: float, seed: int) -> Update:
        """Run the optimizer step of the learner and, on the same pairs, of every other actor in training.

        Returns:
            The learner's update, with the passes of all these actors.

        Raises:
            NonFiniteLoss: the loss of one of these actors is not finite.
        """
        update = self.learner.update(batch, weight_K, position, seed)
        for role, actor in self.scorer.actors.items():
            beside = None if role == "learner" else actor.update(batch, weight_K, position, seed)
            if beside is not None:
                update = replace(update, passes=(*update.passes, *beside.passes))
        return update
