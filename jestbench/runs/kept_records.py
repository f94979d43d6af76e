"""Copies the records of a run: all that a comparison reads, and no model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from jestbench.batch import DataError
from jestbench.disk import shown, whole
from jestbench.runs.folder import RunFolder
from jestbench.runs.summary import ReferenceEntry, StartEntry

REFERENCES = "references"
"""Below a run's records: those of the runs that trained its references."""
START = "start"
"""Below a run's records: those of the run that it began from."""
_Entry = TypeVar("_Entry", ReferenceEntry, StartEntry)


def worth_keeping(run_dir: Path) -> bool:
    """Whether a comparison can use what a run has left: it has finished, or is a ladder that may have ended rungs.

    Raises:
        DataError: its summary cannot be read.
    """
    summary = RunFolder(run_dir).summary()
    return summary is not None and (summary.status == "finished" or bool(summary.schedule.rungs))


def keep_records(run_dir: Path, records: Path) -> None:
    """Copy a run's configuration, environment, metrics, results and summary, with those of its references and start.

    The copies stand by themselves: paths to references and start are relative. Whatever stood at ``records`` is
    replaced, whole or not at all.

    Args:
        run_dir: the folder of a run that is ``worth_keeping``.
        records: the folder of the copies.

    Raises:
        DataError: there is no summary, or the files cannot be read or copied.
    """
    summary = RunFolder(run_dir).summary()
    if summary is None:
        raise DataError(f"{shown(run_dir)}: there is no run that has ended, whose records could be kept")
    try:
        records.parent.mkdir(parents=True, exist_ok=True)
        with whole(records) as new:
            _copy(run_dir, new)
            references = tuple(_kept(run_dir, entry, new, REFERENCES) for entry in summary.references)
            start = None if summary.start is None else _kept(run_dir, summary.start, new, START)
            RunFolder(new).write_summary(replace(summary, references=references, start=start))
            shutil.rmtree(records, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{shown(records)}: the records of {shown(run_dir)} cannot be kept: {error}") from error


def _kept(run_dir: Path, entry: _Entry, new: Path, part: str) -> _Entry:
    """Copy the records of a run that another stood on, and return its entry with their path; the same without any."""
    trained = run_dir / entry.run_dir  # an absolute path stays one
    if not entry.run_dir or not RunFolder(trained).is_run_folder():
        return entry
    kept = Path(part, trained.name)
    _copy(trained, new / kept)
    return replace(entry, run_dir=kept.as_posix())


def _copy(run_dir: Path, to: Path) -> None:
    folder = RunFolder(run_dir)
    to.mkdir(parents=True)
    files = (folder.config_gin, folder.operative_gin, folder.environment_json, folder.metrics_jsonl)
    for path in (*files, folder.summary_json):
        if path.exists():
            shutil.copyfile(path, to / path.name)
    if folder.evaluations.exists():
        shutil.copytree(folder.evaluations, to / folder.evaluations.name)
