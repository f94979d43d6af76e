"""The summary of a run that was interrupted where no step is done: in preparation, or before its first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jestbench.batch import DataError
from jestbench.config.resolved import Resolved
from jestbench.cost.tracing import FLOPS_PER_MAC
from jestbench.runs.folder import RunFolder
from jestbench.runs.summary import ScheduleRecord, Summary


def record_interruption(resolved: Resolved, run_dir: Path) -> None:
    """Write ``interrupted`` into the summary of a run folder; a folder without a run, or of a finished one, stays.

    Where the run has no summary yet, its counts are those of its last row, or zero.
    """
    folder = RunFolder(run_dir)
    if not folder.is_run_folder():
        return
    try:
        summary = folder.summary()
    except DataError:
        summary = None
    if summary is None or summary.status != "finished":
        folder.write_summary(replace(summary or _at_last_row(resolved, folder), status="interrupted"))


def _at_last_row(resolved: Resolved, folder: RunFolder) -> Summary:
    run, row = resolved.run, folder.last_row()
    flops = {name.removeprefix("flops/"): int(value) for name, value in row.items() if name.startswith("flops/")}
    total = flops.setdefault("total", 0)
    return Summary(
        arm=run.arm,
        policy=resolved.policy_name,
        config_hash=resolved.config_hash,
        frontier_hash=resolved.frontier_hash,
        schedule=ScheduleRecord(run.optimizer.schedule),
        seed=run.seed,
        status="interrupted",
        steps=int(row.get("step", 0)),
        pairs_seen=int(row.get("pairs/seen", 0)),
        pairs_trained=int(row.get("pairs/trained", 0)),
        budget=None if run.budget is None else int(run.budget),
        overshoot=None if run.budget is None else total - int(run.budget),
        flops=flops,
        macs_total=total // FLOPS_PER_MAC,
        flops_amortised=0,
        pretrain_flops={},
        pretrain_in_budget=0,
        added_to_budget=0,
        seconds=row.get("time/seconds", 0.0),
        learning_rate=run.optimizer.learning_rate,
        measures={},
        metrics={},
        references=(),
        data={},
        warnings=(),
        control=run.control or not resolved.policy.needs,
        fingerprints={},
    )
