"""Ladders: decayed values at several budgets from one run, whose branches leave no trace on the trunk."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, Killed, final_model, rows_of, small_world, summary_of
from photos import write_numbered_shards

from jestbench.batch import PURPOSES
from jestbench.compare.ladder_so_far import so_far
from jestbench.compare.load import load_run
from jestbench.data.super_batches import SuperBatches
from jestbench.data.synthetic import Synthetic
from jestbench.evals.evaluate import Evaluator
from jestbench.launch.command import main
from jestbench.loop import Progress
from jestbench.runs import open_folder
from jestbench.runs.checkpoint_writer import CheckpointWriter
from jestbench.runs.folder import RUNG, RunFolder
from jestbench.runs.kept_records import worth_keeping
from jestbench.runs.metrics_log import Jsonl
from jestbench.runs.recorder import Recorder
from jestbench.runs.saved_model import towers_of

WORLD = small_world(8, 24)
TINY = ["--gin_file", "gin/run/tiny.gin"]
REFERENCE = ("gin/run/tiny_reference.gin", *WORLD, "run.budget=3e8", "evaluate.points=1")
IRREDUCIBLE = ("gin/run/tiny_irreducible.gin", *WORLD, "run.budget=3e8", "evaluate.points=1", "run.split=pool")
RUNGS = (1_500_000_000, 2_000_000_000, 4_000_000_000)
PEAK, WARMUP, COOLDOWN = 2e-3, 0.05, 0.4
LADDER = ["optimizer.schedule=ladder", f"optimizer.cooldown={COOLDOWN}", "run.budget=None"]
LADDER += ["evaluate.points=4", "run.checkpoints=3"]


def arm(policy: str, *more: str, reference: Sequence[str] = REFERENCE) -> list[str]:
    needed = [] if policy == "uniform" else [f"run.reference={tuple(reference)!r}"]
    return [*TINY, "--gin_file", f"gin/policy/{policy}.gin", *WORLD, *needed, *LADDER, *more]


ARMS = {
    "uniform": arm("uniform"),
    "jest": arm("jest"),
    "active_clip": arm("active_clip"),
    "rho_loss_twin": arm("rho_loss_twin", reference=IRREDUCIBLE),
    "cascade_jest": arm("cascade_jest", "run.super_batch_size=16", "cascade.candidates=3", "jest.chunks=4"),
}
"""A model alone; charges at first sight; a second model in training; two stores; draws by scores in a shared cache."""


def rungs(*flops: int) -> str:
    return f"optimizer.rungs={flops}"


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JESTBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def ladders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an arm's uninterrupted ladder, each run once."""
    done: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp("ladder") / name
            assert main([*ARMS[name], rungs(*RUNGS), "--run_dir", str(done[name])]) == 0
        return done[name]

    return run


PHYSICAL = ("time/", "cache/hits", "data/decoded")
"""What depends on the clock, and on which rows a shared cache holds already."""


def logical(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith(PHYSICAL)} for row in rows]


def trunk(run_dir: Path) -> list[dict[str, Any]]:
    return [row for row in rows_of(run_dir) if RUNG not in row]


def branch(run_dir: Path, rung: int) -> list[dict[str, Any]]:
    return [row for row in rows_of(run_dir) if row.get(RUNG) == rung]


def ladder_outcome(run_dir: Path) -> tuple[Any, ...]:
    """All that a ladder must reproduce: its record, the final state to the last bit, and what each example gave."""
    summary = {name: value for name, value in summary_of(run_dir).items() if name not in ("seconds", "cache")}
    summary.pop("appended", None)
    results = {
        flops: {name: array.tobytes() for name, array in found.arrays().items()}
        for flops, found in RunFolder(run_dir).results().items()
    }
    newest = RunFolder(run_dir).newest_checkpoint()
    assert newest is not None
    online = torch.load(newest / "state.pt", weights_only=True).get("online")
    weights = {} if online is None else {name: value.numpy().tobytes() for name, value in online["model"].items()}
    return logical(rows_of(run_dir)), summary, results, newest.name, final_model(run_dir), weights


# What a ladder leaves


