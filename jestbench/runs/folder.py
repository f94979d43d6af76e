"""The files of a run folder: their names, and how each is read back.

Nothing here imports torch: the comparison reads runs without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np

from jestbench.disk import DataError, read_object, shown, whole, write_json
from jestbench.evals.results import Results
from jestbench.masking import masked
from jestbench.runs.summary import Summary

Row = Mapping[str, float]
"""One logged step: key → number (integers stay integers)."""
RUNG = "ladder/rung"
"""The key that marks a row of a ladder's branch: FLOPs of its rung."""
_EVALUATION = b'"eval/'


class RunFolder:
    """What a run leaves, file by file.

    Attributes:
        path: the folder.
        config_gin: the bindings as parsed.
        operative_gin: the bindings as used; starts the same run again.
        environment_json: identity of the run; versions, commit, device, threads.
        metrics_jsonl: one object a logged step.
        summary_json: how the run ended; not there before.
        checkpoints: a folder for each whole checkpoint, ``step-…``; of a ladder's cool-downs ``step-…-branch-…``.
        evaluations: what each example contributed to each decayed evaluation, ``FLOPs.npz``.
        examples: tables of chosen and refused pairs.
        examples_page: all those tables, for a browser.
        chosen: pairs that were trained on, how often, with their last scores (``log.chosen``).
        evaluated_json: what ``tools/evaluate.py`` measured last; not there before.
        damage_page: damaged pairs by kind with their first examples; not there where there are none.
        row_stores: what frozen models remember while the run goes on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_gin = path / "config.gin"
        self.operative_gin = path / "operative.gin"
        self.environment_json = path / "environment.json"
        self.metrics_jsonl = path / "metrics.jsonl"
        self.summary_json = path / "summary.json"
        self.checkpoints = path / "checkpoints"
        self.evaluations = path / "eval"
        self.evaluated_json = path / "evaluated.json"
        self.examples = path / "examples"
        self.examples_page = self.examples / "index.html"
        self.chosen = path / "chosen.parquet"
        self.damage_page = path / "damage.md"
        self.row_stores = path / "cache"

    def is_run_folder(self) -> bool:
        """Whether the folder holds a run's files, if only those that it writes before its first step."""
        return any(path.is_file() for path in (self.metrics_jsonl, self.summary_json, self.operative_gin))

    def summary(self) -> Summary | None:
        """The run's summary; ``None`` where it was killed or is still running.

        Raises:
            DataError: the file cannot be read, or is no whole summary.
        """
        document = read_object(self.summary_json)
        try:
            return None if document is None else Summary.from_json(document)
        except ValueError as error:
            raise DataError(f"{shown(self.summary_json)}: {error}") from error

    def write_summary(self, summary: Summary) -> None:
        """Write the summary, whole or not at all."""
        write_json(self.summary_json, masked(summary.to_json()))

    def write_evaluated(self, found: Mapping[str, Any]) -> None:
        """Write what ``tools/evaluate.py`` has measured, whole or not at all."""
        write_json(self.evaluated_json, found)

    def has_finished(self) -> bool:
        """Whether a run has spent its budget here; raises as ``summary``."""
        summary = self.summary()
        return summary is not None and summary.status == "finished"

    def environment(self) -> Mapping[str, Any]:
        """What the run's figures depend on beside its configuration; empty where that cannot be read."""
        try:
            return read_object(self.environment_json) or {}
        except DataError:
            return {}

    def identity(self) -> Mapping[str, Any]:
        """What run the folder holds: ``config_hash``, ``seed`` …; empty where that cannot be read."""
        run = self.environment().get("run")
        return run if isinstance(run, dict) else {}

    def read_rows(self, most: int | None = None) -> tuple[tuple[Row, ...], tuple[str, ...]]:
        """The logged steps in order, and what was wrong with the file.

        There is one row for each step, of the trunk and of each branch (``RUNG``), which stands where it was run.

        Args:
            most: rows that are parsed of those without an evaluation, about, evenly spread and the last among them;
                ``None``: all.

        Raises:
            DataError: the file cannot be read.
        """
        if not self.metrics_jsonl.is_file():
            return (), (f"{self.metrics_jsonl.name} is missing",)
        try:
            content = self.metrics_jsonl.read_bytes()
        except OSError as error:
            raise DataError(f"{shown(self.metrics_jsonl)}: cannot be read: {error}") from error
        lines = _lines(content, most)
        rows: dict[tuple[float, float], dict[str, float]] = {}  # by rung, 0 on the trunk, and step
        newest: dict[float, float] = {}
        broken: list[int] = []
        for number, line in lines:
            # A line torn inside a character is not UTF-8 any more, and must reach the parser that reports it.
            row = parse_row(line.decode("utf-8", errors="replace"))
            if row is None:
                broken.append(number)
                continue
            rung, step = row.get(RUNG, 0), row["step"]
            if step < newest.get(rung, step):
                # A resumed run repeats the steps after its checkpoint: the rows of the repetition count.
                first = next(place for place, (of, at) in enumerate(rows) if of == rung and at >= step)
                rows = dict(islice(rows.items(), first))
                newest = dict(rows.keys())
            rows.setdefault((rung, step), {}).update(row)
            newest[rung] = step
        last = lines[-1][0] if lines else 0
        name, torn = self.metrics_jsonl.name, last in broken
        problems = [f"{name}: line {number} is not a row and is left out" for number in broken if number < last]
        return tuple(rows.values()), (*problems, *([f"{name}: the last line is torn and is left out"] if torn else ()))

    def results(self) -> dict[int, Results]:
        """The results of each decayed evaluation, by the FLOPs of its budget, the smallest first.

        Raises:
            DataError: a file cannot be read, or does not hold the arrays of an evaluation.
        """
        found = {}
        for path in self.evaluations.glob("*.npz"):
            try:
                with np.load(path) as arrays:
                    found[int(path.stem)] = Results.of_arrays(arrays)
            except (OSError, ValueError, KeyError, BadZipFile) as error:
                # numpy takes all that is no archive for a pickle, and advises how to run it.
                said = f": {error}" if is_zipfile(path) else " (no .npz file)"
                raise DataError(f"{shown(path)}: no results of an evaluation{said}") from error
        return dict(sorted(found.items()))

    def write_results(self, budget: int, results: Results) -> None:
        """Write the results of the evaluation at a budget, in FLOPs, whole or not at all; nothing without any."""
        if results.rankings:
            self.evaluations.mkdir(exist_ok=True)
            with whole(self.evaluations / f"{budget}.npz") as path, path.open("wb") as file:
                arrays: dict[str, Any] = dict(results.arrays())
                np.savez_compressed(file, **arrays)

    def final_value(self, metric: str) -> float | None:
        """The last value that the run logged of a metric, on its trunk; ``None`` where it never did."""
        rows, _ = self.read_rows()
        return next((row[metric] for row in reversed(rows) if metric in row and RUNG not in row), None)

    def last_row(self) -> Row:
        """The newest whole row, read from the end of the file; empty where there is none."""
        try:
            with self.metrics_jsonl.open("rb") as file:
                file.seek(max(0, self.metrics_jsonl.stat().st_size - 2**16))
                lines = file.read().decode("utf-8", errors="replace").splitlines()
        except OSError:
            return {}
        return next((row for line in reversed(lines) if (row := parse_row(line)) is not None), {})

    def whole_checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step-*[0-9]"))  # no copy beside them, step-….bak

    def newest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; ``None`` where there is none."""
        return next(reversed(self.whole_checkpoints()), None)


def _lines(content: bytes, most: int | None) -> list[tuple[int, bytes]]:
    """The lines to parse, each with its number: see ``read_rows``. Lines that are not whole rows are among them."""
    byte_C = np.frombuffer(content, np.uint8)
    end_N = np.flatnonzero(byte_C == ord("\n"))
    if not content.endswith(b"\n"):
        end_N = np.append(end_N, len(content))
    start_N = np.concatenate([[0], end_N[:-1] + 1]) if len(end_N) else end_N
    kept_N = np.ones(len(end_N), dtype=np.bool_)
    if most is not None and len(end_N) > most:
        kept_N = np.arange(len(end_N))[::-1] % -(-len(end_N) // most) == 0
        kept_N |= (byte_C[start_N] != ord("{")) | (byte_C[end_N - 1] != ord("}"))
        at = content.find(_EVALUATION)
        while at >= 0:
            line = int(np.searchsorted(end_N, at))
            kept_N[line] = True
            at = content.find(_EVALUATION, int(end_N[line]))
    found = ((int(line) + 1, content[start_N[line] : end_N[line]]) for line in np.flatnonzero(kept_N))
    return [(number, line) for number, line in found if line.strip()]


def parse_row(line: str) -> dict[str, float] | None:
    """The numbers of one line of ``metrics.jsonl``; ``None`` where the line is not a row (torn, say)."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    return {key: value for key, value in record.items() if is_number(value)}


def is_number(value: object) -> bool:
    """Whether a JSON value is a number; Python counts truth values among the integers."""
    return isinstance(value, int | float) and not isinstance(value, bool)
