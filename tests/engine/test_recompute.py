"""What saving memory costs and leaves alone: activation checkpointing and cached gradients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import kill_before, rows_of, summary_of, timeless
from pretended_device import CUDA, Pretended
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jestbench.batch import FULL, FULL_MIX, Batch, Mix, View, mix_of
from jestbench.config import grammar, resolve
from jestbench.cost.price import Price
from jestbench.cost.tracing import FLOPS_PER_MAC, TRAINING_PASSES
from jestbench.engine import fit_memory
from jestbench.engine.contrastive import Contrastive
from jestbench.engine.fit_memory import MicroBatches
from jestbench.engine.learner import Learner, NonFiniteLoss
from jestbench.engine.optimizer import Optimizer
from jestbench.launch import command
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.model.towers import Model, TwoTowers
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.parallel.distributed import World
from jestbench.select.losses import LossName

SIZE, WIDTH, DEPTH, OUT, LENGTH = 16, 32, 2, 24, 6
COARSE = View(patch_size=8, resolution=32)  # as many patches: timm interpolates positions in fp32, whatever the model
MIXES: dict[str, Mix] = {
    "full": FULL_MIX,
    "flexi": mix_of([(0.5, FULL), (0.5, COARSE)]),
    "interpolated": mix_of([(0.5, FULL), (0.5, View(patch_size=8))]),
    "cheap": mix_of([(0.6, FULL), (0.4, View(keep=0.5, layers=0.5, text_layers=0.5, text_length=4))]),
}
PLAIN: dict[str, Any] = {}
DROPPING: dict[str, Any] = {"drop_path_rate": 0.5, "proj_drop_rate": 0.2}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_bpe(["a red circle", "two blue squares", "the green star"] * 3, 300).to_str(), LENGTH)


def towers(tokenizer: Tokenizer, loss: LossName = "sigmoid", **options: Any) -> TwoTowers:
    shape = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2} | options
    model = Model(
        image_size=SIZE,
        patch_size=4,
        image_options=shape,
        embed_dim=OUT,
        text_width=WIDTH,
        text_layers=2,
        text_heads=2,
    )
    return model.build(tokenizer, loss, 0)


def batch_of(tokenizer: Tokenizer, count: int) -> Batch:
    random = torch.Generator().manual_seed(1)
    captions = ["a red star", "two green circles", "the blue square", "a a a"] * count
    return Batch(
        images_BCHW=torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=random),
        token_ids={tokenizer.identity: tokenizer.encode(captions[:count])},
        image_key_B=torch.randint(-(2**62), 2**62, (count,), generator=random),
        text_key_B=torch.arange(count),
    )


RERUNS: dict[tuple[str, View], Price] = {}


def rerun_price(model: TwoTowers, batch: Batch, view: View) -> Price:
    """Measured once for each shape of the tests."""
    key = (str(model), view)
    if key not in RERUNS:
        RERUNS[key] = Price.of_rerun(model, batch, view)
    return RERUNS[key]


def learner_of(
    model: TwoTowers,
    batch: Batch,
    mix: Mix = FULL_MIX,
    loss: LossName = "sigmoid",
    checkpointing: bool = False,
    microbatch: int | None = None,
) -> Learner:
    """A learner priced as a run prices it; no clipping, so that gradients can be compared."""
    views = {FULL, *(view for _, view in mix)}
    prices = {view: Price.of(model, batch, view) for view in views}
    reruns = {view: rerun_price(model, batch, view) for view in views} if checkpointing else None
    arithmetic = Arithmetic(torch.device("cpu"), bf16=False)
    return Learner(model, Contrastive(loss, mix, reruns, microbatch), Optimizer(clip=0.0), arithmetic, prices)


@dataclass(frozen=True)
class Updated:
    loss: float
    gradients: dict[str, Tensor]


def updated(learner: Learner, batch: Batch, weight_K: Tensor | None = None, seed: int = 5) -> Updated:
    loss = learner.update(batch, weight_K, 0.5, seed).loss
    named = learner.model.named_parameters()
    return Updated(loss, {name: value.grad for name, value in named if value.grad is not None})


def assert_same(one: Updated, other: Updated, tolerance: float) -> None:
    assert one.loss == pytest.approx(other.loss, rel=max(tolerance, 1e-12))
    assert one.gradients.keys() == other.gradients.keys()
    for name, gradient in one.gradients.items():
        scale = other.gradients[name].abs().max().clamp(min=1.0)
        assert (gradient - other.gradients[name]).abs().max() <= tolerance * scale, name


def charged(passes: Sequence[Any], purpose: str) -> int:
    return sum(item.macs for item in passes if item.purpose == purpose)


# Values and gradients


@pytest.mark.parametrize(
    ("mix", "options"),
    [(MIXES["full"], PLAIN), (MIXES["full"], DROPPING), (MIXES["interpolated"], PLAIN), (MIXES["cheap"], DROPPING)],
    ids=["full", "full-drop_path", "interpolated", "cheap-drop_path"],
)
def test_checkpointing_changes_no_gradient(tokenizer: Tokenizer, mix: Mix, options: dict[str, Any]) -> None:
    batch = batch_of(tokenizer, 7)
    plain, saving = (
        updated(learner_of(towers(tokenizer, **options), batch, mix, checkpointing=on), batch) for on in (False, True)
    )
    assert_same(saving, plain, 0.0)
    assert plain.gradients["log_scale"].abs() > 0


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("mix", [MIXES["full"], MIXES["flexi"], MIXES["cheap"]], ids=["full", "flexi", "cheap"])
@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_cached_gradients_are_those_of_one_pass(
    tokenizer: Tokenizer, loss: LossName, mix: Mix, weighted: bool, checkpointing: bool
) -> None:
    batch = batch_of(tokenizer, 11)
    weight_K = torch.linspace(0.2, 3.0, 11, dtype=torch.float64) if weighted else None
    one = learner_of(towers(tokenizer, loss).double(), batch, mix, loss)
    cached = learner_of(towers(tokenizer, loss).double(), batch, mix, loss, checkpointing, microbatch=3)
    expected = updated(one, batch, weight_K)
    assert_same(updated(cached, batch, weight_K), expected, 1e-10)
    assert expected.gradients["log_scale"].abs() > 0
    assert ("bias" in expected.gradients) == (loss == "sigmoid")
    for name, value in one.model.state_dict().items():
        assert torch.allclose(value, cached.model.state_dict()[name], atol=1e-6), "the step is the same too"


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_both_passes_of_a_micro_batch_drop_the_same(tokenizer: Tokenizer, checkpointing: bool) -> None:
    """The gradient is that of the loss which the first pass found: by central differences, along the gradient."""
    batch, seed = batch_of(tokenizer, 9), 4
    model = towers(tokenizer, **DROPPING).double()
    learner = learner_of(model, batch, MIXES["cheap"], checkpointing=checkpointing, microbatch=4)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    found = updated(learner, batch, seed=seed)

    def loss_at(step: float) -> float:
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(before[name] + step * found.gradients[name])
        return learner.update(batch, None, 0.5, seed).loss

    slope = (loss_at(1e-7) - loss_at(-1e-7)) / 2e-7
    square = sum(float((gradient**2).sum()) for gradient in found.gradients.values())
    found_again = loss_at(0.0)
    assert found_again == found.loss
    assert slope == pytest.approx(square, rel=1e-5)
    other = learner.update(batch, None, 0.5, seed + 1).loss
    assert other != found_again, "the test drops something"


def test_a_batch_that_fits_is_run_once(tokenizer: Tokenizer) -> None:
    batch = batch_of(tokenizer, 6)
    plain = learner_of(towers(tokenizer, **DROPPING), batch, MIXES["flexi"])
    wide = learner_of(towers(tokenizer, **DROPPING), batch, MIXES["flexi"], microbatch=6)
    assert wide.forecast_update(6) == plain.forecast_update(6)
    assert_same(updated(wide, batch), updated(plain, batch), 0.0)


def test_a_loss_that_is_not_finite_changes_nothing(tokenizer: Tokenizer) -> None:
    batch = batch_of(tokenizer, 6)
    learner = learner_of(towers(tokenizer), batch, microbatch=2, checkpointing=True)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    with pytest.raises(NonFiniteLoss, match="the loss is nan"):
        learner.update(batch, torch.full((6,), torch.nan), 0.5, 0)
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert all(value.grad is None for value in learner.model.parameters())


def test_checkpointing_is_off_outside_of_training(tokenizer: Tokenizer) -> None:
    batch = batch_of(tokenizer, 4)
    learner = learner_of(towers(tokenizer), batch, checkpointing=True)
    learner.update(batch, None, 0.5, 0)
    assert not learner.model.text.grad_checkpointing
    assert not learner.model.image.backbone.grad_checkpointing


# What is charged


def counted(learner: Learner, batch: Batch) -> int:
    """Multiply-adds of a whole update that torch's counter sees, under unfused attention."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        learner.update(batch, None, 0.5, 0)
    return counter.get_total_flops() // FLOPS_PER_MAC


