"""A comparison as strict JSON, for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jestbench.compare.comparison import Arm, Comparison, Speedup
from jestbench.compare.wording import relative


def to_json(comparison: Comparison, out: Path) -> str:
    """Write a comparison as strict JSON, with paths relative to ``out``."""
    document = {
        "metric": comparison.metric,
        "lower_is_better": comparison.lower_is_better,
        "baseline": comparison.baseline,
        "budget": comparison.budget,
        "arms": [_arm_json(arm, out) for arm in comparison.arms],
        "references": [
            {
                "name": row.name,
                "arms": row.arms,
                "value": row.value,
                "flops_total": row.flops_total,
                "run": relative(row.folder, out) if row.folder else None,
            }
            for row in comparison.references
        ],
        "excluded": [
            {"run": relative(run.folder, out), "arm": run.arm, "seed": run.seed, "reason": run.reason}
            for run in comparison.excluded
        ],
        "warnings": comparison.warnings,
        "data": dict(comparison.facts),
        "command": comparison.command,
        "created": comparison.created,
        "environment": comparison.environment,
    }
    return json.dumps(_strict(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _arm_json(arm: Arm, out: Path) -> dict[str, Any]:
    paired = arm.paired
    return {
        "arm": arm.arm,
        "label": arm.label,
        "policy": arm.policy,
        "config_hash": arm.config_hash,
        "seeds": arm.seeds,
        "values": arm.values,
        "mean": arm.mean,
        "low": arm.low,
        "high": arm.high,
        "evaluation_error": arm.evaluation_error,
        "budget": arm.budget,
        "undecayed": arm.undecayed,
        "added_to_budget": arm.added_to_budget,
        "end": dict(zip(("mean", "low", "high"), arm.end, strict=True)),
        "above_baseline": str(paired) if paired else None,
        "difference": {"seeds": paired.seeds, "mean": paired.mean, "low": paired.low, "high": paired.high}
        if paired
        else None,
        "speedup": {axis: _speedup_json(speedup) for axis, speedup in arm.speedup.items()},
        "reach": {axis: {"arm": speedup.arm, "baseline": speedup.baseline} for axis, speedup in arm.speedup.items()},
        "flops_total": arm.flops_total,
        "flops_by_purpose": dict(arm.flops_by_purpose),
        "flops_eval": arm.flops_eval,
        "pretrain_flops": arm.pretrain_flops,
        "pretrain_in_budget": arm.pretrain_in_budget,
        "flops_amortised": arm.flops_amortised,
        "flops_all_in": arm.flops_all_in,
        "pairs_seen": arm.pairs_seen,
        "pairs_trained": arm.pairs_trained,
        "seconds": arm.seconds,
        "runs": [relative(member.run.folder, out) for member in arm.runs],
    }


def _speedup_json(speedup: Speedup) -> dict[str, Any]:
    # Neither kind has an interval yet; the keys are there so that scripts can rely on them.
    return {"value": speedup.value, "low": None, "high": None, "kind": speedup.kind, "absent": speedup.absent or None}


def _strict(value: Any) -> Any:
    """Replace NaN and infinities, which strict JSON lacks, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    return value
