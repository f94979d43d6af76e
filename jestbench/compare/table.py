"""A comparison as text: a plain table for a terminal, Markdown for a README."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from jestbench.compare import wording
from jestbench.compare.comparison import Arm, Comparison
from jestbench.compare.curves import AXES

WIDTH = 110
"""Columns of the terminal table."""


def format_table(comparison: Comparison) -> str:
    """Write a comparison for a terminal, at most ``WIDTH`` columns wide."""
    head = ["arm", comparison.metric, "n", "ahead", *wording.AXIS_TITLES.values()]
    rows = [
        [
            arm.label,
            wording.interval_text(arm, comparison),
            str(len(arm.runs)),
            _ahead(arm, comparison),
            *_speedup_cells(arm),
        ]
        for arm in comparison.arms
    ]
    rows += [
        [f"[{wording.end_label(arm)}]", wording.end_text(arm)] + [""] * (len(head) - 2)
        for arm in comparison.arms
        if arm.added_to_budget
    ]
    rows += [
        [f"[{wording.reference_label(row.name)}]", wording.value_text(row.value, comparison)] + [""] * (len(head) - 2)
        for row in comparison.references
    ]
    lines = _wrap(f"{comparison.metric}: {wording.subtitle(comparison)}")
    lines += ["", " " * (WIDTH - 50) + "x less than the baseline needs".rjust(50), *_align([head, *rows])]
    lines += [
        "",
        *_wrap(
            f"baseline: {comparison.baseline}; ~ first touch, indicative (not decayed there); x < 1: needs more; "
            f"{wording.WORDS['early']}: within the first interval of evaluations; {wording.WORDS['worse']}: ends worse "
            "than the baseline"
        ),
        *_wrap(wording.evaluation_noise(comparison)),
    ]
    for warning in comparison.warnings:
        lines += _wrap(f"warning: {warning}", indent="  ")
    return "\n".join(line.rstrip() for line in lines)


def _speedup_cells(arm: Arm) -> list[str]:
    return [wording.speedup_text(arm.speedup[axis]) for axis in AXES]


def _ahead(arm: Arm, comparison: Comparison) -> str:
    if arm.label == comparison.baseline:
        return "base"
    return str(arm.paired) if arm.paired else "-"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    spaces = 2 * (len(widths) - 1)
    # Labels are free text: the first two columns are cut to fit, the numbers never are.
    widths[1] = max(min(widths[1], 34), *(len(row[1]) for row in rows[1:]))
    widths[0] = max(3, min(widths[0], WIDTH - spaces - sum(widths[1:])))
    lines = []
    for row in rows:
        first, second, *numbers = (_cut(cell, width) for cell, width in zip(row, widths, strict=True))
        cells = [first.ljust(widths[0]), second.ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(numbers, widths[2:], strict=True)]
        lines.append("  ".join(cells))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(1, width - 2)] + ".."


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def to_markdown(comparison: Comparison, out: Path) -> str:
    """Write a comparison as Markdown, with paths relative to ``out``."""
    sections = [
        f"# {_plain(comparison.metric)} at equal compute",
        _plain(wording.subtitle(comparison)),
        "![metric against FLOPs](metric_vs_flops.png)",
        _table(
            [
                "arm",
                f"mean [95 % interval]{' (lower is better)' if comparison.lower_is_better else ''}",
                "seeds",
                "ahead",
            ]
            + [f"× {title}" for title in wording.AXIS_TITLES.values()],
            [*_arm_rows(comparison), *_reference_cells(comparison)],
        ),
        f"×: how many times less than the baseline, `{_code(comparison.baseline)}`, an arm needs to first "
        "reach the baseline's final value; ~: a first touch on an undecayed curve, indicative.",
        *([_plain(wording.evaluation_noise(comparison)) + "."] if wording.evaluation_noise(comparison) else []),
        "## What the FLOPs were spent on",
        _spending(comparison),
        "## Warnings",
        "\n".join(f"- {_plain(warning)}" for warning in comparison.warnings) or "None.",
        "## How every number is computed",
        "\n".join(f"- **{_plain(name)}**: {_plain(text)}" for name, text in wording.method(comparison)),
        "## Runs",
        "\n".join(_run_lines(comparison, out)),
        "## Again",
        f"```\n{comparison.command}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _arm_rows(comparison: Comparison) -> Iterable[list[str]]:
    for arm in comparison.arms:
        base = " (baseline)" if arm.label == comparison.baseline else ""
        yield [
            _plain(arm.label) + base,
            wording.interval_text(arm, comparison),
            str(len(arm.runs)),
            "" if base else _ahead(arm, comparison),
            *_speedup_cells(arm),
        ]


def _reference_cells(comparison: Comparison) -> Iterable[list[str]]:
    for arm in comparison.arms:
        if arm.added_to_budget:
            yield [
                f"*{_plain(wording.end_label(arm))}*",
                wording.end_text(arm),
                str(len(arm.runs)),
                *([""] * (1 + len(AXES))),
            ]
    for row in comparison.references:
        arms = _plain(", ".join(row.arms))
        used = f"*{_plain(wording.reference_label(row.name))}* (of {arms}; {wording.flops_text(row.flops_total)})"
        yield [used, wording.value_text(row.value, comparison), *([""] * (2 + len(AXES)))]


def _spending(comparison: Comparison) -> str:
    purposes = sorted({purpose for arm in comparison.arms for purpose in wording.shares(arm)})
    head = ["arm", "total", *purposes, "pre-training, apart", "pairs seen", "pairs trained", "time"]
    rows = []
    for arm in comparison.arms:
        part = wording.shares(arm)
        cells = [f"{100 * part[purpose]:.1f} %" if purpose in part else "" for purpose in purposes]
        counts = [
            wording.prefixed(arm.pairs_seen, ""),
            wording.prefixed(arm.pairs_trained, ""),
            wording.seconds_text(arm.seconds),
        ]
        rows.append(
            [
                _plain(arm.label),
                wording.flops_text(arm.flops_total),
                *cells,
                wording.flops_text(arm.pretrain_flops),
                *counts,
            ]
        )
    return _table(head, rows)


def _run_lines(comparison: Comparison, out: Path) -> Iterable[str]:
    for arm in comparison.arms:
        yield f"- {_plain(arm.label)}: policy `{_code(arm.policy)}`, configuration `{_code(arm.config_hash)}`"
        for member in arm.runs:
            folder = _code(wording.relative(member.run.folder, out))
            yield f"  - seed {member.seed}: {wording.value_text(member.value, comparison)}, `{folder}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    align = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, align, *rows))


def _plain(text: str) -> str:
    """Keep free text from being read as Markdown or HTML."""
    # An underscore inside a word needs no escape, and labels are full of them.
    text = re.sub(r"([\\`*\[\]|#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text)
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").replace("|", "/").split())
