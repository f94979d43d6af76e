"""Reads an interrupted ladder as the ladder that ends at its last ended rung: what it has shown by then is final."""

from __future__ import annotations

from dataclasses import replace

from jestbench.compare.load import EVAL, RunRecord, final_numbers
from jestbench.runs.folder import RUNG


def so_far(run: RunRecord) -> tuple[RunRecord, str] | None:
    """The record of a ladder of the rungs that have ended.

    A ladder's rows do not depend on the rungs that come later (docs/ladders.md): the trunk up to where the last ended
    rung left it, and the end of that rung's branch, are what a run with these rungs alone leaves.

    Returns:
        The record, and a note on it; ``None`` where no rung has ended.
    """
    summary = run.summary
    before = summary.pretrain_in_budget
    ended = tuple(
        rung
        for rung in summary.schedule.rungs
        if rung in run.rung_rows and run.rung_rows[rung].get("flops/total", 0) + before >= rung
    )
    if not ended:
        return None
    last = {key: value for key, value in run.rung_rows[ended[-1]].items() if key != RUNG}
    left = (1 - summary.schedule.cooldown) * ended[-1] - before
    rows = (*(row for row in run.rows if row.get("flops/total", 0) <= left), last)
    flops = {purpose: int(last.get(f"flops/{purpose}", value)) for purpose, value in summary.flops.items()}
    shorter = replace(
        summary,
        status="finished",
        schedule=replace(summary.schedule, rungs=ended),
        steps=int(last["step"]),
        pairs_seen=int(last.get("pairs/seen", 0)),
        pairs_trained=int(last.get("pairs/trained", 0)),
        budget=ended[-1] - summary.added_to_budget,
        overshoot=flops["total"] + before - ended[-1],
        flops=flops,
        macs_total=summary.macs_total * flops["total"] // summary.flops["total"],
        seconds=last.get("time/seconds", summary.seconds),
        metrics={key: value for key, value in last.items() if key.startswith(EVAL)},
    )
    rungs = {rung: row for rung, row in run.rung_rows.items() if rung in ended[:-1]}
    spent = summary.flops["total"] + before
    note = f"{summary.status} at {spent:.3e} FLOPs: it counts as the ladder that ends at its rung of {ended[-1]:.3e}"
    return replace(run, summary=shorter, rows=rows, rung_rows=rungs, final=final_numbers(rows, shorter)), note
