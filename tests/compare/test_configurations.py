"""Arms named by what differs, and what policies chose: read back from run folders."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from browser import Watched, chromium
from planted_page import write_examples, write_shown_run
from planted_runs import HITS, METRIC, UNIFORM, arm_of, page_text, warned, write_hits, write_run

from jestbench.compare.comparison import Comparison
from jestbench.compare.configurations import differing, labels, own_parameters, read_configuration
from jestbench.compare.gallery import gallery
from jestbench.compare.panels import panels
from jestbench.compare.report import compare
from jestbench.compare.wording import metric_text
from jestbench.evals.measure import Measure
from jestbench.runs.choices import shown_by


def test_a_configuration_is_read_as_gin_wrote_it(tmp_path: Path) -> None:
    text = "# Parameters for run:\n# ====\nrun.budget = 2000000000000.0\nrun.odd = 1234567.25\nscope/run.seed = 3\n\n"
    (tmp_path / "operative.gin").write_text(text + "a.b = \\\n    {'x': 1,\n     'y': 2}\na.path = '/x = y'\n")
    assert read_configuration(tmp_path) == {
        "run.budget": "2e+12",
        "run.odd": "1234567.25",
        "scope/run.seed": "3",
        "a.b": "{'x': 1, 'y': 2}",
        "a.path": "'/x = y'",
    }
    assert read_configuration(tmp_path / "none") == {}


def test_labels_hold_what_differs_and_are_never_equal() -> None:
    one = {"jest.chunks": "16", "run.seed": "0", "run.loss": "'softmax'"}
    other = one | {"jest.chunks": "4", "run.seed": "1"}
    assert labels("jest", {"aa11": one, "bb22": other}, 2) == {"aa11": "jest chunks=16", "bb22": "jest chunks=4"}
    same_name = {"aa11": one | {"cascade.chunks": "1"}, "bb22": other | {"cascade.chunks": "2"}}
    assert labels("jest", same_name, 2)["bb22"] == "jest cascade.chunks=2, jest.chunks=4"
    assert labels("jest", {"aa11": one, "bb22": dict(one)}, 2) == {"aa11": "jest@aa", "bb22": "jest@bb"}
    three = {"aa11": one, "bb22": dict(one), "cc33": other}
    assert labels("jest", three, 4) == {"aa11": "jest@aa11", "bb22": "jest@bb22", "cc33": "jest chunks=4"}
    many = [{f"a.p{n}": str(value) for n in range(9)} for value in (1, 2)]
    assert labels("x", {"aa": many[0], "bb": many[1]}, 2)["aa"] == "x p0=1, p1=1, p2=1, …"
    assert differing([one, other]) == ("jest.chunks",)
    assert own_parameters({"j": one, "u": {"run.loss": "'softmax'"}}) == {"j": {"jest.chunks": "16"}, "u": {}}


def test_arms_of_one_label_are_told_apart_and_found_as_baseline(tmp_path: Path) -> None:
    for chunks in (4, 16):
        write_shown_run(tmp_path / f"j{chunks}", "jest", 0, chunks / 100, chunks=chunks)
    comparison = compare([tmp_path], METRIC, "jest chunks=4")
    assert comparison.first.baseline == "jest chunks=4"
    assert arm_of(comparison, "jest chunks=16").arm == "jest"
    assert warned(comparison, "ONE LABEL", "jest chunks=4", "jest chunks=16")


def test_the_gallery_holds_what_each_policy_chose_first_and_refused_first(tmp_path: Path) -> None:
    for arm, chunks in (("one", 2), ("other", 6)):
        for seed in (0, 1):
            write_shown_run(tmp_path / f"{arm}{seed}", arm, seed, 0.1, chunks=chunks)
    write_shown_run(tmp_path / "u", "uniform", 0, 0.0)
    found, problems = gallery(compare([tmp_path], METRIC).first)
    assert problems == ()
    batch = found["batches"][0]
    assert (batch["step"], batch["size"], batch["count"]) == (1, 40, 8)
    first = {tuple(pair["at"] for pair in policy["chosen"]) for policy in batch["policies"]}
    assert first == {(2, 3, 4, 5), (6, 7, 8, 9)}
    assert {tuple(pair["at"] for pair in policy["refused"]) for policy in batch["policies"]} == {(39, 38, 37, 36)}
    assert set(batch["pictures"]) == {*range(2, 10), *range(36, 40)}
    assert [len(batch["by"][position]) for position in (2, 5, 6, 9, 39)] == [1, 1, 2, 2, 0]
    assert all(sum(policy["scores"]["chosen"]) == 8 for policy in batch["policies"])
    (overlap,) = found["overlap"]
    assert (overlap["batches"], overlap["chance"]) == (2, 0.2)
    assert overlap["shares"] == [[0, 1, 0.5]]


def test_examples_that_cannot_be_read_are_said_and_cost_nothing_else(tmp_path: Path) -> None:
    run = write_shown_run(tmp_path / "run", "uniform", 0, 0.0)
    write_examples(run, 0, 3)
    (run / "examples/step-0000000001.npz").write_bytes(b"PK")
    found, problems = shown_by(run)
    assert found == ()
    assert len(problems) == 1
    compare([run], METRIC, out=tmp_path / "out")
    assert "1 table of examples that cannot be read" in page_text(tmp_path / "out")
    (run / "examples/step-0000000001.json").write_text("{}")
    assert len(shown_by(run)[1]) == 1


def test_every_shared_metric_has_the_frontier_that_its_own_comparison_has(tmp_path: Path) -> None:
    for arm, gain in (("uniform", 0.0), ("jest", 0.1)):
        for seed in (0, 1, 2):
            write_shown_run(tmp_path / f"{arm}{seed}", arm, seed, gain + 0.01 * seed, chunks=4)
    shown = {panel.metric.key: panel for panel in panels(compare([tmp_path], METRIC).first)}
    assert list(shown) == [METRIC, "eval/zero_shot_top5"]
    for metric, panel in shown.items():
        own = compare([tmp_path], metric).first.frontier
        assert [(p.arm, p.budget, p.mean.value) for p in panel.points] == [(p.arm, p.budget, p.mean.value) for p in own]
        assert [(p.mean.low, p.mean.high) for p in panel.points] == [(p.mean.low, p.mean.high) for p in own]


@pytest.mark.parametrize(
    ("key", "measure", "data", "expected"),
    [
        ("eval/zero_shot_top5", Measure(chance=0.005), {"eval_classes": 1000}, "zero-shot top-5 of 1,000 classes"),
        ("eval/zero_shot_top5", Measure(chance=5 / 102), {}, "zero-shot top-5 of 102 classes"),
        (
            "eval/a/b/zero_shot_top1",
            Measure(),
            {"eval_sets": {"a/b": {"classes": 7}}},
            "a/b: zero-shot top-1 of 7 classes",
        ),
        ("eval/pets/10_shot_top1", Measure(chance=1 / 37), {"eval_classes": 9}, "pets: 10-shot top-1 of 37 classes"),
        ("eval/text_to_image_recall5", Measure(examples=2000), {}, "text-to-image recall@5, 2,000 queries"),
        ("eval/zero_shot_nll", Measure(), {"eval_classes": 3}, "zero-shot loss in nats of 3 classes"),
        ("train/loss", Measure(), {}, "train/loss"),
    ],
)
def test_a_metric_is_named_with_the_classes_of_its_own_set(
    key: str, measure: Measure, data: dict[str, object], expected: str
) -> None:
    assert metric_text(key, measure, data) == expected


def planted(folder: Path, runs: int, rows: int) -> Comparison:
    """Runs of many rows, as long as real ones, compared; the time that it takes is bounded."""
    hit = np.arange(2000) % 7 == 0
    plain = ", ".join(f'"select/number_{n}": 0.12345678901' for n in range(30))
    for number in range(runs):
        arm, seed = divmod(number, 8)
        run = write_run(
            folder / f"runs/{arm}-{seed}",
            [*UNIFORM[:-1], (1000, float(hit.mean()))],
            arm="uniform" if arm == 0 else f"arm{arm}",
            seed=seed,
            metric=HITS,
        )
        start, *_, end = (run / "metrics.jsonl").read_text().splitlines()
        with (run / "metrics.jsonl").open("w") as file:
            file.write(start + "\n")
            for step in range(1, rows):
                spent = f'"flops/total": {1000 * step // rows}, "pairs/trained": {step}'
                value = f', "{HITS}": {0.1 * step / rows}' if step % (rows // 20) == 0 else ""
                file.write(f'{{"step": {step * 1000 / rows:.0f}, {spent}, {plain}{value}}}\n')
            file.write(end + "\n")
        write_hits(run, 1000, hit, np.arange(2000) % 1000)
    began = time.process_time()  # of this process: other work on the machine does not count
    comparison = compare([folder / "runs"], HITS, out=folder / "out")
    assert time.process_time() - began < 10
    assert (folder / "out/index.html").stat().st_size < 10e6
    shutil.rmtree(folder / "runs")
    return comparison


def test_long_runs_are_compared_with_all_their_evaluations(tmp_path: Path) -> None:
    comparison = planted(tmp_path, 16, 2000)
    curve = comparison.first.arms[0].members[0].curve
    assert len(curve.value_E) == 21
    assert len(comparison.first.arms[0].members[0].run.rows) < 700


@pytest.mark.slow
def test_two_hundred_runs_of_ten_thousand_rows_are_compared_in_ten_seconds(tmp_path: Path) -> None:
    planted(tmp_path, 200, 10_000)
    with chromium() as browser:
        began = time.perf_counter()
        watched = Watched(browser, tmp_path / "out/index.html")
        assert watched.page.evaluate("document.querySelector('.frontier .chart').data.length") == 3 * 25
        assert time.perf_counter() - began < 10
        watched.close()
