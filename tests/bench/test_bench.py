"""The benchmarks at a miniature size: their tables, the steps and products that they time, the listing's law."""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import math
import re
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2_contingency
from torch.utils.flop_counter import FlopCounterMode

from jestbench import Embeddings, Scores
from jestbench.bench import data, gpu, paper, selection, timing, train
from jestbench.bench.listing import listing_draw
from jestbench.bench.run_bench import main
from jestbench.bench.steps import OPTIMIZER, SHAPES, Contender, make_tokenizer, open_clips, ours, random_batch
from jestbench.model.towers import Model
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.draws import joint_sample
from jestbench.select.losses import LOSSES, LossName

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
    assert "≤ 1.25" in printed


def test_five_kinds_are_offered_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluation"])
    assert ended.value.code == 2
    refusal = capsys.readouterr().err
    for kind in ("selection", "data", "train", "checkpoint", "scale", "gpu"):
        assert kind in refusal
        with pytest.raises(SystemExit) as ended:
            main([kind, "--help"])
        assert ended.value.code == 0
        assert "--json" in capsys.readouterr().out


def test_a_checkpoint_behind_is_copied_written_and_left_to_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "bench.json"
    assert main(["checkpoint", "--millions", "0.01", "--rounds", "2", "--json", str(report)]) == 0
    (found,) = json.loads(report.read_text())["states"].values()
    assert found["bytes"] == 12 * 10_000
    assert all(found[name] > 0 for name in ("waited for", "behind", "copy"))
    assert "seconds, medians" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["data", "train"])
