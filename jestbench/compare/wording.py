"""Wording and number formats of a comparison, shared by the table, the Markdown and the page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from jestbench.compare.comparison import Absent, Arm, Comparison, Speedup
from jestbench.compare.curves import FEWEST_SEEDS

AXIS_TITLES = {
    "flops": "FLOPs",
    "flops_all_in": "all-in",
    "pairs_seen": "seen",
    "pairs_trained": "trained",
    "seconds": "seconds",
}

WORDS: Mapping[Absent, str] = {"never": "never", "worse": "worse", "early": "early", "unknown": "-"}
"""Words in the place of a speedup without a value, by ``Speedup.absent``."""

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_DIGITS = 4


def method(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """Explanations of how each number is computed: pairs of a name and a sentence."""
    return (*_about_values(comparison), *_about_speedups(comparison))


def _about_values(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    ahead = "lower" if comparison.lower_is_better else "higher"
    return (
        (
            "FLOPs",
            "2 per multiply-add of matrix products, convolutions and attention; a training pass costs 3 "
            "forward passes; scoring, reference and selection are counted, evaluation is not.",
        ),
        (
            "common budget",
            "the smallest budget of the arms. A run whose budget had its pre-training taken out first starts "
            "at that pre-training on the FLOP axis, so that all are compared at the full budget.",
        ),
        (
            "mean",
            f"{comparison.metric} of each run at the common budget, linear between its evaluations (the "
            "final value within one step of the end), averaged over seeds.",
        ),
        (
            "[low, high]",
            "95 % confidence interval of that mean over seeds by Student's t, cut at the metric's range; none below "
            f"{FEWEST_SEEDS} seeds, and none where all seeds have the same value. It holds the seeds' noise, not that "
            "of the evaluation.",
        ),
        (
            "evaluation noise",
            "one standard error of the mean by the number of evaluation examples, √(p(1 − p)/n) for a share p of n "
            "(binomial); differences of that size are noise even where every seed agrees. Examples of one class share "
            "a prompt, so the true error is larger.",
        ),
        (
            "ahead",
            f"in how many of the seeds that both have, the arm's value is {ahead} than the baseline's.",
        ),
        (
            "undecayed",
            "beside a mean: the common budget lies inside the arm's learning-rate schedule, so that the mean is not "
            "what a schedule that ends there gives.",
        ),
    )


def _about_speedups(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    better = "at or below" if comparison.lower_is_better else "at or above"
    return (
        (
            "×",
            f"what the baseline needs over what the arm needs to be first {better} the baseline's final "
            "seed-mean value, on seed-mean curves, linear between evaluations; below 1 where the arm needs more. "
            f"'{WORDS['never']}': not reached; '{WORDS['worse']}': touched on the way, but the arm ends worse than "
            f"the baseline; '{WORDS['early']}': reached within the first interval of evaluations, where no place can "
            "be read.",
        ),
        (
            "~",
            "a first touch: one of the two curves touches the value inside its learning-rate schedule. It is "
            "indicative and bounds nothing: a run whose schedule ends at that budget has another value. Give the arm "
            "that budget (run.budget) to see which.",
        ),
        (
            "× all-in",
            "the same on FLOPs with the pre-training of references and scorers added, in full for each arm.",
        ),
        ("× seen, × trained", "the same on pairs drawn into super-batches, and on pairs trained on."),
        (
            "× seconds",
            "the same on wall time of training without evaluation; comparable only on one idle machine.",
        ),
    )


def decimal_prefix(value: float) -> tuple[float, str]:
    """The decimal prefix that suits a value: its factor and its symbol."""
    return next(((size, sign) for size, sign in _PREFIXES if abs(value) >= 0.9995 * size), (1.0, ""))


def prefixed(value: float, unit: str) -> str:
    """Write a quantity with three digits and a decimal prefix, as in ``15.0 TFLOP``."""
    divisor, prefix = decimal_prefix(value)
    scaled = value / divisor
    decimals = 0 if abs(scaled) >= 99.95 or divisor == 1 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{decimals}f} {prefix}{unit}".rstrip()


def flops_text(value: float) -> str:
    """Write FLOPs with a prefix."""
    return prefixed(value, "FLOP")


def seconds_text(value: float) -> str:
    """Write a time in the unit that suits it."""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def value_text(value: float | None, comparison: Comparison) -> str:
    """Write a value of the metric, with the same number of decimals everywhere."""
    if value is None:
        return "-"
    largest = max(abs(arm.mean) for arm in comparison.arms)
    whole = math.floor(math.log10(largest)) if largest > 0 else 0
    if not -4 <= whole <= 6:
        return f"{value:.{_DIGITS - 1}e}"
    return f"{value:.{max(0, _DIGITS - 1 - whole)}f}"


def interval_text(arm: Arm, comparison: Comparison) -> str:
    """Write an arm's mean and its interval, or why it has no interval."""
    mean = value_text(arm.mean, comparison) + (" undecayed" if arm.undecayed else "")
    if arm.low is None or arm.high is None:
        return f"{mean} [{_no_interval(arm)}]"
    return f"{mean} [{value_text(arm.low, comparison)}, {value_text(arm.high, comparison)}]"


