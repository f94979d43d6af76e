"""Views: what they compute, what they cost, what they refuse, and whole runs under them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import summary_of
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_patch_embed
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jestbench.batch import FULL, Batch, View, mix_of, split_counts
from jestbench.config import grammar, resolve
from jestbench.cost.price import Price
from jestbench.cost.tracing import FLOPS_PER_MAC, TRAINING_PASSES
from jestbench.engine.contrastive import Contrastive
from jestbench.engine.embedding_rows import EmbeddingRows
from jestbench.engine.fit_memory import MicroBatches
from jestbench.engine.frozen import FrozenActor
from jestbench.engine.learner import Learner
from jestbench.engine.optimizer import Optimizer
from jestbench.engine.scorer import Scorer
from jestbench.launch import command
from jestbench.launch.forecast import RunForecast
from jestbench.model.image_tower import ImageTower
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.model.towers import Model, TwoTowers
from jestbench.model.views import check, cut_text, kept_patches, layers_run, patches_kept, resize_matrix
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.losses import LOSSES

CAPTIONS = ["a red cat", "a blue dog on a hill", "red", "two green fish and a red cat by the sea"]
LENGTH, WIDTH, DEPTH, TEXT_WIDTH, TEXT_DEPTH, OUT = 8, 16, 3, 12, 2, 10
SIZE, PATCH = 32, 8
VIEWS = [
    FULL,
    View(patch_size=16),
    View(patch_size=4),
    View(patch_size=12, resolution=36),
    View(resolution=16),
    View(keep=0.5),
    View(keep=0.01),
    View(layers=0.5),
    View(text_layers=0.5, text_length=3),
    View(patch_size=4, resolution=24, keep=0.3, layers=0.1, text_layers=0.1, text_length=2),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_bpe(CAPTIONS * 3, 300).to_str(), LENGTH)


def towers(tokenizer: Tokenizer, seed: int = 0, **options: Any) -> TwoTowers:
    image = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2} | options.pop("image_options", {})
    shape = {
        "image_size": SIZE,
        "patch_size": PATCH,
        "embed_dim": OUT,
        "text_width": TEXT_WIDTH,
        "text_layers": TEXT_DEPTH,
        "text_heads": 2,
        "image_options": image,
    }
    return Model(**shape | options).build(tokenizer, "sigmoid", seed)


def batch_of(tokenizer: Tokenizer, count: int = 4) -> Batch:
    captions = (CAPTIONS * count)[:count]
    random = torch.Generator().manual_seed(1)
    return Batch(
        images_BCHW=torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=random),
        token_ids={tokenizer.identity: tokenizer.encode(captions)},
        image_key_B=torch.randint(-(2**62), 2**62, (count,), generator=random),
        text_key_B=torch.arange(count),
    )


# What a view computes


def test_a_coarse_patch_embeds_constant_patches_as_the_fine_one(tokenizer: Tokenizer) -> None:
    tower = towers(tokenizer, image_size=64, patch_size=16).image
    torch.nn.init.normal_(tower.backbone.patch_embed.proj.bias)
    block = torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    pixels = block.repeat_interleave(32, 2).repeat_interleave(32, 3)
    fine = tower.embed_patches(pixels, FULL).unflatten(1, (4, 4))
    coarse = tower.embed_patches(pixels, View(patch_size=32)).unflatten(1, (2, 2))
    assert coarse.shape == (3, 2, 2, WIDTH)
    spread = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.allclose(spread, fine, atol=1e-5, rtol=0)


@pytest.mark.parametrize("patch", [4, 12, 16])
def test_the_kernel_and_its_gradient_are_timms(tokenizer: Tokenizer, patch: int) -> None:
    tower = towers(tokenizer).image
    weight = tower.backbone.patch_embed.proj.weight
    ours, timms = tower._kernel(patch), resample_patch_embed(weight, [patch, patch])
    assert torch.allclose(ours, timms, atol=1e-6)
    seen = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
    (got,) = torch.autograd.grad((ours * seen).sum(), weight)
    (expected,) = torch.autograd.grad((timms * seen).sum(), weight)
    assert torch.allclose(got, expected, atol=1e-5)


def test_a_float64_tower_resizes_kernels_and_positions_in_float64(tokenizer: Tokenizer) -> None:
    """FlexiViT's aim, met exactly for a larger patch: a resized patch under the resized kernel gives what it gave."""
    tower, random = towers(tokenizer).double().image, torch.Generator().manual_seed(0)
    patches = torch.randn(5, 3, PATCH, PATCH, dtype=torch.float64, generator=random)
    weight = tower.backbone.patch_embed.proj.weight
    larger = F.interpolate(patches, (2 * PATCH, 2 * PATCH), mode="bicubic", antialias=True)
    seen = torch.einsum("bcxy,wcxy->bw", larger, tower._kernel(2 * PATCH))
    torch.testing.assert_close(seen, torch.einsum("bcxy,wcxy->bw", patches, weight), rtol=1e-12, atol=1e-12)

    level = 1 + 1e-10  # fp32 rounds it to 1
    torch.nn.init.constant_(tower.backbone.pos_embed, level)
    grid = SIZE // PATCH // 2
    placed = tower._with_positions(torch.zeros(1, grid**2, WIDTH, dtype=torch.float64), (grid, grid))[:, -(grid**2) :]
    torch.testing.assert_close(placed, torch.full_like(placed, level), rtol=1e-14, atol=0)


