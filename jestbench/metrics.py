"""Where numbers go: an append-only JSONL (the source of truth), W&B, and a progress line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

Value = float | int
STEP_METRIC = "flops/total"


@dataclass(frozen=True)
class Log:
    """How often metrics are written.

    Attributes:
        every: steps between two rows; a row with an evaluation is always written.
        progress: show a progress line.
    """

    every: int = 10
    progress: bool = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"log.every must be at least 1 step, got {self.every}")


@dataclass(frozen=True)
class WandB:
    """Weights & Biases.

    Attributes:
        mode: ``auto`` is online under a W&B sweep agent or where WANDB_MODE says so, else offline.
        project: of the run.
        group: of the run; a local sweep sets it to its name.
    """

    mode: Literal["auto", "offline", "online", "disabled"] = "auto"
    project: str = "jestbench"
    group: str = ""

    def resolved(self) -> Literal["offline", "online", "disabled"]:
        """The mode that ``auto`` stands for."""
        if self.mode != "auto":
            return self.mode
        asked = os.environ.get("WANDB_MODE", "online" if os.environ.get("WANDB_SWEEP_ID") else "offline")
        if asked in ("disabled", "dryrun"):
            return "disabled"
        return "online" if asked in ("online", "run") else "offline"


class Jsonl:
    """One JSON object a line; every row is on disk before the next step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    @staticmethod
    def cut(path: Path, step: int) -> None:
        """Drop the rows after a step, and a torn last line: what a resumed run will write again."""
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if row["step"] <= step:
                    kept.append(line + "\n")
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(path)

    def write(self, row: Mapping[str, Value]) -> None:
        """Append a row."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WandBSink:
    """The same rows in W&B, over ``flops/total``.

    A resumed run is a new W&B run of the same group: resuming one offline would overwrite its first
    part when synced (wandb#3841).
    """

    def __init__(
        self, config: WandB, run_dir: Path, name: str, job_type: str, flat: Mapping[str, Any], notes: str
    ) -> None:
        import wandb

        mode = config.resolved()
        self._run = wandb.init(
            mode=mode,
            project=config.project,
            group=config.group or None,
            job_type=job_type,
            name=name,
            notes=notes or None,
            dir=str(run_dir),
            config=dict(flat),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        self._run.define_metric(STEP_METRIC)
        self._run.define_metric("*", step_metric=STEP_METRIC)

    def write(self, row: Mapping[str, Value]) -> None:
        """Log a row; integers as floats, since 64-bit ones are unsafe in a browser."""
        self._run.log({name: float(value) for name, value in row.items()})

    def close(self, summary: Mapping[str, Any], failed: bool) -> None:
        """Write the summary and finish."""
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(failed))


class Metrics:
    """All sinks of a run."""

    def __init__(self, run_dir: Path, sink: WandBSink | None, log: Log, title: str) -> None:
        self._jsonl = Jsonl(run_dir / "metrics.jsonl")
        self._sink, self._log = sink, log
        live = sys.stderr.isatty()
        self._bar = tqdm(
            total=1.0,
            desc=title,
            disable=not log.progress,
            mininterval=0.2 if live else 10,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining} {postfix}",
            file=sys.stderr,
        )
        self._shown: dict[str, str] = {}

    def due(self, step: int) -> bool:
        """Whether a row is due after this step."""
        return step % self._log.every == 0

    def write(self, row: Mapping[str, Value]) -> None:
        """One row to all sinks."""
        self._jsonl.write(row)
        if self._sink is not None:
            self._sink.write(row)
        for name in ("eval/zero_shot_top5",):
            if name in row:
                self._shown[name.removeprefix("eval/")] = f"{100 * row[name]:.1f}%"

    def progress(self, share: float, pairs_seen: int, flops: int, seconds: float) -> None:
        """Move the progress line: budget spent, pairs/s, FLOP/s, metric, time left."""
        speed = {
            "pairs/s": f"{pairs_seen / max(seconds, 1e-9):.0f}",
            "FLOP/s": f"{flops / max(seconds, 1e-9):.2g}",
        }
        self._bar.set_postfix(speed | self._shown, refresh=False)
        self._bar.update(min(1.0, share) - self._bar.n)

    def close(self, summary: Mapping[str, Any], failed: bool) -> None:
        """Close all sinks."""
        self._bar.close()
        self._jsonl.close()
        if self._sink is not None:
            self._sink.close(summary, failed)
