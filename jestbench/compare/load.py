"""Run folders read back, as the training loop leaves them.

``metrics.jsonl`` is the source of truth for every number; ``summary.json`` says whose numbers they are.
A run that was killed leaves a torn last line and perhaps no summary: both are reported, neither stops a
comparison of the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, float]
"""One logged step: key → number (integers stay integers)."""

Fact = str | int | float | bool
"""One thing known about the data of a run, such as its share of wrong captions."""

FINISHED = "finished"

_METRICS = "metrics.jsonl"
_SUMMARY = "summary.json"
_OPERATIVE = "operative.gin"
_SEARCH_DEPTH = 2


class CompareError(Exception):
    """A comparison cannot be made; the message says why and what to do.

    Attributes:
        status: exit status of the command: 2 for a wrong argument, 3 for wrong or missing data.
    """

    def __init__(self, message: str, status: int = 3) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Measure:
    """What is known about a metric.

    Attributes:
        low: the smallest value that it can have.
        high: the largest.
        examples: of how many evaluation examples it is the share; ``None`` where it is no such share.
    """

    low: float = -math.inf
    high: float = math.inf
    examples: int | None = None


@dataclass(frozen=True)
class ReferenceEntry:
    """A frozen model that a run was scored with, as the run's summary names it.

    Attributes:
        name: its name.
        folder: the run folder of its own training, if that is known and exists.
        pretrain_flops: FLOPs of its own training.
    """

    name: str
    folder: Path | None
    pretrain_flops: int


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: resolved path of the folder.
        arm: label of the arm.
        policy: registered name of the policy.
        config_hash: hash of the operative configuration minus seed, logging and paths.
        seed: the run's seed.
        status: ``finished``, ``interrupted``, ``failed``.
        budget: FLOPs asked for, with the pre-training that was taken out of them and what was added to them;
            ``None`` if not recorded.
        added_to_budget: the part of ``budget`` that a control was given beside it, a reference's pre-training.
        pretrain_flops: FLOPs of training its references and scorers.
        pretrain_in_budget: the part of ``pretrain_flops`` that was taken out of ``budget`` before the start.
        flops_amortised: FLOPs of reference scoring that its accounting leaves out of the total.
        references: the frozen models it was scored with.
        facts: what is known about its data.
        learning_rate: at its peak; ``None`` if not recorded.
        measures: what is known about its metrics, by key.
        environment: ``environment.json``, or empty.
        rows: the logged steps, in order, one for each step.
        final: the last finite number logged under each key, completed from the summary.
        warnings: what the run itself warned of.
        problems: what was wrong with the files.
        modified: when the run last wrote (seconds since the epoch).
    """

    folder: Path
    arm: str
    policy: str
    config_hash: str
    seed: int
    status: str
    budget: int | None
    added_to_budget: int
    pretrain_flops: int
    pretrain_in_budget: int
    flops_amortised: int
    references: tuple[ReferenceEntry, ...]
    facts: Mapping[str, Fact]
    learning_rate: float | None
    measures: Mapping[str, Measure]
    environment: Mapping[str, Any]
    rows: tuple[Row, ...]
    final: Row
    warnings: tuple[str, ...]
    problems: tuple[str, ...]
    modified: float

    @property
    def metrics(self) -> frozenset[str]:
        """Every key of which some row holds a number."""
        return frozenset(key for row in self.rows for key in row)


def shown(path: Path) -> str:
    """Write a path for a reader: relative to the working directory where it lies inside."""
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def is_run_folder(folder: Path) -> bool:
    """Whether ``folder`` holds a run's files, if only those that it writes before its first step."""
    return any((folder / name).is_file() for name in (_METRICS, _SUMMARY, _OPERATIVE))


