"""Towers of all kinds: any timm image model, the mean and deviation of pixels, the text towers of CLIP and SigLIP."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import summary_of
from safetensors.torch import save_file
from torch import Tensor, nn

from jestbench.batch import View
from jestbench.config.resolve import resolve
from jestbench.launch.command import main
from jestbench.model.image_tower import resized
from jestbench.model.text_tower import TextTower
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.model.towers import Model, TwoTowers
from jestbench.model.views import check
from jestbench.runs.saved_model import towers_of

CAPTIONS = ["a red cat", "a blue dog on a hill", "red", "two green fish and a red cat by the sea"]
LENGTH, SIZE = 8, 64
TINY = ["--gin_file", "gin/run/tiny.gin", "log.progress=False", "run.device=cpu"]
SMALL = {"embed_dim": 16, "depth": 1, "num_heads": 2}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_bpe(CAPTIONS * 3, 300).to_str(), LENGTH)


def towers(tokenizer: Tokenizer, **options: Any) -> TwoTowers:
    shape = {"image_size": SIZE, "embed_dim": 12, "text_width": 16, "text_heads": 2}
    return Model(**shape | options).build(tokenizer, "sigmoid", 0).eval()


def images(size: int = SIZE) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=random)


# Any timm image model


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("convnext_atto", {}),
        ("mobilenetv3_small_050", {}),
        ("fastvit_t8", {}),  # MobileCLIP's kind
        ("vit_relpos_small_patch16_224", SMALL),
        ("mixer_s32_224", {}),
    ],
)
def test_any_timm_image_model_is_a_tower(tokenizer: Tokenizer, name: str, options: dict[str, Any]) -> None:
    model = towers(tokenizer, image_tower=name, image_options=options, image_size=SIZE)
    tower = model.image
    with torch.no_grad():
        pixels = resized(images(), (SIZE, SIZE)).float() / 127.5 - 1
        assert torch.allclose(tower(images()), tower.projection(tower.backbone(pixels)), atol=1e-6)
    for view in (View(keep=0.5), View(layers=0.5), View(patch_size=16)):
        with pytest.raises(ValueError, match=f"a {type(tower.backbone).__name__} is no plain vision transformer"):
            check(view, model)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_a_convolutional_tower_runs_at_other_resolutions(tokenizer: Tokenizer, name: str) -> None:
    model, view = towers(tokenizer, image_tower=name), View(resolution=32)
    assert check(view, model) == view
    assert check(View(resolution=SIZE), model) == View()
    with torch.no_grad():
        small = model.image(images(), view)
        assert torch.allclose(
            small,
            model.image.projection(model.image.backbone(resized(images(), (32, 32)).float() / 127.5 - 1)),
            atol=1e-6,
        )
        assert not torch.allclose(small, model.image(images()), atol=1e-2)


def test_a_stem_keeps_the_patches_of_its_features(tokenizer: Tokenizer) -> None:
    tower = towers(tokenizer, image_tower="vit_tiny_r_s16_p8_224", patch_size=32, image_options={"depth": 1}).image
    assert tower.backbone.patch_embed.patch_size == (8, 8)
    with torch.no_grad():
        assert tower(images()).isfinite().all()


def test_a_tower_of_one_size_refuses_another(tokenizer: Tokenizer) -> None:
    model = towers(tokenizer, image_tower="swin_tiny_patch4_window7_224", image_size=56)
    with pytest.raises(ValueError, match="SwinTransformer does not run on images of 32 × 32 px"):
        check(View(resolution=32), model)
    with pytest.raises(ValueError, match="'convnext_atto': ConvNeXt does not run on images of 8 × 8 px"):
        towers(tokenizer, image_tower="convnext_atto", image_size=8)


CONV = ["model.image_tower=convnext_atto", "model.image_options={}", "model.image_size=64"]
NORMED = ["model.image_tower=resnet10t", "model.image_options={}", "model.image_size=64"]
SCORED = ["run.policy=selective_backprop", "run.score_view=@cheap/view()"]


@pytest.mark.parametrize(
    ("bindings", "said"),
    [
        ([*CONV, *SCORED, "cheap/view.keep=0.5"], "run.score_view: .*view.keep.*ConvNeXt"),
        ([*CONV, *SCORED, "cheap/view.layers=0.5"], "run.score_view: .*view.layers.*ConvNeXt"),
        ([*NORMED, "run.grad_checkpointing=True"], "run.grad_checkpointing.*ResNet.*batch normalisation"),
        ([*NORMED, "run.train_microbatch=8"], "run.train_microbatch = 8.*ResNet.*batch normalisation"),
        (
            [
                *CONV,
                "run.scorer=@online_scorer()",
                "run.policy=active_clip",
                "run.reference=gin/run/tiny_reference.gin",
            ],
            "online_scorer.model: a ConvNeXt has no blocks",
        ),
    ],
)
def test_what_needs_another_tower_is_refused_before_anything_starts(
    bindings: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, *bindings, "--check"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert re.search(said, message), message


@pytest.mark.parametrize("tower", [CONV, NORMED], ids=["ConvNeXt", "ResNet"])
def test_a_convolutional_learner_is_trained_and_read_back(tower: list[str], tmp_path: Path) -> None:
    run = [
        *TINY,
        *tower,
        *SCORED,
        "cheap/view.resolution=32",
        "run.budget=None",
        "budget.steps=2",
        "run.batch_size=4",
        "run.super_batch_size=8",
    ]
    assert main([*run, "evaluate.points=1", "evaluate.limit=16", "--run_dir", str(tmp_path)]) == 0
    summary = summary_of(tmp_path)
    assert summary["flops"]["learner_score"] < summary["flops"]["learner_train"] / 3
    model = towers_of(tmp_path).eval()
    assert model.image(images(32)).isfinite().all()
    stored = timm.create_model(tower[0].partition("=")[2], num_classes=0).state_dict()
    assert {f"image.backbone.{name}" for name in stored} < model.state_dict().keys()


# Mean and deviation of the pixels


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a small DeiT whose "pretrained" weights lie in a file."""
    torch.manual_seed(5)
    shape = SMALL | {"img_size": SIZE, "patch_size": 16}
    path = tmp_path_factory.mktemp("weights") / "deit.safetensors"
    save_file(timm.create_model("deit_tiny_patch16_224", num_classes=7, **shape).state_dict(), path)
    return SMALL | {"pretrained_cfg_overlay": {"file": str(path), "num_classes": 7}}


