"""An online scorer: what it is charged, what it learns, what survives a kill."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SLOW, final_model, kill_before, rows_of, small_world, start, summary_of, timeless, wait_for

from jestbench.batch import FULL
from jestbench.config import identity, resolve
from jestbench.cost.tracing import FLOPS_PER_MAC, TRAINING_PASSES, forward_macs
from jestbench.engine.learner import Learner
from jestbench.engine.online_scorer import OnlineScorer
from jestbench.launch.command import main
from jestbench.launch.stages import build_stages
from jestbench.launch.stands import stand_ins
from jestbench.loop import Stages

BATCH, SUPER_BATCH = 8, 24
WORLD = small_world(BATCH, SUPER_BATCH)
REFERENCE = ("gin/run/tiny_reference.gin", *WORLD, "run.budget=3e8", "evaluate.points=1")
ARM = ["--gin_file", "gin/run/tiny.gin", "--gin_file", "gin/policy/active_clip.gin", *WORLD]
ARM.append(f"run.reference={REFERENCE!r}")
STEPS = ["run.budget=None", "budget.steps=12", "run.checkpoints=4", "evaluate.points=2"]


def arm(*more: str) -> list[str]:
    return [*ARM, *more]


def online_outcome(run_dir: Path) -> tuple[Any, ...]:
    """All that a run must reproduce: metrics, model and online scorer to the last bit."""
    final = max((run_dir / "checkpoints").glob("step-*"))
    scorer = torch.load(final / "state.pt", weights_only=True)["online"]["model"]
    weights = {name: value.numpy().tobytes() for name, value in scorer.items()}
    return timeless(rows_of(run_dir)), final_model(run_dir), weights


def built(tmp_path: Path, *more: str) -> Stages:
    words = arm(*more)
    resolved = resolve.resolve([words[1], words[3]], words[4:])
    return build_stages(resolved, *stand_ins(resolved), tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("online") / "run"
    assert main([*arm(*STEPS), "--run_dir", str(run_dir)]) == 0
    return run_dir


def test_the_ledger_is_the_closed_form(tmp_path: Path) -> None:
    """Scoring B and training b through the scorer's towers, counted by hand; its K×K logits with the learner's."""
    steps, run_dir = 3, tmp_path / "run"
    more = ["run.budget=None", f"budget.steps={steps}", "run.reference_accounting=online", "evaluate.points=1"]
    assert main([*arm(*more), "--run_dir", str(run_dir)]) == 0
    stage = built(tmp_path / "stages")
    images, tokens = torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.ones(1, 8, dtype=torch.int64)
    models = (stage.learner.model, stage.scorer.actors["online"].model, stage.scorer.actors["reference"].content.model)
    learner, scorer, reference = (forward_macs(m.image, images) + forward_macs(m.text, tokens) for m in models)
    assert scorer < learner
    width = 64
    in_loss = 2 * TRAINING_PASSES * BATCH * BATCH * width
    expected = {
        "learner_train": TRAINING_PASSES * BATCH * learner,
        "learner_score": 0,
        "reference_score": SUPER_BATCH * reference,
        "scorer_score": SUPER_BATCH * scorer,
        "scorer_train": TRAINING_PASSES * BATCH * scorer,
        "pairwise": in_loss + 2 * SUPER_BATCH * width,
        "recompute": 0,
    }
    flops = summary_of(run_dir)["flops"]
    assert {name: flops[name] for name in expected} == {
        name: FLOPS_PER_MAC * steps * macs for name, macs in expected.items()
    }
    assert flops["total"] == FLOPS_PER_MAC * steps * sum(expected.values())


def test_the_price_knows_embeddings_of_different_widths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["run.reference_accounting=online", "scorer/model.embed_dim=48", "evaluate.points=1", "run.budget=1e9"]
    more.append("active_clip.pair_loss=in_batch")
    assert main([*arm(*more), "--price"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    named = ("pairwise", "scorer_train", "total")
    price = {line[0]: int(line[1].replace(",", "")) for line in lines if line[0] in named}
    assert main([*arm(*more), "--run_dir", str(tmp_path / "run")]) == 0
    first, second = rows_of(tmp_path / "run")[1:3]
    assert {name: second[f"flops/{name}"] - first[f"flops/{name}"] for name in price} == price


def test_the_scorer_learns_beside_the_learner(uninterrupted: Path, tmp_path: Path) -> None:
    """Its weights move, at its own rate, under the learner's share of the budget."""
    online = built(tmp_path).scorer.actors["online"]
    trained = torch.load(max((uninterrupted / "checkpoints").glob("step-*")) / "state.pt", weights_only=True)["online"]
    before = online.model.state_dict()
    assert all(not torch.equal(value, before[name]) for name, value in trained["model"].items() if "proj" in name)
    rate = trained["optimizer"]["param_groups"][0]["lr"]
    assert rate == rows_of(uninterrupted)[-1]["train/learning_rate"] > 0