def test_each_rung_is_a_decayed_point(ladders: Callable[[str], Path]) -> None:
    run_dir = ladders("jest")
    summary, results = summary_of(run_dir), RunFolder(run_dir).results()
    assert summary["schedule"] == {"kind": "ladder", "rungs": list(RUNGS), "cooldown": COOLDOWN}
    assert summary["budget"] == RUNGS[-1]
    assert summary["status"] == "finished"
    assert tuple(results) == RUNGS
    for flops in RUNGS:
        rows = branch(run_dir, flops) if flops < RUNGS[-1] else trunk(run_dir)
        assert [row["flops/total"] >= flops for row in rows].index(True) == len(rows) - 1
        hits = results[flops].of("eval/zero_shot_top1")
        assert hits is not None
        assert np.mean(hits.value_N) == pytest.approx(rows[-1]["eval/zero_shot_top1"])
    assert summary["metrics"]["eval/zero_shot_top1"] == trunk(run_dir)[-1]["eval/zero_shot_top1"]


def rate_at(spent: int, rung: int) -> float:
    """By hand: the rate of a step before which so much is spent, on the way to a rung."""
    if spent < WARMUP * RUNGS[0]:
        return PEAK * spent / (WARMUP * RUNGS[0])
    cooled = (spent - (1 - COOLDOWN) * rung) / (COOLDOWN * rung)
    return PEAK * (1 - max(0.0, cooled) ** 0.5)


def test_every_rate_is_the_schedules(ladders: Callable[[str], Path]) -> None:
    run_dir = ladders("jest")
    for flops in RUNGS:
        rows = branch(run_dir, flops) if flops < RUNGS[-1] else trunk(run_dir)[1:]
        spent_after = {row["step"]: row["flops/total"] for row in (*trunk(run_dir), *rows)}
        for row in rows:
            expected = rate_at(spent_after[row["step"] - 1], flops)
            assert row["train/learning_rate"] == pytest.approx(expected, rel=1e-9), (flops, row["step"])
        assert len(rows) > 1


def test_what_branches_spend_stands_apart(ladders: Callable[[str], Path]) -> None:
    """Outside the total, of which the purposes are still the sum; what has been run in all is counted once."""
    rows = rows_of(ladders("jest"))
    for row in rows:
        assert sum(row[f"flops/{purpose}"] for purpose in PURPOSES if purpose != "eval") == row["flops/total"]
        assert type(row["flops/rungs"]) is int
    spent, left = 0, rows[0]
    for before, row in pairwise(rows):
        if RUNG in row and RUNG not in before:
            left = before
        if RUNG in before and before.get(RUNG) != row.get(RUNG):
            spent += sum(before[f"flops/{part}"] - left[f"flops/{part}"] for part in ("total", "eval"))
        assert row["flops/rungs"] == spent
    summary = summary_of(ladders("jest"))
    assert summary["flops"]["rungs"] == spent > 0
    final = RunFolder(ladders("jest")).final_value("eval/zero_shot_top1")
    assert final == summary["metrics"]["eval/zero_shot_top1"]