def test_a_missing_peer_is_named_with_its_remedy(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert main([kind, "--json", str(tmp_path / "bench.json")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert "open_clip" in printed.err
    assert "pip install -e '.[bench]'" in printed.err
    assert not (tmp_path / "bench.json").exists()


def test_an_interrupted_measurement_ends_with_130_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "measure", interrupted)
    assert main(["data"]) == 130
    assert capsys.readouterr().err == "interrupted; start the command again\n"


def test_a_ratio_has_its_range() -> None:
    found = timing.ratio_and_range([2.0, 4.0, 3.0], [1.0, 4.0, 2.0])
    assert found == {"value": 1.5, "low": 1.0, "high": 2.0}


def test_versions_are_those_of_what_is_installed() -> None:
    assert timing.versions("torch", "no-such-distribution") == {"torch": version("torch")}


CPU = Arithmetic.of("cpu", "auto")


def moved(contender: Contender) -> set[str]:
    """Names of the parameters that three steps have changed."""
    before = {name: parameter.detach().clone() for name, parameter in contender.model.named_parameters()}
    for _ in range(3):
        contender.step()
    return {name for name, now in contender.model.named_parameters() if not torch.equal(before[name], now)}


@each_loss
def test_our_step_trains_every_parameter(loss: LossName) -> None:
    contender = ours(SHAPES["miniature"], loss, 8, CPU)
    free = {"bias"} if loss == "softmax" else set()
    assert moved(contender) == {name for name, _ in contender.model.named_parameters()} - free


@each_loss
def test_open_clips_step_trains_every_parameter(loss: LossName) -> None:
    pytest.importorskip("open_clip")
    contender = open_clips(SHAPES["miniature"], loss, 8, CPU)
    assert moved(contender) == {name for name, _ in contender.model.named_parameters()}
    assert hasattr(contender.model, "logit_bias")
    assert (contender.model.logit_bias is not None) == (loss == "sigmoid")


@pytest.mark.parametrize("name", SHAPES)
def test_both_steps_do_the_same_work(name: str) -> None:
    pytest.importorskip("open_clip")
    own, other = (make(SHAPES[name], "sigmoid", 2, CPU) for make in (ours, open_clips))
    assert own.macs == other.macs
    assert own.macs["training"] > 2 * own.macs["forward"] > 0
    # Ours projects a text by a Linear without bias, open_clip by a bare matrix: as many numbers in either.
    assert len({sum(p.numel() for p in one.model.parameters()) for one in (own, other)}) == 1


@each_loss
def test_the_peers_loss_and_learning_rate_are_ours(loss: LossName, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    from open_clip.loss import ClipLoss, SigLipLoss

    image_KD, text_KD = (torch.nn.functional.normalize(torch.randn(6, 4), dim=-1) for _ in range(2))
    scale, bias = torch.tensor(7.0), torch.tensor(-2.0)
    theirs = SigLipLoss()(image_KD, text_KD, scale, bias) if loss == "sigmoid" else ClipLoss()(image_KD, text_KD, scale)
    torch.testing.assert_close(LOSSES[loss](image_KD, text_KD, scale, bias), theirs)

    rates: list[set[float]] = []
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: rates.append({group["lr"] for group in self.param_groups})
    )
    for make in (ours, open_clips):
        make(SHAPES["miniature"], loss, 8, CPU).step()
    assert rates == [{OPTIMIZER.rate(0.5)}] * 2


def test_the_batch_is_what_the_shape_says() -> None:
    shape = SHAPES["miniature"]
    tokenizer = make_tokenizer(shape)
    assert tokenizer.vocab_size == shape.vocabulary
    batch = random_batch(shape, tokenizer, 5, CPU.device)
    ids_BL = batch.tokens(tokenizer.identity)
    assert batch.images_BCHW.shape == (5, 3, 16, 16)
    assert batch.images_BCHW.dtype == torch.uint8
    assert ids_BL.shape == (5, shape.tokens)
    assert (ids_BL != 1).all(), "no word is unknown"
    real_B = (ids_BL != tokenizer.pad_id).sum(1)
    assert real_B.min() > shape.tokens // 2


def test_the_tiny_shape_is_that_of_the_gin_file() -> None:
    text = (Path(__file__).resolve().parents[2] / "gin/model/tiny.gin").read_text()
    bound = {name: ast.literal_eval(value) for name, value in re.findall(r"^model\.(\w+) = ([^#\n]+)", text, re.M)}
    assert len(bound) == 8
    assert Model(**bound) == SHAPES["tiny"].model


def test_a_rate_is_that_of_the_steps_run() -> None:
    calls: list[None] = []
    contender = Contender(torch.nn.Identity(), lambda: calls.append(None), {})
    assert train.pairs_per_second(contender, 5, 8, CPU.device) > 0
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("took", "plan", "steps"),
    [
        ([0.3, 0.4, 0.1, 0.2], train.TrainPlan(), 5),
        ([0.3, 1.5], train.TrainPlan(), 1),
        ([0.3, 0.4], train.TrainPlan(steps=3), 3),
        ([0.9, 0.9, 9.0, 0.9], train.TrainPlan(), 1),
    ],
)
def test_steps_of_a_round(
    took: list[float], plan: train.TrainPlan, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(took)
    monkeypatch.setattr(timing, "seconds", lambda step, device: next(times))
    contender = Contender(torch.nn.Identity(), lambda: None, {})
    assert train.steps_of_a_round({"ours": contender, "open_clip": contender}, plan, CPU.device) == steps
    assert next(times, None) is None


@pytest.mark.parametrize("peer", [True, False])
def test_a_miniature_of_the_training_step(
    peer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if peer:
        pytest.importorskip("open_clip")
    else:  # our own step in its place: what is measured and printed needs no peer
        monkeypatch.setattr(timing, "need", lambda *_: None)
        monkeypatch.setattr(train, "open_clips", ours)
    threads = torch.get_num_threads()
    options = "--models miniature --rounds 3 --steps 2 --threads 1 --device cpu --part-steps 2 --rows 3000"
    assert main(["train", *options.split(), "--json", str(tmp_path / "bench.json")]) == 0
    assert torch.get_num_threads() == threads
    report = json.loads((tmp_path / "bench.json").read_text())
    printed = capsys.readouterr().out
    part = report["models"]["miniature"]
    assert part["batch"] == 8
    for loss in ("softmax", "sigmoid"):
        entry = part["losses"][loss]
        assert entry["steps of a round"] == 2
        assert [len(rates) for rates in entry["pairs/s"].values()] == [3, 3]
        ratio = entry["ours over open_clip"]
        assert 0 < ratio["low"] <= ratio["high"]
        assert f"miniature, {loss}" in printed
        assert f"{ratio['value']:.2f}  " in printed
        macs = entry["MACs a pair"]
        assert macs["ours"] == macs["open_clip"]
        assert f"ours {macs['ours']['forward']:,}, {macs['ours']['training']:,}" in printed
    for arm in ("jest", "flexi_jest"):
        took = report["parts"]["steps"][arm]
        named = {"super-batch", "scores of the learner", "scores of the reference", "choice", "update"}
        assert took.keys() == named | {"step"}
        assert all(seconds > 0 for seconds in took.values())
        assert took["update"] < took["step"]
        assert f"a step of {arm}, {took['step']:.0f} ms: " in printed
    assert all(report["parts"]["rows"][name] > 0 for name in ("new", "known", "copy"))
    assert "3,000 rows of width 768" in printed
    assert "3 rounds, fp32 on cpu, 1 threads" in printed
    assert "≥ 1.0" in printed
    assert {"torch", "timm"} <= set(report["machine"]["versions"])
    assert f"timm {report['machine']['versions']['timm']}" in printed


def test_the_papers_scale_in_miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Model(image_size=16, patch_size=8, embed_dim=16, text_width=16, text_layers=1, text_heads=1)
    plan = paper.PaperPlan(
        300, 60, 16, 4, repetitions=1, threads=1, microbatch=2, tokens=4, device="cpu", learner=learner
    )
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


def test_the_options_are_the_fields_of_the_plan() -> None:
    parser = argparse.ArgumentParser()
    selection.SelectionPlan.add_arguments(parser)
    assert selection.SelectionPlan.of(parser.parse_args([])) == selection.SelectionPlan()
    asked = selection.SelectionPlan.of(parser.parse_args(["--pair-macs", "3e9", "--sizes", "16", "32"]))
    assert asked == selection.SelectionPlan(pair_macs=3e9, sizes=(16, 32))
    full = selection.SelectionPlan.of(parser.parse_args(["--full", "--sizes", "16"]))
    assert full.sizes == (1024, 2048, 4096, 8192, 16384, 32768, 65536)


# The acceptance on a GPU, small and without one


def test_the_acceptance_runs_small_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--smoke", "--device", "cpu", "--json", str(tmp_path / "gpu.json")]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert list(report["parts"]) == list(gpu.PARTS)
    assert report["failed"] == []
    assert [name for name, part in report["parts"].items() if "left out" in part] == ["tests"]
    errors = [value for key, value in report["parts"]["exact"].items() if "relative error" in key]
    assert len(errors) == 4
    assert max(errors) < 1e-5
    rates = [value for part in report["parts"].values() for key, value in part.items() if key.endswith("/s")]
    assert len(rates) > 15
    assert min(rates) > 0
    printed = capsys.readouterr()
    assert "acceptance on cpu" in printed.out
    assert "failed: none" in printed.out
    assert printed.err.count("\n[") == len(gpu.PARTS) - 1


def test_parts_that_no_longer_fit_are_left_out_and_each_is_saved(capsys: pytest.CaptureFixture[str]) -> None:
    saved: list[list[str]] = []
    plan = gpu.GpuPlan(seconds=18.0, smoke=True, device="cpu", parts=("exact", "ceilings"))
    report = gpu.measure(plan, lambda found: saved.append(list(found["parts"])))
    assert saved == [["ceilings"], ["ceilings", "exact"]]
    assert report["parts"]["ceilings"]["bf16 TFLOP/s"] > 0
    assert report["parts"]["exact"]["left out"].endswith("the estimate is 20 s")
    assert "exact: left out" in capsys.readouterr().err


def test_a_part_that_fails_stops_no_other_and_sets_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(rig: object) -> gpu.Found:
        raise RuntimeError("oh dear")

    monkeypatch.setattr(gpu, "PARTS", {"first": gpu.GpuPart(broken, 1), "second": gpu.GpuPart(lambda _: {"x": 1.5}, 1)})
    report = gpu.measure(gpu.GpuPlan(device="cpu", parts=("first", "second")), lambda _: None)
    assert report["failed"] == ["first"]
    assert report["parts"]["first"]["failed"] == "RuntimeError: oh dear"
    assert report["parts"]["second"]["x"] == 1.5
    monkeypatch.setattr(gpu, "measure", lambda *_: report)
    assert main(["gpu", "--json", str(tmp_path / "gpu.json")]) == 1
    assert "failed: first" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"] == report["parts"]


def test_slope_of_a_power() -> None:
    assert selection.slope((1, 2, 4, 8), [3 * n**1.7 for n in (1, 2, 4, 8)]) == pytest.approx(1.7)


def test_the_share_of_a_step_is_the_closed_form() -> None:
    plan = selection.SelectionPlan(size=64, count=8, width=4, chunks=2, pair_macs=100.0)
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
