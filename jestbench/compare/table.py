"""A comparison as text: a plain table for a terminal, Markdown for a README."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jestbench.compare import wording
from jestbench.compare.comparison import Comparison, Table
from jestbench.compare.crossings import Speedup
from jestbench.compare.curves import AXES
from jestbench.compare.paths import link, portable, scrubber
from jestbench.compare.plots import plot_names
from jestbench.runs.markdown import as_code, as_text, fenced

WIDTH = 110
"""Columns of the terminal table."""


def format_table(comparison: Comparison) -> str:
    """Write a comparison for a terminal, at most ``WIDTH`` columns wide."""
    lines: list[str] = []
    for table in comparison.tables:
        lines += [*_terminal(table, comparison.created), ""]
    for warning in comparison.warnings:
        lines += _wrap(f"warning: {warning}", indent="  ")
    return "\n".join(line.rstrip() for line in lines).rstrip().replace("≥", ">=").replace("−", "-")


def _terminal(table: Table, created: str) -> list[str]:
    world = wording.world_name(table)
    lines = _wrap(f"world: {world}") if world else []
    lines += [*_wrap(f"{table.metric}: {wording.subtitle(table, created)}"), *_wrap(table.rule), ""]
    head = ["arm", f"minus {table.baseline or 'baseline'}", "verdict", f"mean{_chance(table)}", "n"]
    rows = [
        (label, difference or "baseline", *more)
        for label, difference, *more in (wording.cells(arm, table) for arm in table.arms)
    ]
    rows += [(f"[{name}]", "", "", value, "") for name, _, value, _ in wording.below(table)]
    lines += [*_align([head, *rows]), ""]
    if table.baseline is not None:
        head = ["arm", *(axis.title for axis in AXES.values())]
        speedups = [[arm.label, *_speedup_cells(arm.speedup)] for arm in table.arms if arm.label != table.baseline]
        if speedups:
            lines += [f"how many times less than {table.baseline} needs (pointwise intervals):", ""]
            lines += [*_align([head, *speedups]), "", *_wrap(_about_speedups(table))]
        to_end = [[arm.label, *_speedup_cells(arm.speedup_to_end)] for arm in table.arms if arm.speedup_to_end]
        if to_end:
            asked = (
                f"{table.baseline} needs to its value at {wording.flops_text(table.baseline_end)}, its largest budget"
            )
            lines += ["", f"how many times less than {asked}:", "", *_align([head, *to_end])]
        lines += [line for arm in table.arms for line in _wrap(wording.sentence(arm, table), indent="  ")]
    lines += [line for text in _more(table) for line in _wrap(text, indent="  ")]
    return lines


def _chance(table: Table) -> str:
    chance = wording.chance_text(table)
    return f" ({chance})" if chance else ""


def _about_speedups(table: Table) -> str:
    """A line on the marks that stand in a table of speed-ups."""
    speedups = [speedup for arm in table.arms for speedup in arm.speedup.values()]
    kinds, absent = {speedup.kind for speedup in speedups}, {speedup.absent for speedup in speedups}
    parts = ["x < 1: needs more"]
    if "touch" in kinds:
        parts.append("~ first touch, indicative (not decayed there)")
    if "at_least" in kinds:
        parts.append(">= above already at its first rung")
    if "early" in absent:
        parts.append(f"{wording.WORDS['early']}: within the first interval of evaluations")
    if "unstated" in absent:
        parts.append(f"{wording.WORDS['unstated']}: FLOPs are known without the reference's pre-training alone")
    if "worse" in absent:
        parts.append(f"{wording.WORDS['worse']}: ends worse than the baseline")
    return f"baseline: {table.baseline}; {'; '.join(parts)}"


def _more(table: Table) -> Iterable[str]:
    """Lines on the deviation of seeds, and on where selection pays."""
    for arm in table.arms:
        if arm.deviation is not None:
            yield f"deviation from seed to seed: {wording.deviation_text(arm, table)}"
    for pays in table.pays:
        yield f"{pays.arm} against {pays.other}: {wording.pays_text(pays)}"


def _speedup_cells(speedup: Mapping[str, Speedup]) -> list[str]:
    found = [speedup[axis] for axis in AXES]
    return [f"{wording.speedup_text(one)} {wording.speedup_ends(one)}".rstrip() for one in found]


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    rows = [[cell.replace("≥", ">=") for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    spaces = 2 * (len(widths) - 1)
    # Labels are free text: the first column and the head are cut to fit, the numbers never are.
    widths[1:] = [max(min(width, 24), *(len(row[k]) for row in rows[1:])) for k, width in enumerate(widths[1:], 1)]
    widths[0] = max(3, min(widths[0], WIDTH - spaces - sum(widths[1:])))
    lines = []
    for row in rows:
        first, *numbers = (_cut(cell, width) for cell, width in zip(row, widths, strict=True))
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(1, width - 2)] + ".."


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def to_markdown(comparison: Comparison, out: Path) -> str:
    """Write a comparison as Markdown, with paths relative to ``out`` and no absolute ones."""
    first = comparison.first
    sections = [f"# {as_text(first.metric)} at equal compute"]
    for table, (picture, _) in zip(comparison.tables, plot_names(comparison), strict=True):
        sections += _sections(table, picture, comparison.created)
    sections += [
        "## Warnings",
        "\n".join(f"- {as_text(warning)}" for warning in comparison.warnings) or "None.",
        "## How every number is computed",
        "\n".join(f"- **{as_text(name)}**: {as_text(text)}" for name, text in wording.method(first)),
        "## Runs",
        "\n".join(line for table in comparison.tables for line in _run_lines(table, out)),
        "## Again",
        fenced(portable(comparison.command)),
    ]
    scrubbed: str = known_paths(comparison, out)("\n\n".join(sections) + "\n")
    return scrubbed


def known_paths(comparison: Comparison, out: Path) -> Callable[[Any], Any]:
    """The scrubber of the paths that a comparison's texts may hold."""
    members = [member.run for arm in comparison.arms for member in arm.members]
    references = [row.folder for table in comparison.tables for row in table.references if row.folder]
    excluded = [run.folder for run in comparison.excluded]
    return scrubber([*(run.folder for run in members), *references, *excluded, out.resolve()])


