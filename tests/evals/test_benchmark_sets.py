"""Evaluation sets in CLIP_benchmark's layout: read, evaluated, refused; few-shot against plain ridge regression."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from colour_sets import COLOURS, classification, encoded, retrieval
from helpers import small_learner
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import tar_of
from PIL import Image
from thread_world import by_threads

from jestbench.batch import DataError
from jestbench.config.resolve import resolve
from jestbench.data.synthetic import Synthetic
from jestbench.engine.learner import Learner
from jestbench.evals import benchmark
from jestbench.evals.benchmark_files import read_benchmark
from jestbench.evals.evaluate import Evaluate, Evaluator
from jestbench.evals.few_shot import PENALTIES, ridge_scores, shots_of
from jestbench.evals.metrics import group_ranks
from jestbench.launch.command import main
from jestbench.launch.rehearse import logged_names
from jestbench.parallel.distributed import World

PAIRS = Synthetic(eval=16).split("eval")


def learner() -> Learner:
    return small_learner(PAIRS.tokenizer, "softmax")


def evaluated(**config: object) -> tuple[dict[str, float], int]:
    evaluator = Evaluator(PAIRS, Evaluate(**config), 16)
    found, passes, results = evaluator(learner())
    assert set(evaluator.measures) == set(found)
    for key, value in found.items():
        examples = results.of(key)
        assert key.endswith("per_class_recall") if examples is None else examples.value_N.mean() == value
    return dict(found), sum(item.macs for item in passes)


def test_a_classification_set_is_read_as_it_lies(tmp_path):
    found = read_benchmark(str(classification(tmp_path / "wds_colours")), train=True)
    assert (found.name, found.task, found.classnames) == ("colours", "zero_shot", tuple(COLOURS))
    assert found.test.classes == (0, 1, 2) * 4
    assert found.train is not None
    assert len(found.train.images) == 18
    with Image.open(io.BytesIO(found.test.images[1].read())) as image:
        assert image.getpixel((0, 0)) == COLOURS["green"]


def test_zero_shot_is_the_mean_over_templates_and_is_priced(tmp_path):
    folder = classification(tmp_path / "colours")
    alone, price_alone = evaluated(batch_size=5)
    found, price = evaluated(batch_size=5, sets=(str(folder),))
    assert {name: value for name, value in found.items() if not name.startswith("eval/colours/")} == alone
    assert price - price_alone == 12 * 1000 + 6 * 10
    model = learner().model.eval()
    squares = []
    for member in read_benchmark(str(folder)).test.images:
        with Image.open(io.BytesIO(member.read())) as image:  # of one colour: resizing and cropping change nothing
            squares.append(np.asarray(image.resize((16, 16))))
    with torch.no_grad():
        image_ND = model.encode_image(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2))
        texts = [t.replace("{c}", c) for c in COLOURS for t in ("a {c} square", "the {c}")]
        text_TD = model.encode_text(PAIRS.tokenizer.encode(texts))
    class_CD = F.normalize(text_TD.reshape(3, 2, -1).mean(1), dim=-1)
    right = (image_ND @ class_CD.T).argmax(1) == torch.arange(3).repeat(4)
    assert found["eval/colours/zero_shot_top1"] == pytest.approx(float(right.double().mean()))
    assert found["eval/colours/zero_shot_top5"] == 1.0
    assert found["eval/colours/mean_per_class_recall"] == pytest.approx(found["eval/colours/zero_shot_top1"])


def test_processes_read_a_set_in_shares(tmp_path, monkeypatch):
    """With four processes and three examples, one process has none."""
    folders = str(classification(tmp_path / "colours")), str(retrieval(tmp_path / "captions"))
    decoded, decode = list[bytes](), benchmark.decode
    monkeypatch.setattr(benchmark, "decode", lambda content, size: decoded.append(content) or decode(content, size))

    subjects = [learner() for _ in range(4)]  # not by threads, which would draw from one generator

    def metrics(world: World) -> dict[str, float]:
        subject = subjects[world.rank]
        subject.arithmetic = replace(subject.arithmetic, world=world)
        return dict(Evaluator(PAIRS, Evaluate(sets=folders, few_shot=2, batch_size=2), 16)(subject).metrics)

    wanted, once = metrics(World()), Counter(decoded)
    for size in (2, 4):
        decoded.clear()
        assert by_threads(size, metrics) == [pytest.approx(wanted, abs=1e-6)] * size
        assert Counter(decoded) == once, "every image is read by one process"


def test_a_set_is_decoded_once_and_gives_the_same_figures_again(tmp_path):
    evaluator = Evaluator(PAIRS, Evaluate(sets=(str(classification(tmp_path / "colours")),)), 16)
    model = learner()
    first = evaluator(model).metrics
    for tar in (tmp_path / "colours" / "test").glob("*.tar"):
        tar.unlink()
    assert evaluator(model).metrics == first


def test_retrieval_counts_every_caption(tmp_path):
    found, price = evaluated(sets=(str(retrieval(tmp_path / "colour_captions")),))
    names = {name for name in found if name.startswith("eval/colour_captions/")}
    ways = ("image_to_text", "text_to_image")
    recalls = {f"eval/colour_captions/{way}_recall{k}" for way in ways for k in (1, 5, 10)}
    assert names == {*recalls, "eval/colour_captions/retrieval_mrr"}
    assert found["eval/colour_captions/image_to_text_recall5"] == 1.0
    assert price == evaluated()[1] + 3 * 1000 + 4 * 10


def test_few_shot_tells_colours_apart_that_an_untrained_model_embeds_apart(tmp_path):
    folder = classification(tmp_path / "colours")
    found, price = evaluated(sets=(str(folder),), few_shot=4)
    assert found["eval/colours/4_shot_top1"] == 1.0
    assert price == evaluated(sets=(str(folder),))[1] + 12 * 1000


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 4), st.integers(2, 6), st.integers(1, 12), st.integers(0, 10**6))
def test_few_shot_is_ridge_regression_with_the_best_leave_one_out_penalty(classes, shots, width, seed):
    generator = torch.Generator().manual_seed(seed)
    class_S = torch.arange(classes).repeat(shots)
    shot_SD = torch.randn(len(class_S), width, generator=generator, dtype=torch.float64)
    test_ND = torch.randn(7, width, generator=generator, dtype=torch.float64)
    y_SC = 2 * F.one_hot(class_S, classes).double() - 1

    def fitted(x_SD, y_SC, penalty):
        mean_D, offset_C = x_SD.mean(0), y_SC.mean(0)
        centred = x_SD - mean_D
        gram = centred.T @ centred + penalty * torch.eye(width, dtype=torch.float64)
        weight_DC = torch.linalg.solve(gram, centred.T @ (y_SC - offset_C))
        return lambda x: (x - mean_D) @ weight_DC + offset_C

    unit = float((shot_SD - shot_SD.mean(0)).square().sum(1).mean())
    errors = []
    for penalty in PENALTIES:
        residual = 0.0
        hat = torch.stack([fitted(shot_SD, row, penalty * unit)(shot_SD)[:, 0] for row in _unit_targets(len(class_S))])
        for i in range(len(class_S)):
            fit = fitted(shot_SD, y_SC, penalty * unit)(shot_SD[i])
            residual += float(((y_SC[i] - fit) / max(1e-9, 1 - float(hat[i, i]))).square().sum())
        errors.append(residual)
    best = PENALTIES[int(np.argmin(errors))] * unit
    expected = fitted(shot_SD, y_SC, best)(test_ND)
    close = sorted(errors)
    if close[1] - close[0] > 1e-9 * close[0]:  # else which of two equal penalties is taken is open
        torch.testing.assert_close(ridge_scores(shot_SD, class_S, test_ND, classes), expected, rtol=1e-7, atol=1e-7)


def _unit_targets(count: int) -> list[torch.Tensor]:
    return [row[:, None] for row in torch.eye(count, dtype=torch.float64)]


def test_shots_are_the_first_of_each_class():
    class_N = torch.tensor([2, 0, 2, 1, 0, 2, 0])
    assert shots_of(class_N, 2).tolist() == [0, 1, 2, 3, 4]
    assert shots_of(class_N, 1).tolist() == [0, 1, 3]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_group_ranks_are_a_plain_reading(groups, seed):
    rng = np.random.default_rng(seed)
    group_Q = torch.from_numpy(rng.integers(0, groups, 9))
    group_G = torch.from_numpy(np.concatenate([np.arange(groups), rng.integers(0, groups, 5)]))
    query, gallery = (torch.from_numpy(rng.integers(-2, 3, (n, 3))).float() for n in (9, len(group_G)))
    expected = []
    for q in range(9):
        scores = gallery @ query[q]
        best = max(float(s) for s, g in zip(scores, group_G, strict=True) if g == group_Q[q])
        expected.append(1 + sum(float(s) >= best and g != group_Q[q] for s, g in zip(scores, group_G, strict=True)))
    assert group_ranks(query, gallery, group_Q, group_G).tolist() == expected


def breaks(how: str, folder: Path) -> None:
    tar = folder / "test" / "0.tar"
    if how == "classnames":
        (folder / "classnames.txt").unlink()
    elif how == "template":
        (folder / "zeroshot_classification_templates.txt").write_text("a photo\n")
    elif how == "label":
        tar_of(tar, [("a.png", encoded((0, 0, 0))), ("a.cls", b"7")])
    elif how == "superscript":
        tar_of(tar, [("a.png", encoded((0, 0, 0))), ("a.cls", "²".encode())])
    elif how == "no label":
        tar_of(tar, [("a.png", encoded((0, 0, 0)))])
    elif how == "cut":
        tar.write_bytes(tar.read_bytes()[:700])
    elif how == "shards":
        (folder / "test" / "nshards.txt").write_text("3\n")
    elif how == "empty":
        for path in (folder / "test").glob("*.tar"):
            path.unlink()
    elif how == "kind":
        (folder / "dataset_type.txt").write_text("multilabel")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("classnames", "classnames.txt is missing"),
        ("template", "has no {c}"),
        ("label", "'7'.*3 classes"),
        ("superscript", "'²'.*3 classes"),
        ("no label", "class ''"),
        ("cut", "cut off|cannot be read"),
        ("shards", "announces"),
        ("empty", "holds no .tar"),
        ("kind", "multilabel"),
    ],
)
def test_a_set_that_is_not_whole_is_refused_by_name(tmp_path, how, said):
    folder = classification(tmp_path / "colours")
    breaks(how, folder)
    with pytest.raises(DataError, match=said):
        Evaluator(PAIRS, Evaluate(sets=(str(folder),)), 16)


def test_a_damaged_image_stops_the_evaluation_with_its_name(tmp_path):
    folder = classification(tmp_path / "colours")
    tar_of(folder / "test" / "0.tar", [("a.png", encoded((9, 9, 9))[:40]), ("a.cls", b"1")])
    with pytest.raises(DataError, match="colours is damaged"):
        evaluated(sets=(str(folder),))


def test_few_shot_needs_a_training_part(tmp_path):
    folder = classification(tmp_path / "colours")
    for file in (folder / "train").iterdir():
        file.unlink()
    (folder / "train").rmdir()
    with pytest.raises(DataError, match="no train/"):
        Evaluator(PAIRS, Evaluate(sets=(str(folder),), few_shot=2), 16)
    with pytest.raises(ValueError, match="few_shot takes"):
        Evaluate(few_shot=2)
    captions = str(retrieval(tmp_path / "captions"))
    with pytest.raises(DataError, match="few_shot classifies images"):
        Evaluator(PAIRS, Evaluate(sets=(captions,), few_shot=2), 16)


def test_a_model_of_nan_hits_nothing_and_its_run_ends_as_any_that_diverges(tmp_path, capsys):
    folder = classification(tmp_path / "colours")
    subject = learner()
    with torch.no_grad():
        subject.model.image.projection.weight.fill_(torch.nan)
    found = Evaluator(PAIRS, Evaluate(sets=(str(folder),), few_shot=2), 16)(subject).metrics
    assert found["eval/colours/2_shot_top1"] == found["eval/colours/zero_shot_top1"] == 0
    words = ["--gin_file", "gin/run/tiny.gin", f"evaluate.sets=('{folder}',)", "evaluate.few_shot=2"]
    words += ["optimizer.learning_rate=1e30", "optimizer.warmup=0", "evaluate.points=100", "run.device=cpu"]
    assert main([*words, "--run_dir", str(tmp_path / "run")]) == 4
    assert "the loss is nan" in capsys.readouterr().err


def test_a_run_evaluates_the_sets_at_each_point(tmp_path):
    folder = classification(tmp_path / "colours")
    bindings = [f"evaluate.sets=('{folder}',)", "evaluate.few_shot=2", "evaluate.points=1", "run.budget=2e9"]
    assert main(["--gin_file", "gin/run/tiny.gin", *bindings, "--run_dir", str(tmp_path / "run")]) == 0
    last = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert {"eval/colours/zero_shot_top1", "eval/colours/2_shot_top1", "eval/zero_shot_top1"} <= set(last)


def test_a_sweep_may_be_about_a_set(tmp_path):
    folder = classification(tmp_path / "colours")
    names = logged_names(resolve(["gin/run/tiny.gin"], [f"evaluate.sets=('{folder}',)", "evaluate.few_shot=2"]))
    assert {"eval/colours/zero_shot_top1", "eval/colours/2_shot_top1", "eval/zero_shot_top1", "train/loss"} <= names


@pytest.mark.parametrize("folder", ["/nowhere/wds_x", "~nobody_here/wds_x"])
def test_a_missing_set_is_said_before_anything_is_trained(folder, tmp_path, capsys):
    missing = [f"evaluate.sets=('{folder}',)", "--run_dir", str(tmp_path / "run")]
    assert main(["--gin_file", "gin/run/tiny.gin", *missing]) == 3
    assert f"no folder {folder}" in capsys.readouterr().err


def test_layouts_that_are_nearly_right_are_named_at_the_start(tmp_path):
    def said(change: str) -> str:
        folder = classification(tmp_path / change)
        if change == "gap":
            (folder / "classnames.txt").write_text("red\n\ngreen\nblue\n")
        elif change == "braces":
            (folder / "zeroshot_classification_templates.txt").write_text("a photo of {}\n")
        elif change == "val":
            (folder / "test").rename(folder / "val")
        elif change == "folders":
            for tar in (folder / "test").glob("*.tar"):
                tar.unlink()
            (folder / "test" / "red").mkdir()
        else:
            (folder / "classnames.txt").rename(folder / "class_names.txt")
        with pytest.raises(DataError) as error:
            read_benchmark(str(folder))
        return str(error.value)

    assert "classnames.txt: line 2 is empty, so the classes behind it would be miscounted" in said("gap")
    assert "has no {c} for the class: write {c} in place of {}" in said("braces")
    assert "there is no such folder, but train, val; the examples to test on lie in test/" in said("val")
    assert "holds no .tar, but the folders red: write images of classes into tars" in said("folders")
    assert "classnames.txt is missing" in (missing := said("name"))
    assert "(there: class_names.txt, test, train, zeroshot" in missing


def test_names_and_templates_may_begin_with_a_byte_order_mark(tmp_path):
    folder = classification(tmp_path / "colours")
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        (folder / name).write_bytes(("\ufeff" + (folder / name).read_text()).encode())
    found = read_benchmark(str(folder))
    assert (found.classnames, found.templates) == (tuple(COLOURS), ("a {c} square", "the {c}"))
    (folder / "classnames.txt").write_bytes("red\nvert\nbleu".encode("utf-16"))
    with pytest.raises(DataError, match=r"classnames\.txt: it is UTF-16"):
        read_benchmark(str(folder))


def test_a_top_5_among_few_classes_and_names_without_images_are_said(tmp_path, capsys):
    folder = classification(tmp_path / "colours")
    (folder / "classnames.txt").write_text("red\ngreen\nblue\nblack\n")
    words = ["--gin_file", "gin/run/tiny.gin", "run.device=cpu", f"evaluate.sets=('{folder}',)", "--check"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "eval/colours/zero_shot_top5 is always 1: the set colours has 4 classes" in said
    assert "1 of the 4 classes of colours have no image, the first is 'black' (class 3)" in said


def test_class_names_that_read_alike_or_are_ids_are_said(tmp_path, capsys):
    folder = classification(tmp_path / "colours")
    words = ["--gin_file", "gin/run/tiny.gin", "run.device=cpu", f"evaluate.sets=('{folder}',)", "--check"]

    def said(*names: str, more: str = "synthetic.length=64") -> str:
        (folder / "classnames.txt").write_text("\n".join(names))
        assert main([*words, more]) == 0
        return capsys.readouterr().err

    plain = said(*COLOURS)
    assert not any(text in plain for text in ("another", "WordNet", "are cut"))
    alike = said("red", "green", "RED")
    assert "evaluate.sets: colours: 1 of 3 classes have the tokens of another, such as 'red' and 'RED', so" in alike
    assert "(classes 0 and 2)" in said("red", "green", "red")
    assert "class names of colours: 3 of 3 are WordNet ids or numbers, such as 'n01440764'" in said(
        *(f"n0144076{i}" for i in (4, 5, 6))
    )
    short = said("red", "green", "a very red one", more="synthetic.length=2")
    assert "6 of 6 prompts (100%) are cut to the 2 tokens of synthetic.length" in short
    assert "colours: 2 of 3 classes have the tokens of another" in short, "nothing of the names is left"
