"""What a budget buys and what the frozen models cost, before anything is trained."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from helpers import small_world, summary_of
from hypothesis import given
from hypothesis import strategies as st

from jestbench.config import resolve
from jestbench.config.run import Resolved
from jestbench.launch.command import main
from jestbench.launch.forecast import StepPrice, factor_to_pay, pretraining, steps_bought

WORLD = small_world(8, 24)
REFERENCE = ("gin/run/tiny_irreducible.gin", *WORLD, "run.split=pool", "run.budget=3e8")


def arm(policy: str) -> Resolved:
    return resolve.resolve(["gin/run/tiny.gin", f"gin/policy/{policy}.gin"], [*WORLD, f"run.reference={REFERENCE!r}"])


@pytest.fixture(scope="module")
def learnability() -> Resolved:
    return arm("learnability")


@given(
    total=st.integers(2, 900),
    once=st.integers(1, 900),
    budget=st.integers(1, 60_000),
    pool=st.one_of(st.none(), st.integers(24, 600)),
    accounting=st.sampled_from(["online", "first_sight", "amortised"]),
)
def test_steps_are_counted_until_the_budget_is_spent(learnability, total, once, budget, pool, accounting):
    """Step after step: the reference's part is charged in the first pass over the pool alone, unless it is online."""
    once = min(once, total - 1) if accounting != "amortised" else 0
    run = replace(learnability.run, budget=budget, reference_accounting=accounting)
    price = StepPrice({"learner_train": total - once, "reference_score": once}, 1, 1.0, once)
    spent = steps = 0
    while spent < budget:
        again = accounting == "first_sight" and pool is not None and steps >= pool // 24
        spent, steps = spent + total - (once if again else 0), steps + 1
    assert steps_bought(replace(learnability, run=run), price, pool) == steps


def test_both_halves_of_a_twin_are_trained_and_forecast():
    twin, single = arm("rho_loss_twin"), arm("rho_loss")
    assert pretraining(twin)["reference"] == pytest.approx(2 * pretraining(single)["reference"], rel=0.02)


# What it takes to pay


@pytest.mark.parametrize(
    ("accounting", "spent"), [("online", 6 * 90), ("first_sight", 6 * 90 - 2 * 40), ("amortised", 6 * 50)]
)
def test_the_factor_to_pay_by_hand(learnability, accounting, spent):
    """Six steps over a pool of four super-batches, 90 FLOPs each and 40 of them the reference's; uniform's has 20."""
    once = 0 if accounting == "amortised" else 40
    price = StepPrice({"learner_train": 50, "reference_score": once}, 20, 1.0, once)
    resolved = replace(learnability, run=replace(learnability.run, reference_accounting=accounting))
    assert factor_to_pay(resolved, price, 96, 6, once=7, pretrained=100) == pytest.approx((spent + 107) / (6 * 20))
    endless = 6 * 50 if accounting == "amortised" else 6 * 90
    assert factor_to_pay(resolved, price, None, 6, once=0, pretrained=0) == pytest.approx(endless / (6 * 20))


TO_PAY = re.compile(
    r"to pay, all in: ([\d,]+) steps must do what uniform does in ([\d,]+), a factor of ([\d.]+)(?:; ([\d.]+))?"
)


@pytest.mark.parametrize(
    ("policy", "more"),
    [
        ("jest", ("run.budget=1.5e9",)),
        ("jest", ("run.budget=None", "budget.steps=5", "run.reference_accounting=online")),
        ("rho_loss_twin", ("run.budget=1.5e9",)),
        ("jest", ("run.budget=1.5e9", "budget.includes=('reference',)", "run.reference_accounting=amortised")),
        ("uniform_curated", ("run.budget=1e9", "budget.adds=('reference',)")),
        ("uniform", ("run.budget=1e9",)),
    ],
)
def test_the_factor_to_pay_is_what_runs_spend(policy, more, tmp_path, capsys, monkeypatch):
    """All-in FLOPs of a step of the arm over those of a uniform step, of runs that were made."""
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    files = ["--gin_file", "gin/run/tiny.gin", "--gin_file", f"gin/policy/{policy}.gin"]
    stands = [] if policy == "uniform" else [f"run.reference={REFERENCE!r}"]
    # Whole super-batches, each pair once: the reference sees the same pairs as new as the forecast does.
    quiet = [
        "synthetic.pool=96",
        "synthetic.duplicates=0.0",
        "wandb.mode=disabled",
        "evaluate.points=1",
        "run.checkpoints=1",
    ]
    command = [*files, *WORLD, *quiet, *stands, *more]
    assert main([*command, "--price"]) == 0
    found = TO_PAY.search(capsys.readouterr().out)
    assert found is not None
    uniform = ["--gin_file", "gin/run/tiny.gin", *WORLD, *quiet, "run.budget=None", "budget.steps=2"]
    assert main([*uniform, "--run_dir", str(tmp_path / "uniform")]) == 0
    assert main([*command, "--run_dir", str(tmp_path / "arm")]) == 0
    arm, plain = summary_of(tmp_path / "arm"), summary_of(tmp_path / "uniform")
    step = plain["flops"]["total"] / plain["steps"]
    spent, pretrained = arm["flops"]["total"], sum(arm["pretrain_flops"].values())
    assert int(found[1].replace(",", "")) == arm["steps"]
    # Halves of a super-batch vary in size; captions that repeat are charged once, and are forecast as new.
    loose = 0.02 if policy == "rho_loss_twin" else 0.03 if more == ("run.budget=1.5e9",) else 0
    assert float(found[3]) == pytest.approx((spent + pretrained) / (arm["steps"] * step), abs=6e-4, rel=loose)
    assert float(found[2].replace(",", "")) == pytest.approx(
        float(found[3]) * arm["steps"], abs=1 + 1e-3 * arm["steps"]
    )
    assert (found[4] is not None) == bool(pretrained)
    if found[4]:
        assert float(found[4]) == pytest.approx(spent / (arm["steps"] * step), abs=6e-4, rel=loose)
