"""Runs that are killed at any moment go on exactly: at each file operation, at random times, alone and by two.

The short choice of the default suite injects a few kills a kind of run; ``-m slow`` injects more than 200.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_rows import fault
from forked import Forked, ranks
from helpers import ROOT, outcome, own_surroundings, small_world
from photos import write_numbered_shards

from jestbench.launch import train_run
from jestbench.launch.command import main
from jestbench.parallel import peers
from jestbench.runs import saved_model

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
REFERENCE = f'run.reference=("{ROOT}/gin/run/tiny_reference.gin", "run.budget=1e9", "run.checkpoints=4")'
SMALL_SCORER = 'scorer/model.image_options={"embed_dim": 16, "depth": 1, "num_heads": 2}'
BASE = [
    *("--gin_file", str(ROOT / "gin/run/tiny.gin"), *small_world(8, 24), "run.budget=None", "budget.steps=6"),
    *("run.checkpoints=4", "evaluate.points=3", "wandb.mode=disabled", "log.examples=2"),
]


def policy(name: str) -> list[str]:
    return ["--gin_file", str(ROOT / f"gin/policy/{name}.gin")]


STREAM = ["run.data=@stream()", "stream.shards='pipe:cat $SHARDS/{000..004}.tar'", "stream.beside=@synthetic()"]
STREAM += ["stream.image_size=16", "stream.lanes=4", "stream.buffer=8", *policy("hard_learner")]
TWIN = f'run.reference=("{ROOT}/gin/run/tiny_irreducible.gin", "run.budget=1e9", "run.split=pool")'
KINDS: dict[str, list[str]] = {
    "uniform": [],
    "jest": [*policy("jest"), REFERENCE],
    "active_clip": [*policy("active_clip"), REFERENCE, SMALL_SCORER],
    "cascade": [*policy("cascade_jest"), REFERENCE, "cascade.candidates=3", "run.super_batch_size=16"],
    "twin": [*policy("rho_loss_twin"), TWIN],
    "stream": [*STREAM, "loader.workers=0"],
    "stream_workers": [*STREAM, "loader.workers=2"],
    "two": [*policy("jest"), REFERENCE],
}
"""Kinds of runs, by what differs from ``BASE``; ``two`` is shared by two processes."""


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    shards = tmp_path_factory.mktemp("shards")
    write_numbered_shards(shards, [40, 9, 30, 25, 12])
    with own_surroundings(tmp_path_factory, SHARDS=str(shards)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "GRACE_SECONDS", 0.1)
        yield


def words(kind: str, run_dir: Path) -> list[str]:
    more = [os.path.expandvars(word) for word in KINDS[kind]]
    files = [word for pair in itertools.pairwise(more) if pair[0] == "--gin_file" for word in pair]
    bindings = [word for word in more if word not in files]
    return [*BASE[:2], *files, *BASE[2:], *bindings, "--run_dir", str(run_dir)]


def processes(
    kind: str, run_dir: Path, logs: Path, before: Callable[[int], object] = lambda rank: None
) -> list[Forked]:
    """The processes of a run that goes on where it can; ``before`` prepares each, by its rank."""

    def work(rank: int) -> int:
        before(rank)
        return main([*words(kind, run_dir), "--resume"])

    return ranks(2, work, logs) if kind == "two" else [Forked(lambda: work(0), logs / "log")]


PHYSICAL = {"cache/hits", "data/decoded", "data/worker_restarts"}
"""What depends on what lies in caches, and on who reads."""


def left(run_dir: Path) -> tuple[Any, ...]:
    rows, summary, *rest = outcome(run_dir)
    summary = {key: value for key, value in summary.items() if key != "cache"}
    return [{key: value for key, value in row.items() if key not in PHYSICAL} for row in rows], summary, *rest


WHOLE: dict[str, tuple[Any, ...]] = {}


def whole(kind: str, folder: Path) -> tuple[Any, ...]:
    """What a run of this kind leaves that nothing happens to."""
    if kind not in WHOLE:
        run = processes(kind, folder / "whole", folder)
        assert [one.wait(120) for one in run] == [0] * len(run), run[0].said
        WHOLE[kind] = left(folder / "whole")
    return WHOLE[kind]


class FileOperations:
    """Counts the file operations of this process in some folders, and acts before the n-th."""

    def __init__(self, folders: Sequence[Path], nth: int, act: Callable[[], object]) -> None:
        self.count, self._nth, self._act = 0, nth, act
        self._folders = [os.fspath(folder) for folder in folders]

    def start(self) -> None:
        sys.addaudithook(self._audit)  # stays: of a forked process only
        os.fsync = self._counted(os.fsync)
        for owner, name in ((torch, "save"), (saved_model, "save_file")):  # both write without Python's open
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _audit(self, event: str, given: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and isinstance(given[0], str | os.PathLike):
            path = os.fspath(given[0])
            if isinstance(path, str) and any(path.startswith(folder) for folder in self._folders):
                self._one()

    def _counted(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            self._one()
            result = work(*given, **named)
            self._one()
            return result

        return counted

    def _one(self) -> None:
        self.count += 1
        if self.count == self._nth:
            self._act()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def operations(kind: str, folder: Path) -> int:
    """Number of file operations of a run in its folder."""
    counter = FileOperations([folder / "counted"], 0, die)

    def count() -> int:
        counter.start()
        assert main(words(kind, folder / "counted")) == 0
        (folder / "count").write_text(str(counter.count))
        return 0

    assert Forked(count, folder / "log").wait(120) == 0
    return int((folder / "count").read_text())


def was_killed(run: Sequence[Forked]) -> bool:
    """Whether a process was killed, once all have ended; the others of a killed one are ended as torchrun does it."""
    end = time.monotonic() + 120
    while (statuses := [one.poll() for one in run]) and None in statuses:
        assert time.monotonic() < end, [one.said for one in run]
        if -signal.SIGKILL in statuses:
            end_others = time.monotonic() + 5
            while None in [one.poll() for one in run] and time.monotonic() < end_others:
                time.sleep(0.01)
            for one in run:
                one.kill()
            return True
        time.sleep(0.005)
    return -signal.SIGKILL in statuses


def killed_at(kind: str, run_dir: Path, logs: Path, operation: int, rank: int = 0) -> bool:
    """Start the run or go on with it, and kill a process before a file operation; whether it came that far."""

    def prepare(own: int) -> None:
        if own == rank:
            FileOperations([run_dir], operation, die).start()

    return was_killed(processes(kind, run_dir, logs, prepare))


def killed_after(kind: str, run_dir: Path, logs: Path, seconds: float, rank: int = 0) -> bool:
    """The same after a time."""
    run = processes(kind, run_dir, logs)
    end = time.monotonic() + seconds
    while time.monotonic() < end and run[rank].poll() is None:
        time.sleep(0.002)
    run[rank].kill()
    return was_killed(run)


def assert_goes_on(kind: str, run_dir: Path, logs: Path, expected: tuple[Any, ...]) -> None:
    run = processes(kind, run_dir, logs)
    assert [one.wait(120) for one in run] == [0] * len(run), run[0].said
    assert left(run_dir) == expected


def kill_and_go_on(kind: str, seed: int, folder: Path) -> int:
    """Kill a run once to three times at moments drawn by the seed, go on, and compare; the number of kills."""
    draw, run_dir, kills = random.Random(f"{kind}{seed}"), folder / f"run{seed}", 0
    expected = whole(kind, folder)
    for again in range(draw.choice([1, 1, 2, 3])):
        logs = folder / f"logs{seed}-{again}"
        if draw.random() < 0.6:
            rank = draw.randrange(2) if kind == "two" and again else 0
            kills += killed_at(kind, run_dir, logs, draw.randrange(1, 260), rank)
        else:
            rank = draw.randrange(2) if kind == "two" else 0
            kills += killed_after(kind, run_dir, logs, draw.uniform(0.05, 1.5), rank)
    assert_goes_on(kind, run_dir, folder / f"logs{seed}-end", expected)
    shutil.rmtree(run_dir)
    return kills


@fault(
    "kills",
    "a process is killed at any moment (`kill -9`, memory)",
    "`--resume` goes on exactly",
    "time since the last checkpoint",
)
@pytest.mark.parametrize("kind", ["jest", "stream_workers"])
def test_a_killed_run_goes_on_exactly(kind: str, tmp_path: Path) -> None:
    # A moment that was drawn may lie behind the end of a run: then the next seed's counts.
    assert any(kill_and_go_on(kind, seed, tmp_path) for seed in range(4))


def test_a_run_that_is_killed_behind_its_last_step_has_the_summary_of_the_whole_run(tmp_path: Path) -> None:
    """It takes no step after that, and writes no row: what the summary counts comes from the checkpoint."""
    expected, run_dir = whole("uniform", tmp_path), tmp_path / "run"

    def die_at_the_end(rank: int) -> None:
        train_run._end = lambda *given: die()

    (run,) = processes("uniform", run_dir, tmp_path / "logs", die_at_the_end)
    assert run.wait() == -signal.SIGKILL
    assert_goes_on("uniform", run_dir, tmp_path / "logs-end", expected)


@fault("kills", "one of several is killed at any moment", "the others end; `--resume` goes on exactly", "such time")
def test_a_killed_run_of_two_goes_on_exactly(tmp_path: Path) -> None:
    assert kill_and_go_on("two", 1, tmp_path) >= 1


@fault(
    "kills",
    "a process is killed before any of the file operations of a run",
    "`--resume` goes on exactly",
    "time, likewise",
)
@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_file_operation_is_a_kill_point(tmp_path: Path, part: int) -> None:
    count, expected = operations("uniform", tmp_path / "count"), whole("uniform", tmp_path)
    assert count > 200
    for operation in range(1 + part, count + 1, 4):
        run_dir = tmp_path / f"run{operation}"
        assert killed_at("uniform", run_dir, tmp_path / f"logs{operation}", operation)
        assert_goes_on("uniform", run_dir, tmp_path / f"logs{operation}-end", expected)
        shutil.rmtree(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_seeded_kills(kind: str, part: int, tmp_path: Path) -> None:
    """At least 9 kills each: 24 parts of them are more than 200."""
    kills, seed = 0, 1000 * part
    while kills < 9:
        kills += kill_and_go_on(kind, seed, tmp_path)
        seed += 1
    print(f"{kind}, part {part}: {kills} kills, exact each time")