@pytest.mark.parametrize("name", ARMS)
def test_branches_leave_no_trace(ladders: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """Against a ladder of the last rung alone, with as long a warm-up: the same trunk, and the same end."""
    share = WARMUP * RUNGS[0] / RUNGS[-1]
    plain = [f"optimizer.warmup={share!r}", rungs(RUNGS[-1])]
    assert main([*ARMS[name], *plain, "--run_dir", str(tmp_path / "plain")]) == 0

    def steps(run_dir: Path) -> list[dict[str, Any]]:
        """Rows without evaluations, whose points lie on the way to the rung ahead."""
        apart = ("eval/", "flops/eval", "flops/rungs")
        return [{k: v for k, v in row.items() if not k.startswith(apart)} for row in logical(trunk(run_dir))]

    assert steps(ladders(name)) == steps(tmp_path / "plain")
    assert final_model(ladders(name)) == final_model(tmp_path / "plain")
    assert [len(branch(ladders(name), rung)) > 1 for rung in RUNGS[:-1]] == [True, True]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_back(tmp_path: Path, workers: int) -> None:
    """Its position, and its readers', who are ahead of the trunk when a branch ends."""
    write_numbered_shards(tmp_path, [5, 9, 1, 7, 12, 3, 8, 6, 10])
    file = tmp_path / "stream.gin"
    lines = ['include "{root}/gin/run/tiny.gin"', "run.data = @stream()", "stream.beside = @synthetic()"]
    lines += ['stream.shards = "{shards}/{{000..008}}.tar"', "stream.image_size = 16", "stream.lanes = 6"]
    file.write_text("\n".join(lines).format(root=ROOT, shards=tmp_path))
    command = [
        "--gin_file",
        str(file),
        *WORLD,
        *LADDER,
        f"loader.workers={workers}",
        "run.batch_size=10",
        "evaluate.points=1",
    ]
    share = WARMUP * RUNGS[0] / RUNGS[-1]
    for name, more in (("full", [rungs(*RUNGS)]), ("plain", [rungs(RUNGS[-1]), f"optimizer.warmup={share!r}"])):
        assert main([*command, *more, "--run_dir", str(tmp_path / name)]) == 0
    kept = ("step", "pairs/", "train/", "data/")
    one, other = (
        [{key: value for key, value in row.items() if key.startswith(kept)} for row in trunk(tmp_path / name)]
        for name in ("full", "plain")
    )
    assert one == other
    assert branch(tmp_path / "full", RUNGS[1])


def test_a_branch_is_the_end_of_a_shorter_ladder(ladders: Callable[[str], Path], tmp_path: Path) -> None:
    run_dir = tmp_path / "short"
    assert main([*ARMS["jest"], rungs(*RUNGS[:2]), "--run_dir", str(run_dir)]) == 0
    expected = branch(ladders("jest"), RUNGS[1])
    ended = [row | {RUNG: RUNGS[1]} for row in trunk(run_dir)[-len(expected) :]]
    assert logical(ended) == logical(expected)


def test_a_finished_ladder_keeps_its_end_and_what_it_left(ladders: Callable[[str], Path]) -> None:
    folder = RunFolder(ladders("jest"))
    names = [path.name for path in folder.whole_checkpoints()]
    steps = summary_of(folder.path)["steps"]
    assert names[-1].endswith(f"-rungs-002-branch-{steps:010d}")
    assert names[-1].partition("-branch-")[0] in names, "where the last cool-down began"
    assert len(names) <= 3
    towers_of(folder.path)
    assert (folder.row_stores / "reference_score-image.bin").is_file(), "what was charged, for rungs appended later"


# Crashes


EVENTS: dict[str, type] = {"at": SuperBatches, "save": Recorder, "restore": Recorder, "__call__": Evaluator}
EVENTS |= {"write_results": RunFolder, "write": Jsonl}


def snapshots(command: Sequence[str], run_dir: Path, into: Path) -> list[Path]:
    """A ladder's folder as kills leave it, before and after ``EVENTS`` on the way to its second rung and back.

    Those of them that differ.
    """
    taken: list[Path] = []
    seen: list[Progress] = []
    writing: list[CheckpointWriter] = []
    behind, last = 0, b""

    def take(name: str) -> None:
        nonlocal behind, last
        for writer in writing:
            writer.settle()  # a folder that changes cannot be copied; kills within it are those of tests/faults
        done = seen[-1].rungs if seen else 0
        behind += done > 1
        state = repr(sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in run_dir.rglob("*")))
        inside = done == 1 and (seen[-1].branch is not None or name.endswith("save"))
        if (inside or 0 < behind <= 4) and state.encode() != last:
            last = state.encode()
            taken.append(into / f"{len(taken):02d}-{name}")
            shutil.copytree(run_dir, taken[-1])

    def watched(owner: type, name: str) -> Callable[..., Any]:
        method = getattr(owner, name)

        def call(self: Any, *arguments: Any, **named: Any) -> Any:
            take(f"before-{name}")
            found = method(self, *arguments, **named)
            take(f"after-{name}")
            return found

        return call

    start = Recorder.start

    def begin(self: Recorder, progress: Progress) -> None:
        seen.append(progress)
        writing.append(self.checkpoints)
        start(self, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "start", begin)
        for name, owner in EVENTS.items():
            patch.setattr(owner, name, watched(owner, name))
        assert main([*command, "--run_dir", str(run_dir)]) == 0
    return taken


