"""Wording and number formats of a comparison, shared by the table, the Markdown and the page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from jestbench.compare.comparison import Arm, Pays, Table
from jestbench.compare.crossings import Absent, Speedup
from jestbench.compare.curves import AXES
from jestbench.compare.load import EVAL
from jestbench.compare.statistics import Interval
from jestbench.evals.measure import Measure

WORDS: Mapping[Absent, str] = {
    "never": "never",
    "worse": "worse",
    "early": "early",
    "unknown": "-",
    "unshared": "-",
    "unstated": "?",
}
"""Words in the place of a speedup without a value, by ``Speedup.absent``."""

_PREFIXES = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_DIGITS = 4


def method(table: Table) -> tuple[tuple[str, str], ...]:
    """Explanations of how each number is computed: pairs of a name and a sentence."""
    return (*_about_values(table), *_about_speedups(table))


def _about_values(table: Table) -> tuple[tuple[str, str], ...]:
    return (
        (
            "FLOPs",
            "2 per multiply-add of matrix products, convolutions and attention; a training pass costs 3 "
            "forward passes; scoring, reference and selection are counted, evaluation and a ladder's branches are not.",
        ),
        (
            "decayed point",
            "a value at the end of a learning-rate schedule: the end of a run, or a rung of a ladder. Runs that differ "
            "in budget and rungs alone are one arm; its decayed points are its frontier.",
        ),
        (
            "common budget",
            "the largest at which every arm has a decayed point; where there is none, the smallest of the arms' ends, "
            "the others being read inside their schedules ('undecayed', linear between evaluations), without verdict. "
            "A run whose budget had its pre-training taken out first starts at that pre-training on the FLOP axis, so "
            "that all are compared at the full budget.",
        ),
        (
            "minus baseline",
            "mean difference to the baseline, on the same seeds and the same evaluation examples. The interval is "
            "simultaneous over all arms of the table (Dunnett), and holds seeds and examples; 'better' and 'worse' "
            "where it excludes zero. docs/statistics.md has the formulas.",
        ),
        (
            "mean",
            f"{table.metric} at the common budget, averaged over seeds. Its interval holds seeds and examples too, but "
            "is pointwise, as are all intervals but those of the differences: two that overlap say nothing about the "
            "difference.",
        ),
        (
            "examples",
            "the unit is the class (zero-shot) or the caption group (retrieval), since examples of one share a prompt. "
            "Runs without results of their examples have intervals of seeds alone, as the line above the table says.",
        ),
        ("chance", "the metric where the answers are ranked at random."),
    )


def _about_speedups(table: Table) -> tuple[tuple[str, str], ...]:
    better = "at or below" if table.lower_is_better else "at or above"
    return (
        (
            "×",
            f"what the baseline spent to its value at the common budget, over what the arm needs to be {better} it: "
            "between the arm's decayed points, linear in log FLOPs, monotone unless they evidently fall (then the "
            "first crossing). Its interval draws all values jointly; '..' is an open end. Below 1 the arm needs more. "
            f"'{WORDS['never']}': not reached; '{WORDS['worse']}': reached on the way, but the arm ends worse than "
            f"the baseline; '{WORDS['early']}': within the first interval of evaluations, where no place can be read.",
        ),
        ("≥", "the arm's first decayed point is already there: it needs at most that."),
        (
            "~",
            "a first touch, where one of the two has fewer than two decayed points: the learning curve touches the "
            "baseline's value at the common budget (at its end, where it has no decayed value there) inside its "
            "schedule. It is indicative and bounds nothing: a run whose schedule ends at that budget has another "
            "value. A ladder for both arms (optimizer.rungs) gives the number.",
        ),
        (
            "× all-in",
            "the same on FLOPs with the pre-training of references and scorers added, in full for each arm. '?': what "
            "that took is not known, so that every figure of the arm is one without the reference's pre-training.",
        ),
        ("× seen, × trained", "the same on pairs drawn into super-batches, and on pairs trained on."),
        (
            "× seconds",
            "the same on wall time of training without evaluation; comparable only on one idle machine.",
        ),
        (
            "where selection pays",
            "budgets at which an arm's frontier crosses that of the baseline or of a control (an arm without "
            "selection, or one with run.control = True); pointwise intervals, nothing extrapolated.",
        ),
    )


def sentence(arm: Arm, table: Table) -> str:
    """An arm's verdict against the baseline, in one sentence."""
    found, at = arm.difference, flops_text(table.budget)
    if found is None or table.baseline is None:
        return ""
    seeds = f"{len(found.seeds)} seed{'' if len(found.seeds) == 1 else 's'}"
    both = f"{arm.label} and {table.baseline}"
    if found.reason:
        return f"{both}: no verdict at {at}: {found.reason} ({seeds})"
    low, high = found.low, found.high
    if found.verdict == "not told apart":
        return f"{both} are not told apart at {at}: {_gain(found.value, low, high, table, 1)} ({seeds})"
    sign = 1 if found.value > 0 else -1
    gain = _gain(found.value, low, high, table, sign)
    return f"{arm.label} is {found.verdict} than {table.baseline} by {gain} at {at} ({seeds})"


