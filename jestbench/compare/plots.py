"""Pictures of a comparison, at the width of a README.

Drawn through ``matplotlib.figure.Figure`` alone: no global state and no display. matplotlib is imported
only when something is drawn, since its import takes longer than a whole comparison.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jestbench.compare.comparison import Arm, Comparison, FrontierPoint, Table
from jestbench.compare.curves import AXES
from jestbench.compare.wording import chance_text, decimal_prefix, metric_name, reference_label, subtitle, value_text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC_VS_FLOPS = "metric_vs_flops.png"
OVERVIEW = "overview.png"

BASELINE_COLOUR = "#222222"
# Okabe and Ito's palette, distinguishable under all common kinds of colour blindness; its light colours darker, so that
# thin lines are seen on white, and without its yellow. page.css holds the same ones.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#C0629A", "#B87A00", "#3A9BD1")
# Different from the arms' colours, and distinguishable by lightness.
PURPOSE_COLOURS = {
    "learner_train": "#33475b",
    "learner_score": "#7f9cb5",
    "reference_score": "#d9a441",
    "scorer_score": "#a65e2e",
    "scorer_train": "#e9cfa6",
    "pairwise": "#5fa8a0",
    "recompute": "#c4c4c4",
}
COLOURS = (BASELINE_COLOUR, *PALETTE)
PRETRAINING = "pre-training (reference, scorer)"
OTHER_COLOUR = "#777777"
"""For a purpose missing from ``PURPOSE_COLOURS``."""
_REFERENCE_COLOUR = "#7a4f9a"
_LINE_STYLES = ("-", "--", "-.", ":")
_MARKERS = "os^Dv<>Pph"
_LEGEND_COLUMNS = 3
_LINE_WIDTH = 2.0
_SPAN_FOR_LOG = 3.9
"""Largest over smallest budget from which on their axis is logarithmic; page.js has the same."""
_POINT_SIZE = 8.0
_DPI = 160

_STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
    # Arms, metrics and facts are free text: a dollar sign must not start a formula.
    "text.parse_math": False,
    "svg.hashsalt": "jestbench",
}
_COUNTS = {"": "", "k": "thousands", "M": "millions", "G": "billions", "T": "trillions"}


@dataclass(frozen=True)
class Look:
    """How an arm's line is drawn.

    Attributes:
        colour: place of the colour, 0 for the baseline; ``COLOURS`` and page.css hold the same ones.
        cycle: how often all colours were given away before; lines and marks differ then.
        style: line style.
        marker: marker, which distinguishes the arms in black-and-white print.
    """

    colour: int
    cycle: int
    style: str
    marker: str


def plot_names(comparison: Comparison) -> list[tuple[str, str]]:
    """The files of each table's two pictures; those of the first table have no number."""
    ends = ["", *(f"_{number}" for number in range(2, len(comparison.tables) + 1))]
    return [(METRIC_VS_FLOPS.replace(".", f"{end}."), OVERVIEW.replace(".", f"{end}.")) for end in ends]


def save_plots(comparison: Comparison, out: Path) -> None:
    """Write ``metric_vs_flops`` and ``overview`` of each table into an existing folder, as PNG and as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE), warnings.catch_warnings():
        # Labels may be of any script; a font without a character draws a box, and the page has the label itself.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        for table, names in zip(comparison.tables, plot_names(comparison), strict=True):
            # The legend beside the curves has a line for each arm, and four more.
            sizes = (9.0, max(5.0, 1.2 + 0.23 * (len(table.arms) + 4))), (11.0, sum(_overview_heights(table)))
            for name, size, draw in zip(names, sizes, (_draw_metric, _draw_overview), strict=True):
                figure = Figure(figsize=size, layout="constrained")
                draw(figure, table, subtitle(table, comparison.created))
                figure.savefig(out / name, dpi=_DPI, metadata={"Software": None})
                figure.set_layout_engine("none")  # the places are found: to find them again takes as long as to draw
                figure.savefig((out / name).with_suffix(".svg"), metadata={"Date": None})


def looks(table: Table) -> dict[str, Look]:
    """Label → how the arm is drawn; it depends on the labels alone, not on the arms' order by value."""
    found = {}
    for index, label in enumerate(sorted(arm.label for arm in table.arms if arm.label != table.baseline)):
        cycle = index // len(PALETTE)
        found[label] = Look(
            colour=1 + index % len(PALETTE),
            cycle=cycle,
            style=_LINE_STYLES[cycle % len(_LINE_STYLES)],
            marker=_MARKERS[(1 + index) % len(_MARKERS)],
        )
    return found | ({table.baseline: Look(0, 0, _LINE_STYLES[0], _MARKERS[0])} if table.baseline else {})


