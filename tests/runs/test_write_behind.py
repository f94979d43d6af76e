"""Checkpoints that a thread writes while training goes on: what they hold, and when their errors are found."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import outcome, own_surroundings, small_world, summary_of

from jestbench.data.super_batches import SuperBatches
from jestbench.launch.command import main
from jestbench.parallel.distributed import World
from jestbench.runs import checkpoint
from jestbench.runs.checkpoint import Place
from jestbench.runs.checkpoint_writer import CheckpointWriter
from jestbench.runs.folder import RunFolder
from jestbench.storage import StorageError

TINY = ["--gin_file", "gin/run/tiny.gin", *small_world(8, 24), "run.budget=None", "budget.steps=6", "run.checkpoints=3"]


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_surroundings(tmp_path_factory, WANDB_MODE="disabled"):
        yield


def as_a_step_begins(patch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    at = SuperBatches.at

    def acting(self: SuperBatches, asked: int) -> Any:
        if asked == step:
            act()
        return at(self, asked)

    patch.setattr(SuperBatches, "at", acting)


def test_a_checkpoint_written_late_holds_the_state_of_its_own_step(tmp_path: Path) -> None:
    """That of step 4 is not written before step 6 begins: it waits for that, and step 6 does not wait for it."""
    whole, late, begun = tmp_path / "whole", tmp_path / "late", threading.Event()
    assert main([*TINY, "--run_dir", str(whole)]) == 0
    write, in_time = checkpoint.write, []

    def waiting(run_dir: Path, place: Place, fill: Any) -> Path:
        if place.step == 4:
            in_time.append(begun.wait(20))
        return write(run_dir, place, fill)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", waiting)
        as_a_step_begins(patch, 5, begun.set)
        assert main([*TINY, "--run_dir", str(late)]) == 0
    assert in_time == [True]
    assert outcome(late) == outcome(whole)
    (late / "summary.json").unlink()
    shutil.rmtree(max((late / "checkpoints").iterdir()))
    assert [Place.of(one).step for one in (late / "checkpoints").iterdir()] == [4]
    assert main([*TINY, "--run_dir", str(late), "--resume"]) == 0
    assert outcome(late) == outcome(whole)


def test_an_error_behind_is_raised_as_the_next_step_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed, save, calls = threading.Event(), torch.save, [0]

    def full(*given: Any) -> None:
        calls[0] += 1
        if calls[0] > 1:
            failed.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/file")
        save(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        as_a_step_begins(patch, 2, lambda: failed.wait(20) and time.sleep(0.3))
        assert main([*TINY, "--run_dir", str(tmp_path / "run")]) == 3
    assert summary_of(tmp_path / "run")["steps"] == 3
    assert [Place.of(one).step for one in RunFolder(tmp_path / "run").whole_checkpoints()] == [0]
    assert capsys.readouterr().err.count("the disk is full") == 1


def test_one_checkpoint_is_written_at_a_time_and_its_error_is_raised_once(tmp_path: Path) -> None:
    RunFolder(tmp_path).metrics_jsonl.touch()
    writer, state, allowed = CheckpointWriter(tmp_path, World()), {"a": torch.zeros(3), "b": [1]}, threading.Event()
    found: list[Any] = []

    def fill(folder: Path, held: Any) -> None:
        assert allowed.wait(20)
        found.append(held)
        (folder / "file").touch()

    writer.write(Place(1), state, fill, behind=True)
    state["a"] += 1
    assert not RunFolder(tmp_path).whole_checkpoints()
    threading.Timer(0.1, allowed.set).start()
    writer.write(Place(2), state, fill, behind=False)
    assert [held["a"].tolist() for held in found] == [[0.0] * 3, [1.0] * 3]
    assert found[0]["b"] == [1]
    assert [Place.of(one).step for one in RunFolder(tmp_path).whole_checkpoints()] == [1, 2]

    def refused(folder: Path, held: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))

    writer.write(Place(3), state, refused, behind=True)
    with pytest.raises(StorageError, match="read-only"):
        writer.settle()
    writer.settle()
    writer.close()
