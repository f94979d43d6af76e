"""What a budget buys and what the frozen models cost, before anything is trained."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import small_world, summary_of
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import policies
from jestbench.config import resolve
from jestbench.config.resolved import Resolved
from jestbench.launch import charges
from jestbench.launch.charges import Charges, charges_of
from jestbench.launch.command import main
from jestbench.launch.forecast import RunForecast, factor_to_pay
from jestbench.launch.step_price import StepPrice
from jestbench.select.policy import choose, initial_state
from jestbench.select.scores import Embeddings, Scores

WORLD = small_world(8, 24)
REFERENCE = ("gin/run/tiny_irreducible.gin", *WORLD, "run.split=pool", "run.budget=3e8")


def arm(policy: str) -> Resolved:
    return resolve.resolve(["gin/run/tiny.gin", f"gin/policy/{policy}.gin"], [*WORLD, f"run.reference={REFERENCE!r}"])


@given(
    each=st.integers(1, 900),
    new=st.lists(st.integers(0, 900), max_size=20),
    before=st.integers(0, 12),
    unselected=st.integers(1, 900),
    drawn=st.tuples(st.integers(0, 20), st.integers(0, 900)),
    budget=st.integers(0, 60_000),
)
def test_steps_are_counted_until_the_budget_is_spent(each, new, before, unselected, drawn, budget):
    found, spent, steps = Charges(each, new, before, unselected, drawn), 0, 0
    while spent < budget:
        own = dict(enumerate(new)).get(steps - before, 0)
        spent += (unselected if steps < before else each + own) + (drawn[1] if steps < drawn[0] else 0)
        steps += 1
    assert found.steps(budget) == steps
    assert found.total(steps) == spent


def test_both_halves_of_a_twin_are_trained_and_forecast():
    twin, single = (RunForecast.of(arm(policy)).pretrained["reference"] for policy in ("rho_loss_twin", "rho_loss"))
    assert twin == pytest.approx(2 * single, rel=0.02)


# What it takes to pay


def test_the_factor_to_pay_by_hand():
    """Six steps, 50 FLOPs each and 40 more in four of them; uniform's has 20."""
    price = StepPrice({"learner_train": 50, "reference_score": 40}, 20, 1.0, 40)
    found = Charges(50, [40] * 4)
    assert factor_to_pay(price, found, 6, once=7, pretrained=100) == pytest.approx((6 * 50 + 160 + 107) / (6 * 20))
    assert factor_to_pay(price, found, 3, once=0, pretrained=0) == pytest.approx(3 * 90 / (3 * 20))


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
    quiet = ["wandb.mode=disabled", "evaluate.points=1", "run.checkpoints=1"]
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
    # Halves of a super-batch vary in size, and with them the products of one half's scores.
    loose = 0.02 if policy == "rho_loss_twin" else 0
    assert float(found[3]) == pytest.approx((spent + pretrained) / (arm["steps"] * step), abs=6e-4, rel=loose)
    assert float(found[2].replace(",", "")) == pytest.approx(
        float(found[3]) * arm["steps"], abs=1 + 1e-3 * arm["steps"]
    )
    assert (found[4] is not None) == bool(pretrained)
    if found[4]:
        assert float(found[4]) == pytest.approx(spent / (arm["steps"] * step), abs=6e-4, rel=loose)


FIRST = re.compile(r"first sights in ([\d,]+) steps: ([\d,]+) FLOPs")
MIXED = "run.split={'pool': 0.6, 'curated': 0.4}"