def test_the_full_view_is_the_plain_path_to_the_last_bit(tokenizer: Tokenizer) -> None:
    model, batch = towers(tokenizer).eval(), batch_of(tokenizer)
    backbone = model.image.backbone
    pixels = batch.images_BCHW.float().contiguous(memory_format=torch.channels_last) / 127.5 - 1
    plain = model.image.projection(backbone.forward_head(backbone.forward_features(pixels), pre_logits=True))
    for view in (FULL, View(), View(text_length=3)):
        assert torch.equal(model.image(batch.images_BCHW, view), plain)
    assert torch.equal(model(batch)[1], model(batch, View(keep=0.5))[1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reg_tokens": 2, "no_embed_class": True},
        {"class_token": False, "global_pool": "map"},
        {"class_token": False, "global_pool": "avg", "pre_norm": True},
    ],
)
def test_explicit_full_values_equal_the_plain_path(tokenizer: Tokenizer, options: dict[str, Any]) -> None:
    model, batch = towers(tokenizer, image_options=options).eval(), batch_of(tokenizer)
    explicit = View(patch_size=PATCH, resolution=SIZE, text_length=LENGTH)
    for mine, plain in zip(model(batch, explicit), model(batch), strict=True):
        assert torch.allclose(mine, plain, atol=1e-6)
    assert check(explicit, model) == FULL
    assert check(View(keep=0.99, layers=0.9, text_layers=0.6), model) == FULL
    assert check(View(patch_size=16, text_length=LENGTH), model) == View(patch_size=16)
    cheap = View(patch_size=16, keep=0.5, layers=0.5)
    assert torch.isfinite(model(batch, check(cheap, model))[0]).all()


def test_layers_run_are_the_first(tokenizer: Tokenizer) -> None:
    model, batch = towers(tokenizer).eval(), batch_of(tokenizer)
    before = model(batch, View(layers=0.5, text_layers=0.5))
    for block in (model.image.backbone.blocks[2], model.text.blocks[1]):
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter)
    after = model(batch, View(layers=0.5, text_layers=0.5))
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert not torch.equal(model(batch)[0], before[0])
    assert [layers_run(share, 10) for share in (0.01, 0.1, 0.11, 0.7, 1.0)] == [1, 1, 2, 7, 10]
    assert [patches_kept(View(keep=share), 16) for share in (0.01, 0.1, 0.5, 1.0)] == [1, 2, 8, 16]


@pytest.mark.parametrize("length", range(2, LENGTH + 1))
def test_a_cut_text_is_what_a_shorter_tokenizer_gives(tokenizer: Tokenizer, length: int) -> None:
    short = Tokenizer(tokenizer.definition, length)
    ids_BL = tokenizer.encode(CAPTIONS)
    end_B = (ids_BL == tokenizer.end_id).int().argmax(1)
    assert torch.equal(cut_text(ids_BL, length, end_B), short.encode(CAPTIONS))


def test_gradients_reach_the_original_weights(tokenizer: Tokenizer) -> None:
    model = towers(tokenizer)
    image_BD, _ = model(batch_of(tokenizer), View(patch_size=16, keep=0.5))
    image_BD.square().sum().backward()
    image_BD, _ = model(batch_of(tokenizer), View(patch_size=16, keep=0.5))
    image_BD[0, 0].backward()
    for weight in (model.image.backbone.patch_embed.proj.weight, model.image.backbone.pos_embed):
        assert weight.grad is not None
        assert torch.isfinite(weight.grad).all()
        assert weight.grad.abs().max() > 0


