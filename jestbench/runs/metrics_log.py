"""Where numbers go: an append-only JSONL (the source of truth), W&B, and a progress line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jestbench.config.log import Log
from jestbench.disk import write_text
from jestbench.runs.examples import ExampleTable
from jestbench.runs.folder import Row, RunFolder, parse_row
from jestbench.runs.wandb_run import Value, WandBSink


class Jsonl:
    """One JSON object a line; every row is on disk before the next step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)  # no row waits in memory, to fail once more when the file is closed

    @staticmethod
    def cut(path: Path, holds: Callable[[Row], bool]) -> None:
        """Keep the rows that a checkpoint holds: a resumed run will write the others again; a torn line is dropped."""
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                row = parse_row(line)
                if row is not None and holds(row):
                    kept.append(line + "\n")
        write_text(path, "".join(kept))

    def write(self, row: Mapping[str, Value]) -> None:
        """Append a row."""
        left = memoryview((json.dumps(row, allow_nan=False) + "\n").encode())
        while left:  # a disk that fills up may take a part
            left = left[self._file.write(left) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Lines:
    """A log that is no terminal: a bar's states become lines."""

    def write(self, text: str) -> None:
        """Write a state, without what moves a terminal's cursor."""
        line = text.replace("\r", "").replace("\x1b[A", "").strip()
        if line:
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        """Flush the log."""
        sys.stderr.flush()


class Metrics:
    """All sinks of a run.

    Args:
        title: of the progress line.
        writes: false on the ranks other than 0, which write nothing.
    """

    def __init__(self, run_dir: Path, sink: WandBSink | None, log: Log, title: str, writes: bool = True) -> None:
        self._jsonl = Jsonl(RunFolder(run_dir).metrics_jsonl) if writes else None
        self._sink, self._log = sink, log
        live = sys.stderr.isatty()
        self._bar = tqdm(
            total=1.0,
            desc=title,
            disable=not (log.progress and writes),
            mininterval=0.2 if live else 30,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"
            if live
            else "{desc} {percentage:3.0f}%, {elapsed}, {remaining} left{postfix}",
            file=sys.stderr if live else _Lines(),
        )
        self._shown: dict[str, str] = {}

    def due(self, step: int) -> bool:
        """Whether a row is due after this step."""
        return step % self._log.every == 0

    def write(self, row: Mapping[str, Value], table: ExampleTable | None = None) -> None:
        """One row to all sinks; with it a table of examples, which the JSONL has no place for."""
        if self._jsonl is not None:
            self._jsonl.write(row)
        if self._sink is not None:
            self._sink.write(row, table)
        if (top5 := row.get("eval/zero_shot_top5")) is not None:
            self._shown["zero_shot_top5"] = f"{100 * top5:.1f}%"

    def progress(self, share: float, pairs_seen: int, flops: int, seconds: float) -> None:
        """Move the progress line: budget spent, pairs/s, FLOP/s, metric, time left."""
        speed = {
            "pairs/s": f"{pairs_seen / max(seconds, 1e-9):.0f}",
            "FLOP/s": f"{flops / max(seconds, 1e-9):.2g}",
        }
        self._bar.set_postfix(speed | self._shown, refresh=False)
        self._bar.update(max(0.0, min(1.0, share) - self._bar.n))  # the trunk begins behind the end of its branches

    def close(self, summary: Mapping[str, Any], failed: bool) -> None:
        """Close all sinks."""
        self._bar.close()
        try:
            if self._jsonl is not None:
                self._jsonl.close()
        finally:
            if self._sink is not None:
                self._sink.close(summary, failed)
