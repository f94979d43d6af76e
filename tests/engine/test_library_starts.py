"""Training begun from models that our towers do not express, run by their own library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from foreign_models import CLIP, COCA, RESNET, TEXTS, clip_folder, open_clip_folder, pictures, siglip_folder, uint8_of
from helpers import kill_before, outcome, own_surroundings, small_world, summary_of

from jestbench import load_model
from jestbench.config.resolve import resolve
from jestbench.cost.price import Price
from jestbench.cost.tracing import TRAINING_PASSES
from jestbench.data.synthetic import Synthetic
from jestbench.engine.foreign import Foreign
from jestbench.engine.hugging_face_clip import HuggingFaceClip
from jestbench.engine.open_clip_model import OpenClip
from jestbench.engine.start import CarriedStart, LibraryStart
from jestbench.export.run_export import main as export
from jestbench.launch.command import main
from jestbench.launch.stages import build_stages
from jestbench.launch.stands import stand_ins, with_start
from jestbench.loop import Stages
from jestbench.model.library_towers import LibraryTowers
from jestbench.runs.open_folder import recorded
from jestbench.runs.saved_model import towers_of

REASONS = {
    "coca": "no class token (CoCa)",
    "resnet": "do not include CLIP's ResNet",
    "hf_silu": "no activation SiLUActivation",
    "hf_siglip2": "do not include a model of the type 'siglip2'",
}
TINY = ["--gin_file", "gin/run/tiny.gin", *small_world(8, 16), "evaluate.points=1", "run.budget=None", "budget.steps=3"]


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_surroundings(tmp_path_factory, HF_HUB_OFFLINE="1"):
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("libraries")
    return {
        "clip": open_clip_folder(root / "clip", config=CLIP),
        "coca": open_clip_folder(root / "coca", config=COCA),
        "resnet": open_clip_folder(root / "resnet", config=RESNET),
        "hf_silu": clip_folder(root / "hf_silu", activation="silu"),
        "hf_siglip2": siglip_folder(root / "hf_siglip2", flexible=True),
    }


@pytest.fixture(scope="module")
def run_dir(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under jest that began from a CoCa, which is its own reference."""
    found = tmp_path_factory.mktemp("runs") / "coca"
    assert main([*jest_of(folders["coca"]), "--run_dir", str(found)]) == 0
    return found


def casting(folder: Path) -> Foreign:
    return HuggingFaceClip(path=str(folder)) if folder.name.startswith("hf_") else OpenClip(model=f"local-dir:{folder}")


def begun(folder: Path, *more: str) -> list[str]:
    """Bindings of a run that begins from a model."""
    if folder.name.startswith("hf_"):
        own = ["run.init=@hugging_face_clip()", f"hugging_face_clip.path={folder}"]
    else:
        own = ["run.init=@open_clip()", f"open_clip.model=local-dir:{folder}"]
    loss = "sigmoid" if folder.name == "hf_siglip2" else "softmax"
    return [*own, f"run.loss={loss}", *more]


def jest_of(folder: Path) -> list[str]:
    return [*TINY, *begun(folder, "run.reference=@open_clip()", "run.policy=jest", "jest.chunks=4"), "run.arm=library"]


def price(model: Any) -> Price:
    pairs = Synthetic(pool=100, curated=64, holdout=64, eval=32).split("pool")
    return Price.of(model, model.tokenized(pairs.example()))


def stages_of(folder: Path, store: Path) -> Stages:
    """The stages of a run on all pairs of a super-batch."""
    words = [*TINY[2:], *begun(folder, "run.policy=uniform"), "optimizer.clip=0"]
    resolved = with_start(resolve(["gin/run/tiny.gin"], words, recorded=recorded))
    return build_stages(resolved, *stand_ins(resolved), store)


