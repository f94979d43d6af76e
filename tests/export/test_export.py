"""Exported models: open_clip opens the folder as it stands and gives the same embeddings; what it lacks is named."""

from __future__ import annotations

import io
import json
import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import rows_of, summary_of
from PIL import Image
from scipy import stats
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from jestbench import load_model
from jestbench.data.decode import decode
from jestbench.evals.measure import Measure
from jestbench.evals.results import Examples
from jestbench.export.model_card import interval
from jestbench.export.open_clip_towers import NotExpressible, towers_for_open_clip
from jestbench.export.run_export import main as export
from jestbench.export.tokenizer_files import write_tokenizer
from jestbench.launch.command import main
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.model.tokenizer_choice import TokenizerChoice
from jestbench.model.towers import Model
from jestbench.runs.saved_model import tokenizer_of, towers_of

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

CAPTIONS = ["a red cat", "a blue dog on a hill", "two green fish & a <end> of <pad>", "ein Kätzchen 猫", "", "x " * 40]
TINY = ["--gin_file", "gin/run/tiny.gin", "log.progress=False", "run.device=cpu", "run.budget=None", "budget.steps=2"]
SMALL = ["run.batch_size=8", "run.super_batch_size=16", "evaluate.points=1", "evaluate.limit=32"]
SIGLIP = {"text_pool": "last", "text_attend_padding": True, "text_activation": "gelu_tanh", "text_norm_eps": 1e-6}
CLIP = {"text_causal": True, "text_pool": "end"}