@pytest.mark.parametrize(
    ("mix", "options"),
    [
        *((mix, PLAIN) for mix in MIXES.values()),
        (MIXES["cheap"], DROPPING),
        (MIXES["flexi"], {"init_values": 0.1}),
        (MIXES["full"], {"class_token": False, "global_pool": "map"}),
    ],
    ids=[*MIXES, "drop_path", "layer_scale", "map_pool"],
)
def test_checkpointing_is_charged_what_torch_counts(tokenizer: Tokenizer, mix: Mix, options: dict[str, Any]) -> None:
    batch = batch_of(tokenizer, 7)
    plain = learner_of(towers(tokenizer, **options), batch, mix)
    saving = learner_of(towers(tokenizer, **options), batch, mix, checkpointing=True)
    extra = counted(saving, batch) - counted(plain, batch)
    assert charged(saving.forecast_update(7), "recompute") == extra > 0
    assert charged(saving.forecast_update(7), "learner_train") == charged(plain.forecast_update(7), "learner_train")


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_cached_gradients_are_charged_a_forward_pass(tokenizer: Tokenizer, mix: Mix, checkpointing: bool) -> None:
    """What torch counts, but for the patch embedding's resizing, whose training is charged by the 3x convention."""
    batch = batch_of(tokenizer, 11)
    plain = learner_of(towers(tokenizer), batch, mix)
    cached = learner_of(towers(tokenizer), batch, mix, checkpointing=checkpointing, microbatch=3)
    pieces = cached.objective.pieces(torch.zeros(11, dtype=torch.int64), cached.world)
    assert max(len(index) for _, index in pieces) == 3
    assert torch.cat([index for _, index in pieces]).tolist() == list(range(11))
    extra = counted(cached, batch) - counted(plain, batch)
    fixed = [cached.prices[view].fixed for view, _ in pieces if view.patch_size is not None]
    repeated = sum(fixed[1:])
    convention = repeated * (TRAINING_PASSES - 2)  # the matrix needs no gradient: forward and one product back
    assert charged(cached.forecast_update(11), "recompute") == extra + convention
    forward = sum(cached.prices[view].pairs(len(index)) for view, index in pieces)
    reruns = cached.objective.reruns or {}
    rerun = sum(reruns[view].pairs(len(index)) for view, index in pieces) if checkpointing else 0
    assert charged(cached.forecast_update(11), "recompute") == forward + rerun + TRAINING_PASSES * repeated


