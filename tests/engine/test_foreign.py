"""Models of open_clip and transformers as references: equal to their own libraries, priced, cached, in each role."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from foreign_models import CLIP, TEXTS, clip_folder, open_clip_folder, pictures, siglip_folder, uint8_of
from helpers import own_surroundings, rows_of, small_world, summary_of
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jestbench.cost.tracing import FLOPS_PER_MAC, forward_macs
from jestbench.data.synthetic import Synthetic
from jestbench.engine.foreign import Foreign
from jestbench.engine.hugging_face_clip import HuggingFaceClip
from jestbench.engine.open_clip_model import OpenClip
from jestbench.launch.command import main
from jestbench.model.foreign import ForeignTowers
from jestbench.model.pillow_resize import Kernel, pillow_resized

SIGLIP = CLIP | {
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": CLIP["text_cfg"] | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}
COCA = CLIP | {
    "multimodal_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    "custom_text": True,
    "vision_cfg": CLIP["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": CLIP["text_cfg"] | {"embed_cls": True, "output_tokens": True},
}
Original = tuple[Callable[[list[Image.Image]], Tensor], Callable[[list[str]], Tensor]]
"""Pictures and texts → embeddings, by the library alone."""


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_surroundings(tmp_path_factory, HF_HUB_OFFLINE="1"):
        yield
    loaded.cache_clear()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("foreign")
    return {
        "clip": open_clip_folder(root / "clip"),
        "other": open_clip_folder(root / "other", seed=5, interpolation="bilinear"),
        "siglip": open_clip_folder(root / "siglip", config=SIGLIP, resize_mode="squash", mean=[0.5] * 3, std=[0.5] * 3),
        "coca": open_clip_folder(root / "coca", config=COCA),
        "hf_clip": clip_folder(root / "hf_clip"),
        "hf_siglip": siglip_folder(root / "hf_siglip"),
        "hf_siglip2": siglip_folder(root / "hf_siglip2", flexible=True),
    }


@cache
def loaded(folder: Path) -> ForeignTowers:
    return casting(folder).load().eval().requires_grad_(False)


def casting(folder: Path) -> Foreign:
    if folder.name.startswith("hf_"):
        return HuggingFaceClip(path=str(folder))
    return OpenClip(model=f"local-dir:{folder}")


def by_open_clip(model: str, pretrained: str | None = None) -> Original:
    net, _, transform = open_clip.create_model_and_transforms(model, pretrained)
    net, tokenizer = net.eval(), open_clip.get_tokenizer(model)
    return (
        lambda images: net.encode_image(torch.stack([transform(image) for image in images]), normalize=True),
        lambda texts: net.encode_text(tokenizer(texts), normalize=True),
    )


def by_transformers(folder: Path) -> Original:
    net = transformers.AutoModel.from_pretrained(folder).eval()
    prepare = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    length = net.config.text_config.max_position_embeddings

    def normalised(found: Any) -> Tensor:
        return F.normalize(getattr(found, "pooler_output", found), dim=-1)

    def images_of(images: list[Image.Image]) -> Tensor:
        return normalised(net.get_image_features(**prepare(images, return_tensors="pt")))

    def texts_of(texts: list[str]) -> Tensor:
        made = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return normalised(net.get_text_features(**made))

    return images_of, texts_of


def check_equal(model: ForeignTowers, original: Original, square: int) -> None:
    """Embeddings of square pictures as a run's batch holds them, of pictures of any shape, and of texts."""
    squares, shapes = pictures((square, square), (square, square)), pictures((50, 71), (90, 40))
    with torch.no_grad():
        for found, expected in (
            (model.encode_image(uint8_of(squares)), original[0](squares)),
            (model.pictures(shapes), original[0](shapes)),
            (model.encode_text(model.tokens(TEXTS)), original[1](TEXTS)),
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert not torch.allclose(model.encode_image(uint8_of(squares))[0], model.encode_image(uint8_of(squares))[1])


@pytest.mark.parametrize("name", ["clip", "other", "siglip", "coca", "hf_clip", "hf_siglip", "hf_siglip2"])
@pytest.mark.parametrize("square", [40, 96])
def test_embeddings_are_those_of_the_own_library(name: str, square: int, folders: dict[str, Path]) -> None:
    folder = folders[name]
    original = by_transformers(folder) if name.startswith("hf") else by_open_clip(f"local-dir:{folder}")
    check_equal(loaded(folder), original, square)


@pytest.mark.parametrize("name", ["clip", "siglip", "coca", "hf_clip", "hf_siglip", "hf_siglip2"])
def test_prices_are_those_of_the_counter_of_torch(name: str, folders: dict[str, Path]) -> None:
    model = loaded(folders[name])
    images, ids = uint8_of(pictures((64, 64))), model.tokens(TEXTS[:1])
    for module, given in ((model.image, images), (model.text, ids)):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                module(given)
            finally:
                torch.backends.mha.set_fastpath_enabled(before)
        assert forward_macs(module, given) == counter.get_total_flops() // FLOPS_PER_MAC > 0


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("old", "new"), [(64, 224), (300, 224), (97, 32), (512, 48), (8, 1)])
def test_images_are_resized_as_by_pillow(kernel: Kernel, old: int, new: int) -> None:
    images = pictures((old, old), (old, old))
    expected = [image.resize((new, new), getattr(Image.Resampling, kernel.upper())) for image in images]
    assert torch.equal(pillow_resized(uint8_of(images), new, kernel), uint8_of(expected))


