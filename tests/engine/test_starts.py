"""Training begun from a trained model: ``run.init`` of a run folder, of open_clip, of ``transformers``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from foreign_models import CLIP, SIGLIP, TEXTS, clip_folder, open_clip_folder, pictures, siglip_folder, uint8_of
from helpers import kill_before, outcome, own_surroundings, rows_of, small_world, summary_of

from jestbench import compare_runs
from jestbench.batch import FULL, View
from jestbench.config.resolve import resolve
from jestbench.cost.price import Price
from jestbench.data.synthetic import Synthetic
from jestbench.engine.foreign import Foreign
from jestbench.engine.hugging_face_clip import HuggingFaceClip
from jestbench.engine.open_clip_model import OpenClip
from jestbench.launch.command import main
from jestbench.launch.forecast import RunForecast
from jestbench.runs.loaded_model import load_model
from jestbench.runs.open_folder import recorded
from jestbench.runs.saved_model import towers_of

QUICK = CLIP | {"quick_gelu": True, "vision_cfg": CLIP["vision_cfg"] | {"no_ln_pre": True}}


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_surroundings(tmp_path_factory, HF_HUB_OFFLINE="1"):
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("starts")
    return {
        "clip": open_clip_folder(root / "clip"),
        "teacher": open_clip_folder(root / "teacher", seed=5, config=CLIP | {"embed_dim": 40}),
        "quick": open_clip_folder(root / "quick", config=QUICK),
        "siglip": open_clip_folder(root / "siglip", config=SIGLIP, resize_mode="squash"),
        "hf_clip": clip_folder(root / "hf_clip"),
        "hf_siglip": siglip_folder(root / "hf_siglip"),
    }


def casting(folder: Path) -> Foreign:
    if folder.name.startswith("hf_"):
        return HuggingFaceClip(path=str(folder))
    return OpenClip(model=f"local-dir:{folder}")


@pytest.mark.parametrize("name", ["clip", "quick", "siglip", "hf_clip", "hf_siglip"])
def test_carried_weights_embed_as_the_library_itself(name: str, folders: dict[str, Path]) -> None:
    model, own = casting(folders[name]).start().model.build().eval(), casting(folders[name]).load().eval()
    side, texts = model.pixels, [*TEXTS, "WOW!!! a cat_dog & it's 3rd bird"]
    prepared = replace(own.image.preprocessing, resize=side)  # pixels of the model's own size
    images = uint8_of(pictures((side, side), (side, side)))
    with torch.no_grad():
        expected = F.normalize(own.image.encode(own.image.net, prepared(images)), dim=-1)
        torch.testing.assert_close(model.encode_image(images), expected, rtol=0, atol=1e-5)
        ids_BL = own.tokens(texts)
        assert torch.equal(model.tokens.encode(texts), ids_BL)
        torch.testing.assert_close(model.encode_text(ids_BL), own.encode_text(ids_BL), rtol=0, atol=1e-5)
        assert model.scale_and_bias() == pytest.approx(own.scale_and_bias())
        patch = model.image.backbone.patch_embed.patch_size[0] // 2
        other = model.encode_image(images, model.checked(View(patch_size=patch, keep=0.5)), torch.arange(2))
    assert other.isfinite().all()
    assert not torch.allclose(other, expected, atol=1e-3)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_a_text_of_clip_s_own_length_gets_its_ids(clean: str, tmp_path: Path) -> None:
    """In 77 tokens there is room for what ftfy changes in ordinary captions, too."""
    long = CLIP["text_cfg"] | {"context_length": 77, "tokenizer_kwargs": {"clean": clean}}
    foreign = casting(open_clip_folder(tmp_path / "clip", config=CLIP | {"text_cfg": long}))
    model, own = foreign.start().model.build(), foreign.load()
    texts = [*TEXTS, "“the cat’s dog” – ‘it’s’ ʼn ‟old„ cafe\u0301 №5"]
    assert torch.equal(model.tokens.encode(texts), own.tokens(texts))


WORLD = [*small_world(8, 16), "evaluate.points=2", "run.budget=None", "budget.steps=4", "run.loss=softmax"]
TINY = ["--gin_file", "gin/run/tiny.gin", *WORLD]


def stage(folders: dict[str, Path], *more: str) -> list[str]:
    """A stage in miniature: start and teacher of open_clip, jest at f = 0.5."""
    roles = ["run.init=@start/open_clip()", "run.reference=@teacher/open_clip()", "run.policy=jest", "run.arm=stage"]
    models = [f"{scope}/open_clip.model=local-dir:{folders[name]}" for scope, name in SCOPES.items()]
    return [*TINY, *roles, *models, "jest.chunks=4", "optimizer.learning_rate=1e-5", "optimizer.weight_decay=0", *more]


SCOPES = {"start": "clip", "teacher": "teacher"}


def price(model: Any, view: View = FULL) -> Price:
    pairs = Synthetic(pool=100, curated=64, holdout=64, eval=32).split("pool")
    return Price.of(model, model.tokenized(pairs.example()), view)


def test_a_stage_resumes_and_costs_the_closed_form(folders: dict[str, Path], tmp_path: Path) -> None:
    views = ["run.train_views=((0.5, @whole/view()), (0.5, @coarse/view()))", "coarse/view.patch_size=24"]
    command = stage(folders, *views, "run.reference_accounting=online")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*command, "--run_dir", str(whole)]) == 0
    kill_before(3, [*command, "--run_dir", str(killed)])
    assert main([*command, "--run_dir", str(killed), "--resume"]) == 0
    assert outcome(killed) == outcome(whole)
    summary = summary_of(whole)
    assert summary["start"] == {"name": "open_clip clip", "run_dir": "", "flops": None, "part": "whole"}
    assert summary["pretrain_flops"] == {"reference": None}
    # r = B/b = 2: both models score 16 pairs a step, and 8 are trained on, half of them at the coarse patch.
    learner, teacher = casting(folders["clip"]).start().model.build(), casting(folders["teacher"]).load()
    full, coarse = price(learner), price(learner, View(patch_size=24))
    flops = {
        "learner_score": 4 * 2 * 16 * full.pair,
        "learner_train": 4 * 2 * 3 * (4 * full.pair + coarse.pairs(4)),
        "reference_score": 4 * 2 * 16 * price(teacher).pair,
    }
    assert {name: summary["flops"][name] for name in flops} == flops
    assert summary["flops"]["total"] == sum(flops.values()) + summary["flops"]["pairwise"]
    # The result is a run folder like any other, whose tokenizer is the start's.
    trained = load_model(whole)
    assert trained.model.text_length == 20
    assert not torch.equal(trained.model.text.positions, learner.text.positions)
    assert torch.allclose(trained.model.text.positions, learner.text.positions, atol=1e-3)


def test_a_run_begins_where_another_has_ended(folders: dict[str, Path], tmp_path: Path) -> None:
    first, second, third = (str(tmp_path / name) for name in ("first", "second", "third"))
    stated = "start/open_clip.pretrain_flops=1e9"
    assert main([*stage(folders, stated, "run.policy=uniform", "--allow_unused", "*"), "--run_dir", first]) == 0
    begun = [*TINY, "run.policy=uniform", f"run.init={first}"]
    assert main([*begun, "--run_dir", second]) == 0
    # Scored by a run folder with a tokenizer of its own, too.
    assert main([*begun, "run.policy=jest", "jest.chunks=4", f"run.reference={second}", "--run_dir", third]) == 0
    spent = summary_of(first)["flops"]["total"]
    assert summary_of(second)["start"]["flops"] == 10**9 + spent
    assert summary_of(second)["pretrain_flops"] == {}
    ended, began = rows_of(first)[-1], rows_of(second)[0]
    names = [name for name in began if name.startswith("eval/")]
    assert len(names) > 3
    assert {name: began[name] for name in names} == {name: ended[name] for name in names}
    assert summary_of(second)["config_hash"] != summary_of(first)["config_hash"]


def test_a_locked_image_tower_is_charged_one_forward_pass(folders: dict[str, Path], tmp_path: Path) -> None:
    lit = [*TINY, "run.policy=uniform", "model.freeze=image", "run.init=@hugging_face_clip()"]
    lit += [f"hugging_face_clip.path={folders['hf_siglip']}", "run.precision=fp64"]  # Adam magnifies fp32's rounding
    assert main([*lit, "--run_dir", str(tmp_path / "lit")]) == 0
    own, trained = casting(folders["hf_siglip"]).start().model.build(), towers_of(tmp_path / "lit")
    for name, value in own.image.state_dict().items():
        assert torch.equal(value.double(), trained.image.state_dict()[name].double()), name
    each = price(trained)
    summary = summary_of(tmp_path / "lit")
    assert summary["flops"]["learner_train"] == 4 * 2 * 8 * (each.image + 3 * each.text)
    assert summary["start"]["part"] == "image"
    rows = rows_of(tmp_path / "lit")
    assert rows[-1]["eval/zero_shot_nll"] != rows[0]["eval/zero_shot_nll"], "the text tower learns"
    assert main([*lit, "run.train_microbatch=3", "--run_dir", str(tmp_path / "parts")]) == 0
    for name, value in trained.state_dict().items():  # cached gradients give the same update
        torch.testing.assert_close(towers_of(tmp_path / "parts").state_dict()[name], value, rtol=1e-9, atol=1e-9)
    assert summary_of(tmp_path / "parts")["flops"]["recompute"] == 4 * 2 * 8 * each.pair
    assert main([*lit, "run.train_microbatch=3", "run.remember_images=True", "--run_dir", str(tmp_path / "kept")]) == 0
    for name, value in towers_of(tmp_path / "parts").state_dict().items():  # and so do remembered images
        torch.testing.assert_close(towers_of(tmp_path / "kept").state_dict()[name], value, rtol=1e-9, atol=1e-9)
    assert summary_of(tmp_path / "kept")["flops"]["recompute"] == 4 * 2 * 8 * each.text


@pytest.mark.parametrize(
    ("policy", "accounting"),
    [("uniform", "first_sight"), *(("hard_learner", each) for each in ("online", "first_sight", "amortised"))],
)
def test_images_of_a_locked_tower_are_remembered(
    policy: str, accounting: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Charged in each pass, once an image, or apart; forecast alike; exactly so in a run that was killed."""
    lit = [*TINY, f"run.policy={policy}", "model.freeze=image", "run.init=@open_clip()", "run.remember_images=True"]
    lit += [f"open_clip.model=local-dir:{folders['clip']}", f"run.reference_accounting={accounting}"]
    lit += ["synthetic.pool=64", "budget.steps=8"]  # in eight steps each pair is seen
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*lit, "--run_dir", str(whole)]) == 0
    each, summary, scored = price(towers_of(whole)), summary_of(whole), 0 if policy == "uniform" else 16
    keys = Synthetic(pool=64, curated=64, holdout=64, eval=32).split("pool").indexed("a test").image_key_N
    met = len(set(keys.tolist()))
    in_scoring = {"online": 8 * scored, "first_sight": met if scored else 0, "amortised": 0}[accounting]
    in_training = {"online": 8 * 8, "first_sight": 0 if scored else met, "amortised": 0}[accounting]
    assert summary["flops"]["learner_score"] == 2 * (in_scoring * each.image + 8 * scored * each.text)
    assert summary["flops"]["learner_train"] == 2 * (in_training * each.image + 8 * 3 * 8 * each.text)
    assert summary["flops_amortised"] == 2 * met * each.image * (accounting == "amortised")
    assert main([*lit, "--price"]) == 0
    new = {"online": scored + 8, "first_sight": max(scored, 8), "amortised": 0}[accounting]
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("learner_")]
    spent = sum(int(words[1].replace(",", "")) for words in lines)
    assert spent == 2 * (new * each.image + (scored + 3 * 8) * each.text)
    if accounting == "first_sight" and scored:
        kill_before(6, [*lit, "--run_dir", str(killed)])
        assert main([*lit, "--run_dir", str(killed), "--resume"]) == 0
        assert outcome(killed) == outcome(whole)
        assert not list(killed.rglob("*.bin")), "rows of a run that has finished are removed"


