"""Keeps a report up to date while its runs go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jestbench.compare.choose_metric import SweepRecord
from jestbench.compare.load import CompareError, find_run_folders
from jestbench.compare.page import PAGE
from jestbench.disk import shown, write_text
from jestbench.runs.folder import RunFolder

_HEAD = "<head>"
SILENT = 600
"""Seconds without a row after which a run that goes on is named."""


@dataclass(frozen=True)
class Standing:
    """How far the runs of a report are.

    Attributes:
        ended: folders of the runs that have ended, and when they wrote their summary.
        going_on: folders of the runs that have not.
        to_come: names of the arms of a sweep that have not begun.
    """

    ended: tuple[tuple[Path, float], ...]
    going_on: tuple[Path, ...]
    to_come: tuple[str, ...]

    @property
    def over(self) -> bool:
        """Whether all runs have ended."""
        return bool(self.ended) and not self.going_on and not self.to_come

    def line(self) -> str:
        """How far the runs are, for people."""
        total = len(self.ended) + len(self.going_on) + len(self.to_come)
        running = ", ".join(map(_reached, self.going_on))
        return f"{time.strftime('%H:%M:%S')}  {len(self.ended)} of {total} runs have ended" + (
            f"; going on: {running}" if running else ""
        )


def _reached(folder: Path) -> str:
    run = RunFolder(folder)
    row = run.last_row()
    if not row:
        return f"{shown(folder)} (no row yet)"
    silent = time.time() - run.metrics_jsonl.stat().st_mtime
    note = f", silent for {silent / 60:.0f} min" if silent > SILENT else ""
    return f"{shown(folder)} (step {row['step']:,}, {row.get('flops/total', 0):.3g} FLOPs{note})"


def standing(run_dirs: Sequence[Path]) -> Standing:
    """How far the runs are that arguments name or contain.

    Raises:
        CompareError: a folder does not exist (status 2).
    """
    folders: dict[Path, None] = {}
    for folder in run_dirs:
        try:
            named, found = find_run_folders([folder])
        except CompareError as error:
            if error.status == 2:
                raise
            continue  # the folder of a sweep whose first arm has not begun
        folders.update(dict.fromkeys((*named, *found)))
    records = {
        place: record for place in {place.resolve() for place in run_dirs} if (record := SweepRecord.read(place))
    }
    ended, going_on = [], []
    for folder in folders:
        try:
            ended.append((folder, RunFolder(folder).summary_json.stat().st_mtime))
        except FileNotFoundError:
            sweep = records.get(folder.parent)
            if sweep is None or not sweep.over:  # else it was killed
                going_on.append(folder)
    to_come = [
        name
        for place, sweep in records.items()
        for name in (() if sweep.over else sweep.arms)
        if place / name not in folders
    ]
    return Standing(tuple(ended), tuple(going_on), tuple(to_come))


def watch(
    run_dirs: Sequence[Path], out: Path, interval: float, refresh: Callable[[], None], say: Callable[[str], None]
) -> None:
    """Refresh a report whenever a run ends, until all have; the open page reloads itself in the meantime.

    Args:
        out: folder of the report.
        interval: seconds between two looks.
        say: prints a line.

    Raises:
        CompareError: a folder does not exist, or the report cannot be made of the runs that have ended.
        KeyboardInterrupt: after the page was left as one that does not reload itself.
    """
    known, last = None, ""
    try:
        while True:
            now = standing(run_dirs)
            if now.ended and now.ended != known:
                try:
                    refresh()
                    _reload(out / PAGE, None if now.over else interval)
                except CompareError as error:  # the baseline's first run may still go on
                    if now.over:
                        raise
                    say(f"no report yet: {str(error).splitlines()[0]}")
                known = now.ended
            if (line := now.line())[8:] != last:
                say(line)
                last = line[8:]
            if now.over:
                return
            time.sleep(interval)
    except BaseException:
        if (out / PAGE).is_file():
            _reload(out / PAGE, None)
        raise


def _reload(page: Path, interval: float | None) -> None:
    """Make a page reload itself every ``interval`` seconds, or no longer."""
    text = page.read_text(encoding="utf-8")
    start, found, rest = text.partition(_HEAD)
    mark = '<meta http-equiv="refresh" content="'
    if rest.startswith(mark):
        rest = rest.partition(">")[2]
    tag = "" if interval is None else f'{mark}{max(1, round(interval))}">'
    write_text(page, f"{start}{found}{tag}{rest}")
