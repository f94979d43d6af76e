"""The run that a folder holds: opened once, never mixed with another run's files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jestbench.batch import DataError
from jestbench.config.resolved import Resolved
from jestbench.config.run import Recorded
from jestbench.disk import LEFTOVERS, write_json, write_text
from jestbench.runs.checkpoint import Place
from jestbench.runs.environment import environment
from jestbench.runs.folder import RUNG, RunFolder
from jestbench.runs.hold_folder import KEPT, RunFolderError
from jestbench.runs.saved_model import trained_loss
from jestbench.storage import storage_error


def _held_by(folder: RunFolder) -> tuple[str, int] | None:
    """Configuration hash and seed of the run in a folder; ``None`` where they cannot be read."""
    run = folder.identity()
    return (run["config_hash"], run["seed"]) if {"config_hash", "seed"} <= set(run) else None


def recorded(path: Path) -> Recorded:
    """What a run folder records of the run in it: configuration hash and seed, loss of the model, data."""
    folder = RunFolder(path)
    held = _held_by(folder)
    try:
        summary = folder.summary()
    except DataError:
        summary = None
    return Recorded(
        folder.operative_gin,
        None if held is None else f"{held[0]}{held[1]}",
        trained_loss(path),
        None if summary is None else summary.data,
    )


def open_folder(resolved: Resolved, run_dir: Path, resume: bool) -> bool:
    """Begin a run in a folder that is held (``hold_folder.held``), or check what it holds: this very run, or a ladder.

    Rungs may be appended: the run in the folder is then this one, and goes on from where its last cool-down began.

    Returns:
        Whether there is a run to resume.

    Raises:
        RunFolderError: the folder holds a run and ``resume`` is false, or it holds another run or other files.
    """
    folder, own = RunFolder(run_dir), (resolved.config_hash, resolved.run.seed)
    if failed_at_start(folder):
        clear(folder)
    if folder.environment_json.exists():
        if not resume:
            raise RunFolderError(f"{run_dir} already holds a run: choose another --run_dir, or go on with --resume")
        held = _held_by(folder)
        if held is None:
            raise RunFolderError(f"{folder.environment_json} cannot be read: choose another --run_dir")
        if held == own:
            return True
        if not _appends(folder.identity(), resolved):
            ladder = ", to which only rungs can be appended" if folder.identity().get("rungs") else ""
            raise RunFolderError(
                f"{run_dir} holds another run (arm configuration {held[0]}, seed {held[1]}; this is {own[0]}, seed "
                f"{own[1]}){ladder}: see its {folder.operative_gin.name}"
            )
        _append(folder, resolved)
        return True
    try:
        # Whose process died before it had written the environment, there is no run yet: it is begun again.
        begun = {folder.config_gin.name, folder.operative_gin.name}
        if any(path.name not in KEPT | begun and not path.match(LEFTOVERS) for path in run_dir.iterdir()):
            raise RunFolderError(f"{run_dir} is not empty and holds no run: choose another --run_dir")
        folder.config_gin.write_text(resolved.config, encoding="utf-8")
        folder.operative_gin.write_text(resolved.operative, encoding="utf-8")
        found = environment(resolved.run.device, resolved.run.precision)
        write_json(folder.environment_json, {"run": _identity(resolved), **found})
    except OSError as error:
        raise storage_error(error, run_dir) from error
    return False


def failed_at_start(folder: RunFolder) -> bool:
    """Whether a folder holds a run that failed before it had done a step: nothing that anybody could lose."""
    try:
        summary = folder.summary()
    except DataError:
        return False
    return summary is not None and summary.status == "failed" and summary.steps == 0


def clear(folder: RunFolder) -> None:
    """Remove a run's files, but for those that hold its folder."""
    for path in folder.path.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in KEPT:
            path.unlink()


def _identity(resolved: Resolved) -> dict[str, Any]:
    """What ``environment.json`` records of which run the folder holds."""
    optimizer = resolved.run.optimizer
    return {
        "config_hash": resolved.config_hash,
        "seed": resolved.run.seed,
        "frontier_hash": resolved.frontier_hash,
        "rungs": list(optimizer.rungs),
        "cooldown": optimizer.cooldown,
    }


def _appends(held: Mapping[str, Any], resolved: Resolved) -> bool:
    """Whether a run is the one that is held, with more rungs behind its last."""
    own, old = _identity(resolved), held.get("rungs", [])
    longer = 0 < len(old) < len(own["rungs"]) and own["rungs"][: len(old)] == old
    return longer and all(held.get(name) == own[name] for name in ("seed", "frontier_hash", "cooldown"))


def _append(folder: RunFolder, resolved: Resolved) -> None:
    """Make a ladder in its folder one with more rungs: its last cool-down becomes a branch.

    A process that is killed in between leaves the folder to the same command, which begins again.
    """
    held, newest = folder.identity(), folder.newest_checkpoint()
    old, rows = held["rungs"], folder.read_rows()[0]
    place = None if newest is None else Place.of(newest)
    if place is not None and place.branch is not None and place.rungs == len(old) - 1:
        left, rung = place.branch, {RUNG: old[-1] + resolved.added_flops}
        rows = tuple(row if RUNG in row or row["step"] <= left else {**rung, **row} for row in rows)
        write_text(folder.metrics_jsonl, "".join(json.dumps(row) + "\n" for row in rows))
    write_text(folder.config_gin, resolved.config)
    write_text(folder.operative_gin, resolved.operative)
    folder.summary_json.unlink(missing_ok=True)
    spent = int(rows[-1]["flops/total"]) if rows else 0
    entry = {"at": spent, "from": old, "config_hash": held["config_hash"]}
    run = _identity(resolved) | {"appended": [*held.get("appended", []), entry]}
    write_json(folder.environment_json, {**folder.environment(), "run": run})
