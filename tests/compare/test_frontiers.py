"""Decayed points, verdicts and worlds, from planted run folders to what is written."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import table
from planted_runs import AXES, HITS, METRIC, Points, arm_of, page_text, speedups, strict, warned, write_hits, write_run

from jestbench.compare.comparison import Comparison
from jestbench.compare.load import CompareError
from jestbench.compare.report import compare
from jestbench.compare.table import format_table
from jestbench.runs.folder import RunFolder

EXAMPLES = 400
UNIT = np.arange(EXAMPLES) % 100
MEASURE = {HITS: {"low": 0.0, "high": 1.0, "examples": EXAMPLES, "chance": 0.01, "lower_is_better": False}}


def ladder(folder: Path, decayed: Points, **options: Any) -> Path:
    """A ladder with these decayed points, whose trunk lies a third below them."""
    trunk = sorted({0: 0.0} | {flops * 7 // 10: value * 2 / 3 for flops, value in decayed[1:]} | {1: 0.0})
    low = dict(decayed[1:])
    points = [(at, 0.0 if at < 2 else next(v for f, v in low.items() if f * 7 // 10 == at) * 2 / 3) for at in trunk]
    return write_run(folder, [*points, decayed[-1]], rungs=decayed[:-1], **options)


def planted(folder: Path, truths: dict[str, float], seeds: int, keep: bool = True, **options: Any) -> None:
    """One run for each arm and seed, with the results of its examples (unless ``keep`` is false)."""
    cells = table(np.random.default_rng(0), list(truths.values()), [0.1] * len(truths), seeds, UNIT)
    for arm, cell in zip(truths, cells.values(), strict=True):
        assert cell.example_SN is not None
        for seed, value in enumerate(cell.value_S):
            points = [(0, 0.0), (100, float(value))]
            run = write_run(
                folder / f"{arm}{seed}", points, arm=arm, seed=seed, metric=HITS, measures=MEASURE, **options
            )
            if keep:
                write_hits(run, 100, cell.example_SN[seed], UNIT)


def written(runs: Sequence[Path] | Path, out: Path, metric: str = METRIC, **options: Any) -> tuple[Comparison, Any]:
    comparison = compare([runs] if isinstance(runs, Path) else runs, metric, out=out, **options)
    return comparison, strict((out / "comparison.json").read_text())


def texts(comparison: Comparison, out: Path) -> list[str]:
    return [format_table(comparison), (out / "comparison.md").read_text(), page_text(out)]


# --- decayed points


def test_speedup_between_rungs_is_read_in_log_flops_on_every_axis(tmp_path):
    ladder(tmp_path / "runs/u", [(100, 0.1), (200, 0.2), (400, 0.4)])
    ladder(
        tmp_path / "runs/j",
        [(100, 0.2), (200, 0.6), (400, 0.8)],
        arm="jest",
        pretrain_flops={"reference": 100},
        seen_per_flop=4,
        seconds_per_flop=0.2,
    )
    comparison, document = written(tmp_path / "runs", tmp_path / "out")
    assert document["budget"] == 400
    # uniform's 0.4 lies halfway between jest's rungs at 100 and 200: at 100·√2 on each axis, 100 more all in
    found = {axis: value for axis, (value, _) in speedups(comparison, "jest").items()}
    half = 2**0.5
    assert found["flops"] == found["pairs_trained"] == pytest.approx(4 / half)
    assert found["flops_all_in"] == pytest.approx(400 / (200 * (300 / 200) ** 0.5))
    assert found["pairs_seen"] == pytest.approx(1 / half)
    assert found["seconds"] == pytest.approx(2 / half)
    assert {kind for _, kind in speedups(comparison, "jest").values()} == {"decayed"}
    jest = document["arms"][0]
    assert jest["reach"]["flops"] == {"arm": pytest.approx(100 * half), "baseline": 400}
    assert (jest["flops_total"], jest["flops_rungs"], jest["seconds"]) == (400, 60, 80)
    assert sum(jest["flops_by_purpose"].values()) == 400
    for text in texts(comparison, tmp_path / "out"):
        assert "2.83" in text
        assert "~2" not in text


def test_a_baseline_of_larger_budgets_has_its_own_end_as_a_second_target(tmp_path):
    for seed in range(3):
        up = 0.001 * seed
        ladder(tmp_path / f"runs/u{seed}", [(100, 0.1 + up), (200, 0.2), (400, 0.4 + up), (1600, 0.6)], seed=seed)
        rungs = [(100, 0.2), (200, 0.5 + up), (400, 0.7 + up)]
        ladder(tmp_path / f"runs/j{seed}", rungs, seed=seed, arm="jest", pretrain_flops={"reference": 100})
        ladder(tmp_path / f"runs/s{seed}", [(100, 0.1), (200, 0.3), (400, 0.5 + up)], seed=seed, arm="short")
    comparison, document = written(tmp_path / "runs", tmp_path / "out")
    assert document["budget"] == 400
    by_label = {arm["label"]: arm["speedup_to_end"] for arm in document["arms"]}
    # uniform's 0.6 at 1600 lies halfway (at √2 times 200, less a little for the seeds) between jest's rungs
    jest = by_label["jest"]["flops"]
    assert jest["value"] == pytest.approx(1600 / (200 * 2**0.5), rel=0.01)
    assert jest["low"] < jest["value"] < jest["high"]
    assert by_label["jest"]["flops_all_in"]["value"] == pytest.approx(1600 / (300 * (500 / 300) ** 0.5), rel=0.01)
    assert (by_label["short"]["flops"]["value"], by_label["short"]["flops"]["absent"]) == (None, "never")
    assert by_label["uniform"] == {}
    for text in texts(comparison, tmp_path / "out"):
        assert "its largest budget" in text
        assert f"{jest['value']:.3g}" in text


@pytest.mark.parametrize(("arm_end", "base_end"), [(100, 100), (100, 107), (107, 100)])
def test_rungs_of_one_budget_are_compared_however_far_a_last_step_overshoots_it(tmp_path, arm_end, base_end):
    schedule = {"kind": "ladder", "rungs": [50, 100], "cooldown": 0.2}
    ladder(tmp_path / "runs/u", [(50, 0.2), (base_end, 0.5)], budget=100, schedule=schedule)
    ladder(tmp_path / "runs/j", [(50, 0.3), (arm_end, 0.6)], arm="jest", budget=100, schedule=schedule)
    _, document = written(tmp_path / "runs", tmp_path / "out")
    jest = document["arms"][0]
    needed = 50 * (arm_end / 50) ** (2 / 3)  # uniform's 0.5 lies two thirds of the way from jest's 0.3 to 0.6
    assert jest["speedup"]["flops"]["value"] == pytest.approx(base_end / needed)
    assert jest["speedup"]["flops"]["kind"] == "decayed"
    assert jest["reach"]["flops"] == {"arm": pytest.approx(needed), "baseline": base_end}


def test_an_arm_that_is_ahead_at_the_common_budget_is_not_worse_for_a_longer_last_step(tmp_path):
    schedule = {"kind": "ladder", "rungs": [50, 100], "cooldown": 0.2}
    ladder(tmp_path / "u", [(50, 0.2), (100, 0.495)], budget=100, schedule=schedule)
    ladder(tmp_path / "j", [(50, 0.3), (107, 0.5)], arm="jest", budget=100, schedule=schedule)
    jest = arm_of(compare([tmp_path], METRIC), "jest")
    assert jest.difference.value == pytest.approx(0.005)
    assert jest.speedup["flops"].value == pytest.approx(100 / (50 * 2.14 ** (0.195 / 0.2)))


def test_a_baseline_of_the_tables_budget_has_no_second_target(tmp_path):
    ladder(tmp_path / "runs/u", [(100, 0.1), (200, 0.2), (400, 0.4)])
    ladder(tmp_path / "runs/j", [(100, 0.2), (200, 0.6), (400, 0.8)], arm="jest")
    comparison, document = written(tmp_path / "runs", tmp_path / "out")
    assert [arm["speedup_to_end"] for arm in document["arms"]] == [{}, {}]
    assert not any("its largest budget" in text for text in texts(comparison, tmp_path / "out"))


def test_ladders_and_separate_runs_of_one_configuration_are_one_frontier(tmp_path):
    decayed = [(100, 0.1), (200, 0.2), (400, 0.4)]
    for seed in (0, 1):
        ladder(tmp_path / f"ladder/u{seed}", decayed, seed=seed, config_hash="long", frontier_hash="one")
        for flops, value in decayed:
            points = [(0, 0.0), (flops, value)]
            hashes = {"config_hash": f"until{flops}", "frontier_hash": "one"}
            write_run(tmp_path / f"apart/u{seed}-{flops}", points, seed=seed, **hashes)
    (tmp_path / "mixed").mkdir()
    for name in ("ladder/u0", "apart/u1-100", "apart/u1-200", "apart/u1-400"):
        (tmp_path / "mixed" / name.replace("/", "-")).symlink_to(tmp_path / name)
    expected = [
        {"arm": "uniform", "budget": flops, "mean": value, "low": None, "high": None, "seeds": [0, 1]}
        for flops, value in decayed
    ]
    for kind in ("ladder", "apart", "mixed"):
        _, document = written(tmp_path / kind, tmp_path / f"out-{kind}")
        assert document["frontier"] == expected, kind
        assert [arm["arm"] for arm in document["arms"]] == ["uniform"]
        assert document["arms"][0]["mean"] == 0.4
        assert not any("CONFIGURATIONS" in warning for warning in document["warnings"])


def test_common_budget_is_the_largest_that_every_arm_has_decayed(tmp_path):
    ladder(tmp_path / "u", [(100, 0.1), (200, 0.2), (400, 0.4)], step_flops=10)
    ladder(tmp_path / "j", [(50, 0.1), (100, 0.3), (200, 0.5)], arm="jest", step_flops=10)
    comparison = compare([tmp_path], METRIC)
    uniform, jest = arm_of(comparison, "uniform"), arm_of(comparison, "jest")
    assert comparison.first.budget == 200
    assert (uniform.mean.value, jest.mean.value) == (0.2, 0.5)
    assert not uniform.undecayed
    # what it had spent there, not at the end of its ladder
    assert (uniform.flops_total, uniform.pairs_seen, uniform.seconds) == (200, 200, 20)
    assert uniform.end.value == 0.4
    assert speedups(comparison, "jest")["flops"] == (pytest.approx(200 / (50 * 2**0.5)), "decayed")


def test_without_a_common_decayed_budget_nothing_is_judged(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"u{seed}", [(0, 0.0), (200, 0.2), (400, 0.4)], seed=seed)
        ladder(tmp_path / f"j{seed}", [(100, 0.5 + seed / 100), (300, 0.6 + seed / 100)], arm="jest", seed=seed)
    comparison, document = written(tmp_path, tmp_path / "out")
    assert comparison.first.budget == 300
    jest, uniform = document["arms"]
    assert (uniform["undecayed"], jest["undecayed"]) == (True, False)
    assert uniform["mean"] == pytest.approx(0.3)
    assert jest["difference"] == pytest.approx(0.31)
    assert (jest["difference_low"], jest["difference_high"], jest["verdict"]) == (None, None, None)
    assert jest["speedup"]["flops"]["kind"] == "touch"
    assert warned(comparison, "arm uniform", "inside an undecayed schedule", "no verdict")
    for text in texts(comparison, tmp_path / "out"):
        assert "jest and uniform: no verdict at 300 FLOP" in text
        assert "undecayed" in text


def test_an_undecayed_arm_takes_no_part_in_the_others_verdicts(tmp_path):
    planted(tmp_path / "runs", {"uniform": 0.1, "jest": 0.5}, seeds=3)
    alone = arm_of(compare([tmp_path / "runs"], HITS), "jest").difference
    for seed in (0, 1, 2):
        points = [(0, 0.0), (100, 0.3 + seed / 10), (150, 0.5)]
        write_run(tmp_path / f"runs/long{seed}", points, arm="long", seed=seed, metric=HITS, measures=MEASURE)
    comparison = compare([tmp_path / "runs"], HITS)
    assert comparison.first.budget == 100
    assert arm_of(comparison, "jest").difference == alone
    assert (arm_of(comparison, "jest").verdict, arm_of(comparison, "long").verdict) == ("better", None)


def test_a_touch_and_a_decayed_speedup_stand_side_by_side_never_in_one_number(tmp_path):
    ladder(tmp_path / "u", [(200, 0.2), (400, 0.4)])
    ladder(tmp_path / "j", [(200, 0.3), (400, 0.6)], arm="jest")
    write_run(tmp_path / "r", [(0, 0.0), (100, 0.2), (200, 0.4), (400, 0.6)], arm="rho")
    comparison = compare([tmp_path], METRIC)
    assert {kind for _, kind in speedups(comparison, "jest").values()} == {"decayed"}
    assert {kind for _, kind in speedups(comparison, "rho").values()} == {"touch"}
    assert speedups(comparison, "rho")["flops"][0] == pytest.approx(2)


def test_seeds_without_a_decayed_point_at_the_common_budget_are_named(tmp_path):
    appended = {"config_hash": "more", "frontier_hash": "one"}
    ladder(tmp_path / "u0", [(100, 0.1), (200, 0.2), (400, 0.4)], **appended)
    ladder(tmp_path / "u1", [(100, 0.1), (200, 0.2)], seed=1, config_hash="few", frontier_hash="one")
    comparison, document = written(tmp_path, tmp_path / "out")
    assert [(point["budget"], point["seeds"]) for point in document["frontier"]] == [
        *((100, [0, 1]), (200, [0, 1])),
        (400, [0]),
    ]
    assert comparison.arms[0].seeds == (0,)
    assert warned(comparison, "arm uniform", "seeds 1 have no decayed point at 4.000e+02")


def test_of_two_decayed_points_of_a_seed_that_of_the_newer_run_counts(tmp_path):
    ladder(tmp_path / "ladder", [(100, 0.1), (200, 0.2)], config_hash="a", frontier_hash="one")
    write_run(tmp_path / "cosine", [(0, 0.0), (100, 0.15)], config_hash="b", frontier_hash="one")
    for age, name in ((0, "cosine"), (1000, "ladder")):
        for path in (tmp_path / name).iterdir():
            os.utime(path, (1e9 - age, 1e9 - age))
    comparison = compare([tmp_path], METRIC)
    assert [(point.budget, point.mean.value) for point in comparison.first.frontier] == [(100, 0.15), (200, 0.2)]
    assert warned(comparison, "several runs have a decayed point at 100 FLOPs for one seed (0)", "newest run's counts")


def test_a_rung_that_is_not_finite_or_missing_is_said_and_an_end_that_is_not_leaves_the_run_out(tmp_path):
    nan = float("nan")
    ladder(tmp_path / "u", [(100, 0.1), (200, nan), (400, 0.4)])
    write_run(tmp_path / "j", [(0, 0.0), (200, 0.5), (400, nan)], arm="jest")
    schedule = {"kind": "ladder", "rungs": [100, 200, 400], "cooldown": 0.2}
    write_run(tmp_path / "r", [(0, 0.0), (400, 0.5)], arm="rho", schedule=schedule)
    comparison = compare([tmp_path], METRIC)
    assert [(point.arm, point.budget) for point in comparison.first.frontier] == [
        *(("rho", 400), ("uniform", 100)),
        ("uniform", 400),
    ]
    assert warned(comparison, "no decayed point at 2.000e+02", "not finite")
    assert warned(comparison, "r:", "no decayed point at 1.000e+02", "missing")
    assert warned(comparison, "left out", "arm jest", "not finite at the end")


def test_an_interrupted_ladder_counts_with_the_rungs_that_have_ended(tmp_path):
    """As a ladder of these rungs alone does, to the last number; one without an ended rung is left out."""
    rungs = [(100, 0.1), (200, 0.2), (400, 0.3)]
    for name in ("broken", "whole"):
        ladder(tmp_path / name / "u", rungs)
    ladder(tmp_path / "broken/j", [(100, 0.4), (200, 0.5), (400, 0.9)], arm="jest", status="interrupted")
    ladder(tmp_path / "whole/j", [(100, 0.4), (200, 0.5)], arm="jest")
    schedule = {"kind": "ladder", "rungs": [100, 200], "cooldown": 0.2}
    write_run(tmp_path / "broken/r", [(0, 0.0), (50, 0.6)], arm="rho", schedule=schedule, status="interrupted")
    comparison, found = written(tmp_path / "broken", tmp_path / "out/broken")
    _, whole = written(tmp_path / "whole", tmp_path / "out/whole")
    assert {(point.arm, point.budget) for point in comparison.first.frontier} == {
        *(("jest", 100), ("jest", 200), ("uniform", 100)),
        *(("uniform", 200), ("uniform", 400)),
    }
    assert found["frontier"] == whole["frontier"]
    both = [next(arm for arm in one["arms"] if arm["arm"] == "jest") for one in (found, whole)]
    for name in ("mean", "speedup", "flops_total", "budget", "difference"):
        assert both[0][name] == both[1][name], name
    assert warned(comparison, "interrupted at 4.000e+02 FLOPs", "ends at its rung of 2.000e+02")
    assert warned(comparison, "left out", "arm rho", "interrupted")


def test_a_run_with_a_single_evaluation_has_a_value_and_no_speedup(tmp_path):
    write_run(tmp_path / "u", [(100, 0.4)])
    write_run(tmp_path / "j", [(100, 0.5)], arm="jest")
    comparison = compare([tmp_path], METRIC)
    assert arm_of(comparison, "jest").difference.value == pytest.approx(0.1)
    assert {(s.value, s.absent) for s in arm_of(comparison, "jest").speedup.values()} == {(None, "early")}


# --- speed-ups and crossings of frontiers


def test_an_arm_above_at_its_first_rung_needs_at_most_that(tmp_path):
    ladder(tmp_path / "runs/u", [(100, 0.1), (200, 0.2), (400, 0.4)])
    ladder(tmp_path / "runs/j", [(100, 0.5), (200, 0.6), (400, 0.7)], arm="jest")
    comparison, document = written(tmp_path / "runs", tmp_path / "out")
    found = document["arms"][0]["speedup"]["flops"]
    assert (found["value"], found["kind"], found["absent"]) == (pytest.approx(4), "at_least", None)
    table, markdown, page = texts(comparison, tmp_path / "out")
    assert ">=4.00x" in table
    assert "≥4.00x" in markdown
    assert "≥4.00×" in page


@pytest.mark.parametrize(
    ("decayed", "absent"),
    [([(100, 0.1), (200, 0.2), (400, 0.35)], "worse"), ([(100, 0.1), (200, 0.5), (400, 0.3)], "worse")],
)
def test_an_arm_that_ends_below_the_baseline_has_no_decayed_speedup(tmp_path, decayed, absent):
    ladder(tmp_path / "runs/u", [(100, 0.1), (200, 0.2), (400, 0.4)])
    ladder(tmp_path / "runs/j", decayed, arm="jest")
    _, document = written(tmp_path / "runs", tmp_path / "out")
    assert [arm["arm"] for arm in document["arms"]] == ["uniform", "jest"]
    for axis in AXES:
        found = document["arms"][1]["speedup"][axis]
        assert found == {"value": None, "low": None, "high": None, "kind": None, "absent": absent}


def test_a_fall_along_the_budget_is_said(tmp_path):
    for seed in range(4):
        little = seed / 1000
        ladder(tmp_path / f"u{seed}", [(100, 0.1 + little), (200, 0.2 + little), (400, 0.3 + little)], seed=seed)
        fallen = [(100, 0.1 + little), (200, 0.6 + little), (400, 0.4 - little)]
        ladder(tmp_path / f"j{seed}", fallen, arm="jest", seed=seed)
    comparison = compare([tmp_path], METRIC)
    assert warned(comparison, "arm jest", "fall with the budget", "first crossing")
    # 0.3015 between 0.1015 and 0.6015
    assert speedups(comparison, "jest")["flops"] == (pytest.approx(400 / (100 * 2**0.4), rel=1e-6), "decayed")


def test_speedups_between_rungs_have_an_interval_that_holds_them(tmp_path):
    for seed, off in enumerate((-0.01, 0.0, 0.01)):
        ladder(tmp_path / f"runs/u{seed}", [(100, 0.1 + off), (200, 0.2 + off), (400, 0.3 + off)], seed=seed)
        ladder(tmp_path / f"runs/j{seed}", [(100, 0.2 - off), (200, 0.4 + off), (400, 0.5)], arm="jest", seed=seed)
    _, document = written(tmp_path / "runs", tmp_path / "out")
    found = document["arms"][0]["speedup"]["flops"]
    assert found["kind"] == "decayed"
    assert found["low"] < found["value"] < found["high"]
    assert found["value"] == pytest.approx(4 / 2**0.5)


def test_where_selection_pays_against_the_baseline_and_each_control(tmp_path):
    rungs = (100, 200, 400)
    arms = {"uniform": (0.1, 0.2, 0.3), "jest": (0.05, 0.2, 0.5), "aside": (0.1, 0.2, 0.4), "rho": (0, 0, 0.1)}
    for arm, values in arms.items():
        points = list(zip(rungs, values, strict=True))
        ladder(tmp_path / "runs" / arm, points, arm=arm, control=arm in ("uniform", "aside"))
    write_run(tmp_path / "runs/alone", [(0, 0.0), (400, 0.6)], arm="single")
    comparison, document = written(tmp_path / "runs", tmp_path / "out")
    found = {(row["arm"], row["other"]): row for row in document["crossings"]}
    assert set(found) == {
        *((arm, "uniform") for arm in ("jest", "aside", "rho")),
        *((arm, "aside") for arm in ("jest", "rho")),
    }
    row = found["jest", "uniform"]
    assert row["budget"] == pytest.approx(200)
    assert (row["before"], row["after"], row["low"], row["high"]) == ("worse", "better", None, None)
    assert (row["from"], row["to"]) == (100, 400)
    row = found["rho", "uniform"]
    assert (row["budget"], row["before"], row["after"]) == (None, "worse", "worse")
    for text in texts(comparison, tmp_path / "out"):
        assert "behind to 200 FLOP" in text


# --- verdicts


def test_a_verdict_in_table_document_and_words(tmp_path):
    planted(tmp_path / "runs", {"uniform": 0.1, "jest": 0.5, "twin": 0.1}, seeds=3)
    comparison, document = written(tmp_path / "runs", tmp_path / "out", HITS)
    jest = document["arms"][0]
    assert [(arm["arm"], arm["verdict"]) for arm in document["arms"] if arm["arm"] != "uniform"] == [
        *[("jest", "better")],
        ("twin", "not told apart"),
    ]
    assert 0 < jest["difference_low"] < jest["difference"] < jest["difference_high"] < 1
    assert jest["difference_low"] < jest["pointwise_low"]
    points = [f"{100 * jest[f'difference{end}']:.1f}" for end in ("", "_low", "_high")]
    said = f"jest is better than uniform by {points[0]} points [{points[1]}, {points[2]}] at 100 FLOP (3 seeds)"
    assert jest["sentence"] == said
    rule = document["rule"]
    assert "simultaneous" in rule
    assert "100 classes" in rule
    assert document["chance"] == 0.01
    for text in texts(comparison, tmp_path / "out"):
        flat = " ".join(text.replace("\\", "").split())
        assert said in flat
        assert rule in flat
        assert flat.index(rule) < flat.rindex("not told apart")
        assert "not told apart" in flat
        assert "chance 0.01" in flat


def test_the_noise_of_the_examples_is_in_the_interval_and_its_absence_is_said(tmp_path):
    planted(tmp_path / "with", {"uniform": 0.3, "jest": 0.35}, seeds=3)
    planted(tmp_path / "without", {"uniform": 0.3, "jest": 0.35}, seeds=3, keep=False)
    kept, bare = (compare([tmp_path / name], HITS) for name in ("with", "without"))
    wide, narrow = (arm_of(found, "jest").mean for found in (kept, bare))
    assert wide.value == narrow.value
    assert "classes" in kept.first.rule
    assert "noise of the examples is left out" in bare.first.rule
    # Without examples the seeds' spread, here that of binomial draws alone, is all that is known.
    assert (wide.low, wide.high) != (narrow.low, narrow.high)


def test_examples_in_another_order_are_paired_by_their_keys(tmp_path):
    planted(tmp_path / "straight", {"uniform": 0.3, "jest": 0.4}, seeds=2)
    planted(tmp_path / "turned", {"uniform": 0.3, "jest": 0.4}, seeds=2)
    for seed in (0, 1):
        folder = tmp_path / f"turned/jest{seed}"
        found = RunFolder(folder).results()[100].of(HITS)
        assert found is not None
        order = np.random.default_rng(seed).permutation(EXAMPLES)
        write_hits(folder, 100, found.value_N[order], found.unit_N[order], found.key_N[order])
    straight, turned = (arm_of(compare([tmp_path / name], HITS), "jest").difference for name in ("straight", "turned"))
    assert turned.low == pytest.approx(straight.low)
    assert turned.high == pytest.approx(straight.high)


def test_results_that_are_not_the_metrics_are_not_used(tmp_path):
    planted(tmp_path / "runs", {"uniform": 0.3, "jest": 0.4}, seeds=2)
    write_hits(tmp_path / "runs/jest0", 100, np.zeros(EXAMPLES), UNIT)
    (tmp_path / "runs/uniform1/eval/100.npz").write_bytes(b"PK torn")
    comparison = compare([tmp_path / "runs"], HITS)
    assert warned(comparison, "jest0", "do not average to eval/zero_shot_top1")
    assert warned(comparison, "uniform1", "100.npz", "intervals hold seeds alone")
    assert arm_of(comparison, "jest").seeds == (0, 1)
    assert "noise of the examples is left out" in comparison.first.rule


def test_less_is_better_where_the_runs_record_it(tmp_path):
    metric = "eval/zero_shot_odd"
    measures = {metric: {"low": 0.0, "high": None, "examples": None, "chance": 5.0, "lower_is_better": True}}
    for seed, off in enumerate((-0.01, 0.0, 0.01)):
        for arm, end in (("uniform", 3.0), ("jest", 2.0), ("bad", 4.0)):
            points = [(0, 5.0), (100, end + off)]
            write_run(tmp_path / f"runs/{arm}{seed}", points, arm=arm, seed=seed, metric=metric, measures=measures)
    comparison, document = written(tmp_path / "runs", tmp_path / "out", metric)
    assert document["lower_is_better"]
    assert [(arm["arm"], arm["verdict"]) for arm in document["arms"]] == [
        *(("jest", "better"), ("uniform", None)),
        ("bad", "worse"),
    ]
    assert document["arms"][0]["difference"] == pytest.approx(-1)
    assert document["arms"][0]["sentence"].startswith("jest is better than uniform by 1.000 [")
    assert document["arms"][2]["sentence"].startswith("bad is worse than uniform by 1.000 [")
    assert "chance 5" in format_table(comparison)
    assert not compare([tmp_path / "runs"], metric, lower_is_better=False).first.lower_is_better


def test_arms_that_are_equal_are_not_told_apart(tmp_path):
    for seed in range(3):
        for arm in ("uniform", "twin"):
            write_run(tmp_path / f"{arm}{seed}", [(0, 0.0), (100, 0.4 + seed / 100)], arm=arm, seed=seed)
    twin = arm_of(compare([tmp_path], METRIC), "twin")
    assert (twin.verdict, twin.difference.value) == ("not told apart", 0)


def test_the_deviation_of_seeds_is_shown_from_eight_seeds_on(tmp_path):
    for arm, seeds in (("uniform", 8), ("jest", 7)):
        for seed in range(seeds):
            write_run(tmp_path / f"runs/{arm}{seed}", [(0, 0.0), (100, 0.4 + seed / 100)], arm=arm, seed=seed)
    comparison, document = written(tmp_path / "runs", tmp_path / "out")
    found = {arm["arm"]: arm["seed_deviation"] for arm in document["arms"]}
    assert found["jest"] is None
    # of 0 … 7: √6; χ² with 7 degrees of freedom: 1.690 and 16.013 (tables)
    deviation = 6**0.5 / 100
    assert found["uniform"] == {
        "value": pytest.approx(deviation),
        "low": pytest.approx(deviation * (7 / 16.0128) ** 0.5, rel=1e-4),
        "high": pytest.approx(deviation * (7 / 1.68987) ** 0.5, rel=1e-4),
    }
    for text in texts(comparison, tmp_path / "out"):
        assert "0.0245" in text


# --- worlds


def test_arms_of_another_world_have_a_table_of_their_own(tmp_path):
    noisy, clean = {"noise": 0.6, "pairs": 9}, {"noise": 0.0, "pairs": 8}
    for seed in (0, 1, 2):
        for arm, value in (("uniform", 0.1), ("jest", 0.3)):
            points = [(0, 0.0), (100, value + seed / 100)]
            write_run(tmp_path / f"runs/{arm}{seed}", points, arm=arm, seed=seed, data=noisy)
    for arm, value in (("uniform", 0.6), ("rho", 0.5)):
        write_run(tmp_path / f"runs/clean-{arm}", [(0, 0.0), (50, value)], arm=arm, config_hash=f"c-{arm}", data=clean)
    comparison, document = written(tmp_path / "runs", tmp_path / "out")
    (other,) = document["other_worlds"]
    assert [arm["label"] for arm in document["arms"]] == ["jest", "uniform"]
    assert (document["budget"], document["world"], document["data"]["noise"]) == (100, {"noise": "0.6"}, 0.6)
    assert [(arm["label"], arm["difference"]) for arm in other["arms"]] == [
        *[("uniform", None)],
        ("rho", pytest.approx(-0.1)),
    ]
    assert (other["budget"], other["baseline"]) == (50, "uniform")
    assert document.keys() >= other.keys()
    first = comparison.warnings[0]
    assert "2 WORLDS" in first
    assert "noise is 0.6 (jest, uniform); 0.0 (rho, uniform)" in first
    for text in texts(comparison, tmp_path / "out"):
        assert text.index("noise 0.6") < text.index("noise 0.0")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"metric_vs_flops.png", "metric_vs_flops_2.png", "overview_2.png"} <= names


@pytest.mark.parametrize("fact", [{"loss": "sigmoid"}, {"data": "csv"}, {"eval_images": 7}])
def test_loss_data_and_evaluation_make_a_world_and_the_training_split_none(tmp_path, fact):
    shared = {"loss": "softmax", "data": "icons", "eval_images": 9, "split": "pool", "pairs": 5}
    write_run(tmp_path / "u", [(0, 0.0), (100, 0.1)], data=shared)
    write_run(tmp_path / "c", [(0, 0.0), (100, 0.2)], arm="curated", data=shared | {"split": "curated", "pairs": 1})
    assert len(compare([tmp_path], METRIC).tables) == 1
    write_run(tmp_path / "j", [(0, 0.0), (100, 0.9)], arm="jest", data=shared | fact)
    comparison = compare([tmp_path], METRIC)
    assert [[arm.label for arm in table.arms] for table in comparison.tables] == [["curated", "uniform"], ["jest"]]
    assert next(iter(fact)) in comparison.warnings[0]


def test_a_world_without_the_baseline_has_no_differences(tmp_path):
    write_run(tmp_path / "runs/u", [(0, 0.0), (100, 0.1)], data={"noise": 0.6})
    for arm, value in (("jest", 0.3), ("rho", 0.4)):
        for seed in (0, 1):
            points = [(0, 0.0), (100, value + seed / 50)]
            write_run(tmp_path / f"runs/{arm}{seed}", points, arm=arm, seed=seed, data={"noise": 0.0})
    comparison, document = written(tmp_path / "runs", tmp_path / "out")
    assert document["baseline"] == "uniform"
    (other,) = document["other_worlds"]
    assert other["baseline"] is None
    for arm in other["arms"]:
        assert arm["low"] < arm["mean"] < arm["high"]
        assert (arm["difference"], arm["verdict"]) == (None, None)
        assert {speedup["value"] for speedup in arm["speedup"].values()} == {None}
    assert warned(comparison, "no arm uniform among jest, rho", "no differences")
    with pytest.raises(CompareError, match="no arm 'other'"):
        compare([tmp_path / "runs"], METRIC, "other")


def test_runs_of_other_evaluation_examples_are_another_world_and_those_without_join_one(tmp_path):
    planted(tmp_path / "runs", {"uniform": 0.3, "jest": 0.4}, seeds=2)
    write_run(tmp_path / "runs/old", [(0, 0.0), (100, 0.2)], arm="old", metric=HITS, measures=MEASURE)
    assert len(compare([tmp_path / "runs"], HITS).tables) == 1
    odd = write_run(tmp_path / "runs/odd", [(0, 0.0), (100, 0.25)], arm="odd", metric=HITS, measures=MEASURE)
    write_hits(odd, 100, np.arange(EXAMPLES) < 100, UNIT, np.arange(EXAMPLES) + 1)
    comparison = compare([tmp_path / "runs"], HITS)
    assert [[arm.label for arm in table.arms] for table in comparison.tables] == [
        *[["jest", "uniform"]],
        ["odd"],
        ["old"],
    ]
    assert "evaluation examples" in comparison.warnings[0]
    assert "not recorded (old)" in comparison.warnings[0]


def test_other_data_of_one_evaluation_set_are_another_world(tmp_path):
    def prints(training):
        return {"training": training, "evaluation": "e"} if training else {"evaluation": "e"}

    mine, yours = prints("0123456789abcdef"), prints("fedcba9876543210")
    write_run(tmp_path / "mine/u", [(0, 0.0), (100, 0.1)], fingerprints=mine)
    write_run(tmp_path / "mine/j", [(0, 0.0), (100, 0.3)], arm="jest", fingerprints=mine)
    write_run(tmp_path / "mine/c", [(0, 0.0), (100, 0.2)], arm="curated", fingerprints=prints(""))
    alone = compare([tmp_path / "mine"], METRIC)
    assert [arm.label for arm in alone.tables[0].arms] == ["jest", "curated", "uniform"]
    write_run(tmp_path / "yours/l", [(0, 0.0), (100, 0.9)], arm="learnability", fingerprints=yours)
    both = compare([tmp_path], METRIC)
    worlds = [sorted(arm.label for arm in table.arms) for table in both.tables]
    assert worlds == [["jest", "uniform"], ["curated"], ["learnability"]]
    assert both.warnings[0].startswith("3 WORLDS")
    assert "training data is 01234567 (jest, uniform); not recorded (curated); fedcba98 (learn" in both.warnings[0]
    other = prints("0123456789abcdef") | {"evaluation": "another"}
    write_run(tmp_path / "mine/e", [(0, 0.0), (100, 0.9)], arm="else", fingerprints=other)
    assert ["else"] in [[arm.label for arm in table.arms] for table in compare([tmp_path / "mine"], METRIC).tables]


def test_a_label_in_two_worlds_is_no_clash(tmp_path):
    for noise in (0.0, 0.6):
        write_run(tmp_path / str(noise), [(0, 0.0), (100, 0.1)], config_hash=f"h{noise}", data={"noise": noise})
    comparison = compare([tmp_path], METRIC)
    assert [arm.label for arm in comparison.arms] == ["uniform", "uniform"]
    assert not warned(comparison, "CONFIGURATIONS")
    assert json.dumps(comparison.warnings).count("WORLDS") == 1
