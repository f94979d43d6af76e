"""Several processes share a run: what the others do when one fails, is killed, hangs, or loses its torchrun."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from fault_rows import fault
from forked import Forked, ranks
from helpers import ROOT, outcome, own_surroundings, small_world, summary_of

from jestbench.batch import DataError
from jestbench.data.super_batches import SuperBatches
from jestbench.launch.command import main
from jestbench.parallel import distributed, peers

UNIFORM = [
    *("--gin_file", str(ROOT / "gin/run/tiny.gin"), *small_world(8, 8), "run.budget=None", "budget.steps=8"),
    *("run.checkpoints=8", "evaluate.points=2", "wandb.mode=disabled"),
]


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_surroundings(tmp_path_factory), pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "GRACE_SECONDS", 0.2)
        yield


def impatient(seconds: float) -> None:
    """In a forked process: limits of seconds, not minutes."""
    peers.PATIENCE = distributed.PATIENCE = timedelta(seconds=seconds)
    peers.BEAT_SECONDS, peers._ANSWER_SECONDS = 0.2, 0.5


def at_step(step: int, act: Callable[[], object]) -> None:
    """In a forked process: do something as the super-batch of a step is asked for."""
    at = SuperBatches.at

    def acting(self: SuperBatches, asked: int) -> object:
        if asked == step:
            act()
        return at(self, asked)

    SuperBatches.at = acting  # type: ignore[method-assign]


def fail() -> None:
    raise DataError("the shard x.tar is gone: bring it back")


@fault("processes", "one process fails", "its error, in one line; the others say that they end with it", "nothing")
@pytest.mark.parametrize("failing", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_process_that_fails_says_why_and_no_other(tmp_path: Path, failing: int) -> None:
    def work(rank: int) -> int:
        if rank == failing:
            at_step(3, fail)
        return main([*UNIFORM, "--run_dir", str(tmp_path / "run")])

    both = ranks(2, work, tmp_path)
    assert both[failing].wait() == 3
    assert both[1 - failing].wait() == 1
    whose = f"process {failing}: " if failing else ""
    assert both[failing].said.splitlines()[-1] == f"error: {whose}the shard x.tar is gone: bring it back"
    assert both[1 - failing].said.splitlines()[-1] == f"process {1 - failing} ends because another process has ended"
    assert "Traceback" not in both[0].said + both[1].said
    assert summary_of(tmp_path / "run")["status"] == "failed"


@fault("processes", "one process is killed", "the others end within seconds, and say why")
@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_others_end_when_one_is_killed(tmp_path: Path, killed: int) -> None:
    def work(rank: int) -> int:
        if rank == killed:
            at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        return main([*UNIFORM, "--run_dir", str(tmp_path / "run")])

    both = ranks(2, work, tmp_path)
    assert both[killed].wait() == -signal.SIGKILL
    assert both[1 - killed].wait(20) == 1
    assert both[1 - killed].said.splitlines()[-1].endswith("ends because another process has ended")


@fault("processes", "one process hangs", "the others give up after 10 minutes and name it", "as for a kill")
@pytest.mark.parametrize("hanging", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_hangs_is_named(tmp_path: Path, hanging: int) -> None:
    def work(rank: int) -> int:
        impatient(2)
        if rank == hanging:
            at_step(3, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        return main([*UNIFORM, "--run_dir", str(tmp_path / "run")])

    both = ranks(2, work, tmp_path)
    try:
        assert both[1 - hanging].wait(30) == 1
    finally:
        both[hanging].kill()
    said = both[1 - hanging].said.splitlines()[-1]
    assert f"process {1 - hanging} has waited 2 s in " in said
    assert f"for process {hanging}, which gives no sign of life" in said


@fault(
    "processes", "one process is busy for longer than the limit, while the others wait in a collective", "it is named"
)
@pytest.mark.slow
def test_a_process_that_stays_away_is_told_from_one_that_is_dead(tmp_path: Path) -> None:
    def work(rank: int) -> int:
        impatient(1.5)
        if rank == 1:
            at_step(3, lambda: time.sleep(20))
        return main([*UNIFORM, "--run_dir", str(tmp_path / "run")])

    both = ranks(2, work, tmp_path)
    try:
        assert both[0].wait(15) == 1
    finally:
        both[1].kill()
    assert "for process 1, which lives but has not come there" in both[0].said.splitlines()[-1]


@pytest.mark.slow
def test_rank_0_may_work_alone_for_longer_than_the_limit(tmp_path: Path) -> None:
    """Preparation and a reference's training take hours; the others wait as long as there are signs of life."""

    def work(rank: int) -> int:
        impatient(1)
        with distributed.started() as world:
            assert world.first(lambda: time.sleep(3) or 7) == 7
            assert world.everybodys(rank) == [0, 1]
        return 0

    both = ranks(2, work, tmp_path)
    assert [one.wait(20) for one in both] == [0, 0], both[1].said