# Patches by key


@given(st.integers(1, 40), st.data())
@settings(max_examples=25, deadline=None)
def test_kept_patches_depend_on_the_key_alone(patches: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, patches))
    keys = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6))
    index_BP = kept_patches(torch.tensor(keys), patches, count)
    assert index_BP.shape == (len(keys), count)
    for key, row in zip(keys, index_BP.tolist(), strict=True):
        assert row == sorted(set(row))
        assert row[0] >= 0
        assert row[-1] < patches
        assert torch.equal(kept_patches(torch.tensor([key]), patches, count)[0], torch.tensor(row))
        assert set(row) <= set(kept_patches(torch.tensor([key]), patches, patches)[0].tolist())


@pytest.mark.parametrize("keys", ["random", "counting"])
def test_kept_patches_are_uniform(keys: str) -> None:
    images, patches, count = 20_000, 12, 3
    random = torch.randint(-(2**62), 2**62, (images,), generator=torch.Generator().manual_seed(0))
    rows = kept_patches(random if keys == "random" else torch.arange(images), patches, count)
    times = rows.flatten().bincount(minlength=patches).double()
    share = count / patches
    assert ((times - images * share).abs() < 5 * (images * share * (1 - share)) ** 0.5).all()
    together = Counter((a, b) for a, b, _ in rows.tolist()) + Counter((b, c) for _, b, c in rows.tolist())
    together += Counter((a, c) for a, _, c in rows.tolist())
    share = count * (count - 1) / (patches * (patches - 1))
    assert len(together) == patches * (patches - 1) // 2
    assert max(abs(n - images * share) for n in together.values()) < 5 * (images * share) ** 0.5


def test_a_dropped_image_embeds_alike_in_any_batch(tokenizer: Tokenizer) -> None:
    model, batch, view = towers(tokenizer).eval(), batch_of(tokenizer, 6), View(keep=0.4)
    whole = model(batch, view)[0]
    order = torch.tensor([4, 1, 5])
    assert torch.allclose(model(batch.take(order), view)[0], whole[order], atol=1e-6)
    with pytest.raises(ValueError, match="content keys"):
        model.image(batch.images_BCHW, view)


# What a view costs