def _no_interval(arm: Arm) -> str:
    seeds = len(arm.runs)
    return "seeds equal" if seeds >= FEWEST_SEEDS else f"{seeds} seed{'s' if seeds > 1 else ''}"


def evaluation_noise(comparison: Comparison) -> str:
    """Write the evaluation noise of the arms with the smallest and the largest one; empty where no arm has one."""
    known = sorted((arm.evaluation_error, arm.label) for arm in comparison.arms if arm.evaluation_error is not None)
    if not known:
        return ""
    ends = list(dict.fromkeys((known[0], known[-1])))
    errors = " to ".join(f"{value_text(error, comparison)} ({label})" for error, label in ends)
    return f"evaluation noise, one binomial standard error: {errors}"


def end_text(arm: Arm) -> str:
    """Write an arm's mean at its own end, and its interval."""
    mean, low, high = (None if value is None else f"{value:.4g}" for value in arm.end)
    return f"{mean} [{_no_interval(arm)}]" if low is None else f"{mean} [{low}, {high}]"


def end_label(arm: Arm) -> str:
    """Name the row of an arm's own end."""
    return f"{arm.label} at {flops_text(arm.flops_total)}"


def speedup_text(speedup: Speedup) -> str:
    """Write a speedup: ``2.65x`` between decayed points, ``~2.7x`` for a first touch, a word where there is none."""
    if speedup.value is None:
        return WORDS[speedup.absent]
    value = speedup.value
    if speedup.kind == "touch":
        # Two digits: a touch is not known more precisely.
        return f"~{value:.0f}x" if value >= 9.95 else f"~{value:.2g}x"
    digits = f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    if value < 0.1:
        digits = f"{value:.2g}"
    return f"{digits}x"


def shares(arm: Arm) -> dict[str, float]:
    """The share of an arm's FLOPs by purpose, largest first, without purposes of 0 FLOPs."""
    total = sum(arm.flops_by_purpose.values())
    ordered = sorted(arm.flops_by_purpose.items(), key=lambda item: (-item[1], item[0]))
    return {purpose: flops / total for purpose, flops in ordered if flops}


def subtitle(comparison: Comparison) -> str:
    """The facts common to all runs, on one line: data, seeds, common budget, date."""
    seeds = sorted({seed for arm in comparison.arms for seed in arm.seeds})
    facts = [f"{key.replace('_', ' ')} {value}" for key, value in comparison.facts.items()]
    plural = "s" if len(seeds) > 1 else ""
    facts.append(f"seed{plural} {', '.join(str(seed) for seed in seeds)}")
    facts.append(f"common budget {flops_text(comparison.budget)}")
    return " · ".join((*facts, comparison.created[:10]))


def reference_label(name: str) -> str:
    """Write a reference's name so that it cannot be taken for an arm's."""
    return name if "reference" in name.lower() else f"reference {name}"


def relative(path: Path, start: Path) -> str:
    """Write a path relative to a folder, with forward slashes."""
    try:
        return Path(os.path.relpath(path, start.resolve())).as_posix()
    except ValueError:
        # On Windows there is no relative path from one drive to another.
        return path.as_posix()