@fault("processes", "rank 0 hangs while it works alone (preparation, a reference)", "the others give up and name it")
@pytest.mark.slow
def test_rank_0_that_hangs_alone_is_named(tmp_path: Path) -> None:
    def work(rank: int) -> int:
        impatient(1.5)
        with distributed.started() as world:
            world.first(lambda: os.kill(os.getpid(), signal.SIGSTOP))
        return 0

    both = ranks(2, work, tmp_path)
    try:
        assert both[1].wait(20) == 1
    finally:
        both[0].kill()
    # It may still be joining when rank 0, which serves the store here, is done with that and hangs.
    late = "process 1 has waited 1.5 s in a step of rank 0 alone for process 0, which gives no sign"
    assert late in both[1].said or "process 1 has waited 3 s to join" in both[1].said


@fault("processes", "not all processes are started", "status 1 after 10 minutes, and where the others were waited for")
def test_processes_that_do_not_find_each_other_give_up(tmp_path: Path) -> None:
    def work() -> int:
        impatient(1)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "1", "WORLD_SIZE": "2"}
        return main([*UNIFORM, "--run_dir", str(tmp_path / "run")])

    alone = Forked(work, tmp_path / "log")
    assert alone.wait(20) == 1
    assert "error: process 1: process 1 has waited 1 s for an answer of 127.0.0.1, port 1" in alone.said
    assert not (tmp_path / "run").exists()


def test_an_attempt_of_torchrun_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    """Two attempts through one store, as torchrun serves it: the second is started with the same words."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    straight = ranks(2, lambda rank: main([*UNIFORM, "--run_dir", str(whole)]), tmp_path / "straight")
    assert [one.wait() for one in straight] == [0, 0]
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    elastic = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}

    def first(rank: int) -> int:
        if rank == 1:
            at_step(5, lambda: os.kill(os.getpid(), signal.SIGKILL))
        return main([*UNIFORM, "--run_dir", str(cut)])

    both = ranks(2, first, tmp_path / "first", **elastic, TORCHELASTIC_RESTART_COUNT="0")
    assert [one.wait(20) for one in both] == [1, -signal.SIGKILL]
    again = ranks(
        2,
        lambda rank: main([*UNIFORM, "--run_dir", str(cut)]),
        tmp_path / "second",
        **elastic,
        TORCHELASTIC_RESTART_COUNT="1",
    )
    assert [one.wait(20) for one in again] == [0, 0], again[0].said
    assert outcome(cut) == outcome(whole)


@fault("processes", "two or three processes are started in one folder", "one runs; the others are refused, and by whom")
def test_of_several_in_one_folder_one_runs(tmp_path: Path) -> None:
    def work() -> int:
        return main([*UNIFORM, "--run_dir", str(tmp_path / "run")])

    three = [Forked(work, tmp_path / f"log{number}") for number in range(3)]
    statuses = [one.wait() for one in three]
    assert sorted(statuses) == [0, 2, 2], [one.said for one in three]
    for one, status in zip(three, statuses, strict=True):
        assert status == 0 or "is in use by process" in one.said or "already holds a run" in one.said
    alone = Forked(lambda: main([*UNIFORM, "--run_dir", str(tmp_path / "alone")]), tmp_path / "log")
    assert alone.wait() == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "alone")
