"""Losses, towers, optimizer and schedule, against open formulas and against what must not matter."""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pretended_device import Pretended
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from jestbench.batch import FULL, Batch, DataError, View
from jestbench.cost.price import Price
from jestbench.engine.contrastive import Contrastive
from jestbench.engine.learner import Learner, NonFiniteLoss
from jestbench.engine.optimizer import Optimizer
from jestbench.model.image_tower import resized
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.model.towers import MAX_SCALE, Model
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.losses import LOSSES, sigmoid_loss, softmax_loss

SCALE, BIAS = torch.tensor(3.0, dtype=torch.float64), torch.tensor(-1.5, dtype=torch.float64)
CAPTIONS = ["a red cat", "a blue dog on a hill", "red", "two green fish and a red cat by the sea"]
LENGTH = 8


def embeddings(count: int = 5, width: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    pair = (torch.randn(count, width, dtype=torch.float64, generator=random) for _ in range(2))
    image_KD, text_KD = (F.normalize(part, dim=-1) for part in pair)
    return image_KD, text_KD


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_bpe(CAPTIONS * 3, 300).to_str(), LENGTH)


def tiny(tokenizer: Tokenizer, loss: str = "sigmoid", seed: int = 0, **options):
    shape = {
        "image_size": 16,
        "patch_size": 8,
        "embed_dim": 12,
        "text_width": 16,
        "text_layers": 2,
        "text_heads": 2,
        "image_options": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    }
    return Model(**shape | options).build(tokenizer, loss, seed)


def batch_of(tokenizer: Tokenizer, captions=tuple(CAPTIONS), size: int = 16) -> Batch:
    count = len(captions)
    random = torch.Generator().manual_seed(1)
    return Batch(
        images_BCHW=torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=random),
        token_ids={tokenizer.identity: tokenizer.encode(captions)},
        image_key_B=torch.arange(count),
        text_key_B=torch.arange(count),
    )


def learner_of(tokenizer: Tokenizer, loss: str = "sigmoid", optimizer: Optimizer | None = None, **options) -> Learner:
    model = tiny(tokenizer, loss, **options)
    arithmetic = Arithmetic(torch.device("cpu"), bf16=False)
    return Learner(model, Contrastive(loss), optimizer or Optimizer(), arithmetic, {FULL: Price(1, 1)})


def snapshot(model) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Losses


def naive_sigmoid(image_KD: Tensor, text_KD: Tensor, weight_K: list[float]) -> float:
    total = 0.0
    for i, x in enumerate(image_KD):
        for j, y in enumerate(text_KD):
            u = float(SCALE * (x @ y) + BIAS)
            total += (weight_K[i] + weight_K[j]) / 2 * math.log1p(math.exp(-u if i == j else u))
    return total / len(image_KD)


def naive_softmax(image_KD: Tensor, text_KD: Tensor, weight_K: list[float]) -> float:
    total = 0.0
    for i in range(len(image_KD)):
        own = float(SCALE * (image_KD[i] @ text_KD[i]))
        row = sum(math.exp(float(SCALE * (image_KD[i] @ y))) for y in text_KD)
        column = sum(math.exp(float(SCALE * (x @ text_KD[i]))) for x in image_KD)
        total += weight_K[i] * (math.log(row) + math.log(column) - 2 * own) / 2
    return total / len(image_KD)


