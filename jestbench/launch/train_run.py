"""Trains a resolved configuration, and first the frozen models that it needs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jestbench.batch import DataError
from jestbench.config.log import WandB
from jestbench.config.resolved import Resolved
from jestbench.config.run import ConfigError
from jestbench.cost.budget import Allowance, Pretrained
from jestbench.cost.ledger import flops_of
from jestbench.data.pairs import Wrapped
from jestbench.data.splits import names_in, shown_split
from jestbench.launch import own_scores
from jestbench.launch.calibrate import calibrate
from jestbench.launch.data_report import (
    epoch_warning,
    epochs,
    eval_sets,
    overlap_warnings,
    set_warnings,
    streamed_warning,
    walk,
    waste_warnings,
)
from jestbench.launch.demonstration_warnings import (
    Proportions,
    printed,
    steps_taken,
    toy_warnings,
    view_size_warnings,
)
from jestbench.launch.interruption import record_interruption
from jestbench.launch.reference_entries import entries
from jestbench.launch.served import check_served
from jestbench.launch.stages import build_stages, view_warnings
from jestbench.launch.stands import castings_of, of_run, pretrained_folder, spent_pretraining, with_start
from jestbench.launch.text_report import text_warnings
from jestbench.loop import Progress, Stages, Status, train
from jestbench.parallel import distributed
from jestbench.parallel.locks import locked
from jestbench.parallel.shared_disk import check_shared
from jestbench.parallel.stop import STOP
from jestbench.runs.checkpoint import Place, newest_whole
from jestbench.runs.damage_page import write_damage
from jestbench.runs.folder import RunFolder
from jestbench.runs.hold_folder import HOLDER, held
from jestbench.runs.metrics_log import Jsonl, Metrics
from jestbench.runs.open_folder import open_folder
from jestbench.runs.recorder import KnownAtStart, Recorder
from jestbench.runs.saved_model import ForeignCheckpoint, check_format
from jestbench.runs.summary import Ending
from jestbench.runs.wandb_run import Label, WandBSink

RunKind = Literal["arm", "reference", "scorer"]


def ensure_pretrained(resolved: Resolved) -> dict[Pretrained, tuple[Path, ...]]:
    """The finished runs of the frozen models that a run scores with, by role, trained now if they are not in the cache.

    Raises:
        DataError: the given folder holds no finished run, or training did not finish.
    """
    return {
        role: tuple(_ensure(resolved, stand, role) for stand in stands) for role, stands in resolved.scored_by.items()
    }


def _ensure(resolved: Resolved, stand: Resolved | Path, role: Pretrained) -> Path:
    """The finished run of one frozen model. Of two runs that need it, one waits; a killed training resumes."""
    world = distributed.world()
    if isinstance(stand, Resolved):
        with of_run(stand):
            world.in_turn(stand.run.data.prepare)
        world.first(lambda: check_served(resolved))  # now that its tokenizer is known
    folder = pretrained_folder(stand, role)
    if isinstance(stand, Resolved) and not _finished(folder):
        lock = locked(Path(f"{folder}.lock"), f"training {folder.name}")
        with _entered_by_first(lock):
            if not _finished(folder):
                if world.first_of_all:
                    print(f"training the {role} {stand.run.arm!r} into {folder}", file=sys.stderr)
                with of_run(stand):
                    status = _trained(_beside(stand, resolved), folder, role)
                if status == "interrupted":
                    raise KeyboardInterrupt
    if not _finished(folder):
        raise DataError(f"{folder} holds no finished run to take as a {role}: give a run folder or a .gin file")
    check_shared(RunFolder(folder).summary_json, world, f"the {role} in")
    return folder


def _finished(folder: Path) -> bool:
    """Whether a folder holds a finished run, as read by rank 0."""
    return distributed.world().first(RunFolder(folder).has_finished)


def _has_ended(run_dir: Path) -> bool:
    """Whether the run in a folder has finished; a summary that cannot be read is written anew, and stops no resume."""
    try:
        return RunFolder(run_dir).has_finished()
    except DataError as error:
        print(f"warning: {error}: it is written anew", file=sys.stderr)
        return False


@contextmanager
def _entered_by_first(context: AbstractContextManager[None]) -> Iterator[None]:
    """Enter a context on rank 0 alone; the other ranks wait until it is entered."""
    stack = ExitStack()
    distributed.world().first(lambda: stack.enter_context(context))
    with stack:
        yield


def _trained(resolved: Resolved, folder: Path, role: RunKind) -> Status:
    """Train a frozen model on all ranks; a pair scorer on rank 0 alone, while the other ranks wait."""

    def train_anew_if_foreign() -> Status:
        try:
            return train_run(resolved, folder, True, role)
        except ForeignCheckpoint:  # half trained by another version
            distributed.world().first(lambda: shutil.rmtree(folder))
            return train_run(resolved, folder, True, role)

    def by_one() -> Status:
        with distributed.alone():
            return train_anew_if_foreign()

    return train_anew_if_foreign() if resolved.run.training.together else distributed.world().first(by_one)


def _beside(reference: Resolved, asking: Resolved) -> Resolved:
    """A frozen model's run, with the W&B settings of the run that needs it unless it has its own."""
    if reference.run.wandb != WandB():
        return reference
    wandb = replace(asking.run.wandb, name="")
    return replace(reference, run=replace(reference.run, wandb=wandb))


