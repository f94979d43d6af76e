"""Real torchrun: restarts that resume by themselves, ranks that end with it, and what it prints of a failure."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fault_rows import fault
from forked import free_port
from helpers import ROOT, outcome, own_surroundings, rows_of, small_world, summary_of

from jestbench.runs.checkpoint import Place
from jestbench.runs.folder import RunFolder

UNIFORM = [
    *("--gin_file", str(ROOT / "gin/run/tiny.gin"), *small_world(8, 8), "run.budget=None", "budget.steps=12"),
    *("run.checkpoints=12", "evaluate.points=2", "wandb.mode=disabled"),
]
SCRIPT = """
import os, signal, sys
from jestbench.batch import DataError
from jestbench.data.super_batches import SuperBatches
from jestbench.launch.command import main
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
steps, kind = [int(step) for step in sys.argv[1].split(",")], sys.argv[2]
at = SuperBatches.at
def failing(self, asked):
    if attempt < len(steps) and asked == steps[attempt] and rank == attempt % 2:
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise DataError("the shard x.tar is gone: bring it back")
    return at(self, asked)
SuperBatches.at = failing
sys.exit(main(sys.argv[3:]))
"""
"""A run whose ranks fail in turns, one an attempt, at these steps."""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # torchrun leaves its logs in the folder for temporary files.
    with own_surroundings(tmp_path_factory, TMPDIR=str(tmp_path_factory.mktemp("torchrun"))):
        yield


def torchrun(folder: Path, steps: Sequence[int], kind: str, *more: str, restarts: int = 0) -> list[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    head = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    return [*head, f"--max-restarts={restarts}", str(script), ",".join(map(str, steps)), kind, *UNIFORM, *more]


def started(words: Sequence[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], seconds: float = 240) -> str:
    """What a process has printed, once it has ended; one that takes too long is killed and fails the test."""
    try:
        return process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def go_through_restarts(folder: Path, steps: Sequence[int]) -> None:
    whole, cut = folder / "whole", folder / "cut"
    assert "error" not in ended(started(torchrun(folder, [99], "kill", "--run_dir", str(whole))))
    said = ended(started(torchrun(folder, steps, "kill", "--run_dir", str(cut), restarts=len(steps))))
    assert summary_of(cut)["status"] == "finished", said
    assert said.count("ends because another process has ended") <= len(steps)
    assert outcome(cut) == outcome(whole)


@fault(
    "processes", "torchrun starts the processes again (`--max-restarts`)", "the run goes on by itself, exactly", "time"
)
def test_a_restart_resumes_by_itself(tmp_path: Path) -> None:
    go_through_restarts(tmp_path, [5])


def test_five_restarts_resume_by_themselves(tmp_path: Path) -> None:
    go_through_restarts(tmp_path, [2, 4, 5, 7, 9])


@fault(
    "processes",
    "a start is refused (the folder holds a run), and torchrun repeats it",
    "it is refused again",
    "nothing",
)
def test_a_restart_of_a_refused_start_is_refused(tmp_path: Path) -> None:
    words = torchrun(tmp_path, [99], "kill", "--run_dir", str(tmp_path / "run"), restarts=1)
    ended(started(words))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    said = ended(started(words))
    assert said.count("already holds a run") == 3, "twice, and in torchrun's report"
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@fault(
    "processes",
    "a process under torchrun fails",
    "torchrun's report, which comes last, ends with the reason",
    "nothing",
)
def test_the_report_of_torchrun_ends_with_the_reason(tmp_path: Path) -> None:
    said = ended(started(torchrun(tmp_path, [3], "fail", "--run_dir", str(tmp_path / "run"))))
    lines = said.splitlines()
    reason = "error: the shard x.tar is gone: bring it back"
    assert lines[-1].startswith("=====")
    assert re.fullmatch(rf" +traceback : {reason}", lines[-2])
    ours = [line for line in lines if line.startswith(("error", "process", "[rank"))]
    assert ours[0] == reason
    assert ours[1:] in ([], ["process 1 ends because another process has ended"])


@fault("processes", "torchrun itself is killed", "its processes and their workers end within seconds", "time")
def test_processes_end_with_their_torchrun(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = torchrun(tmp_path, [99], "kill", "budget.steps=100000", "loader.workers=2", "--run_dir", str(run_dir))
    agent = started(words)
    try:
        end = time.monotonic() + 120
        while RunFolder(run_dir).newest_checkpoint() is None:
            assert agent.poll() is None, ended(agent)
            assert time.monotonic() < end
            time.sleep(0.05)
        assert len(running(run_dir)) >= 3
    finally:
        agent.kill()
    said = ended(agent, 20)
    end = time.monotonic() + 10
    while running(run_dir):
        assert time.monotonic() < end, "orphans"
        time.sleep(0.05)
    assert "ends because torchrun has ended" in said


@fault(
    "processes",
    "a machine leaves a run of several (torchrun with `--nnodes 1:2`)",
    "the others go on by themselves",
    "time",
)
@pytest.mark.parametrize("leaving", ["agent", "rank"])
def test_a_run_goes_on_without_a_node(tmp_path: Path, leaving: str) -> None:
    """Two agents on one machine: the second one is killed with its process, or its process alone."""
    run_dir, port = tmp_path / "run", free_port()
    head = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc_per_node=1", "--max-restarts=3"]
    head += ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_conf=last_call_timeout=3"]
    words = [*UNIFORM, "budget.steps=120", "run.checkpoints=60", "--run_dir", str(run_dir)]
    agents, end = [started([*head, str(ROOT / "tools" / "run.py"), *words])], time.monotonic() + 150
    while socket.socket().connect_ex(("127.0.0.1", port)):  # the one that has the endpoint has to stay
        assert time.monotonic() < end
        time.sleep(0.1)
    agents.append(started([*head, str(ROOT / "tools" / "run.py"), *words]))
    while (newest := RunFolder(run_dir).newest_checkpoint()) is None or Place.of(newest).step < 4:
        assert time.monotonic() < end, [agent.poll() for agent in agents]
        time.sleep(0.05)
    children = children_of(agents[1].pid)
    for process in [agents[1].pid, *children] if leaving == "agent" else children:
        os.kill(process, signal.SIGKILL)
    said = [ended(agent) for agent in agents]
    assert summary_of(run_dir)["status"] == "finished", said
    assert [row["step"] for row in rows_of(run_dir)] == list(range(121))


def children_of(parent: int) -> list[int]:
    """Processes that a process has started."""
    found = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in found.read_text().split()] if found.exists() else []


def running(run_dir: Path) -> list[int]:
    """Processes whose command names a run folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(run_dir).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # gone already
            continue
    return found


def test_a_stop_reaches_all_processes(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    agent = started(torchrun(tmp_path, [99], "kill", "budget.steps=100000", "--run_dir", str(run_dir)))
    end = time.monotonic() + 120
    while RunFolder(run_dir).newest_checkpoint() is None and time.monotonic() < end:
        time.sleep(0.05)
    agent.send_signal(signal.SIGTERM)
    said = ended(agent, 30)
    assert summary_of(run_dir)["status"] == "interrupted"
    assert "ends because" not in said
    newest = RunFolder(run_dir).newest_checkpoint()
    assert newest is not None
    assert newest.name.endswith(str(summary_of(run_dir)["steps"]))
