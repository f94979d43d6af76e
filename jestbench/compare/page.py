"""A comparison as one self-contained HTML file: no network, no script, no second file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jestbench.compare import wording
from jestbench.compare.comparison import Arm, Comparison, Table
from jestbench.compare.curves import AXES
from jestbench.compare.plots import OTHER_COLOUR, PURPOSE_COLOURS, arm_colours, plot_names
from jestbench.runs.folder import RunFolder
from jestbench.runs.templates import templates

PAGE = "index.html"

_TEMPLATE = "page.html.j2"
_AXIS_LONG = {
    "flops": "FLOPs",
    "flops_all_in": "FLOPs with pre-training",
    "pairs_seen": "pairs seen",
    "pairs_trained": "pairs trained on",
    "seconds": "seconds of training",
}


def to_html(comparison: Comparison, out: Path) -> str:
    """Write a comparison as a page.

    Args:
        comparison: the comparison.
        out: the folder of the page: links are relative to it, and the pictures are read from it.

    Returns:
        The page; every text that comes from a run is escaped.
    """
    environment = templates(Path(__file__).parent)
    environment.filters |= {
        "flops": wording.flops_text,
        "speedup": lambda speedup: wording.speedup_text(speedup).replace("x", "×"),
        "ends": wording.speedup_ends,
        "value": wording.value_text,
        "difference": wording.signed,
        "count": lambda value: f"{value:,.0f}".replace(",", "\u202f"),
        "seconds": wording.seconds_text,
        "reference": wording.reference_label,
        "link": lambda path: quote(wording.relative(path, out)),
        "relative": lambda path: wording.relative(path, out),
        "run_files": _run_files,
        "purpose": lambda purpose: purpose.replace("_", " "),
        "amount": lambda value, axis: _amount(value, axis),
    }
    return environment.get_template(_TEMPLATE).render(
        comparison=comparison,
        worlds=[
            _world(table, comparison.created, [_picture(out / name) for name in names])
            for table, names in zip(comparison.tables, plot_names(comparison), strict=True)
        ],
        axes=AXES,
        axis_titles=wording.AXIS_TITLES,
        axis_long=_AXIS_LONG,
        method=wording.method(comparison.first),
        facts=_flat(comparison.environment),
    )


def _world(table: Table, created: str, pictures: Sequence[str]) -> dict[str, Any]:
    return {
        "table": table,
        "name": wording.world_name(table),
        "subtitle": wording.subtitle(table, created),
        "sentences": [text for arm in table.arms if (text := wording.sentence(arm, table))],
        "deviations": [text for arm in table.arms if (text := wording.deviation_text(arm, table))],
        "pays": [(pays.arm, pays.other, wording.pays_text(pays)) for pays in table.pays],
        "chance": wording.chance_text(table),
        "rows": [_row(arm, table) for arm in table.arms],
        "pictures": pictures,
    }


def _row(arm: Arm, table: Table) -> dict[str, Any]:
    base = table.baseline_arm
    of_baseline = {member.seed: member.value for member in base.runs} if base else {}
    return {
        "arm": arm,
        "is_baseline": arm is base,
        "difference": "" if arm is base else wording.difference_text(arm, table),
        "verdict": wording.verdict_text(arm),
        "mean": wording.interval_text(arm, table),
        "colour": arm_colours(table)[arm.label],
        "shares": [
            (purpose, 100 * share, PURPOSE_COLOURS.get(purpose, OTHER_COLOUR))
            for purpose, share in wording.shares(arm).items()
        ],
        "by_seed": {
            member.seed: member.value - of_baseline[member.seed]
            for member in arm.runs
            if member.seed in of_baseline and arm is not base
        },
    }


def _run_files(folder: Path) -> list[str]:
    run = RunFolder(folder)
    files = (run.metrics_jsonl, run.summary_json, run.operative_gin, run.environment_json, run.examples_page)
    return [file.relative_to(folder).as_posix() for file in files if file.is_file()]


def _amount(value: float | None, axis: str) -> str:
    if value is None:
        return "-"
    if axis.startswith("flops"):
        return wording.flops_text(value)
    return wording.seconds_text(value) if axis == "seconds" else wording.prefixed(value, "")


def _picture(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _flat(facts: Any, name: str = "") -> dict[str, str]:
    if not isinstance(facts, dict):
        return {name: str(facts)}
    flat: dict[str, str] = {}
    for key, value in facts.items():
        flat |= _flat(value, f"{name}.{key}" if name else str(key))
    return flat
