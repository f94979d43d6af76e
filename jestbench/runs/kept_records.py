"""Copies the records of a run: all that a comparison reads, and no model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from jestbench.batch import DataError
from jestbench.disk import shown, whole
from jestbench.runs.folder import RunFolder

REFERENCES = "references"
"""Below a run's records: those of the runs that trained its references."""


def worth_keeping(run_dir: Path) -> bool:
    """Whether a comparison can use what a run has left: it has finished, or is a ladder that may have ended rungs.

    Raises:
        DataError: its summary cannot be read.
    """
    summary = RunFolder(run_dir).summary()
    return summary is not None and (summary.status == "finished" or bool(summary.schedule.rungs))


def keep_records(run_dir: Path, records: Path) -> None:
    """Copy a run's configuration, environment, metrics, results and summary, with those of its references.

    The copies stand by themselves: paths to references are relative. Whatever stood at ``records`` is replaced,
    whole or not at all.

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
            entries = []
            for entry in summary.references:
                trained = run_dir / entry.run_dir  # an absolute path stays one
                kept = Path(REFERENCES, trained.name)
                if RunFolder(trained).is_run_folder():
                    _copy(trained, new / kept)
                    entry = replace(entry, run_dir=kept.as_posix())
                entries.append(entry)
            RunFolder(new).write_summary(replace(summary, references=tuple(entries)))
            shutil.rmtree(records, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{shown(records)}: the records of {shown(run_dir)} cannot be kept: {error}") from error


def _copy(run_dir: Path, to: Path) -> None:
    folder = RunFolder(run_dir)
    to.mkdir(parents=True)
    files = (folder.config_gin, folder.operative_gin, folder.environment_json, folder.metrics_jsonl)
    for path in (*files, folder.summary_json):
        if path.exists():
            shutil.copyfile(path, to / path.name)
    if folder.evaluations.exists():
        shutil.copytree(folder.evaluations, to / folder.evaluations.name)