NAIVE = {"sigmoid": naive_sigmoid, "softmax": naive_softmax}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_losses_are_their_formulas(loss, count):
    pair = embeddings(count)
    assert float(LOSSES[loss](*pair, SCALE, BIAS)) == pytest.approx(NAIVE[loss](*pair, [1.0] * count), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_weight_acts_on_the_row_and_the_column_of_its_pair(loss):
    pair, weights = embeddings(4), [0.0, 2.0, 0.5, 1.5]
    weighed = LOSSES[loss](*pair, SCALE, BIAS, torch.tensor(weights, dtype=torch.float64))
    assert float(weighed) == pytest.approx(NAIVE[loss](*pair, weights), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_one_are_no_weights(loss):
    pair = embeddings()
    weighed = LOSSES[loss](*pair, SCALE, BIAS, torch.ones(5, dtype=torch.float64))
    assert torch.equal(weighed, LOSSES[loss](*pair, SCALE, BIAS))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients(loss, weighted):
    image_KD, text_KD = (part.requires_grad_() for part in embeddings(4, 3))
    scale, bias = SCALE.clone().requires_grad_(), BIAS.clone().requires_grad_(loss == "sigmoid")
    weight_K = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64) if weighted else None
    assert torch.autograd.gradcheck(lambda *args: LOSSES[loss](*args, weight_K), (image_KD, text_KD, scale, bias))


def test_the_softmax_loss_does_not_see_the_offset():
    pair = embeddings()
    assert torch.equal(softmax_loss(*pair, SCALE, BIAS), softmax_loss(*pair, SCALE, BIAS + 7))


@settings(deadline=None)
@given(st.permutations(range(6)))
def test_losses_do_not_depend_on_the_order_of_the_pairs(order):
    image_KD, text_KD = embeddings(6)
    for loss in (sigmoid_loss, softmax_loss):
        moved = loss(image_KD[list(order)], text_KD[list(order)], SCALE, BIAS)
        assert float(moved) == pytest.approx(float(loss(image_KD, text_KD, SCALE, BIAS)), rel=1e-12)


# Towers


def test_embeddings_are_normalised_fp32_under_bf16_autocast(tokenizer):
    model = tiny(tokenizer).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.image(batch_of(tokenizer).images_BCHW).dtype == torch.bfloat16, "the towers do run in bf16"
        for part in model(batch_of(tokenizer)):
            assert part.dtype == torch.float32
            torch.testing.assert_close(part.norm(dim=-1), torch.ones(len(CAPTIONS)))


def test_token_ids_of_another_tokenizer_are_refused(tokenizer):
    other = Tokenizer(tokenizer.definition, LENGTH + 1)
    with pytest.raises(DataError, match=other.identity):
        tiny(tokenizer)(batch_of(other))


def test_initialisation_is_a_function_of_the_seed_alone(tokenizer):
    torch.manual_seed(1)
    first = snapshot(tiny(tokenizer, seed=5))
    torch.manual_seed(2)
    torch.rand(17)
    before = torch.get_rng_state()
    second = snapshot(tiny(tokenizer, seed=5))
    assert same(first, second)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state is not touched"
    assert not same(first, snapshot(tiny(tokenizer, seed=6)))


@pytest.mark.parametrize("loss", LOSSES)
def test_only_the_offset_depends_on_the_loss(tokenizer, loss):
    model = tiny(tokenizer, loss)
    scale, bias = {"sigmoid": (10.0, -10.0), "softmax": (1 / 0.07, 0.0)}[loss]
    assert model.scale_and_bias() == pytest.approx((scale, bias))
    assert model.bias.requires_grad is (loss == "sigmoid")
    assert same(snapshot(model.text), snapshot(tiny(tokenizer).text))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pool", ["mean", "end"])
def test_padding_never_reaches_a_text_embedding(tokenizer, causal, pool):
    """Not through attention, not through the pool: neither its learned vector nor how much of it there is."""
    model = tiny(tokenizer, text_causal=causal, text_pool=pool).eval()
    ids_BL = tokenizer.encode(CAPTIONS)
    length_B = (ids_BL != tokenizer.pad_id).sum(1)
    assert length_B.min() < length_B.max() == LENGTH, "texts of several lengths, one without padding"
    with torch.no_grad():
        padded = model.encode_text(ids_BL)
        model.text.tokens.weight[tokenizer.pad_id] = 1e3
        assert torch.equal(model.encode_text(ids_BL), padded)
        positions = model.text.positions.data
        for ids_L, length, embedding_D in zip(ids_BL, length_B.tolist(), padded, strict=True):
            model.text.positions.data = positions[:length]
            alone = model.encode_text(ids_L[None, :length])[0]
            torch.testing.assert_close(alone, embedding_D, rtol=1e-5, atol=1e-6)


def test_a_causal_text_tower_looks_back_only(tokenizer):
    """With end pooling, what stands behind the end token cannot be seen; what stands before it can."""
    model = tiny(tokenizer, text_causal=True, text_pool="end").eval()
    ids_1L = tokenizer.encode(["a red cat"])
    changed = ids_1L.clone()
    changed[0, 0] = tokenizer.encode(["two"])[0, 0]
    with torch.no_grad():
        assert not torch.allclose(model.encode_text(ids_1L), model.encode_text(changed))


@pytest.mark.parametrize("view", [FULL, View(resolution=8), View(patch_size=4), View(keep=0.5)], ids=lambda v: v.label)
def test_who_made_the_batch_and_how_it_lies_in_memory_changes_no_bit(tokenizer, view):
    image = tiny(tokenizer).image.eval()
    image.prepare(view)
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.randint(0, 256, (5, 3, 16, 16), generator=generator, dtype=torch.uint8)
    key_B = torch.arange(5)
    plain = image(images_BCHW, view, key_B)
    for other in (
        images_BCHW.contiguous(memory_format=torch.channels_last),
        images_BCHW.transpose(2, 3).contiguous().mT,
    ):
        assert other.stride() != images_BCHW.stride()
        assert torch.equal(image(other, view, key_B), plain)


ON_DEVICE = [
    "cpu",
    "pretended",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]),
]