def saving(arm: Arm, table: Table) -> str:
    """How many times an arm's FLOPs the baseline needs to its own value, in one sentence; empty where that is open."""
    spent, all_in = arm.speedup["flops"], arm.speedup["flops_all_in"]
    if arm.label == table.baseline or table.baseline is None or arm.verdict is None:
        return ""
    told = spent.value is not None and (spent.kind == "at_least" or (spent.low, spent.high) != (None, None))
    if not told and arm.verdict == "not told apart":
        return ""  # anything from never to at once
    target = f"{table.baseline}'s value at {flops_text(table.budget)}"
    if spent.value is None:
        known = {"never": "does not reach", "worse": "touches on the way, and ends below,"}
        return f"It {known[spent.absent]} {target}." if spent.absent in known else ""
    if not told and spent.kind != "touch":
        return ""
    texts = [
        f"{speedup_text(one)} {speedup_ends(one)}".strip().replace("x", "×").replace("..", "open")
        for one in (spent, all_in)
    ]
    # Where nothing was pre-trained, both are the same number.
    counted = arm.pretrain_flops and all_in.value is not None
    both = f"; with the arm's pre-training counted, {texts[1]}" if counted else ""
    kind = "By a first touch, indicative: " if spent.kind == "touch" else ""
    needed = f"{table.baseline} needs {texts[0]} the arm's FLOPs to its own value at {flops_text(table.budget)}"
    needed += ", without the reference's pre-training" if arm.pretrain_flops is None else ""
    return f"{kind}{needed}{both}."


def to_end_text(arm: Arm, table: Table) -> str:
    """What an arm saves to the baseline's value at its largest budget; empty where that is the table's."""
    if not arm.speedup_to_end:
        return ""
    found = ((AXES[axis].title, arm.speedup_to_end[axis]) for axis in ("flops", "flops_all_in"))
    each = ", ".join(f"{title} {speedup_text(one)} {speedup_ends(one)}".strip() for title, one in found)
    value = f"the value of {table.baseline} at {flops_text(table.baseline_end)}, its largest budget"
    return f"{arm.label} to {value}: {each.replace('x', '×').replace('..', 'open')}"


_TASKS: tuple[tuple[str, str], ...] = (
    (r"zero_shot_top(\d+)", "zero-shot top-{}"),
    (r"zero_shot_unseen_top(\d+)", "zero-shot top-{}, images of unseen classes,"),
    (r"zero_shot_unseen_mrr", "zero-shot mean reciprocal rank, images of unseen classes,"),
    (r"zero_shot_unseen_nll", "zero-shot loss in nats, images of unseen classes,"),
    (r"zero_shot_mrr", "zero-shot mean reciprocal rank"),
    (r"zero_shot_nll", "zero-shot loss in nats"),
    (r"(\d+)_shot_top(\d+)", "{}-shot top-{}"),
    (r"image_to_text_recall(\d+)", "image-to-text recall@{}"),
    (r"text_to_image_recall(\d+)", "text-to-image recall@{}"),
    (r"retrieval_mrr", "retrieval mean reciprocal rank"),
)


def metric_text(key: str, measure: Measure, data: Mapping[str, object] | None = None) -> str:
    """A metric in words, with the set and its own number of classes: ``flowers: zero-shot top-5 of 102 classes``.

    Args:
        data: a summary's facts about the data: ``eval_classes``, and ``eval_sets`` by name.
    """
    if not key.startswith(EVAL):
        return key
    *sets, name = key.removeprefix(EVAL).split("/")
    found = next((form.format(*hit.groups()) for pattern, form in _TASKS if (hit := re.fullmatch(pattern, name))), None)
    above = f"{'/'.join(sets)}: " if sets else ""
    if found is None:
        return f"{above}{name.replace('_', ' ')}"
    if "shot" in name:
        count = _classes(name, measure, "/".join(sets), data or {})
        return f"{above}{found}" + (f" of {count:,} classes" if count else "")
    return f"{above}{found}" + (f", {measure.examples:,} queries" if measure.examples else "")


def metric_name(table: Table) -> str:
    """A table's metric in words."""
    return metric_text(table.metric, table.measure, table.arms[0].runs[0].run.summary.data)


