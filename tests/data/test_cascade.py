"""Cascades: chosen before anything is decoded, key for key what plain reading would choose, charged in integers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photos import files_of, jpeg
from torch import Tensor

from jestbench import seeds
from jestbench.batch import FULL, Batch, DataError
from jestbench.config import resolve
from jestbench.cost.price import Price
from jestbench.cost.tracing import FLOPS_PER_MAC, TRAINING_PASSES
from jestbench.data.cascade import CandidateScoring, Cascade, CascadePlan
from jestbench.data.file_pairs import FilePairs
from jestbench.data.joined_pairs import JoinedPairs
from jestbench.data.pairs import ArrayPairs, ReadPairs
from jestbench.data.part_pairs import HalfPairs
from jestbench.data.super_batches import EpochPlan, SuperBatches
from jestbench.data.synthetic import Synthetic
from jestbench.engine.cache import Cache
from jestbench.engine.embedding_rows import EmbeddingRows
from jestbench.engine.frozen import FrozenActor
from jestbench.launch.command import main
from jestbench.launch.forecast import RunForecast
from jestbench.model.towers import Model, TwoTowers
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.runs.open_folder import recorded
from jestbench.runs.recorder import Recorder
from jestbench.runs.saved_model import towers_of
from jestbench.select.draws import gumbel_top_k, top_k
from jestbench.select.given import pair_keys
from jestbench.select.losses import LossName
from jestbench.select.scores import Embeddings, Scores

POOL, BATCH, SUPER_BATCH, CANDIDATES, STEPS, WIDTH = 100, 4, 8, 3, 9, 64
ACCOUNTINGS = ("online", "first_sight", "amortised")
SIZES = [
    *(f"run.batch_size={BATCH}", f"run.super_batch_size={SUPER_BATCH}", f"synthetic.pool={POOL}"),
    *("synthetic.curated=64", "synthetic.holdout=32", "synthetic.eval=32", "evaluate.points=1"),
    *("log.every=1", "log.progress=False", "run.device=cpu", "run.checkpoints=1"),
]
SMALL = 'model.image_options={"embed_dim": 32, "depth": 1, "num_heads": 2}'
CPU = Arithmetic(torch.device("cpu"), False)


@pytest.fixture(scope="module")
def world() -> Synthetic:
    return Synthetic(pool=POOL, curated=16, holdout=16, eval=16)


def frozen_of(model: TwoTowers, folder: Path, pairs: ArrayPairs, cache: Cache | None = None) -> FrozenActor:
    bound = None if cache is None else cache.bind(model, FULL, CPU, pairs, 4096)
    rows = EmbeddingRows(model, CPU, pairs.batch(torch.tensor([0])))
    return FrozenActor("reference", rows, "first_sight", folder, 4096, bound)


def plain_choice(
    model: TwoTowers, pairs: ArrayPairs, cascade: Cascade, loss: LossName, step: int
) -> list[tuple[int, int]]:
    """All candidates read and scored as a policy would; the keys of the drawn."""
    candidates = SuperBatches(EpochPlan(pairs, cascade.candidates * SUPER_BATCH, seed=5))
    batch = candidates.at(step)
    with torch.no_grad():
        embeddings = Embeddings(*model(batch), *model.scale_and_bias())
    own_C = Scores(reference=embeddings, loss=loss).pair_loss_B("reference", "own")
    if cascade.deterministic:
        index_B = top_k(-own_C, SUPER_BATCH)
    else:
        index_B = gumbel_top_k(-own_C / cascade.temperature, SUPER_BATCH, seeds.generator(5, "cascade", step))
    return keys_of(batch.take(index_B))


def keys_of(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.image_key_B.tolist(), batch.text_key_B.tolist(), strict=True))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.3, "candidates": 5}, {"deterministic": True}])
def test_a_super_batch_is_key_for_key_what_plain_reading_chooses(world, tmp_path, loss, cached, options):
    # Distinct images: the cosines of two equal pairs would tie, and a tie may fall either way.
    pairs = replace(world, duplicates=0.0).split("pool")
    shape = Model(image_size=16, patch_size=4, image_options={"embed_dim": 32, "depth": 1, "num_heads": 2})
    model = shape.build(pairs.tokenizer, loss, 0).eval()
    cascade = Cascade(**{"candidates": CANDIDATES, **options})
    frozen = frozen_of(model, tmp_path / "run", pairs, Cache(folder=str(tmp_path / "cache")) if cached else None)
    plan = CascadePlan(
        pairs, SUPER_BATCH, 5, cascade, CandidateScoring(partial(frozen.own_loss, loss), frozen.own_loss_passes)
    )
    source = SuperBatches(plan)
    for step in range(2 * plan.candidates.per_epoch):
        found = keys_of(source.at(step))
        assert found == plain_choice(model, pairs, cascade, loss, step)
        assert len(set(found)) == SUPER_BATCH
        batch = pairs.batch(plan.candidates.positions(step).index_B)
        assert set(found) <= set(keys_of(batch)), "no super-batch spans two passes over the candidates"


@pytest.mark.parametrize("kind", ["files", "half", "joined"])
def test_a_step_gathers_the_text_keys_of_its_candidates_alone(kind, tmp_path):
    asked = []

    class Recorded:
        """Keys that note how many of them each look takes."""

        def __init__(self, pairs: FilePairs) -> None:
            self.keys = pairs.text_key_M

        def __getitem__(self, index: Any) -> Any:
            asked.append(np.size(index))
            return self.keys[index]

    pairs = files_of(tmp_path, [jpeg(i) for i in range(40)])
    files = replace(pairs, text_key_M=Recorded(pairs))
    split = {"files": files, "half": HalfPairs(files, 1), "joined": JoinedPairs((files, files), ("a", "b"), (1, 1))}[
        kind
    ]
    scored = []

    def loss(image_key_C: Tensor, text_key_C: Tensor, read: Any, own_P: Tensor) -> Tensor:
        scored.append((image_key_C, text_key_C))
        return torch.zeros(len(own_P), dtype=torch.float64)

    plan = CascadePlan(split, 2, 0, Cascade(candidates=3), CandidateScoring(loss, lambda *keys: ()))
    plan.positions(0, lambda positions: pytest.fail("nothing is read"))
    assert sum(asked) == 6
    batch = pairs.batch(torch.arange(40))
    there = dict(keys_of(batch))
    assert {int(image): int(text) for image, text in zip(*scored[0], strict=True)}.items() <= there.items()
    index_B = torch.arange(0, len(split), 7)
    assert torch.equal(split.text_keys_at(index_B), split.text_key_N[index_B])


@dataclass
class Run:
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    keys: list[list[tuple[int, int]]]
    decoded: int
    folder: Path

    @property
    def macs(self) -> dict[str, int]:
        return {purpose: flops // FLOPS_PER_MAC for purpose, flops in self.summary["flops"].items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "run"
    command = ["--gin_file", "gin/run/tiny_reference.gin", *SIZES, SMALL, "run.budget=3e8"]
    assert main([*command, "--run_dir", str(folder)]) == 0
    return folder


def command(reference: Path, cache: Path, policy: str, *more: str) -> list[str]:
    files = ["--gin_file", "gin/run/tiny.gin", "--gin_file", f"gin/policy/{policy}.gin"]
    limits = ["run.budget=None", f"budget.steps={STEPS}", f"run.reference={reference}", f"cache.folder={cache}"]
    return [*files, *SIZES, *limits, f"cascade.candidates={CANDIDATES}", *more]


@pytest.fixture
def train(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    keys: list[list[tuple[int, int]]] = []
    decoded: list[int] = []
    at, attempt = SuperBatches.at, ArrayPairs.attempt

    reading: list[int] = []  # an example that a price or a report looks at is no part of a super-batch

    def noted(self: SuperBatches, step: int) -> Batch:
        reading.append(step)
        super_batch = at(self, step)
        reading.pop()
        keys.append(keys_of(super_batch))
        return super_batch

    def counted(self: ArrayPairs, index_B: Tensor) -> ReadPairs:
        if self.name == "synthetic/pool" and reading:
            decoded.append(len(index_B))
        return attempt(self, index_B)

    monkeypatch.setattr(SuperBatches, "at", noted)
    monkeypatch.setattr(ArrayPairs, "attempt", counted)
    made: list[Path] = []

    def run(policy: str, *more: str) -> Run:
        keys.clear()
        decoded.clear()
        folder = tmp_path / f"run{len(made)}"
        made.append(folder)
        assert main([*command(reference, tmp_path / "cache", policy, *more), "--run_dir", str(folder)]) == 0
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return Run([json.loads(line) for line in lines], summary, list(keys), sum(decoded), folder)

    return run


def closed_form(reference: Path, accounting: str, size: int, policy_scores: bool) -> tuple[int, int]:
    """Multiply-adds of the towers and of the own logits, from the keys of the candidates alone."""
    pairs = Synthetic(pool=POOL, curated=64, holdout=32, eval=32).split("pool")
    price = Price.of(towers_of(reference), pairs.batch(torch.tensor([0])))
    plan = EpochPlan(pairs, size * CANDIDATES, seed=0)
    index_N = torch.cat([plan.positions(step).index_B for step in range(STEPS)])
    images, texts = torch.from_numpy(pairs.image_key_N)[index_N], pairs.text_key_N[index_N]
    if accounting == "online":
        scored = len(index_N) + (size * STEPS if policy_scores else 0)
        return scored * price.pair, len(index_N) * WIDTH
    towers = len(images.unique()) * price.image + len(texts.unique()) * price.text
    return towers, len(pair_keys(images, texts).unique()) * WIDTH


@pytest.fixture(scope="module")
def filling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("filling")


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
@pytest.mark.parametrize("policy", ["cascade_jest", "cascade_uniform"])
def test_the_cost_is_the_closed_form_in_integers_whatever_lies_on_the_disk(
    train, reference, filling, policy, accounting
):
    """One cache for all of them: cold at first, warm at last."""
    size = SUPER_BATCH if policy == "cascade_jest" else BATCH
    towers, dots = closed_form(reference, accounting, size, policy == "cascade_jest")
    charged = f"run.reference_accounting={accounting}"
    run = train(policy, charged, f"cache.folder={filling}")
    amortised = run.summary["flops_amortised"] // FLOPS_PER_MAC
    if accounting == "amortised":
        assert (run.macs["reference_score"], amortised) == (0, towers + dots)
    else:
        assert (run.macs["reference_score"], amortised) == (towers, 0)
    if policy == "cascade_uniform":
        loss = STEPS * TRAINING_PASSES * BATCH * BATCH * WIDTH
        assert run.macs["pairwise"] == loss + (0 if accounting == "amortised" else dots)
        assert run.macs["learner_score"] == 0
    assert run.summary["pairs_seen"] == STEPS * size


def test_nothing_but_the_chosen_is_decoded_once_the_cache_is_full(train):
    cold = train("cascade_jest")
    warm = train("cascade_jest")
    chosen = STEPS * SUPER_BATCH
    assert warm.decoded == warm.rows[-1]["data/decoded"] == chosen
    assert chosen < cold.decoded == cold.rows[-1]["data/decoded"] <= chosen + POOL
    assert warm.rows[-1]["cache/failures"] == 0
    physical = {"time/seconds", "cache/hits", "data/decoded"}
    lasting = [[{k: v for k, v in row.items() if k not in physical} for row in run.rows] for run in (cold, warm)]
    assert lasting[0] == lasting[1]
    other = train("cascade_jest", "run.seed=1", "run.policy='learnability'", "--allow_unused", "jest.*")
    assert other.decoded == chosen, "what one run has filled serves another seed and another policy"
    assert other.keys != warm.keys


def test_within_a_run_a_candidate_is_decoded_for_its_score_once(train):
    run = train("cascade_jest", "cache.mode=off")
    shared = train("cascade_jest")
    assert (run.keys, run.summary["flops"]) == (shared.keys, shared.summary["flops"])
    per_pass = POOL // (SUPER_BATCH * CANDIDATES)
    assert 2 * per_pass < STEPS
    decoded = [row["data/decoded"] for row in run.rows if row["step"]]
    assert decoded[-1] == run.decoded <= STEPS * SUPER_BATCH + POOL
    assert decoded[0] > SUPER_BATCH * CANDIDATES


def test_policies_that_score_see_the_same_super_batches(train):
    more = ["--allow_unused", "jest.*", "--allow_unused", "run.reference_accounting"]
    runs = [
        train("cascade_jest"),
        train("cascade_jest", "run.policy='hard_learner'", *more),
    ]
    assert runs[0].keys == runs[1].keys
    assert len(runs[0].keys) == STEPS
    assert runs[1].macs["reference_score"] == runs[0].macs["reference_score"], "no pair is charged twice"


@pytest.mark.parametrize(("policy", "mode"), [("cascade_jest", "shared"), ("cascade_uniform", "off")])
def test_a_run_goes_on_from_the_middle_as_if_nothing_had_happened(
    train, reference, tmp_path, monkeypatch, policy, mode
):
    more = [f"cache.mode={mode}", f"cache.folder={tmp_path / 'own'}"]
    whole = train(policy, *more)
    step = Recorder.step

    def stopping(self: Recorder, progress: Any, *rest: Any) -> None:
        self.stop_asked = progress.step == 5
        step(self, progress, *rest)

    cut, again = tmp_path / "cut", [*command(reference, tmp_path / "cache", policy, *more), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "step", stopping)
        assert main([*again, "--run_dir", str(cut)]) == 130
    if mode == "shared":
        for file in (tmp_path / "own").rglob("*.rows"):
            file.unlink()  # exact whatever has become of the cache meanwhile
    assert main([*again, "--run_dir", str(cut)]) == 0
    physical = {"time/seconds"} | ({"cache/hits", "data/decoded"} if mode == "shared" else set())

    def lasting(folder: Path) -> list[dict[str, Any]]:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in physical} for line in lines]

    assert lasting(cut) == lasting(whole.folder)
    last = max((cut / "checkpoints").iterdir()).name
    models = [(folder / "checkpoints" / last / "model.safetensors").read_bytes() for folder in (cut, whole.folder)]
    assert models[0] == models[1]


@pytest.mark.parametrize("policy", ["cascade_jest", "cascade_uniform"])
def test_the_price_of_a_step_is_what_it_is_charged(train, reference, tmp_path, capsys, policy):
    more = ["run.reference_accounting=online", "budget.steps=1"]
    run = train(policy, *more)
    words = command(reference, tmp_path / "cache", policy, *more)
    files = [word for word in words if word.endswith(".gin")]
    price = RunForecast.of(resolve.resolve(files, [word for word in words if "=" in word], recorded=recorded)).price
    charged = {purpose: flops for purpose, flops in run.summary["flops"].items() if purpose not in ("total", "eval")}
    assert {purpose: flops for purpose, flops in price.flops.items() if purpose != "eval"} == charged
    capsys.readouterr()
    for accounting, said in zip(ACCOUNTINGS, ("at every step", "once each", "not charged"), strict=True):
        assert main([*words, f"run.reference_accounting={accounting}", "--price"]) == 0
        size = SUPER_BATCH if policy == "cascade_jest" else BATCH
        table = capsys.readouterr().out
        assert f"cascade: {size * CANDIDATES} candidates a step" in table
        assert said in table


def test_first_sight_and_amortised_prices(reference, tmp_path):
    def price(accounting: str) -> Any:
        words = command(reference, tmp_path, "cascade_jest", f"run.reference_accounting={accounting}")
        resolved = resolve.resolve(
            [w for w in words if w.endswith(".gin")], [w for w in words if "=" in w], recorded=recorded
        )
        return RunForecast.of(resolved).price

    online, first, amortised = (price(accounting) for accounting in ACCOUNTINGS)
    pairs = Synthetic(pool=POOL, curated=64, holdout=32, eval=32).split("pool")
    pair = FLOPS_PER_MAC * Price.of(towers_of(reference), pairs.batch(torch.tensor([0]))).pair
    assert first.cascade_pair == pair + FLOPS_PER_MAC * WIDTH
    assert first.flops["reference_score"] == SUPER_BATCH * CANDIDATES * pair
    assert online.flops["reference_score"] == SUPER_BATCH * (CANDIDATES + 1) * pair
    assert amortised.flops["reference_score"] == amortised.first_sight == 0
    assert first.total - amortised.total == first.first_sight == SUPER_BATCH * CANDIDATES * first.cascade_pair


@pytest.mark.parametrize("policy", ["cascade_jest", "cascade_uniform"])
def test_check_writes_nothing(reference, tmp_path, capsys, policy):
    assert main([*command(reference, tmp_path / "none", policy), "--check", "--verbose"]) == 0
    assert "cascade.candidates = 3" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    for name in ("cascade_jest", "cascade_uniform"):
        assert main(["--gin_file", "gin/run/icons.gin", "--gin_file", f"gin/policy/{name}.gin", "--check"]) == 0


def test_a_pool_too_small_for_the_candidates_is_wrong_data(reference, tmp_path, capsys):
    words = [*command(reference, tmp_path, "cascade_jest"), "cascade.candidates=13", "--run_dir", str(tmp_path / "run")]
    assert main(words) == 3
    said = capsys.readouterr().err
    assert "13 × 8" in said
    assert "cascade.candidates" in said
    with pytest.raises(DataError):
        CascadePlan(Synthetic(pool=39).split("pool"), 8, 0, Cascade(), None)


def test_a_cascade_needs_a_reference_even_where_the_policy_needs_none(capsys):
    words = ["--gin_file", "gin/run/tiny.gin", "run.cascade=@cascade()", "--check"]
    assert main(words) == 2
    assert "run.cascade needs a reference" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "name"),
    [({"candidates": 0}, "candidates"), ({"temperature": 0.0}, "temperature"), ({"score": "x"}, "score")],
)
def test_a_wrong_option_is_named(options, name):
    with pytest.raises(ValueError, match=rf"cascade\.{name}"):
        Cascade(**options)


def test_an_arm_with_a_cascade_is_another_arm():
    def digest(policy: str, *more: str) -> str:
        reference = () if policy == "uniform" else ("run.reference=gin/run/tiny_reference.gin",)
        return resolve.resolve(
            ["gin/run/tiny.gin", f"gin/policy/{policy}.gin"], [*reference, *more], recorded=recorded
        ).config_hash

    hashes = [
        digest("uniform"),
        digest("cascade_uniform"),
        digest("cascade_uniform", "cascade.temperature=2"),
        digest("cascade_uniform", "run.reference_accounting=amortised"),
        digest("jest"),
        digest("cascade_jest"),
    ]
    assert len(set(hashes)) == len(hashes)
    assert digest("cascade_uniform", "run.super_batch_size=96") == hashes[1], "no super-batch is drawn"
    assert digest("cascade_uniform", "cache.mode=off") == hashes[1]
    assert digest("jest", "run.cascade=None") == digest("jest")


def test_low_losses_are_preferred_and_damaged_pairs_never_drawn():
    loss_C = torch.linspace(-3, 3, 40, dtype=torch.float64)
    loss_C[4] = torch.inf
    draws = [Cascade().choose(loss_C, 10, torch.Generator().manual_seed(seed)) for seed in range(200)]
    drawn = torch.stack(draws)
    assert not (drawn == 4).any()
    assert float((drawn < 20).double().mean()) > 0.8
    assert Cascade(deterministic=True).choose(loss_C, 5, torch.Generator()).tolist() == [0, 1, 2, 3, 5]
    hot = torch.stack(
        [Cascade(temperature=100.0).choose(loss_C, 10, torch.Generator().manual_seed(s)) for s in range(200)]
    )
    assert abs(float((hot < 20).double().mean()) - 0.5) < 0.05


@pytest.mark.parametrize("accounting", ["online", "first_sight"])
def test_what_no_model_runs_over_is_not_charged(tmp_path, accounting):
    """Eight of 48 pairs are damaged: found, counted, never drawn; in a run's own rows they are found once."""
    contents = [jpeg(i) if i % 6 else jpeg(i)[:99] + bytes([i]) for i in range(48)]
    pairs = files_of(tmp_path, contents, max_damaged=0.5)
    shape = Model(image_size=16, patch_size=4, image_options={"embed_dim": 32, "depth": 1, "num_heads": 2})
    model = shape.build(pairs.tokenizer, "softmax", 0).eval()
    rows = EmbeddingRows(model, CPU, pairs.batch(torch.tensor([1])))
    frozen = FrozenActor("reference", rows, accounting, tmp_path / "run", 4096)
    scoring = CandidateScoring(partial(frozen.own_loss, "softmax"), frozen.own_loss_passes)
    source, macs = SuperBatches(CascadePlan(pairs, SUPER_BATCH, 5, Cascade(candidates=3), scoring)), Counter[str]()
    for step in range(4):  # two passes over all pairs
        for item in source.at(step).passes:
            macs[item.purpose] += item.macs
    passes = 2 if accounting == "online" else 1
    assert macs == {"reference_score": passes * 40 * rows.price.pair, "pairwise": passes * 40 * model.width}
    counts = source.counts(4)
    assert (counts["data/read"], counts["data/damaged"]) == (passes * 48 + 4 * SUPER_BATCH, passes * 8)