def _draw_metric(figure: Figure, table: Table, facts: str) -> None:
    axes = figure.subplots()
    _draw_curves(axes, table, "flops")
    axes.legend(*_legend(table), loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=10)
    title = f"{metric_name(table)} against FLOPs\n{_folded(facts, 100)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5)


def _draw_overview(figure: Figure, table: Table, facts: str) -> None:
    heights = _overview_heights(table)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    by_flops, by_pairs = top.subplots(1, 2, sharey=True)
    _draw_curves(by_flops, table, "flops")
    _draw_curves(by_pairs, table, "pairs_seen")
    by_pairs.set_ylabel("")
    handles, labels = _legend(table)
    top.legend(handles, labels, loc="outside lower center", ncols=_LEGEND_COLUMNS, fontsize=10)
    _draw_spending(bottom.subplots(), table)
    title = f"{metric_name(table)}\n{_folded(facts, 120)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)


def _overview_heights(table: Table) -> tuple[float, float]:
    """Inches of the curves with their legend, and of the bars."""
    arms = len(table.arms)
    return 4.9 + 0.3 * -(-(arms + 4) // _LEGEND_COLUMNS), 1.3 + 0.3 * arms


def _draw_curves(axes: Axes, table: Table, axis: str) -> None:
    drawn = looks(table)
    for arm in table.arms:
        points = [point for point in table.frontier if point.arm == arm.label]
        _draw_arm(axes, arm, axis, drawn[arm.label], points, above=arm.label == table.baseline)
    _draw_references(axes, table)
    if table.measure.chance is not None:
        axes.axhline(table.measure.chance, color="#999999", linewidth=1, linestyle=":", zorder=1)
    if axis == "flops":
        axes.axvline(table.budget, color="#888888", linewidth=1, linestyle=":")
        axes.annotate(
            "common budget",
            (table.budget, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color="#666666",
        )
    amounts = [point.amount[axis] for point in table.frontier if point.amount[axis] > 0]
    if amounts and max(amounts) >= _SPAN_FOR_LOG * min(amounts):
        _scale_by_budgets(axes, table, axis, min(amounts))
    else:
        axes.set_xlim(left=0)
    _label_amounts(axes, "FLOPs of training and scoring" if axis == "flops" else AXES[axis].name, AXES[axis].unit)
    axes.set_ylabel(metric_name(table) + (" (lower is better)" if table.lower_is_better else ""))


def _scale_by_budgets(axes: Axes, table: Table, axis: str, smallest: float) -> None:
    """A logarithmic axis with marks at the decayed points of one arm: budgets are mostly powers of one another."""
    axes.set_xscale("log", nonpositive="mask")  # the evaluation before the first step has no place
    axes.set_xlim(left=0.75 * smallest)
    arms = sorted(table.arms, key=lambda arm: arm.label != table.baseline)
    axes.set_xticks([point.amount[axis] for point in table.frontier if point.arm == arms[0].label])
    axes.minorticks_off()


def _label_amounts(axes: Axes, label: str, unit: str) -> None:
    """Label the x axis in one unit, named in the axis label alone."""
    divisor, prefix = decimal_prefix(axes.get_xlim()[1])
    # Budgets are round numbers and are labelled in full; the pairs seen at a budget are rounded to two digits.
    digits = 3 if unit else 2
    axes.xaxis.set_major_formatter(lambda value, _: f"{float(f'{value / divisor:.{digits}g}'):g}")
    in_unit = f"{prefix}{unit}" if unit else _COUNTS.get(prefix, f"in {divisor:.0e}")
    axes.set_xlabel(f"{label} ({in_unit})" if in_unit else label)


def _draw_arm(axes: Axes, arm: Arm, axis: str, look: Look, points: Sequence[FrontierPoint], *, above: bool) -> None:
    """An arm's decayed points with their 95 % intervals, and lighter behind them its learning curve."""
    amount_E, colour = arm.curve.amount_E[axis], COLOURS[look.colour]
    # Where there is one decayed point, the curve is what there is to see.
    light = 0.4 if len(points) > 1 else 0.75
    if len(arm.runs) > 1:
        low_E, high_E = arm.curve.value_SE.min(axis=0), arm.curve.value_SE.max(axis=0)
        axes.fill_between(amount_E, low_E, high_E, color=colour, alpha=0.08, linewidth=0)
    axes.plot(amount_E, arm.curve.value_E, color=colour, linestyle=look.style, linewidth=1.3, alpha=light, zorder=3)
    amounts, values = [point.amount[axis] for point in points], [point.mean.value for point in points]
    order = 7 if above else 6
    (line,) = axes.plot(amounts, values, color=colour, linestyle=look.style, linewidth=_LINE_WIDTH, zorder=order)
    line.set(marker=look.marker, markersize=_POINT_SIZE, markeredgecolor="white", markeredgewidth=1.2)
    for at, point in zip(amounts, points, strict=True):
        if point.mean.low is not None and point.mean.high is not None:
            axes.plot([at, at], [point.mean.low, point.mean.high], color=colour, linewidth=1.4, zorder=5)


def _draw_references(axes: Axes, table: Table) -> None:
    from matplotlib.patheffects import withStroke

    drawn: set[str] = set()
    for row in table.references:
        if row.value is None:
            continue
        axes.axhline(row.value, color=_REFERENCE_COLOUR, linewidth=1.2, linestyle=(0, (6, 3)), zorder=2)
        if row.name not in drawn:
            axes.annotate(
                f"{_short(reference_label(row.name))}: {value_text(row.value, table)}",
                (0.0, row.value),
                xycoords=("axes fraction", "data"),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=8.5,
                color=_REFERENCE_COLOUR,
                path_effects=[withStroke(linewidth=3, foreground="white")],
                zorder=6,
            )
        drawn.add(row.name)


def _legend(table: Table) -> tuple[list[Artist], list[str]]:
    from matplotlib.lines import Line2D

    drawn = looks(table)
    handles: list[Artist] = []
    labels: list[str] = []
    for arm in table.arms:
        look = drawn[arm.label]
        line = Line2D([], [], color=COLOURS[look.colour], linestyle=look.style, marker=look.marker)
        line.set(linewidth=_LINE_WIDTH, markersize=_POINT_SIZE, markeredgecolor="white")
        handles.append(line)
        seeds = f"{len(arm.runs)} seed{'s' if len(arm.runs) > 1 else ''}"
        # A leading underscore hides a legend entry.
        labels.append(f"{_short(arm.label).lstrip('_')}  {value_text(arm.mean.value, table)} ({seeds})")
    if any(len(arm.runs) > 1 for arm in table.arms):
        from matplotlib.patches import Patch

        handles.append(Patch(color="#888888", alpha=0.25, linewidth=0))
        labels.append("lowest to highest seed")
    handles.append(Line2D([], [], color="#888888", linewidth=_LINE_WIDTH, marker="o", markersize=_POINT_SIZE))
    labels.append("decayed, 95 % interval")
    handles.append(Line2D([], [], color="#888888", linewidth=1.3, alpha=0.5))
    labels.append("learning curve, mean of seeds")
    if table.measure.chance is not None:
        handles.append(Line2D([], [], color="#999999", linewidth=1, linestyle=":"))
        labels.append(chance_text(table))
    if any(row.value is not None for row in table.references):
        handles.append(Line2D([], [], color=_REFERENCE_COLOUR, linewidth=1.2, linestyle=(0, (6, 3))))
        labels.append("reference's own score")
    return handles, labels


def purposes(table: Table) -> list[str]:
    """What the arms spent FLOPs on, in the order of ``PURPOSE_COLOURS``, other purposes last."""
    spent = {purpose for arm in table.arms for purpose, flops in arm.flops_by_purpose.items() if flops}
    return [*(purpose for purpose in PURPOSE_COLOURS if purpose in spent), *sorted(spent - PURPOSE_COLOURS.keys())]


def _draw_spending(axes: Axes, table: Table) -> None:
    labels = [_short(arm.label) for arm in table.arms]
    positions = range(len(labels))
    start = [0.0] * len(labels)
    for purpose in purposes(table):
        widths = [float(arm.flops_by_purpose.get(purpose, 0)) for arm in table.arms]
        colour = PURPOSE_COLOURS.get(purpose, OTHER_COLOUR)
        axes.barh(positions, widths, left=start, color=colour, label=purpose.replace("_", " "), height=0.68)
        start = [left + width for left, width in zip(start, widths, strict=True)]
    pretraining = [float(arm.pretrain_flops or 0) for arm in table.arms]
    if any(pretraining):
        axes.barh(
            positions,
            pretraining,
            left=start,
            height=0.68,
            facecolor="white",
            edgecolor="#888888",
            hatch="////",
            label=PRETRAINING,
        )
    axes.axvline(table.budget, color="#888888", linewidth=1, linestyle=":")
    axes.set_yticks(positions, labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    _label_amounts(axes, "FLOPs by purpose, mean over seeds", "FLOP")
    if axes.containers:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)


def _short(label: str, length: int = 32) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"


def _folded(facts: str, width: int) -> str:
    """Break a subtitle into lines, only between facts."""
    unbroken = facts.replace(" · ", "\n").replace(" ", "\u00a0").replace("\n", "\u00a0· ")
    return "\n".join(textwrap.wrap(unbroken, width))
