"""Checkpoints: complete or not there.

A checkpoint is a folder written under another name and renamed when it is whole, so a process killed
at any moment leaves the newest complete one as it was.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jestbench.disk import LEFTOVERS, whole
from jestbench.runs.folder import RUNG, Row, RunFolder

FORMAT = 7
"""Counted up when a checkpoint holds other things than before, so that an older one is named, not misread."""
KEEP = 2


@dataclass(frozen=True)
class Place:
    """Where in a run a checkpoint was written. Sorted by name, checkpoints stand in the order of their writing.

    Attributes:
        step: steps done.
        rungs: rungs of a ladder that were behind.
        branch: step at which the cool-down of the rung ahead had left the trunk; ``None`` on the trunk.
    """

    step: int
    rungs: int = 0
    branch: int | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        done = f"-rungs-{self.rungs:03d}" if self.rungs or self.branch is not None else ""
        if self.branch is None:
            return f"step-{self.step:010d}{done}"
        return f"step-{self.branch:010d}{done}-branch-{self.step:010d}"

    @staticmethod
    def of(checkpoint: Path) -> Place:
        """The place in a checkpoint's name."""
        found = re.fullmatch(r"step-(\d+)(?:-rungs-(\d+))?(?:-branch-(\d+))?", checkpoint.name)
        assert found is not None, checkpoint
        trunk, rungs, step = (None if part is None else int(part) for part in found.groups())
        assert trunk is not None
        return Place(trunk, rungs or 0) if step is None else Place(step, rungs or 0, trunk)

    @property
    def left(self) -> Place | None:
        """The place on the trunk that a branch has left."""
        return None if self.branch is None else Place(self.branch, self.rungs)

    def follows(self, row: Row, rungs: Sequence[int]) -> bool:
        """Whether a row was logged before the checkpoint was written.

        Args:
            row: of the run.
            rungs: of the run's ladder, FLOPs.
        """
        if RUNG in row:
            rung = rungs.index(int(row[RUNG]))
            return rung < self.rungs or (rung == self.rungs and self.branch is not None and row["step"] <= self.step)
        returns = self.branch is not None and self.rungs < len(rungs) - 1  # the last cool-down is the trunk's own
        return row["step"] <= (self.branch if returns and self.branch is not None else self.step)


def write(run_dir: Path, place: Place, fill: Callable[[Path], None], keep: int = KEEP) -> Path:
    """Write the checkpoint of a place.

    Once it is complete, only the newest ``keep`` checkpoints are kept, and what the branches among them have left: a
    branch goes back there, and a ladder's end does once rungs are appended.

    Args:
        run_dir: the run's folder.
        place: where the run is.
        fill: writes the files into the folder that it is given.
        keep: how many stay.
    """
    run = RunFolder(run_dir)
    final = run.checkpoints / place.name
    if final.exists():
        return final
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    with whole(final) as partial:
        partial.mkdir()
        fill(partial)
        for file in partial.iterdir():
            _sync(file)
    _sync(run.checkpoints)
    whole_ones = run.whole_checkpoints()
    newest = {Place.of(one) for one in whole_ones[-keep:]}
    for old in whole_ones:
        if Place.of(old) not in newest | {place.left for place in newest}:
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
