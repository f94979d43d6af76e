"""A comparison as strict JSON, for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jestbench.compare.comparison import Arm, Comparison, Pays, Table
from jestbench.compare.crossings import Speedup
from jestbench.compare.paths import relative
from jestbench.compare.statistics import Interval
from jestbench.compare.wording import sentence


def to_json(comparison: Comparison, out: Path) -> str:
    """Write a comparison as strict JSON, with paths relative to ``out``.

    The first world stands at the top level; ``other_worlds`` holds objects with the same keys for the others.
    """
    first, *others = (table_json(table, out) for table in comparison.tables)
    document = first | {
        "other_worlds": others,
        "excluded": [
            {"run": relative(run.folder, out), "arm": run.arm, "seed": run.seed, "reason": run.reason}
            for run in comparison.excluded
        ],
        **_named(comparison, "warnings", "command", "created", "environment"),
    }
    return json.dumps(_strict(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def table_json(table: Table, out: Path) -> dict[str, Any]:
    """A table as JSON, with paths relative to ``out``."""
    return {
        **_named(table, "metric", "lower_is_better"),
        "chance": table.measure.chance,
        "world": dict(table.about),
        **_named(table, "baseline", "budget", "rule"),
        "arms": [_arm_json(arm, table, out) for arm in table.arms],
        "references": [
            _named(row, "name", "arms", "value", "flops_total")
            | {"run": relative(row.folder, out) if row.folder else None}
            for row in table.references
        ],
        "frontier": [
            {"arm": point.arm, "budget": point.budget, **_ends("mean", point.mean), "seeds": point.seeds}
            for point in table.frontier
        ],
        "crossings": [crossing for pays in table.pays for crossing in _crossings_json(pays)],
        "data": dict(table.facts),
    }


def _arm_json(arm: Arm, table: Table, out: Path) -> dict[str, Any]:
    found = arm.difference
    return {
        **_named(arm, "arm", "label", "policy", "config_hash", "frontier_hash", "seeds", "values"),
        **_ends("mean", arm.mean),
        "difference": found.value if found else None,
        "difference_low": found.low if found else None,
        "difference_high": found.high if found else None,
        "verdict": arm.verdict,
        "difference_seeds": found.seeds if found else None,
        "pointwise_low": found.pointwise_low if found else None,
        "pointwise_high": found.pointwise_high if found else None,
        "sentence": sentence(arm, table) or None,
        "seed_deviation": _ends("value", arm.deviation) if arm.deviation else None,
        **_named(arm, "budget", "undecayed", "added_to_budget"),
        "end": _ends("mean", arm.end),
        "speedup": {axis: _speedup_json(speedup) for axis, speedup in arm.speedup.items()},
        "speedup_to_end": {axis: _speedup_json(speedup) for axis, speedup in arm.speedup_to_end.items()},
        "reach": {axis: {"arm": speedup.arm, "baseline": speedup.baseline} for axis, speedup in arm.speedup.items()},
        **_named(arm, "flops_total", "flops_by_purpose", "flops_eval", "flops_rungs", "pretrain_flops"),
        "starts": [asdict(start) for start in {member.run.summary.start for member in arm.runs} if start is not None],
        **_named(
            arm, "pretrain_in_budget", "flops_amortised", "flops_all_in", "pairs_seen", "pairs_trained", "seconds"
        ),
        "runs": [relative(member.run.folder, out) for member in arm.runs],
    }


def _named(value: object, *names: str) -> dict[str, Any]:
    """Attributes under their own names."""
    return {name: getattr(value, name) for name in names}


def _ends(name: str, found: Interval) -> dict[str, float | None]:
    return {name: found.value, "low": found.low, "high": found.high}


def _speedup_json(speedup: Speedup) -> dict[str, Any]:
    return {
        "value": speedup.value,
        "low": speedup.low,
        "high": None if speedup.value is None else speedup.high,
        "kind": speedup.kind,
        "absent": speedup.absent or None,
    }


def _crossings_json(pays: Pays) -> list[dict[str, Any]]:
    """The crossings of two frontiers; one entry without a budget where there is none."""
    pair = {"arm": pays.arm, "other": pays.other, "from": pays.start, "to": pays.end}
    if not pays.crossings:
        same = {None: "level", True: "better", False: "worse"}[pays.ahead]
        return [pair | {"budget": None, "low": None, "high": None, "before": same, "after": same}]
    return [pair | asdict(crossing) for crossing in pays.crossings]


def _strict(value: Any) -> Any:
    """Replace NaN and infinities, which strict JSON lacks, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    return value