@contextmanager
def building() -> Iterator[None]:
    """Turn an error of a constructor (timm's, torch's, ours) into a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except DataError as error:
        if error.exit_status == ConfigError.exit_status:  # a model of another library that cannot be run here
            raise ConfigError(str(error)) from error
        raise
    except (ValueError, TypeError, ArithmeticError, AssertionError, RuntimeError, MemoryError) as error:
        said = str(error) if isinstance(error, ValueError) else f"cannot be built: {type(error).__name__}: {error}"
        raise ConfigError(said) from error


def train_run(resolved: Resolved, run_dir: Path, resume: bool, role: RunKind = "arm") -> Status:
    """Train one arm into a folder; the frozen models that it needs first.

    Args:
        resume: go on in a folder that holds this run.
        role: ``arm``, or the role of a frozen model, which becomes its job type in W&B.

    Raises:
        ConfigError: the folder cannot be used, or the configuration cannot be built.
        DataError: the data is wrong or missing, or the checkpoint to go on from is another version's.
        NonFiniteLoss: the loss of a step is not finite.
        KeyboardInterrupt: it was asked to stop where no step is done; the summary's status is ``interrupted``.
    """
    STOP.check()
    distributed.world().first(lambda: check_served(resolved))
    with _entered_by_first(held(run_dir)):
        check_shared(run_dir / HOLDER, distributed.world(), "the run folder")
        try:
            with building():
                resolved = with_start(resolved)
            return _train_run(resolved, run_dir, resume, role)
        except KeyboardInterrupt:
            if distributed.world().first_of_all:
                with STOP.ending("after"):
                    record_interruption(resolved, run_dir)
            raise


def begun_as(resolved: Resolved) -> str:
    """The name under which the folder of an arm is kept for processes that torchrun starts again."""
    return f"run_dir/{resolved.config_hash}/{resolved.run.seed}"


def _stages(resolved: Resolved, folders: Mapping[Pretrained, Sequence[Path]], store_dir: Path) -> Stages:
    """The stages of a run on its data, with the models of finished runs."""
    data, castings = resolved.run.data, castings_of(folders)
    rank = partial(own_scores.own_scores, resolved, data, castings)
    return build_stages(resolved, data, castings, store_dir, rank=rank)


def _train_run(resolved: Resolved, run_dir: Path, resume: bool, role: RunKind) -> Status:
    world = distributed.world()
    with STOP.ending("after"):  # half a folder would not be taken for this run's
        going_on = world.first(lambda: open_folder(resolved, run_dir, resume))
    if role == "arm":
        distributed.remember(begun_as(resolved), str(run_dir))
    STOP.check()
    if going_on and world.first(lambda: _has_ended(run_dir)):
        return "finished"
    folder = RunFolder(run_dir)
    try:
        world.in_turn(resolved.run.data.prepare)
        folders = ensure_pretrained(resolved)
        STOP.check()
        pretrain = spent_pretraining(resolved, folders)
        with building():
            allowance = resolved.run.allowance(pretrain, resolved.added_flops)
            stages = _stages(resolved, folders, folder.row_stores)
            check_affordable(resolved, stages, allowance)
        newest = _reached(run_dir) if going_on else None
        place = None if newest is None else Place.of(newest)
        progress, rungs = Progress(), allowance.rungs
        recorder = Recorder(resolved, stages, allowance, run_dir)
        if newest is None:
            with building():
                own_scores.charge(stages, progress, allowance)
                calibrate(resolved, resolved.run.data, stages, progress, allowance)
        else:
            recorder.restore(progress, newest)
        references = entries(resolved, stages, folders.get("reference", ()))
        facts = _facts(resolved, stages)
        toys = toy_warnings(resolved, Proportions.of(resolved, stages), steps_taken(resolved, folders))
        warnings = [*warned(resolved, stages, facts["walk"]), *printed(toys.values())]
        known = KnownAtStart(pretrain, references, facts, _fingerprints(resolved, stages), warnings)
        # Not before the checkpoint has been loaded: what it cannot replace must not be cut off.
        world.first(lambda: Jsonl.cut(folder.metrics_jsonl, lambda row: bool(place and place.follows(row, rungs))))
        recorder.metrics = _metrics(resolved, run_dir, role, place)
    except Exception:
        if not going_on and world.first_of_all:  # no step was taken: free the folder for the mended command
            shutil.rmtree(run_dir, ignore_errors=True)
        raise
    with _ended_when_it_fails(recorder, progress, known), STOP.ending("soon"):
        status = train(resolved, stages, progress, allowance, recorder)
        recorder.checkpoints.settle()
    with STOP.ending("after"):
        _end(recorder, progress, status, known)
    world.first(lambda: None)  # every rank waits until rank 0 has written the summary
    return "finished" if status == "finished" else "interrupted"


@contextmanager
def _ended_when_it_fails(recorder: Recorder, progress: Progress, known: KnownAtStart) -> Iterator[None]:
    """End a run that fails or is interrupted in here: its summary is written, where it can be."""
    try:
        yield
    except BaseException as error:
        with STOP.ending("after"):
            try:
                _end(recorder, progress, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed", known)
            except (OSError, DataError) as second:  # the first error is the one that the user is to mend
                print(f"warning: while the run ended: {second}", file=sys.stderr)
        raise


def _end(recorder: Recorder, progress: Progress, status: Ending, known: KnownAtStart) -> None:
    """Write the summary of a run that ends, however it ends, and close what it has open."""
    stages, folder, summary = recorder.stages, RunFolder(recorder.run_dir), dict[str, Any]()
    with ExitStack() as closing:  # all is closed, whatever cannot be written
        for actor in stages.scorer.actors.values():
            # The rows of a ladder stay: more rungs may be appended, and what was charged must be charged once.
            closing.callback(actor.close, status == "finished" and not recorder.allowance.rungs)
        closing.callback(stages.super_batches.close)
        closing.callback(recorder.checkpoints.close)
        closing.callback(lambda: recorder.metrics.close(summary, failed=status == "failed"))
        recorder.write_chosen()
        summary |= _write_summary(recorder, progress, status, known)
    with suppress(OSError):  # the last process to leave finds it empty
        folder.row_stores.rmdir()


def _write_summary(recorder: Recorder, progress: Progress, status: Ending, known: KnownAtStart) -> dict[str, Any]:
    """Write the summary of a run, and the page of its damage; return the summary."""
    stages, folder, walked = recorder.stages, RunFolder(recorder.run_dir), known.data["walk"]
    data = {**known.data, "walk": {**walked, "epochs": epochs(walked, progress.step)}, "counts": recorder.data_counts}
    warnings = [*known.warnings, *epoch_warning(walked, progress.step)]
    warnings += streamed_warning(stages, recorder.data_counts)
    if recorder.world.first_of_all:
        sources = {**data.get("sources", {}), "evaluated": stages.evaluator.pairs.facts}
        page = {**data, "sources": sources, "damage_read": stages.super_batches.damage}
        if write_damage(folder.damage_page, page):
            data |= {"damage_page": folder.damage_page.name}
    summary = recorder.summary(progress, status, replace(known, data=data, warnings=warnings))
    if recorder.world.first_of_all:
        folder.write_summary(summary)
    return summary.to_json()


def _reached(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, as read by rank 0; ``None`` where there is none.

    Raises:
        DataError: there are checkpoints, and none is whole.
        ForeignCheckpoint: another version wrote it.
    """
    world, folder = distributed.world(), RunFolder(run_dir)

    def look() -> Path | None:
        newest = folder.newest_checkpoint()
        if newest is not None:
            check_format(newest)
        found, passed = newest_whole(run_dir)
        for line in (*(f"checkpoint passed over: {one}" for one in passed), *folder.read_rows()[1]):
            print(f"warning: {line}", file=sys.stderr)
        return found

    return world.first(look)