def _sections(table: Table, picture: str, created: str) -> Iterable[str]:
    """A table with what belongs to it."""
    world = wording.world_name(table)
    if world:
        yield f"## {as_text(world)}"
    yield as_text(f"{wording.metric_name(table)} · {wording.subtitle(table, created)}")
    yield f"![metric against FLOPs]({picture})"
    yield as_text(table.rule) + "."
    lower = "lower is better" if table.lower_is_better else ""
    about = ", ".join(part for part in ("95 %, pointwise", wording.chance_text(table), lower) if part)
    head = [
        f"minus {as_text(table.baseline or 'baseline')} [95 %, simultaneous]",
        "verdict",
        f"mean [{about}]",
        "seeds",
    ]
    yield _table(
        ["arm", *head, *(f"× {axis.title}" for axis in AXES.values())],
        _rows(table),
    )
    if table.baseline is not None:
        yield (
            f"×: how many times less than the baseline, `{as_code(table.baseline)}`, an arm needs to reach the "
            "baseline's value, pointwise; ~: a first touch on an undecayed curve, indicative."
        )
        found = [write(arm, table) for write in (wording.sentence, wording.to_end_text) for arm in table.arms]
        yield "\n".join(f"- {as_text(text)}." for text in found if text)
    yield from ["\n".join(f"- {as_text(text)}" for text in _more(table))] if list(_more(table)) else []
    yield "**What the FLOPs were spent on**"
    yield _spending(table)


def _rows(table: Table) -> Iterable[list[str]]:
    for arm in table.arms:
        label, *cells = wording.cells(arm, table)
        base = " (baseline)" if label == table.baseline else ""
        yield [as_text(label) + base, *cells, *_speedup_cells(arm.speedup)]
    for name, about, value, seeds in wording.below(table):
        used = f" ({as_text(about)})" if about else ""
        yield [f"*{as_text(name)}*{used}", "", "", value, seeds, *([""] * len(AXES))]


def _spending(table: Table) -> str:
    purposes = sorted({purpose for arm in table.arms for purpose in wording.shares(arm)})
    head = ["arm", "total", *map(as_text, purposes), "pre-training, apart", "pairs seen", "pairs trained", "time"]
    rows = []
    for arm in table.arms:
        part = wording.shares(arm)
        cells = [f"{100 * part[purpose]:.1f} %" if purpose in part else "" for purpose in purposes]
        counts = [
            wording.prefixed(arm.pairs_seen, ""),
            wording.prefixed(arm.pairs_trained, ""),
            wording.seconds_text(arm.seconds),
        ]
        rows.append(
            [
                as_text(arm.label),
                wording.flops_text(arm.flops_total),
                *cells,
                wording.flops_text(arm.pretrain_flops),
                *counts,
            ]
        )
    return _table(head, rows)


def _run_lines(table: Table, out: Path) -> Iterable[str]:
    for arm in table.arms:
        yield f"- {as_text(arm.label)}: policy `{as_code(arm.policy)}`, configuration `{as_code(arm.config_hash)}`"
        for member in arm.runs:
            folder = as_code(unquote(link(member.run.folder, out) or member.run.folder.name))
            yield f"  - seed {member.seed}: {wording.value_text(member.value, table)}, `{folder}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    align = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, align, *rows))
