"""Checkpoints: complete or not there.

A checkpoint is a folder written under another name and renamed when it is whole, so a process killed
at any moment leaves the newest complete one as it was.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from jestbench.batch import DataError
from jestbench.disk import LEFTOVERS, whole

FOLDER = "checkpoints"
FORMAT = 4
"""Counted up when a checkpoint holds other things than before, so that an older one is named, not misread."""
KEEP = 2


class ForeignCheckpoint(DataError):
    """A checkpoint was written by another version of this package, or by another number of processes."""


def check_format(folder: Path, processes: int) -> None:
    """Refuse a checkpoint that another version wrote, or another number of processes; ``model.json`` tells.

    Raises:
        ForeignCheckpoint: naming it.
    """
    try:
        described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        found, wrote = described.get("format"), described.get("processes")
    except (OSError, ValueError):
        found = wrote = None
    if found == FORMAT and wrote != processes:
        raise ForeignCheckpoint(
            f"{folder} was written by {wrote} processes, and this run has {processes}: go on with as many "
            f"(torchrun --nproc_per_node {wrote})"
        )
    if found != FORMAT:
        raise ForeignCheckpoint(
            f"{folder} was written by another version of jestbench and cannot be gone on from: start the run anew in "
            "another --run_dir"
        )


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
    final = folder / f"step-{step:010d}"
    if final.exists():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    with whole(final) as partial:
        partial.mkdir()
        fill(partial)
        for file in partial.iterdir():
            _sync(file)
    _sync(folder)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    for left in folder.glob(LEFTOVERS):
        shutil.rmtree(left, ignore_errors=True)
    return final


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
