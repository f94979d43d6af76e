"""What a run leaves behind: rows, evaluations, checkpoints, a summary."""

from __future__ import annotations

import json
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

from jestbench import checkpoint
from jestbench.batch import Batch, Selection
from jestbench.evals import points_reached
from jestbench.learner import NonFiniteLoss, Update
from jestbench.ledger import Allowance, Ledger
from jestbench.metrics import Metrics, Value
from jestbench.run import Resolved
from jestbench.scores import NonFiniteScore
from jestbench.stages import Stages

if TYPE_CHECKING:
    from jestbench.loop import Progress


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def diagnostics(batch: Batch, selection: Selection) -> dict[str, float]:
    """Share of the marked pairs (noisy, curated …) among the chosen and in the super-batch."""
    index_K = selection.index_K.cpu()
    found: dict[str, float] = {}
    for name, mark_B in batch.marks.items():
        found[f"select/share_{name}"] = float(mark_B[index_K].double().mean())
        found[f"select/share_{name}_super_batch"] = float(mark_B.double().mean())
    return found


class Recorder:
    """Writes rows, evaluates, checkpoints; the loop calls it once a step."""

    def __init__(
        self, resolved: Resolved, stages: Stages, allowance: Allowance, run_dir: Path, metrics: Metrics
    ) -> None:
        self.resolved, self.stages, self.allowance = resolved, stages, allowance
        self.run_dir, self.metrics = run_dir, metrics
        self.stop_asked = False
        self.final: dict[str, float] = {}
        self._previous: dict[signal.Signals, Any] = {}

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Turn the first SIGINT or SIGTERM into a request to stop after the step; a second one kills."""

        def ask(number: int, frame: FrameType | None) -> None:
            self.stop_asked = True
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
            raise NonFiniteLoss(f"step {progress.step}: {error}") from error
        finally:
            progress.seconds += time.perf_counter() - start

    def start(self, progress: Progress) -> None:
        """Evaluate the untrained model; nothing when resuming, from the checkpoint at step 0 neither."""
        if checkpoint.newest(self.run_dir) is None:
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
        evaluate = run.evaluate.due(before, after)
        found = self._evaluate(progress) if evaluate else {}
        if evaluate or self.metrics.due(progress.step):
            train = {
                "train/loss": update.loss,
                "train/learning_rate": update.learning_rate,
                "train/gradient_norm": update.gradient_norm,
                "train/scale": self.stages.learner.model.scale_and_bias()[0],
            }
            chosen = dict(selection.statistics) | diagnostics(batch, selection)
            self.metrics.write(self._row(progress, train | chosen | found))
        self.metrics.progress(after, progress.pairs_seen, progress.ledger.total, progress.seconds)
        if self.stop_asked or points_reached(before, run.checkpoints) < points_reached(after, run.checkpoints):
            self.save(progress)

    def _evaluate(self, progress: Progress) -> dict[str, float]:
        found, passes = self.stages.evaluator(self.stages.learner)
        progress.ledger.charge(passes)
        self.final = dict(found)
        return self.final

    def _row(self, progress: Progress, more: Mapping[str, Value]) -> dict[str, Value]:
        reference = self.stages.scorer.reference
        return {
            "step": progress.step,
            "pairs/seen": progress.pairs_seen,
            "pairs/trained": progress.pairs_trained,
            **progress.ledger.row(),
            "time/seconds": round(progress.seconds, 6),
            "cache/hits": reference.hits if reference is not None else 0,
            **self.stages.super_batches.counts(progress.step),
            **more,
        }

    def save(self, progress: Progress) -> None:
        """Write a checkpoint."""
        learner, reference = self.stages.learner, self.stages.scorer.reference
        run = self.resolved.run

        def fill(folder: Path) -> None:
            tensors = {name: value.detach().cpu().contiguous() for name, value in learner.model.state_dict().items()}
            save_file(tensors, folder / "model.safetensors")
            tokenizer = self.stages.super_batches.tokenizer
            write_json(
                folder / "model.json",
                {
                    "model": asdict(run.model),
                    "loss": run.loss,
                    "tokenizer": tokenizer.definition,
                    "length": tokenizer.length,
                    "pad": tokenizer.pad,
                    "end": tokenizer.end,
                    "train_views": [[share, asdict(view)] for share, view in run.mix],
                },
            )
            state = {
                "optimizer": learner.state(),
                "step": progress.step,
                "pairs_seen": progress.pairs_seen,
                "pairs_trained": progress.pairs_trained,
                "seconds": progress.seconds,
                "macs": dict(progress.ledger.macs),
                "reference": reference.state() if reference is not None else None,
                "policy": progress.policy_state,
                "data": self.stages.super_batches.state(),
                "final": self.final,
            }
            torch.save(state, folder / "state.pt")

        checkpoint.write(self.run_dir, progress.step, fill)

    def restore(self, progress: Progress, folder: Path) -> None:
        """Go back to a checkpoint: model, optimizer, ledger, positions, the reference's embeddings."""
        learner, reference = self.stages.learner, self.stages.scorer.reference
        learner.model.load_state_dict(load_file(folder / "model.safetensors"))
        state = torch.load(folder / "state.pt", weights_only=True)
        learner.optimizer.load_state_dict(state["optimizer"])
        progress.step, progress.seconds = state["step"], state["seconds"]
        progress.pairs_seen, progress.pairs_trained = state["pairs_seen"], state["pairs_trained"]
        progress.ledger = Ledger(state["macs"])
        if reference is not None:
            reference.restore(state["reference"])
        progress.policy_state = state["policy"]
        self.stages.super_batches.restore(state["data"])
        self.final = state["final"]

    def summary(
        self, progress: Progress, status: str, pretrain: Mapping[str, int], more: Mapping[str, Any]
    ) -> dict[str, Any]:
        """``summary.json``."""
        resolved, reference = self.resolved, self.stages.scorer.reference
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
            "flops_amortised": 2 * reference.amortised_macs if reference is not None else 0,
            "pretrain_flops": dict(pretrain),
            "pretrain_in_budget": self.allowance.pretrain,
            "seconds": progress.seconds,
            "metrics": self.final,
            **more,
        }
