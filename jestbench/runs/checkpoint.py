"""Checkpoints: complete or not there.

A checkpoint is a folder written under another name and renamed when it is whole, so a process killed
at any moment leaves the newest complete one as it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from jestbench.disk import LEFTOVERS, whole
from jestbench.runs.folder import RunFolder

FORMAT = 5
"""Counted up when a checkpoint holds other things than before, so that an older one is named, not misread."""
KEEP = 2


def step_of(checkpoint: Path) -> int:
    """The steps that were done when a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def write(run_dir: Path, step: int, fill: Callable[[Path], None], keep: int = KEEP) -> Path:
    """Write the checkpoint of a step; once it is complete, only the newest ``keep`` checkpoints are kept.

    Args:
        run_dir: the run's folder.
        step: steps done.
        fill: writes the files into the folder that it is given.
        keep: how many stay.
    """
    run = RunFolder(run_dir)
    final = run.checkpoints / f"step-{step:010d}"
    if final.exists():
        return final
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    with whole(final) as partial:
        partial.mkdir()
        fill(partial)
        for file in partial.iterdir():
            _sync(file)
    _sync(run.checkpoints)
    for old in run.whole_checkpoints()[:-keep]:
        shutil.rmtree(old)
    for left in run.checkpoints.glob(LEFTOVERS):
        shutil.rmtree(left, ignore_errors=True)
    return final


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