def _metrics(resolved: Resolved, run_dir: Path, role: RunKind, place: Place | None) -> Metrics:
    """Open the metrics sinks of a run that resumes from a place; ``None`` is a new run.

    Raises:
        ConfigError: W&B refuses the run.
    """
    run = resolved.run
    if not distributed.world().first_of_all:
        return Metrics(run_dir, None, run.log, "", writes=False)
    name = f"{run.arm}-seed{run.seed}"
    sink = None
    if run.wandb.resolved() != "disabled":
        flat = dict(resolved.flat) | {"config_hash": resolved.config_hash}
        label = Label(
            name=name if place is None else f"{name}-from{place.step}",
            job_type=resolved.policy_name if role == "arm" else role,
            own_id=place is not None,
            in_sweep=role == "arm",
        )
        with building():
            sink = WandBSink(run.wandb, run_dir, label, flat)
    return Metrics(run_dir, sink, run.log, f"{run.arm} seed {run.seed}")


def _facts(resolved: Resolved, stages: Stages) -> dict[str, Any]:
    data = resolved.run.data
    found: dict[str, Any] = {"data": type(data).__name__.lower(), "split": shown_split(resolved.run.split)}
    found["loss"], found["pairs"] = resolved.run.loss, stages.super_batches.pool
    found["eval_images"] = len(stages.evaluator.index_N)
    found["eval_classes"] = len(stages.evaluator.example_C)
    if hasattr(data, "noise"):
        found["noise"] = data.noise
    found["microbatches"], found["walk"] = stages.learner.micro.described(), walk(resolved, stages)
    if sets := eval_sets(stages):
        found["eval_sets"] = sets
    return found | dict(stages.pairs.facts)


