"""Where numbers go: an append-only JSONL (the source of truth), W&B, and a progress line."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from jestbench.examples import ExampleTable

Value = float | int
PROJECT = "jestbench"
STEP_METRIC = "flops/total"


@dataclass(frozen=True)
class Log:
    """How often metrics are written, and pairs are shown.

    Attributes:
        every: steps between two rows; a row with an evaluation or with examples is always written.
        progress: show a progress line.
        examples: tables of chosen and refused pairs over the budget, evenly spaced, with one more after
            the first step; in the run folder's ``examples/`` and in W&B. 0 for none.
        examples_count: pairs of either kind in a table.
    """

    every: int = 10
    progress: bool = True
    examples: int = 0
    examples_count: int = 8

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"log.every must be at least 1 step, got {self.every}")
        if self.examples < 0:
            raise ValueError(f"log.examples must be a number of tables, or 0 for none, got {self.examples}")
        if self.examples_count < 1:
            raise ValueError(
                f"log.examples_count must be at least 1 pair, got {self.examples_count}: log.examples = 0 is for none"
            )


@dataclass(frozen=True)
class WandB:
    """Weights & Biases. What is empty here is left to its own variables (WANDB_PROJECT, WANDB_TAGS …).

    Attributes:
        mode: ``auto`` is online under a W&B sweep agent or where WANDB_MODE says so, else offline.
        project: of the run; without one in WANDB_PROJECT either, ``jestbench``.
        entity: user or team that the project belongs to.
        group: of the run; a local sweep sets it to its name, W&B's agent to the sweep's id.
        name: of the run; otherwise its arm and seed.
        tags: of the run.
        notes: of the run.
    """

    mode: Literal["auto", "offline", "online", "disabled"] = "auto"
    project: str = ""
    entity: str = ""
    group: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""

    def __post_init__(self) -> None:
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise ValueError(f"wandb.tags: W&B takes tags of 1 to 64 characters, got {tag!r}")

    def resolved(self) -> Literal["offline", "online", "disabled"]:
        """The mode that ``auto`` stands for."""
        if self.mode != "auto":
            return self.mode
        asked = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_SWEEP_ID") else "offline")
        if asked == "disabled":
            return "disabled"
        return "online" if asked in ("online", "run") else "offline"  # "dryrun" is W&B's old word for offline


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


@dataclass(frozen=True)
class Label:
    """What a run is called in W&B.

    Attributes:
        name: of the run, where the configuration gives none.
        job_type: the policy; ``reference`` for a model trained on demand, ``comparison`` for a summary run.
        group: of the run, where neither the configuration nor WANDB_RUN_GROUP gives one.
        own_id: an id of its own, whatever WANDB_RUN_ID says: a resumed run would overwrite its first part.
        in_sweep: whether it is the run that W&B's agent has started this process for.
    """

    name: str
    job_type: str
    group: str = ""
    own_id: bool = False
    in_sweep: bool = True


_AGENT = ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_ID")


@contextmanager
def _without_the_agent(hide: bool) -> Iterator[None]:
    """Hide the agent's run: a reference that an arm trains first would take its id and its place in the sweep."""
    hidden = {name: os.environ.pop(name) for name in _AGENT if hide and name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def start_wandb(config: WandB, folder: Path, label: Label, flat: Mapping[str, Any]) -> Any:
    """Start a W&B run that lies in ``folder/wandb``.

    Raises:
        ValueError: W&B refuses it (online without a key, say); the message says what to do.
    """
    import wandb

    mode = config.resolved()
    group = config.group or os.environ.get("WANDB_RUN_GROUP") or os.environ.get("WANDB_SWEEP_ID") or label.group
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    try:
        with _without_the_agent(not label.in_sweep):
            return wandb.init(
                mode=mode,
                project=config.project or os.environ.get("WANDB_PROJECT") or PROJECT,
                entity=config.entity or None,
                group=group or None,
                job_type=label.job_type,
                name=config.name or os.environ.get("WANDB_NAME") or label.name,
                id=secrets.token_hex(4) if label.own_id else None,
                tags=list(config.tags) or None,
                notes=config.notes or None,
                dir=str(folder),
                config={name: _safe(value) for name, value in flat.items()},
                settings=settings,
            )
    except wandb.Error as error:
        raise ValueError(
            f"W&B cannot start this run ({mode}): {error}: log in (wandb login), or say wandb.mode=offline"
        ) from error


@contextmanager
def _staged_with(run: Any) -> Iterator[None]:
    """Let the pictures of an offline run's tables wait in the run's own folder, not in the user's home."""
    if not run.offline or os.environ.get("WANDB_DATA_DIR"):
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(Path(run.dir).parent)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _safe(value: Any) -> Any:
    """Integers that a browser cannot hold, as floats."""
    if isinstance(value, Mapping):
        return {name: _safe(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(part) for part in value]
    return float(value) if type(value) is int and abs(value) > 2**53 else value


class WandBSink:
    """The same rows in W&B, over ``flops/total``, with the configuration and its gin text.

    A resumed run is a new W&B run of the same group: resuming one offline would overwrite its first
    part when synced (wandb#3841).
    """

    def __init__(self, config: WandB, run_dir: Path, label: Label, flat: Mapping[str, Any]) -> None:
        self._run = start_wandb(config, run_dir, label, flat)
        self._last_of_process = label.in_sweep
        self._run.define_metric(STEP_METRIC)
        self._run.define_metric("*", step_metric=STEP_METRIC)
        _keep(self._run, run_dir, ("config.gin", "operative.gin"))

    def write(self, row: Mapping[str, Value], table: ExampleTable | None = None) -> None:
        """Log a row; integers as floats, since 64-bit ones are unsafe in a browser."""
        found: dict[str, Any] = {name: float(value) for name, value in row.items()}
        if table is not None:
            found["examples"] = _wandb_table(table)
        with _staged_with(self._run):
            self._run.log(found)

    def close(self, summary: Mapping[str, Any], failed: bool) -> None:
        """Write the summary and finish."""
        self._run.summary.update(_safe(summary))
        self._run.finish(exit_code=int(failed))
        if not self._last_of_process:
            import wandb

            wandb.teardown()  # what is started next reads the environment anew: it is the agent's run


def _wandb_table(table: ExampleTable) -> Any:
    import wandb

    rows = [
        [table.step, wandb.Image(pair.image()), pair.caption, pair.chosen, pair.score, *pair.marks.values()]
        for pair in table.examples
    ]
    columns = ["step", "image", "caption", "chosen", "score", *table.marks]
    return wandb.Table(columns=columns, data=rows)


def log_comparison(config: WandB, out: Path, name: str, group: str = "") -> Path | None:
    """Put a comparison into W&B as one summary run: its table, its plots, its page.

    Args:
        config: mode, project and the like; ``disabled`` does nothing.
        out: the folder that the comparison was written to; an offline run lies in its ``wandb/``.
        name: of the run.
        group: of the run, where neither the configuration nor WANDB_RUN_GROUP gives one.

    Returns:
        The folder of an offline run; ``None`` otherwise.

    Raises:
        ValueError: W&B refuses the run.
    """
    if config.resolved() == "disabled":
        return None
    import wandb

    document = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    facts = {key: document[key] for key in ("metric", "baseline", "budget", "lower_is_better", "data", "command")}
    label = Label(name, "comparison", group, own_id=True, in_sweep=False)
    run = start_wandb(config, out, label, facts)
    rows = [_comparison_row(arm) for arm in document["arms"]]
    shown: dict[str, Any] = {
        "comparison": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows]),
        "report": wandb.Html((out / "index.html").read_text(encoding="utf-8"), inject=False),
    }
    shown |= {f"plots/{plot.stem}": wandb.Image(str(plot)) for plot in sorted(out.glob("*.png"))}
    with _staged_with(run):
        run.log(shown)
    of_arms = {row["label"]: row for row in rows}
    run.summary.update(
        {f"{arm}/{key}": _safe(value) for arm, row in of_arms.items() for key, value in row.items() if key != "label"}
    )
    _keep(run, out, ("comparison.json", "comparison.md"))
    folder = Path(run.dir).parent if run.offline else None
    run.finish()
    return folder