@pytest.mark.parametrize("device", ON_DEVICE)
@pytest.mark.parametrize("size", [(32, 32), (48, 40), (20, 96)])
def test_images_are_resized_as_pil_does(device, size):
    images_BCHW = torch.randint(256, (16, 3, 64, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    by_pil = torch.stack(
        [
            pil_to_tensor(Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR))
            for image in images_BCHW
        ]
    )
    with Pretended() if device == "pretended" else nullcontext():
        found = resized(images_BCHW.to("cuda" if device == "pretended" else device), size).cpu()
    assert found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last)
    levels = (found.int() - by_pil.int()).abs()
    # Ties: floats and PIL's integers round them apart, in both passes; an enlarged image has many.
    assert int(levels.max()) <= (1 if size == (32, 32) else 2)
    assert float(levels.float().mean()) < (0.25 if size == (20, 96) else 0.05)


def test_a_tower_resizes_images_of_another_size(tokenizer):
    model = tiny(tokenizer, image_size=32).eval()
    large = batch_of(tokenizer, size=64).images_BCHW
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(large), model.encode_image(resized(large, (32, 32))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_tower": "vit_tiny_patch16_22"}, "vit_tiny_patch16_224"),
        ({"patch_size": 7}, "multiple"),
        ({"patch_size": 64}, "smaller than a patch"),
        ({"text_heads": 3}, "heads"),
        ({"image_mean": (0.5, 0.5)}, "model.image_mean is three numbers"),
        ({"image_std": (0.5, 0.5, 0.0)}, "model.image_std is three positive numbers"),
        ({"text_norm_eps": 0.0}, "model.text_norm_eps must be positive"),
        ({"embed_dim": 0}, "at least 1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Model(**options)


# Optimizer and schedule


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "vit_betwixt_patch16_reg4_gap_256"],
)
def test_only_matrices_decay(tokenizer, name):
    model = tiny(tokenizer, image_tower=name)
    decayed, rest = Optimizer(weight_decay=0.3).build(model).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    names = {id(value): key for key, value in model.named_parameters()}
    assert sorted(map(id, [*decayed["params"], *rest["params"]])) == sorted(names), "each parameter once"
    assert all(value.ndim >= 2 for value in decayed["params"])
    assert all(names[id(value)].endswith(".weight") for value in decayed["params"]), "no positions, no learned tokens"
    assert all(value.ndim < 2 or not names[id(value)].endswith(".weight") for value in rest["params"])


def test_a_parameter_without_gradient_is_not_optimised(tokenizer):
    model = tiny(tokenizer, "softmax")
    groups = Optimizer().build(model).param_groups
    assert id(model.bias) not in {id(value) for group in groups for value in group["params"]}


@settings(deadline=None)
@given(
    st.floats(1e-6, 1e3),
    st.floats(0, 0.9),
    st.floats(0, 1),
    st.lists(st.floats(0, 1), min_size=2, max_size=5).map(sorted),
)
def test_the_schedule_is_a_function_of_the_share_spent(peak, warmup, final, shares):
    schedule = Optimizer(learning_rate=peak, warmup=warmup, final=final)
    tolerance = {"rel": 1e-9, "abs": 1e-9 * peak}
    assert schedule.rate(0.0) == pytest.approx(0.0 if warmup else peak, **tolerance)
    assert schedule.rate(warmup) == pytest.approx(peak, **tolerance)
    assert schedule.rate(1.0) == pytest.approx(peak * final, **tolerance)
    assert schedule.rate(1.5) == schedule.rate(1.0), "a last step that overshoots"
    rates = [schedule.rate(share) for share in shares]
    assert all(-tolerance["abs"] <= rate <= peak * (1 + 1e-9) for rate in rates)
    rising = [rate for rate, share in zip(rates, shares, strict=True) if share <= warmup]
    falling = [rate for rate, share in zip(rates, shares, strict=True) if share >= warmup]
    assert rising == sorted(rising)
    assert all(later <= earlier + tolerance["abs"] for earlier, later in pairwise(falling))
    again = Optimizer(learning_rate=peak, warmup=warmup, final=final)
    assert [again.rate(share) for share in reversed(shares)] == rates[::-1], "no memory"