def _fingerprints(resolved: Resolved, stages: Stages) -> dict[str, str]:
    """Fingerprints of the pool, uncropped and whole, and of the evaluation data."""
    split, pairs = resolved.run.split, stages.pairs
    while isinstance(pairs, Wrapped):
        pairs = pairs.pairs
    pooled = "pool" in names_in(split)
    if split != "pool" and pooled:
        pairs = resolved.run.data.split("pool")
    training = {"training": pairs.fingerprint} if pooled else {}
    return training | {"evaluation": stages.evaluator.pairs.fingerprint}


def check_affordable(resolved: Resolved, stages: Stages, allowance: Allowance) -> None:
    """Refuse a budget, or a first rung, that one training pass alone overspends."""
    if allowance.flops is None:
        return
    name, flops = "run.budget", allowance.flops
    if allowance.rungs:
        name, flops = "the first of optimizer.rungs", allowance.rungs[0] - allowance.pretrain
    one = flops_of(stages.learner.forecast_update(resolved.run.batch_size))
    if flops < one:
        raise ValueError(
            f"{name} leaves {flops:.3g} FLOPs, less than one training step of "
            f"{resolved.run.batch_size} pairs costs ({one:.3g}): raise {name} or lower run.batch_size"
        )


def warned(resolved: Resolved, stages: Stages, walked: Mapping[str, Any] | None) -> list[str]:
    """Warnings about a run, also printed on stderr; ``walked`` is ``None`` where a stand-in takes the data's place."""
    found = [*resolved.warnings, *view_warnings(resolved, stages), *view_size_warnings(resolved, stages)]
    found += set_warnings(stages)
    if walked is not None:
        found += [*waste_warnings(resolved, stages, walked), *overlap_warnings(resolved, stages)]
        found += text_warnings(resolved, stages)
    return printed(found)
