"""Writes the tables of docs/results.md and of the README from the records in docs/logs, by the commands above them.

    python tests/compare/make_results.py                                # every table, and the machines of the records
    python tests/compare/make_results.py rungs docs/logs/flagship       # one table, printed

A table stands between ``<!-- results -->`` and ``<!-- /results -->``, and the last line of the indented block above it
is the command that makes it: ``python tools/compare.py …`` for a comparison, or this script with the name of another
kind of table (``KINDS``). Below a table of docs/results.md stands what machine and commits its records are from, where
no table above it holds them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from provenance_line import provenance

from jestbench.compare.comparison import Arm, Interval, Table
from jestbench.compare.configurations import read_configuration
from jestbench.compare.crossings import Speedup
from jestbench.compare.load import find_run_folders
from jestbench.compare.report import compare
from jestbench.compare.statistics import Cell, Difference, Fit, fit
from jestbench.compare.wording import flops_text, reference_label, speedup_ends, speedup_text
from jestbench.evals.measure import Measure
from jestbench.evals.results import Ranking
from jestbench.runs.folder import RunFolder
from jestbench.runs.summary import Summary

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "docs" / "logs"
RESULTS = ROOT / "docs" / "results.md"
PAGES = (RESULTS, ROOT / "README.md")
SECTION = re.compile(r"((?:^ {4}[^\n]+\n)+)\n<!-- results -->\n(.*?)<!-- /results -->\n", re.DOTALL | re.MULTILINE)
BOTH = ("eval/zero_shot_top5", "eval/zero_shot_unseen_top5")


@dataclass(frozen=True)
class Recipe:
    """What a command above a table asks for.

    Attributes:
        kind: a name of ``KINDS``; ``arms`` for ``tools/compare.py``.
        run_dirs: run folders, or folders that hold them.
        metric: key of the metric.
        baseline: label of the arm that the others are compared with.
    """

    kind: str
    run_dirs: tuple[Path, ...]
    metric: str
    baseline: str

    @property
    def folders(self) -> list[Path]:
        """The run folders."""
        named, found = find_run_folders(self.run_dirs)
        return [*named, *found]

    def table(self) -> Table:
        """The comparison."""
        return compare(self.run_dirs, self.metric, self.baseline).first

    def made(self) -> str:
        """The table as Markdown."""
        return KINDS[self.kind](self)


def recipe(words: Sequence[str]) -> Recipe:
    """What the words of a command ask for, after ``python``."""
    tool, *rest = words
    parser = argparse.ArgumentParser(prog="make_results.py")
    if tool.endswith("compare.py"):
        parser.set_defaults(kind="arms")
    else:
        parser.add_argument("kind", choices=[kind for kind in KINDS if kind != "arms"])
    parser.add_argument("run_dirs", nargs="+", type=lambda text: ROOT / text)
    parser.add_argument("--metric", default=BOTH[0])
    parser.add_argument("--baseline", default="uniform")
    return Recipe(**vars(parser.parse_args(rest)))


def expanded(command: str) -> list[str]:
    """The words of a command of a page after ``python``, as a shell in the checkout hands them over."""
    words = ["bash", "-c", f"printf '%s\\n' {command}"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0] == "python", command
    assert said[1] in ("tools/compare.py", "tests/compare/make_results.py"), command
    return said[1:]


def recipes(text: str) -> list[Recipe]:
    """The recipe of each table of a page, in order."""
    return [recipe(expanded(_last(block))) for block, _ in SECTION.findall(text)]


def _last(block: str) -> str:
    return str(block.replace("\\\n", " ").splitlines()[-1])


def ended(folder: Path) -> tuple[Summary, int]:
    """The summary of a run, and its budget."""
    summary = RunFolder(folder).summary()
    assert summary is not None
    assert summary.budget is not None
    return summary, summary.budget


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def _interval(of: Interval | Difference, unit: float, sign: str = "") -> str:
    digits = 1 if unit == 100 else 2
    ends = (
        "open"
        if of.low is None or of.high is None
        else f"{of.low * unit:{sign}.{digits}f}, {of.high * unit:{sign}.{digits}f}"
    )
    return f"{of.value * unit:{sign}.{digits}f} [{ends}]"


def _factors(speedup: Mapping[str, Speedup]) -> list[str]:
    """FLOPs that an arm saves over the baseline, without and with its references' training."""
    told = [f"{speedup_text(speedup[axis])} {speedup_ends(speedup[axis])}" for axis in ("flops", "flops_all_in")]
    return [factor.strip().replace("..", "open").replace("x", "×") for factor in told]


