"""A policy with state: carried from step to step, checkpointed, resumed exactly."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers import Killed, final_model, rows_of, timeless

from jestbench.batch import Selection
from jestbench.config import resolve
from jestbench.launch import train_run
from jestbench.launch.command import main
from jestbench.runs.folder import RUNG
from jestbench.select.policy import choose
from jestbench.select.scores import Role, Scores

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class RunningMean:
    """Pairs whose loss is nearest a running mean of the losses: the mean is the state."""

    needs: ClassVar[frozenset[Role]] = frozenset({"learner"})

    def initial_state(self) -> dict[str, Any]:
        return {"mean": torch.zeros(()), "steps": 0}

    def select(self, scores: Scores, count: int, generator: torch.Generator, *, state: Any) -> Selection:
        loss_B = scores.pair_loss_B("learner")
        mean = 0.9 * state["mean"] + 0.1 * loss_B.mean()
        index_K = (loss_B - mean).abs().argsort(stable=True)[:count]
        steps = state["steps"] + 1
        return Selection(index_K, {"select/steps": float(steps)}, state={"mean": mean, "steps": steps})


@pytest.fixture
def resolved() -> Any:
    bindings = ["run.budget=1e10", "run.checkpoints=5", "log.every=1", "log.progress=False", "run.device=cpu"]
    found = resolve.resolve([str(ROOT / "gin" / "run" / "tiny.gin")], bindings)
    return replace(found, run=replace(found.run, policy=RunningMean()))


def test_state_goes_on_from_step_to_step_and_through_a_resume(resolved: Any, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train_run.train_run(resolved, whole, resume=False) == "finished"
    counted = [row["select/steps"] for row in rows_of(whole) if "select/steps" in row]
    assert counted == [float(step + 1) for step in range(len(counted))]
    assert len(counted) > 3

    shutil.copytree(whole, cut)
    (cut / "summary.json").unlink()
    last, before = sorted((cut / "checkpoints").iterdir(), reverse=True)[:2]
    assert before.name < last.name
    shutil.rmtree(last)
    assert train_run.train_run(resolved, cut, resume=True) == "finished"
    assert timeless(rows_of(cut)) == timeless(rows_of(whole))


RUNGS = (2_000_000_000, 3_000_000_000, 5_000_000_000)


def ladder(rungs: tuple[int, ...], policy: Any, *more: str) -> Any:
    bindings = ["run.budget=None", "run.checkpoints=6", "log.every=1", "log.progress=False", "run.device=cpu", *more]
    bindings += ["optimizer.schedule=ladder", f"optimizer.rungs={rungs}", "optimizer.cooldown=0.4"]
    bindings += ["evaluate.points=1", "run.batch_size=8", "run.super_batch_size=24"]
    found = resolve.resolve([str(ROOT / "gin" / "run" / "tiny.gin")], bindings)
    return replace(found, run=replace(found.run, policy=policy))


def steps_of(run_dir: Path) -> list[dict[str, Any]]:
    """What is logged of each step but evaluations and what branches cost."""
    rows = [row for row in timeless(rows_of(run_dir)) if row["step"]]
    return [{k: v for k, v in row.items() if not k.startswith(("eval/", "flops/eval", "flops/rungs"))} for row in rows]


def test_state_goes_through_a_ladders_branches_and_trunk(tmp_path: Path) -> None:
    """Into a branch with the trunk's state, back to it as if nothing had been; and on from a crash in either."""
    whole, plain = tmp_path / "whole", tmp_path / "plain"
    assert train_run.train_run(ladder(RUNGS, RunningMean()), whole, resume=False) == "finished"
    share = f"optimizer.warmup={0.05 * RUNGS[0] / RUNGS[-1]!r}"
    assert train_run.train_run(ladder(RUNGS[-1:], RunningMean(), share), plain, resume=False) == "finished"
    rows = steps_of(whole)
    assert all(row["select/steps"] == row["step"] for row in rows)
    assert [row for row in rows if RUNG not in row] == steps_of(plain)
    places = {name: [at for at, row in enumerate(rows) if row.get(RUNG) == name] for name in (None, *RUNGS[:2])}
    assert all(len(at) > 2 for at in places.values())

    @dataclass(frozen=True)
    class Dying(RunningMean):
        left: list[int]

        def select(self, scores: Scores, count: int, generator: torch.Generator, *, state: Any) -> Selection:
            self.left[0] -= 1
            if self.left[0] < 0:
                raise Killed
            return super().select(scores, count, generator, state=state)

    after = next(at for at in places[None] if at > places[RUNGS[0]][-1])
    for name, steps in {"in a branch": places[RUNGS[1]][2], "back on the trunk": after + 1}.items():
        run_dir = tmp_path / name
        with pytest.raises(Killed):
            train_run.train_run(ladder(RUNGS, Dying([steps])), run_dir, resume=False)
        (run_dir / "summary.json").unlink()
        assert train_run.train_run(ladder(RUNGS, RunningMean()), run_dir, resume=True) == "finished"
        assert timeless(rows_of(run_dir)) == timeless(rows_of(whole)), name
        assert final_model(run_dir) == final_model(whole), name


def test_the_state_comes_to_where_the_scores_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a checkpoint brings it back on the CPU; one that is there already is handed on as it is."""
    given: list[Any] = []

    class Keeping(RunningMean):
        def select(self, scores: Scores, count: int, generator: torch.Generator, *, state: Any) -> Selection:
            given.append(state)
            return Selection(torch.arange(count), state=state)

    state = {"means": [torch.zeros(2)], "last": (torch.zeros(()), 3), "name": "x"}
    choose(Keeping(), Scores(size=4), 2, torch.Generator(), state)
    monkeypatch.setattr(Scores, "device", torch.device("meta"))
    choose(Keeping(), Scores(size=4), 2, torch.Generator(), state)
    assert given[0] is state
    assert [given[1]["means"][0].device.type, given[1]["last"][0].device.type] == ["meta", "meta"]
    assert given[1]["last"][1:] == (3,)
    assert given[1]["name"] == "x"


# Checkpoints of another version


def half_trained(run_dir: Path, **other: object) -> None:
    """As another process left it: half trained, its checkpoint described otherwise (``None`` leaves out)."""
    (run_dir / "summary.json").unlink()
    newest = max((run_dir / "checkpoints").iterdir())
    described = json.loads((newest / "model.json").read_text(encoding="utf-8"))
    described = {name: value for name, value in (described | other).items() if value is not None}
    (newest / "model.json").write_text(json.dumps(described), encoding="utf-8")


def test_a_run_of_another_version_is_not_gone_on_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--gin_file", "gin/run/tiny.gin", "run.budget=2e9", "--run_dir", str(tmp_path / "run"), "--resume"]
    assert main(command) == 0
    half_trained(tmp_path / "run", format=None)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert main(command) == 3
    assert "another version" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_reference_half_trained_by_another_version_is_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    reference = "run.reference=('gin/run/tiny_reference.gin', 'run.budget=2e9')"
    command = ["--gin_file", "gin/run/tiny.gin", "run.policy=jest", reference, "run.budget=3e9"]
    assert main([*command, "--run_dir", str(tmp_path / "first")]) == 0
    (folder,) = (path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir())
    half_trained(folder, format=None)
    assert main([*command, "--run_dir", str(tmp_path / "second")]) == 0
    assert timeless(rows_of(tmp_path / "second")) == timeless(rows_of(tmp_path / "first"))
