"""One run by several processes: the choices, charges and gradients of one process; stopped, killed, gone on with."""

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

import pytest
import together
import torch
from helpers import rows_of
from photos import write_numbered_shards
from safetensors.torch import load_file

from jestbench.launch import command
from jestbench.runs.checkpoint import Place
from jestbench.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
PHYSICAL = ("time/", "cache/hits", "data/decoded")
"""What depends on who computes, and on what lies in caches."""


def torchrun(processes: int, *words: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", *words]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def logical_rows(run_dir: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith(PHYSICAL)} for row in rows_of(run_dir)]


STREAM = """include "{root}/gin/run/tiny.gin"
run.data = @stream()
stream.shards = "pipe:cat {shards}/{{000..008}}.tar"
stream.beside = @synthetic()
stream.image_size = 16
stream.lanes = 6
"""


def run_by_two(folder: Path) -> None:
    """All arms, by two processes that first check what they exchange."""
    write_numbered_shards(folder, [5, 9, 1, 7, 12, 3, 8, 6, 10])
    (folder / "stream.gin").write_text(STREAM.format(root=ROOT, shards=folder))
    words = torchrun(2, str(ROOT / "tests" / "together.py"), str(folder), *together.ARMS)
    more = {"STREAM": str(folder / "stream.gin"), "JESTBENCH_CACHE": str(folder / "cache")}
    done = subprocess.run(words, cwd=ROOT, env=environment() | more, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.startswith(("[rank", "error"))]
    assert done.returncode == 0, "\n".join(said)
    # What cannot be is said once, and leaves nothing behind.
    assert len(said) == 1
    assert "run.batch_size = 1 pairs cannot be shared by 2 processes" in said[0]
    assert not (folder / "refused").exists()


def assert_same_run(arm: str, alone_dir: Path, shared_dir: Path) -> None:
    one, two = logical_rows(alone_dir), logical_rows(shared_dir)
    assert len(one) == len(two) > 3, arm
    for alone, shared in zip(one, two, strict=True):
        assert alone.keys() == shared.keys(), arm
        for name, value in alone.items():
            exact = name.startswith(("flops/", "pairs/", "step", "data/", "select/share"))
            wanted = value if exact else pytest.approx(value, rel=2e-3, abs=1e-4)
            assert shared[name] == wanted, (arm, name, alone["step"])
    summaries = [json.loads((run_dir / "summary.json").read_text()) for run_dir in (alone_dir, shared_dir)]
    assert summaries[0]["config_hash"] == summaries[1]["config_hash"], arm
    assert summaries[0]["flops"] == summaries[1]["flops"], arm
    assert json.loads((shared_dir / "environment.json").read_text())["processes"] == 2
    assert (shared_dir / "cache").exists() == (arm == "ladder"), arm


def test_two_processes_make_the_run_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one test: the processes start once, for all arms."""
    monkeypatch.chdir(ROOT)
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    shared.mkdir()
    run_by_two(shared)
    monkeypatch.setenv("STREAM", str(shared / "stream.gin"))
    for arm in together.ARMS:
        assert command.main(together.command(arm, alone / arm)) == 0, arm
        assert_same_run(arm, alone / arm, shared / arm)
    steps = [row["step"] for row in logical_rows(shared / "jest")]
    assert steps == sorted(set(steps)), "only the first process writes"
    assert (shared / "jest" / "examples" / "index.html").is_file()
    for arm in ("ladder", "stream"):
        assert {row.get("ladder/rung") for row in logical_rows(shared / arm)} == {None, 2_000_000_000}


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


@pytest.mark.slow  # a plain run of two processes is killed above, a ladder of one process in tests/runs/test_ladder.py
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