WORLD = [*small_world(8, 24), "evaluate.points=2", "run.loss=softmax", "run.budget=None", "budget.steps=5"]
JEST = ["--gin_file", "gin/run/tiny.gin", *WORLD, "run.policy=jest", "run.arm=jest", "run.reference=@open_clip()"]


def chosen(run_dir: Path) -> list[Any]:
    """What was selected and what it led to, at each step."""
    keys = ("train/loss", "pairs/seen", "flops/total", "flops/reference_score", "eval/zero_shot_nll")
    return [[row.get(key) for key in keys] for row in rows_of(run_dir)]


def test_a_reference_of_another_size_tokenizer_and_resolution(folders: dict[str, Path], tmp_path: Path) -> None:
    command = [*JEST, f"open_clip.model=local-dir:{folders['clip']}"]
    ways = {"shared": ["run.cache=@cache()"], "again": ["run.cache=@cache()"], "none": []}
    for name, words in ways.items():
        assert main([*command, *words, "--run_dir", str(tmp_path / name)]) == 0
    assert [chosen(tmp_path / name) == chosen(tmp_path / "shared") for name in ways] == [True] * 3
    summaries = {name: summary_of(tmp_path / name) for name in ways}
    assert {summary["config_hash"] for summary in summaries.values()} == {summaries["none"]["config_hash"]}
    # The second run finds all that the first has computed: B images and texts a step, and none is embedded.
    assert summaries["again"]["cache"]["cache/hits"] == 5 * 2 * 24 > summaries["shared"]["cache"]["cache/hits"]
    entry, model = summaries["none"]["references"][0], loaded(folders["clip"])
    assert summaries["none"]["pretrain_flops"] == {"reference": None}
    assert (entry["name"], entry["pretrain_flops"]) == ("open_clip clip", None)
    # The row of the comparison: what an evaluation of the model by hand gives.
    world = Synthetic(pool=100, curated=64, holdout=64, eval=32).split("eval")
    batch = model.tokenized(world.batch(torch.arange(len(world))))
    assert batch.tokens(model.tokenizer).shape == (32, 20)
    image_ND, text_ND = model(batch)
    classes = list(dict.fromkeys(batch.captions))
    text_CD = torch.stack([text_ND[batch.captions.index(caption)] for caption in classes])
    right_N = torch.tensor([classes.index(caption) for caption in batch.captions])
    nll = F.cross_entropy(model.scale_and_bias()[0] * image_ND @ text_CD.T, right_N)
    assert entry["metrics"]["eval/zero_shot_nll"] == pytest.approx(float(nll), rel=1e-5)
