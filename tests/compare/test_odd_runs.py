"""What a sceptic hands in: copies of references, odd budgets, damaged results, metrics that nobody describes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from planted_runs import HITS, METRIC, UNIFORM, arm_of, page_text, speedups, strict, warned, write_hits, write_run

from jestbench.compare.comparison import Comparison
from jestbench.compare.crossings import Speedup
from jestbench.compare.report import compare, main
from jestbench.compare.table import format_table
from jestbench.compare.wording import prefixed, saving, speedup_ends, verdict_text

SHARE = {HITS: {"low": 0.0, "high": 1.0, "examples": 400, "chance": 0.01, "lower_is_better": False}}


def texts(comparison: Comparison, out: Path) -> list[str]:
    return [format_table(comparison), (out / "comparison.md").read_text(), page_text(out)]


# References


def test_copies_of_one_reference_are_one_row_and_its_sharing_is_said(tmp_path: Path) -> None:
    """As ``tools/sweep.py --logs`` leaves them: each arm's record holds a copy of its reference's."""
    for seed in (0, 1):
        write_run(tmp_path / f"runs/u{seed}", UNIFORM, seed=seed)
        run = write_run(
            tmp_path / f"runs/j{seed}",
            UNIFORM,
            arm="jest",
            seed=seed,
            references=[{"name": "reference", "run_dir": "references/it", "pretrain_flops": 30}],
        )
        write_run(run / "references/it", [(0, 0.0), (30, 0.25)], arm="reference")
    comparison = compare([tmp_path / "runs"], METRIC)
    assert [(row.name, row.arms, row.value) for row in comparison.first.references] == [("reference", ("jest",), 0.25)]
    assert warned(comparison, "one model reference (one seed) serves the seeds 0, 1 of jest")


def test_two_references_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Of other machines: the same configuration and seed, and another value."""
    write_run(tmp_path / "runs/u", UNIFORM)
    for arm, value in (("jest", 0.25), ("rho", 0.2)):
        folder = write_run(tmp_path / f"refs/{arm}", [(0, 0.0), (30, value)], arm="reference")
        entry = {"name": "reference", "run_dir": str(folder), "pretrain_flops": 30}
        write_run(tmp_path / f"runs/{arm}", UNIFORM, arm=arm, references=[entry])
    comparison = compare([tmp_path / "runs"], METRIC, out=tmp_path / "out")
    names = {row.name: row.value for row in comparison.first.references}
    assert names == {"reference of jest, seeds 0": 0.25, "reference of rho, seeds 0": 0.2}
    for text in texts(comparison, tmp_path / "out"):
        assert all(name in text for name in names)


# Verdicts and factors


def test_without_an_interval_there_is_no_verdict(tmp_path: Path) -> None:
    """One seed; and seeds that agree, however far the arm is ahead."""
    for seed in (0, 1):
        write_run(tmp_path / f"runs/u{seed}", UNIFORM, seed=seed)
        write_run(tmp_path / f"runs/sure{seed}", [(0, 0.0), (100, 1.0)], arm="sure", seed=seed)
    write_run(tmp_path / "runs/solo", [(0, 0.0), (100, 0.6)], arm="solo")
    comparison = compare([tmp_path / "runs"], METRIC, out=tmp_path / "out")
    found = {arm.label: verdict_text(arm) for arm in comparison.arms}
    assert found == {"solo": "no verdict", "sure": "no verdict", "uniform": ""}
    for text in texts(comparison, tmp_path / "out"):
        assert "not told apart" not in text.partition("computed")[0]


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (23.677, 23.677, None, "[23.7, ..]"),
        (3.8908, 3.8908, None, "[3.89, ..]"),
        (15.986, 15.986, None, "[16, ..]"),
        (2.349, 1.0, 2.349, "[1.00, 2.35]"),
        (0.0123, 0.0112, 0.0131, "[0.011, 0.013]"),
        (10.6, 6.349, 18.2, "[6.3, 18]"),
    ],
)
def test_no_factor_stands_outside_of_its_printed_interval(
    value: float, low: float, high: float | None, text: str
) -> None:
    assert speedup_ends(Speedup(value, "decayed", low=low, high=high)) == text