@pytest.mark.parametrize(
    ("policy", "more"),
    [
        ("jest", (MIXED, "budget.steps=9")),
        ("jest", (MIXED, "run.budget=4e9")),
        ("jest", ("run.split={'pool': 1, 'holdout': 1, 'curated': 2}", "budget.steps=7")),
        ("rho_loss_twin", (MIXED, "budget.steps=9")),
        ("jest", ("budget.steps=11",)),
    ],
    ids=str,
)
def test_first_sights_are_forecast_exactly_where_each_split_walks_its_own_epochs(
    policy, more, tmp_path, capsys, monkeypatch
):
    """Tails that a later epoch draws, captions that repeat in both splits, epochs of other lengths."""
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    command = ["--gin_file", "gin/run/tiny.gin", "--gin_file", f"gin/policy/{policy}.gin", *WORLD]
    command += [f"run.reference={REFERENCE!r}", "evaluate.points=1", "run.checkpoints=1", "wandb.mode=disabled"]
    command += ["run.budget=None", *more] if "run.budget" not in str(more) else more
    assert main([*command, "--price"]) == 0
    found = FIRST.search(capsys.readouterr().out)
    assert found is not None
    assert main([*command, "--run_dir", str(tmp_path / "arm")]) == 0
    arm = summary_of(tmp_path / "arm")
    assert int(found[1].replace(",", "")) == arm["steps"]
    assert int(found[2].replace(",", "")) == arm["flops"]["reference_score"]


def test_behind_the_keys_that_are_looked_at_a_pair_is_new_in_its_splits_first_epoch(monkeypatch):
    resolved = resolve.resolve(
        ["gin/run/tiny.gin", "gin/policy/jest.gin"], [*WORLD, MIXED, f"run.reference={REFERENCE!r}"]
    )
    found = RunForecast.of(resolved)
    stages, price = found.stages, found.price
    exact = charges_of(resolved, stages, price, 50)
    monkeypatch.setattr(charges, "STEPS", 0)
    closed = charges_of(resolved, stages, price, 50)
    # Of 24 pairs 14 of the 100 of the pool, in 7 steps; 10 of the 64 of curated, in 6.
    assert list(closed.new) == [price.first_sight] * 6 + [price.first_sight * 14 // 24]
    assert len(exact.new) > 7
    assert sum(exact.new) == pytest.approx(sum(closed.new), rel=0.15)
    monkeypatch.setattr(charges, "STEPS", 4)
    assert charges_of(resolved, stages, price, 50).new == [*exact.new[:4], *closed.new[4:]]


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize(
    ("policy", "parameters"),
    [
        ("jest", {"chunks": 7}),
        ("jest", {"shuffle_reference": True}),
        ("clip_loss", {"batch": 40}),
        ("learnability", {"pair_loss": "in_batch"}),
        ("hard_learner", {"joint": True, "chunks": 4}),
        ("grad_norm", {}),
    ],
)
def test_a_selection_is_charged_alike_whether_its_products_are_computed_or_not(policy, parameters, loss):
    chosen = policies.create(policy, **parameters)
    macs = []
    for imagined in (True, False):
        random = torch.Generator().manual_seed(0)
        images, texts = torch.randn(2, 96, 5, generator=random)
        sides = (Embeddings(images / 9, texts / 9, imagined=imagined) for _ in range(2))
        scores = Scores(*sides, loss=loss)
        with FlopCounterMode(display=False) as counted:
            selection = choose(chosen, scores, 40, random, initial_state(chosen))
        assert (counted.get_total_flops() == 0) == imagined
        assert len(selection.index_K.unique()) == 40
        macs.append(scores.meter.macs)
    assert macs[0] == macs[1] > 0


def test_models_have_no_values_for_a_price():
    resolved = resolve.resolve(
        ["gin/run/tiny.gin", "gin/policy/jest.gin"], ["run.reference=gin/run/reference.gin", *small_world(8, 16)]
    )
    stages = RunForecast.of(resolved).stages
    frozen = [held.model for actor in stages.scorer.actors.values() for held in actor.frozen]
    for model in (stages.learner.model, *frozen):
        assert all(value.is_meta for value in model.parameters())
    assert len(frozen) == 1


@pytest.mark.slow
def test_the_shipped_stage_is_priced_at_its_own_size(capsys, monkeypatch):
    """A teacher of 1.1 G parameters and a super-batch of 65,536 pairs, in seconds and without its weights."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["--gin_file", "gin/run/siglip2_stage.gin", "--price"]) == 0
    said = capsys.readouterr().out
    assert "17,929,951,399,378,944" in said  # the teacher over B pairs
    assert "closed form, towers only: 4.820" in said
