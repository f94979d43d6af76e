"""Run folders that no run has written, and what a test reads of their comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jestbench.compare.comparison import Arm, Comparison
from jestbench.evals.results import Ranking, Results
from jestbench.runs.folder import RunFolder
from jestbench.runs.summary import ScheduleRecord, Summary

METRIC = "eval/top1"
HITS = "eval/zero_shot_top1"
AXES = ("flops", "flops_all_in", "pairs_seen", "pairs_trained", "seconds")

Points = Sequence[tuple[int, float]]

UNIFORM: Points = [(0, 0.0), (50, 0.2), (100, 0.4)]


def write_run(
    folder: Path,
    points: Points,
    *,
    arm: str = "uniform",
    seed: int = 0,
    config_hash: str | None = None,
    frontier_hash: str | None = None,
    status: str = "finished",
    rungs: Points = (),
    step_flops: int = 1,
    seen_per_flop: float = 1,
    trained_per_flop: float = 1,
    seconds_per_flop: float = 0.1,
    metric: str = METRIC,
    environment: Mapping[str, object] | None = None,
    **summary: object,
) -> Path:
    """Write a run.

    Args:
        points: FLOPs spent and value of the evaluations on the trunk, whose last is the run's end.
        rungs: the same of a ladder's rungs before the last.
        summary: other fields of the summary, as JSON.
    """
    folder.mkdir(parents=True)

    def row(flops: int, value: float) -> dict[str, float]:
        return {
            "step": flops // step_flops,
            "pairs/seen": int(flops * seen_per_flop),
            "pairs/trained": int(flops * trained_per_flop),
            "flops/total": flops,
            "flops/learner_train": flops - flops // 4,
            "flops/learner_score": flops // 4,
            "flops/eval": 7,
            "time/seconds": flops * seconds_per_flop,
            metric: value,
        }

    rows = [row(*point) for point in points]
    end = rows[-1]
    for flops, value in rungs:
        # A branch ends beyond the place where it has left the trunk.
        place = next(index for index, known in enumerate(rows) if known["flops/total"] >= 0.9 * flops)
        rows.insert(place, row(flops, value) | {"ladder/rung": flops})
        for later in rows[place:]:
            later["flops/rungs"] = later.get("flops/rungs", 0) + flops // 5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ladder = ScheduleRecord("ladder", (*(flops for flops, _ in rungs), int(end["flops/total"])), 0.2)
    described = Summary(
        arm=arm,
        policy=arm,
        config_hash=config_hash or f"hash-of-{arm}",
        frontier_hash=frontier_hash or config_hash or f"hash-of-{arm}",
        schedule=ladder if rungs else ScheduleRecord(),
        seed=seed,
        status="finished",
        steps=int(end["step"]),
        pairs_seen=int(end["pairs/seen"]),
        pairs_trained=int(end["pairs/trained"]),
        budget=int(end["flops/total"]),
        overshoot=0,
        flops={"total": int(end["flops/total"])},
        macs_total=int(end["flops/total"]) // 2,
        flops_amortised=0,
        pretrain_flops={},
        pretrain_in_budget=0,
        added_to_budget=0,
        seconds=end["time/seconds"],
        learning_rate=0.001,
        measures={},
        metrics={metric: end[metric]},
        references=(),
        data={},
        warnings=(),
        control=arm == "uniform",
        fingerprints={"training": "t", "evaluation": "e"},
    )
    (folder / "summary.json").write_text(json.dumps(described.to_json() | {"status": status} | summary))
    if environment is not None:
        (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def write_hits(folder: Path, budget: int, hit_N: Any, unit_N: Any, key_N: Any = None) -> None:
    """Write the per-example results of a decayed evaluation: ``HITS`` of a run."""
    hit_N = np.asarray(hit_N)
    keys = np.arange(len(hit_N)) if key_N is None else np.asarray(key_N)
    ranking = Ranking(np.where(hit_N, 1, 9).astype(np.int64), np.asarray(unit_N, np.int64), keys.astype(np.int64))
    RunFolder(folder).write_results(budget, Results({"zero_shot": ranking}))


def page_text(out: Path) -> str:
    """The page of a comparison without what it draws its charts with."""
    text = (out / "index.html").read_text(encoding="utf-8")
    return re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)


def strict(text: str) -> dict[str, Any]:
    """Parse JSON without NaN and infinities, which strict JSON lacks."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"not JSON: {constant}")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def arm_of(comparison: Comparison, label: str) -> Arm:
    return next(arm for arm in comparison.arms if arm.label == label)


def speedups(comparison: Comparison, label: str) -> dict[str, tuple[float | None, str | None]]:
    return {axis: (s.value, s.kind) for axis, s in arm_of(comparison, label).speedup.items()}


def warned(comparison: Comparison, *words: str) -> bool:
    return any(all(word in warning for word in words) for warning in comparison.warnings)