def test_a_checkpointed_block_costs_its_closed_form(tokenizer: Tokenizer) -> None:
    """All of a block but its last layer: torch has what it needs once that layer's input is there again."""
    rerun = Price.of_rerun(towers(tokenizer), batch_of(tokenizer, 1))
    tokens = (SIZE // 4) ** 2 + 1
    image = DEPTH * (8 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH)
    text = 2 * (8 * LENGTH * WIDTH**2 + 2 * LENGTH**2 * WIDTH)
    assert rerun == Price(image, text)


def test_counting_leaves_the_model_alone(tokenizer: Tokenizer) -> None:
    model, batch = towers(tokenizer, **DROPPING).eval(), batch_of(tokenizer, 2)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    Price.of_rerun(model, batch, COARSE)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None and value.device.type == "cpu" for value in model.parameters())


# Other image towers


def tower_of(tokenizer: Tokenizer, name: str) -> TwoTowers:
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    shape = {"embed_dim": 24, "text_width": 32, "text_layers": 1, "text_heads": 2}
    return Model(name, image_size=SIZE, patch_size=4, image_options=options, **shape).build(tokenizer, "sigmoid", 0)


@pytest.mark.parametrize(
    "name", ["naflexvit_base_patch16_siglip", "eva02_tiny_patch14_224", "beit_base_patch16_224", "flexivit_small"]
)
def test_other_towers_train_and_pay_for_what_is_run_again(tokenizer: Tokenizer, name: str) -> None:
    batch = batch_of(tokenizer, 3)
    plain = learner_of(tower_of(tokenizer, name), batch)
    saving = learner_of(tower_of(tokenizer, name), batch, checkpointing=True)
    extra = counted(saving, batch) - counted(plain, batch)
    assert charged(saving.forecast_update(3), "recompute") == extra > 0