def _classes(name: str, measure: Measure, of_set: str, data: Mapping[str, object]) -> int | None:
    """Classes of an evaluation set: as recorded, else from the value at chance, k of the classes."""
    recorded: object = data.get("eval_classes")
    if of_set:
        sets = data.get("eval_sets")
        facts = sets.get(of_set) if isinstance(sets, Mapping) else None
        recorded = facts.get("classes") if isinstance(facts, Mapping) else None
    if isinstance(recorded, int):
        return recorded
    top = re.search(r"top(\d+)$", name)
    return round(int(top[1]) / measure.chance) if top and measure.chance else None


def _gain(value: float, low: float | None, high: float | None, table: Table, sign: int) -> str:
    """A difference with its interval, in points where the metric is a share; ``sign`` −1 turns it round."""
    share = table.measure.limits == (0.0, 1.0)
    ends = sorted(sign * (end or 0.0) * (100 if share else 1) for end in (low, high))
    number = sign * value * (100 if share else 1)
    digits = 1 if share and max(map(abs, ends)) >= 0.95 else 3
    texts = [f"{one:.{digits}f}".replace("-", "−") for one in (number, *ends)]
    return f"{texts[0]}{' points' if share else ''} [{texts[1]}, {texts[2]}]"


def pays_text(pays: Pays) -> str:
    """How an arm's frontier stands to another along the budget, in words."""
    span = f"{flops_text(pays.start)} to {flops_text(pays.end)}"
    if pays.ahead is None:
        return f"level from {span}"
    words = ["ahead" if pays.ahead else "behind"]
    for crossing in pays.crossings:
        low, high = (".." if end is None else flops_text(end) for end in (crossing.low, crossing.high))
        words.append(f"to {flops_text(crossing.budget)} [{low}, {high}], then")
        words.append("ahead" if crossing.after == "better" else "behind")
    return f"{' '.join(words)} (from {span})"


def decimal_prefix(value: float) -> tuple[float, str]:
    """The decimal prefix that suits a value: its factor and its symbol."""
    return next(((size, sign) for size, sign in _PREFIXES if abs(value) >= 0.9995 * size), (1.0, ""))


def prefixed(value: float, unit: str) -> str:
    """Write a quantity with three digits and a decimal prefix, as in ``15.0 TFLOP``."""
    divisor, prefix = decimal_prefix(value)
    scaled = value / divisor
    decimals = 0 if abs(scaled) >= 99.95 or divisor == 1 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{decimals}f} {prefix}{unit}".rstrip()


def flops_text(value: float | None) -> str:
    """Write FLOPs with a prefix; a question mark where they are not known."""
    return "?" if value is None else prefixed(value, "FLOP")


def seconds_text(value: float) -> str:
    """Write a time in the unit that suits it."""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def value_text(value: float | None, table: Table) -> str:
    """Write a value of the metric, with the same number of decimals everywhere."""
    if value is None:
        return "-"
    largest = max(abs(arm.mean.value) for arm in table.arms)
    whole = math.floor(math.log10(largest)) if largest > 0 else 0
    if not -4 <= whole <= 6:
        return f"{value:.{_DIGITS - 1}e}"
    return f"{value:.{max(0, _DIGITS - 1 - whole)}f}"


def interval_text(arm: Arm, table: Table) -> str:
    """Write an arm's mean and its interval, or why it has no interval."""
    mean = value_text(arm.mean.value, table) + (" undecayed" if arm.undecayed else "")
    return f"{mean} {_ends(arm.mean, len(arm.runs), table)}"


def _ends(found: Interval, seeds: int, table: Table) -> str:
    if found.low is None or found.high is None:
        return "[1 seed]" if seeds == 1 else "[no interval]"
    return f"[{value_text(found.low, table)}, {value_text(found.high, table)}]"


def signed(value: float, table: Table) -> str:
    """Write a difference with its sign."""
    return ("+" if value > 0 else "") + value_text(value, table)


def difference_text(arm: Arm, table: Table) -> str:
    """Write an arm's difference to the baseline with its simultaneous interval."""
    found = arm.difference
    if found is None:
        return "baseline" if arm.label == table.baseline else "-"
    if math.isnan(found.value):
        return "-"
    if found.low is None or found.high is None:
        return f"{signed(found.value, table)} [{'undecayed' if arm.undecayed else 'no interval'}]"
    return f"{signed(found.value, table)} [{signed(found.low, table)}, {signed(found.high, table)}]"


def verdict_text(arm: Arm) -> str:
    """Write an arm's verdict, ``no verdict`` without an interval, and nothing for the baseline."""
    if arm.difference is None:
        return ""
    return "no verdict" if arm.difference.reason else arm.difference.verdict


def cells(arm: Arm, table: Table) -> tuple[str, str, str, str, str]:
    """An arm's row in a table: label, difference (empty for the baseline), verdict, mean, number of seeds."""
    difference = "" if arm.label == table.baseline else difference_text(arm, table)
    return arm.label, difference, verdict_text(arm), interval_text(arm, table), str(len(arm.runs))


