"""What a budget buys and what the frozen models cost, before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import small_world
from hypothesis import given
from hypothesis import strategies as st

from jestbench.config import resolve
from jestbench.config.run import Resolved
from jestbench.launch.forecast import StepPrice, pretraining, steps_bought

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
