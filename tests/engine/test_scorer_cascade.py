"""A cascade by the pretrained pair scorer, and its grades in the shared cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jestbench import seeds
from jestbench.batch import Batch
from jestbench.cost.price import Price
from jestbench.cost.tracing import FLOPS_PER_MAC
from jestbench.data.super_batches import EpochPlan, SuperBatches
from jestbench.data.synthetic import Synthetic
from jestbench.launch.command import main
from jestbench.runs.saved_model import towers_of
from jestbench.select.draws import gumbel_top_k
from jestbench.select.given import pair_keys

POOL, BATCH, CANDIDATES, STEPS, TEMPERATURE = 120, 8, 3, 8, 0.1
SIZES = [
    *(f"run.batch_size={BATCH}", "run.super_batch_size=16", f"synthetic.pool={POOL}", "synthetic.curated=64"),
    *("synthetic.holdout=32", "synthetic.eval=32", "evaluate.points=1", "log.every=1", "log.progress=False"),
    *("run.device=cpu", "run.checkpoints=1", "log.examples=0"),
]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorer") / "run"
    command = ["--gin_file", "gin/run/tiny_cappy.gin", *SIZES, "run.budget=1e9"]
    assert main([*command, "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def train(scorer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any, Any]]:
    drawn: list[list[tuple[int, int]]] = []
    at = SuperBatches.at

    def noted(self: SuperBatches, step: int) -> Batch:
        batch = at(self, step)
        drawn.append(list(zip(batch.image_key_B.tolist(), batch.text_key_B.tolist(), strict=True)))
        return batch

    monkeypatch.setattr(SuperBatches, "at", noted)
    made: list[Path] = []

    def run(policy: str, *more: str) -> tuple[list[dict[str, Any]], dict[str, Any], list[list[tuple[int, int]]]]:
        drawn.clear()
        made.append(tmp_path / f"run{len(made)}")
        limits = ["run.budget=None", f"budget.steps={STEPS}", f"run.scorer={scorer}"]
        files = ["--gin_file", "gin/run/tiny.gin", "--gin_file", f"gin/policy/{policy}.gin"]
        assert main([*files, *SIZES, *limits, *more, "--run_dir", str(made[-1])]) == 0
        rows = (made[-1] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(row) for row in rows], json.loads((made[-1] / "summary.json").read_text()), list(drawn)

    return run


CASCADE = (
    *("run.cascade=@cascade()", "cascade.score=scorer", f"cascade.candidates={CANDIDATES}"),
    f"cascade.temperature={TEMPERATURE}",
)


def candidates_of() -> EpochPlan:
    pairs = Synthetic(pool=POOL, curated=64, holdout=32, eval=32).split("pool")
    return EpochPlan(pairs, CANDIDATES * BATCH, 0)


@pytest.mark.parametrize("accounting", ["online", "first_sight", "amortised"])
def test_grades_draw_what_plain_reading_draws_at_the_closed_form_s_cost(train, scorer, accounting):
    model, candidates = towers_of(scorer, "regression").eval(), candidates_of()
    _, summary, drawn = train("uniform", *CASCADE, f"run.reference_accounting={accounting}")
    for step in range(STEPS):
        batch = candidates.pairs.batch(candidates.positions(step).index_B)
        with torch.no_grad():
            grade_C = model.score(batch).double()
        chosen = batch.take(gumbel_top_k(grade_C / TEMPERATURE, BATCH, seeds.generator(0, "cascade", step)))
        # Equal pairs have equal grades, and either may be drawn: keys are compared, not positions.
        expected = list(zip(chosen.image_key_B.tolist(), chosen.text_key_B.tolist(), strict=True))
        assert sorted(drawn[step]) == sorted(expected)
    index_N = torch.cat([candidates.positions(step).index_B for step in range(STEPS)])
    keys = pair_keys(torch.from_numpy(candidates.pairs.image_key_N)[index_N], candidates.pairs.text_key_N[index_N])
    price = Price.of(model, candidates.pairs.batch(torch.tensor([0])))
    graded = len(index_N) if accounting == "online" else len(keys.unique())
    cost = FLOPS_PER_MAC * graded * (price.pair + model.head_macs())
    charged, apart = summary["flops"]["scorer_score"], summary["flops_amortised"]
    assert (charged, apart) == ((0, cost) if accounting == "amortised" else (cost, 0))
    assert summary["pretrain_flops"]["scorer"] > 0
    assert summary["flops"]["reference_score"] == 0


@pytest.mark.parametrize(("policy", "more"), [("cappy", ()), ("uniform", CASCADE)])
def test_grades_are_shared_between_runs_and_cost_the_same(train, tmp_path, policy, more):
    cache = ("run.cache=@cache()", f"cache.folder={tmp_path / 'shared'}")
    (alone, without, first), (cold, _, second), (warm, held, third) = (
        train(policy, *more),
        train(policy, *more, *cache),
        train(policy, *more, *cache),
    )
    physical = {"time/seconds", "cache/hits", "cache/failures", "data/decoded"}

    def lasting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: value for name, value in row.items() if name not in physical} for row in rows]

    assert lasting(cold) == lasting(warm)
    assert first == second == third
    assert without["flops"] == held["flops"]
    assert [row["flops/total"] for row in alone] == [row["flops/total"] for row in warm]
    assert warm[-1]["cache/hits"] > cold[-1]["cache/hits"]
    assert held["cache"]["cache/failures"] == 0


def test_a_pass_of_its_own_fills_the_grades(train, scorer, tmp_path, capsys):
    cache = ["run.cache=@cache()", f"cache.folder={tmp_path / 'filled'}"]
    files = ["--gin_file", "gin/run/tiny.gin", "--gin_file", "gin/policy/cappy.gin"]
    capsys.readouterr()
    assert main([*files, *SIZES, f"run.scorer={scorer}", *cache, "--fill_cache"]) == 0
    told = json.loads(capsys.readouterr().out)["scorer"]
    assert told["pairs"] == POOL
    assert told["bytes"] > 0
    assert told["flops"] > 0
    rows, _, _ = train("cappy", *cache)
    assert rows[-1]["cache/hits"] == rows[-1]["pairs/seen"]


def test_a_price_is_what_a_first_step_costs(train, scorer, capsys):
    files = ["--gin_file", "gin/run/tiny.gin", "--gin_file", "gin/policy/uniform.gin"]
    words = [*SIZES, f"run.scorer={scorer}", *CASCADE, "run.reference_accounting=online"]
    capsys.readouterr()
    assert main([*files, *words, "run.budget=1e9", "--price"]) == 0
    said = capsys.readouterr().out
    rows, _, _ = train("uniform", *CASCADE, "run.reference_accounting=online")
    assert f"{rows[1]['flops/total']:,}" in said
    assert f"{CANDIDATES * BATCH} candidates a step" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["run.scorer=@online_scorer()"], "pretrained scorer"),
        ([], "run.cascade needs a scorer"),
        (["run.scorer=gin/run/tiny_cappy.gin", "cascade.score=learner"], "cascade.score"),
        (["run.scorer=gin/run/tiny_cappy.gin", "run.augment=@random_resized_crop()"], "run.augment"),
    ],
)
def test_a_cascade_that_cannot_be_is_refused(capsys, more, said):
    files = ["--gin_file", "gin/run/tiny.gin", "--gin_file", "gin/policy/uniform.gin"]
    assert main([*files, *CASCADE, *more, "--check"]) == 2
    assert said in capsys.readouterr().err