def test_another_rate_for_the_scorer_alone(tmp_path: Path) -> None:
    stage = built(tmp_path, "scorer/optimizer.learning_rate=0.5")
    assert stage.scorer.actors["online"].schedule.learning_rate == 0.5 != stage.learner.schedule.learning_rate


def test_without_a_model_it_is_half_the_learner(tmp_path: Path) -> None:
    words = ["--gin_file", "gin/run/tiny.gin", *WORLD, f"run.reference={REFERENCE!r}"]
    resolved = resolve.resolve([words[1]], [*words[2:], "run.policy=active_clip", "run.scorer=@online_scorer()"])
    stage = build_stages(resolved, *stand_ins(resolved), tmp_path)
    online = stage.scorer.actors["online"]
    assert len(online.model.image.backbone.blocks) == 1 < len(stage.learner.model.image.backbone.blocks)
    assert online.prices[FULL].pair < stage.learner.prices[FULL].pair


def test_a_scorer_of_the_learners_shape_starts_elsewhere(tmp_path: Path) -> None:
    stage = built(tmp_path, 'scorer/model.image_options={"embed_dim": 64, "depth": 2, "num_heads": 2}')
    weights = [model.image.projection.weight for model in (stage.learner.model, stage.scorer.actors["online"].model)]
    assert weights[0].shape == weights[1].shape
    assert not torch.equal(*weights)


def test_it_is_scored_under_the_view_that_it_is_trained_under(tmp_path: Path) -> None:
    more = ["online_scorer.view=@cheap/view()", "cheap/view.resolution=8"]
    online = built(tmp_path, *more).scorer.actors["online"]
    assert online.view.resolution == 8
    assert online.trained_under == {online.view}
    assert online.prices[online.view].pair < online.prices[FULL].pair
    train = sum(item.macs for item in online.forecast_update(BATCH) if item.purpose == "scorer_train")
    assert train == TRAINING_PASSES * online.prices[online.view].pairs(BATCH)


@pytest.mark.parametrize("step", [0, 4])
def test_it_goes_on_from_any_step(uninterrupted: Path, tmp_path: Path, step: int) -> None:
    run_dir = tmp_path / "run"
    command = [*arm(*STEPS), "--run_dir", str(run_dir)]
    kill_before(step, command)
    assert main([*command, "--resume"]) == 0
    assert online_outcome(run_dir) == online_outcome(uninterrupted)


def test_a_killed_process_goes_on_as_if_nothing_had_happened(uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [*arm(*STEPS), "--run_dir", str(run_dir)]
    process = start("-c", SLOW, *command)
    wait_for(process, lambda: any(run_dir.glob("checkpoints/step-*3")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (run_dir / "summary.json").exists()
    assert main([*command, "--resume"]) == 0
    assert online_outcome(run_dir) == online_outcome(uninterrupted)


def test_a_loss_of_the_scorer_that_is_not_finite_names_the_scorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cast = OnlineScorer.cast

    def broken(*args: Any) -> Learner:
        online = cast(*args)
        update = online.update

        def poisoned(*given: Any) -> Any:
            with torch.no_grad():
                online.model.log_scale.fill_(float("nan"))
            return update(*given)

        monkeypatch.setattr(online, "update", poisoned)
        return online

    monkeypatch.setattr(OnlineScorer, "cast", broken)
    assert main([*arm(*STEPS), "--run_dir", str(tmp_path / "run")]) == 4
    assert "step 0: the online scorer: the loss is nan" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["run.scorer=gin/run/tiny.gin"]])
def test_a_policy_that_needs_a_scorer_says_what_to_bind(capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    words = ["--gin_file", "gin/run/tiny.gin", "run.policy=active_clip", f"run.reference={REFERENCE!r}", "--check"]
    assert main([*words, *more]) == 2
    said = capsys.readouterr().err
    assert "run.scorer" in said
    assert "@online_scorer()" in said


@pytest.mark.parametrize(
    ("binding", "word"),
    [
        ("run.scorer=@optimizer()", "run.scorer"),
        ("online_scorer.model=@optimizer()", "online_scorer.model"),
        ("online_scorer.view=@wide/view()", "online_scorer.view"),
    ],
)
def test_a_wrong_scorer_is_a_wrong_configuration(capsys: pytest.CaptureFixture[str], binding: str, word: str) -> None:
    more = ["wide/view.resolution=17"] if "wide" in binding else []
    unused = ["--allow_unused", "*scorer*"]
    assert main([*arm(binding, *more), "--check", *unused]) == 2
    assert word in capsys.readouterr().err


def test_an_arm_without_a_scorer_keeps_its_hash() -> None:
    """A parameter that came later changes no arm that does not use it."""
    flat = {"run.batch_size": 8}
    assert identity.arm_hash(flat, frozenset(), {}) == identity.arm_hash(flat | {"run.twin": False}, frozenset(), {})
    needs = frozenset({"scorer"})
    assert identity.arm_hash(flat, needs, {}) != identity.arm_hash(
        flat | {"online_scorer.model": "@m/model()"}, needs, {}
    )
