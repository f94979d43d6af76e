"""Reads a metric from a run: its learning curve, and its decayed points.

A decayed point is a value at the end of a learning-rate schedule: a rung of a ladder, or the end of a run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jestbench.compare.curves import Array, Curve
from jestbench.compare.load import RunRecord
from jestbench.disk import DataError
from jestbench.evals.results import Examples, Results
from jestbench.runs.folder import Row, RunFolder

TOTAL_FLOPS = "flops/total"


@dataclass(frozen=True)
class Point:
    """A metric at the end of a learning-rate schedule.

    Attributes:
        budget: FLOPs that the schedule was to end at; those spent where the budget is in steps or pairs.
        value: the metric.
        amount: axis → amount spent; NaN where the run did not log it.
        counters: the last number logged under each key up to there.
        examples: the metric of each evaluation example, by key; ``None`` where the run holds none.
    """

    budget: int
    value: float
    amount: Mapping[str, float]
    counters: Row
    examples: Examples | None


@dataclass(frozen=True)
class Candidate:
    """A run that can be compared.

    Attributes:
        run: the run.
        curve: its evaluations, without those of a ladder's branches.
        points: its decayed points, by budget; the last is its end.
    """

    run: RunRecord
    curve: Curve
    points: tuple[Point, ...]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.run.summary.seed

    @property
    def end(self) -> Point:
        """The run's own end."""
        return self.points[-1]

    @property
    def examples(self) -> str:
        """Identity of the evaluation examples; empty where the run holds none."""
        keys = [point.examples.key_N for point in self.points if point.examples is not None]
        return hashlib.sha256(np.ascontiguousarray(keys[-1]).tobytes()).hexdigest()[:8] if keys else ""

    def point(self, budget: int) -> Point | None:
        """The decayed point at a budget."""
        return next((point for point in self.points if point.budget == budget), None)


def spent(run: RunRecord) -> float:
    """FLOPs of a run, with the pre-training that was taken out of its budget."""
    return run.final.get(TOTAL_FLOPS, 0) + run.summary.pretrain_in_budget


def step_flops(run: RunRecord) -> float:
    """FLOPs of a run's average step."""
    steps = run.final.get("step", 0)
    return run.final.get(TOTAL_FLOPS, 0) / steps if steps > 0 else 0.0


def read_metric(
    run: RunRecord, metric: str, results: Mapping[int, Results] | None = None
) -> tuple[Candidate | None, tuple[str, ...]]:
    """Read a metric from a run.

    Args:
        results: of the run's decayed evaluations, by budget; ``None``: read from its folder.

    Returns:
        The run with its curve and points, and notes on both; or ``None`` and the reason why there is no curve.
    """
    curve, *problems = _curve(run.rows, run, metric)
    if curve is None:
        return None, tuple(problems)
    if results is None:
        try:
            results = RunFolder(run.folder).results()
        except DataError as error:
            results = {}
            problems.append(f"{error}: its intervals hold seeds alone")
    rungs = run.summary.schedule.rungs
    ends: list[tuple[int, Curve, Row, Results | None]] = []
    for rung in rungs[:-1]:
        row = run.rung_rows.get(rung, {})
        branch, problem = _curve([row], run, metric)
        if branch is not None:
            ends.append((rung, branch, row, results.get(rung)))
        problems.append(f"no decayed point at {rung:.3e} FLOPs: {problem}" if problem else "")
    # A run without a ladder has one evaluation at its end, named after its budget.
    last = results.get(rungs[-1]) if rungs else results[max(results)] if results else None
    ends.append((run.budget or int(spent(run)), curve, run.final, last))
    points: list[Point] = []
    for budget, part, counters, result in ends:
        value = float(part.value_E[-1])
        examples, problem = _examples(result, value, metric)
        problems.append(f"at {budget:.3e} FLOPs: {problem}" if problem else "")
        amount = {axis: float(amount_E[-1]) for axis, amount_E in part.amount_E.items()}
        points.append(Point(budget, value, amount, counters, examples))
    return Candidate(run, curve, tuple(points)), tuple(problem for problem in problems if problem)


def _curve(rows: Iterable[Row], run: RunRecord, metric: str) -> tuple[Curve | None, str]:
    rows = [row for row in rows if metric in row and TOTAL_FLOPS in row]
    finite = [row for row in rows if math.isfinite(row[metric])]
    if not finite:
        return None, f"{metric} is {'not finite' if rows else 'missing'}"
    if not math.isfinite(rows[-1][metric]):
        return None, f"{metric} is not finite at the end"
    flops_E = column(finite, TOTAL_FLOPS)
    if not np.isfinite(flops_E).all() or (np.diff(flops_E) < 0).any():
        return None, f"{TOTAL_FLOPS} goes backwards or is not finite"
    curve = Curve(value_E=column(finite, metric), amount_E=amounts(finite, run))
    dropped = len(rows) - len(finite)
    return curve, f"{dropped} value(s) of {metric} are not finite and are left out" if dropped else ""


def amounts(rows: Sequence[Row], run: RunRecord) -> dict[str, Array]:
    """Axis → amount that a run had spent at each row; NaN where it is not known."""
    flops_R, pretrained = column(rows, TOTAL_FLOPS), run.summary.pretrain_total
    return {
        "flops": flops_R + run.summary.pretrain_in_budget,
        "flops_all_in": flops_R + (math.nan if pretrained is None else pretrained),
        "pairs_seen": column(rows, "pairs/seen"),
        "pairs_trained": column(rows, "pairs/trained"),
        "seconds": column(rows, "time/seconds"),
    }


def column(rows: Iterable[Row], key: str) -> Array:
    """What the rows hold under a key; NaN where a row does not."""
    return np.array([row.get(key, math.nan) for row in rows], dtype=np.float64)


def _examples(results: Results | None, value: float, metric: str) -> tuple[Examples | None, str]:
    """The examples in the order of their keys, which is the same in every run; and a problem with them."""
    found = results.of(metric) if results is not None else None
    if found is None:
        return None, ""
    # The model may have run in single precision: its mean over the examples differs in the last digits.
    if not math.isclose(float(np.mean(found.value_N)), value, rel_tol=1e-5, abs_tol=1e-9):
        return None, f"the results of its examples do not average to {metric} and are not used"
    order = np.argsort(found.key_N, kind="stable")
    return Examples(found.value_N[order], found.unit_N[order], found.key_N[order]), ""
