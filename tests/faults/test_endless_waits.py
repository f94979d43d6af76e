"""Waits that could last for ever have a limit, and a message that names what is waited for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_rows import fault
from helpers import ROOT, summary_of
from photos import write_numbered_shards

from jestbench.data.workers import Workers
from jestbench.launch.command import main

SIZES = [80, 50, 40, 60, 9, 30, 20, 12, 40]
"""Pairs of nine shards, of 40 to 380 KB each: more than a pipe holds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("shards")
    write_numbered_shards(found, SIZES)
    return found


def stream(shards: str, run_dir: Path, *more: str) -> list[str]:
    words = ["run.data=@stream()", f"stream.shards={shards!r}", "stream.beside=@synthetic()", "stream.image_size=16"]
    words += ["stream.lanes=4", "stream.buffer=16", "run.batch_size=10", "run.budget=None", "budget.steps=12"]
    words += ["log.progress=False", "evaluate.points=1", "run.device=cpu", "wandb.mode=disabled"]
    return ["--gin_file", str(ROOT / "gin/run/tiny.gin"), *words, *more, "--run_dir", str(run_dir)]


def python(*words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """A command of its own; one that is not done in time is killed, and fails the test."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


LATE = """
import gc, sys
gc.set_threshold(10**9)  # what is garbage before workers are forked is found by the collection after
from jestbench.data.workers import Workers
from jestbench.launch.command import main
start = Workers._start_all
def started(self):
    start(self)
    gc.collect()
Workers._start_all = started
sys.exit(main(sys.argv[1:]))
"""


@fault("waits", "shards over `pipe:` are half read when workers are forked", "readers are closed before; the run ends")
def test_workers_do_not_hold_the_pipes_of_others_open(folder: Path, tmp_path: Path) -> None:
    sizes = sorted(file.stat().st_size for file in folder.iterdir())
    assert len(sizes) == 9
    assert 40_000 < sizes[0] < 2**16 < sizes[4] < sizes[-1] < 400_000, "more and less than a pipe holds"
    shards = f"pipe:cat {folder}/{{000..008}}.tar"
    done = python("-c", LATE, *stream(shards, tmp_path / "run", "loader.workers=2"))
    assert done.returncode == 0, done.stderr
    assert summary_of(tmp_path / "run")["steps"] == 12


@fault(
    "waits",
    "the command of a `pipe:` shard, or its server, falls silent",
    "status 3 after `stream.patience`, and which shard",
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_command_that_is_silent_is_given_up(
    folder: Path, tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """All shards but those that are peeked at begin, and then send nothing."""
    mark = f"sleep 3{os.getpid()}"
    shards = f"pipe:head -c 70000 {folder}/{{000..008}}.tar; {mark}"
    more = ["stream.patience=0.5", f"loader.workers={workers}"]
    begin = time.monotonic()
    assert main(stream(shards, tmp_path / "run", *more)) == 3
    said = capfd.readouterr().err
    assert time.monotonic() - begin < 20
    assert "gave no byte for 0.5 s" in said
    assert f"{folder}/00" in said
    assert "stream.patience" in said
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [words for words in running if mark.replace(" ", "\0").encode() in words]


def descriptors(task: int) -> list[str]:
    """In a worker: what its descriptors lead to."""
    return [target(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]


def target(descriptor: Path) -> str:
    return str(descriptor.readlink())


def test_a_worker_keeps_no_descriptor_of_its_parent(tmp_path: Path) -> None:
    """No pipe, no socket but its own, no file that is being written; what is read stays open."""
    (tmp_path / "read").touch()
    reading, writing = os.pipe()
    left, right = socket.socketpair()
    with (tmp_path / "read").open() as read, (tmp_path / "written").open("w") as written:
        ours = {target(Path(f"/proc/self/fd/{number}")) for number in (reading, writing, left.fileno(), right.fileno())}
        workers = Workers(descriptors, 2)
        try:
            found = [workers.wait(workers.submit(0, to=number)) for number in (0, 1)]
            os.kill(workers.pids[0], signal.SIGKILL)
            found.append(workers.wait(workers.submit(0, to=0)))
        finally:
            workers.close()
        for seen in found:
            assert not ours & set(seen)
            assert written.name not in seen
            assert read.name in seen
            assert sum(name.startswith("socket:") for name in seen) <= 1
    for number in (reading, writing):
        os.close(number)
    left.close()
    right.close()