def test_a_ladder_goes_on_from_any_place(ladders: Callable[[str], Path], tmp_path: Path) -> None:
    """On the trunk, entering a branch, in it, at its evaluation, leaving it."""
    command = [*ARMS["jest"], rungs(*RUNGS)]
    taken = snapshots(command, tmp_path / "run", tmp_path)
    assert len(taken) > 8
    assert {row.get(RUNG) for path in taken for row in rows_of(path)} == {None, *RUNGS[:2]}
    for run_dir in taken:
        assert main([*command, "--run_dir", str(run_dir), "--resume"]) == 0
        assert ladder_outcome(run_dir) == ladder_outcome(ladders("jest")), run_dir.name


@pytest.mark.parametrize("name", ["active_clip", "rho_loss_twin", "cascade_jest"])
def test_every_kind_of_state_goes_on_from_a_branch(ladders: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    command = [*ARMS[name], rungs(*RUNGS)]
    for run_dir in snapshots(command, tmp_path / "run", tmp_path)[4::7]:
        assert main([*command, "--run_dir", str(run_dir), "--resume"]) == 0
        assert ladder_outcome(run_dir) == ladder_outcome(ladders(name)), run_dir.name


@pytest.mark.parametrize("number", [5, 9])
def test_a_ladder_stopped_by_a_signal_goes_on(ladders: Callable[[str], Path], tmp_path: Path, number: int) -> None:
    """After a step on the trunk, or in a branch, its last one among them."""
    command = [*ARMS["jest"], rungs(*RUNGS), "--run_dir", str(tmp_path / "run")]
    at, asked = SuperBatches.at, [0]

    def interrupted(self: SuperBatches, step: int) -> Any:
        asked[0] += 1
        if asked[0] == number:
            os.kill(os.getpid(), signal.SIGINT)
        return at(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SuperBatches, "at", interrupted)
        assert main(command) == 130
    assert summary_of(tmp_path / "run")["status"] == "interrupted"
    assert len(rows_of(tmp_path / "run")) == number + 1
    assert main([*command, "--resume"]) == 0
    assert ladder_outcome(tmp_path / "run") == ladder_outcome(ladders("jest"))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("jest", []),
        ("jest", ["budget.includes=('reference',)"]),
        ("uniform", [f"run.reference={REFERENCE!r}", "budget.adds=('reference',)"]),
    ],
    ids=["plain", "includes", "adds"],
)
def test_a_killed_ladder_that_is_interrupted_in_preparation_keeps_its_ended_rungs(
    tmp_path: Path, name: str, more: list[str]
) -> None:
    """Killed behind its first rung it has no summary; its comparison is that of a ladder interrupted there."""
    command = [*ARMS[name], *more, rungs(*RUNGS), "--run_dir", str(tmp_path / "run")]
    assert main(command) == 0
    whole, rows = RunFolder(tmp_path / "run").summary(), rows_of(tmp_path / "run")
    assert whole is not None
    first = whole.schedule.rungs[0]
    behind = max(place for place, row in enumerate(rows) if row.get(RUNG) == first) + 3
    RunFolder(tmp_path / "run").summary_json.unlink()
    RunFolder(tmp_path / "run").metrics_jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows[:behind]))

    def interrupted(self: Synthetic) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Synthetic, "prepare", interrupted)
        assert main([*command, "--resume"]) == 130
    found = RunFolder(tmp_path / "run").summary()
    assert found is not None
    same = ("schedule", "budget", "pretrain_flops", "pretrain_in_budget", "added_to_budget", "frontier_hash", "control")
    assert {field: getattr(found, field) for field in same} == {field: getattr(whole, field) for field in same}
    assert (found.status, found.steps) == ("interrupted", rows[behind - 1]["step"])
    assert found.pretrain_in_budget > 0 or "includes" not in str(more)
    assert worth_keeping(tmp_path / "run")
    shorter = so_far(load_run(tmp_path / "run"))
    assert shorter is not None
    assert shorter[0].summary.schedule.rungs == (first,)
    assert main([*command, "--resume"]) == 0
    finished = RunFolder(tmp_path / "run").summary()
    assert finished is not None
    assert finished.flops == whole.flops


# Rungs appended


