"""One run by several processes: the choices, charges and gradients of one process; stopped, killed, gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import together
import torch
from filelock import FileLock
from safetensors.torch import load_file
from test_loader import write_shards

from jestbench import checkpoint, config

ROOT = Path(__file__).resolve().parent.parent
PHYSICAL = ("time/", "cache/hits", "data/decoded")
"""What depends on who computes, and on what lies in caches."""


def torchrun(processes: int, *words: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", *words]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(PHYSICAL)} for row in rows]


STREAM = """include "{root}/gin/run/tiny.gin"
run.data = @stream()
stream.shards = "pipe:cat {shards}/{{000..008}}.tar"
stream.beside = @synthetic()
stream.image_size = 16
stream.lanes = 6
"""


@pytest.fixture(scope="session")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All arms, by two processes that have checked what they exchange; once for all of xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "by_two"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            write_shards(folder, [5, 9, 1, 7, 12, 3, 8, 6, 10])
            (folder / "stream.gin").write_text(STREAM.format(root=ROOT, shards=folder))
            script = str(ROOT / "tests" / "together.py")
            words = torchrun(2, script, str(folder), *together.ARMS)
            more = {"STREAM": str(folder / "stream.gin"), "JESTBENCH_CACHE": str(folder / "cache")}
            done = subprocess.run(
                words, cwd=ROOT, env=environment() | more, capture_output=True, text=True, check=False
            )
            said = [line for line in done.stderr.splitlines() if line.startswith(("[rank", "error"))]
            (folder / "said").write_text("\n".join(said) if done.returncode else "")
    assert not (folder / "said").read_text(), (folder / "said").read_text()
    return folder


@pytest.mark.parametrize("arm", together.ARMS)
def test_two_processes_make_the_run_of_one(
    arm: str, by_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("STREAM", str(by_two / "stream.gin"))
    assert config.main(together.command(arm, tmp_path / arm)) == 0
    one, two = rows_of(tmp_path / arm), rows_of(by_two / arm)
    assert len(one) == len(two) > 3
    for alone, shared in zip(one, two, strict=True):
        assert alone.keys() == shared.keys()
        for name, value in alone.items():
            exact = name.startswith(("flops/", "pairs/", "step", "data/", "select/share"))
            assert shared[name] == (value if exact else pytest.approx(value, rel=2e-3, abs=1e-4)), (name, alone["step"])
    summaries = [json.loads((folder / arm / "summary.json").read_text()) for folder in (tmp_path, by_two)]
    assert summaries[0]["config_hash"] == summaries[1]["config_hash"]
    assert summaries[0]["flops"] == summaries[1]["flops"]
    assert json.loads((by_two / arm / "environment.json").read_text())["processes"] == 2
    assert not (by_two / arm / "cache").exists()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("arm", ["jest", "odd"])
def test_two_gpus_make_the_run_of_one(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    more = ["run.device=auto", "run.precision=fp32", "--run_dir"]
    assert config.main([*together.command(arm, tmp_path), *more, str(tmp_path / "one")]) == 0
    words = [str(ROOT / "tools" / "run.py"), *together.command(arm, tmp_path), *more, str(tmp_path / "two")]
    done = subprocess.run(torchrun(2, *words), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert [row["flops/total"] for row in one] == [row["flops/total"] for row in two]
    losses = [[row["train/loss"] for row in rows[1:]] for rows in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_only_the_first_process_writes(by_two: Path) -> None:
    steps = [row["step"] for row in rows_of(by_two / "jest")]
    assert steps == sorted(set(steps))
    assert (by_two / "jest" / "examples" / "index.html").is_file()


LONG = ["run.budget=2.5e10", "run.checkpoints=40", "evaluate.points=2"]


def start(run_dir: Path, *more: str, processes: int = 2) -> subprocess.Popen[str]:
    words = [str(ROOT / "tools" / "run.py"), *together.command("jest", run_dir), *LONG, *more]
    return subprocess.Popen(
        torchrun(processes, *words),
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


def wait_for_step(run_dir: Path, step: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        newest = checkpoint.newest(run_dir)
        if newest is not None and int(newest.name.removeprefix("step-")) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint of step {step} came")


def test_killed_stopped_and_gone_on_with_is_the_run_uninterrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    straight, killed = start(whole), start(cut)
    wait_for_step(cut, 5)
    kill_all(cut)
    killed.communicate()
    assert straight.wait(300) == 0, straight.communicate()[1]

    stopped = start(cut, "--resume")
    wait_for_step(cut, 12)
    stopped.send_signal(signal.SIGINT)
    stopped.communicate(timeout=120)
    assert json.loads((cut / "summary.json").read_text())["status"] == "interrupted"

    assert config.main([*together.command("jest", cut), *LONG, "--resume"]) == 3
    assert "was written by 2 processes, and this run has 1" in capsys.readouterr().err

    last = start(cut, "--resume")
    assert last.wait(300) == 0, last.communicate()[1]
    assert rows_of(cut) == rows_of(whole)
    weights = [load_file(checkpoint.newest(folder) / "model.safetensors") for folder in (whole, cut)]
    assert all(bool((weights[0][name] == value).all()) for name, value in weights[1].items())


def test_what_cannot_be_is_said_once(tmp_path: Path) -> None:
    process = start(tmp_path / "run", "run.batch_size=2", "run.super_batch_size=8", processes=3)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    messages = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1
    assert "run.batch_size = 2 pairs cannot be shared by 3 processes" in messages[0]
    assert str(ROOT / "jestbench") not in errors  # the traceback is torchrun's own
    assert not (tmp_path / "run").exists()
