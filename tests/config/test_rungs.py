"""The rungs of a ladder: as bound, as FLOPs of a run's own ledger, as a learning rate, as a forecast."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import rows_of, small_world, summary_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jestbench.config import resolve
from jestbench.cost.budget import Allowance
from jestbench.engine.optimizer import Optimizer
from jestbench.launch.command import main
from jestbench.runs.folder import RUNG, RunFolder

TINY = "gin/run/tiny.gin"
LADDER = ("optimizer.schedule=ladder", "run.budget=None")


def run_of(*bindings: str) -> Any:
    return resolve.resolve([TINY], [*LADDER, *bindings]).run


# The schedule


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 10**15), min_size=1, max_size=5, unique=True).map(sorted),
    st.floats(0.01, 0.9),
    st.floats(0, 0.09),
    st.floats(0, 1),
    st.data(),
)
def test_the_rate_at_given_flops(rungs: list[int], cooldown: float, warmup: float, final: float, data: Any) -> None:
    """By hand, on the trunk and in every branch, from the FLOPs spent and the rung ahead."""
    optimizer = Optimizer(warmup=warmup, final=final, schedule="ladder", rungs=rungs, cooldown=cooldown)
    allowance = Allowance(rungs[-1], None, None, rungs=tuple(rungs), cooldown=cooldown)
    number = data.draw(st.integers(0, len(rungs) - 1))
    spent = data.draw(st.integers(0, rungs[number]))
    begins = (1 - cooldown) * rungs[number]
    if spent < warmup * rungs[0]:
        expected = spent / (warmup * rungs[0])
    elif spent <= begins:
        expected = 1.0
    else:
        expected = final + (1 - final) * (1 - math.sqrt(min(1, (spent - begins) / (cooldown * rungs[number]))))
    rate = optimizer.rate(allowance.position(spent / rungs[number], spent)) / optimizer.learning_rate
    assert rate == pytest.approx(expected, abs=1e-6)


def test_a_cosine_is_at_the_share_spent() -> None:
    assert Allowance(100, None, None).position(0.3, 30) == 0.3


def test_shares_are_of_the_rung_ahead() -> None:
    class Spent:
        total = 90

    allowance = Allowance(400, None, None, rungs=(100, 200, 400), cooldown=0.2)
    assert [allowance.share(Spent(), 1, 1, done) for done in range(3)] == [0.9, 0.45, 0.225]  # type: ignore[arg-type]
    Spent.total = 200
    assert [allowance.share(Spent(), 1, 1, done) for done in range(3)] == [1, 1, 0.5]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (["optimizer.rungs=()"], "needs optimizer.rungs"),
        (
            ["optimizer.rungs=(1e9,)", "optimizer.schedule=cosine", "run.budget=1e9"],
            "set optimizer.schedule = 'ladder'",
        ),
        (["optimizer.rungs=(2e9, 1e9)"], "optimizer.rungs must ascend"),
        (["optimizer.rungs=(1e9, 1e9)"], "optimizer.rungs must ascend"),
        (["optimizer.rungs=(0, 1e9)"], "positive whole numbers"),
        (["optimizer.rungs=(1.5, 1e9)"], "positive whole numbers"),
        (["optimizer.rungs=(1e9,)", "optimizer.cooldown=1.0"], "optimizer.cooldown is a share"),
        (["optimizer.rungs=(1e9,)", "optimizer.cooldown=0.96"], "would begin inside the warm-up"),
        (["optimizer.rungs=(1e9, 2e9)", "run.budget=1e9"], "a ladder ends at its last rung"),
        (["optimizer.rungs=(1e9,)", "budget.steps=3"], "neither budget.steps nor budget.pairs"),
        (["optimizer.rungs=(1e9,)", "budget.pairs=300"], "neither budget.steps nor budget.pairs"),
        (["optimizer.rungs=(1e6, 1e9)"], "less than one training step"),
        (["optimizer.schedule=steps", "optimizer.rungs=(1e9,)"], "optimizer.schedule"),
    ],
    ids=str,
)
def test_what_makes_no_ladder_is_refused(bindings: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gin_file", TINY, *LADDER, *bindings, "--check"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_the_budget_is_the_last_rung() -> None:
    assert run_of("optimizer.rungs=(1e9, 2e9)").budget == 2_000_000_000
    bound = resolve.resolve([TINY], [*LADDER, "optimizer.rungs=(1e9, 2e9)", "run.budget=2e9"])
    left_out = resolve.resolve([TINY], [*LADDER, "optimizer.rungs=[1e9, 2000000000]"])
    assert bound.config_hash == left_out.config_hash


def test_a_frontier_joins_budgets_and_rungs_alone() -> None:
    def hashes(*bindings: str) -> tuple[str, str]:
        found = resolve.resolve([TINY], bindings)
        return found.config_hash, found.frontier_hash

    one, other = hashes("run.budget=1e9"), hashes("run.budget=2e9")
    ladder = hashes(*LADDER, "optimizer.rungs=(1e9, 2e9)", "optimizer.cooldown=0.3")
    steep = hashes("run.budget=1e9", "optimizer.learning_rate=1e-2")
    assert len({one[0], other[0], ladder[0], steep[0]}) == 4
    assert one[1] == other[1] == ladder[1] != steep[1]
    assert hashes("run.budget=1e9", "optimizer.cooldown=0.3") == one, "a cosine has no cool-down"


# Pre-training taken out, and added


def test_pre_training_is_taken_out_of_every_rung_and_added_to_every_rung() -> None:
    run = run_of("optimizer.rungs=(1000, 4000)")
    included = replace(run, limit=replace(run.limit, includes=("reference",))).allowance({"reference": 200})
    assert [included.share(type("L", (), {"total": 800})(), 1, 1, n) for n in (0, 1)] == [1, 800 / 3800]
    assert included.rungs == (1000, 4000), "its points are called by what was spent in all"
    added = run.allowance({}, added=200)
    assert (added.rungs, added.flops) == ((1200, 4200), 4200)
    for allowance in (included, added, run.allowance({})):
        assert run.optimizer.rate(allowance.position(25 / 4000, 25)) == pytest.approx(run.optimizer.learning_rate / 2)


def test_a_rung_that_pre_training_leaves_no_room_for_is_refused() -> None:
    run = run_of("optimizer.rungs=(1000, 4000)", "budget.includes=('reference',)")
    assert run.allowance({"reference": 900}).flops == 3100
    with pytest.raises(
        ValueError, match=r"the first of optimizer\.rungs = 1e\+03 FLOPs leaves 60 .* inside the warm-up"
    ):
        run.allowance({"reference": 940})
    with pytest.raises(ValueError, match=r"the first of optimizer\.rungs = 1e\+03 FLOPs, but the pre-training"):
        run.allowance({"reference": 1000})


def test_an_arm_with_everything_included_ends_each_rung_before_its_reference(tmp_path: Path) -> None:
    world = small_world(8, 24)
    reference = ("gin/run/tiny_reference.gin", *world, "run.budget=3e8", "evaluate.points=1")
    more = ["optimizer.rungs=(2e9, 3e9)", "budget.includes=('reference',)", f"run.reference={reference!r}"]
    command = ["--gin_file", TINY, "--gin_file", "gin/policy/jest.gin", *world, *LADDER, *more]
    assert main([*command, "--run_dir", str(tmp_path / "run")]) == 0
    taken = summary_of(tmp_path / "run")["pretrain_in_budget"]
    assert taken >= 300_000_000
    rows = rows_of(tmp_path / "run")
    first = [row["flops/total"] for row in rows if row.get(RUNG) == 2_000_000_000]
    last = [row["flops/total"] for row in rows if RUNG not in row]
    for spent, rung in ((first, 2_000_000_000), (last, 3_000_000_000)):
        assert spent[-2] + taken < rung <= spent[-1] + taken
    assert list(RunFolder(tmp_path / "run").results()) == [2_000_000_000, 3_000_000_000]


def test_a_reference_trained_on_a_ladder_is_its_end(tmp_path: Path) -> None:
    world = small_world(8, 24)
    ladder = (*LADDER, "optimizer.rungs=(1e9, 2e9)", "run.arm=climbed", "evaluate.points=1")
    reference = ("gin/run/tiny_reference.gin", *world, *ladder)
    command = ["--gin_file", TINY, "--gin_file", "gin/policy/jest.gin", *world, f"run.reference={reference!r}"]
    assert main([*command, "run.budget=None", "budget.steps=1", "--run_dir", str(tmp_path / "run")]) == 0
    (entry,) = summary_of(tmp_path / "run")["references"]
    summary = summary_of(entry["run_dir"])
    assert summary["flops"]["rungs"] > 0
    assert entry["pretrain_flops"] == summary["flops"]["total"]


# Forecasts


def test_the_price_lists_each_rung_and_what_branches_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = [*small_world(8, 24), "optimizer.rungs=(1e9, 2e9, 4e9)", "optimizer.cooldown=0.4"]
    command = ["--gin_file", TINY, *world, *LADDER]
    assert main([*command, "--price"]) == 0
    priced = capsys.readouterr().out
    assert main([*command, "--check", "--verbose"]) == 0
    checked = capsys.readouterr().out
    lines = [line.split() for line in priced.splitlines() if line.startswith(("1e+09 ", "2e+09 ", "4e+09 "))]
    assert all(line in checked for line in priced.splitlines() if line.startswith(("1e+09 ", "ladder in all")))
    assert main([*command, "--run_dir", str(tmp_path / "run")]) == 0
    rows = rows_of(tmp_path / "run")
    for (name, leaves, ends, branch), flops in zip(
        [(*line[:3], line[3:]) for line in lines], (10**9, 2 * 10**9, 4 * 10**9), strict=True
    ):
        own = [row for row in rows if row.get(RUNG) == flops] or [row for row in rows if RUNG not in row]
        assert float(name) == flops
        assert int(ends.replace(",", "")) == own[-1]["step"]
        if flops < 4 * 10**9:
            assert int(leaves.replace(",", "")) == own[0]["step"] - 1
            assert int(branch[0].replace(",", "")) == pytest.approx(0.4 * flops)
    assert "ladder in all: 5.2e+09 FLOPs, 4e+09 on the trunk and 1.2e+09 in branches" in priced