def _arm(arm: Arm, unit: float) -> list[str]:
    found = arm.difference
    difference = ["", ""] if found is None else [_interval(found, unit, "+"), str(found.verdict)]
    return [arm.label, *difference, _interval(arm.mean, unit), str(len(arm.runs))]


def arms(asked: Recipe) -> str:
    """The arms at the common budget; with factors of compute where an arm has several budgets."""
    table = asked.table()
    share = "nll" not in asked.metric
    head = ["arm", f"minus {table.baseline}{', points' if share else ''} [95 %, simultaneous]", "verdict"]
    head += [f"mean{', %' if share else ''} [95 %]", "seeds"]
    rows = [_arm(arm, 100 if share else 1) for arm in table.arms]
    if len({point.budget for point in table.frontier}) > 1:
        head += ["FLOPs, times less [95 %]", "all in"]
        factors = (["", ""] if arm.label == table.baseline else _factors(arm.speedup) for arm in table.arms)
        rows = [[*row, *two] for row, two in zip(rows, factors, strict=True)]
    return _lines(head, rows)


def to_end(asked: Recipe) -> str:
    """FLOPs that arms save to the value of uniform's last rung, on all classes and on the unseen ones."""
    head, rows = ["arm"], defaultdict[str, list[str]](list)
    for metric, whose in zip(BOTH, ("all classes", "unseen"), strict=True):
        table = replace(asked, metric=metric).table()
        (base,) = (arm for arm in table.arms if arm.label == table.baseline)
        head += [f"{whose}: times less to {_interval(base.end, 100)} %", f"{whose}: all in"]
        for arm in table.arms:
            if arm.speedup_to_end:
                rows[arm.label] += _factors(arm.speedup_to_end)
    return _lines(head, ([arm, *cells] for arm, cells in rows.items()))


def rungs(asked: Recipe) -> str:
    """Means at every rung, on all classes · on those that the curated set lacks."""
    whole, unseen = (
        {(p.arm, p.budget): p.mean.value for p in replace(asked, metric=metric).table().frontier} for metric in BOTH
    )
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


def rates(asked: Recipe) -> str:
    """What the tuning found: loss and top-5 of each learning rate and weight decay."""
    found: dict[tuple[float, float], dict[str, str]] = {}
    for path in asked.folders:
        summary, decay = ended(path)[0], float(read_configuration(path)["optimizer.weight_decay"])
        values = f"{summary.metrics['eval/zero_shot_nll']:.3f} · {100 * summary.metrics[BOTH[0]]:.1f}"
        found.setdefault((summary.learning_rate, decay), {})[summary.arm] = values
    rows = (
        [f"{rate:g}", f"{decay:g}", cells["uniform"], cells["jest"]] for (rate, decay), cells in sorted(found.items())
    )
    return _lines(["learning rate", "weight decay", "uniform", "jest"], rows)


def trial(asked: Recipe) -> str:
    """Runs of their own (the first folder) at the budgets that factors named, against uniform's value (the second)."""
    tried, ladders = (replace(asked, run_dirs=(folder,)) for folder in asked.run_dirs)
    (target,) = (arm.mean.value for arm in ladders.table().arms if arm.label == "uniform")
    found: dict[tuple[str, int], dict[int, float]] = {}
    for summary, budget in map(ended, tried.folders):
        found.setdefault((summary.arm, budget), {})[summary.seed] = summary.metrics[BOTH[0]]
    rows = []
    for (arm, budget), by_seed in sorted(found.items()):
        values = [by_seed[seed] for seed in sorted(by_seed)]
        reached = f"{sum(value >= target for value in values)} of {len(values)}"
        each = ", ".join(f"{100 * value:.1f}" for value in values)
        rows.append([arm, flops_text(budget), each, f"{100 * target:.1f}", reached])
    return _lines(["arm", "budget", "seeds 0, 1, 2, %", "uniform's value, %", "reached"], rows)


