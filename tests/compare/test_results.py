"""Tables and figures of docs/results.md, the README and docs/quickstart.md equal those computed from docs/logs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import make_results
import pytest
from make_results import LOGS, PAGES, RESULTS, ROOT, SECTION
from matplotlib.figure import Figure

from jestbench.compare import plots, report
from jestbench.runs.folder import RunFolder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_command_above_each_table_makes_it(page: Path) -> None:
    """Where it does not: ``python tests/compare/make_results.py``, and read what changed."""
    text = page.read_text(encoding="utf-8")
    assert len(SECTION.findall(text)) == text.count("<!-- results -->") == text.count("<!-- /results -->") > 0
    assert make_results.written(page).splitlines() == text.splitlines()


def test_the_command_line_writes_what_stands_in_the_table(tmp_path: Path) -> None:
    """One command, run as a reader runs it, with a label of an arm as its baseline."""
    block, table = next(found for found in SECTION.findall(RESULTS.read_text("utf-8")) if "gain=1.0" in found[0])
    _, *words = make_results.expanded(block.strip())
    folders = [str(ROOT / word) if word.startswith("docs/") else word for word in words]
    assert report.main([*folders, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert found["baseline"] == "jest gain=1.0"
    rows = [line for line in table.splitlines() if line.startswith("| jest")]
    assert len(found["arms"]) == len(rows) == 5
    for arm, row in zip(found["arms"], rows, strict=True):
        low, mean, high = (100 * arm[key] for key in ("low", "mean", "high"))
        cells = [arm["label"], "", "", f"{mean:.1f} [{low:.1f}, {high:.1f}]", str(len(arm["seeds"]))]
        if arm["difference"] is not None:
            low, value, high = (100 * arm[key] for key in ("difference_low", "difference", "difference_high"))
            cells[1:3] = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]", arm["verdict"]
        assert row == f"| {' | '.join(cells)} |"


def _cells(page: Path, command: str, *first: str) -> dict[str, str]:
    """A row of the table below a command, by column; ``first`` are its first cells."""
    (table,) = (table for block, table in SECTION.findall(page.read_text(encoding="utf-8")) if block.endswith(command))
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line)
    return next(dict(zip(head, row, strict=True)) for row in rows if tuple(row[: len(first)]) == first)


def test_figures_in_sentences_are_those_of_the_tables() -> None:
    """Of the README and of docs/quickstart.md, which repeat a few."""
    top5 = "python tools/compare.py docs/logs/{} --metric eval/zero_shot_top5\n"
    times, all_in = "FLOPs, times less [95 %]", "all in"
    readme, quickstart = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/quickstart.md"))
    jest = _cells(RESULTS, top5.format("flagship"), "jest")
    factor, ends = jest[times].split(" ", 1)
    assert f"{factor} fewer FLOPs {ends}, {jest[all_in].replace(' ', ' all in ', 1)}" in " ".join(readme.split())
    tried = 16 / float(factor.rstrip("×"))
    trial = "make_results.py trial docs/logs/flagship_trial docs/logs/flagship\n"
    at, below = _cells(RESULTS, trial, "jest", f"{tried:.2f} TFLOP"), _cells(RESULTS, trial, "jest", "5.70 TFLOP")
    assert (at["reached"], below["reached"]) == ("1 of 3", "3 of 3")
    assert f"{16 / 5.70:.1f}" == ends.strip("[").split(",")[0]
    said = f"of three cosine runs one has it at the {tried:.2f} TFLOP that the factor names, all three at the 5.70"
    assert said in " ".join(readme.split())

    ladder = _cells(RESULTS, top5.format("ladder"), "jest")
    assert f"{ladder[times]} for jest, {ladder[all_in]} all in" in quickstart
    touch = _cells(RESULTS, "make_results.py budgets docs/logs/first_touch\n", "jest")
    for budget in ("205 GFLOP", "600 GFLOP"):
        assert re.sub(r", (\S+)$", r" and \1 %", touch[budget]) in " ".join(quickstart.split())


def test_how_often_a_pool_is_read() -> None:
    for folder, pool, times in (("rivals", 31_601, 5.4), ("flagship", 31_601, 47)):
        summary = RunFolder(next((LOGS / folder).glob("jest-*-seed0"))).summary()
        assert summary is not None
        assert summary.pairs_seen / pool == pytest.approx(times, rel=0.01)
        assert f"{times:g} times" in RESULTS.read_text(encoding="utf-8")


def test_learnability_and_jest_in_one_chunk_are_the_same_runs() -> None:
    """Their rows are equal; the runs of ``learnability`` come from a working tree that had uncommitted changes."""
    for seed in range(3):
        folders = [next((LOGS / "rivals").glob(f"{arm}-*-seed{seed}")) for arm in ("learnability", "jest_independent")]
        commits = [json.loads((folder / "environment.json").read_text("utf-8"))["commit"] for folder in folders]
        assert commits == ["8bffe54-dirty", "6cf813d"]
        one, other = (RunFolder(folder).read_rows()[0] for folder in folders)
        assert len(one) == len(other) > 50
        for row, same in zip(one, other, strict=True):
            apart = {key for key in row.keys() | same.keys() if row.get(key) != same.get(key)}
            assert apart <= {"time/seconds", "select/logit_chosen"}


def test_the_arms_of_a_table_have_the_same_seeds() -> None:
    """An arm whose sweep was stopped before its last seed is no fair company."""
    for block, made in SECTION.findall(RESULTS.read_text(encoding="utf-8")):
        lines = [line for line in made.splitlines() if line.startswith("|")]
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
        if "seeds" in head:
            assert len({row[head.index("seeds")] for row in rows}) == 1, block


def test_a_reference_of_many_arms_has_a_short_name_in_the_plot() -> None:
    """Its whole name lists thirteen arms: it ran across the legend, and left matplotlib no room for the axes."""
    table = report.compare([LOGS / "rivals"], "eval/zero_shot_top5").first
    assert max(len(row.name) for row in table.references) > 150
    figure = Figure()
    plots._draw_metric(figure, table, "")
    assert 0 < max(len(text.get_text()) for axes in figure.axes for text in axes.texts) < 50