def images(size: int) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8, generator=random)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the recipe clip_tiny.gin."""
    folder = tmp_path_factory.mktemp("runs") / "clip"
    assert main([*TINY, *SMALL, "--gin_file", "gin/model/clip_tiny.gin", "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "my clip"
    assert export([str(run_dir), "--to", "open_clip", "--out", str(out)]) == 0
    return out


# A whole round


def test_open_clip_opens_the_folder_and_gives_the_same_embeddings(run_dir: Path, exported: Path) -> None:
    theirs, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{exported}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{exported}")
    ours, tokenizer = towers_of(run_dir).eval(), tokenizer_of(run_dir)
    pixels = torch.stack([prepare(to_pil_image(image)) for image in images(32)])
    with torch.no_grad():
        assert torch.equal(tokenize(CAPTIONS[:2]), tokenizer.encode(CAPTIONS[:2]))
        for found, own in (
            (theirs.eval().encode_image(pixels), ours.encode_image(images(32))),
            (theirs.encode_text(tokenize(CAPTIONS[:2])), ours.encode_text(tokenizer.encode(CAPTIONS[:2]))),
        ):
            assert torch.allclose(F.normalize(found, dim=-1), own, atol=1e-5)
            assert float(own.std(dim=0).max()) > 1e-3, "the embeddings of different inputs differ"
    assert theirs.logit_scale.exp().item() == pytest.approx(ours.scale_and_bias()[0], rel=1e-6)


def test_taken_back_by_name_it_is_the_model_of_the_run(run_dir: Path, exported: Path) -> None:
    back, own = load_model(f"open_clip:local-dir:{exported}"), load_model(run_dir)
    assert torch.allclose(back.encode_image(images(32)), own.encode_image(images(32)), atol=1e-5)
    assert torch.allclose(back.encode_text(CAPTIONS[:2]), own.encode_text(CAPTIONS[:2]), atol=1e-5)
    classes = ["a red cat", "a blue dog"]
    assert torch.allclose(back.zero_shot(images(32), classes), own.zero_shot(images(32), classes), atol=1e-4)


def test_a_loaded_model_prepares_pictures_as_a_data_set_does(run_dir: Path) -> None:
    model, random = load_model(run_dir), np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (40, 60, 4), dtype=np.uint8), "RGBA")
    deep = Image.fromarray(random.integers(0, 2**16, (40, 60), dtype=np.uint16))
    turned, exif = colours.convert("RGB"), Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    for picture, options in ((colours, {}), (deep, {}), (turned, {"exif": exif})):
        file = io.BytesIO()
        picture.save(file, "PNG", **options)
        pixels = torch.from_numpy(decode(file.getvalue(), 32)).permute(2, 0, 1)[None]
        opened = Image.open(io.BytesIO(file.getvalue()))
        assert torch.equal(model.encode_image([opened]), model.encode_image(pixels)), picture.mode


def test_as_a_reference_by_name_it_scores_and_costs_as_the_run_folder(
    run_dir: Path, exported: Path, tmp_path: Path
) -> None:
    jest = [*TINY, *SMALL, "--gin_file", "gin/model/clip_tiny.gin", "run.policy=jest", "log.every=1"]
    jest += ["synthetic.image_size=32"]  # another size is scaled by the two in different ways
    rows = {}
    for name, reference in (
        ("folder", [f"run.reference={run_dir}"]),
        ("name", ["run.reference=@open_clip()", f"open_clip.model=local-dir:{exported}"]),
    ):
        assert main([*jest, *reference, "--run_dir", str(tmp_path / name)]) == 0
        rows[name] = [row for row in rows_of(tmp_path / name) if "train/loss" in row]
    for one, other in zip(rows["folder"], rows["name"], strict=True):
        assert one["flops/total"] == other["flops/total"]
        assert one["flops/reference_score"] == other["flops/reference_score"] > 0
        assert one["train/loss"] == pytest.approx(other["train/loss"], abs=1e-5)
        chosen = {key for key in one if key.startswith("select/")}
        assert chosen
        assert all(one[key] == pytest.approx(other[key], abs=1e-4) for key in chosen)


def test_the_card_tells_what_the_run_was(run_dir: Path, exported: Path) -> None:
    card, summary = (exported / "README.md").read_text(encoding="utf-8"), summary_of(run_dir)
    assert f"| learner train | {summary['flops']['learner_train']:,} |" in card
    assert f"| data | synthetic, split pool, pairs {summary['data']['pairs']}" in card
    value = summary["metrics"]["eval/zero_shot_nll"]
    low, high = map(
        float, re.search(rf"\| zero_shot_nll \| {value:.4g} \| ([\d.]+) … ([\d.]+) \| 32 \|", card).groups()
    )
    assert low < value < high


def test_a_folder_that_is_there_is_left_alone(
    run_dir: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in exported.iterdir()}
    assert export([str(run_dir), "--to", "open_clip", "--out", str(exported)]) == 3
    assert "name another folder by --out" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in exported.iterdir()} == before
    assert export([str(exported), "--to", "open_clip"]) == 3, "no run folder"


def test_a_folder_that_open_clip_opens_otherwise_is_not_left(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(*arguments: Any) -> Any:
        config, weights = towers_for_open_clip(*arguments)
        weights["visual.proj"] = weights["visual.proj"].flip(0)
        return config, weights

    monkeypatch.setattr("jestbench.export.open_clip_towers.towers_for_open_clip", changed)
    assert export([str(run_dir), "--to", "open_clip", "--out", str(tmp_path / "out")]) == 2
    assert "embeddings of images differ" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_is_there_when_it_is_whole(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing stands under the name before the folder was checked; ``~`` is the home folder behind ``=``, too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        "jestbench.export.run_export._check_opened", lambda *_: print("there:", (tmp_path / "out").exists())
    )
    assert export([str(run_dir), "--to=open_clip", "--out=~/out"]) == 0
    assert "there: False" in capsys.readouterr().out
    assert {"open_clip_config.json", "tokenizer.json"} < {file.name for file in (tmp_path / "out").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        assert export([str(run_dir), "--to=open_clip", "--out=~/full"]) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "full: cannot be written: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Towers of all kinds


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_bpe(CAPTIONS * 3, 320).to_str(), 12)


def towers(**options: Any) -> Model:
    shape: dict[str, Any] = {"image_size": 64, "patch_size": 16, "embed_dim": 24, "text_width": 32}
    vit = {"image_options": {"embed_dim": 32, "depth": 2, "num_heads": 2}} if "image_tower" not in options else {}
    return Model(**shape | vit | options)


QUICK = {
    "image_tower": "vit_base_patch32_clip_224",
    "image_options": {"embed_dim": 32, "depth": 2, "num_heads": 2, "act_layer": "quick_gelu"},
    "text_activation": "quick_gelu",
}
UNPROJECTED = {"image_tower": "resnet10t", "embed_dim": 512, "image_projection": False}


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("softmax", CLIP),  # the bias of the patches goes into their positions
        ("softmax", {**CLIP, **QUICK}),
        ("sigmoid", {**SIGLIP, "image_tower": "convnext_atto", "image_mean": (0.4, 0.5, 0.6)}),
        ("sigmoid", {**SIGLIP, **UNPROJECTED, "text_projection_bias": True}),
    ],
    ids=["ViT", "quick GELU", "ConvNeXt", "ResNet without projection"],
)  # fmt: skip
def test_towers_in_open_clips_terms_embed_alike(tokenizer: Tokenizer, loss: Any, options: dict[str, Any]) -> None:
    shape = towers(**options)
    ours = shape.build(tokenizer, loss, 0).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) / 20)
    config, weights = towers_for_open_clip(ours, shape, tokenizer)
    assert config.pop("custom_text")
    assert ("init_logit_bias" in config) is (loss == "sigmoid")
    theirs = open_clip.CustomTextCLIP(**json.loads(json.dumps(config))).eval()
    theirs.load_state_dict(weights)
    mean, std = (torch.tensor(values)[:, None, None] for values in shape.normalisation)
    ids_NL = tokenizer.encode(CAPTIONS)
    with torch.no_grad():
        image_ND = theirs.encode_image((images(64) / 255 - mean) / std, normalize=True)
        assert torch.allclose(image_ND, ours.encode_image(images(64)), atol=1e-5)
        assert torch.allclose(theirs.encode_text(ids_NL, normalize=True), ours.encode_text(ids_NL), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({}, "model.text_pool = 'mean'"),
        ({"text_pool": "attention"}, "model.text_pool = 'attention'"),
        ({"text_pool": "end"}, "model.text_causal = False with model.text_attend_padding = False"),
        ({**CLIP, "text_activation": "quick_gelu"}, "model.text_activation = 'quick_gelu' beside 'gelu'"),
        (
            {**CLIP, "image_tower": "vit_base_patch16_siglip_224", "image_options": {"depth": 1}},
            "it has no class token",
        ),
        ({**CLIP, "image_tower": "eva02_tiny_patch14_224"}, "Eva is no plain vision transformer"),
        ({**CLIP, "image_tower": "eva02_tiny_patch14_224"}, "with model.image_size = 64 and model.patch_size = 16 its"),
    ],
)
def test_what_open_clip_lacks_is_named(tokenizer: Tokenizer, options: dict[str, Any], first: str) -> None:
    shape = towers(**options)
    with pytest.raises(NotExpressible, match=re.escape(first)):
        towers_for_open_clip(shape.build(tokenizer, "softmax", 0), shape, tokenizer)


def test_a_run_that_cannot_leave_ends_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *SMALL, "--run_dir", str(tmp_path)]) == 0
    assert export([str(tmp_path), "--to", "open_clip"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: model.text_pool = 'mean': ")
    assert not (tmp_path / "open_clip").exists()
    assert export([str(tmp_path), "--to", "other"]) == 2


# Tokenizers


def words() -> str:
    """A tokenizer of whole words that opens and ends a text itself, as BERT's does."""
    vocabulary = {word: each for each, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "cat"])}
    backend = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    from tokenizers.processors import BertProcessing

    backend.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return backend.to_str()