def budgets(asked: Recipe) -> str:
    """Values of all classes of each arm's runs, by their budgets."""
    found: dict[str, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for summary, budget in map(ended, asked.folders):
        found[summary.arm][budget][summary.seed] = summary.metrics[BOTH[0]]
    every = sorted({budget for by_budget in found.values() for budget in by_budget})
    rows = (
        [arm, *(", ".join(f"{100 * value:.2f}" for _, value in sorted(by_budget[budget].items())) for budget in every)]
        for arm, by_budget in sorted(found.items())
    )
    return _lines(["arm", *(flops_text(budget) for budget in every)], rows)


WHOLE = 2_991
"""Curated pairs where ``icons.curated`` cuts none off: the flagship's."""
AT = int(2e12)
"""Budget of the table by size, FLOPs."""
ARMS = ("curated_alone", "easy_reference", "jest", "uniform")


def _zero_shot(path: Path, budget: int) -> Ranking:
    """Where the right class of each evaluation image ranks, by the image's key."""
    found = RunFolder(path).results()[budget].rankings["zero_shot"]
    order = np.argsort(found.key_N, kind="stable")
    return Ranking(found.rank_N[order], found.unit_N[order], found.key_N[order])


def _fitted(
    runs: Mapping[str, Sequence[tuple[int, Ranking]]],
    chosen_N: npt.NDArray[np.bool_],
    bases: Sequence[str] = ("curated_alone", "uniform"),
) -> dict[str, Fit]:
    """Top-5 on some of the images, with each of the bases as the baseline."""
    cells, unit_N = {}, None
    for arm, found in runs.items():
        value_SN = np.stack([(ranking.only(chosen_N).rank_N <= 5).astype(np.float64) for _, ranking in found])
        cells[arm] = Cell(tuple(seed for seed, _ in found), value_SN.mean(1), value_SN)
        unit_N = found[0][1].only(chosen_N).unit_N
    measure = Measure(0.0, 1.0, int(chosen_N.sum()))
    return {base: fit(cells, base, unit_N, measure, lower_is_better=False) for base in bases}


def _reference(path: Path) -> float:
    """Top-5 of the reference that a run was scored with."""
    (folder,) = path.glob("references/reference-*")
    return ended(folder)[0].metrics[BOTH[0]]


def _noise(path: Path) -> float:
    """The share of exchanged captions among the pairs that a run trained on up to ``AT``."""
    rows = [row for row in RunFolder(path).read_rows()[0] if "select/share_noisy" in row and row["flops/total"] <= AT]
    return float(np.mean([row["select/share_noisy"] for row in rows]))


def sizes(asked: Recipe) -> str:
    """Arms at 2 TFLOP by the number of curated pairs, on all classes and on those that this curated set lacks."""
    runs: dict[int, dict[str, list[tuple[int, Ranking]]]] = defaultdict(lambda: defaultdict(list))
    unseen: dict[int, npt.NDArray[np.int64]] = {}
    noise: dict[tuple[int, str], list[float]] = defaultdict(list)
    # The flagship's own reference of this configuration was not kept: its twin of another machine was.
    reference = {WHOLE: _reference(*LOGS.glob("rivals/jest-*-seed0"))}
    for path in asked.folders:
        size = int(read_configuration(path).get("icons.curated", 0)) or WHOLE
        summary, results = ended(path)[0], RunFolder(path).results()[AT]
        if summary.arm in ARMS:
            runs[size][summary.arm].append((summary.seed, _zero_shot(path, AT)))
            unseen[size] = results.rankings["zero_shot_unseen"].key_N
            noise[size, summary.arm].append(_noise(path))
            if size != WHOLE and list(path.glob("references/*")):
                reference[size] = _reference(path)
    rows = []
    for size, found in sorted(runs.items()):
        found["uniform"] = runs[WHOLE]["uniform"]  # the pool is the same for all sizes
        key_N = found["uniform"][0][1].key_N
        fits = [_fitted(found, chosen_N) for chosen_N in (np.full(len(key_N), True), np.isin(key_N, unseen[size]))]
        named = f"{size:,}: {len(key_N) // 2 - len(unseen[size]) // 2} classes; reference {100 * reference[size]:.1f}"
        for arm in ARMS[:-1]:
            cells = [named, arm, f"{100 * float(np.mean(noise[size, arm])):.0f}"]
            for fitted in fits:
                cells.append(_interval(fitted["uniform"].means[arm], 100))
                for base in fitted:
                    cells.append(_interval(fitted[base].differences[arm], 100, "+") if arm != base else "")
            rows.append(cells)
            named = ""
    columns = ("mean", "minus curated_alone", "minus uniform")
    return _lines(
        ["curated pairs", "arm", "noise trained on", *columns, *(f"unseen: {column}" for column in columns)], rows
    )


def stage(asked: Recipe) -> str:
    """Arms that go on from a trained learner beside arms from scratch, on all classes and on the unseen ones."""
    runs: dict[str, list[tuple[int, Ranking]]] = defaultdict(list)
    flops, unseen_N = {}, np.array([], np.int64)
    for path in asked.folders:
        summary, budget = ended(path)
        label = f"{summary.arm}, {'from scratch' if summary.start is None else 'a stage'}"
        runs[label].append((summary.seed, _zero_shot(path, budget)))
        unseen_N = RunFolder(path).results()[budget].rankings["zero_shot_unseen"].key_N
        before = 0 if summary.start is None else summary.start.flops or 0
        flops[label] = " + ".join(flops_text(part) for part in (before, budget) if part)
    key_N = runs["uniform, a stage"][0][1].key_N
    bases = "uniform, from scratch", "uniform, a stage"
    fits = [_fitted(runs, chosen_N, bases) for chosen_N in (np.full(len(key_N), True), np.isin(key_N, unseen_N))]
    rows = []
    for arm in sorted(runs, key=lambda arm: -fits[0][bases[0]].means[arm].value):
        cells = [arm, flops[arm]]
        for fitted in fits:
            cells.append(_interval(fitted[bases[0]].means[arm], 100))
            cells += [_interval(fitted[base].differences[arm], 100, "+") if arm != base else "" for base in bases]
        rows.append(cells)
    columns = ("mean", *(f"minus {base}" for base in bases))
    return _lines(["arm", "FLOPs", *columns, *(f"unseen: {column}" for column in columns)], rows)


def _shares(folder: Path) -> dict[str, float]:
    """Shares of bad pairs among those that a run reads, and that it trains on at the start and at the end."""
    rows = [row for row in RunFolder(folder).read_rows()[0] if "select/share_noisy" in row]
    start, end = rows[: len(rows) // 4], rows[-(len(rows) // 4) :]
    parts = {"read": (rows, "_super_batch"), "first quarter": (start, ""), "last quarter": (end, "")}
    return {
        f"{mark}: {part}": float(np.mean([row[f"select/share_{mark}{where}"] for row in some]))
        for mark in ("noisy", "partial", "repeated")
        if f"select/share_{mark}" in rows[0]
        for part, (some, where) in parts.items()
    }


def chosen(asked: Recipe) -> str:
    """What the pairs that each arm trains on are, in %; the fewest exchanged captions at the end first."""
    found = {arm.label: [_shares(run.run.folder) for run in arm.runs] for arm in asked.table().arms if arm.runs}
    head = list(next(iter(found.values()))[0])
    means = {label: [float(np.mean([run[key] for run in runs])) for key in head] for label, runs in found.items()}
    ordered = sorted(means.items(), key=lambda item: item[1][2])
    return _lines(["arm", *head], ([label, *(f"{100 * mean:.0f}" for mean in means)] for label, means in ordered))


def quickstart(asked: Recipe) -> str:
    """The README's table: each seed's value, first touches, and the references' own values."""
    table, axes = asked.table(), ("flops", "flops_all_in", "pairs_seen")
    rows = []
    for arm in table.arms:
        label, difference, verdict, mean, _ = _arm(arm, 100)
        base = arm.label == table.baseline
        factors = ["1x" if base else speedup_text(arm.speedup[axis]) for axis in axes]
        values = ", ".join(f"{100 * value:.4g}" for value in arm.values)
        rows.append([label, difference, verdict, mean.replace(" [", " % ["), values, *factors])
    for row in table.references:
        assert row.value is not None
        name = f"*{reference_label(row.name)} ({flops_text(row.flops_total)})*"
        rows.append([name, "", "", f"{100 * row.value:.2f} %", "", "", "", ""])
    head = ["arm", f"minus {table.baseline}, points [95 %]", "verdict", "zero-shot top-5, mean [95 %]", "seeds 0, 1, 2"]
    return _lines([*head, "FLOPs", "all in", "pairs seen"], rows)


KINDS: Mapping[str, Callable[[Recipe], str]] = {
    made.__name__: made for made in (arms, to_end, rungs, rates, trial, budgets, sizes, stage, chosen, quickstart)
}


def filled(text: str, *, with_machines: bool = True) -> str:
    """A page with every table as the records have it now; and the machines and commits of the records."""
    told = set[Path]()

    def section(found: re.Match[str]) -> str:
        asked = recipe(expanded(_last(found[1])))
        new = [folder for folder in asked.folders if folder not in told]
        told.update(new)
        line = f"\n{provenance(new)}\n" if with_machines and new else ""
        return f"{found[1]}\n<!-- results -->\n{asked.made()}{line}<!-- /results -->\n"

    return SECTION.sub(section, text)


def written(page: Path) -> str:
    """A page as the records have it now; the machines stand on docs/results.md alone."""
    return filled(page.read_text(encoding="utf-8"), with_machines=page == RESULTS)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(recipe(sys.argv).made(), end="")
    else:
        for page in PAGES:
            page.write_text(written(page), encoding="utf-8")
