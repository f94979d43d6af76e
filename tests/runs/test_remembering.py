"""Whole runs of policies that remember: resumed inside an epoch, read ahead by workers, uniform at first, refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers import kill_before, rows_of, small_world, summary_of, timeless
from photos import write_numbered_shards
from torch import Tensor

from jestbench.batch import Selection
from jestbench.config import resolve
from jestbench.launch import train_run
from jestbench.launch.command import main
from jestbench.select import Moment, PolicyError, Remembered, Scores, Trained
from policies import registry

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "gin" / "run" / "tiny.gin")
STEPS = ["run.budget=None", "run.limit=@budget()", "evaluate.points=1", "run.checkpoints=8"]
"""100 pairs at 32 a step: three steps an epoch, fewer where pairs are left out."""


def command(policy: str, steps: int, run_dir: Path, *more: str) -> list[str]:
    words = ["--gin_file", TINY, "--gin_file", str(ROOT / "gin" / "policy" / f"{policy}.gin")]
    return [*words, *small_world(16, 32), *STEPS, f"budget.steps={steps}", *more, "--run_dir", str(run_dir)]


@pytest.mark.parametrize("policy", ["infobatch", "scan", "dissect_momentum"])
def test_a_run_killed_inside_an_epoch_is_the_run_uncut(policy: str, tmp_path: Path) -> None:
    """With memory, state, the pairs that are left out and the order of the rest; with workers and without."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(command(policy, 24, whole)) == 0
    rows = timeless(rows_of(whole))
    if policy in ("infobatch", "scan"):
        left = [row["data/left_out"] for row in rows]
        assert left[-1] > 10
        assert len({row["data/left_out"] for row in rows}) > 2, "asked in several epochs"
        assert rows[-1]["pairs/seen"] == rows[-1]["pairs/trained"]
        assert rows[-1]["flops/learner_score"] == 0
    kill_before(17, command(policy, 24, cut, "loader.workers=2", "loader.prefetch=3"))
    assert main([*command(policy, 24, cut, "loader.workers=1"), "--resume"]) == 0
    drop = ("data/worker_restarts",)
    assert [{k: v for k, v in row.items() if k not in drop} for row in timeless(rows_of(cut))] == rows
    assert 0 < rows[-1]["memory/pairs"] <= 100
    assert rows[-1]["memory/bytes"] == 12 * rows[-1]["memory/pairs"]


def test_before_select_from_a_run_is_uniform_and_charged_as_uniform(tmp_path: Path) -> None:
    reference = f'run.reference=("{ROOT}/gin/run/tiny_reference.gin", "run.budget=2e9")'
    assert main(command("jest", 8, tmp_path / "jest", reference, "run.select_from=0.5")) == 0
    assert main(command("uniform", 8, tmp_path / "uniform")) == 0
    jest, uniform = (rows_of(tmp_path / name) for name in ("jest", "uniform"))
    for row, plain in zip(jest[:5], uniform[:5], strict=True):
        assert row["flops/total"] == plain["flops/total"]
        assert "select/entropy" not in row
    assert jest[4]["flops/learner_score"] == jest[4]["flops/reference_score"] == 0 < jest[5]["flops/learner_score"]
    assert all("select/entropy" in row for row in jest[5:])
    hashes = [summary_of(tmp_path / name)["config_hash"] for name in ("jest", "uniform")]
    assert main(command("uniform", 8, tmp_path / "same", "run.select_from=0.5")) == 0
    assert summary_of(tmp_path / "same")["config_hash"] == hashes[1], "it changes nothing for uniform"


