"""The run that a folder holds: opened once, never mixed with another run's files."""

from __future__ import annotations

from pathlib import Path

from jestbench.batch import DataError
from jestbench.config.run import ConfigError, Recorded, Resolved
from jestbench.disk import write_json
from jestbench.runs.environment import environment
from jestbench.runs.folder import RunFolder
from jestbench.runs.saved_model import trained_loss


class RunFolderError(ConfigError):
    """The run folder cannot be used as asked; nothing in it was changed."""


def _held_by(folder: RunFolder) -> tuple[str, int] | None:
    """Configuration hash and seed of the run in a folder; ``None`` where they cannot be read."""
    run = folder.environment().get("run")
    return (run["config_hash"], run["seed"]) if isinstance(run, dict) and {"config_hash", "seed"} <= set(run) else None


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
    """Create the run folder, or check that it holds this very run.

    Returns:
        Whether there is a run to resume.

    Raises:
        RunFolderError: the folder holds a run and ``resume`` is false, or it holds another run or other files.
    """
    folder, own = RunFolder(run_dir), (resolved.config_hash, resolved.run.seed)
    if folder.environment_json.exists():
        if not resume:
            raise RunFolderError(f"{run_dir} already holds a run: choose another --run_dir, or go on with --resume")
        held = _held_by(folder)
        if held is None:
            raise RunFolderError(f"{folder.environment_json} cannot be read: choose another --run_dir")
        if held != own:
            raise RunFolderError(
                f"{run_dir} holds another run (arm configuration {held[0]}, seed {held[1]}; this is {own[0]}, seed "
                f"{own[1]}): see its {folder.operative_gin.name}"
            )
        return True
    try:
        if run_dir.exists() and any(run_dir.iterdir()):
            raise RunFolderError(f"{run_dir} is not empty and holds no run: choose another --run_dir")
        run_dir.mkdir(parents=True, exist_ok=True)
        folder.config_gin.write_text(resolved.config, encoding="utf-8")
        folder.operative_gin.write_text(resolved.operative, encoding="utf-8")
        run = {"config_hash": resolved.config_hash, "seed": resolved.run.seed}
        write_json(folder.environment_json, {"run": run, **environment(resolved.run.device, resolved.run.precision)})
    except OSError as error:
        raise RunFolderError(f"{run_dir} cannot be a run folder: {error}: choose another --run_dir") from error
    return False