@pytest.mark.parametrize("loss", LOSSES)
def test_an_update_learns_and_reports(tokenizer, loss):
    learner = learner_of(tokenizer, loss, Optimizer(learning_rate=1e-2, warmup=0.0))
    before = snapshot(learner.model)
    updates = [learner.update(batch_of(tokenizer), None, 0.0, seed) for seed in range(10)]
    assert updates[-1].loss < updates[0].loss
    assert updates[0].learning_rate == 1e-2
    assert not same(before, snapshot(learner.model))
    with torch.no_grad():
        reference = learner_of(tokenizer, loss).model.train()
        expected = LOSSES[loss](*reference(batch_of(tokenizer)), reference.scale, reference.bias)
    assert updates[0].loss == pytest.approx(float(expected), rel=1e-6)


def test_weights_reach_the_loss(tokenizer):
    batch, weight_K = batch_of(tokenizer), torch.tensor([0.0, 1.0, 2.0, 1.0])
    ones, none, some = (
        learner_of(tokenizer).update(batch, weights, 0.5, 0) for weights in (torch.ones(4), None, weight_K)
    )
    assert ones.loss == none.loss != some.loss


def test_the_scale_stays_within_clip_s_bound(tokenizer):
    learner = learner_of(tokenizer, "softmax")
    with torch.no_grad():
        learner.model.log_scale.fill_(math.log(1e3))
    learner.update(batch_of(tokenizer), None, 0.5, 0)
    assert learner.model.scale_and_bias()[0] <= MAX_SCALE * (1 + 1e-6)


def test_a_step_does_not_depend_on_the_global_random_state(tokenizer):
    found = []
    for noise in (1, 2):
        learner = learner_of(
            tokenizer, image_options={"embed_dim": 16, "depth": 1, "num_heads": 2, "proj_drop_rate": 0.5}
        )
        torch.manual_seed(noise)
        learner.update(batch_of(tokenizer), None, 0.5, seed=3)
        found.append(snapshot(learner.model))
    assert same(*found)


def poison_the_loss(learner: Learner) -> None:
    with torch.no_grad():
        learner.model.bias.fill_(math.inf)


def poison_the_gradient(learner: Learner) -> None:
    """A finite loss with a gradient that is not."""
    learner.model.log_scale.register_hook(lambda gradient: gradient * math.nan)


@pytest.mark.parametrize("poison", [poison_the_loss, poison_the_gradient])
def test_a_non_finite_loss_raises_before_anything_changes(tokenizer, poison):
    learner = learner_of(tokenizer)
    learner.update(batch_of(tokenizer), None, 0.5, 0)  # so that the optimizer has moments
    poison(learner)
    model, optimizer = snapshot(learner.model), learner.optimizer.state_dict()["state"]
    moments = {(key, name): value.clone() for key, part in optimizer.items() for name, value in part.items()}
    with pytest.raises(NonFiniteLoss):
        learner.update(batch_of(tokenizer), None, 0.5, 1)
    assert same(model, snapshot(learner.model))
    after = learner.optimizer.state_dict()["state"]
    assert all(torch.equal(after[key][name], value) for (key, name), value in moments.items())


def test_ids_with_gaps_have_embeddings_too():
    """Tokens that were added behind a reserved range, as released tokenizers have them."""
    backend = Backend(models.WordLevel({"<pad>": 0, "<end>": 1, "red": 2, "cat": 90}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    gapped = Tokenizer(backend.to_str(), 4)
    model = tiny(gapped).eval()
    with torch.no_grad():
        assert model.encode_text(gapped.encode(["red cat"])).isfinite().all()