@pytest.mark.parametrize(
    "arm", [("jest",), ("cascade_jest", "cascade.candidates=3", "run.super_batch_size=32")], ids=str
)
def test_the_price_of_a_run_that_selects_late_is_what_it_is_charged(
    arm: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cascade scores its candidates from the first step on."""
    reference = f'run.reference=("{ROOT}/gin/run/tiny_reference.gin", "run.budget=2e9")'
    words = ["--gin_file", TINY, "--gin_file", str(ROOT / f"gin/policy/{arm[0]}.gin"), *arm[1:]]
    words += [reference, *small_world(16, 32), "run.cache=None"]
    words += ["run.budget=6e9", "run.select_from=0.4", "run.reference_accounting=online", "evaluate.points=1"]
    assert main([*words, "--price"]) == 0
    out = capsys.readouterr().out
    assert "until 0.4 of the budget is spent, nothing is scored" in out
    assert main([*words, "--run_dir", str(tmp_path / "run")]) == 0
    steps = summary_of(tmp_path / "run")["steps"]
    assert f"buys {steps:,} steps" in out


def test_a_stream_refuses_a_policy_that_leaves_pairs_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_numbered_shards(tmp_path, [12, 12])
    shards = f"stream.shards='{tmp_path}/{{000..001}}.tar'"
    data = ["run.data=@stream()", shards, "stream.beside=@synthetic()", "stream.image_size=16", "stream.lanes=2"]
    assert main([*command("infobatch", 4, tmp_path / "run"), *data]) == 2
    err = capsys.readouterr().err
    assert "the policy InfoBatch, which leaves pairs out before they are read, needs an indexed data set" in err
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class Listener:
    """Notes what it is given."""

    heard: list[Any]
    needs: ClassVar[frozenset[str]] = frozenset({"keys", "captions", "progress", "memory", "trained_losses"})
    prefers: ClassVar[Mapping[str, int]] = {}
    remembers: ClassVar[tuple[str, ...]] = ("loss",)

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        self.heard.append(("scores", scores))
        return Selection(torch.arange(count))

    def learn(self, trained: Trained, state: Remembered) -> Remembered:
        self.heard.append(("trained", trained, state.memory["loss"]))
        return Remembered(memory={"loss": trained.loss_K})


def test_a_policy_is_given_what_it_asked_for(tmp_path: Path) -> None:
    heard: list[Any] = []
    words = [*small_world(16, 32), *STEPS, "budget.steps=8"]
    found = resolve.resolve([TINY], words)
    found = replace(found, run=replace(found.run, policy=Listener(heard)))
    assert train_run.train_run(found, tmp_path / "run", resume=False) == "finished"
    given = [one[1] for one in heard if one[0] == "scores"]
    taught = [one for one in heard if one[0] == "trained"]
    assert [scores.progress.epoch for scores in given] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [scores.progress.share for scores in given] == [step / 8 for step in range(8)]
    assert all(scores.learner is None and scores.key_B.dtype == torch.int64 for scores in given)
    words = {word for scores in given for word in scores.words_BL[scores.words_BL >= 0].tolist()}
    assert 5 < len(words) < 200
    losses = [row["train/loss"] for row in rows_of(tmp_path / "run") if "train/loss" in row]
    assert [float(one[1].loss_K.mean()) for one in taught] == pytest.approx(losses, rel=1e-5)
    known = {}
    for scores, (_, trained, before_K) in zip(given, taught, strict=True):
        for at, key in enumerate(scores.key_B[:16].tolist()):
            held = float(scores.memory["loss"][at])
            assert held == pytest.approx(known[key]) if key in known else held != held
            assert str(held) == str(float(before_K[at]))
        known |= dict(zip(scores.key_B[:16].tolist(), trained.loss_K.tolist(), strict=True))


def test_a_policy_is_told_which_pairs_a_full_memory_holds(tmp_path: Path) -> None:
    heard: list[Any] = []
    found = resolve.resolve([TINY], [*small_world(16, 32), *STEPS, "budget.steps=8", f"run.memory_bytes={20 * 12}"])
    found = replace(found, run=replace(found.run, policy=Listener(heard)))
    assert train_run.train_run(found, tmp_path / "run", resume=False) == "finished"
    told = [(trained.held_K, before_K) for _, trained, before_K in (one for one in heard if one[0] == "trained")]
    assert [int(held_K.sum()) for held_K, _ in told[:2]] == [16, 4]
    assert all(held_K[~before_K.isnan()].all() and not held_K[before_K.isnan()].any() for held_K, before_K in told[2:])


@pytest.mark.parametrize(
    ("needs", "remembers", "message"),
    [
        ({"lerner"}, (), "needs 'lerner', which nothing gives; did you mean 'learner'"),
        ({"memory"}, (), "declare what it remembers"),
        ({"memory"}, tuple("abcde"), "4 numbers at most"),
        ({"trained_losses"}, (), "a method learn"),
    ],
)
def test_needs_that_nothing_fills_are_refused_before_a_run(
    needs: set[str], remembers: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {"needs": frozenset(needs), "prefers": {}, "remembers": remembers, "select": lambda *_: None}
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    name = f"odd_{message.split()[0].lower()}_{len(remembers)}"  # gin keeps the first class of a name
    registry.register(name)(type("Odd", (), {"__doc__": "Odd.", **members}))
    with pytest.raises(PolicyError, match=message):
        resolve.resolve([TINY], [f"run.policy={name}", "run.arm=odd"])


def test_a_policy_that_leaves_nearly_everything_out_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    infobatch = registry.get("infobatch")

    def all_but_three(self: object, keys_N: Tensor, state: Remembered, progress: Moment, generator: Any) -> Tensor:
        return torch.arange(len(keys_N)) > 2

    monkeypatch.setattr(infobatch, "leave_out", all_but_three)
    assert main(command("infobatch", 4, tmp_path / "run")) == 2
    assert "InfoBatch leaves 3 of 100 pairs in epoch 0, fewer than the 16 of one step" in capsys.readouterr().err


@pytest.mark.parametrize("rule", ["masked", "positive"])
def test_equal_pairs_change_the_run_and_not_its_price(rule: str, tmp_path: Path) -> None:
    plain, equal = tmp_path / "plain", tmp_path / "equal"
    assert main(command("hard_learner", 6, plain, "run.loss=sigmoid")) == 0
    assert main(command("hard_learner", 6, equal, "run.loss=sigmoid", f"run.equal={rule}")) == 0
    one, other = rows_of(plain), rows_of(equal)
    assert any(row["train/equal_pairs"] > 0 for row in one[1:])
    assert one[-1]["flops/total"] == other[-1]["flops/total"]
    assert one[1]["train/loss"] != other[1]["train/loss"]
    assert summary_of(plain)["config_hash"] != summary_of(equal)["config_hash"]


def test_positives_of_the_softmax_loss_are_refused_by_joint_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = f'run.reference=("{ROOT}/gin/run/tiny_reference.gin", "run.budget=2e9")'
    words = command("jest", 4, tmp_path / "run", reference, "run.equal=positive")
    assert main([*words[:-2], "--check"]) == 2
    assert "run.equal = 'positive'" in capsys.readouterr().err
    assert main(command("uniform", 3, tmp_path / "uniform", "run.equal=positive")) == 0, "the loss has them"


@pytest.mark.parametrize(
    ("method", "given", "status", "message"),
    [
        ("leave_out", lambda *_: torch.zeros(3), 2, r"leave_out returns bool [100], one a pair, got torch.float32 [3]"),
        ("learn", lambda *_: None, 2, "InfoBatch.learn returns a Remembered, got NoneType"),
        ("learn", lambda *_: Remembered(memory={"x": torch.zeros(16)}), 2, "remembers 'x'"),
        ("learn", lambda *_: Remembered(memory={"loss": torch.zeros(3)}), 2, "one number for each pair [16]"),
        ("learn", lambda *_: 1 / 0, 1, "InfoBatch raised ZeroDivisionError"),
    ],
)
def test_what_breaks_the_contract_between_steps_is_named(
    method: str, given: Any, status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(registry.get("infobatch"), method, given)
    assert main(command("infobatch", 4, tmp_path / "run")) == status
    assert message in capsys.readouterr().err
