"""The comparison, through its doors: hand-computed curves, broken runs, hostile labels, properties."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_runs import AXES, METRIC, UNIFORM, Points, arm_of, page_text, speedups, strict, warned, write_run

from jestbench.compare.comparison import Comparison
from jestbench.compare.curves import Curve, value_at
from jestbench.compare.load import CompareError
from jestbench.compare.report import compare, main
from jestbench.compare.table import format_table

ROOT = Path(__file__).resolve().parents[2]

# --- values and intervals


def test_mean_at_the_common_budget_is_linear_between_evaluations(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    write_run(tmp_path / "j", [(0, 0.0), (80, 0.4), (160, 0.8)], arm="jest")
    comparison = compare([tmp_path], METRIC)
    assert comparison.first.budget == 100
    assert arm_of(comparison, "jest").mean.value == pytest.approx(0.5)
    assert arm_of(comparison, "jest").undecayed
    assert warned(comparison, "arm jest", "undecayed")
    assert "0.5000 undecayed" in format_table(comparison)
    assert arm_of(comparison, "uniform").mean.value == 0.4
    assert not arm_of(comparison, "uniform").undecayed


def test_overshoot_of_less_than_a_step_keeps_the_final_value(tmp_path):
    write_run(tmp_path / "u", [(0, 0.0), (96, 0.2), (104, 0.6)], step_flops=8, budget=100)
    assert compare([tmp_path], METRIC).arms[0].mean.value == 0.6


def test_run_that_ends_below_the_common_budget_is_named(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    write_run(tmp_path / "short", [(0, 0.0), (60, 0.3)], arm="jest", budget=100)
    comparison = compare([tmp_path], METRIC)
    assert arm_of(comparison, "jest").mean.value == 0.3
    assert warned(comparison, "short", "below the common budget")


def test_run_first_evaluated_above_the_common_budget_has_no_value(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    write_run(tmp_path / "late", [(500, 0.3), (900, 0.4)], arm="jest")
    comparison = compare([tmp_path], METRIC)
    assert [arm.label for arm in comparison.arms] == ["uniform"]
    assert warned(comparison, "left out", "late")


def test_one_seed_has_no_interval_and_says_so(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    comparison = compare([tmp_path], METRIC)
    assert (comparison.arms[0].mean.low, comparison.arms[0].mean.high) == (None, None)
    assert warned(comparison, "no interval", "one seed", "uniform")
    assert "[1 seed]" in format_table(comparison)


def test_equal_seeds_have_no_interval_of_width_zero(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"u{seed}", [(0, 0.0), (100, 0.1 + 0.2)], seed=seed)
    comparison = compare([tmp_path], METRIC)
    assert (comparison.arms[0].mean.low, comparison.arms[0].mean.high) == (None, None)
    assert warned(comparison, "no interval", "no certainty", "uniform")
    assert "[no interval]" in format_table(comparison)


SHARE = {METRIC: {"low": 0.0, "high": 1.0, "examples": 400}}


def test_no_interval_leaves_the_range_of_the_metric(tmp_path):
    for seed, value in enumerate((0.0, 0.01, 0.05)):
        write_run(tmp_path / f"u{seed}", [(0, 0.0), (100, value)], seed=seed, measures=SHARE)
        write_run(tmp_path / f"j{seed}", [(0, 0.0), (100, 1 - value)], seed=seed, arm="jest", measures=SHARE)
    comparison = compare([tmp_path], METRIC)
    uniform, jest = arm_of(comparison, "uniform"), arm_of(comparison, "jest")
    assert 0 <= uniform.mean.low < uniform.mean.high < 1
    assert 0 < jest.mean.low < jest.mean.high <= 1
    assert jest.difference.high <= 1.0
    assert jest.verdict == "better"


def test_paired_differences_use_the_seeds_that_both_have(tmp_path):
    for seed, value in ((0, 0.1), (1, 0.5), (2, 0.3), (3, 0.2)):
        write_run(tmp_path / f"u{seed}", [(0, 0), (100, value)], seed=seed)
    for seed, value in ((0, 0.2), (1, 0.4), (2, 0.6), (7, 0.9)):
        write_run(tmp_path / f"j{seed}", [(0, 0), (100, value)], seed=seed, arm="jest")
    comparison = compare([tmp_path], METRIC, out=tmp_path / "out")
    difference = arm_of(comparison, "jest").difference
    assert difference.seeds == (0, 1, 2)
    assert difference.value == pytest.approx(0.1)
    assert difference.low < 0.1 < difference.high
    assert warned(comparison, "arm jest has seeds 0, 1, 2, 7")
    assert arm_of(comparison, "uniform").difference is None
    jest = strict((tmp_path / "out/comparison.json").read_text())["arms"][0]
    assert (jest["difference"], jest["difference_low"], jest["difference_high"], jest["verdict"]) == (
        *(difference.value, difference.low, difference.high),
        "not told apart",
    )


def test_arm_too_small_to_compare_with_is_named(tmp_path):
    write_run(tmp_path / "u", UNIFORM[1:])
    write_run(tmp_path / "t", [(0, 0.0), (10, 0.1)], arm="tiny")
    with pytest.raises(CompareError, match=r"tiny has the smallest budget.*first evaluation of uniform"):
        compare([tmp_path], METRIC)


# --- speedups


def test_speedups_on_hand_computed_curves(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    write_run(
        tmp_path / "j",
        [(0, 0.0), (20, 0.2), (60, 0.6), (100, 0.6)],
        arm="jest",
        pretrain_flops={"reference": 7, "scorer": 3},
        seen_per_flop=5,
        trained_per_flop=0.5,
        seconds_per_flop=0.2,
    )
    comparison = compare([tmp_path], METRIC)
    # jest meets 0.4 after 40 FLOPs, 200 pairs seen, 20 trained on, 8 s; uniform's end: 100, 100, 100, 10 s.
    found = speedups(comparison, "jest")
    expected = {"flops": 2.5, "flops_all_in": 2.0, "pairs_seen": 0.5, "pairs_trained": 5.0, "seconds": 1.25}
    assert {axis: value for axis, (value, _) in found.items()} == pytest.approx(expected)
    assert {kind for _, kind in found.values()} == {"touch"}
    assert speedups(comparison, "uniform") == dict.fromkeys(AXES, (1.0, "decayed"))


def test_a_first_touch_is_called_so_everywhere_and_bounds_nothing(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    write_run(tmp_path / "j", [(0, 0.0), (20, 0.2), (60, 0.6), (100, 0.6)], arm="jest")
    comparison = compare([tmp_path], METRIC, out=tmp_path / "out")
    flops = strict((tmp_path / "out/comparison.json").read_text())["arms"][0]["speedup"]["flops"]
    assert flops == {"value": 2.5, "low": None, "high": None, "kind": "touch", "absent": None}
    out = tmp_path / "out"
    texts = [format_table(comparison), (out / "comparison.md").read_text(), page_text(out)]
    for text in texts:
        assert "~2.5" in text
        assert "first touch" in text
        assert "indicative" in text
        words = text.lower().replace("bounds nothing", "").split()
        assert not {"≥", ">=", "bound", "bound:", "bound;", "bound,"} & set(words)
        assert "≥2" not in text


def test_what_is_reached_within_the_first_interval_of_evaluations_is_no_number(tmp_path):
    write_run(tmp_path / "u", [(0, 0.0), *((10 * n, 0.04 * n) for n in range(1, 11))])
    write_run(tmp_path / "j", [(0, 0.0), *((10 * n, 0.41 + 0.01 * n) for n in range(1, 11))], arm="jest")
    write_run(tmp_path / "k", [(0, 0.0), (10, 0.39), (20, 0.41), (100, 0.5)], arm="later")
    write_run(tmp_path / "l", [(10, 0.4), (100, 0.5)], arm="exactly")
    comparison = compare([tmp_path], METRIC, out=tmp_path / "out")
    assert speedups(comparison, "jest") == dict.fromkeys(AXES, (None, None))
    arms = {arm["arm"]: arm for arm in strict((tmp_path / "out/comparison.json").read_text())["arms"]}
    assert arms["jest"]["speedup"]["flops"]["absent"] == "early"
    assert arms["jest"]["reach"]["flops"]["arm"] is None
    assert speedups(comparison, "later")["flops"] == (pytest.approx(100 / 15), "touch")
    assert speedups(comparison, "exactly")["flops"] == (10.0, "touch")


def test_arm_that_ends_worse_than_the_baseline_has_no_speedup(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    write_run(tmp_path / "j", [(0, 0.0), (20, 0.2), (40, 0.5), (100, 0.39)], arm="jest")
    comparison = compare([tmp_path], METRIC, out=tmp_path / "out")
    assert speedups(comparison, "jest") == dict.fromkeys(AXES, (None, None))
    document = strict((tmp_path / "out/comparison.json").read_text())
    flops = document["arms"][1]["speedup"]["flops"]
    assert flops == {"value": None, "low": None, "high": None, "kind": None, "absent": "worse"}
    row = [line for line in format_table(comparison).splitlines() if line.startswith("jest ")][1]
    assert row.split() == ["jest", *["worse"] * 5]


def test_arm_that_never_gets_there_has_null(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    write_run(tmp_path / "j", [(0, 0.0), (100, 0.39)], arm="jest")
    comparison = compare([tmp_path], METRIC, out=tmp_path / "out")
    assert speedups(comparison, "jest") == dict.fromkeys(AXES, (None, None))
    document = strict((tmp_path / "out/comparison.json").read_text())
    assert document["arms"][1]["speedup"]["flops"]["absent"] == "never"
    assert "never" in format_table(comparison)


def test_first_crossing_counts_even_if_the_curve_falls_in_between(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    write_run(tmp_path / "j", [(0, 0.0), (10, 0.0), (20, 0.8), (60, 0.1), (100, 0.5)], arm="jest")
    assert speedups(compare([tmp_path], METRIC), "jest")["flops"] == (pytest.approx(100 / 15), "touch")


def test_both_sides_count_from_their_first_crossing(tmp_path):
    write_run(tmp_path / "u", [(0, 0.0), (10, 0.1), (50, 0.5), (100, 0.4)])
    write_run(tmp_path / "j", [(0, 0.0), (10, 0.2), (30, 0.6), (100, 1.0)], arm="jest")
    comparison = compare([tmp_path], METRIC)
    # uniform first touches its final 0.4 at 40, jest at 20
    assert speedups(comparison, "jest")["flops"] == (pytest.approx(2.0), "touch")
    assert warned(comparison, "baseline uniform first touches its own final value before its end")


def test_speedup_is_read_on_the_seed_mean_curve(tmp_path):
    for seed, middle in ((0, 0.1), (1, 0.3)):
        write_run(tmp_path / f"u{seed}", [(0, 0.0), (50, middle), (100, 0.4)], seed=seed)
    for seed, end in ((0, 0.2), (1, 1.4)):
        write_run(tmp_path / f"j{seed}", [(0, 0.0), (10, end / 10), (100, end)], seed=seed, arm="jest")
    # mean of jest: 0.8 at 100, so 0.4 at 50; the slow seed alone never gets there
    assert speedups(compare([tmp_path], METRIC), "jest")["flops"][0] == pytest.approx(2.0)


def test_seeds_that_stop_at_different_flops_end_at_the_mean_of_their_ends(tmp_path):
    for seed, end in ((0, 98), (1, 102)):
        points = [(0, 0.0), (end // 2, 0.2), (end, 0.4)]
        write_run(tmp_path / f"u{seed}", points, seed=seed, budget=98)
        write_run(tmp_path / f"j{seed}", points, seed=seed, budget=98, arm="jest")
    arm = arm_of(compare([tmp_path], METRIC), "jest")
    assert arm.curve.value_E.tolist() == pytest.approx([0.0, 0.2, 0.4]), "at equal shares of each seed's own end"
    assert arm.curve.flops_E.tolist() == [0, 50, 100]
    assert {axis: s.value for axis, s in arm.speedup.items()} == dict.fromkeys(AXES, 1.0)


def test_pretraining_taken_out_of_the_budget_counts_on_the_flop_axis(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    write_run(
        tmp_path / "j",
        [(0, 0.0), (16, 0.2), (40, 0.5), (80, 0.6)],
        arm="jest_all_in",
        budget=100,
        pretrain_flops={"reference": 20},
        pretrain_in_budget=20,
        flops_amortised=50,
    )
    comparison = compare([tmp_path], METRIC)
    arm = arm_of(comparison, "jest_all_in")
    assert comparison.first.budget == 100
    assert not arm.undecayed
    assert not warned(comparison, "below the common budget")
    assert arm.mean.value == 0.6
    assert (arm.flops_total, arm.flops_all_in, arm.pretrain_in_budget) == (80, 100, 20)
    assert warned(comparison, "arm jest_all_in", "amortised", "in no total")
    # 0.4 at 32 of its own FLOPs (linear from 16 to 40), 52 with the pre-training
    found = speedups(comparison, "jest_all_in")
    assert found["flops"][0] == found["flops_all_in"][0] == pytest.approx(100 / 52)
    assert found["pairs_trained"][0] == pytest.approx(100 / 32)


@pytest.mark.parametrize(("metric", "flag"), [("eval/loss", None), ("eval/rank", True)])
def test_lower_is_better(tmp_path, metric, flag):
    write_run(tmp_path / "u", [(0, 4.0), (100, 2.0)], metric=metric)
    write_run(tmp_path / "j", [(0, 4.0), (50, 2.0), (100, 1.0)], arm="jest", metric=metric)
    write_run(tmp_path / "h", [(0, 4.0), (50, 3.0), (100, 3.0)], arm="hard", metric=metric)
    write_run(tmp_path / "r", [(0, 4.0), (50, 2.0), (100, 2.5)], arm="rises", metric=metric)
    comparison = compare([tmp_path], metric, lower_is_better=flag)
    assert [arm.label for arm in comparison.arms] == ["jest", "uniform", "rises", "hard"]
    assert speedups(comparison, "jest")["flops"] == (2.0, "touch")
    for label, absent in (("hard", "never"), ("rises", "worse")):
        found = arm_of(comparison, label).speedup["flops"]
        assert (found.value, found.absent) == (None, absent)
    assert arm_of(comparison, "jest").difference.value == -1
    assert arm_of(comparison, "hard").difference.value == 1


def test_axis_that_was_not_logged_has_no_speedup(tmp_path):
    for arm in ("uniform", "jest"):
        folder = write_run(tmp_path / arm, UNIFORM, arm=arm)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            del row["time/seconds"]
        (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    comparison = compare([tmp_path], METRIC)
    assert speedups(comparison, "jest")["seconds"] == (None, None)
    assert arm_of(comparison, "jest").speedup["seconds"].absent == "unknown"
    assert speedups(comparison, "jest")["flops"] == (1.0, "touch")
    assert warned(comparison, "arm jest", "seconds not logged")


def test_target_met_before_training_gives_no_ratio(tmp_path):
    write_run(tmp_path / "u", [(0, 0.0), (100, 0.4)])
    write_run(tmp_path / "j", [(0, 0.5), (100, 0.6)], arm="jest")
    comparison = compare([tmp_path], METRIC)
    assert speedups(comparison, "jest")["flops"] == (None, None)
    assert arm_of(comparison, "jest").speedup["flops"].absent == "early"


# --- which runs count


def test_two_configurations_under_one_label_are_never_averaged(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    write_run(tmp_path / "a", [(0, 0), (100, 0.5)], arm="jest", config_hash="aaaaaaaa11")
    write_run(tmp_path / "b", [(0, 0), (100, 0.7)], arm="jest", config_hash="bbbbbbbb22")
    comparison = compare([tmp_path], METRIC)
    jest = [(arm.label, arm.arm, arm.mean.value) for arm in comparison.arms if arm.arm == "jest"]
    assert jest == [("jest@bbbbbbbb", "jest", 0.7), ("jest@aaaaaaaa", "jest", 0.5)]
    assert warned(comparison, "ONE LABEL", "jest", "aaaaaaaa11", "bbbbbbbb22")


def test_ambiguous_baseline_is_said_and_can_be_chosen(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", [(0, 0), (100, 0.5)], config_hash="aaaaaaaa", seed=seed)
    write_run(tmp_path / "b", [(0, 0), (100, 0.7)], config_hash="bbbbbbbb")
    comparison = compare([tmp_path], METRIC)
    assert comparison.first.baseline == "uniform@aaaaaaaa"
    assert warned(comparison, "baseline uniform is ambiguous", "uniform@aaaaaaaa")
    assert compare([tmp_path], METRIC, "uniform@bbb").first.baseline == "uniform@bbbbbbbb"


def test_newest_of_two_runs_of_one_seed_counts(tmp_path):
    old = write_run(tmp_path / "z-old", [(0, 0), (100, 0.1)])
    write_run(tmp_path / "new", [(0, 0), (100, 0.2)])
    broken = write_run(tmp_path / "newest", [(0, 0), (100, 0.3)], status="failed")
    for age, folder in ((2000, old), (1000, tmp_path / "new"), (0, broken)):
        for path in folder.iterdir():
            os.utime(path, (1e9 - age, 1e9 - age))
    comparison = compare([tmp_path], METRIC)
    assert comparison.arms[0].values == (0.2,)
    assert warned(comparison, "duplicate left out", "z-old")


def test_unfinished_runs_are_listed_not_averaged(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    write_run(tmp_path / "cut", [(0, 0), (40, 0.9)], seed=1, status="interrupted")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed/metrics.jsonl").write_text('{"step": 1, "flops/total": 1}\n')
    (tmp_path / "early").mkdir()
    (tmp_path / "early/operative.gin").write_text("")
    comparison = compare([tmp_path], METRIC)
    assert comparison.arms[0].seeds == (0,)
    assert {run.folder.name for run in comparison.excluded} == {"cut", "killed", "early"}
    assert warned(comparison, "left out", "cut", "interrupted")
    assert warned(comparison, "left out", "killed", "no summary.json")


def test_torn_last_line_is_left_out_and_said(tmp_path):
    folder = write_run(tmp_path / "u", UNIFORM)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 101, "eval/top1": 0.9, "note": "é'.encode()[:-1])
    comparison = compare([tmp_path], METRIC)
    assert comparison.arms[0].mean.value == 0.4
    assert warned(comparison, "last line is torn")


def test_steps_taken_again_after_a_resume_replace_the_earlier_ones(tmp_path):
    folder = write_run(tmp_path / "u", [(0, 0.0), (50, 0.2), (70, 0.9), (100, 0.4)])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first, checkpoint, lost, final = rows
    again = checkpoint | {"step": 60, "flops/total": 60, METRIC: 0.25}
    written = [first, checkpoint, lost, again, final]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    curve = compare([tmp_path], METRIC).arms[0].curve
    assert curve.value_E.tolist() == [0.0, 0.2, 0.25, 0.4]


def test_value_that_is_not_finite_is_left_out_and_said(tmp_path):
    write_run(tmp_path / "u", [(0, 0.0), (50, float("nan")), (100, 0.4)])
    write_run(tmp_path / "j", [(0, float("nan")), (100, float("inf"))], arm="jest")
    comparison = compare([tmp_path], METRIC, out=tmp_path / "out")
    assert comparison.arms[0].curve.value_E.tolist() == [0.0, 0.4]
    assert warned(comparison, "1 value(s) of eval/top1 are not finite")
    assert warned(comparison, "left out", "arm jest", "not finite")
    strict((tmp_path / "out/comparison.json").read_text())


def test_run_without_the_metric_is_named(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    write_run(tmp_path / "other", UNIFORM, arm="jest", metric="eval/recall")
    comparison = compare([tmp_path], METRIC)
    assert warned(comparison, "left out", "other", "eval/top1 is missing")


def test_runs_are_found_two_levels_down_and_named_once(tmp_path):
    inner = write_run(tmp_path / "sweep/arm/u", UNIFORM)
    assert len(compare([tmp_path / "sweep", inner, inner], "top1").arms[0].runs) == 1


def test_two_seeds_that_tell_nothing_apart_are_noted(tmp_path):
    for seed in (0, 1, 2):
        for arm, end in (("uniform", 0.4 + 0.1 * seed), ("jest", 0.5 - 0.1 * seed)):
            write_run(tmp_path / f"{arm}{seed}", [(0, 0.0), (100, end)], arm=arm, seed=seed)
    note = "two seeds leave wide intervals: take three or more (docs/statistics.md) (jest)"
    two = [tmp_path / f"{arm}{seed}" for arm in ("uniform", "jest") for seed in (0, 1)]
    assert note in compare(two, METRIC).warnings
    assert not warned(compare([tmp_path], METRIC), "two seeds")


def test_warnings_of_runs_and_differences_between_them_are_passed_on(tmp_path):
    pool, both = {"noise": 0.6, "split": "pool"}, {"noise": 0.6, "split": "pool+curated"}
    write_run(tmp_path / "u", UNIFORM, data=pool, environment={"threads": 2, "commit": "abc"})
    for seed in (0, 1):
        write_run(
            tmp_path / f"j{seed}",
            UNIFORM,
            arm="jest",
            seed=seed,
            data=both,
            environment={"threads": 4, "commit": "abc"},
            warnings=["view outside the mix"],
        )
    comparison = compare([tmp_path], METRIC)
    assert comparison.first.facts == {"noise": 0.6}
    assert warned(comparison, "the data differ: split", "pool (uniform)", "pool+curated (jest)")
    assert warned(comparison, "seconds are not comparable", "threads")
    assert not warned(comparison, "commit")
    assert [w for w in comparison.warnings if "view" in w] == ["arm jest (seeds 0, 1): view outside the mix"]


# --- references


def test_reference_has_a_row_of_its_own_and_is_no_arm(tmp_path):
    reference = write_run(tmp_path / "runs/ref", [(0, 0.0), (30, 0.25)], arm="reference")
    entries = [{"name": "base", "run_dir": str(reference), "pretrain_flops": 30}]
    write_run(tmp_path / "runs/u", UNIFORM)
    write_run(tmp_path / "runs/j", UNIFORM, arm="jest", references=entries, pretrain_flops={"reference": 30})
    comparison = compare([tmp_path / "runs"], METRIC, out=tmp_path / "out")
    assert {arm.label for arm in comparison.arms} == {"uniform", "jest"}
    document = strict((tmp_path / "out/comparison.json").read_text())
    assert document["references"] == [
        {"name": "base", "arms": ["jest"], "value": 0.25, "flops_total": 30, "run": "../runs/ref"}
    ]
    out = tmp_path / "out"
    for text in (format_table(comparison), (out / "comparison.md").read_text(), page_text(out)):
        assert "reference base" in text
    # named outright, it is an arm as well
    assert len(compare([tmp_path / "runs", reference], METRIC).arms) == 3


def test_reference_without_its_run_is_said(tmp_path):
    write_run(tmp_path / "u", UNIFORM, references=[{"name": "hub", "run_dir": "gone", "pretrain_flops": 5}])
    comparison = compare([tmp_path], METRIC)
    assert [(row.name, row.value, row.flops_total) for row in comparison.first.references] == [("hub", None, 5)]
    assert warned(comparison, "reference hub", "not found")


def test_reference_folder_may_be_relative_to_the_run(tmp_path):
    write_run(tmp_path / "refs/base", [(0, 0.0), (30, 0.25)], arm="reference")
    entry = {"name": "base", "run_dir": "../../refs/base", "pretrain_flops": 30}
    write_run(tmp_path / "runs/u", UNIFORM, references=[entry])
    assert compare([tmp_path / "runs"], METRIC).first.references[0].value == 0.25


def test_a_reference_that_serves_several_seeds_is_said(tmp_path):
    shared = write_run(tmp_path / "refs/shared", [(0, 0.0), (30, 0.25)], arm="reference")
    for seed in (0, 1):
        own = write_run(tmp_path / f"refs/own{seed}", [(0, 0.0), (30, 0.25)], arm=f"own{seed}", seed=seed)
        for arm, folder in (("jest", shared), ("rho", own)):
            entries = [{"name": folder.name, "run_dir": str(folder), "pretrain_flops": 30}]
            write_run(tmp_path / f"runs/{arm}{seed}", UNIFORM, arm=arm, seed=seed, references=entries)
        write_run(tmp_path / f"runs/u{seed}", UNIFORM, seed=seed)
    comparison = compare([tmp_path / "runs"], METRIC)
    assert warned(comparison, "one model shared (one seed) serves the seeds 0, 1 of jest")
    assert not warned(comparison, "one model own")


def test_learning_rates_are_said(tmp_path):
    write_run(tmp_path / "same/u", UNIFORM, learning_rate=0.002)
    write_run(tmp_path / "same/j", UNIFORM, arm="jest", learning_rate=0.002)
    assert warned(compare([tmp_path / "same"], METRIC), "one learning rate, 0.002, was used for all arms")
    write_run(tmp_path / "own/u", UNIFORM, learning_rate=0.002)
    write_run(tmp_path / "own/j", UNIFORM, arm="jest", learning_rate=0.001)
    assert warned(compare([tmp_path / "own"], METRIC), "learning rates differ: 0.001 (jest); 0.002 (uniform)")
    write_run(tmp_path / "alone/u", UNIFORM, learning_rate=0.002)
    assert not warned(compare([tmp_path / "alone"], METRIC), "learning rate")


# --- what is written

HOSTILE = '<script>alert(1)</script> & "q" | `b` $x_1$ [l](javascript:x)'


class _Page(HTMLParser):
    void = ("meta", "img", "br", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value or "" for name, value in attrs if name in ("href", "src")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)  # of a drawing

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    reference = write_run(folder / "refs/a b#1", [(0, 0.0), (30, 0.25)], arm="reference")
    entries = [{"name": HOSTILE, "run_dir": str(reference), "pretrain_flops": 30}]
    facts = {"data": HOSTILE, "noise": 0.6, "odd": float("nan")}
    for seed in (0, 1):
        points = [(0, 0.0), (50, 0.2 + seed / 10), (100, 0.4)]
        write_run(folder / f"runs/u ?{seed}", points, seed=seed, data=facts)
        write_run(
            folder / f"runs/j{seed}",
            [(0, 0.0), (40, 0.4), (100, 0.7)],
            arm=HOSTILE,
            seed=seed,
            data=facts,
            references=entries,
            pretrain_flops={"reference": 30},
            warnings=[HOSTILE],
            environment={"commit": HOSTILE, "versions": {"torch": "2"}},
        )
    compare([folder / "runs"], METRIC, out=folder / "out")
    return folder / "out"


def test_page_is_one_file_that_escapes_everything(report):
    page = _Page((report / "index.html").read_text())
    assert page.open == []
    assert page.tags.count("script") == 3, "data, plotly.js, page.js"
    assert not [target for target in page.targets if ":" in target]
    anchors = [target.removeprefix("#") for target in page.targets if target.startswith("#")]
    assert anchors
    assert set(anchors) <= set(page.ids)
    links = [target for target in page.targets if not target.startswith("#")]
    assert links
    assert all((report / unquote(link)).exists() for link in links)
    assert page.tags.count("details") == 2


def test_markdown_shows_labels_as_text(report):
    text = (report / "comparison.md").read_text()
    assert "<script>" not in text.replace("`", "").split("## Runs")[0]
    table = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table[:5]} == {11}
    assert "tools/compare.py" in text


def test_json_is_strict_and_holds_the_contract(report):
    document = strict((report / "comparison.json").read_text())
    keys = {"metric", "baseline", "budget", "arms", "references", "warnings", "command", "created", "environment"}
    assert keys <= document.keys()
    best = document["arms"][0]
    assert best["arm"] == best["policy"] == HOSTILE
    assert best["verdict"] == "not told apart"
    assert best["difference"] == pytest.approx(0.3)
    assert document["other_worlds"] == []
    assert {point["arm"]: point["budget"] for point in document["frontier"]} == {"uniform": 100, HOSTILE: 100}
    assert best["speedup"].keys() == set(AXES)
    assert best["speedup"]["flops"] == {"value": 2.5, "low": None, "high": None, "kind": "touch", "absent": None}
    assert best["flops_by_purpose"] == {"learner_train": 75, "learner_score": 25}
    assert sum(best["flops_by_purpose"].values()) == best["flops_total"] == 100
    assert best["runs"] == ["../runs/j0", "../runs/j1"]
    assert (best["seeds"], best["values"]) == ([0, 1], [0.7, 0.7])
    assert document["environment"]["runs"]["versions"] == {"torch": "2"}


def test_pictures_are_wide_enough_for_a_readme(report):
    for name in ("metric_vs_flops.png", "overview.png"):
        data = (report / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert 1200 <= int.from_bytes(data[16:20], "big") <= 2000


def test_recorded_command_makes_the_same_numbers(report, capsys):
    import shlex

    before = strict((report / "comparison.json").read_text())
    assert main(shlex.split(before["command"])[2:]) == 0
    capsys.readouterr()
    assert strict((report / "comparison.json").read_text())["arms"] == before["arms"]


def test_terminal_table_fits(tmp_path):
    entry = {"name": "r" * 200, "run_dir": "gone", "pretrain_flops": 0}
    write_run(tmp_path / "u", [(0, 0.0), (100, 123456.7)], references=[entry], warnings=["w " * 300])
    for index, factor in enumerate((1e-5, 1.0, 1e3)):
        points = [(1, 0.0), (100, 123456.7 * factor), (200, 123456.7)]
        for seed in (0, 1):
            write_run(tmp_path / f"{index}-{seed}", points, arm=f"arm-{index}-" + "x" * 150, seed=seed)
    table = format_table(compare([tmp_path], METRIC))
    assert max(len(line) for line in table.splitlines()) <= 110


def test_losing_arm_is_printed_like_a_winning_one(tmp_path):
    write_run(tmp_path / "u", UNIFORM)
    write_run(tmp_path / "w", [(0, 0.0), (100, 0.5)], arm="winner")
    write_run(tmp_path / "l", [(0, 0.0), (100, 0.3)], arm="loser")
    comparison = compare([tmp_path], METRIC)
    assert [arm.label for arm in comparison.arms] == ["winner", "uniform", "loser"]
    lines = format_table(comparison).splitlines()
    positions = [
        next(i for i, line in enumerate(lines) if line.startswith(arm)) for arm in ("winner", "uniform", "loser")
    ]
    assert positions == list(range(positions[0], positions[0] + 3))


# --- the command


def test_command_writes_the_report(tmp_path, capsys):
    write_run(tmp_path / "u", UNIFORM)
    assert main([str(tmp_path / "u"), "--metric", "top1", "--out", str(tmp_path / "out")]) == 0
    assert "uniform" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {f"{name}.{kind}" for name in ("metric_vs_flops", "overview") for kind in ("png", "svg")}
    assert names == {"comparison.json", "comparison.md", "index.html"} | pictures


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["gone", "--metric", METRIC], 2, ["gone: no such folder"]),
        (["runs", "--metric", "eval/top11"], 2, ["did you mean eval/top1?", "metrics that exist"]),
        (["runs", "--metric", METRIC, "--baseline", "uniformm"], 2, ["did you mean uniform?", "arms: uniform"]),
        (["runs", "--metric", METRIC, "--baseline", "cut"], 3, ["'cut'", "interrupted"]),
        (["runs", "--interval", "0"], 2, ["--interval", "positive"]),
        (["empty", "--metric", METRIC], 3, ["no run folder"]),
        (["broken", "--metric", METRIC], 3, ["summary.json", "not JSON"]),
        (["runs/cut", "--metric", METRIC], 3, ["no finished run", "interrupted"]),
        (["runs", "--metric", METRIC, "--out", "file"], 3, ["file: cannot be written"]),
    ],
)
def test_mistakes_end_in_one_short_message(tmp_path, monkeypatch, capsys, arguments, status, words):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/u", UNIFORM)
    write_run(tmp_path / "runs/cut", UNIFORM, arm="cut", status="interrupted")
    write_run(tmp_path / "broken/u", UNIFORM)
    (tmp_path / "broken/u/summary.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert all(word in captured.err for word in words), captured.err
    assert captured.out == ""


def test_library_raises_what_the_command_reports(tmp_path):
    with pytest.raises(CompareError, match="no such folder") as caught:
        compare([tmp_path / "gone"], METRIC)
    assert caught.value.status == 2


def test_tool_runs_without_torch_and_without_a_utf8_terminal(tmp_path):
    write_run(tmp_path / "u", UNIFORM, arm="σ")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    arguments = [str(tmp_path), "--metric", METRIC, "--baseline", "σ", "--out", str(tmp_path / "out")]
    script = (
        "import runpy, sys; sys.argv[0] = 'compare.py'\n"
        "try: runpy.run_path('tools/compare.py', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'gin', 'wandb', 'matplotlib.pyplot'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/index.html").is_file()


# --- properties

values = st.floats(min_value=0, max_value=1, allow_nan=False)


@st.composite
def seed_curves(draw: st.DrawFn) -> list[Points]:
    """The curves of one to three seeds of an arm, evaluated at the same even numbers of FLOPs."""
    flops = [1, *sorted(draw(st.sets(st.integers(2, 5000), min_size=1, max_size=5)))]
    return [[(2 * spent, draw(values)) for spent in flops] for _ in range(draw(st.integers(min_value=1, max_value=3)))]


def compare_curves(arms: Mapping[str, list[Points]], **options: object) -> Comparison:
    with tempfile.TemporaryDirectory() as folder:
        for arm, curves in arms.items():
            for seed, points in enumerate(curves):
                write_run(Path(folder) / f"{arm}-{seed}", points, arm=arm, seed=seed, seen_per_flop=2)
        return compare([Path(folder)], METRIC, **options)


few = settings(max_examples=40, deadline=None)


@few
@given(seed_curves(), seed_curves())
def test_mean_lies_within_its_interval(one, other):
    comparison = compare_curves({"uniform": one, "jest": other})
    assert comparison.first.budget == min(one[0][-1][0], other[0][-1][0])
    for arm in comparison.arms:
        if arm.mean.low is None:
            assert len(arm.runs) < 2 or max(arm.values) - min(arm.values) < 1e-9
        else:
            assert arm.mean.low < arm.mean.high
            assert arm.mean.low <= arm.mean.value <= arm.mean.high
        assert min(arm.values) - 1e-12 <= arm.mean.value <= max(arm.values) + 1e-12


@few
@given(seed_curves(), st.booleans())
def test_arm_identical_to_the_baseline_has_a_speedup_of_exactly_one(curves, lower):
    comparison = compare_curves({"uniform": curves, "twin": curves}, lower_is_better=lower)
    for speedup in arm_of(comparison, "twin").speedup.values():
        assert speedup.value == 1.0 or (speedup.value, speedup.absent) == (None, "early")
    assert arm_of(comparison, "twin").difference.value == 0


@few
@given(seed_curves())
def test_arm_that_gets_everywhere_with_half_of_everything_has_two(curves):
    half = [[(flops // 2, value) for flops, value in points] for points in curves]
    for speedup in arm_of(compare_curves({"uniform": curves, "jest": half}), "jest").speedup.values():
        assert speedup.value == pytest.approx(2.0) or (speedup.value, speedup.absent) == (None, "early")


@few
@given(seed_curves(), seed_curves(), st.floats(min_value=0.01, max_value=0.5))
def test_better_values_never_lower_a_speedup(base, arm, gain):
    better = [[(flops, value + gain) for flops, value in points] for points in arm]
    before = arm_of(compare_curves({"uniform": base, "jest": arm}), "jest").speedup["flops"]
    after = arm_of(compare_curves({"uniform": base, "jest": better}), "jest").speedup["flops"]
    if before.value is None:
        return
    assert after.absent == "early" if after.value is None else after.value >= before.value * (1 - 1e-9)


@few
@given(seed_curves(), seed_curves(), st.booleans())
def test_only_an_arm_that_ends_at_least_level_has_a_speedup(base, arm, lower):
    found = arm_of(compare_curves({"uniform": base, "jest": arm}, lower_is_better=lower), "jest")
    ends = [sum(curve[-1][1] for curve in curves) / len(curves) for curves in (arm, base)]
    worse = ends[0] > ends[1] + 1e-9 if lower else ends[0] < ends[1] - 1e-9
    if worse:
        assert {speedup.value for speedup in found.speedup.values()} == {None}


def test_a_run_that_overshoots_its_budget_is_read_at_its_end():
    """Within a step of the end the final value is taken; before that the curve is interpolated."""
    curve = Curve(np.array([0.0, 0.1, 0.5]), {axis: np.array([0.0, 100.0, 205.0]) for axis in AXES})
    assert value_at(curve, 200, 10) == 0.5
    assert value_at(curve, 205, 10) == value_at(curve, 300, 10) == 0.5
    assert value_at(curve, 152.5, 10) == pytest.approx(0.3)
    assert value_at(Curve(curve.value_E[1:], {axis: curve.flops_E[1:] for axis in AXES}), 50, 10) is None


def test_arms_are_compared_at_the_largest_budget_that_all_have(tmp_path):
    for arm, budgets in (("uniform", (100, 200, 400)), ("jest", (100, 200))):
        for budget in budgets:
            points = [(0, 0.0), (budget, budget / 1000)]
            write_run(tmp_path / f"{arm}{budget}", points, arm=arm, config_hash=f"{arm}{budget}", frontier_hash=arm)
    assert compare([tmp_path], METRIC).first.budget == 200