def test_a_first_touch_is_of_the_baselines_value_at_the_tables_budget(tmp_path: Path) -> None:
    """The baseline's ladder goes on beyond what every arm has."""
    for seed in (0, 1, 2):
        points = [(0, 0.0), (50, 0.1), (100, 0.2), (200, 0.25), (400, 0.4)]
        write_run(tmp_path / f"u{seed}", points, seed=seed, rungs=[(100, 0.24), (200, 0.3)])
        write_run(tmp_path / f"j{seed}", [(0, 0.0), (50, 0.2), (100, 0.4 + seed / 100)], arm="jest", seed=seed)
        points = [(0, 0.0), (50, 0.1), (100, 0.2), (200, 0.3), (400, 0.5)]
        write_run(tmp_path / f"k{seed}", points, arm="hard", seed=seed, rungs=[(100, 0.24), (200, 0.4)])
    comparison = compare([tmp_path], METRIC)
    assert comparison.first.budget == 100
    # 0.24 is 4/21 of jest's way from 0.2 at 50 to its mean of 0.41 at 100; uniform has it at its rung.
    assert speedups(comparison, "jest")["flops"] == (pytest.approx(100 / (50 + 50 * 4 / 21)), "touch")
    assert "to its own value at 100 FLOP" in saving(arm_of(comparison, "jest"), comparison.first)
    assert speedups(comparison, "hard")["flops"] == (pytest.approx(1.0), "touch"), "at its rung, before its trunk"


def test_budgets_of_any_size_have_a_prefix() -> None:
    assert [prefixed(value, "FLOP") for value in (3.2e21, 6e23, 1e24)] == ["3.20 ZFLOP", "600 ZFLOP", "1.00 YFLOP"]


# Metrics


def test_a_metric_that_nobody_describes_is_taken_by_its_name_and_this_is_said(tmp_path: Path) -> None:
    for metric, lower in (("eval/perplexity", False), ("eval/glossary", False), ("eval/text_loss", True)):
        folder = tmp_path / metric.rpartition("/")[2]
        for arm, value in (("uniform", 2.0), ("jest", 1.0)):
            write_run(folder / arm, [(0, 3.0), (100, value)], arm=arm, metric=metric)
        comparison = compare([folder], metric)
        assert comparison.first.lower_is_better is lower
        assert warned(comparison, f"no run records which way {metric} is better", "smaller" if lower else "larger")
        assert not warned(compare([folder], metric, lower_is_better=True), "which way")


def test_a_run_that_ends_without_a_number_is_left_out_and_hides_no_metric(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/u", UNIFORM)
    write_run(tmp_path / "runs/j", [(0, 0.0), (100, float("nan"))], arm="jest")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    document = strict((tmp_path / "out/comparison.json").read_text())
    assert [arm["arm"] for arm in document["arms"]] == ["uniform"]
    assert any("is not finite at the end" in warning for warning in document["warnings"])


# Examples


def test_an_arm_without_examples_leaves_the_others_theirs(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for arm, share in (("uniform", 0.2), ("jest", 0.3), ("bare", 0.25)):
        for seed in (0, 1, 2):
            hit_N = generator.random(400) < share
            points = [(0, 0.0), (100, float(hit_N.mean()))]
            run = write_run(tmp_path / f"{arm}{seed}", points, arm=arm, seed=seed, metric=HITS, measures=SHARE)
            write_hits(run, 100, hit_N, np.arange(400) % 100)
    whole = compare([tmp_path], HITS)
    for seed in (0, 1, 2):
        (tmp_path / f"bare{seed}/eval/100.npz").write_bytes(b"PK")
    found = compare([tmp_path], HITS)
    for arm in ("uniform", "jest"):
        assert arm_of(found, arm).mean == arm_of(whole, arm).mean
    before, after = (arm_of(one, "jest").difference for one in (whole, found))
    assert before is not None
    assert after is not None
    assert (after.pointwise_low, after.pointwise_high) == (before.pointwise_low, before.pointwise_high)
    assert "100 classes; no per-example results (bare)" in found.first.rule
    assert warned(found, "bare0", "100.npz", "its intervals hold seeds alone")
    assert not warned(found, "pickle"), "no advice to run what a stranger wrote"


# Names


def test_labels_of_any_script_are_compared_in_silence(tmp_path: Path) -> None:
    """A font that lacks a character is no reason for a warning at each picture."""
    for arm in ("uniform", "日本語 <b>"):
        write_run(tmp_path / f"runs/{ord(arm[0])}", UNIFORM, arm=arm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison = compare([tmp_path / "runs"], METRIC, out=tmp_path / "out")
    assert arm_of(comparison, "日本語 <b>")
    assert "日本語 &lt;b&gt;" in page_text(tmp_path / "out")
