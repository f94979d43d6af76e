"""The run folder: opened once, never mixed with another run's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jestbench.batch import DataError
from jestbench.config.run import ConfigError, Recorded, Resolved
from jestbench.disk import write_json
from jestbench.runs.environment import environment
from jestbench.runs.saved_model import trained_loss

SUMMARY = "summary.json"


class RunFolderError(ConfigError):
    """The run folder cannot be used as asked; nothing in it was changed."""


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """A run's summary, or ``None`` where there is none yet."""
    try:
        found: dict[str, Any] = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, OSError) as error:
        raise DataError(f"{run_dir / SUMMARY} cannot be read: {error}") from error
    return found


def recorded(folder: Path) -> Recorded:
    """What a run folder records of the run in it: configuration hash and seed, loss of the model, data."""
    run, data = _part(folder / "environment.json", "run"), _part(folder / SUMMARY, "data")
    identity = (
        f"{run['config_hash']}{run['seed']}" if isinstance(run, dict) and {"config_hash", "seed"} <= set(run) else None
    )
    return Recorded(identity, trained_loss(folder), data)


def _part(path: Path, key: str) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def open_folder(resolved: Resolved, run_dir: Path, resume: bool) -> bool:
    """Make the run folder, or check that it holds this very run.

    Returns:
        Whether there is a run to resume.

    Raises:
        RunFolderError: it holds a run and ``resume`` was not asked, or holds another one.
    """
    identity = run_dir / "environment.json"
    if identity.exists():
        if not resume:
            raise RunFolderError(f"{run_dir} already holds a run: choose another --run_dir, or go on with --resume")
        try:
            held = json.loads(identity.read_text(encoding="utf-8"))["run"]
        except (OSError, ValueError, KeyError) as error:
            raise RunFolderError(f"{identity} cannot be read: choose another --run_dir") from error
        if held != {"config_hash": resolved.config_hash, "seed": resolved.run.seed}:
            raise RunFolderError(
                f"{run_dir} holds another run (arm configuration {held['config_hash']}, seed {held['seed']}; this "
                f"is {resolved.config_hash}, seed {resolved.run.seed}): see its operative.gin"
            )
        return True
    try:
        if run_dir.exists() and any(run_dir.iterdir()):
            raise RunFolderError(f"{run_dir} is not empty and holds no run: choose another --run_dir")
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.gin").write_text(resolved.config, encoding="utf-8")
        (run_dir / "operative.gin").write_text(resolved.operative, encoding="utf-8")
        run = {"config_hash": resolved.config_hash, "seed": resolved.run.seed}
        write_json(identity, {"run": run, **environment()})
    except OSError as error:
        raise RunFolderError(f"{run_dir} cannot be a run folder: {error}: choose another --run_dir") from error
    return False
