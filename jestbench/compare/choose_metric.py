"""Finds the metric that a comparison is about, where its runs agree on one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jestbench.compare.load import EVAL, CompareError, RunRecord
from jestbench.disk import DataError, read_object, shown, write_json

SWEEP_FILE = "sweep.json"
"""What a sweep leaves beside the folders of its arms."""


@dataclass(frozen=True)
class SweepRecord:
    """What a sweep leaves of itself.

    Attributes:
        metric: what the sweep file names.
        goal: ``maximize`` or ``minimize``; ``None`` where the file has none.
        arms: names of the run folders of its arms; empty where a search has not proposed all of them.
        over: whether it has ended, so that a run without a summary was killed.
    """

    metric: str
    goal: str | None = None
    arms: tuple[str, ...] = ()
    over: bool = False

    @property
    def lower_is_better(self) -> bool | None:
        """Whether a smaller value is better, as far as the file has a goal."""
        return None if self.goal is None else self.goal == "minimize"

    def write(self, folder: Path) -> None:
        """Write the record beside the arms."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SWEEP_FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> SweepRecord | None:
        """The record in a folder; ``None`` where there is none that can be read."""
        try:
            found: Mapping[str, Any] = read_object(folder / SWEEP_FILE) or {}
        except DataError:
            return None
        if not isinstance(found.get("metric"), str):
            return None
        arms = found.get("arms")
        names = tuple(map(str, arms)) if isinstance(arms, list) else ()
        return cls(found["metric"], found.get("goal"), names, found.get("over") is True)


def chosen_metric(runs: Sequence[RunRecord]) -> tuple[str, bool | None]:
    """The metric that runs agree on, and whether a smaller value is better (``None``: as the runs record it).

    1. What the sweep names that the runs belong to (``sweep.json`` beside them), if every finished run ended with it.
    2. Else the one metric ``eval/…`` that every finished run has at its end, where the schedule has decayed.

    Raises:
        CompareError: they agree on none, or on several (status 2); the message names them.
    """
    ended = [run for run in runs if run.summary.status == "finished"] or list(runs)
    # A value that is not finite counts: its run has the metric, and is left out later, with the reason.
    everywhere = set.intersection(*({*run.final, *run.metrics} for run in ended))
    shared = {key for key in everywhere if key.startswith(EVAL)}
    sweeps = {folder: SweepRecord.read(folder) for folder in {run.folder.parent for run in ended}}
    named = {record.metric: record for record in sweeps.values() if record is not None and record.metric in everywhere}
    if len(named) == 1:
        ((metric, record),) = named.items()
        return metric, record.lower_is_better
    if len(shared) == 1:
        return shared.pop(), None
    asked = "name one with --metric" + (f", such as {min(named)}" if named else "")
    if named:
        raise CompareError(f"the runs belong to sweeps about several metrics: {asked}\n  " + _list(named), status=2)
    if shared:
        raise CompareError(f"the runs share {len(shared)} metrics: {asked}:\n  " + _list(shared), status=2)
    own = "\n  ".join(f"{shown(run.folder)}: {', '.join(sorted(run.metrics)) or 'nothing'}" for run in ended[:3])
    raise CompareError(f"the runs share no metric eval/… at their ends\n  {own}", status=2)


def _list(names: Mapping[str, Any] | set[str]) -> str:
    return "\n  ".join(sorted(names))
