"""The command that evaluates without training: what a run itself measured, other sets, models of other libraries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from colour_sets import classification, retrieval
from foreign_models import open_clip_folder
from helpers import own_surroundings, rows_of, small_world, summary_of
from PIL import Image

from jestbench.launch.command import main as run
from jestbench.launch.run_evaluate import main as evaluate

SMALL = ["--gin_file", "gin/run/tiny.gin", *small_world(8, 16), "wandb.mode=disabled"]


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_surroundings(tmp_path_factory, HF_HUB_OFFLINE="1"):
        yield


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rungs, evaluated after each step."""
    folder = tmp_path_factory.mktemp("runs") / "ladder"
    rungs = ["optimizer.schedule=ladder", "optimizer.rungs=(3e8, 6e8)", "run.budget=None", "optimizer.warmup=0"]
    assert run([*SMALL, *rungs, "evaluate.points=20", "--run_dir", str(folder)]) == 0
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert evaluate([str(word) for word in words]) == 0
    return capsys.readouterr().out


def document(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluated.json").read_text())


def content(folder: Path) -> dict[Path, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "evaluated.json")
    return {path: path.read_bytes() for path in files}


def test_what_a_run_measured_at_its_end_comes_out_again(ladder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the last bit, by a line each metric; nothing that the run has written is touched."""
    before, final = content(ladder), summary_of(ladder)["metrics"]
    said = evaluated(capsys, ladder)
    assert document(ladder)["metrics"] == final
    assert [line.split()[0] for line in said.splitlines()] == list(final)
    assert content(ladder) == before
    errors = document(ladder)["standard_errors"]
    # Near the binomial deviation: a class, which is a unit, has about one image.
    p = final["eval/zero_shot_top5"]
    assert errors["eval/zero_shot_top5"] == pytest.approx((p * (1 - p) / 32) ** 0.5, rel=0.25)
    assert f"± {errors['eval/retrieval_mrr']:.2g}" in said.splitlines()[-1]
    capsys.readouterr()
    assert run(["--run_dir", str(ladder), "--resume"]) == 0, "the folder is still the run's"


def test_an_earlier_checkpoint_is_evaluated_by_name(
    ladder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an interrupted run, whose last checkpoint is evaluated by itself."""
    earlier, *_, last = sorted(path.name for path in (ladder / "checkpoints").glob("step-*"))
    assert earlier != last
    (row,) = (row for row in rows_of(ladder) if row["step"] == int(earlier[5:15]) and "ladder/rung" not in row)
    evaluated(capsys, ladder, "--checkpoint", earlier)
    own = document(ladder)
    assert own["checkpoint"] == earlier
    assert own["metrics"] == {key: row[key] for key in own["metrics"]}
    weights = ladder / "checkpoints" / last / "model.safetensors"
    weights.rename(tmp_path / "away")
    capsys.readouterr()
    assert evaluate([str(ladder), "--checkpoint", last]) == 3
    assert "model.safetensors is missing" in capsys.readouterr().err
    (tmp_path / "away").rename(weights)


def test_sets_that_are_named_now(ladder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On several runs at once, into one file; two sets that report a metric have its mean."""
    (ladder / "evaluated.json").unlink(missing_ok=True)
    sets = [classification(tmp_path / "colours"), classification(tmp_path / "shades", shots=2)]
    sets.append(retrieval(tmp_path / "captions"))
    named = f"evaluate.sets={tuple(map(str, sets))}"
    said = evaluated(capsys, ladder, ladder, named, "--evaluate.limit=16", "--json", tmp_path / "all.json")
    one, again = json.loads((tmp_path / "all.json").read_text())
    assert one == again
    assert said.count(f"{ladder} (step-") == 2
    assert not (ladder / "evaluated.json").exists()
    found = one["metrics"]
    assert one["sets"] == ["colours", "shades", "captions"]
    assert one["eval_images"] == 16
    assert "eval/captions/text_to_image_recall1" in found
    for name in ("zero_shot_top1", "mean_per_class_recall"):
        values = [found[f"eval/{folder}/{name}"] for folder in ("colours", "shades")]
        assert found[f"eval/sets_mean_{name}"] == sum(values) / 2
    assert "eval/sets_mean_retrieval_mrr" not in found
    assert "eval/sets_mean_zero_shot_top1" not in one["standard_errors"]


def test_a_model_of_another_library_has_the_scores_that_a_run_lists_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = open_clip_folder(tmp_path / "clip")
    bound = ["run.policy=easy_reference", "run.reference=@open_clip()", f"open_clip.model='local-dir:{folder}'"]
    words = [*SMALL, *bound, "run.budget=3e8", "run.loss=softmax", "--run_dir", str(tmp_path / "run")]
    assert run(words) == 0
    (entry,) = summary_of(tmp_path / "run")["references"]
    source = f"open_clip:local-dir:{folder}"
    named = ["--gin_file", tmp_path / "run" / "operative.gin", "--json", tmp_path / "found.json"]
    assert "eval/zero_shot_top5" in evaluated(capsys, source, *named)
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["metrics"] == entry["metrics"]
    sets = f"evaluate.sets=('{classification(tmp_path / 'colours')}',)"
    assert "eval/colours/zero_shot_top1" in evaluated(capsys, source, *named, sets)
    assert evaluate([source]) == 2
    assert "no data set to evaluate on: give --gin_file" in capsys.readouterr().err


def test_a_pair_scorer_is_evaluated_by_its_grades(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [*small_world(8, 8), "run.budget=None", "budget.steps=2", "wandb.mode=disabled"]
    folder = tmp_path / "scorer"
    assert run(["--gin_file", "gin/run/tiny_cappy.gin", *small, "--run_dir", str(folder)]) == 0
    evaluated(capsys, folder)
    assert document(folder)["metrics"] == summary_of(folder)["metrics"]


def test_other_captions_are_tokenised_as_the_model_was_trained(
    ladder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data set's own tokenizer differs; captions that it has made ids of are encoded anew by the model's."""
    own = tmp_path / "own"
    shutil.copytree(ladder, own)
    (tmp_path / "table.csv").write_text("filepath,title\nred.png,a red square\nblue.png,a blue square\n")
    for name, colour in (("red", (220, 20, 20)), ("blue", (20, 20, 220))):
        Image.new("RGB", (24, 16), colour).save(tmp_path / f"{name}.png")
    table = tmp_path / "table.csv"
    bound = ["run.data=@csv()", f"csv.eval={table}", f"csv.pool={table}", "csv.separator=,", "csv.image_size=16"]
    said = evaluated(capsys, own, *bound)
    assert "eval/zero_shot_top1" in said
    assert document(own)["data"] == "csv"
    assert document(own)["eval_images"] == 2


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["model.embed_dim=8"], 2, "model.embed_dim does not change an evaluation: the model is as it was trained"),
        (["evaluate.limt=8"], 2, "did you mean 'limit'?"),
        (["icons.noise=0.1"], 2, "this run never uses icons.noise (command line); remove it\n"),
        (["--checkpoint", "step-1"], 2, "holds no such checkpoint; there are: step-"),
        (["--device", "tpu"], 2, "run.device = 'tpu'"),
        (["/nowhere"], 3, "/nowhere holds no checkpoint"),
        (["evaluate.sets=('/nowhere/x',)"], 3, "no folder /nowhere/x"),
        (["--batch_size=3"], 2, "did you mean run.batch_size"),
    ],
)
def test_what_cannot_be_evaluated_is_one_message(
    words: list[str], status: int, message: str, ladder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate([str(ladder), *words]) == status
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