@pytest.mark.parametrize("name", REASONS)
def test_a_step_is_that_of_the_library_by_itself(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Loss and gradients of every weight, by the library's own calls on what its own preprocessing makes."""
    start = casting(folders[name]).start()
    assert isinstance(start, LibraryStart)
    assert REASONS[name] in start.model.source["reason"]
    stages = stages_of(folders[name], tmp_path)
    batch = stages.super_batches.at(0)
    update = stages.learner.update(batch, None, 0.5, 0)

    own = casting(folders[name]).load().train()
    net: Any = own.image.net
    image_BD = F.normalize(own.image.encode(net, own.image.preprocessing(batch.images_BCHW)), dim=-1)
    text_BD = F.normalize(own.text.encode(net, own.tokens(batch.captions)), dim=-1)
    cosine_BB, pairs = image_BD @ text_BD.T, torch.arange(len(batch))
    if name == "hf_siglip2":
        logits = own.scale * cosine_BB + own.bias
        loss = -F.logsigmoid(logits * (2 * torch.eye(len(batch)) - 1)).sum() / len(batch)
    else:
        logits = own.scale * cosine_BB
        loss = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
    loss.backward()
    assert update.loss == pytest.approx(loss.item(), rel=1e-5)
    found = dict(stages.learner.model.named_parameters())
    expected = {f"image.net.{key}": value for key, value in net.named_parameters()}
    expected |= {"log_scale": own.log_scale, "bias": own.bias}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value.grad is None or (key == "bias" and own.loss == "softmax"):
            assert not found[key].requires_grad, key
        else:
            torch.testing.assert_close(found[key].grad, value.grad, rtol=1e-3, atol=1e-5, msg=key)
    assert sum(value.grad is not None for value in expected.values()) > 30


@pytest.mark.parametrize("name", ["resnet", "hf_siglip2"])
def test_it_trains_is_charged_and_is_loaded_again(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    command = [*TINY, *begun(folders[name], "run.policy=hard_learner"), "optimizer.learning_rate=1e-2"]
    assert main([*command, "--run_dir", str(tmp_path)]) == 0
    pair = price(casting(folders[name]).load()).pair
    flops = summary_of(tmp_path)["flops"]
    assert flops["learner_score"] == 3 * 2 * 16 * pair
    assert flops["learner_train"] == 3 * 2 * TRAINING_PASSES * 8 * pair
    trained, before = load_model(tmp_path), casting(folders[name]).load().eval()
    images = uint8_of(pictures((trained.model.pixels,) * 2, (trained.model.pixels,) * 2))
    again = towers_of(tmp_path)
    assert isinstance(again, LibraryTowers)
    before.image.net.load_state_dict(again.library_weights())  # the library itself, with the weights of the run
    with torch.no_grad():
        expected = before.encode_image(images), before.encode_text(before.tokens(TEXTS))
    torch.testing.assert_close(trained.encode_image(images), expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(trained.encode_text(TEXTS), expected[1], rtol=0, atol=1e-6)
    at_first = casting(folders[name]).load().eval()
    assert not torch.allclose(at_first.encode_text(at_first.tokens(TEXTS)), expected[1], atol=1e-4), "it has learnt"


def test_a_killed_run_goes_on_exactly(folders: dict[str, Path], run_dir: Path, tmp_path: Path) -> None:
    command = jest_of(folders["coca"])
    kill_before(2, [*command, "--run_dir", str(tmp_path)])
    assert main([*command, "--run_dir", str(tmp_path), "--resume"]) == 0
    assert outcome(tmp_path) == outcome(run_dir)
    pair = price(casting(folders["coca"]).load()).pair
    assert summary_of(run_dir)["flops"]["learner_train"] == 3 * 2 * TRAINING_PASSES * 8 * pair
    assert summary_of(run_dir)["start"] == {"name": "open_clip coca", "run_dir": "", "flops": None, "part": "whole"}


def test_its_run_folder_is_reference_and_start(run_dir: Path, tmp_path: Path) -> None:
    words = ["run.policy=jest", "jest.chunks=4", f"run.reference={run_dir}", f"run.init={run_dir}", "run.loss=softmax"]
    words += ["run.reference_accounting=online"]
    assert main([*TINY, *words, "--run_dir", str(tmp_path)]) == 0
    pair, summary = price(towers_of(run_dir)).pair, summary_of(tmp_path)
    assert summary["flops"]["reference_score"] == summary["flops"]["learner_score"] == 3 * 2 * 16 * pair
    assert summary["start"]["run_dir"] == str(run_dir)


def test_it_leaves_to_open_clip(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, trained = tmp_path / "out", load_model(run_dir)
    assert export([str(run_dir), "--to", "open_clip", "--out", str(out)]) == 0  # compares tokens and embeddings
    net, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{out}")
    images, ids = pictures((48, 48), (48, 48)), open_clip.get_tokenizer(f"local-dir:{out}")(TEXTS)
    with torch.no_grad():
        found = net.eval().encode_image(torch.stack([prepare(image) for image in images]), normalize=True)
        torch.testing.assert_close(found, trained.encode_image(uint8_of(images)), rtol=0, atol=1e-5)
        torch.testing.assert_close(net.encode_text(ids, normalize=True), trained.encode_text(TEXTS), rtol=0, atol=1e-5)
    assert net.logit_scale.item() == pytest.approx(trained.model.log_scale.item())
    assert "run by open_clip: our text towers have no class token" in (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("coca", ["run.train_views=((1.0, @view()),)", "view.patch_size=24"], "run.train_views: this model is trained"),
        ("coca", ["run.policy=hard_learner", "run.score_view=@view()", "view.keep=0.5"], "run.score_view: this model"),
        ("resnet", ["run.train_views=((1.0, @view()),)", "view.resolution=32"], "do not include CLIP's ResNet"),
        ("coca", ["model.freeze=image"], "model.freeze = 'image': a new text tower stands beside an image tower of"),
        ("coca", ["run.compile=True"], "run.compile = True: blocks of our towers"),
        ("coca", ["run.train_microbatch=auto"], "run.train_microbatch = 'auto' measures towers of ours"),
        ("coca", ["run.grad_checkpointing=True"], "cannot checkpoint its activations"),
        ("coca", ["run.loss=sigmoid"], "was trained on the softmax loss"),
        ("resnet", ["run.train_microbatch=4"], "(ModifiedResNet) has batch normalisation"),
    ],
)
def test_what_needs_towers_of_ours_is_refused(
    name: str, words: list[str], said: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "run.policy=uniform", *begun(folders[name]), *words, "--check"]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["resnet", "hf_siglip2"])
def test_it_is_priced_and_checked(name: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, *begun(folders[name], "run.policy=hard_learner")]
    assert main([*command, "--price"]) == 0
    said = capsys.readouterr().out
    assert f"{3 * 2 * 8 * price(casting(folders[name]).load()).pair:,}" in said
    assert "closed form, towers only: 1.667" in said  # 1 + r/3, r = 2
    assert main([*command, "--check"]) == 0


def test_an_architecture_of_ours_is_carried(folders: dict[str, Path]) -> None:
    assert isinstance(casting(folders["clip"]).start(), CarriedStart)
