"""One run by several processes: what they exchange; killed, stopped and gone on with. Whole runs: test_matrix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import together
import torch
from helpers import rows_of
from safetensors.torch import load_file

from jestbench.launch import command
from jestbench.runs.checkpoint import Place
from jestbench.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
PHYSICAL = ("time/", "cache/hits", "data/decoded", "exchange/")
"""What depends on who computes, and on what lies in caches."""


def torchrun(processes: int, *words: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", *words]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def logical_rows(run_dir: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith(PHYSICAL)} for row in rows_of(run_dir)]


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_exchange_batches_choices_and_gradients(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    group = forked.ranks(size, lambda rank: together.check_all(tmp_path), tmp_path / "logs")
    try:
        assert [process.wait(120) for process in group] == [0] * size, "\n".join(process.said for process in group)
    finally:
        for process in group:
            process.kill()
    # What cannot be is said once, and leaves nothing behind.
    said = [line for process in group for line in process.said.splitlines() if line.startswith("error")]
    assert len(said) == 1
    assert f"run.batch_size = 1 pairs cannot be shared by {size} processes" in said[0]
    assert not (tmp_path / "refused").exists()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("arm", ["jest", "odd"])
def test_two_gpus_make_the_run_of_one(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    more = ["run.device=auto", "run.precision=fp32", "--run_dir"]
    assert command.main([*together.command(arm, tmp_path), *more, str(tmp_path / "one")]) == 0
    words = [str(ROOT / "tools" / "run.py"), *together.command(arm, tmp_path), *more, str(tmp_path / "two")]
    done = subprocess.run(torchrun(2, *words), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = logical_rows(tmp_path / "one"), logical_rows(tmp_path / "two")
    assert [row["flops/total"] for row in one] == [row["flops/total"] for row in two]
    losses = [[row["train/loss"] for row in rows[1:]] for rows in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


LONG = ["run.budget=2.5e10", "run.checkpoints=40", "evaluate.points=2"]


def start(run_dir: Path, *more: str, arm: str = "jest") -> subprocess.Popen[str]:
    words = [str(ROOT / "tools" / "run.py"), *together.command(arm, run_dir), *LONG, *more]
    return subprocess.Popen(
        torchrun(2, *words),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_all(run_dir: Path) -> None:
    """torchrun and its processes, at once and without a word."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(run_dir).encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):  # gone already
            continue


def wait_for(run_dir: Path, reached: Callable[[Place], bool]) -> Place:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        newest = RunFolder(run_dir).newest_checkpoint()
        if newest is not None and reached(Place.of(newest)):
            return Place.of(newest)
        time.sleep(0.02)
    raise AssertionError("the checkpoint never came")


@pytest.mark.slow  # a run of two is killed in tests/faults/test_kills.py, and gone on with in test_elastic.py
def test_killed_stopped_and_gone_on_with_is_the_run_uninterrupted(
    tmp_path: Path,
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    straight, killed = start(whole), start(cut)
    wait_for(cut, lambda place: place.step >= 5)
    kill_all(cut)
    killed.communicate()
    assert straight.wait(300) == 0, straight.communicate()[1]

    stopped = start(cut, "--resume")
    wait_for(cut, lambda place: place.step >= 12)
    stopped.send_signal(signal.SIGINT)
    stopped.communicate(timeout=120)
    assert json.loads((cut / "summary.json").read_text())["status"] == "interrupted"

    last = start(cut, "--resume")
    assert last.wait(300) == 0, last.communicate()[1]
    assert logical_rows(cut) == logical_rows(whole)
    weights = [load_file(RunFolder(folder).newest_checkpoint() / "model.safetensors") for folder in (whole, cut)]
    assert all(bool((weights[0][name] == value).all()) for name, value in weights[1].items())


@pytest.mark.slow  # so is a plain run, and a ladder of one process in tests/runs/test_ladder.py
def test_a_ladder_killed_in_a_branch_and_on_the_trunk_is_the_ladder_uninterrupted(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["optimizer.rungs=(6e9, 1.5e10)", "run.budget=1.5e10"]
    straight, killed = start(whole, *more, arm="ladder"), start(cut, *more, arm="ladder")
    in_branch = wait_for(cut, lambda place: place.branch is not None and place.step > place.branch)
    kill_all(cut)
    killed.communicate()
    assert in_branch.rungs == 0
    assert straight.wait(300) == 0, straight.communicate()[1]

    killed = start(cut, *more, "--resume", arm="ladder")
    wait_for(cut, lambda place: place.rungs == 1 and place.branch is None and place.step > in_branch.step)
    kill_all(cut)
    killed.communicate()
    assert not (cut / "summary.json").exists()

    last = start(cut, *more, "--resume", arm="ladder")
    assert last.wait(300) == 0, last.communicate()[1]
    assert logical_rows(cut) == logical_rows(whole)
    assert {row.get("ladder/rung") for row in logical_rows(whole)} == {None, 6_000_000_000}
    newest = [RunFolder(folder).newest_checkpoint() for folder in (whole, cut)]
    assert newest[0].name == newest[1].name
    weights = [load_file(checkpoint / "model.safetensors") for checkpoint in newest]
    assert all(bool((weights[0][name] == value).all()) for name, value in weights[1].items())
