"""Models of open_clip and transformers as references: equal to their own libraries, priced, cached, in each role."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from foreign_models import COCA, SIGLIP, TEXTS, clip_folder, open_clip_folder, pictures, siglip_folder, uint8_of
from helpers import own_surroundings, rows_of, small_world, summary_of
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jestbench.batch import Batch
from jestbench.compare import wording
from jestbench.compare.crossings import Speedup
from jestbench.config.resolve import resolve
from jestbench.cost.tracing import FLOPS_PER_MAC, forward_macs
from jestbench.data.synthetic import Synthetic
from jestbench.engine.foreign import Foreign
from jestbench.engine.hugging_face_clip import HuggingFaceClip
from jestbench.engine.open_clip_model import OpenClip
from jestbench.launch import console
from jestbench.launch.command import main
from jestbench.model.foreign_towers import ForeignTowers
from jestbench.model.pillow_resize import Kernel, pillow_resized

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


@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip", "hf_siglip2"])
@pytest.mark.parametrize("rescaling", [{"rescale_factor": 1 / 127.5}, {"rescale_factor": 0.01}, {"do_rescale": False}])
def test_the_rescaling_of_an_image_processor_is_carried(
    name: str, rescaling: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[name], tmp_path / name))
    file = folder / "preprocessor_config.json"
    scaled = {"image_mean": [100.0, 110.0, 120.0], "image_std": [60.0, 58.0, 57.0]} if "do_rescale" in rescaling else {}
    file.write_text(json.dumps(json.loads(file.read_text()) | rescaling | scaled))
    model = casting(folder).load().eval()
    check_equal(model, by_transformers(folder), 64)
    if name != "hf_siglip2":
        start = casting(folder).start().model
        assert start.shape.normalisation == (model.image.preprocessing.mean, model.image.preprocessing.std)


DIRTY = ["Tom &amp;  Jerry", "caf&eacute;  au\nlait", "its name &amp;amp; number", "schÃ¶n", "a photo of a_CAT, blue"]


@pytest.mark.parametrize("name", ["clip", "siglip", "coca", "hf_clip", "hf_siglip", "hf_siglip2"])
def test_captions_are_cleaned_and_tokenized_as_by_the_own_library(name: str, folders: dict[str, Path]) -> None:
    model = loaded(folders[name])
    if name.startswith("hf"):
        own = transformers.AutoTokenizer.from_pretrained(folders[name])
        options = {"padding": "max_length", "truncation": True, "max_length": model.text_length, "return_tensors": "pt"}
        expected = own(DIRTY, **options)["input_ids"]
    else:
        expected = open_clip.get_tokenizer(f"local-dir:{folders[name]}")(DIRTY)
        assert torch.equal(expected[0], open_clip.get_tokenizer(f"local-dir:{folders[name]}")(["tom & jerry"])[0])
    images, key_B = torch.zeros(len(DIRTY), 3, 8, 8, dtype=torch.uint8), torch.arange(len(DIRTY))
    batch = Batch(images, {"of the data": expected[:, :2]}, key_B, key_B, captions=tuple(DIRTY))
    assert torch.equal(model.tokenized(batch).token_ids[model.tokenizer], expected)


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


def test_two_models_by_scopes_score_a_half_each(folders: dict[str, Path], tmp_path: Path) -> None:
    twin = ["run.policy=rho_loss", "run.twin=True", "run.reference=[@one/open_clip(), @other/open_clip()]"]
    twin += ["one/open_clip.pretrain_flops=1e9", "other/open_clip.pretrain_flops=3e9"]
    found = {}
    for one, other in (("clip", "other"), ("other", "clip")):
        models = {"one": one, "other": other}
        words = [f"{scope}/open_clip.model=local-dir:{folders[name]}" for scope, name in models.items()]
        assert main([*JEST, *twin, *words, "--run_dir", str(tmp_path / one)]) == 0
        found[one] = chosen(tmp_path / one), summary_of(tmp_path / one)["config_hash"]
    assert found["clip"][0] != found["other"][0], "the halves are exchanged"
    assert found["clip"][1] != found["other"][1]
    summary = summary_of(tmp_path / "clip")
    assert summary["pretrain_flops"] == {"reference": 4 * 10**9}
    values = {entry["name"]: entry["metrics"]["eval/zero_shot_nll"] for entry in summary["references"]}
    assert values.keys() == {"open_clip clip", "open_clip other"}
    assert len(set(values.values())) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run.reference=[@one/open_clip(), @other/open_clip()]"], "run.twin = True"),
        (["run.twin=True", "run.policy=rho_loss"], "run.twin scores by two references"),
        (["run.reference_view=@view()", "view.keep=0.5"], "run whole, not under a view"),
        (["run.loss=sigmoid"], "'open_clip clip' was trained on the softmax loss"),
        (["open_clip.pretrained=openai"], "brings its own weights"),
        (["run.scorer=@open_clip()"], "run.scorer cannot be a model that fills the role 'reference'"),
        (
            ["run.twin=True", "run.policy=rho_loss", "run.reference=[@a/open_clip(), @hugging_face_clip()]"],
            "(width 24 and 20)",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: list[str], said: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    scopes = [f"{scope}open_clip.model=local-dir:{folders['clip']}" for scope in ("", "one/", "other/", "a/")]
    models = [
        *scopes,
        f"hugging_face_clip.path={folders['hf_clip']}",
        "--allow_unused",
        "*open_clip.*",
        "hugging_face_clip.*",
    ]
    assert main([*JEST, *words, *models, "--check"]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_its_scale_and_bias_are_fitted_to_another_loss(folders: dict[str, Path], tmp_path: Path) -> None:
    words = ["run.loss=sigmoid", "run.reference_calibrate=True", f"open_clip.model=local-dir:{folders['clip']}"]
    assert main([*JEST, *words, "--run_dir", str(tmp_path)]) == 0
    (entry,) = summary_of(tmp_path)["references"]
    assert entry["fitted_on"] == "pool"
    assert entry["fitted_bias"] < 0 < entry["fitted_scale"]


def test_a_cascade_draws_by_it_before_anything_is_decoded(folders: dict[str, Path], tmp_path: Path) -> None:
    words = ["run.cascade=@cascade()", "cascade.candidates=3", "run.policy=uniform", "run.super_batch_size=8"]
    command = [*JEST, *words, f"hugging_face_clip.path={folders['hf_clip']}", "run.reference=@hugging_face_clip()"]
    assert main([*command, "cascade.score=reference", "--run_dir", str(tmp_path)]) == 0
    assert rows_of(tmp_path)[1]["flops/reference_score"] > 0


def test_an_arm_is_its_weights_wherever_they_lie(folders: dict[str, Path], tmp_path: Path) -> None:
    def digest(*words: str) -> str:
        return resolve(JEST[1:2], [*JEST[2:], *words]).config_hash

    shutil.copytree(folders["clip"], tmp_path / "copy")
    there, here, other = (
        digest(f"open_clip.model=local-dir:{f}") for f in (folders["clip"], tmp_path / "copy", folders["other"])
    )
    assert there == here != other
    assert digest(f"open_clip.model=local-dir:{folders['clip']}", "run.policy=uniform") == digest(
        f"open_clip.model=local-dir:{folders['other']}", "run.policy=uniform"
    ), "an arm that scores with no reference"


def test_what_the_training_took_is_stated_or_unknown(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*JEST, f"open_clip.model=local-dir:{folders['clip']}", "budget.steps=None", "run.budget=1.5e9"]
    for words in ("budget.includes=('reference',)",), ("budget.adds=('reference',)", "run.policy=uniform"):
        assert main([*command, *words, "--price"]) == 2
        assert "pretrain_flops" in capsys.readouterr().err
    assert main([*command, "budget.includes=('reference',)", "--run_dir", str(tmp_path / "refused")]) == 2
    assert not (tmp_path / "refused").exists()
    assert main([*command, "--price"]) == 0
    assert "to pay, without the reference's pre-training" in capsys.readouterr().out
    stated = [*command, "open_clip.pretrain_flops=5e8", "budget.includes=('reference',)"]
    assert main([*stated, "run.arm=stated", "--run_dir", str(tmp_path / "runs/stated")]) == 0
    assert summary_of(tmp_path / "runs/stated")["pretrain_in_budget"] == 5 * 10**8
    for arm, policy in (("jest", "jest"), ("uniform", "uniform")):
        words = [f"run.arm={arm}", f"run.policy={policy}", "--run_dir", str(tmp_path / "runs" / arm)]
        assert main([*command, *words]) == 0
    out = tmp_path / "comparison"
    assert console.main(["compare", str(tmp_path / "runs"), "--metric", "zero_shot_nll", "--out", str(out)]) == 0
    found = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    arms = {arm["arm"]: arm for arm in found["arms"]}
    assert [arms[name]["pretrain_flops"] for name in ("jest", "stated", "uniform")] == [None, 5 * 10**8, 0]
    assert arms["jest"]["flops_all_in"] is None
    assert arms["stated"]["flops_all_in"] == arms["stated"]["flops_total"] + 5 * 10**8
    rows = {row["flops_total"]: row for row in found["references"]}
    assert rows[None]["value"] == rows[5 * 10**8]["value"] > 0
    text = (out / "comparison.md").read_text(encoding="utf-8")
    assert "without the reference's pre-training" in text
    assert re.search(r"open_clip clip of jest, seeds 0\* \(of jest; \?\)", text)


def test_unstated_pretraining_is_a_question_mark_among_the_speed_ups() -> None:
    assert wording.speedup_text(Speedup(None, None, "unstated")) == wording.flops_text(None) == "?"
