"""The benchmark at a miniature size, and the listing that it times: the same law as the package's draw."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2_contingency
from torch.utils.flop_counter import FlopCounterMode

from jestbench import Embeddings, Scores
from jestbench.bench import paper, selection
from jestbench.bench.command import main
from jestbench.bench.listing import listing_draw
from jestbench.model.towers import Model
from jestbench.sampling import joint_sample

MINIATURE = (
    "--size 600 --count 40 --width 8 --chunks 4 --repetitions 2 --listings 1 --threads 1 --processes 1 --sizes 16 32 64"
)


each_loss = pytest.mark.parametrize("loss", ["sigmoid", "softmax"])


def test_a_miniature_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert main(["selection", *MINIATURE.split(), "--json", str(tmp_path / "bench.json")]) == 0
    assert torch.get_num_threads() == threads
    report = json.loads((tmp_path / "bench.json").read_text())
    printed = capsys.readouterr().out
    for loss in ("sigmoid", "softmax"):
        for name in ("speed-up over the listing", "over the products"):
            assert report["losses"][loss][name]["value"] > 0
            assert f"{name} ({loss})" in printed
        assert [len(times) for times in report["losses"][loss]["seconds"].values()] == [2, 2, 2, 1]
    assert all(math.isfinite(entry["value"]) for entry in report["slopes"].values())
    assert {"processor", "date", "torch", "load before"} <= set(report["machine"])
    assert "≥ 15" in printed
    assert "≤ 1.4" in printed


def test_only_what_exists_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train"])
    assert "selection" in capsys.readouterr().err


def test_the_papers_scale_in_miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Model(image_size=16, patch_size=8, embed_dim=16, text_width=16, text_layers=1, text_heads=1)
    plan = paper.Plan(300, 60, 16, 4, repetitions=1, threads=1, microbatch=2, tokens=4, device="cpu", learner=learner)
    monkeypatch.setattr(selection, "peak_bytes", lambda shape, *_: shape.size * shape.count)
    report = json.loads(json.dumps(paper.measure(plan)))
    passes = report["seconds of a pair"]
    step = 60 * passes["train"] + 600 * passes["forward"]
    assert report["share of a step"] == pytest.approx(report["seconds"][0] / (report["seconds"][0] + step))
    assert report["peak bytes"] == 300 * 60
    assert report["fused"] is False
    printed = paper.table(report)
    assert "B=300 b=60 D=16 N=4" in printed
    assert "plain torch" in printed
    assert "0.00 GiB" in printed


def test_slope_of_a_power() -> None:
    assert selection.slope((1, 2, 4, 8), [3 * n**1.7 for n in (1, 2, 4, 8)]) == pytest.approx(1.7)


def test_the_share_of_a_step_is_the_closed_form() -> None:
    plan = selection.Plan(size=64, count=8, width=4, chunks=2, pair_macs=100.0)
    macs = 2 * 64 * 4 + 2 * 2 * 64 * 4 * 4
    assert selection.share_of_step(plan) == pytest.approx(macs / (macs + 100 * (3 * 8 + 2 * 64)))


@pytest.mark.parametrize("blocks", [False, True])
def test_the_products_are_those_of_the_strips(blocks: bool) -> None:
    fresh = selection.random_scores(1024, 4, "sigmoid")
    with FlopCounterMode(display=False) as counted:
        selection.products(fresh(), 40, 4, blocks)()
    scores = fresh()
    joint_sample(scores, 40, 4)
    assert counted.get_total_flops() == 2 * (scores.meter.macs - 2 * 1024 * 4)


@each_loss
def test_listing_and_draw_select_by_the_same_law(loss: str) -> None:
    generator = torch.Generator().manual_seed(3)
    left, right = ([torch.randn(5, 4, generator=generator) / 2 for _ in range(2)] for _ in range(2))
    scores = Scores(Embeddings(*left, 2.0, -1.0), Embeddings(*right, 1.5, -0.5), loss=loss)
    draws = 800
    ours = Counter(tuple(joint_sample(scores, 3, 3, 1.0, generator).tolist()) for _ in range(draws))
    listed = Counter(tuple(listing_draw(scores, 3, 3, generator).tolist()) for _ in range(draws))
    orders = [o for o in itertools.permutations(range(5), 3) if ours[o] + listed[o] >= 10]
    rest = [draws - sum(counter[o] for o in orders) for counter in (ours, listed)]
    rows = [[counter[o] for o in orders] + [rest[k]] * (min(rest) > 0) for k, counter in enumerate((ours, listed))]
    assert len(orders) > 15
    assert chi2_contingency(rows).pvalue > 1e-3
