"""Full disks, refused files and lost mounts: one message with the cause, status 3, and nothing lost."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_rows import fault
from helpers import outcome, own_surroundings, small_world, summary_of

from jestbench import storage
from jestbench.launch.command import main
from jestbench.runs import checkpoint, saved_model
from jestbench.runs.metrics_log import Jsonl

TINY = ["--gin_file", "gin/run/tiny.gin", *small_world(8, 24), "run.budget=None", "budget.steps=6", "run.checkpoints=3"]


@pytest.fixture(scope="module", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_surroundings(tmp_path_factory, WANDB_MODE="disabled"):
        yield


@pytest.fixture(scope="module")
def whole_run(_alone: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*TINY, "--run_dir", str(folder)]) == 0
    return folder


def one_message(err: str, *said: str) -> None:
    """A single error, without a traceback, that holds these words."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert all(part in lines[0] for part in said), lines[0]


OPERATIONS: list[tuple[Any, str]] = [
    (torch, "save"),
    (saved_model, "save_file"),
    (saved_model, "write_json"),
    (checkpoint, "write_json"),
    (checkpoint, "file_digest"),
    (checkpoint, "_sync"),
    (Path, "replace"),
    (Path, "mkdir"),
    (Jsonl, "write"),
    (shutil, "rmtree"),
]
"""What a run does with files between its first checkpoint and its end."""


@contextmanager
def failing(target: Any, name: str, number: int, code: int) -> Iterator[list[int]]:
    """The ``number``-th call fails with an error of the disk, and all later ones until the end of the context."""
    calls, real = [0], getattr(target, name)

    def call(*words: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] >= number:
            raise OSError(code, os.strerror(code), "a/file")
        return real(*words, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, call)
        yield calls


CODES = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE]


