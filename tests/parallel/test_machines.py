"""Several machines, played by groups of processes on this one: the run, Slurm's script, folders that are not shared."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import ROOT, final_model, rows_of, small_world, summary_of

from jestbench.disk import write_json
from jestbench.runs.checkpoint import Place
from jestbench.runs.folder import RunFolder
from jestbench.runs.hold_folder import HOLDER, LOCK, RunFolderError, held
from jestbench.storage import StorageError

SCRIPT = ROOT / "tools" / "sbatch_example.sh"
FAKES = {
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$NOTES"; fi',
    "srun": """while [[ $1 == --* ]]; do shift; done
trap 'kill -TERM "${nodes[@]}"' TERM
nodes=()
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node "$@" & nodes+=($!); done
status=0
for node in "${nodes[@]}"; do
    until wait $node; own=$?; ! kill -0 $node 2> /dev/null; do :; done
    [ $own -eq 0 ] || status=$own
done
exit $status""",
}
"""Slurm's commands: as many copies of a command as the job has nodes, on this machine, and signals passed on."""
SHORT_RUN = 'echo "$SLURM_NODEID: $@" >> "$NOTES"; exit $STATUS'
LONG_RUN = 'trap "exit 130" TERM; echo "$SLURM_NODEID: $@" >> "$NOTES"; for ((i = 0; i < 600; i++)); do sleep 0.1; done'


def fake(folder: Path, **commands: str) -> dict[str, str]:
    """The environment of a job on two nodes, whose commands are these."""
    for name, body in (FAKES | commands).items():
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    job = {"SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "a,b", "PROCESSES": "1"}
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    more = {"PATH": path, "NOTES": str(folder / "notes"), "PYTHONPATH": str(ROOT)}
    return os.environ | job | more


def notes(folder: Path) -> list[str]:
    path = folder / "notes"
    return path.read_text().splitlines() if path.exists() else []


def wait_until(reached: Callable[[], bool], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("status", [0, 3])
def test_a_job_starts_the_run_once_a_node_and_ends_as_it_ends(status: int, tmp_path: Path) -> None:
    environment = fake(tmp_path, torchrun=SHORT_RUN) | {"STATUS": str(status), "RUN_DIR": "runs/mine"}
    done = subprocess.run([SCRIPT, "--gin_file", "a b.gin"], cwd=ROOT, env=environment, timeout=60, check=False)
    assert done.returncode == status
    words = "--nnodes=2 --nproc_per_node=1 --rdzv_backend=c10d --rdzv_endpoint=127.0.0.1:29500 --rdzv_id=17-0"
    run = f"{words} tools/run.py --gin_file a b.gin --run_dir runs/mine --resume"
    assert sorted(notes(tmp_path)) == [f"0: {run}", f"1: {run}"]


@pytest.mark.parametrize(("number", "queued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_job_whose_time_is_over_stops_the_run_and_is_queued_again(
    number: signal.Signals, queued: bool, tmp_path: Path
) -> None:
    job = subprocess.Popen([SCRIPT], cwd=ROOT, env=fake(tmp_path, torchrun=LONG_RUN))
    wait_until(lambda: len(notes(tmp_path)) == 2)
    job.send_signal(number)
    assert job.wait(30) != 0
    assert notes(tmp_path)[2:] == ["requeue 17"] * queued


def tiny(run_dir: str | Path, steps: int = 6) -> list[str]:
    files = ["--gin_file", str(ROOT / "gin/run/tiny.gin"), *small_world(8, 8), "run.device=cpu", "wandb.mode=disabled"]
    more = ["run.budget=None", f"budget.steps={steps}", f"run.checkpoints={steps}", "evaluate.points=1", "log.every=1"]
    return [*files, *more, "log.progress=False", "--run_dir", str(run_dir)]


def torchrun(*words: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *words]


ELSEWHERE = """
import os, sys
os.chdir(f"{sys.argv[1]}/machine{os.environ['RANK']}")
from jestbench.launch.command import main
sys.exit(main(sys.argv[2:]))
"""
"""Processes whose relative run folder lies on a disk of their own."""


@pytest.mark.slow  # two interpreters that start a run, to be refused
def test_a_run_folder_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / f"machine{rank}").mkdir()
    (tmp_path / "run.py").write_text(ELSEWHERE)
    words = torchrun(str(tmp_path / "run.py"), str(tmp_path), *tiny("mine"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0
    assert "the run folder mine is not seen by 1 of 2 processes (on " in done.stderr
    assert "JESTBENCH_CACHE" in done.stderr
    assert not any(path.is_file() for path in tmp_path.rglob("machine?/mine/*"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_refused_by_name(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match=r"keeps no file locks.*mount it with locks .*or choose another --run_dir"):
        held(tmp_path / "run").__enter__()


def test_a_folder_whose_lock_has_outlived_its_machine_says_what_to_remove(tmp_path: Path) -> None:
    with FileLock(tmp_path / LOCK):
        write_json(tmp_path / HOLDER, {"process": 1, "machine": "node7", "since": "yesterday"})
        with pytest.raises(RunFolderError, match=r"in use by process 1 on node7, .* remove .*\.lock\)"):
            held(tmp_path).__enter__()


def finish(words: Sequence[str | Path], environment: dict[str, str]) -> None:
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def logical(run_dir: Path) -> list[dict[str, object]]:
    physical = ("time/", "exchange/", "cache/hits")
    return [{name: value for name, value in row.items() if not name.startswith(physical)} for row in rows_of(run_dir)]


@pytest.mark.slow
def test_two_node_groups_stopped_by_slurm_and_queued_again_make_the_run_of_one_group(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    environment = fake(tmp_path) | {"RUN_DIR": str(cut), "PORT": "29587"}
    finish(torchrun(str(ROOT / "tools" / "run.py"), *tiny(whole, 40)), environment)

    words = [str(SCRIPT), *tiny(cut, 40)[:-2]]
    job = subprocess.Popen(words, cwd=ROOT, env=environment)
    try:
        wait_until(lambda: (found := RunFolder(cut).newest_checkpoint()) is not None and Place.of(found).step >= 3)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(100) != 0
    finally:
        job.terminate()
    assert notes(tmp_path) == ["requeue 17"]
    assert summary_of(cut)["status"] == "interrupted"
    assert summary_of(cut)["steps"] < 40

    finish(words, environment | {"SLURM_RESTART_COUNT": "1"})
    assert logical(cut) == logical(whole)
    assert final_model(cut) == final_model(whole)