@pytest.mark.parametrize("name", ["jest", "rho_loss_twin"])
def test_appended_rungs_are_as_if_they_had_been_there(
    ladders: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """Twice, to a finished ladder: rows, results, state; the configuration and the record say so."""
    run_dir, whole = tmp_path / "run", ladders(name)
    hashes = []
    for count in (1, 2, 3):
        by_folder = count == 3 and name == "jest"  # its own operative.gin, with other rungs
        words = ["run.budget=None"] if by_folder else ARMS[name]
        assert main([*words, rungs(*RUNGS[:count]), "--run_dir", str(run_dir), "--resume"]) == 0
        hashes.append(summary_of(run_dir)["config_hash"])
    assert ladder_outcome(run_dir) == ladder_outcome(whole)
    appended = summary_of(run_dir)["appended"]
    assert [entry["from"] for entry in appended] == [list(RUNGS[:1]), list(RUNGS[:2])]
    assert [entry["config_hash"] for entry in appended] == hashes[:2]
    assert [entry["at"] // RUNGS[number] for number, entry in enumerate(appended)] == [1, 1]
    assert RunFolder(run_dir).operative_gin.read_text() == RunFolder(whole).operative_gin.read_text()
    assert f"{RUNGS[2]}" in RunFolder(run_dir).config_gin.read_text()
    assert RunFolder(run_dir).identity()["config_hash"] == hashes[2] == summary_of(whole)["config_hash"]
    assert main(["--run_dir", str(run_dir), "--resume"]) == 0, "its own operative.gin starts it again"


def test_rungs_are_appended_to_an_interrupted_ladder(ladders: Callable[[str], Path], tmp_path: Path) -> None:
    """Before its last cool-down, in it, and where a kill left an earlier appending half done."""
    command = [*ARMS["jest"], rungs(*RUNGS[:2])]
    taken = snapshots(command, tmp_path / "run", tmp_path)
    for run_dir in taken[1::4]:
        assert main([*ARMS["jest"], rungs(*RUNGS), "--run_dir", str(run_dir), "--resume"]) == 0
        assert ladder_outcome(run_dir) == ladder_outcome(ladders("jest")), run_dir.name


@pytest.mark.parametrize("write", ["write_text", "write_json"])
def test_a_kill_while_rungs_are_appended_loses_nothing(
    ladders: Callable[[str], Path], tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, command = tmp_path / "finished", [*ARMS["jest"], rungs(*RUNGS), "--resume", "--run_dir"]
    assert main([*ARMS["jest"], rungs(*RUNGS[:2]), "--run_dir", str(finished)]) == 0
    for number in range(1, 4 if write == "write_text" else 2):
        run_dir, left = tmp_path / str(number), number
        shutil.copytree(finished, run_dir)
        original = getattr(open_folder, write)

        def dying(*arguments: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Killed
            original(*arguments)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(open_folder, write, dying)
            with pytest.raises(Killed):
                main([*command, str(run_dir)])
        assert main([*command, str(run_dir)]) == 0
        assert ladder_outcome(run_dir) == ladder_outcome(ladders("jest"))
        assert len(summary_of(run_dir)["appended"]) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([rungs(*RUNGS[:1])], "to which only rungs can be appended"),
        ([rungs(*RUNGS[:2], RUNGS[2] - 1)], "to which only rungs can be appended"),
        ([rungs(RUNGS[0], *RUNGS[2:], 2 * RUNGS[2])], "to which only rungs can be appended"),
        ([rungs(*RUNGS, 2 * RUNGS[2]), "optimizer.cooldown=0.3"], "to which only rungs can be appended"),
        ([rungs(*RUNGS, 2 * RUNGS[2]), "run.seed=1"], "to which only rungs can be appended"),
        ([rungs(*RUNGS, 2 * RUNGS[2]), "optimizer.clip=2.0"], "to which only rungs can be appended"),
        ([rungs(*RUNGS, 2 * RUNGS[2]), f"run.budget={RUNGS[2]}"], "a ladder ends at its last rung"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_any_other_change_is_refused(
    ladders: Callable[[str], Path], capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    run_dir = ladders("jest")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert main([*ARMS["jest"], *more, "--run_dir", str(run_dir), "--resume"]) == 2
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
