"""How far a sweep is: two kinds of bars on a terminal, lines in a log, and the time that is left."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from helpers import ROOT

from jestbench.compare.choose_metric import SweepRecord
from jestbench.sweep import progress
from jestbench.sweep.sweep_arms import SweepArm

METRIC = "eval/zero_shot_top5"


@pytest.fixture
def sweep(tmp_path: Path) -> list[str]:
    """The command of a sweep of two short arms, which differ in their budgets."""
    content = {
        "program": str(ROOT / "tools" / "run.py"),
        "method": "grid",
        "name": "night",
        "metric": {"name": METRIC, "goal": "maximize"},
        "command": ["${env}", "${interpreter}", "${program}", "--gin_file", "gin/run/tiny.gin", "${args_no_hyphens}"],
        "parameters": {
            "run.budget": {"values": [1e9, 2e9]},
            "run.seed": {"value": 3},
            "run.device": {"value": "cpu"},
            "wandb.mode": {"value": "disabled"},
        },
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    return [
        sys.executable,
        str(ROOT / "tools" / "sweep.py"),
        str(tmp_path / "sweep.yaml"),
        "--out",
        str(tmp_path / "out"),
    ]


def test_a_log_has_lines_and_no_bars(sweep: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*sweep, "--jobs", "2"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not set("\r\x1b") & set(done.stderr + done.stdout)
    ends = re.findall(
        rf"^uniform run\.budget=\d+\S* seed \d: {METRIC} ([\d.]+), 0:\d\d; (.*)$", done.stderr, re.MULTILINE
    )
    assert [line.split(",")[0] for _, line in ends] == ["sweep night 1/2", "sweep night 2/2"]
    assert "running: uniform run.budget=" in ends[0][1]
    assert re.search(r"; about 0:\d\d left$", ends[0][1])
    assert "left" not in ends[1][1]
    values = {f"{json.loads(path.read_text())['metrics'][METRIC]:.4g}" for path in tmp_path.glob("out/*/summary.json")}
    assert {value for value, _ in ends} == values
    assert re.search(r"^uniform seed 3 100%, 00:\d\d, 00:00 left, pairs/s=", done.stderr, re.MULTILINE)
    record = SweepRecord.read(tmp_path / "out")
    assert record is not None
    assert (record.metric, record.goal, record.over) == (METRIC, "maximize", True)
    assert sorted(record.arms) == sorted(path.parent.name for path in tmp_path.glob("out/*/summary.json"))
    # The comparison of the runs needs no --metric: their sweep names one of those that they share.
    again = [sys.executable, str(ROOT / "tools" / "compare.py"), "out", "--out", "again"]
    compared = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.startswith(f"{METRIC}: ")


@pytest.mark.slow  # a log, which has the same lines, is tested above
def test_a_terminal_has_a_bar_of_each_kind(sweep: list[str], tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    process = subprocess.Popen([*sweep, "--jobs", "1", "--count", "1"], cwd=tmp_path, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 2**16):
            said += piece
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0
    text = said.decode(errors="replace")
    assert re.search(r"uniform seed 3 +\d+%\|█", text), "an arm's bar is of blocks"
    assert re.search(r"sweep night 0/1 \[ +\], running: uniform seed 3 \(\d+%\)", text)
    assert "sweep night 1/1 [====================]" in text
    assert f"about {METRIC}" in text


# The time that is left


def arm(name: str, budget: float | None) -> SweepArm:
    run = SimpleNamespace(arm=name, seed=0, budget=budget)
    resolved: Any = SimpleNamespace(run=run, policy_name=name, added_flops=0, config_hash=name)
    return SweepArm({"run.arm": name}, resolved)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(progress, "time", found := Clock())
    return found


def spends(folder: Path, flops: float) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "flops/total": flops}) + "\n")
    return folder


def test_the_time_left_is_that_of_the_flops_left(tmp_path: Path, clock: Clock) -> None:
    arms = [arm("a", 100.0), arm("b", 300.0), arm("c", 200.0), arm("d", 50.0), arm("e", 140.0)]
    found = progress.SweepProgress("s", METRIC, 5, 2, arms)
    assert found.seconds_left() is None
    found.passed(arms[3])  # an arm of an earlier sweep is no measure of this sweep's speed
    folders = [tmp_path / one.resolved.run.arm for one in arms]
    found.begins(arms[0], folders[0])
    found.begins(arms[1], folders[1])
    clock.now += 5
    spends(folders[0], 5), spends(folders[1], 5)
    assert found.seconds_left() is None, "they have hardly begun"
    clock.now += 5
    spends(folders[0], 100), spends(folders[1], 60)
    found.ends(arms[0], 0, 0.5)  # 100 FLOPs in 10 seconds
    assert found.seconds_left() == pytest.approx((240 + 200 + 140) / 2 / 10), "b, c and e in two places"
    found.begins(arms[2], spends(folders[2], 150))  # resumed
    assert found.seconds_left() == pytest.approx(240 / 10), "b alone takes longest"
    clock.now += 20
    spends(folders[1], 290), spends(folders[2], 190)
    found.ends(arms[1], 4, None)
    assert found.line() == "sweep s 3/5, running: c seed 0 (95%); about 0:14 left"
    found.ends(arms[2], 0, 0.1)  # 40 FLOPs more in 20 seconds
    assert found.seconds_left() == pytest.approx(140 * (10 + 20) / (100 + 40))
    found.begins(arms[4], folders[4])
    found.ends(arms[4], 0, 0.1)
    assert found.seconds_left() is None
    assert found.line() == "sweep s 5/5"


def test_arms_that_count_steps_count_alike(tmp_path: Path, clock: Clock) -> None:
    arms = [arm(name, None) for name in "abcd"]
    found = progress.SweepProgress("s", METRIC, 4, 1, arms)
    found.begins(arms[0], tmp_path / "a")
    clock.now += 30
    found.ends(arms[0], 0, 0.5)
    found.begins(arms[1], tmp_path / "b")
    assert found.seconds_left() == pytest.approx(2.5 * 30)


def test_a_log_of_a_long_arm_goes_on(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    found = progress.SweepProgress("s", METRIC, 1, 1, [one := arm("a", 100.0)])
    found.begins(one, spends(tmp_path / "a", 0))
    for _ in range(100):
        clock.now += 1
        found.tick()
    spends(tmp_path / "a", 50)
    for _ in range(100):
        clock.now += 1
        found.tick()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3, "a line a minute"
    assert lines[0] == "sweep s 0/1, running: a seed 0 (0%)"
    assert lines[1] == "sweep s 0/1, running: a seed 0 (50%); about 2:00 left"


def test_durations_are_written_for_people() -> None:
    assert [progress.clock(seconds) for seconds in (0.4, 59.6, 725, 11221)] == ["0:00", "1:00", "12:05", "3:07:01"]