@pytest.mark.parametrize("kind", ["trained", "of words"])
@pytest.mark.parametrize("length", [4, 24])
def test_the_tokenizer_of_transformers_makes_the_same_ids(kind: str, length: int, tmp_path: Path) -> None:
    text = train_bpe(CAPTIONS * 3, 320).to_str() if kind == "trained" else words()
    tokenizer = TokenizerChoice(length=length).framed(text)
    write_tokenizer(tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    options = {"return_tensors": "pt", "max_length": length, "padding": "max_length", "truncation": True}
    assert torch.equal(theirs(CAPTIONS, **options).input_ids, tokenizer.encode(CAPTIONS))


# Intervals


def test_an_interval_of_examples_by_themselves_is_students() -> None:
    value_N = np.random.default_rng(0).normal(size=40)
    found = interval(Examples(value_N, np.arange(40), np.arange(40)), Measure(None, None, 40))
    expected = stats.t.interval(0.95, 39, loc=value_N.mean(), scale=stats.sem(value_N))
    assert found == pytest.approx(expected)
    doubled = Examples(np.repeat(value_N, 2), np.repeat(np.arange(40), 2), np.arange(80))
    assert interval(doubled, Measure(None, None, 80)) == pytest.approx(expected), "copies tell nothing new"


def test_an_interval_of_a_share_stays_within_its_limits() -> None:
    value_N = np.array([1.0] + [0.0] * 19)
    low, high = interval(Examples(value_N, np.arange(20), np.arange(20)), Measure(0.0, 1.0, 20))
    assert 0 < low < 0.05 < high < 1
    assert interval(Examples(np.zeros(20), np.arange(20), np.arange(20)), Measure(0.0, 1.0, 20)) is None