@pytest.mark.parametrize(
    ("accounting", "limit"),
    [("first_sight", "run.budget=None"), ("first_sight", "run.budget=4e8"), ("online", "run.budget=4e8")],
)
def test_remembered_images_are_forecast_exactly_where_a_run_selects_late(
    accounting: str, limit: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Before that a step draws its pairs uniformly: images come again, and some that are scored later were met."""
    words = [*WORLD, "run.policy=hard_learner", "model.freeze=image", "run.init=@open_clip()"]
    words += ["run.remember_images=True", f"open_clip.model=local-dir:{folders['clip']}", "synthetic.pool=64"]
    words += [f"run.reference_accounting={accounting}", "run.select_from=0.6", limit]
    words += ["budget.steps=12"] if limit == "run.budget=None" else ["budget.steps=None"]
    forecast = RunForecast.of(resolve([TINY[1]], words, recorded=recorded))
    assert main([*TINY[:2], *words, "--run_dir", str(tmp_path / "run")]) == 0
    summary = summary_of(tmp_path / "run")
    assert forecast.steps == summary["steps"] > 8
    assert forecast.charges.total(forecast.steps) == summary["flops"]["total"]


def test_an_arm_is_the_weights_that_it_begins_from(folders: dict[str, Path], tmp_path: Path) -> None:
    def digest(*words: str) -> str:
        return resolve([*TINY[1:2]], [*WORLD, *words], recorded=recorded).config_hash

    def of(folder: Path) -> list[str]:
        return ["run.init=@open_clip()", f"open_clip.model=local-dir:{folder}"]

    copy = Path(shutil.copytree(folders["clip"], tmp_path / "copy"))
    assert digest(*of(folders["clip"])) == digest(*of(copy)) == digest(*of(copy), "model.text_layers=2")
    assert len({digest(), digest(*of(copy)), digest(*of(folders["teacher"]))}) == 3
    lit = [*of(copy), "model.freeze=image"]
    assert len({digest(*of(copy)), digest(*lit), digest(*lit, "model.text_layers=2")}) == 3
    assert digest(*lit) == digest(*lit, "model.image_size=32")


LOCKED = ["run.init=@open_clip()", "model.freeze=image", "run.remember_images=True"]


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (["run.init=nowhere"], "run.init = 'nowhere': no such run folder", 2),
        (["run.init=''"], "run.init = '': no such run folder", 2),
        (["model.freeze=image"], "these are random: bind run.init", 2),
        (["run.init=@online_scorer()"], "run.init: OnlineScorer is no trained model", 2),
        (["run.init=@open_clip()", "run.loss=sigmoid"], "was trained on the softmax loss", 2),
        (["run.init=@open_clip()", "run.objective=@regression()"], "trains a pair scorer from random weights", 2),
        (["run.init=empty"], "holds no finished run to begin from", 3),
        (["run.remember_images=True"], "run.remember_images: model.freeze is not set", 2),
        ([*LOCKED, "run.train_views=((1.0, @view()),)", "view.keep=0.5"], "run.remember_images: a view", 2),
        ([*LOCKED, "run.augment=@random_resized_crop()"], "run.remember_images: run.augment makes another image", 2),
    ],
)
def test_what_cannot_begin_is_refused(
    words: list[str],
    said: str,
    status: int,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    words = [word.replace("empty", str(tmp_path / "empty")) for word in words]
    models = [f"open_clip.model=local-dir:{folders['clip']}", "--allow_unused", "open_clip.*"]
    assert main([*TINY, "run.policy=uniform", *words, *models, "--check"]) == status
    assert said in " ".join(capsys.readouterr().err.split())


def test_the_shipped_stage_is_checked_and_priced_on_small_models(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = open_clip_folder(tmp_path / "other", seed=3, config=SIGLIP, resize_mode="squash")
    models = {"start": folders["siglip"], "teacher": other}
    words = [f"{scope}/open_clip.model=local-dir:{folder}" for scope, folder in models.items()]
    words += [f"{scope}/open_clip.pretrained=''" for scope in models]
    words += ["webdataset.image_size=160", "run.batch_size=64", "run.super_batch_size=128"]
    command = ["--gin_file", "gin/run/siglip2_stage.gin", *words]
    assert main([*command, "--price"]) == 0
    priced = capsys.readouterr().out
    assert "filter ratio 0.50" in priced
    assert "closed form, towers only: 2.333" in priced  # 1 + 2r/3 for a reference of the same size
    assert main([*command, "--check"]) == 0


def test_the_comparison_shows_a_start_apart(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = [*TINY, "run.policy=uniform", "run.init=@open_clip()", f"open_clip.model=local-dir:{folders['clip']}"]
    for arm, flops in {"stated": "1e9", "unknown": "None"}.items():
        words = [f"open_clip.pretrain_flops={flops}", f"run.arm={arm}"]
        assert main([*plain, *words, "--run_dir", str(tmp_path / arm)]) == 0
    arms = [tmp_path / "stated", tmp_path / "unknown"]
    said = " ".join(str(compare_runs(arms, "zero_shot_nll", baseline="stated", out=tmp_path / "out")).split())
    assert "stated: training began from open_clip clip, whose 1.00 GFLOP are in no figure" in said
    assert "unknown: training began from open_clip clip, whose unknown FLOPs are in no figure" in said
