"""How a comparison is asked for: its metric found, runs that go on, tables for a notebook, several worlds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT
from planted_runs import METRIC, UNIFORM, write_run

from jestbench import compare_runs
from jestbench.compare.choose_metric import SWEEP_FILE, SweepRecord
from jestbench.compare.load import CompareError
from jestbench.compare.report import main

BETTER = [(0, 0.0), (50, 0.3), (100, 0.6)]


def two_arms(folder: Path, metric: str = METRIC, seeds: tuple[int, ...] = (0, 1), **more: object) -> Path:
    for seed in seeds:
        write_run(folder / f"u{seed}", UNIFORM, seed=seed, metric=metric, **more)
        points = [(flops, round(value + 0.01 * seed, 2)) for flops, value in BETTER]
        write_run(folder / f"j{seed}", points, arm="jest", seed=seed, metric=metric, **more)
    return folder


def add_metric(folder: Path, name: str, value: float) -> None:
    """Another metric in every row of the runs below a folder."""
    for file in folder.rglob("metrics.jsonl"):
        rows = [json.loads(line) | {name: value} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


# The metric


def test_the_only_metric_that_runs_share_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_arms(tmp_path / "runs")
    add_metric(tmp_path / "runs" / "u0", "eval/of_one_run", 1.0)
    add_metric(tmp_path / "runs", "train/loss", 1.0)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith(f"{METRIC}: ")
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["metric"] == METRIC
    assert f"--metric {METRIC} " in found["command"], "the command of the report gives it elsewhere, too"


def test_several_metrics_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_arms(tmp_path / "runs")
    add_metric(tmp_path / "runs", "eval/top5", 0.9)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.err == f"compare: the runs share 2 metrics: name one with --metric:\n  {METRIC}\n  eval/top5\n"
    assert not (tmp_path / "out").exists()


def test_what_the_sweep_names_is_taken_with_its_goal(tmp_path: Path) -> None:
    two_arms(tmp_path / "runs")
    add_metric(tmp_path / "runs", "eval/top5", 0.9)
    SweepRecord(METRIC, "minimize").write(tmp_path / "runs")
    found = compare_runs(tmp_path / "runs")
    assert (found.metric, found.comparison.first.lower_is_better) == (METRIC, True)
    assert compare_runs(tmp_path / "runs", lower_is_better=False).comparison.first.lower_is_better is False
    # A metric that no run has ended with is not the sweep's say; a torn file is none.
    SweepRecord("eval/none", None).write(tmp_path / "runs")
    with pytest.raises(CompareError, match="share 2 metrics"):
        compare_runs(tmp_path / "runs")
    (tmp_path / "runs" / SWEEP_FILE).write_text('{"metric": "eval/to')
    with pytest.raises(CompareError, match="share 2 metrics"):
        compare_runs(tmp_path / "runs")


def test_sweeps_about_several_metrics_are_named(tmp_path: Path) -> None:
    for name, metric in (("a", METRIC), ("b", "eval/top5")):
        two_arms(tmp_path / name, seeds=(0,))
        add_metric(tmp_path / name, "eval/top5", 0.9)
        SweepRecord(metric).write(tmp_path / name)
    with pytest.raises(CompareError, match="sweeps about several metrics") as error:
        compare_runs([tmp_path / "a", tmp_path / "b"])
    assert error.value.status == 2
    assert "eval/top5" in str(error.value)


def test_no_shared_metric_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path / "a", UNIFORM)
    write_run(tmp_path / "b", UNIFORM, arm="jest", metric="eval/other")
    with pytest.raises(CompareError, match="share no metric") as error:
        compare_runs(tmp_path)
    assert error.value.status == 2


# --watch

RELOADS = '<meta http-equiv="refresh" content="1">'


class Watching:
    """``tools/compare.py --watch`` in a process of its own."""

    def __init__(self, runs: Path, out: Path) -> None:
        words = [str(ROOT / "tools" / "compare.py"), str(runs), "--out", str(out), "--watch", "--interval", "0.1"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        self.page = out / "index.html"
        self.process = subprocess.Popen([sys.executable, *words], env=environment, stdout=pipe, stderr=pipe, text=True)

    def until(self, ready: Callable[[], bool]) -> None:
        for _ in range(600):
            if ready():
                return
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)
        self.process.kill()
        pytest.fail("the report did not get that far")

    def page_has(self, *words: str) -> bool:
        return self.page.is_file() and all(word in self.page.read_text() for word in words)


def test_a_report_is_refreshed_until_all_runs_have_ended(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    SweepRecord(METRIC, arms=("u0", "j0")).write(runs)
    watching = Watching(runs, tmp_path / "out")
    write_run(tmp_path / "j0", BETTER, arm="jest")
    write_run(tmp_path / "u0", UNIFORM)
    (tmp_path / "u0").rename(runs / "u0")
    watching.until(lambda: watching.page_has(RELOADS, "uniform"))
    assert "jest" not in json.loads((tmp_path / "out" / "comparison.json").read_text())["arms"][0]["arm"]
    (tmp_path / "summary.json").write_bytes((tmp_path / "j0" / "summary.json").read_bytes())
    (tmp_path / "j0" / "summary.json").unlink()
    (tmp_path / "j0").rename(runs / "j0")  # it goes on
    time.sleep(0.5)
    assert watching.process.poll() is None
    (tmp_path / "summary.json").rename(runs / "j0" / "summary.json")
    out, err = watching.process.communicate(timeout=60)
    assert (watching.process.returncode, err) == (0, "")
    assert "1 of 2 runs have ended" in out
    assert "j0 (step 100, 100 FLOPs)" in out
    assert "2 of 2 runs have ended\n" in out
    assert watching.page_has("jest")
    assert not watching.page_has("http-equiv")
    assert {row["arm"] for row in compare_runs(runs).rows("arms")} == {"uniform", "jest"}


def test_ctrl_c_ends_a_watch_cleanly(tmp_path: Path) -> None:
    runs = two_arms(tmp_path / "runs", seeds=(0,))
    (runs / "j0" / "summary.json").unlink()
    watching = Watching(runs, tmp_path / "out")
    watching.until(lambda: watching.page_has(RELOADS))
    watching.process.send_signal(signal.SIGINT)
    _, err = watching.process.communicate(timeout=60)
    assert watching.process.returncode == 130
    assert err == "interrupted; the report is that of the runs that had ended\n"
    assert watching.page_has("uniform")
    assert not watching.page_has("http-equiv")


def test_a_killed_run_of_a_sweep_that_is_over_is_not_waited_for(tmp_path: Path) -> None:
    runs = two_arms(tmp_path / "runs", seeds=(0,))
    write_run(runs / "killed", BETTER, arm="jest", seed=1)
    (runs / "killed" / "summary.json").unlink()
    SweepRecord(METRIC, arms=("u0", "j0", "killed", "removed"), over=True).write(runs)
    assert main([str(runs), "--watch", "--out", str(tmp_path / "out")]) == 0


def test_a_watch_of_no_folder_ends_at_once(tmp_path: Path) -> None:
    assert main([str(tmp_path / "gone"), "--watch", "--out", str(tmp_path / "out")]) == 2


# In a notebook


def test_tables_are_tidy(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    found = compare_runs([str(two_arms(tmp_path / "runs"))])
    arms = found.arms
    assert isinstance(arms, pandas.DataFrame)
    jest = arms.set_index("arm").loc["jest"]
    document = compare_runs(tmp_path / "runs", out=tmp_path / "out") and json.loads(
        (tmp_path / "out" / "comparison.json").read_text()
    )
    of_jest = next(arm for arm in document["arms"] if arm["arm"] == "jest")
    assert jest["difference"] == of_jest["difference"] == pytest.approx(0.205)
    assert jest["verdict"] == of_jest["verdict"]
    assert jest["speedup_flops"] == of_jest["speedup"]["flops"]["value"] == pytest.approx(1.52, rel=0.01)
    assert jest["speedup_flops_kind"] == "touch"
    assert list(arms["flops_by_purpose_learner_score"]) == [25, 25]
    curves = found.curves
    assert len(curves) == 2 * 2 * 3
    one = curves[(curves.arm == "jest") & (curves.seed == 1)]
    assert list(one.flops) == [0, 50, 100]
    assert list(one.value) == pytest.approx([0.01, 0.31, 0.61])
    assert sorted(found.runs.value) == pytest.approx([0.4, 0.4, 0.6, 0.61])
    assert list(found.frontier.budget) == [100, 100]
    assert "100" in str(found), "the terminal's table"


def test_without_pandas_tables_are_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    found = compare_runs(two_arms(tmp_path / "runs"))
    for name in ("arms", "runs", "frontier", "curves", "crossings", "references"):
        assert getattr(found, name) == found.rows(name)
        assert isinstance(getattr(found, name), list)
    assert {row["arm"] for row in found.arms} == {"uniform", "jest"}
    with pytest.raises(KeyError, match="there are arms, runs"):
        found.rows("arm")  # type: ignore[arg-type]


def test_crossings_and_references_are_rows(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"u{seed}", [(0, 0.0), (100, 0.4)], rungs=[(50, 0.2)], seed=seed)
        write_run(tmp_path / f"j{seed}", [(0, 0.0), (100, 0.6)], rungs=[(50, 0.1)], arm="jest", seed=seed)
    (crossing,) = compare_runs(tmp_path).rows("crossings")
    assert (crossing["arm"], crossing["other"], crossing["before"], crossing["after"]) == (
        "jest",
        "uniform",
        "worse",
        "better",
    )
    assert 50 < crossing["budget"] < 100


def test_a_notebook_shows_the_arms_and_runs_nothing_from_a_run(tmp_path: Path) -> None:
    write_run(tmp_path / "u", UNIFORM)
    write_run(tmp_path / "x", BETTER, arm="<script>alert(1)</script>")
    shown = compare_runs(tmp_path)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert shown.count("<tr>") == 3


# Several worlds


def test_many_worlds_are_many_tables_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    two_arms(runs / "clean", data={"noise": 0.2}, config_hash="a")
    two_arms(runs / "noisy", data={"noise": 0.6}, config_hash="b")
    write_run(runs / "alone", BETTER, arm="jest", data={"noise": 0.9}, config_hash="c")
    assert main([str(runs), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    text, page = ((tmp_path / "out" / name).read_text() for name in ("comparison.md", "index.html"))
    for noise in ("0.2", "0.6", "0.9"):
        assert f"world: noise {noise}\n" in said
        assert f"## noise {noise}\n" in text
        assert noise in page
    document = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert len(document["other_worlds"]) == 2
    found = compare_runs(runs)
    worlds = {row["world"] for row in found.rows("arms")}
    assert len(worlds) == 3
    assert found._repr_html_().count("<table>") == 3
    alone = next(row for row in found.rows("arms") if "0.9" in row["world"])
    assert alone["difference"] is None, "no baseline there"


@pytest.mark.parametrize("text", ["abc", "0", "-1", "nan", "inf"])
def test_an_interval_that_is_no_time_is_refused_in_words(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--watch", f"--interval={text}"]) == 2
    assert f"--interval: must be a positive number of seconds, got {text}" in capsys.readouterr().err
