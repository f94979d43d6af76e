"""Writes the tables of docs/results.md from the records in docs/logs: ``python tests/compare/make_results.py``.

A table stands between ``<!-- results: FOLDER METRIC -->`` and ``<!-- /results -->``. ``METRIC@ARM`` names a baseline in
place of uniform; ``rungs``, ``rates`` and ``trial`` name the other kinds of table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from jestbench.compare.comparison import Arm, Interval, Table
from jestbench.compare.report import compare
from jestbench.compare.wording import flops_text, speedup_ends, speedup_text
from jestbench.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "docs" / "logs"
PAGE = ROOT / "docs" / "results.md"
SECTION = re.compile(r"(<!-- results: (\S+) (\S+) -->\n)(.*?)(<!-- /results -->\n)", re.DOTALL)
BOTH = ("eval/zero_shot_top5", "eval/zero_shot_unseen_top5")


def measured(folder: str, what: str) -> Table:
    """The comparison of a folder of records by a metric, against a baseline that may follow it."""
    metric, _, baseline = what.partition("@")
    return compare([LOGS / folder], metric, baseline or "uniform").first


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def _interval(of: Interval, unit: float, sign: str = "") -> str:
    digits = 1 if unit == 100 else 2
    ends = (
        "open"
        if of.low is None or of.high is None
        else f"{of.low * unit:{sign}.{digits}f}, {of.high * unit:{sign}.{digits}f}"
    )
    return f"{of.value * unit:{sign}.{digits}f} [{ends}]"


def _arm(arm: Arm, table: Table, unit: float) -> list[str]:
    found = arm.difference
    factors = [
        f"{speedup_text(arm.speedup[axis])} {speedup_ends(arm.speedup[axis])}" for axis in ("flops", "flops_all_in")
    ]
    if arm.label == table.baseline or found is None:
        difference, factors = ["", ""], ["", ""]
    else:
        difference = [_interval(found, unit, "+"), str(found.verdict)]
    told = [factor.strip().replace("..", "open").replace("x", "×") for factor in factors]
    return [arm.label, *difference, _interval(arm.mean, unit), str(len(arm.runs)), *told]


def arms(folder: str, metric: str) -> str:
    """The arms at the common budget."""
    table = measured(folder, metric)
    share = "nll" not in metric
    head = ["arm", f"minus {table.baseline}{', points' if share else ''} [95 %, simultaneous]", "verdict"]
    head += [f"mean{', %' if share else ''} [95 %]", "seeds", "FLOPs, times less [95 %]", "all in"]
    return _lines(head, (_arm(arm, table, 100 if share else 1) for arm in table.arms))


def rungs(folder: str) -> str:
    """Means at every rung, on all classes · on those that the curated set lacks."""
    whole, unseen = ({(p.arm, p.budget): p.mean.value for p in measured(folder, metric).frontier} for metric in BOTH)
    budgets, every = sorted({budget for _, budget in whole}), {arm for arm, _ in whole}
    common = max(budget for budget in budgets if all((arm, budget) in whole for arm in every))
    rows = (
        [
            arm,
            *(f"{100 * whole[arm, b]:.1f} · {100 * unseen[arm, b]:.1f}" if (arm, b) in whole else "" for b in budgets),
        ]
        for arm in sorted(every, key=lambda arm: -whole[arm, common])
    )
    return _lines(["arm", *(flops_text(budget) for budget in budgets)], rows)


def rates(folder: str) -> str:
    """What the tuning found: loss and top-5 of each learning rate and weight decay."""
    found: dict[tuple[float, float], dict[str, str]] = {}
    for path in sorted((LOGS / folder).iterdir()):
        summary = RunFolder(path).summary() if path.is_dir() else None
        if summary is not None:
            decay = re.search(r"^optimizer.weight_decay = (\S+)", (path / "operative.gin").read_text(), re.MULTILINE)
            assert decay is not None
            values = f"{summary.metrics['eval/zero_shot_nll']:.3f} · {100 * summary.metrics[BOTH[0]]:.1f}"
            found.setdefault((summary.learning_rate, float(decay[1])), {})[summary.arm] = values
    rows = (
        [f"{rate:g}", f"{decay:g}", cells["uniform"], cells["jest"]] for (rate, decay), cells in sorted(found.items())
    )
    return _lines(["learning rate", "weight decay", "uniform", "jest"], rows)


def trial(folder: str) -> str:
    """Runs of their own at the budgets that the factors name, against uniform's value in the flagship."""
    table = measured("flagship", BOTH[0])
    (target,) = (arm.mean.value for arm in table.arms if arm.label == "uniform")
    found: dict[tuple[str, int], dict[int, float]] = {}
    for path in sorted((LOGS / folder).iterdir()):
        summary = RunFolder(path).summary()
        assert summary is not None
        assert summary.budget is not None
        found.setdefault((summary.arm, summary.budget), {})[summary.seed] = summary.metrics[BOTH[0]]
    rows = []
    for (arm, budget), by_seed in found.items():
        values = [by_seed[seed] for seed in sorted(by_seed)]
        reached = f"{sum(value >= target for value in values)} of {len(values)}"
        each = ", ".join(f"{100 * value:.1f}" for value in values)
        rows.append([arm, flops_text(budget), each, f"{100 * target:.1f}", reached])
    return _lines(["arm", "budget", "seeds 0, 1, 2, %", "uniform's value, %", "reached"], rows)


def filled(text: str) -> str:
    """The page with every table as the records have it now."""

    def section(found: re.Match[str]) -> str:
        begin, folder, what, _, end = found.groups()
        made = {"rungs": rungs, "rates": rates, "trial": trial}
        return f"{begin}{made[what](folder) if what in made else arms(folder, what)}{end}"

    return SECTION.sub(section, text)


def machine(folder: str) -> set[str]:
    """The processors that the records of a folder are from."""
    return {json.loads(path.read_text())["processor"] for path in (LOGS / folder).glob("*/environment.json")}


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
