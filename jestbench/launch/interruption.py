"""The summary of a run that was interrupted where no step is done: in preparation, or before its first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jestbench.batch import DataError
from jestbench.config.resolved import Resolved
from jestbench.cost.budget import Allowance
from jestbench.cost.tracing import FLOPS_PER_MAC
from jestbench.launch.stands import spent_by_now
from jestbench.runs.folder import RunFolder
from jestbench.runs.summary import Summary, begun


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
    row, pretrain = folder.last_row(), spent_by_now(resolved)
    flops = {name.removeprefix("flops/"): int(value) for name, value in row.items() if name.startswith("flops/")}
    total = flops.setdefault("total", 0)
    try:
        allowance = resolved.run.allowance({role: spent or 0 for role, spent in pretrain.items()}, resolved.added_flops)
    except ValueError:  # it would have been refused: no rung of such a run has ended
        allowance = Allowance(None, None, None)
    return replace(
        begun(resolved, allowance, "interrupted"),
        steps=int(row.get("step", 0)),
        pairs_seen=int(row.get("pairs/seen", 0)),
        pairs_trained=int(row.get("pairs/trained", 0)),
        overshoot=None if allowance.flops is None else total - allowance.flops,
        flops=flops,
        macs_total=total // FLOPS_PER_MAC,
        pretrain_flops=pretrain,
        seconds=row.get("time/seconds", 0.0),
        appended=tuple(folder.identity().get("appended", ())),
    )
