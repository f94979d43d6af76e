"""The price of a forward pass: closed forms, torch's own counter, published figures, and what must not matter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from timm.layers.config import set_fused_attn, use_fused_attn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from jestbench.batch import Batch
from jestbench.config.grammar import PROJECT
from jestbench.config.resolve import resolve
from jestbench.config.resolved import Resolved
from jestbench.cost.price import Price
from jestbench.cost.tracing import (
    FLOPS_PER_MAC,
    TRAINING_PASSES,
    UnknownOperator,
    counted_macs,
    forward_macs,
    without_values,
)
from jestbench.launch.command import main
from jestbench.launch.forecast import cheap_view, closed_forms, convention_error
from jestbench.model.image_tower import ImageTower
from jestbench.model.text_tower import TextTower
from jestbench.model.towers import Model, TwoTowers
from jestbench.select.losses import sigmoid_loss


@dataclass(frozen=True)
class Vit:
    """A timm ViT and the numbers that its price follows from, written out by hand."""

    name: str
    size: int
    patch: int
    width: int
    prefix: int = 1
    depth: int = 12
    map_pool: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def macs(self) -> int:
        """Patch embedding, blocks (4·d² of projections, 8·d² of MLP a token; Q·Kᵀ and weights·V), pooling."""
        patches = (self.size // self.patch) ** 2
        tokens, d = patches + self.prefix, self.width
        embedding = patches * 3 * self.patch**2 * d
        blocks = self.depth * (12 * tokens * d**2 + 2 * tokens**2 * d)
        # One latent query: its projection, keys and values of all tokens, attention, output, an MLP.
        pooling = d**2 + 2 * tokens * d**2 + 2 * tokens * d + d**2 + 8 * d**2
        return embedding + blocks + self.map_pool * pooling

    def build(self) -> nn.Module:
        """With memory, but without values: shapes decide the price."""
        with torch.device("meta"):
            module = timm.create_model(self.name, num_classes=0, **self.options)
        return module.to_empty(device="cpu").eval().requires_grad_(False)

    def images(self, count: int = 1) -> Tensor:
        return torch.zeros(count, 3, self.size, self.size)


VITS = (
    Vit("vit_tiny_patch16_224", 224, 16, 192),
    Vit("vit_tiny_patch16_224", 96, 16, 192, options={"img_size": 96}),
    Vit("vit_tiny_patch16_224", 64, 32, 192, options={"img_size": 64, "patch_size": 32}),
    Vit("deit_tiny_patch16_224", 224, 16, 192),
    Vit("deit_tiny_distilled_patch16_224", 224, 16, 192, prefix=2),
    Vit("vit_small_patch32_224", 224, 32, 384),
    Vit("vit_base_patch32_224", 224, 32, 768),
    Vit("flexivit_small", 240, 16, 384),
    Vit("vit_medium_patch16_gap_240", 240, 16, 512, prefix=0),
    Vit("vit_base_patch16_siglip_224", 224, 16, 768, prefix=0, map_pool=True),
    Vit("vit_small_patch14_dinov2", 98, 14, 384, options={"img_size": 98}),
)
SMALL = VITS[2]


def counted_by_torch(module: nn.Module, *inputs: Tensor) -> int:
    """FLOPs by torch's own counter, under unfused attention (fused attention counts 0 on some CPUs)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(*inputs)
    return counter.get_total_flops()


def text_tower(
    vocab_size: int = 100,
    length: int = 12,
    output: int = 32,
    width: int = 32,
    layers: int = 2,
    heads: int = 2,
    **options: Any,
) -> TextTower:
    options |= {"width": width, "layers": layers, "heads": heads}
    shape = Model(embed_dim=output, **{f"text_{name}": value for name, value in options.items()})
    return TextTower(shape, vocab_size, length, pad_id=0)


@pytest.mark.parametrize("vit", VITS, ids=lambda vit: f"{vit.name}-{vit.size}/{vit.patch}")
def test_a_vit_costs_its_closed_form_and_what_torch_counts(vit):
    module, images = vit.build(), vit.images()
    macs = forward_macs(module, images)
    assert type(macs) is int
    assert macs == vit.macs()
    assert FLOPS_PER_MAC * macs == counted_by_torch(module, images)