def test_towers_that_are_no_plain_vision_transformer_have_no_views(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("naflexvit_base_patch16_gap", "eva02_tiny_patch14_224"):
        assert command.main([*TINY, f"model.image_tower={name}", "--check"]) == 2
        assert "is no plain vision transformer" in capsys.readouterr().err
    assert command.main([*TINY, "model.image_tower=resnet18", "--check"]) == 2
    assert "model.image_tower = 'resnet18'" in capsys.readouterr().err


# Whole runs

WORLD = ["synthetic.pool=100", "synthetic.curated=64", "synthetic.holdout=64", "synthetic.eval=32"]
SMALL = ["run.batch_size=8", "run.super_batch_size=24", *WORLD, "run.budget=None", "budget.steps=3"]
QUIET = ["log.every=1", "log.progress=False", "wandb.mode=disabled", "run.device=cpu", "evaluate.points=1"]
FLEXI = ["--gin_file", str(grammar.PROJECT / "gin/policy/uniform_flexi.gin")]
TINY = ["--gin_file", str(grammar.PROJECT / "gin/run/tiny.gin"), *FLEXI, *SMALL, *QUIET]


def test_a_run_pays_what_price_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saving = ["run.train_microbatch=3", "run.grad_checkpointing=True"]
    assert command.main([*TINY, *saving, "--price"]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    price = {name: int(lines[name][1].replace(",", "")) for name in ("learner_train", "pairwise", "recompute", "total")}
    flops, rows = {}, {}
    for name, bindings in {"plain": [], "saving": saving}.items():
        assert command.main([*TINY, *bindings, "--run_dir", str(tmp_path / name)]) == 0
        flops[name] = json.loads((tmp_path / name / "summary.json").read_text())["flops"]
        lines_of = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows[name] = [json.loads(line).get("train/loss") for line in lines_of]
    assert {name: flops["saving"][name] for name in price} == {name: 3 * one for name, one in price.items()}
    assert flops["plain"]["recompute"] == 0 < flops["saving"]["recompute"]
    assert flops["plain"]["learner_train"] == flops["saving"]["learner_train"]
    assert rows["saving"] == pytest.approx(rows["plain"], abs=1e-4)


def test_auto_runs_what_was_found_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = ["run.microbatch='auto'", "run.train_microbatch='auto'", "budget.steps=4", "run.checkpoints=2"]
    found = MicroBatches(5, 3)
    monkeypatch.setattr(fit_memory, "measured", lambda *_: found)
    number = ["run.microbatch=5", "run.train_microbatch=3", *auto[2:]]
    rows = {}
    for name, bindings in {"auto": auto, "number": number}.items():
        assert command.main([*TINY, *bindings, "--run_dir", str(tmp_path / name)]) == 0
        rows[name] = timeless(rows_of(tmp_path / name))
    assert rows["auto"] == rows["number"]
    assert rows["auto"][-1]["flops/recompute"] > 0
    assert summary_of(tmp_path / "auto")["data"]["microbatches"] == {"score": 5, "train": 3}
    kill_before(3, [*TINY, *auto, "--run_dir", str(tmp_path / "killed")])
    found = MicroBatches(8, None)  # another GPU: the run goes on as it began
    assert command.main([*TINY, *auto, "--run_dir", str(tmp_path / "killed"), "--resume"]) == 0
    assert timeless(rows_of(tmp_path / "killed")) == rows["auto"]


def test_auto_takes_the_largest_power_of_two_that_fits(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(passes: partial[None], device: torch.device) -> float:
        *_, train, batch = passes.args
        if len(batch) > 1000:
            raise torch.OutOfMemoryError
        return len(batch) * (5e6 if train else 1e6)

    def found(room: float, count: int = 64, processes: int = 1, shard: bool = False) -> tuple[int, int | None]:
        resolved = resolve.resolve(["gin/run/tiny.gin"], [f"run.batch_size={count}", f"run.shard={shard}"])
        parameters = resolved.run.training.build(resolved.run, tokenizer).parameters()
        copies = fit_memory.COPIES / processes + 1 if shard else fit_memory.COPIES
        state = copies * sum(parameter.nbytes for parameter in parameters)
        monkeypatch.setattr(fit_memory, "free_bytes", lambda _: (room + state) / fit_memory.FOR_ACTIVATIONS)
        with Pretended():
            arithmetic = Arithmetic(CUDA, bf16=False, world=World(0, processes))
            micro = fit_memory.measured(resolved.run, tokenizer, batch_of(tokenizer, 1), arithmetic)
        return micro.score, micro.train

    monkeypatch.setattr(fit_memory, "peak_bytes", peak)
    assert found(64 * 5e6 + 1) == (256, None)
    assert found(63 * 5e6) == (256, 32)
    assert found(60 * 5e6 + 1, 60) == (256, None)
    assert found(5e6 + 1) == (4, 1)
    assert found(1e12) == (512, None)
    assert found(16 * 5e6 + 1, 67, processes=4) == (64, 64), "16 of 17 on each"
    assert found(17 * 5e6 + 1, 67, processes=4) == (64, None)
    assert found(4 * 5e6 + 1, 67, processes=4, shard=True) == (16, 16)
    with pytest.raises(ValueError, match="no memory for a single pair"):
        found(4e6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_auto_fits_on_a_gpu(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ["run.batch_size=4096", "run.super_batch_size=4096", "model.image_size=64"]
    resolved, arithmetic = resolve.resolve(["gin/run/tiny.gin"], sizes), Arithmetic.of("cuda", "auto")
    monkeypatch.setattr(fit_memory, "free_bytes", lambda _: 300 << 20)
    micro = fit_memory.measured(resolved.run, tokenizer, batch_of(tokenizer, 1), arithmetic)
    assert micro.train is not None
    assert 8 <= micro.train < micro.score
    model = resolved.run.training.build(resolved.run, tokenizer).to(arithmetic.device)
    room = fit_memory.FOR_ACTIVATIONS * (300 << 20)
    for train, pairs in ((False, micro.score), (True, micro.train)):
        batch = batch_of(tokenizer, pairs)
        passes = partial(fit_memory._passes, resolved.run, model, arithmetic, FULL, train, batch)
        passes()
        assert room / 3 < fit_memory.peak_bytes(passes, arithmetic.device) < 1.1 * room


def test_saving_memory_is_part_of_the_arm_where_it_costs() -> None:
    def digest(*bindings: str) -> str:
        return resolve.resolve(["gin/run/tiny.gin"], bindings).config_hash

    assert digest("run.grad_checkpointing=True") != digest()
    assert digest("run.train_microbatch=31") != digest()
    assert digest("run.train_microbatch='auto'") != digest()
    assert digest("run.train_microbatch=32") == digest("run.train_microbatch=None") == digest()


def test_a_micro_batch_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*TINY, "run.train_microbatch=0", "--check"]) == 2
    assert "run.train_microbatch must be at least 1" in capsys.readouterr().err