def closed_form(view: View) -> Price:
    """A plain transformer's multiply-adds: per token 12·w² a layer, 2·N²·w for attention; patches; projection."""
    patch, size = view.patch_size or PATCH, view.resolution or SIZE
    patches = patches_kept(view, (size // patch) ** 2) + 1
    layers = layers_run(view.layers, DEPTH)
    image = (size // patch) ** 2 * 3 * patch**2 * WIDTH + WIDTH * OUT
    image += layers * (12 * WIDTH**2 * patches + 2 * patches**2 * WIDTH)
    length = view.text_length or LENGTH
    text = layers_run(view.text_layers, TEXT_DEPTH) * (12 * TEXT_WIDTH**2 * length + 2 * length**2 * TEXT_WIDTH)
    resized = 0 if view.patch_size is None else 3 * WIDTH * PATCH**2 * patch**2
    return Price(image, text + TEXT_WIDTH * OUT, resized)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.label)
def test_the_price_of_a_view_is_the_closed_form(tokenizer: Tokenizer, view: View) -> None:
    model, batch = towers(tokenizer), batch_of(tokenizer)
    price = Price.of(model, batch, check(view, model))
    assert price == closed_form(view)
    assert price.pairs(3) == 3 * price.pair + price.fixed
    assert price.images(3, 3) == price.images(3)
    assert price.images(7, 3) == 7 * price.image + 3 * price.fixed
    assert price.pairs(0) == price.images(0, 3) == 0


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.label)
def test_the_price_of_a_view_is_the_same_wherever_the_model_is(tokenizer: Tokenizer, view: View) -> None:
    """No pseudo-inverse is traced: a resize matrix of the model's device is none of the traced copy's."""
    elsewhere, batch = towers(tokenizer).to("meta"), batch_of(tokenizer)
    resize_matrix.cache_clear()
    assert Price.of(elsewhere, batch, check(view, elsewhere)) == closed_form(view)


@pytest.mark.parametrize("microbatch", [1, 3, 4, 7, 100])
def test_scoring_is_charged_what_torch_counts(tokenizer: Tokenizer, microbatch: int) -> None:
    """The patch embedding is resized for each micro-batch, and charged so: by the learner and by the reference."""
    model, batch, view = towers(tokenizer), batch_of(tokenizer, 7), View(patch_size=4)
    arithmetic, price = Arithmetic(torch.device("cpu"), bf16=False), Price.of(towers(tokenizer), batch, view)
    micro = MicroBatches(microbatch)
    learner = Learner(model, Contrastive("sigmoid"), Optimizer(), arithmetic, {view: price}, view, micro)
    learner.model.image.prepare(view)
    rows = EmbeddingRows(towers(tokenizer, 1), arithmetic, batch, view)
    rows.model.image.prepare(view)
    reference = FrozenActor("reference", rows, "online", Path("nowhere"), microbatch)
    scorer = Scorer({"learner": learner, "reference": reference}, "sigmoid")
    for side in ("learner", "reference"):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            scores = scorer(batch, frozenset({side}))
        assert FLOPS_PER_MAC * sum(item.macs for item in scores.model_passes) == counter.get_total_flops()
    assert price.fixed > 0


# What is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"keep": 0.0}, "view.keep is a share"),
        ({"layers": 1.5}, "view.layers is a share"),
        ({"text_layers": -1.0}, "view.text_layers is a share"),
        ({"patch_size": 0}, "view.patch_size is a whole number"),
        ({"text_length": 1}, "view.text_length is a whole number of at least 2"),
        ({"patch_size": 12, "resolution": 32}, "does not divide into patches"),
        ({"patch_size": 64, "resolution": 32}, "larger than the image"),
    ],
)
def test_a_view_refuses_what_it_cannot_be(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        View(**arguments)


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (View(patch_size=12), "does not divide into patches"),
        (View(patch_size=64), "larger than the image"),
        (View(resolution=20), "does not divide into patches"),
        (View(text_length=9), "reads 8 tokens"),
    ],
)
def test_a_tower_refuses_views_that_it_cannot_run(tokenizer: Tokenizer, view: View, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(view, towers(tokenizer))


def test_towers_that_are_not_plain_are_refused(tokenizer: Tokenizer) -> None:
    view = View(keep=0.5)
    with pytest.raises(ValueError, match="no absolute position embeddings"):
        check(view, towers(tokenizer, image_options={"pos_embed": "none"}))
    with pytest.raises(ValueError, match="dynamic_img_pad"):
        check(view, towers(tokenizer, image_options={"dynamic_img_size": True, "dynamic_img_pad": True}))
    with pytest.raises(ValueError, match="no plain vision transformer"):
        check(view, towers(tokenizer, image_tower="deit_tiny_distilled_patch16_224"))
    assert check(View(text_layers=0.5), towers(tokenizer, image_options={"pos_embed": "none"})).text_layers == 0.5


@pytest.mark.parametrize(
    ("views", "said"),
    [
        ([(0.5, FULL)], "must sum to 1"),
        ([(0.0, FULL), (1.0, FULL)], "lies in"),
        ([(True, FULL)], "lies in"),
        ([(1.0, "cheap")], "list of"),
        ([FULL], "list of"),
    ],
)
def test_a_mix_refuses_what_is_none(views: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mix_of(views)


# Training under a mix


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5000), st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_a_mix_is_split_in_integers(count: int, weights: list[int]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    parts = split_counts(count, shares)
    assert sum(parts) == count
    assert all(abs(part - count * share) < 1 + 1e-2 for part, share in zip(parts, shares, strict=True))
    assert parts == split_counts(count, shares)


def test_halves_of_odd_batches() -> None:
    assert split_counts(7, [0.5, 0.5]) == (4, 3)
    assert split_counts(10, [0.3, 0.7]) == (3, 7)
    assert split_counts(1, [0.25, 0.75]) == (0, 1)
    assert split_counts(10, [1 / 3, 1 / 3, 1 / 3]) == (4, 3, 3)


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_one_loss_over_the_concatenation(tokenizer: Tokenizer, loss: Any) -> None:
    cheap, batch = View(patch_size=16, text_length=4), batch_of(tokenizer, 5)
    mix = mix_of([(0.5, FULL), (0.5, cheap)])
    model, same = towers(tokenizer), towers(tokenizer)
    prices = {FULL: Price(10, 7), cheap: Price(3, 2, 5)}
    arithmetic = Arithmetic(torch.device("cpu"), bf16=False)
    learner = Learner(model, Contrastive(loss, mix), Optimizer(), arithmetic, prices)
    update = learner.update(batch, None, 0.5, 0)
    first, second = same(batch.take(torch.arange(3))), same(batch.take(torch.arange(3, 5)), cheap)
    image_KD, text_KD = (torch.cat(both) for both in zip(first, second, strict=True))
    expected = LOSSES[loss](image_KD, text_KD, same.scale, same.bias)
    assert update.loss == pytest.approx(float(expected.detach()), abs=1e-6)
    expected.backward()
    gradients = [p.grad for p in same.parameters() if p.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert update.gradient_norm == pytest.approx(float(norm), rel=1e-4)
    assert [item.macs for item in update.passes] == [3 * 3 * 17, 3 * (2 * 5 + 5), 3 * 25 * OUT]
    assert "under patch 16 px, 4 text tokens" in update.passes[1].what


# Whole runs

TINY = ["--gin_file", "gin/run/tiny.gin"]
WORLD = ["synthetic.pool=100", "synthetic.curated=64", "synthetic.holdout=64", "synthetic.eval=32"]
SIZES = ["run.batch_size=8", "run.super_batch_size=24", *WORLD]
QUIET = ["log.every=1", "log.progress=False", "wandb.mode=disabled", "run.device=cpu", "evaluate.points=1"]
NEW = ["flexi_jest", "jest_patch", "jest_patchdrop", "jest_layerdrop", "jest_lowres"]


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JESTBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(grammar.PROJECT)
        yield


def arm(policy: str, *bindings: str) -> list[str]:
    """A policy file on the tiny run, its reference the tiny one under the bindings that the file gives."""
    path = grammar.PROJECT / "gin/policy" / f"{policy}.gin"
    words = [*TINY, "--gin_file", str(path), *SIZES, *QUIET]
    value = next((b.value for b in grammar.read_file(path) if b.key == "run.reference"), None)
    if value is not None:
        views = value[1:] if isinstance(value, list | tuple) else ()
        reference = (
            "gin/run/tiny_reference.gin",
            *views,
            *SIZES,
            "run.budget=1.5e8",
            "run.checkpoints=1",
            "evaluate.points=1",
        )
        words.append(f"run.reference={reference!r}")
    return [*words, *bindings]


@pytest.mark.parametrize("policy", [*NEW, "uniform_flexi"])
def test_every_policy_file_runs_and_is_honest(policy: str, tmp_path: Path) -> None:
    words = arm(policy, "run.budget=2e8", "run.checkpoints=1", "--run_dir", str(tmp_path / "run"))
    assert command.main(words) == 0
    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "finished"
    assert summary["arm"] == policy
    assert summary["warnings"] == []
    again = resolve.resolve([str(tmp_path / "run" / "operative.gin")])
    assert again.config_hash == summary["config_hash"]


@pytest.mark.parametrize("policy", NEW)
def test_policy_files_compose_with_the_icons(policy: str) -> None:
    resolved = resolve.resolve(["gin/run/icons.gin", f"gin/policy/{policy}.gin"])
    (reference,), (_, scored) = resolved.stands_on["reference"], resolved.run.view_of("learner")
    assert scored == resolved.run.view_of("reference")[1]
    assert scored in [view for _, view in resolved.run.mix]
    assert reference.run.mix == resolved.run.mix
    price = RunForecast.of(resolved).price
    plain = RunForecast.of(resolve.resolve(["gin/run/icons.gin", "gin/policy/jest.gin"])).price
    assert price.uniform == plain.uniform
    assert price.closed_form < plain.closed_form
    assert price.flops["learner_score"] < 0.75 * plain.flops["learner_score"]


def test_a_run_is_charged_what_its_hooks_count_and_what_price_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bindings = ("run.budget=5e8", "run.reference_accounting=online", "run.microbatch=10")
    words = arm("flexi_jest", *bindings)
    resolved = resolve.resolve(["gin/run/tiny.gin", "gin/policy/flexi_jest.gin"], [w for w in words[4:] if "=" in w])
    price = RunForecast.of(resolved).price
    reference = tmp_path / "reference"
    reference_words = [f"--gin_file={resolved.run.reference[0]}", *resolved.run.reference[1:], "--run_dir"]
    assert command.main([*reference_words, str(reference), *QUIET]) == 0

    images: Counter[tuple[bool, bool, View]] = Counter()
    plain = ImageTower.forward

    def counted(tower: ImageTower, images_BCHW: Tensor, view: View = FULL, key_B: Tensor | None = None) -> Tensor:
        if not torch.jit.is_tracing():
            frozen = not next(tower.parameters()).requires_grad
            images[(frozen, tower.training, view)] += len(images_BCHW)
        return plain(tower, images_BCHW, view, key_B)

    monkeypatch.setattr(ImageTower, "forward", counted)
    run_dir = tmp_path / "run"
    assert command.main([*words, f"run.reference={reference}", "--run_dir", str(run_dir)]) == 0
    summary = summary_of(run_dir)
    steps, flops = summary["steps"], summary["flops"]
    cheap = View(patch_size=12, resolution=36)
    seen = {key: count for key, count in images.items() if key[1] or key[2] != FULL or key[0]}
    assert seen == {
        (False, True, FULL): 4 * steps,
        (False, True, cheap): 4 * steps,
        (False, False, cheap): 24 * steps,
        (True, False, cheap): 24 * steps,
    }
    for purpose in ("learner_train", "learner_score", "reference_score", "pairwise"):
        assert flops[purpose] == steps * price.flops[purpose]
    # By hand: 64 wide, 2 layers, 16 patches of 4 px, or 9 of 12 px; 8 text tokens through 1 layer.
    block, wide = 12 * 64**2, 64
    text = 8 * block + 2 * 8**2 * wide + wide**2
    full = 16 * 48 * wide + 2 * (17 * block + 2 * 17**2 * wide) + wide**2 + text
    half = 9 * 432 * wide + 2 * (10 * block + 2 * 10**2 * wide) + wide**2 + text
    fixed = 3 * wide * 16 * 144
    assert flops["learner_train"] == FLOPS_PER_MAC * TRAINING_PASSES * steps * (4 * full + 4 * half + fixed)
    assert (
        flops["learner_score"] == FLOPS_PER_MAC * steps * (24 * half + 3 * fixed) == flops["reference_score"]
    )  # 10 + 10 + 4
    assert summary["warnings"] == []  # the reference's folder says what it was trained under


def test_an_untrained_view_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cheap = ("run.score_view=@cheap/view()", "cheap/view.patch_size=8")
    assert command.main([*arm("hard_learner", *cheap), "--check"]) == 0
    said = capsys.readouterr().err
    assert "warning: run.score_view: the learner is scored under a view it was not trained under (patch 8 px" in said
    assert command.main([*arm("jest", "run.reference_view=@cheap/view()", cheap[1]), "--check"]) == 0
    assert "warning: run.reference_view: the reference is scored" in capsys.readouterr().err
    own = ("run.score_view=@cheap/view()", "cheap/view.patch_size=4")
    assert command.main([*arm("hard_learner", *own), "--check"]) == 0
    assert "warning" not in capsys.readouterr().err
    words = arm("hard_learner", *cheap, "run.budget=1.5e8", "--run_dir", str(tmp_path / "run"))
    assert command.main(words) == 0
    assert [line.split(":")[0] for line in summary_of(tmp_path / "run")["warnings"]] == ["run.score_view"]


def test_views_are_refused_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run.score_view=@cheap/view()", "run.train_views=[(1.0, @cheap/view())]"):
        assert command.main([*arm("hard_learner", name, "cheap/view.patch_size=5"), "--check"]) == 2
        said = capsys.readouterr().err
        assert name.split("=")[0] in said
        assert "does not divide" in said
    assert command.main([*arm("hard_learner", "cheap/view.patch_size=8"), "--check"]) == 2
    assert "never uses cheap/view.patch_size" in capsys.readouterr().err


def test_the_arm_is_its_views() -> None:
    def digest(policy: str, *bindings: str) -> str:
        return resolve.resolve(["gin/run/tiny.gin", f"gin/policy/{policy}.gin"], bindings).config_hash

    assert digest("uniform_flexi") != digest("uniform")
    assert digest("uniform_flexi") != digest("uniform_flexi", "cheap/view.patch_size=18")
    assert digest("flexi_jest") != digest("flexi_jest", "cheap/view.keep=0.5")
    assert digest("uniform") == digest("uniform", "run.score_view=@view()")