# More of timm: attention pooling, NaFlexViT, rotary and relative positions, gated and parallel blocks.
OTHERS = (
    "vit_so400m_patch14_siglip_224",
    "vit_base_patch16_siglip_gap_224",
    "naflexvit_base_patch16_gap",
    "naflexvit_base_patch16_siglip",
    "naflexvit_base_patch16_map",
    "eva02_tiny_patch14_224",
    "vit_small_patch16_dinov3",
    "vit_pe_core_tiny_patch16_384",
    "beit_base_patch16_224",
    "deit3_small_patch16_224",
    "vit_base_patch16_xp_224",
    "vit_dpwee_patch16_reg1_gap_256",
    "vit_relpos_small_patch16_224",
    "vit_srelpos_small_patch16_224",
    "aimv2_large_patch14_224",
    "samvit_base_patch16_224",
)


@pytest.mark.parametrize("name", OTHERS)
def test_other_towers_cost_what_torch_counts(name):
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    if name.startswith("samvit"):
        options["global_attn_indexes"] = (1,)
    module = timm.create_model(name, num_classes=0, **options).eval().requires_grad_(False)
    images = torch.zeros(2, 3, 32, 32)
    assert FLOPS_PER_MAC * forward_macs(module, images) == counted_by_torch(module, images)


def test_a_hybrid_costs_what_torch_counts():
    module = timm.create_model("vit_tiny_r_s16_p8_224", num_classes=0, img_size=32, depth=1)
    images = torch.zeros(1, 3, 32, 32)
    module.eval().requires_grad_(False)
    assert FLOPS_PER_MAC * forward_macs(module, images) == counted_by_torch(module, images)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pool", ["mean", "end"])
def test_a_text_tower_costs_its_closed_form_and_what_torch_counts(causal, pool):
    length, width, layers, output = 12, 32, 2, 24
    tower = text_tower(length=length, output=output, width=width, layers=layers, causal=causal, pool=pool)
    tokens = torch.randint(1, 100, (3, length))
    closed = 3 * (layers * (12 * length * width**2 + 2 * length**2 * width) + width * output)
    assert forward_macs(tower, tokens) == closed
    assert FLOPS_PER_MAC * closed == counted_by_torch(tower, tokens)


@pytest.mark.parametrize("fused", [False, True])
def test_fused_attention_does_not_matter(fused):
    before = use_fused_attn()
    set_fused_attn(fused)
    try:
        module = SMALL.build()
        assert module.blocks[0].attn.fused_attn is fused
        assert forward_macs(module, SMALL.images()) == SMALL.macs()
    finally:
        set_fused_attn(bool(before))


def test_autocast_does_not_matter():
    module, tower = SMALL.build(), text_tower()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert forward_macs(module, SMALL.images()) == SMALL.macs()
        in_autocast = forward_macs(tower, torch.ones(1, 12, dtype=torch.int64))
    assert in_autocast == forward_macs(tower, torch.ones(1, 12, dtype=torch.int64))


class PassThrough(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_does_not_matter():
    """Inside one, fvcore's trace of a convolution holds no operator that has a rule."""
    module, ghost = SMALL.build(), without_values(SMALL.build()).requires_grad_()
    counted = counted_macs(ghost, SMALL.images().to("meta"))
    with PassThrough(), FlopCounterMode(display=False) as outside:
        assert forward_macs(module, SMALL.images()) == SMALL.macs()
        assert counted_macs(ghost, SMALL.images().to("meta")) == counted
    assert outside.get_total_flops() == 0, "what a price is made by is no work of the run"


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_price_is_linear_in_the_batch_size(count):
    assert forward_macs(SMALL.build(), SMALL.images(count)) == count * SMALL.macs()
    tokens = torch.ones(count, 12, dtype=torch.int64)
    assert forward_macs(text_tower(), tokens) == count * forward_macs(text_tower(), tokens[:1])


def test_resizing_on_the_way_in_costs_nothing():
    tower = ImageTower(SMALL.build(), 16)
    own = forward_macs(tower, torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert own == SMALL.macs() + SMALL.width * 16
    assert forward_macs(tower, torch.zeros(1, 3, 48, 80, dtype=torch.uint8)) == own


def test_normalisation_and_activations_cost_nothing():
    layers = nn.Sequential(nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3), nn.Softmax(-1))
    assert forward_macs(layers, torch.zeros(5, 8)) == 5 * 8 * 3


def test_nothing_of_the_module_is_changed():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Sequential(nn.Linear(4, 2)))
    module.train()
    module[1].eval()
    modes = [part.training for part in module.modules()]
    values = [value.clone() for value in module.state_dict().values()]
    forward_macs(module, torch.zeros(2, 4))
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(values, module.state_dict().values(), strict=True))
    assert all(value.grad is None for value in module.parameters())