_PLAIN = (
    "label policy config_hash mean low high above_baseline flops_total flops_all_in pairs_seen pairs_trained seconds"
).split()


def _comparison_row(arm: Mapping[str, Any]) -> dict[str, Any]:
    """One arm of ``comparison.json`` as a row: plain values, and speed-ups by axis."""
    row: dict[str, Any] = {name: _as_float(arm[name]) for name in _PLAIN}
    row["seeds"] = ", ".join(str(seed) for seed in arm["seeds"])
    for axis, speedup in arm["speedup"].items():
        row[f"speedup/{axis}"] = _as_float(speedup["value"])
        row[f"speedup/{axis}/kind"] = speedup["kind"]
    return row


def _as_float(value: Any) -> Any:
    return float(value) if type(value) is int else value  # a column of a W&B table has one type


def _keep(run: Any, folder: Path, names: Sequence[str]) -> None:
    """Copy files into a W&B run; a file that lies elsewhere would become a link."""
    for name in names:
        if (folder / name).exists():
            run.save(shutil.copy(folder / name, run.dir), base_path=run.dir, policy="now")


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

    def write(self, row: Mapping[str, Value], table: ExampleTable | None = None) -> None:
        """One row to all sinks; with it a table of examples, which the JSONL has no place for."""
        self._jsonl.write(row)
        if self._sink is not None:
            self._sink.write(row, table)
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


class Unwritten(Metrics):
    """What the other processes of a run do with the rows that the first one writes: nothing."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def write(self, row: Mapping[str, Value], table: ExampleTable | None = None) -> None:
        """Nothing."""

    def progress(self, share: float, pairs_seen: int, flops: int, seconds: float) -> None:
        """Nothing."""

    def close(self, summary: Mapping[str, Any], failed: bool) -> None:
        """Nothing."""
