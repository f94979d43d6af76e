"""What a run leaves behind: rows, evaluations, checkpoints, a summary."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from jestbench import seeds
from jestbench.batch import Batch, Selection
from jestbench.config.run import Resolved
from jestbench.cost.budget import Allowance
from jestbench.cost.ledger import Ledger
from jestbench.cost.tracing import FLOPS_PER_MAC
from jestbench.disk import write_json
from jestbench.engine.learner import NonFiniteLoss, Update
from jestbench.evals.evaluate import points_reached
from jestbench.runs import checkpoint, examples
from jestbench.runs.metrics_log import Metrics
from jestbench.runs.saved_model import kind_of
from jestbench.runs.wandb_run import Value
from jestbench.select.scores import NonFiniteScore

if TYPE_CHECKING:
    from jestbench.loop import Progress, Stages


def diagnostics(batch: Batch, selection: Selection) -> dict[str, float]:
    """Share of the marked pairs (noisy, curated …) among the chosen and in the super-batch."""
    index_K = selection.index_K.cpu()
    found: dict[str, float] = {}
    for name, mark_B in batch.marks.items():
        found[f"select/share_{name}"] = float(mark_B[index_K].double().mean())
        found[f"select/share_{name}_super_batch"] = float(mark_B.double().mean())
    return found


class Recorder:
    """Writes rows, evaluates, checkpoints; the loop calls it once a step.

    Under several processes all of them do so together, and the first one writes.
    """

    def __init__(
        self, resolved: Resolved, stages: Stages, allowance: Allowance, run_dir: Path, metrics: Metrics
    ) -> None:
        self.resolved, self.stages, self.allowance = resolved, stages, allowance
        self.run_dir, self.metrics = run_dir, metrics
        self.world = stages.learner.world
        self.stop_asked = False
        self._asked_here = False
        self.final: dict[str, float] = {}
        self._counted: Mapping[str, float] = stages.scorer.cache_counts()
        self._previous: dict[signal.Signals, Any] = {}

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Turn the first SIGINT or SIGTERM into a request to stop after the step; a second one kills."""

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked_here = True
            self.stop_asked = self.stop_asked or self.world.size == 1  # several agree first, after the step
            signal.signal(number, self._previous[signal.Signals(number)])

        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, ask)
        except ValueError:  # not in the main thread: signals stay with their owner
            self._previous.clear()
        try:
            yield
        finally:
            for caught, handler in self._previous.items():
                signal.signal(caught, handler)

    @contextmanager
    def clock(self, progress: Progress) -> Iterator[None]:
        """Add the time spent inside to ``time/seconds``; name the step of a loss or score that is not finite."""
        start = time.perf_counter()
        try:
            yield
        except (NonFiniteLoss, NonFiniteScore) as error:
            mend = "lower optimizer.learning_rate, or look at the data of that step"
            raise NonFiniteLoss(f"step {progress.step}: {error}: {mend}") from error
        finally:
            progress.seconds += time.perf_counter() - start

    def start(self, progress: Progress) -> None:
        """Evaluate the untrained model; nothing when resuming, from the checkpoint at step 0 neither."""
        if self.world.first(lambda: checkpoint.newest(self.run_dir)) is None:
            self.metrics.write(self._row(progress, self._evaluate(progress)))
            self.save(progress)

    def step(
        self,
        progress: Progress,
        batch: Batch,
        selection: Selection,
        update: Update,
        before: float,
        after: float,
    ) -> None:
        """Everything that follows a step."""
        run = self.resolved.run
        if self.world.size > 1:
            self.stop_asked = self.world.any(self._asked_here)
        evaluate = run.evaluate.due(before, after)
        found = self._evaluate(progress) if evaluate else {}
        table = self._examples(progress.step, batch, selection, before, after)
        if evaluate or table is not None or self.metrics.due(progress.step):
            train = {
                "train/loss": update.loss,
                "train/learning_rate": update.learning_rate,
                "train/gradient_norm": update.gradient_norm,
                "train/scale": self.stages.learner.model.scale_and_bias()[0],
            }
            chosen = dict(selection.statistics) | diagnostics(batch, selection)
            self.metrics.write(self._row(progress, train | chosen | found), table)
        self.metrics.progress(after, progress.pairs_seen, progress.ledger.total, progress.seconds)
        if self.stop_asked or points_reached(before, run.checkpoints) < points_reached(after, run.checkpoints):
            self.save(progress)

    def _examples(
        self, step: int, batch: Batch, selection: Selection, before: float, after: float
    ) -> examples.ExampleTable | None:
        """A table of chosen and refused pairs, written, where one is due."""
        log, seed = self.resolved.run.log, self.resolved.run.seed
        if not log.examples:
            return None
        if step > 1 and points_reached(before, log.examples) == points_reached(after, log.examples):
            return None
        generator = seeds.generator(seed, "examples", step)
        table = examples.pick(step, batch, selection, log.examples_count, generator)
        if self.world.first_of_all:
            examples.save(table, self.run_dir)
        return table

    def _evaluate(self, progress: Progress) -> dict[str, float]:
        found, passes = self.stages.evaluator(self.stages.learner)
        progress.ledger.charge(passes)
        self.final = dict(found)
        return self.final

    def _row(self, progress: Progress, more: Mapping[str, Value]) -> dict[str, Value]:
        self._counted = self.world.summed(self.stages.scorer.cache_counts())
        return {
            "step": progress.step,
            "pairs/seen": progress.pairs_seen,
            "pairs/trained": progress.pairs_trained,
            **progress.ledger.row(),
            "time/seconds": round(progress.seconds, 6),
            **self._counted,
            **self.stages.super_batches.counts(progress.step),
            **more,
        }

    def save(self, progress: Progress) -> None:
        """Write a checkpoint."""
        learner, frozen = self.stages.learner, self.stages.scorer.frozen
        online, run = self.stages.scorer.online, self.resolved.run
        # Every process brings what it remembers to the disk before the first says how much that is.
        data = self.stages.super_batches.state()
        remembered: dict[str, Any] = {role: self.world.everybodys(model.state()) for role, model in frozen.items()}

        def fill(folder: Path) -> None:
            tensors = {name: value.detach().cpu().contiguous() for name, value in learner.model.state_dict().items()}
            save_file(tensors, folder / "model.safetensors")
            tokenizer = self.stages.super_batches.tokenizer
            write_json(
                folder / "model.json",
                {
                    "format": checkpoint.FORMAT,
                    "processes": self.world.size,
                    "model": asdict(run.model),
                    "loss": run.loss,
                    "tokenizer": tokenizer.definition,
                    "length": tokenizer.length,
                    "pad": tokenizer.pad,
                    "end": tokenizer.end,
                    "train_views": [[share, asdict(view)] for share, view in run.mix],
                    **kind_of(run),
                },
            )
            state: dict[str, Any] = {
                "optimizer": learner.state(),
                "step": progress.step,
                "pairs_seen": progress.pairs_seen,
                "pairs_trained": progress.pairs_trained,
                "seconds": progress.seconds,
                "macs": dict(progress.ledger.macs),
                "policy": progress.policy_state,
                "online_scorer": online.checkpoint() if online is not None else None,
                "data": data,
                "final": self.final,
            }
            state |= remembered
            torch.save(state, folder / "state.pt")

        self.world.first(lambda: checkpoint.write(self.run_dir, progress.step, fill))

    def restore(self, progress: Progress, folder: Path) -> None:
        """Go back to a checkpoint: model, optimizer, ledger, positions, what frozen models remember."""
        learner = self.stages.learner
        state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
        learner.model.load_state_dict(load_file(folder / "model.safetensors"))
        learner.optimizer.load_state_dict(state["optimizer"])
        progress.step, progress.seconds = state["step"], state["seconds"]
        progress.pairs_seen, progress.pairs_trained = state["pairs_seen"], state["pairs_trained"]
        progress.ledger = Ledger(state["macs"])
        for role, model in self.stages.scorer.frozen.items():
            model.restore(state[role][self.world.rank])
        if self.stages.scorer.online is not None:
            self.stages.scorer.online.restore(state["online_scorer"])
        progress.policy_state = state["policy"]
        self.stages.super_batches.restore(state["data"])
        self.final = state["final"]

    def summary(
        self, progress: Progress, status: str, pretrain: Mapping[str, int], more: Mapping[str, Any]
    ) -> dict[str, Any]:
        """``summary.json``."""
        resolved, frozen = self.resolved, self.stages.scorer.frozen
        overshoot = None
        if self.allowance.flops is not None:
            overshoot = progress.ledger.total - self.allowance.flops
        return {
            "arm": resolved.run.arm,
            "policy": resolved.policy_name,
            "config_hash": resolved.config_hash,
            "seed": resolved.run.seed,
            "status": status,
            "steps": progress.step,
            "pairs_seen": progress.pairs_seen,
            "pairs_trained": progress.pairs_trained,
            "budget": None if resolved.run.budget is None else int(resolved.run.budget),
            "overshoot": overshoot,
            "flops": progress.ledger.flops(),
            "macs_total": progress.ledger.macs_total,
            "flops_amortised": FLOPS_PER_MAC * sum(model.amortised_macs for model in frozen.values()),
            "pretrain_flops": dict(pretrain),
            "pretrain_in_budget": self.allowance.pretrain,
            "added_to_budget": self.allowance.added,
            "seconds": progress.seconds,
            **({"cache": self._counted} if resolved.run.cache is not None else {}),
            "learning_rate": resolved.run.optimizer.learning_rate,
            "measures": {name: asdict(measure) for name, measure in self.stages.evaluator.measures.items()},
            "metrics": self.final,
            **more,
        }