def find_run_folders(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Find the run folders that arguments name or contain.

    Args:
        folders: run folders, or folders that hold run folders one or two levels down.

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
        if is_run_folder(folder):
            named[folder.resolve()] = None
            continue
        inside = list(_search(folder.resolve(), _SEARCH_DEPTH))
        if not inside:
            raise CompareError(
                f"{folder}: no run folder in it (no {_METRICS} or {_SUMMARY} down to {_SEARCH_DEPTH} levels)"
            )
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
        if is_run_folder(child):
            yield child.resolve()
        elif depth > 1:
            yield from _search(child, depth - 1)


def load_run(folder: Path) -> Run:
    """Read one run folder.

    Args:
        folder: a run folder.

    Returns:
        The run.

    Raises:
        CompareError: a file cannot be read, or the summary is missing or lacks what identifies the run
            (status 3).
    """
    try:
        rows, problems = _read_rows(folder / _METRICS)
        summary = _read_summary(folder / _SUMMARY)
        environment = _read_environment(folder / "environment.json")
        modified = max(path.stat().st_mtime for path in (folder / _METRICS, folder / _SUMMARY) if path.exists())
    except OSError as error:
        raise CompareError(f"{shown(folder)}: cannot be read: {error}") from error
    try:
        return Run(
            folder=folder.resolve(),
            arm=str(summary["arm"]),
            policy=str(summary.get("policy", summary["arm"])),
            config_hash=str(summary["config_hash"]),
            seed=int(summary["seed"]),
            status=str(summary.get("status", "not recorded")),
            budget=_with(_integer(summary.get("budget")), _total(summary.get("added_to_budget"))),
            added_to_budget=_total(summary.get("added_to_budget")),
            pretrain_flops=_total(summary.get("pretrain_flops")),
            pretrain_in_budget=_total(summary.get("pretrain_in_budget")),
            flops_amortised=_total(summary.get("flops_amortised")),
            references=tuple(_references(summary.get("references"), folder)),
            facts=_facts(summary.get("data")),
            learning_rate=_real(summary.get("learning_rate")),
            measures=_measures(summary.get("measures")),
            environment=environment,
            rows=rows,
            final=_final(rows, summary),
            warnings=tuple(str(warning) for warning in summary.get("warnings") or ()),
            problems=problems,
            modified=modified,
        )
    except KeyError as error:
        raise CompareError(f"{shown(folder / _SUMMARY)}: {error.args[0]!r} is missing") from error
    except (TypeError, ValueError) as error:
        raise CompareError(f"{shown(folder / _SUMMARY)}: {error}") from error


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CompareError(f"{shown(path.parent)}: no {_SUMMARY}: the run was killed or is still running")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CompareError(f"{shown(path)}: not JSON: {error}") from error
    if not isinstance(summary, dict):
        raise CompareError(f"{shown(path)}: not a JSON object")
    return summary


def _read_environment(path: Path) -> dict[str, Any]:
    try:
        environment = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return environment if isinstance(environment, dict) else {}


def _read_rows(path: Path) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    if not path.is_file():
        return (), (f"{_METRICS} is missing",)
    # A line torn inside a character is not UTF-8 any more, and must reach the parser that reports it.
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
    rows: dict[int, dict[str, float]] = {}
    broken: list[int] = []
    newest = -1
    for number, line in enumerate(lines, start=1):
        row = _parse_row(line)
        if row is None:
            broken.append(number)
            continue
        step = int(row["step"])
        if step < newest:
            # A resumed run takes the steps after its checkpoint again: what it logged then counts.
            rows = {earlier: kept for earlier, kept in rows.items() if earlier < step}
        rows.setdefault(step, {}).update(row)
        newest = step
    problems = [f"{_METRICS}: line {number} is not a row and is left out" for number in broken if number < len(lines)]
    if broken and broken[-1] == len(lines):
        problems.append(f"{_METRICS}: the last line is torn and is left out")
    return tuple(rows.values()), tuple(problems)


def _parse_row(line: str) -> dict[str, float] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    return {key: value for key, value in record.items() if _is_number(value)}


def _final(rows: Sequence[Row], summary: Mapping[str, Any]) -> Row:
    flops = summary.get("flops")
    spent = flops if isinstance(flops, dict) else {"total": flops}
    known = {f"flops/{purpose}": value for purpose, value in spent.items()} | {
        "step": summary.get("steps"),
        "pairs/seen": summary.get("pairs_seen"),
        "pairs/trained": summary.get("pairs_trained"),
        "time/seconds": summary.get("seconds"),
    }
    final: dict[str, float] = {key: value for key, value in known.items() if value is not None and _is_number(value)}
    for row in rows:
        final.update(row)
    return {key: value for key, value in final.items() if math.isfinite(value)}


def _references(entries: object, folder: Path) -> Iterator[ReferenceEntry]:
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            yield ReferenceEntry(
                name=str(entry.get("name", "reference")),
                folder=_locate(entry.get("run_dir"), folder),
                pretrain_flops=_total(entry.get("pretrain_flops")),
            )


def _locate(path: object, run: Path) -> Path | None:
    if not isinstance(path, str) or not path:
        return None
    # Relative to the run where the two travel together, else to the folder that the run was started in.
    for candidate in (run / path, Path(path)):
        if is_run_folder(candidate):
            return candidate.resolve()
    return None


def _facts(data: object) -> dict[str, Fact]:
    if not isinstance(data, dict):
        return {}
    return {str(key): value for key, value in data.items() if isinstance(value, str | int | float)}


def _measures(found: object) -> dict[str, Measure]:
    entries = found.items() if isinstance(found, dict) else ()
    return {str(key): _measure(entry) for key, entry in entries if isinstance(entry, dict)}


def _measure(entry: Mapping[str, object]) -> Measure:
    low, high = _real(entry.get("low")), _real(entry.get("high"))
    return Measure(
        low=-math.inf if low is None else low,
        high=math.inf if high is None else high,
        examples=_integer(entry.get("examples")) or None,
    )


def _real(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _integer(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _with(budget: int | None, added: int) -> int | None:
    return None if budget is None else budget + added


def _total(value: object) -> int:
    """Add up FLOPs that a summary gives as one number, or by model."""
    if isinstance(value, dict):
        return sum(_total(part) for part in value.values())
    return _integer(value) or 0
