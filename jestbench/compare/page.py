"""A comparison as one self-contained HTML file: no network, no script, no second file."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jestbench.compare import wording
from jestbench.compare.comparison import Arm, Comparison
from jestbench.compare.curves import AXES
from jestbench.compare.plots import METRIC_VS_FLOPS, OTHER_COLOUR, OVERVIEW, PURPOSE_COLOURS, arm_colours
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
        "value": lambda value: wording.value_text(value, comparison),
        "difference": lambda value: ("+" if value > 0 else "") + wording.value_text(value, comparison),
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
        subtitle=wording.subtitle(comparison),
        evaluation_noise=wording.evaluation_noise(comparison),
        rows=[_row(arm, comparison) for arm in comparison.arms],
        axes=AXES,
        axis_titles=wording.AXIS_TITLES,
        axis_long=_AXIS_LONG,
        method=wording.method(comparison),
        overview=_picture(out / OVERVIEW),
        metric_vs_flops=_picture(out / METRIC_VS_FLOPS),
        facts=_flat(comparison.environment),
    )


def _row(arm: Arm, comparison: Comparison) -> dict[str, Any]:
    of_baseline = {member.seed: member.value for member in comparison.baseline_arm.runs}
    return {
        "arm": arm,
        "is_baseline": arm.label == comparison.baseline,
        "mean": wording.interval_text(arm, comparison),
        "colour": arm_colours(comparison)[arm.label],
        "shares": [
            (purpose, 100 * share, PURPOSE_COLOURS.get(purpose, OTHER_COLOUR))
            for purpose, share in wording.shares(arm).items()
        ],
        "difference": {
            member.seed: member.value - of_baseline[member.seed]
            for member in arm.runs
            if member.seed in of_baseline and arm.label != comparison.baseline
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
