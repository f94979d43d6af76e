"""Checkpoints: complete or not there.

A checkpoint is a folder written under another name and renamed when it is whole, so a process killed
at any moment leaves the newest complete one as it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

FOLDER = "checkpoints"
KEEP = 2


def newest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, or ``None``."""
    found = sorted((run_dir / FOLDER).glob("step-*"))
    return found[-1] if found else None


def write(run_dir: Path, step: int, fill: Callable[[Path], None], keep: int = KEEP) -> Path:
    """Write the checkpoint of a step; older ones beyond ``keep`` go once it is complete.

    Args:
        run_dir: the run's folder.
        step: steps done.
        fill: writes the files into the folder that it is given.
        keep: how many stay.
    """
    folder = run_dir / FOLDER
    final, partial = folder / f"step-{step:010d}", folder / f".partial-{os.getpid()}"
    if final.exists():
        return final
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    for file in partial.iterdir():
        _sync(file)
    partial.rename(final)
    _sync(folder)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    for left in folder.glob(".partial-*"):
        shutil.rmtree(left, ignore_errors=True)
    return final


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
