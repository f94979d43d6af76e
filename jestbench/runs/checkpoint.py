"""Checkpoints: complete or not there, and able to prove it.

A checkpoint is a folder written under another name and renamed when it is whole, so a process killed
at any moment leaves the newest complete one as it was. Its manifest, written last, holds size and digest of every file:
what a disk, a copy or a hand has changed since is found when the checkpoint is read.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jestbench.disk import LEFTOVERS, DataError, file_digest, read_object, shown, whole, write_json
from jestbench.runs.folder import RUNG, Row, RunFolder
from jestbench.storage import writing

FORMAT = 12
"""Counted up when a checkpoint holds other things than before, so that an older one is named, not misread."""
KEEP = 2
MANIFEST = "manifest.json"


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
        on_trunk, rungs, in_branch = found.groups(default="0")
        if found[3] is None:
            return Place(int(on_trunk), int(rungs))
        return Place(int(in_branch), int(rungs), branch=int(on_trunk))

    @property
    def left(self) -> Place | None:
        """The place on the trunk that a branch has left."""
        return None if self.branch is None else Place(self.branch, self.rungs)

    def follows(self, row: Row, rungs: Sequence[int]) -> bool:
        """Whether a row was logged before the checkpoint was written; ``rungs``: of the run's ladder, FLOPs."""
        if RUNG in row:
            rung = rungs.index(int(row[RUNG]))
            return rung < self.rungs or (rung == self.rungs and self.branch is not None and row["step"] <= self.step)
        returns = self.branch is not None and self.rungs < len(rungs) - 1  # the last cool-down is the trunk's own
        return row["step"] <= (self.branch if returns and self.branch is not None else self.step)


def write(run_dir: Path, place: Place, fill: Callable[[Path], None]) -> Path:
    """Write the checkpoint of a place.

    Once it is complete, only the newest ``KEEP`` checkpoints stay, and what the branches among them have left: a branch
    goes back there, and a ladder's end does once rungs are appended.

    Args:
        fill: writes the files into the folder that it is given.

    Raises:
        StorageError: the disk refuses a file; the checkpoints before are as they were.
    """
    run = RunFolder(run_dir)
    final = run.checkpoints / place.name
    if final.exists():
        return final
    with writing(run.checkpoints):
        run.checkpoints.mkdir(exist_ok=True)  # never the run's folder: it may have been mounted
        with whole(final) as partial:
            partial.mkdir()
            fill(partial)
            files = {
                file.name: {"bytes": file.stat().st_size, "blake2b": file_digest(file)}
                for file in sorted(partial.iterdir())
                if file.name != MANIFEST
            }
            write_json(partial / MANIFEST, {"files": files})
            for file in partial.iterdir():
                _sync(file)
        _sync(run.checkpoints)
        whole_ones = run.whole_checkpoints()
        newest = {Place.of(one) for one in whole_ones[-KEEP:]}
        for old in whole_ones:
            if Place.of(old) not in newest | {place.left for place in newest}:
                shutil.rmtree(old)
        for left in run.checkpoints.glob(LEFTOVERS):
            shutil.rmtree(left, ignore_errors=True)
    return final


def damage(folder: Path) -> str:
    """The first thing in which a checkpoint differs from what was written; empty where it is whole."""
    try:
        files = (read_object(folder / MANIFEST) or {}).get("files")
        if not isinstance(files, dict) or not files:
            return f"it has no {MANIFEST}: it was not copied whole, or is none of ours"
        for name, proof in files.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (size := (folder / name).stat().st_size) != proof["bytes"]:
                return f"{name} has {size:,} of {proof['bytes']:,} bytes"
            if file_digest(folder / name) != proof["blake2b"]:
                return f"{name} holds other bytes than were written"
    except (DataError, OSError, KeyError, TypeError) as error:
        return f"its files cannot be read ({error})"
    return ""


def newest_whole(run_dir: Path) -> tuple[Path | None, tuple[str, ...]]:
    """The newest checkpoint of a run that is as it was written, if any, and why newer ones are passed over.

    Raises:
        DataError: there are checkpoints, and none is whole.
    """
    run, passed = RunFolder(run_dir), list[str]()
    for folder in reversed(run.whole_checkpoints()):
        reason = damage(folder)
        if not reason:
            return folder, tuple(passed)
        passed.append(f"{folder.name}: {reason}")
    if passed:
        raise DataError(
            f"{shown(run.checkpoints)} holds no whole checkpoint ({'; '.join(passed)}): bring the files back, or start "
            "the run anew in another --run_dir"
        )
    return None, ()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
