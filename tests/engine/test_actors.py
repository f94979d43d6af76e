"""A kind of model that no file of the package names: one class, as if in jestbench/engine, and one registry line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers import kill_before, outcome, rows_of, small_world, summary_of
from torch import Tensor

from jestbench.batch import Batch, Pass
from jestbench.config import identity, registry, resolve
from jestbench.cost.tracing import FLOPS_PER_MAC
from jestbench.engine.actor import Actor
from jestbench.engine.casting import Casting, Setting
from jestbench.engine.learner import Learner
from jestbench.launch.command import main
from jestbench.select.scores import Embeddings, Scores

BATCH, SUPER_BATCH, WIDTH, COST = 8, 24, 6, 100
WORLD = [*small_world(BATCH, SUPER_BATCH), "evaluate.points=1"]
ARM = ["--gin_file", "gin/run/tiny.gin", *WORLD, "run.policy=jest", "run.reference=@random_embedder()"]


class RandomActor(Actor):
    """A row of random numbers for each key."""

    role = "reference"

    def __init__(self, width: int, seed: int) -> None:
        self.width, self.seed = width, seed

    def _rows(self, key_B: Tensor) -> Tensor:
        rows = [
            torch.randn(self.width, generator=torch.Generator().manual_seed(self.seed ^ key)) for key in key_B.tolist()
        ]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    def score(self, batch: Batch) -> Scores:
        embeddings = Embeddings(self._rows(batch.image_key_B), self._rows(batch.text_key_B), 10.0)
        return Scores(reference=embeddings, model_passes=self.forecast(len(batch)))

    def forecast(self, count: int) -> tuple[Pass, ...]:
        return (Pass("reference_score", count * COST, "a table"),)


@dataclass(frozen=True)
class RandomEmbedder(Casting):
    """A fixed random embedder.

    Attributes:
        width: of the embeddings.
        seed: of the embeddings.
    """

    width: int = WIDTH
    seed: int = 0

    role = "reference"

    def cast(self, setting: Setting, learner: Learner) -> RandomActor:
        return RandomActor(self.width, self.seed)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(registry.CONFIGURABLES, "random_embedder", RandomEmbedder)
    identity.defaults.cache_clear()
    yield
    identity.defaults.cache_clear()  # its defaults are no longer among them


def test_it_scores_and_is_charged_as_a_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*ARM, "run.budget=5e8"]
    assert main([*command, "--price"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    price = {line[0]: int(line[1].replace(",", "")) for line in lines if line[0] in ("reference_score", "total")}
    assert price["reference_score"] == FLOPS_PER_MAC * SUPER_BATCH * COST
    assert main([*command, "--check"]) == 0
    assert main([*command, "--run_dir", str(tmp_path / "run")]) == 0
    rows, summary = rows_of(tmp_path / "run"), summary_of(tmp_path / "run")
    assert rows[1]["flops/total"] == price["total"]
    assert summary["flops"]["reference_score"] == summary["steps"] * price["reference_score"]
    assert summary["pretrain_flops"] == {}


def test_it_goes_on_from_any_step(tmp_path: Path) -> None:
    command = [*ARM, "run.budget=None", "budget.steps=4", "run.checkpoints=4"]
    assert main([*command, "--run_dir", str(tmp_path / "whole")]) == 0
    kill_before(2, [*command, "--run_dir", str(tmp_path / "cut")])
    assert main([*command, "--run_dir", str(tmp_path / "cut"), "--resume"]) == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_its_parameters_are_part_of_the_arm() -> None:
    def digest(*bindings: str) -> str:
        return resolve.resolve([ARM[1]], [*ARM[2:], *bindings]).config_hash

    trained = digest("run.reference=gin/run/tiny_reference.gin")
    assert len({digest(), digest("random_embedder.seed=1"), trained}) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run.scorer=@random_embedder()"], "run.scorer cannot be a model that fills the role 'reference'"),
        (["run.reference=@random_embedder"], "@random_embedder()"),
        (["run.cascade=@cascade()", "cascade.candidates=3"], "run.cascade: the reference scores whole batches"),
        (["random_embedder.widht=3"], "'width'"),
    ],
)
def test_what_it_cannot_do_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARM, *words, "--check"]) == 2
    assert said in capsys.readouterr().err