class Distances(nn.Module):
    def forward(self, x):
        return torch.cdist(x, x)


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x).abs()


class _OwnProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x @ x.transpose(0, 1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Opaque(nn.Module):
    """Hides a product in an autograd function, which a trace sees as one Python call."""

    def forward(self, x):
        return _OwnProduct.apply(x)


class Contraction(nn.Module):
    def forward(self, x):
        return torch.einsum("ij,kj,lj->ikl", x, x, x)


@pytest.mark.parametrize(
    ("part", "operator"),
    [
        (Distances(), "aten::cdist"),
        (Spectrum(), "aten::fft_rfft"),
        (Opaque(), "prim::PythonOp"),
        (nn.LSTM(4, 4), "aten::lstm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_operator_without_a_price_is_named_with_its_module(part, operator):
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Identity(), part)).train()
    with pytest.raises(UnknownOperator) as raised:
        forward_macs(module, torch.zeros(3, 4))
    assert operator in str(raised.value)
    assert "1.1" in str(raised.value)
    assert all(inner.training for inner in module.modules()), "the mode is restored after a failure too"


def test_a_product_of_three_has_no_price():
    with pytest.raises(UnknownOperator, match="einsum"):
        forward_macs(Contraction(), torch.zeros(3, 4))


class Product(nn.Module):
    def forward(self, left, right):
        return left @ right


@pytest.mark.parametrize(
    ("left", "right", "macs"),
    [
        ((4,), (4,), 4),
        ((3, 4), (4,), 12),
        ((4,), (4, 5), 20),
        ((2, 3, 4), (4, 5), 120),
        ((1, 3, 4), (6, 4, 5), 360),
        ((2, 1, 3, 4), (1, 6, 4, 5), 720),
    ],
)
def test_products_of_all_shapes(left, right, macs):
    assert forward_macs(Product(), torch.zeros(left), torch.zeros(right)) == macs


class Einsum(nn.Module):
    def __init__(self, equation):
        super().__init__()
        self.equation = equation

    def forward(self, left, right):
        return torch.einsum(self.equation, left, right)


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("bhid, bhjd -> bhij", (2, 3, 101, 7), (2, 3, 103, 7)),  # not round: numpy prints four digits
        ("bnd,de->bne", (2, 5, 7), (7, 3)),
        ("bi,ij->b", (2, 3), (3, 4)),
    ],
)
def test_einsum_of_two_is_exact(equation, left, right):
    inputs = torch.zeros(left), torch.zeros(right)
    assert FLOPS_PER_MAC * forward_macs(Einsum(equation), *inputs) == counted_by_torch(Einsum(equation), *inputs)


