"""Reads run folders for a comparison.

The rows of ``metrics.jsonl`` are the source of truth for every number; the summary identifies the run. A killed
run leaves a torn last line and perhaps no summary: both are reported, and neither stops a comparison of the
remaining runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jestbench.disk import DataError, shown
from jestbench.runs.folder import RUNG, Row, RunFolder
from jestbench.runs.summary import ReferenceEntry, Summary

EVAL = "eval/"
"""Beginning of the keys of an evaluation's metrics."""
Fact = str | int | float | bool
"""One fact about the data of a run, such as its share of wrong captions."""

_SEARCH_DEPTH = 2
_MOST_ROWS = 300
"""Rows without an evaluation that are read of a run: what is drawn over time has fewer points. Evaluations are all
read."""


class CompareError(Exception):
    """A comparison cannot be made; the message gives the reason and the remedy.

    Attributes:
        status: exit status of the command: 2 for a wrong argument, 3 for wrong or missing data.
    """

    def __init__(self, message: str, status: int = 3) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RunRecord:
    """One run folder, read.

    Attributes:
        folder: resolved path of the folder.
        summary: the run's identity, and how it ended.
        environment: machine and versions that the figures depend on; empty where the file cannot be read.
        references: references that the run was scored with → the run folder of each, ``None`` where it is not found.
        rows: the logged steps, in order, one for each step; without those of a ladder's branches, and of very many
            all that hold an evaluation and about 300 of the others.
        rung_rows: the last row of each branch of a ladder, by the FLOPs of its rung.
        final: the last finite number logged under each key, completed from the summary.
        problems: defects found in the files.
        modified: when the run last wrote (seconds since the epoch).
    """

    folder: Path
    summary: Summary
    environment: Mapping[str, Any]
    references: Mapping[ReferenceEntry, Path | None]
    rows: tuple[Row, ...]
    rung_rows: Mapping[int, Row]
    final: Row
    problems: tuple[str, ...]
    modified: float

    @property
    def budget(self) -> int | None:
        """FLOPs asked for, including those added for a control; ``None`` where the budget is in steps or pairs."""
        asked = self.summary.budget
        return None if asked is None else asked + self.summary.added_to_budget

    @property
    def facts(self) -> dict[str, Fact]:
        """Facts about the data that can be displayed."""
        return {key: value for key, value in self.summary.data.items() if isinstance(value, str | int | float)}

    @property
    def metrics(self) -> frozenset[str]:
        """Every key that has a number in some row."""
        return frozenset(key for row in self.rows for key in row)


def find_run_folders(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Find the run folders that arguments name, or hold one or two levels down.

    Returns:
        The run folders named outright, and those found by searching; resolved, each once.

    Raises:
        CompareError: a folder does not exist (status 2) or holds no run (status 3).
    """
    named: dict[Path, None] = {}
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise CompareError(f"{folder}: no such folder", status=2)
        run = RunFolder(folder)
        if run.is_run_folder():
            named[folder.resolve()] = None
            continue
        inside = list(_search(folder.resolve(), _SEARCH_DEPTH))
        if not inside:
            files = f"{run.metrics_jsonl.name} or {run.summary_json.name}"
            raise CompareError(f"{folder}: no run folder in it (no {files} down to {_SEARCH_DEPTH} levels)")
        found.update(dict.fromkeys(inside))
    return list(named), [folder for folder in found if folder not in named]


def _search(folder: Path, depth: int) -> Iterator[Path]:
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise CompareError(f"{shown(folder)}: cannot be read: {error}") from error
    for child in children:
        if not child.is_dir():
            continue
        if RunFolder(child).is_run_folder():
            yield child.resolve()
        elif depth > 1:
            yield from _search(child, depth - 1)


def load_run(path: Path) -> RunRecord:
    """Read one run folder.

    Raises:
        CompareError: a file cannot be read, or the summary is missing or not whole (status 3).
    """
    folder = RunFolder(path)
    try:
        rows, problems = folder.read_rows(_MOST_ROWS)
        summary = folder.summary()
    except DataError as error:
        raise CompareError(str(error)) from error
    if summary is None:
        name = folder.summary_json.name
        raise CompareError(f"{shown(path)}: no {name}: the run was killed or is still running")
    trunk = tuple(row for row in rows if RUNG not in row)
    return RunRecord(
        folder=path.resolve(),
        summary=summary,
        environment=folder.environment(),
        references={entry: _locate(entry.run_dir, path) for entry in summary.references},
        rows=trunk,
        rung_rows={int(row[RUNG]): row for row in rows if RUNG in row},
        final=final_numbers(trunk, summary),
        problems=problems,
        modified=max(file.stat().st_mtime for file in (folder.metrics_jsonl, folder.summary_json) if file.exists()),
    )


def final_numbers(rows: Iterable[Row], summary: Summary) -> Row:
    """The last finite number logged under each key, completed from the summary."""
    final: dict[str, float] = {f"flops/{purpose}": value for purpose, value in summary.flops.items()} | {
        "step": summary.steps,
        "pairs/seen": summary.pairs_seen,
        "pairs/trained": summary.pairs_trained,
        "time/seconds": summary.seconds,
    }
    for row in rows:
        final.update(row)
    return {key: value for key, value in final.items() if math.isfinite(value)}


def _locate(path: str, run: Path) -> Path | None:
    # Relative to the run folder where both were moved together, else to the folder that the run was started in.
    for candidate in (run / path, Path(path)):
        if path and RunFolder(candidate).is_run_folder():
            return candidate.resolve()
    return None
