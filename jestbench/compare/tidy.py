"""A comparison for a notebook: tidy tables, one observation a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal, get_args

from jestbench.compare import wording
from jestbench.compare.comparison import Comparison, Table
from jestbench.compare.document import table_json
from jestbench.compare.paths import relative
from jestbench.compare.table import format_table

TableName = Literal["arms", "runs", "frontier", "curves", "crossings", "references"]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Compared:
    """What ``jestbench.compare_runs`` returns.

    Each table is a ``pandas.DataFrame``, or a list of dicts where pandas is not installed (``pip install pandas``);
    ``rows(NAME)`` is always the list. Columns are named as in ``comparison.json``, nested keys joined by ``_``; the
    column ``world`` tells apart runs of other data, loss or evaluation, and is empty where there is one world.

    Attributes:
        comparison: the whole comparison, as values.
    """

    comparison: Comparison

    @property
    def metric(self) -> str:
        """Key of the metric, the same in all tables."""
        return self.comparison.first.metric

    @property
    def warnings(self) -> tuple[str, ...]:
        """Caveats to read before trusting a number."""
        return self.comparison.warnings

    @property
    def arms(self) -> Any:
        """A row for each arm: mean, difference to the baseline, their 95 % intervals, verdict, costs, speed-ups."""
        return self._table("arms")

    @property
    def runs(self) -> Any:
        """A row for each run: arm, seed, value at the common budget, FLOPs, seconds, folder."""
        return self._table("runs")

    @property
    def frontier(self) -> Any:
        """A row for each arm and budget whose schedules ended there: mean with its interval, amounts spent."""
        return self._table("frontier")

    @property
    def curves(self) -> Any:
        """A row for each evaluation of each run, on all axes; most lie inside a schedule that had not ended."""
        return self._table("curves")

    @property
    def crossings(self) -> Any:
        """A row for each budget at which an arm and another change their order."""
        return self._table("crossings")

    @property
    def references(self) -> Any:
        """A row for each frozen model that arms scored with: its own score, its cost."""
        return self._table("references")

    def rows(self, name: TableName) -> Rows:
        """One of the tables as a list of dicts.

        Raises:
            KeyError: there is no such table.
        """
        if name not in get_args(TableName):
            raise KeyError(f"{name!r}: there are {', '.join(get_args(TableName))}")
        find = {"runs": _runs, "frontier": _frontier, "curves": _curves}.get(name)
        found: Rows = []
        for table in self.comparison.tables:
            world = {"world": wording.world_name(table)}
            if find is None:
                found += [world | _flat(row) for row in table_json(table, Path.cwd())[name]]
            else:
                found += [world | row for row in find(table)]
        return found

    def _table(self, name: TableName) -> Any:
        rows = self.rows(name)
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows)

    def __str__(self) -> str:
        return format_table(self.comparison)

    def _repr_html_(self) -> str:
        """The table of arms, for a notebook; every text that comes from a run is escaped."""
        return "\n".join(map(_html, self.comparison.tables))


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as columns; the value of an amount with ends takes the amount's own name."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        name = prefix + key
        if isinstance(value, Mapping):
            found |= _flat(value, f"{name}_")
        else:
            found[name.removesuffix("_value") if prefix else name] = value
    return found


def _runs(table: Table) -> Iterator[dict[str, Any]]:
    for arm in table.arms:
        for member in arm.runs:
            counters = member.counters
            yield {
                "arm": arm.label,
                "seed": member.seed,
                "value": member.value,
                "decayed": member.point is not None,
                "config_hash": member.run.summary.config_hash,
                "flops_total": counters.get("flops/total"),
                "pairs_seen": counters.get("pairs/seen"),
                "pairs_trained": counters.get("pairs/trained"),
                "seconds": counters.get("time/seconds"),
                "run": relative(member.run.folder, Path.cwd()),
            }


def _frontier(table: Table) -> Iterator[dict[str, Any]]:
    for point in table.frontier:
        ends = {"mean": point.mean.value, "low": point.mean.low, "high": point.mean.high}
        yield {"arm": point.arm, "budget": point.budget, **ends, "seeds": point.seeds, **point.amount}


def _curves(table: Table) -> Iterator[dict[str, Any]]:
    for arm in table.arms:
        for member in arm.runs:
            curve = member.curve
            for number, value in enumerate(curve.value_E):
                amounts = {axis: float(amount_E[number]) for axis, amount_E in curve.amount_E.items()}
                yield {"arm": arm.label, "seed": member.seed, **amounts, "value": float(value)}


def _html(table: Table) -> str:
    head = ("arm", f"minus {table.baseline or 'baseline'} [95 %]", "verdict", "mean [95 %]", "seeds", "FLOPs", "all in")
    rows = [
        (
            *wording.cells(arm, table),
            *(wording.speedup_text(arm.speedup[axis]) for axis in ("flops", "flops_all_in")),
        )
        for arm in table.arms
    ]
    caption = escape(": ".join(part for part in (wording.world_name(table), table.metric) if part))
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    lines = "".join(f"<tr>{row}</tr>" for row in cells)
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f"<table><caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"