def by_hand(tower: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    pixels = (images().double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    tower = tower.double()
    return tower.projection(tower.backbone(pixels))


def test_pretrained_weights_bring_their_mean_and_deviation(tokenizer: Tokenizer, weights: dict[str, Any]) -> None:
    shape = {"image_tower": "deit_tiny_patch16_224", "patch_size": 16, "image_options": weights}
    for options, (mean, std) in (
        ({"pretrained": True}, IMAGENET),
        ({"pretrained": False}, ((0.5,) * 3, (0.5,) * 3)),
        (
            {"pretrained": True, "image_mean": (0.1, 0.2, 0.3), "image_std": [1, 0.5, 0.25]},
            ((0.1, 0.2, 0.3), (1, 0.5, 0.25)),
        ),
        ({"pretrained": True, "image_mean": (0.1, 0.1, 0.1)}, ((0.1,) * 3, IMAGENET[1])),
    ):
        tower = towers(tokenizer, **shape, **options).image
        with torch.no_grad():
            assert torch.allclose(tower(images()).double(), by_hand(tower, mean, std), atol=1e-5)


def test_a_model_read_back_has_the_mean_that_it_was_trained_with(tmp_path: Path, weights: dict[str, Any]) -> None:
    own = ["model.image_tower=deit_tiny_patch16_224", "model.pretrained=True", f"model.image_options={weights}"]
    run = [*TINY, *own, f"model.image_size={SIZE}", "model.patch_size=16", "run.budget=None", "budget.steps=1"]
    assert main([*run, "evaluate.points=1", "evaluate.limit=16", "--run_dir", str(tmp_path)]) == 0
    tower = towers_of(tmp_path).eval().image
    with torch.no_grad():
        assert torch.allclose(tower(images()).double(), by_hand(tower, *IMAGENET), atol=1e-5)


def test_the_mean_is_part_of_the_arm() -> None:
    plain, bound = (
        resolve(["gin/run/tiny.gin"], bindings).config_hash for bindings in ([], ["model.image_mean=(0.4, 0.5, 0.5)"])
    )
    assert plain != bound


# Text towers


def test_the_last_position_is_pooled_and_padding_attended_to(tokenizer: Tokenizer) -> None:
    """SigLIP's text tower sees its padding; ours by default does not."""
    ids = tokenizer.encode(["red"])
    for options, blind in (
        ({"text_pool": "mean"}, True),
        ({"text_pool": "attention"}, True),
        ({"text_pool": "end", "text_causal": True}, True),
        ({"text_pool": "last", "text_attend_padding": True}, False),
        ({"text_pool": "attention", "text_attend_padding": True}, False),
    ):
        text = towers(tokenizer, **options).text
        changed = text.tokens.weight.clone()
        changed[tokenizer.pad_id] *= -3
        with torch.no_grad():
            before = text(ids)
            text.tokens.weight.copy_(changed)
            assert torch.allclose(before, text(ids), atol=1e-6) is blind, options


def test_attention_pooling_is_torchs_multi_head_attention(tokenizer: Tokenizer) -> None:
    pool = towers(tokenizer, text_pool="attention", text_activation="gelu_tanh").text.attention_pool
    x, mask = torch.randn(3, LENGTH, 16), torch.arange(LENGTH) < torch.tensor([[3], [8], [1]])
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([pool.q.weight, pool.kv.weight]))
        attention.in_proj_bias.copy_(torch.cat([pool.q.bias, pool.kv.bias]))
        attention.out_proj.load_state_dict(pool.out.state_dict())
        attended = attention(pool.query.expand(3, 1, 16), x, x, key_padding_mask=~mask)[0][:, 0]
        hidden = F.gelu(pool.fc1(pool.norm(attended)), approximate="tanh")
        assert torch.allclose(pool(x, mask[:, None, None, :]), attended + pool.fc2(hidden), atol=1e-6)


@pytest.mark.parametrize("siglip", [False, True], ids=["CLIP", "SigLIP"])
def test_a_text_tower_equals_open_clips(tokenizer: Tokenizer, siglip: bool) -> None:
    """Weights of open_clip's own class, by name, give its embeddings: masks, pooling, activation and ε are its own."""
    transformer = pytest.importorskip("open_clip.transformer")
    torch.manual_seed(3)
    own: dict[str, Any] = {"width": 16, "heads": 2, "layers": 2, "output_dim": 12, "context_length": LENGTH}
    ours: dict[str, Any] = {"embed_dim": 12, "text_width": 16, "text_heads": 2, "text_layers": 2}
    if siglip:
        own |= {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
        own |= {"norm_layer": lambda width: nn.LayerNorm(width, 1e-6), "act_layer": lambda: nn.GELU(approximate="tanh")}
        ours |= {"text_pool": "last", "text_attend_padding": True, "text_projection_bias": True}
        ours |= {"text_activation": "gelu_tanh", "text_norm_eps": 1e-6}
    else:
        own |= {"pool_type": "argmax", "act_layer": transformer.QuickGELU}
        ours |= {"text_causal": True, "text_pool": "end", "text_activation": "quick_gelu"}
    theirs = transformer.TextTransformer(vocab_size=60, **own).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) / 3)
    tower = TextTower(Model(**ours), 60, LENGTH, pad_id=0).eval()
    names = {
        "token_embedding": "tokens", "positional_embedding": "positions", "transformer.resblocks": "blocks",
        "ln_1": "norm_attention", "ln_2": "norm_mlp", "attn.in_proj_": "qkv.", "attn.out_proj": "out",
        "mlp.c_fc": "fc1", "mlp.c_proj": "fc2", "ln_final": "norm", "text_projection": "projection",
    }  # fmt: skip
    state = {}
    for name, value in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state |= {"projection.weight": value.T} if name == "projection" else {name: value}
    tower.load_state_dict(state)
    ids = torch.tensor([[5, 9, 59, 0, 0, 0, 0, 0], [3, 4, 5, 6, 7, 8, 9, 59]])
    with torch.no_grad():
        assert torch.allclose(tower(ids), theirs(ids), atol=1e-5)
