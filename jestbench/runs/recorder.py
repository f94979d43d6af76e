"""What a run leaves behind: rows, evaluations, checkpoints, a summary."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors.torch import load_file

from jestbench import seeds
from jestbench.batch import Batch, DataError, Selection
from jestbench.config.resolved import Resolved
from jestbench.cost.budget import Allowance
from jestbench.cost.ledger import Ledger
from jestbench.cost.tracing import FLOPS_PER_MAC
from jestbench.engine.actor import Actor, Update
from jestbench.engine.learner import NonFiniteLoss
from jestbench.evals.evaluate import points_reached
from jestbench.evals.results import Results
from jestbench.parallel.stop import STOP
from jestbench.parallel.traffic import TRAFFIC
from jestbench.runs import checkpoint, examples
from jestbench.runs.checkpoint import Place
from jestbench.runs.checkpoint_writer import CheckpointWriter
from jestbench.runs.chosen import Chosen
from jestbench.runs.folder import RUNG, RunFolder
from jestbench.runs.metrics_log import Metrics
from jestbench.runs.saved_model import WEIGHTS, save_model
from jestbench.runs.summary import Ending, ReferenceEntry, Summary, begun
from jestbench.runs.wandb_run import Value
from jestbench.select.contract import PolicyError, PolicyHang
from jestbench.select.given import equal_pairs
from jestbench.select.scores import NonFiniteScore

if TYPE_CHECKING:
    from jestbench.data.super_batches import SuperBatchSource, Waits
    from jestbench.loop import Progress, Stages

    Stateful: TypeAlias = Actor | SuperBatchSource | Progress | Chosen

STATE = "state.pt"
"""In a checkpoint's folder: all but the learner's weights."""
_COUNTED = ("read", "damaged", "wordless", "skipped", "duplicates", "evaluated", "outside_uids")
COUNTED = tuple(f"data/{name}" for name in _COUNTED)
"""Counts of pairs that the summary holds as ``data.counts``, where the data have them."""


@dataclass(frozen=True)
class KnownAtStart:
    """What a summary holds that is known before the first step.

    Attributes:
        pretrain: FLOPs of each model's pre-training; ``None`` where they are not known.
        references: that the run is scored with.
        data: facts about the data.
        fingerprints: of the data.
        warnings: about the run.
    """

    pretrain: Mapping[str, int | None]
    references: Sequence[ReferenceEntry]
    data: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    warnings: Sequence[str]


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

    With several processes every rank calls it, and rank 0 writes.

    Attributes:
        metrics: where rows go; set before the first step, and after a checkpoint has been restored.
        stop_asked: whether the run is to stop after this step, as its processes have agreed.
    """

    metrics: Metrics

    def __init__(self, resolved: Resolved, stages: Stages, allowance: Allowance, run_dir: Path) -> None:
        self.resolved, self.stages, self.allowance = resolved, stages, allowance
        self.run_dir = run_dir
        self.world = stages.learner.world
        self.stop_asked = False
        self.final: dict[str, float] = {}
        self.results = Results({})
        self._counted: Mapping[str, float] = stages.scorer.cache_counts()
        self.data_counts: Mapping[str, float] = {}
        self._exchanged_at = 0
        self.chosen = Chosen(resolved.run.log.chosen)
        self.checkpoints = CheckpointWriter(run_dir, self.world)

    @contextmanager
    def clock(self, progress: Progress) -> Iterator[None]:
        """Add the time spent inside to ``time/seconds``; name the step of an error of the models or the policy.

        Where the policy is to blame, a checkpoint of the step before is written: the mended policy goes on from there.
        """
        parts: tuple[SuperBatchSource | Actor, ...] = (self.stages.super_batches, *self._actors())
        start, seconds, marks = time.perf_counter(), progress.seconds, [part.mark() for part in parts]
        updates, _ = self.stages.learner.mark()
        try:
            with STOP.ending("after"), self._named(progress):
                yield
        except PolicyError as error:
            progress.seconds = seconds
            trained = self.stages.learner.mark()[0] != updates  # it cannot be undone
            for part, mark in zip(parts, marks, strict=True):
                part.rewind(mark)
            raise self._blamed(error, progress, trained) from error.__cause__
        finally:
            progress.seconds += time.perf_counter() - start

    def _actors(self) -> list[Actor]:
        """All actors, the learner first."""
        return [self.stages.learner, *(a for a in self.stages.scorer.actors.values() if a is not self.stages.learner)]

    def _blamed(self, error: PolicyError, progress: Progress, trained: bool) -> PolicyError:
        """The same error with policy, step and the checkpoint to go on from.

        It is written now, but for a hang, and where the step has ``trained`` the learner already.
        """
        self.checkpoints.settle()
        newest = self.world.first(RunFolder(self.run_dir).newest_checkpoint)
        if not trained and not isinstance(error, PolicyHang):
            newest = self.save(progress)
        on = f"its newest checkpoint is {newest.name}; mend the policy and go on with --resume" if newest else ""
        what = f"step {progress.step}: policy {self.resolved.policy_name!r}: {error}"
        return type(error)(f"{what}: {on}" if on else what)

    @contextmanager
    def _named(self, progress: Progress) -> Iterator[None]:
        """Name the step of a loss or score that is not finite."""
        try:
            yield
        except (NonFiniteLoss, NonFiniteScore) as error:
            mend = "lower optimizer.learning_rate, or look at the data of that step"
            step = progress.step - getattr(error, "late", False)
            raise NonFiniteLoss(f"step {step}: {error}: {mend}") from error

    def start(self, progress: Progress) -> None:
        """Evaluate the untrained model and write a first checkpoint; neither when resuming, even from step 0."""
        if self.world.first(RunFolder(self.run_dir).newest_checkpoint) is None:
            self.metrics.write(self._row(progress, self._evaluate(progress)))
            self.save(progress)  # waited for: a disk that refuses the first one is found before any step
        self._agree_to_stop()
        self._turn(progress)
        TRAFFIC.since_last()
        self._exchanged_at = progress.step

    def _agree_to_stop(self) -> None:
        """Read whether a process of the run was asked to stop; once, so that a run that stops writes its checkpoint.

        Raises:
            StorageError: the checkpoint that is being written cannot be written.
        """
        if not self.stop_asked and self.world.any(STOP.asked or self.checkpoints.failed):
            self.checkpoints.settle()
            self.stop_asked = True

    def step(
        self,
        progress: Progress,
        batch: Batch,
        selection: Selection,
        update: Update,
        before: float,
        after: float,
    ) -> None:
        """Everything that follows a step; of a ladder, the way into a branch or back to the trunk.

        Points of evaluation and of checkpoints lie evenly on the way to the rung ahead, which is the same on the trunk,
        in its branch, and in a run that has more rungs behind this one.
        """
        run = self.resolved.run
        self.chosen.add(batch, selection, self.stages.super_batches.uid_of)
        self._agree_to_stop()
        evaluate = run.evaluate.due(before, after)
        checkpointed = points_reached(before, run.checkpoints) < points_reached(after, run.checkpoints)
        table = None if progress.branch is not None else self._examples(progress.step, batch, selection, before, after)
        written = evaluate or table is not None or self.metrics.due(progress.step)
        if written or checkpointed or self.stop_asked:
            with self.clock(progress):  # a GPU may still be at work on the step, whose time it is
                update.measured.read()
        found = self._evaluate(progress) if evaluate else {}
        if evaluate:
            self._agree_to_stop()
        if written:
            train = {
                "train/loss": update.loss,
                "train/learning_rate": update.learning_rate,
                "train/gradient_norm": update.gradient_norm,
                "train/scale": self.stages.learner.model.scale_and_bias()[0],
                "train/equal_pairs": equal_pairs(*(keys[selection.index_K.cpu()] for keys in batch.keys)),
            }
            chosen = dict(selection.statistics) | diagnostics(batch, selection)
            self.metrics.write(self._row(progress, train | chosen | found), table)
        if after >= 1 and self.world.first_of_all:
            RunFolder(self.run_dir).write_results(self._budget(progress), self.results)
        whole = self.allowance.share(progress.ledger, progress.step, progress.pairs_seen, -1)
        self.metrics.progress(whole, progress.pairs_seen, progress.ledger.total, progress.seconds)
        if self.stop_asked or checkpointed:
            self.save(progress, behind=not self.stop_asked and after < 1)
        if not self.stop_asked:
            self._turn(progress)

    def _turn(self, progress: Progress) -> None:
        """Enter the branch of a rung whose cool-down begins; leave that of a rung which is reached.

        Entering writes a checkpoint of the trunk, and leaving goes back to it, as a resumed run does: so the trunk goes
        on as if there had been no branch. The last rung's cool-down is the trunk's own end, from which the run goes
        back only once rungs are appended.
        """
        allowance = self.allowance
        while allowance.rungs and not progress.ended(allowance):
            share = progress.share(allowance)
            if progress.branch is None and share >= 1 - allowance.cooldown:
                self.save(progress, behind=True)
                progress.branch = progress.step
            elif progress.branch is not None and share >= 1:
                self._leave(progress)
            else:
                return

    def _leave(self, progress: Progress) -> None:
        """Go back to where the branch left the trunk, with the rung behind and what the branch spent on record."""
        assert progress.branch is not None
        self.checkpoints.settle()
        left, back = (Place(progress.branch, rungs) for rungs in (progress.rungs, progress.rungs + 1))
        checkpoints, spent = RunFolder(self.run_dir).checkpoints, progress.rung_flops + progress.ledger.with_evaluation

        def fill(folder: Path) -> None:
            shutil.copytree(checkpoints / left.name, folder, dirs_exist_ok=True)
            state, trunk = torch.load(folder / STATE, weights_only=True), Ledger()
            trunk.load_state_dict(state["progress"]["ledger"])
            state["progress"] |= {"rungs": back.rungs, "rung_flops": spent - trunk.with_evaluation}
            torch.save(state, folder / STATE)

        # Written before the row stores are cut to the trunk's: the branch's own checkpoints need them as they are.
        self.world.first(lambda: checkpoint.write(self.run_dir, back, fill))
        self.restore(progress, checkpoints / back.name)

    def _budget(self, progress: Progress) -> int:
        """FLOPs at which the schedule ends: of the rung ahead, or of the run."""
        if self.allowance.rungs:
            return self.allowance.rungs[progress.rungs]
        asked = self.resolved.run.budget
        return progress.ledger.total if asked is None else int(asked) + self.allowance.added

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
        with TRAFFIC.sending("evaluation"):
            found = self.stages.evaluator(self.stages.learner)
        progress.ledger.charge(found.passes)
        self.final, self.results = dict(found.metrics), found.results
        return self.final

    def _row(self, progress: Progress, more: Mapping[str, Value]) -> dict[str, Value]:
        steps, self._exchanged_at = progress.step - self._exchanged_at, progress.step
        sent = TRAFFIC.since_last() if self.world.size > 1 and steps > 0 else {}
        own = self.stages.scorer.cache_counts(), sent, self.stages.super_batches.waits
        cached, sent_by_each, waits = zip(*self.world.everybodys(own), strict=True)
        self._counted, counts = _summed(cached), self._count_data(progress, waits)
        exchanged = {
            f"exchange/{name}": round(total / self.world.size / steps, 6 if name == "seconds" else 1)
            for name, total in _summed(sent_by_each).items()
        }
        # To the trunk belongs the last rung's cool-down.
        branched = progress.branch is not None and progress.rungs < len(self.allowance.rungs) - 1
        return {
            "step": progress.step,
            **({RUNG: self._budget(progress)} if branched else {}),
            "pairs/seen": progress.pairs_seen,
            "pairs/trained": progress.pairs_trained,
            **progress.ledger.row(),
            **({"flops/rungs": progress.rung_flops} if self.allowance.rungs else {}),
            "time/seconds": round(progress.seconds, 6),
            **self._counted,
            **exchanged,
            **counts,
            **(progress.memory.counts() if progress.memory.columns else {}),
            **more,
        }

    def _count_data(self, progress: Progress, waits: Sequence[Waits] | None = None) -> dict[str, float]:
        """The counts of the data so far, of which some are kept for the summary."""
        counts = self.stages.super_batches.counts(progress.step, waits)
        self.data_counts = {name.removeprefix("data/"): counts[name] for name in COUNTED if name in counts}
        return counts

    def save(self, progress: Progress, behind: bool = False) -> Path:
        """Write a checkpoint, ``behind`` while training goes on (``CheckpointWriter.write``); return its folder."""
        place = Place(progress.step, progress.rungs, progress.branch)
        if behind and self.checkpoints.begun(place):
            return RunFolder(self.run_dir).checkpoints / place.name
        # Every process flushes its row stores to disk before rank 0 writes how many rows they hold.
        with self._named(progress):
            state = {name: part.state_dict() for name, part in self._stateful(progress).items()} | {"final": self.final}
        state["data"] = self._data()

        def fill(folder: Path, state: dict[str, Any]) -> None:
            weights = state["learner"].pop("model")
            save_model(folder, weights, self.resolved.run, self.stages.learner.model)
            torch.save(state, folder / STATE)

        return self.checkpoints.write(place, state, fill, behind)

    def _stateful(self, progress: Progress) -> dict[str, Stateful]:
        """All of a run that a checkpoint keeps the state of, by name."""
        found: dict[str, Stateful] = {role: actor for role, actor in self.stages.scorer.actors.items()}
        return {**found, "super_batches": self.stages.super_batches, "progress": progress, "chosen": self.chosen}

    def _data(self) -> dict[str, str]:
        """The data that a run trains and is evaluated on, by their fingerprints, and its tokenizer."""
        pairs, evaluated = self.stages.pairs, self.stages.evaluator.pairs
        identity = self.stages.super_batches.tokenizer.identity
        prints = {f"the data {pairs.name}": pairs.fingerprint, f"the data {evaluated.name}": evaluated.fingerprint}
        return {**prints, "the tokenizer": identity}

    def restore(self, progress: Progress, folder: Path) -> None:
        """Go back to a checkpoint.

        Raises:
            DataError: data or tokenizer are other ones than when it was written.
        """
        state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
        now = self._data()
        # The fingerprint of data depends on the tokenizer, too.
        changed = [name for name in reversed(now) if state["data"].get(name) != now[name]]
        if changed:
            raise DataError(
                f"{' and '.join(changed)} changed since {folder.name} was written: bring the old files back, or start "
                "the run anew in another --run_dir"
            )
        state["learner"]["model"] = load_file(folder / WEIGHTS)
        for name, part in self._stateful(progress).items():
            part.load_state_dict(state[name])
        self.final = state["final"]
        self._count_data(progress)  # a run that was killed behind its last step writes no further row
        self.chosen.begin(progress.step, state["chosen"]["on"])

    def write_chosen(self) -> None:
        """Write what was chosen, where the run counts it."""
        if self.chosen.on and self.world.first_of_all:
            self.chosen.write(RunFolder(self.run_dir).chosen, self.stages.pairs.uid_of)

    def summary(self, progress: Progress, status: Ending, known: KnownAtStart) -> Summary:
        """What the run amounts to."""
        run, actors, allowance = self.resolved.run, self.stages.scorer.actors, self.allowance
        spent_apart = {"rungs": progress.rung_flops} if allowance.rungs else {}
        return replace(
            begun(self.resolved, allowance, status),
            steps=progress.step,
            pairs_seen=progress.pairs_seen,
            pairs_trained=progress.pairs_trained,
            overshoot=None if allowance.flops is None else progress.ledger.total - allowance.flops,
            flops=progress.ledger.flops() | spent_apart,
            macs_total=progress.ledger.macs_total,
            flops_amortised=FLOPS_PER_MAC * sum(actor.amortised_macs for actor in actors.values()),
            pretrain_flops=dict(known.pretrain),
            seconds=progress.seconds,
            cache=dict(self._counted) if run.cache is not None else None,
            measures=self.stages.evaluator.measures,
            metrics=self.final,
            references=tuple(known.references),
            data=known.data,
            warnings=tuple(known.warnings),
            fingerprints=known.fingerprints,
            appended=tuple(RunFolder(self.run_dir).identity().get("appended", ())),
        )


def _summed(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Counts by name, summed over the processes; all give the same names."""
    return {name: sum(counts[name] for counts in each) for name in each[0]}
