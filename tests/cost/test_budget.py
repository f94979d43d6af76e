"""The ledger's sums, and when a budget is spent."""

from __future__ import annotations

import pytest

from jestbench.batch import PURPOSES, Pass
from jestbench.cost.budget import Allowance
from jestbench.cost.ledger import Ledger

SPENT = (Pass("learner_train", 5, "a"), Pass("learner_train", 6, "b"), Pass("pairwise", 10**20, "c"))


def charged(*passes: Pass) -> Ledger:
    ledger = Ledger()
    for one in passes:
        ledger.charge([one])
    return ledger


def test_passes_add_up_by_purpose_in_integers() -> None:
    ledger = charged(*SPENT, Pass("eval", 7, "d"))
    assert ledger.macs["learner_train"] == 11
    assert ledger.macs_total == 11 + 10**20, "evaluation stands apart"
    flops = ledger.flops()
    assert (flops["total"], flops["learner_train"], flops["eval"]) == (2 * (11 + 10**20), 22, 14)
    assert sum(flops[purpose] for purpose in PURPOSES if purpose != "eval") == flops["total"]
    assert ledger.row() == {f"flops/{name}": value for name, value in flops.items()}


def test_what_is_read_of_a_ledger_does_not_change_it() -> None:
    ledger = charged(*SPENT)
    ledger.macs["learner_train"] = 0
    assert ledger.macs["learner_train"] == 11


@pytest.mark.parametrize(("macs", "share"), [(0, 0.0), (10, 0.2), (50, 1.0), (60, 1.0)])
def test_a_budget_of_flops_is_spent_where_it_is_reached(macs: int, share: float) -> None:
    spent = Allowance(flops=100, steps=None, pairs=None).share(charged(Pass("pairwise", macs, "")), 0, 0)
    assert spent == share


def test_the_last_flop_before_the_budget_leaves_some_of_it() -> None:
    budget = 2 * 10**18
    allowance = Allowance(flops=budget, steps=None, pairs=None)
    assert (budget - 2) / budget == 1.0, "a quotient of floats cannot tell"
    assert allowance.share(charged(Pass("pairwise", budget // 2 - 1, "")), 0, 0) < 1
    assert allowance.share(charged(Pass("pairwise", budget // 2, "")), 0, 0) == 1


def test_limits_of_steps_and_of_pairs_count_their_own() -> None:
    ledger = charged(*SPENT)
    assert Allowance(flops=None, steps=10, pairs=None).share(ledger, 4, 1000) == 0.4
    assert Allowance(flops=None, steps=None, pairs=1000).share(ledger, 4, 250) == 0.25
