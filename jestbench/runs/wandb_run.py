"""One W&B run: rows, tables and the comparison. The only module that imports wandb."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jestbench.config.log import WandB
from jestbench.masking import masked
from jestbench.runs.examples import ExampleTable
from jestbench.runs.folder import RUNG, RunFolder

Value = float | int
PROJECT = "jestbench"
STEP_METRIC = "flops/total"


@dataclass(frozen=True)
class Label:
    """What a run is called in W&B.

    Attributes:
        name: of the run, where the configuration gives none.
        job_type: the policy; ``reference`` for a model trained on demand, ``comparison`` for a summary run.
        group: of the run, where neither the configuration nor WANDB_RUN_GROUP gives one.
        own_id: use a fresh id, whatever WANDB_RUN_ID is: a resumed run with the same id would overwrite its first part.
        in_sweep: whether this is the run that W&B's agent started the process for.
    """

    name: str
    job_type: str
    group: str = ""
    own_id: bool = False
    in_sweep: bool = True


_ONE_RUN_S = ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_ID", "WANDB_NAME")
"""Variables that are about the run alone which the process was started for."""


@contextmanager
def _without_the_agent(hide: bool) -> Iterator[None]:
    """Hide the agent's run: a reference that an arm trains first would take its id, name and place in the sweep."""
    hidden = {name: os.environ.pop(name) for name in _ONE_RUN_S if hide and name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _masked_arguments() -> Iterator[None]:
    """Mask credentials in the command line, which W&B stores."""
    before = sys.argv
    sys.argv = masked(before)
    try:
        yield
    finally:
        sys.argv = before


def start_wandb(config: WandB, folder: Path, label: Label, flat: Mapping[str, Any]) -> Any:
    """Start a W&B run that lies in ``folder/wandb``.

    Raises:
        ValueError: W&B refuses the run (online without a key, say); the message gives the remedy.
    """
    import wandb

    mode = config.resolved()
    group = config.group or os.environ.get("WANDB_RUN_GROUP") or os.environ.get("WANDB_SWEEP_ID") or label.group
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    try:
        with _without_the_agent(not label.in_sweep), _masked_arguments():
            return wandb.init(
                mode=mode,
                project=config.project or os.environ.get("WANDB_PROJECT") or PROJECT,
                entity=config.entity or None,
                group=masked(group) or None,
                job_type=label.job_type,
                name=masked(config.name or os.environ.get("WANDB_NAME") or label.name),
                id=secrets.token_hex(4) if label.own_id else None,
                tags=masked(list(config.tags)) or None,
                notes=masked(config.notes) or None,
                dir=str(folder),
                config={name: masked(_safe(value)) for name, value in flat.items()},
                settings=settings,
            )
    except wandb.Error as error:
        remedy = ": log in (wandb login), or say wandb.mode=offline" if mode == "online" else ""
        raise ValueError(f"W&B cannot start this run ({mode}): {error}{remedy}") from error


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

    Of a ladder's branches only the evaluations are logged, as ``ladder/…`` over ``ladder/rung``: a branch runs ahead of
    the trunk, and ``flops/total`` would go back at its end.

    A resumed run is a new W&B run of the same group: resuming one offline would overwrite its first
    part when synced (wandb#3841).
    """

    def __init__(self, config: WandB, run_dir: Path, label: Label, flat: Mapping[str, Any]) -> None:
        self._run = start_wandb(config, run_dir, label, flat)
        self._last_of_process = label.in_sweep
        self._run.define_metric(STEP_METRIC)
        self._run.define_metric("*", step_metric=STEP_METRIC)
        self._run.define_metric(RUNG)
        _keep(self._run, RunFolder(run_dir).config_gin, RunFolder(run_dir).operative_gin)

    def write(self, row: Mapping[str, Value], table: ExampleTable | None = None) -> None:
        """Log a row; integers as floats, since 64-bit ones are unsafe in a browser."""
        if (rung := row.get(RUNG)) is not None:
            kept = {name: value for name, value in row.items() if name.startswith("eval/")}
            if not kept:
                return
            row = {f"ladder/{name}": value for name, value in kept.items()}
            for name in row:  # by name: a second pattern beside "*" would not be certain to win
                self._run.define_metric(name, step_metric=RUNG)
            row = {RUNG: rung, **row}
        found: dict[str, Any] = {name: float(value) for name, value in row.items()}
        if table is not None:
            found["examples"] = _wandb_table(table)
        with _staged_with(self._run):
            self._run.log(found)

    def close(self, summary: Mapping[str, Any], failed: bool) -> None:
        """Write the summary and finish."""
        self._run.summary.update(masked(_safe(summary)))
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
    """Put a comparison into W&B as one summary run: table and frontier of each world, the plots, the page.

    Args:
        config: mode, project and the like; ``disabled`` does nothing.
        out: the folder that the comparison was written to; an offline run lies in its ``wandb/``.
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
    shown: dict[str, Any] = {
        "report": wandb.Html((out / "index.html").read_text(encoding="utf-8"), inject=False),
    }
    summary: dict[str, Any] = {}
    for number, world in enumerate([document, *document["other_worlds"]], start=1):
        # The other worlds' tables have as many rows as they have arms, and are never one table with the first.
        before = "" if number == 1 else f"world_{number}/"
        rows = [_comparison_row(arm) for arm in world["arms"]]
        shown |= {f"{before}{name}": panel for name, panel in _panels(world, rows).items()}
        of_arms = {row["label"]: row for row in rows}
        summary |= {f"{before}{key}": _safe(value) for key, value in world["world"].items()}
        summary |= {
            f"{before}{arm}/{key}": _safe(row[key]) for arm, row in of_arms.items() for key in row if key != "label"
        }
    shown |= {f"plots/{plot.stem}": wandb.Image(str(plot)) for plot in sorted(out.glob("*.png"))}
    with _staged_with(run):
        run.log(shown)
    run.summary.update(summary)
    _keep(run, out / "comparison.json", out / "comparison.md")
    folder = Path(run.dir).parent if run.offline else None
    run.finish()
    return folder


def _panels(world: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A world's table, its frontier as a table, and a panel that draws it."""
    import wandb

    columns = ["arm", "budget", "mean", "low", "high", "seeds"]
    points = [[_as_float(point[name]) for name in columns[:-1]] + [len(point["seeds"])] for point in world["frontier"]]
    title = f"{world['metric']} over the budget, decayed"
    return {
        "comparison": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows]),
        "frontier": wandb.Table(columns=columns, data=points),
        "frontier_panel": wandb.plot.line(
            wandb.Table(columns=columns[:3], data=[point[:3] for point in points]), "budget", "mean", "arm", title
        ),
    }


_PLAIN = (
    "label policy config_hash mean low high difference difference_low difference_high verdict flops_total flops_all_in "
    "pairs_seen pairs_trained seconds"
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


def _keep(run: Any, *files: Path) -> None:
    """Copy files into a W&B run; a file that lies elsewhere would become a link."""
    for file in files:
        if file.exists():
            run.save(shutil.copy(file, run.dir), base_path=run.dir, policy="now")