@fault("disk", "any file operation fails (full, quota, read-only, lost mount)", "status 3, cause and way out")
@pytest.mark.parametrize("which", range(len(OPERATIONS)), ids=[name for _, name in OPERATIONS])
def test_any_file_operation_may_fail(
    which: int, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its second, fourth … call on, each with another error; the resumed run comes out as if nothing had been."""
    target, name = OPERATIONS[which]
    run = [*TINY, "--run_dir", str(tmp_path / "run")]
    failed = 0
    for number in (2, 4, 9):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        capsys.readouterr()
        code = CODES[(which + number) % len(CODES)]
        with failing(target, name, number, code):
            status = main(run)
        err = capsys.readouterr().err
        if status:
            failed += 1
            assert status == 3, err
            one_message(err, "a/file" if name != "x" else "", "--run_dir")
            assert not list(tmp_path.rglob("*.partial")) or name in ("rmtree", "mkdir")
        again = ["--resume"] if (tmp_path / "run" / "environment.json").exists() else []
        assert main([*run, *again]) == 0, capsys.readouterr().err
        assert outcome(tmp_path / "run") == outcome(whole_run)
    assert failed, f"{name} was never called twice"


def test_a_failed_run_has_a_summary_where_one_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with failing(torch, "save", 2, errno.ENOSPC):
        assert main([*TINY, "--run_dir", str(tmp_path / "run")]) == 3
    assert summary_of(tmp_path / "run")["status"] == "failed"
    one_message(capsys.readouterr().err, "the disk is full", "go on with --resume")


@fault("disk", "less space than the next checkpoint needs", "status 3 before anything of it is begun")
def test_space_is_looked_for_before_a_checkpoint_is_begun(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []
    real = checkpoint.write
    monkeypatch.setattr(
        checkpoint, "write", lambda run, place, fill: begun.append(place.name) or real(run, place, fill)
    )
    size = sum(file.stat().st_size for file in (whole_run / "checkpoints").glob("*/*") if file.is_file()) / 2
    for free, status in ((int(0.8 * size), 3), (int(1.2 * size), 0)):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        begun.clear()
        usage = shutil._ntuple_diskusage(10**12, 10**12 - free, free)  # type: ignore[attr-defined]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage.shutil, "disk_usage", lambda path, usage=usage: usage)
            assert main([*TINY, "--run_dir", str(tmp_path / "run")]) == status
        steps = [0] if status else [0, 2, 4, 6]  # the first holds no state of the optimizer, and is smaller
        assert begun == [f"step-{step:010d}" for step in steps]
    one_message(capsys.readouterr().err, "the next checkpoint needs", "MiB are free", "--resume")


# A small disk of its own


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A disk of so many bytes at a folder, and what mounts it with other options; skips where none may be mounted."""
    folder.mkdir()

    def mounted(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    tried = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not tried or tried.returncode:
        pytest.skip("no disk may be mounted here")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_looking_for_the_cause_of_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    """Torch reports no cause of a write that has failed: another one is tried, and its file removed."""
    disk = tmp_path / "disk"
    with small_disk(disk, "64k"):
        (disk / "full").write_bytes(bytes(40_000))
        with pytest.raises(storage.StorageError, match="the disk is full"), storage.writing(disk):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        assert [file.name for file in disk.iterdir()] == ["full"]


def full_at(whole_run: Path, folder: Path, kib: int, capsys: pytest.CaptureFixture[str]) -> int:
    """Run on a disk of so many KiB, then on a larger one; the status of the first, whose message is checked."""
    with small_disk(folder, f"{kib}k") as mounted:
        run = [*TINY, "--run_dir", str(folder / "run")]
        capsys.readouterr()
        status = main(run)
        if status:
            assert status == 3
            one_message(capsys.readouterr().err, "free")
            assert not list(folder.rglob("*.partial"))
            mounted("size=64m")
            again = ["--resume"] if (folder / "run" / "environment.json").exists() else []
            assert main([*run, *again]) == 0, capsys.readouterr().err
        assert outcome(folder / "run") == outcome(whole_run)
    return status


def needed(whole_run: Path) -> int:
    """KiB of a finished run."""
    return sum(-(-file.stat().st_size // 4096) * 4 for file in whole_run.rglob("*") if file.is_file())


@fault("disk", "a real disk that is full (a small tmpfs), at any write", "status 3; on a larger one it goes on exactly")
def test_a_disk_that_fills_up(whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    most = needed(whole_run)
    statuses = [full_at(whole_run, tmp_path / f"{kib}", kib, capsys) for kib in (8, 24, most // 2, most, 3 * most)]
    assert statuses[0] == 3
    assert statuses[-1] == 0


@pytest.mark.slow
def test_a_disk_that_fills_up_at_every_write(
    whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    most = needed(whole_run)
    sizes = sorted({*range(4, 64, 4), *range(64, 2 * most, max(4, most // 40))})
    statuses = [full_at(whole_run, tmp_path / f"{kib}", kib, capsys) for kib in sizes]
    assert {*statuses} == {0, 3}


@fault("disk", "a read-only run folder, or cache", "status 3: which, and where else")
def test_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", "16m") as mounted:
        mounted("ro")
        capsys.readouterr()
        assert main([*TINY, "--run_dir", str(tmp_path / "disk" / "run")]) == 3
        one_message(capsys.readouterr().err, "mounted read-only", "choose another --run_dir")
        monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "disk" / "cache"))
        words = [*TINY, "--gin_file", "gin/policy/jest.gin", "run.reference=gin/run/tiny_reference.gin"]
        assert main([*words, "--run_dir", str(tmp_path / "run")]) == 3
        one_message(capsys.readouterr().err, "mounted read-only", "JESTBENCH_CACHE")
        assert not (tmp_path / "run").exists()


@fault("disk", "the mount of a run vanishes while it trains", "status 3, and what to bring back")
def test_a_lost_mount(whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder is moved away in the middle, and brought back."""
    run, calls = tmp_path / "run", [0]
    real = Jsonl.write

    def write(self: Jsonl, row: Any, *more: Any) -> None:
        calls[0] += 1
        if calls[0] == 4:
            run.rename(tmp_path / "away")
        real(self, row, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Jsonl, "write", write)
        assert main([*TINY, "--run_dir", str(run)]) == 3
    one_message(capsys.readouterr().err, "is gone", "bring it back")
    shutil.rmtree(run, ignore_errors=True)
    (tmp_path / "away").rename(run)
    assert main([*TINY, "--run_dir", str(run), "--resume"]) == 0
    assert outcome(run) == outcome(whole_run)


def test_messages_name_cause_and_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    for code in CODES:
        for place, way in (("run", "--run_dir"), ("cache", "JESTBENCH_CACHE")):
            said = str(storage.storage_error(OSError(code, os.strerror(code), str(tmp_path / place / "file"))))
            assert re.fullmatch(rf".*{place}/file: .+: .+{way}.*", said), said
