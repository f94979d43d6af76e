"""A control that is given the reference's pre-training: what it may spend, what it says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import summary_of

from jestbench.compare.analysis import analyse
from jestbench.compare.table import format_table, to_markdown
from jestbench.config import resolve
from jestbench.cost.budget import Budget
from jestbench.launch import train_run
from jestbench.launch.command import main
from jestbench.launch.stands import stand_ins

SMALL = ["run.device=cpu", "log.progress=False", "log.every=1", "evaluate.points=2", "run.budget=2e9"]
ARM = ["--gin_file", "gin/run/tiny.gin", "--gin_file", "gin/policy/uniform_curated.gin", *SMALL]
REFERENCE = "run.reference=('gin/run/tiny_reference.gin','run.budget=1e9')"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert main([*ARM, REFERENCE, "--run_dir", str(folder / "curated")]) == 0
    uniform = ["--gin_file", "gin/run/tiny.gin", "run.arm=uniform", *SMALL]
    assert main([*uniform, "--run_dir", str(folder / "uniform")]) == 0
    return folder


def test_the_reference_is_paid_for_and_not_trained(runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    assert main([*ARM, REFERENCE, "--run_dir", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "cache" / "models").exists()
    said = summary_of(tmp_path / "run")
    assert (said["budget"], said["added_to_budget"], said["pretrain_in_budget"]) == (2_000_000_000, 1_000_000_000, 0)
    assert said["pretrain_flops"] == {}
    assert said["flops"]["total"] == 3_000_000_000 + said["overshoot"]
    rates = [json.loads(line).get("train/learning_rate", 0) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert rates[-1] < 0.1 * max(rates), "the schedule ends at the whole budget"


def test_the_price_and_the_check_know_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARM, REFERENCE, "--price"]) == 0
    assert "a budget of 3e+09 FLOPs buys" in capsys.readouterr().out
    assert main([*ARM, REFERENCE, "--check", "--verbose"]) == 0
    said = capsys.readouterr().out
    assert "budget.adds = ('reference',)" in said
    assert "# arm 'tiny_reference'" in said, "a mistake in the reference is found before the run"


def test_what_the_reference_needs_itself_is_counted() -> None:
    """A reference that is trained with a reference: both are paid for."""
    files = ["gin/run/tiny.gin", "gin/policy/uniform_curated.gin"]
    nested = (
        "run.reference=('gin/run/tiny_reference.gin','run.budget=1e9','run.policy=\"learnability\"',"
        '\'run.reference=("gin/run/tiny_irreducible.gin","run.budget=5e8")\')'
    )
    assert resolve.resolve(files, [nested]).added_flops == 1_500_000_000
    assert resolve.resolve(files, ["run.reference=gin/run/tiny_reference.gin"]).added_flops == 20_000_000_000
    assert resolve.resolve(["gin/run/tiny.gin"]).added_flops == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run.reference=None"], "budget.adds needs a reference"),
        (["budget.adds=('scorer',)"], "budget.adds takes 'reference'"),
        (["budget.adds=('reference', 'reference')"], "budget.adds names a model twice: ['reference', 'reference']"),
        (["budget.adds=()", "budget.includes=('scorer', 'scorer')"], "budget.includes names a model twice"),
        (["budget.includes=('reference',)"], "exclude each other"),
        (["run.budget=None", "budget.steps=3"], "budget.adds adds FLOPs"),
        (["run.reference=('gin/run/tiny_reference.gin','run.budget=None','budget.steps=3')"], "in FLOPs"),
    ],
)
def test_what_cannot_be_added_is_a_wrong_configuration(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARM, REFERENCE, *words, "--check"]) == 2
    assert said in capsys.readouterr().err


def test_the_values_of_a_budget() -> None:
    assert Budget(adds=["reference"]).adds == ("reference",)  # type: ignore[arg-type]
    run = resolve.resolve(["gin/run/tiny.gin"]).run
    allowance = replace(run, budget=7e9).allowance({}, added=5)
    assert (allowance.flops, allowance.added) == (7_000_000_005, 5)


def test_the_hash_knows_the_reference_that_is_paid_for() -> None:
    files = ["gin/run/tiny.gin", "gin/policy/uniform_curated.gin"]
    one, other = (
        resolve.resolve(files, [f"run.reference=('gin/run/tiny_reference.gin','run.budget={budget}')"]).config_hash
        for budget in ("1e9", "2e9")
    )
    assert one != other


def test_the_comparison_reads_it_at_the_common_budget_and_at_its_own_end(runs: Path) -> None:
    comparison = analyse([runs], "zero_shot_top5", "uniform", None, "again")
    arms = {arm.label: arm for arm in comparison.arms}
    curated = arms["uniform_curated"]
    assert comparison.first.budget == 2_000_000_000
    assert (curated.added_to_budget, curated.budget) == (1_000_000_000, 3_000_000_000)
    assert curated.undecayed
    assert {member.run.summary.control for arm in (curated, arms["uniform"]) for member in arm.runs} == {True}
    assert not [note for note in comparison.warnings if "WORLDS" in note or "fingerprint" in note]
    assert not arms["uniform"].undecayed
    final = summary_of(runs / "curated")["metrics"]["eval/zero_shot_top5"]
    assert (curated.end.value, curated.end.low, curated.end.high) == (final, None, None)
    notes = [note for note in comparison.warnings if "uniform_curated" in note and "beside its budget" in note]
    assert len(notes) == 1
    assert not any("inside an undecayed schedule" in note for note in comparison.warnings)
    assert curated.verdict is None
    for text in (format_table(comparison), to_markdown(comparison, runs)):
        assert f"{final:.4g} [1 seed]" in text
    assert "*uniform_curated at 3" in text


def test_no_reference_is_looked_for_by_the_launch() -> None:
    resolved = resolve.resolve(["gin/run/tiny.gin", "gin/policy/uniform_curated.gin"], [REFERENCE])
    assert resolved.stands_on
    assert train_run.ensure_pretrained(resolved) == {}
    assert stand_ins(resolved)[1] == {}
