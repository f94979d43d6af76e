"""A comparison as one self-contained HTML file: no network, no second file. How to read it: docs/page.md."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jestbench.compare import wording
from jestbench.compare.comparison import Arm, Comparison, Table
from jestbench.compare.configurations import Configuration, differing, of_the_arm, own_parameters, read_configuration
from jestbench.compare.curves import AXES
from jestbench.compare.gallery import gallery
from jestbench.compare.page_data import world_data
from jestbench.compare.paths import link, portable, run_again
from jestbench.compare.plots import PURPOSE_COLOURS, Look, looks, plot_names
from jestbench.compare.points import TOTAL_FLOPS
from jestbench.compare.table import known_paths, to_markdown
from jestbench.runs.folder import RunFolder
from jestbench.runs.templates import templates

PAGE = "index.html"

_HERE = Path(__file__).parent
_TEMPLATE = "page.html.j2"


def to_html(comparison: Comparison, out: Path) -> str:
    """Write a comparison as a page, with links relative to its folder.

    Every text that comes from a run is escaped, and no absolute path stands in it.
    """
    scrub = known_paths(comparison, out)
    worlds = [_world(table, out) for table in comparison.tables]
    pictures = [name for names in plot_names(comparison) for name in names]
    for world, (picture, _) in zip(worlds, plot_names(comparison), strict=True):
        world["picture"] = picture
    data = {
        "worlds": [scrub({**world["data"], **_for_script(world)}) | {"pictures": _pictures(world)} for world in worlds],
        "purposes": {name: number for number, name in enumerate(PURPOSE_COLOURS)},
        "markdown": to_markdown(comparison, out),  # which is scrubbed already
    }
    environment = templates(_HERE)
    environment.finalize = scrub
    environment.globals["wording"] = wording
    environment.filters |= {
        "link": partial(link, page=out),
        "speedup": lambda speedup: wording.speedup_text(speedup).replace("x", "×"),
        "count": lambda value: f"{value:,.0f}".replace(",", "\u202f"),
        "purpose": lambda purpose: purpose.replace("_", " "),
        "purpose_colour": _purpose,
        "amount": _amount,
        "histogram": _histogram,
    }
    return environment.get_template(_TEMPLATE).render(
        comparison=comparison,
        worlds=worlds,
        axes=AXES,
        facts=_dotted(comparison.environment),
        command=portable(comparison.command),
        pictures=[*pictures, *(name.replace(".png", ".svg") for name in pictures)],
        css=_part("page.css"),
        js=_part("page.js"),
        data=_embedded(data),
        **_plotly(),
    )


def _world(table: Table, out: Path) -> dict[str, Any]:
    drawn, (found, unread), data = looks(table), gallery(table), world_data(table)
    configurations = {arm.label: read_configuration(arm.members[-1].run.folder) for arm in table.arms}
    known = {label: values for label, values in configurations.items() if values}
    numbers = {id(member): number for number, member in enumerate(m for arm in table.arms for m in arm.members)}
    return {
        "table": table,
        "metric": data["metrics"][0]["name"],
        "judged": [arm for arm in table.arms if wording.sentence(arm, table)],
        "deviations": [text for arm in table.arms if (text := wording.deviation_text(arm, table))],
        "looks": drawn,
        "rows": [_row(arm, number, table, drawn[arm.label], numbers, out) for number, arm in enumerate(table.arms)],
        "data": data,
        "has_selection": bool(data["selection"]["keys"]),
        "gallery": found,
        "unread": unread,
        "overlaps": _overlaps(found) if found else [],
        "configurations": configurations,
        "configured": len(known),
        "differences": _differences(known),
        "own": [
            (label, [f"{key} = {value}" for key, value in own.items()])
            for label, own in (own_parameters(known) if len(known) > 1 else {}).items()
            if own
        ],
    }


def _pictures(world: Mapping[str, Any]) -> list[Mapping[int, str]]:
    """Pictures of each super-batch, by position; no paths, though base64 may look like one."""
    return [batch["pictures"] for batch in world["gallery"]["batches"]] if world["gallery"] else []


def _for_script(world: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "looks": [vars(world["looks"][arm.label]) for arm in world["table"].arms],
        "configurations": [of_the_arm(world["configurations"][arm.label]) for arm in world["table"].arms],
    }


def _row(arm: Arm, number: int, table: Table, look: Look, numbers: Mapping[int, int], out: Path) -> dict[str, Any]:
    return {
        "arm": arm,
        "number": number,
        "look": look,
        "is_baseline": arm.label == table.baseline,
        "forest": _forest(arm, table),
        "shares": {
            purpose: {"share": share, "colour": _purpose(purpose)} for purpose, share in wording.shares(arm).items()
        },
        "runs": _runs(arm, table, numbers, out),
        "gin": _text(RunFolder(arm.members[-1].run.folder).operative_gin),
    }


def _runs(arm: Arm, table: Table, numbers: Mapping[int, int], out: Path) -> list[dict[str, Any]]:
    base = table.baseline_arm
    of_baseline = {member.seed: member.value for member in base.runs} if base and base is not arm else {}
    here = {member.run.folder: member.value for member in arm.runs}
    found = []
    for member in arm.members:
        run, end = member.run, member.end.counters
        value = here.get(run.folder, member.end.value)
        paired = run.folder in here and member.seed in of_baseline
        found.append(
            {
                "number": numbers[id(member)],
                "name": run.folder.name,
                "link": link(run.folder, out),
                "files": _run_files(run.folder),
                "seed": member.seed,
                "value": wording.value_text(value, table),
                "difference": wording.signed(value - of_baseline[member.seed], table) if paired else "",
                "flops": end.get(TOTAL_FLOPS, 0),
                "seen": end.get("pairs/seen", 0),
                "trained": end.get("pairs/trained", 0),
                "seconds": end.get("time/seconds", 0),
                "again": run_again(run.folder),
            }
        )
    return found


def _forest(arm: Arm, table: Table) -> dict[str, float] | None:
    """Places of an arm's difference in a drawing that all arms share, in per cent of its width."""
    mine = arm.difference
    if mine is None or mine.low is None or mine.high is None:
        return None
    known = [one.difference for one in table.arms if one.difference is not None]
    ends = [0.0, *(end for one in known for end in (one.low, one.high) if end is not None)]
    low, high = min(ends), max(ends)
    scale = 100 / (high - low) if high > low else 0.0
    places = {"zero": 0.0, "low": mine.low, "high": mine.high, "value": mine.value}
    return {name: round(scale * (value - low), 2) for name, value in places.items()}