def below(table: Table) -> Iterator[tuple[str, str, str, str]]:
    """The rows below the arms, of their own ends and of references: name, what is to be known, value, seeds."""
    for arm in table.arms:
        if arm.added_to_budget:
            yield end_label(arm), "", end_text(arm), str(len(arm.runs))
    for row in table.references:
        about = f"of {', '.join(row.arms)}; {flops_text(row.flops_total)}"
        yield reference_label(row.name), about, value_text(row.value, table), ""


def deviation_text(arm: Arm, table: Table) -> str:
    """Write an arm's deviation from seed to seed; empty below eight seeds."""
    if arm.deviation is None:
        return ""
    number = value_text(arm.deviation.value, table)
    return f"{arm.label} {number} {_ends(arm.deviation, len(arm.runs), table)} ({len(arm.runs)} seeds)"


def chance_text(table: Table) -> str:
    """Write the metric's value at chance; empty where it has none."""
    chance = table.measure.chance
    return "" if chance is None else f"chance {chance:.3g}"


def end_text(arm: Arm) -> str:
    """Write an arm's mean at its own end, and its interval."""
    mean, low, high = (None if end is None else f"{end:.4g}" for end in (arm.end.value, arm.end.low, arm.end.high))
    return f"{mean} [{'1 seed' if len(arm.runs) == 1 else 'no interval'}]" if low is None else f"{mean} [{low}, {high}]"


def end_label(arm: Arm) -> str:
    """Name the row of an arm's own end."""
    return f"{arm.label} at {flops_text(arm.flops_total)}"


def speedup_text(speedup: Speedup) -> str:
    """Write a speedup: ``2.65x``, ``≥2.65x`` at least, ``~2.7x`` for a first touch, a word where there is none."""
    if speedup.value is None:
        return WORDS[speedup.absent]
    value = speedup.value
    if speedup.kind == "touch":
        # Two digits: a touch is not known more precisely.
        return f"~{value:.0f}x" if value >= 9.95 else f"~{value:.2g}x"
    return f"{'≥' if speedup.kind == 'at_least' else ''}{_times(value)}x"


def without_ends(text: str) -> tuple[str, str]:
    """A value and its interval, ``[…]``, apart; either may be empty."""
    value, bracket, rest = text.partition("[")
    return value.strip(), f"{bracket}{rest}".strip()


def speedup_ends(speedup: Speedup) -> str:
    """Write a speedup's interval, two dots for an open end; empty for a first touch and where there is no value."""
    if speedup.value is None or speedup.kind == "touch" or speedup.low == speedup.high == 1:
        return ""
    texts = ["" if end is None else f"{end:.2g}" for end in (speedup.low, speedup.high)]
    value = float(_times(speedup.value))
    if any(text and sign * float(text) > sign * value for text, sign in zip(texts, (1, -1), strict=True)):
        # With two digits the value would stand outside of its own interval.
        texts = ["" if end is None else _times(end) for end in (speedup.low, speedup.high)]
    return f"[{', '.join(text or '..' for text in texts)}]"


def _times(factor: float) -> str:
    """A factor with three digits, with two below 0.1."""
    if factor < 0.1:
        return f"{factor:.2g}"
    return f"{factor:.0f}" if factor >= 99.95 else f"{factor:.1f}" if factor >= 9.995 else f"{factor:.2f}"


def shares(arm: Arm) -> dict[str, float]:
    """The share of an arm's FLOPs by purpose, largest first, without purposes of 0 FLOPs."""
    total = sum(arm.flops_by_purpose.values())
    ordered = sorted(arm.flops_by_purpose.items(), key=lambda item: (-item[1], item[0]))
    return {purpose: flops / total for purpose, flops in ordered if flops}


def subtitle(table: Table, created: str) -> str:
    """The facts common to all runs of a table, on one line: data, seeds, common budget, chance, date."""
    seeds = sorted({seed for arm in table.arms for seed in arm.seeds})
    facts = [f"{key.replace('_', ' ')} {value}" for key, value in table.facts.items()]
    plural = "s" if len(seeds) > 1 else ""
    facts.append(f"seed{plural} {', '.join(str(seed) for seed in seeds)}")
    facts.append(f"common budget {flops_text(table.budget)}")
    chance = chance_text(table)
    return " · ".join((*facts, *([chance] if chance else []), created[:10]))


def world_name(table: Table) -> str:
    """What distinguishes a table's world from the others; empty where there is one world."""
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in table.about.items())


def reference_label(name: str) -> str:
    """Write a reference's name so that it cannot be taken for an arm's."""
    return name if "reference" in name.lower() else f"reference {name}"