# Forward passes per pair as open_clip's table gives them, and DataComp's scales within their rounding.
@pytest.mark.parametrize(
    ("name", "embed", "width", "heads", "gmacs"),
    [
        ("vit_base_patch32_clip_224", 512, 512, 8, 7.39),
        ("vit_base_patch16_clip_224", 512, 512, 8, 20.5),
        ("vit_large_patch14_clip_224", 768, 768, 12, 87.7),
    ],
)
def test_clip_costs_what_datacomp_publishes(name, embed, width, heads, gmacs):
    with torch.device("meta"):
        image = ImageTower(timm.create_model(name, num_classes=0), embed)
        text = text_tower(49408, 77, embed, width=width, layers=12, heads=heads, causal=True, pool="end")
    image, text = image.to_empty(device="cpu"), text.to_empty(device="cpu")
    macs = forward_macs(image, torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    macs += forward_macs(text, torch.ones(1, 77, dtype=torch.int64))
    assert macs / 1e9 == pytest.approx(gmacs, rel=5e-3)


class Encoder(nn.Module):
    """One tower of a foreign two-tower model, by the name of its method."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, inputs: Tensor) -> Tensor:
        out = getattr(self.model, self.method)(inputs)
        return out if isinstance(out, Tensor) else out.pooler_output


def without_fast_path(module: nn.Module, *inputs: Tensor) -> int:
    """FLOPs by torch's counter, which sees nothing inside the operators of the fast path."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return counted_by_torch(module, *inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def of_open_clip(name: str, **changes: Mapping[str, Any]) -> tuple[tuple[nn.Module, Tensor], ...]:
    """Both towers of an open_clip model by its own classes, with memory but without values, and an input for each."""
    factory = pytest.importorskip("open_clip.factory")
    config = factory.get_model_config(name)
    config = {
        part: value | changes.get(part, {}) if isinstance(value, dict) else value for part, value in config.items()
    }
    custom = config.pop("custom_text", False) or "timm_model_name" in config["vision_cfg"]
    kind = factory.CoCa if "multimodal_cfg" in config else factory.CustomTextCLIP if custom else factory.CLIP
    with torch.device("meta"):
        model = kind(**config)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    size, length = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    return (
        (Encoder(model, "encode_image"), torch.zeros(1, 3, size, size)),
        (Encoder(model, "encode_text"), torch.ones(1, length, dtype=torch.int64)),
    )


@pytest.mark.parametrize(("name", "gmacs"), [("ViT-B-32", 7.39), ("ViT-B-16", 20.5), ("ViT-L-14", 87.7)])
def test_open_clips_own_modules_cost_what_datacomp_publishes(name, gmacs):
    towers = of_open_clip(name)
    assert sum(forward_macs(tower, inputs) for tower, inputs in towers) / 1e9 == pytest.approx(gmacs, rel=5e-3)


SHORT = {"vision_cfg": {"layers": 2}, "text_cfg": {"layers": 2}}


@pytest.mark.parametrize("fast", [True, False], ids=["fast path", "slow path"])
@pytest.mark.parametrize("name", ["ViT-B-32", "coca_ViT-B-32", "ViT-B-16-SigLIP"])
def test_the_towers_of_open_clip_cost_what_torch_counts(name, fast):
    for tower, inputs in of_open_clip(name, **SHORT):
        torch.backends.mha.set_fastpath_enabled(fast)
        try:
            macs = forward_macs(tower, inputs)
            assert torch.backends.mha.get_fastpath_enabled() is fast, "a price leaves the switch as it was"
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        assert FLOPS_PER_MAC * macs == without_fast_path(tower, inputs)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_the_towers_of_transformers_cost_what_torch_counts(kind, attention):
    library = pytest.importorskip("transformers")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(library, f"{kind}Config")(
        text_config=tower | {"vocab_size": 100, "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
    )
    model = getattr(library, f"{kind}Model")(config).eval().requires_grad_(False)
    model.set_attn_implementation(attention)
    for method, inputs in (
        ("get_image_features", torch.zeros(2, 3, 32, 32)),
        ("get_text_features", torch.full((2, 16), 2)),
    ):
        tower = Encoder(model, method)
        assert FLOPS_PER_MAC * forward_macs(tower, inputs) == without_fast_path(tower, inputs)


class PaddedEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 20, batch_first=True), 2)

    def forward(self, x):
        return self.encoder(x, src_key_padding_mask=torch.ones(x.shape[:2]).triu() == 0)


def test_an_encoder_that_drops_padding_is_priced_at_its_full_length():
    encoder, inputs = PaddedEncoder().eval().requires_grad_(False), torch.zeros(3, 5, 12)
    assert FLOPS_PER_MAC * forward_macs(encoder, inputs) == without_fast_path(encoder, inputs)


@pytest.mark.parametrize("kernel", ["attention_math", "flash_attention_for_cpu"])
def test_each_kernel_of_attention_costs_both_products(kernel):
    class Kernel(nn.Module):
        def forward(self, q, k, v):
            return getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")(q, k, v)[0]

    q, k = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8)
    assert forward_macs(Kernel(), q, k, k) == 2 * 3 * 5 * 7 * (8 + 8)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 12, 3),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4),
        nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2),
    ],
    ids=["dense", "depthwise", "grouped", "transposed"],
)
def test_a_convolution_trains_for_three_forward_passes(layer):
    """Groups included: torch's own formula of the backward pass leaves them out."""
    inputs = torch.zeros(2, 3, 9, 9)
    first = nn.Conv2d(3, 8, 1)
    counted = counted_macs(nn.Sequential(first, layer), inputs)
    alone = forward_macs(first, inputs)
    assert counted.forward == forward_macs(nn.Sequential(first, layer), inputs)
    assert counted.training == TRAINING_PASSES * counted.forward - alone, "the gradient of pixels is not needed"