def _differences(known: Mapping[str, Configuration]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Parameter, and each of its values with the arms that have it."""
    found = []
    for key in differing(list(known.values())):
        arms: dict[str, list[str]] = defaultdict(list)
        for label, values in known.items():
            if key in values:
                arms[values[key]].append(label)
        found.append((key, list(arms.items())))
    return found


def _overlaps(found: Mapping[str, Any]) -> list[tuple[int, int, list[float | None]]]:
    """Two arms, and how much they agree at each step."""
    steps = [{(one, other): share for one, other, share in at["shares"]} for at in found["overlap"]]
    pairs = dict.fromkeys(pair for step in steps for pair in sorted(step))
    return [(one, other, [step.get((one, other)) for step in steps]) for one, other in pairs]


def _histogram(scores: Mapping[str, Sequence[int]]) -> Markup:
    """Counts of chosen (below) and refused pairs (above) as a drawing."""
    chosen, refused = scores["chosen"], scores["refused"]
    highest = max(1, *(one + other for one, other in zip(chosen, refused, strict=True)))
    bars = []
    for place, (one, other) in enumerate(zip(chosen, refused, strict=True)):
        top, middle = (round(60 * part / highest, 2) for part in (one + other, one))
        bars.append(f'<rect class="refused" x="{place}" y="{60 - top}" width=".9" height="{round(top - middle, 2)}"/>')
        bars.append(f'<rect class="chosen" x="{place}" y="{60 - middle}" width=".9" height="{middle}"/>')
    label = f"{sum(chosen)} chosen and {sum(refused)} refused pairs by score"
    box = f'viewBox="0 0 {len(chosen)} 60" preserveAspectRatio="none"'
    return Markup(f'<svg class="histogram" {box} role="img" aria-label="{label}">{"".join(bars)}</svg>')


def _purpose(name: str) -> int:
    names = list(PURPOSE_COLOURS)
    return names.index(name) if name in names else len(names)


def _run_files(folder: Path) -> list[tuple[str, str]]:
    """Name and relative path of the files that a run has left."""
    run = RunFolder(folder)
    files = {
        "metrics": run.metrics_jsonl,
        "summary": run.summary_json,
        "configuration": run.operative_gin,
        "environment": run.environment_json,
        "examples": run.examples_page,
    }
    return [(name, file.relative_to(folder).as_posix()) for name, file in files.items() if file.is_file()]


def _amount(value: float | None, axis: str) -> str:
    if value is None:
        return "-"
    if axis.startswith("flops"):
        return wording.flops_text(value)
    return wording.seconds_text(value) if axis == "seconds" else wording.prefixed(value, "")


def _embedded(data: Any) -> Markup:
    """JSON that no text in it can end: ``</script>`` and ``<!--`` need a less-than sign."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _plotly() -> dict[str, Markup]:
    """plotly.js as its package ships it, and its licence."""
    script = resources.files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
    files = (file for file in metadata.files("plotly") or () if file.name.upper().startswith("LICENSE"))
    licence = next((file.read_text() for file in files), "plotly.js: MIT licence, as its head says")
    assert "</script" not in script.lower(), "plotly.min.js cannot stand in a page"
    return {"plotly": Markup(script), "licence": Markup("/*!\n" + licence.replace("*/", "* /") + "\n*/")}


def _part(name: str) -> Markup:
    return Markup((_HERE / name).read_text(encoding="utf-8"))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _dotted(facts: Any, name: str = "") -> dict[str, str]:
    """Nested facts by their dotted names."""
    if not isinstance(facts, dict):
        return {name: str(facts)}
    flat: dict[str, str] = {}
    for key, value in facts.items():
        flat |= _dotted(value, f"{name}.{key}" if name else str(key))
    return flat