def test_three_forward_passes_are_a_fair_price_of_a_training_step():
    """Charged a little too much: the patch embedding needs no gradient of its input."""
    count, width = 8, 32
    backbone = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=2
    )
    image, text = ImageTower(backbone, width), text_tower(length=8, width=64, layers=1, output=width)
    images = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
    tokens = torch.randint(1, 100, (count, 8))
    charged = FLOPS_PER_MAC * TRAINING_PASSES * (forward_macs(image, images) + forward_macs(text, tokens))
    charged += FLOPS_PER_MAC * TRAINING_PASSES * count * count * width
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        embeddings = (nn.functional.normalize(part, dim=-1) for part in (image(images), text(tokens)))
        sigmoid_loss(*embeddings, torch.tensor(10.0), torch.tensor(-10.0)).backward()
    error = charged / counter.get_total_flops() - 1
    print(f"a training step is charged {error:+.2%} of what torch counts")
    assert 0 <= error < 0.05
    text_counted, image_counted = (
        counted_macs(without_values(tower), inputs.to("meta")) for tower, inputs in ((text, tokens), (image, images))
    )
    products = TRAINING_PASSES * count * count * width
    counted = FLOPS_PER_MAC * (text_counted.training + image_counted.training + products)
    assert counted == counter.get_total_flops(), "counting without values counts the same"
    assert (text_counted.forward, image_counted.forward) == (forward_macs(text, tokens), forward_macs(image, images))


def shipped(name: str, *bindings: str) -> tuple[Resolved, TwoTowers, Batch]:
    """A model of gin/model with memory, but without values, and a batch for it."""
    resolved = resolve([str(PROJECT / "gin/run/tiny.gin"), str(PROJECT / f"gin/model/{name}.gin")], bindings)
    data = resolved.run.data.stand_in().split("pool")
    with torch.device("meta"):
        model = resolved.run.model.build(data.tokenizer, "softmax", 0)
    return resolved, model.to_empty(device="cpu"), data.batch(torch.zeros(1, dtype=torch.int64))


# Too much by one product of the patch embedding: nothing asks for the gradient of pixels.
@pytest.mark.slow  # a statement of docs/cost.md on large models
@pytest.mark.parametrize("path", sorted((PROJECT / "gin" / "model").glob("*.gin")), ids=lambda path: path.stem)
def test_the_3x_convention_errs_little_for_every_shipped_model(path):
    _, model, batch = shipped(path.stem)
    price = Price.of(model, batch)
    embed = model.image.backbone.patch_embed
    patches = embed.num_patches * embed.proj.weight.numel()
    assert Price.of_training(model, batch).pair == TRAINING_PASSES * price.pair - patches
    assert convention_error(model, price, batch) == pytest.approx(
        1 - patches / (TRAINING_PASSES * price.pair), rel=1e-12
    )
    assert patches / (TRAINING_PASSES * price.pair) < 0.03


def test_the_price_of_a_pair_is_printed(capsys):
    assert main(["--gin_file", str(PROJECT / "gin/run/tiny.gin"), "--price"]) == 0
    printed = capsys.readouterr().out
    counted, error = re.search(r"torch counts ([\d.]+) of it .* charges ([+-][\d.]+)% too much", printed).groups()
    assert (counted, error) == ("0.9926", "+0.75")
    pair = int(re.search(r"one forward pass: ([\d,]+) MACs", printed)[1].replace(",", ""))
    trained = next(line.split()[1:3] for line in printed.splitlines() if line.startswith("learner_train"))
    assert [int(word.replace(",", "")) for word in trained] == [FLOPS_PER_MAC * 3 * 32 * pair, 3 * 32 * pair]
    assert "reference remembered: 1 + r/3                    1.67     2.67     4.33" in printed


def test_the_papers_cheap_view_costs_what_it_says():
    """ViT-B/16 at 256 px, texts of 12 tokens: 0.28 of a forward pass at patch 32, 0.64 for training half of it so."""
    resolved, model, batch = shipped("vit_b16_256", "synthetic.length=12")
    cheap = Price.of(model, batch, cheap_view(resolved, model)).pair / Price.of(model, batch).pair
    assert cheap == pytest.approx(0.28, abs=0.01)
    assert (1 + cheap) / 2 == pytest.approx(0.64, abs=0.005)
    forms = closed_forms(cheap).values()
    assert [[round(cost, 2) for cost in costs] for costs in forms][:3] == [
        [1.67, 2.67, 4.33], [1.33, 2.33, 4.0], [2.33, 4.33, 7.67]
    ]  # fmt: skip
    paper = ([1.19, 1.47, 1.93], [0.83, 1.11, 1.57])
    for costs, published in zip(list(forms)[3:], paper, strict=True):
        assert costs == pytest.approx(published, abs=0.02)
