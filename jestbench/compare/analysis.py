"""Compares runs: each arm's metric at the common budget, and the compute that it saves over the baseline.

Nothing is dropped in silence: each run left out of a mean, and each fact that makes two numbers less
comparable than they look, becomes a warning of the comparison.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from jestbench.compare.choose_metric import chosen_metric
from jestbench.compare.comparison import (
    UNDECAYED,
    Arm,
    Comparison,
    FrontierPoint,
    SeedRun,
    Table,
)
from jestbench.compare.curves import AXES, mean_curve, value_at
from jestbench.compare.frontiers import Metric, cell_of, frontiers, where_it_pays
from jestbench.compare.groups import (
    ComparedWorld,
    Group,
    choose_baseline,
    group_arms,
    load_all,
    newest_by_seed,
    no_baseline,
    resolve_metric,
    split_usable,
    split_worlds,
)
from jestbench.compare.load import CompareError
from jestbench.compare.points import TOTAL_FLOPS, Candidate, spent, step_flops
from jestbench.compare.provenance import (
    common_facts,
    environment,
    learning_rate_notes,
    listed,
    run_notes,
    start_notes,
    workplace_notes,
)
from jestbench.compare.references import reference_rows
from jestbench.compare.speedups import Speedups, speedups_of, speedups_to_end
from jestbench.compare.statistics import Difference, Interval, seed_deviation
from jestbench.compare.wording import end_text
from jestbench.disk import shown

_APART = ("flops/eval", "flops/rungs")
"""FLOPs outside the total."""
_LOWER = ("loss", "mse", "nll")
"""Ends of words in the names of metrics of which less is better; for keys without a recorded measure."""
_SEEDS_FOR_DEVIATION = 8


def analyse(
    run_dirs: Sequence[Path], metric: str | None, baseline: str, lower_is_better: bool | None, command: str
) -> Comparison:
    """Compare the runs in some folders; arguments as of ``compare_runs``.

    Args:
        command: recorded as the command that reproduces the comparison.

    Raises:
        CompareError: a folder, the metric or the baseline does not exist (status 2), or no run can be
            used (status 3).
    """
    runs, unreadable = load_all(run_dirs)
    if metric is None:
        metric, goal = chosen_metric(runs)
        lower_is_better = goal if lower_is_better is None else lower_is_better
    metric = resolve_metric(runs, metric)
    candidates, unusable, reading = split_usable(runs, metric)
    kept, duplicates = newest_by_seed(candidates)
    if lower_is_better is None:
        lower_is_better, recorded = _lower_is_better(kept, metric)
        if not recorded:
            which = "smaller" if lower_is_better else "larger"
            duplicates.append(f"no run records which way {metric} is better: {which} is taken, by its name")
    worlds, apart = split_worlds(kept, metric, baseline)
    compared = [_compare(world, metric, baseline, lower_is_better) for world in worlds]
    tables = tuple(table for table, _ in compared)
    excluded = (*unusable, *unreadable)
    if all(table.baseline is None for table in tables):
        raise no_baseline([arm.label for table in tables for arm in table.arms], baseline, excluded)
    left_out = [f"left out: {run}" for run in excluded]
    notes = [note for _, found in compared for note in found]
    return Comparison(
        tables=tables,
        excluded=excluded,
        warnings=tuple(dict.fromkeys((*apart, *left_out, *duplicates, *reading, *notes))),
        command=command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        environment=environment([member.run for table in tables for arm in table.arms for member in arm.runs]),
    )


def _lower_is_better(candidates: Iterable[Candidate], metric: str) -> tuple[bool, bool]:
    """Whether a smaller value is better, and whether a run records it."""
    measures = [candidate.run.summary.measures for candidate in candidates]
    known = [found[metric].lower_is_better for found in measures if metric in found]
    words = re.split(r"[^a-z]+", metric.lower())
    return (known[0], True) if known else (any(word.endswith(_LOWER) for word in words), False)


def _compare(world: ComparedWorld, key: str, baseline: str, lower: bool) -> tuple[Table, list[str]]:
    """The table of a world, and notes on it."""
    groups, clashes = group_arms(world)
    base, choice = choose_baseline(groups, baseline)
    budget = _common_budget(groups)
    metric = Metric.of(key, world.members, lower)
    members, notes = _members(groups, base, budget)
    groups = [group for group in groups if group.label in members]
    decayed = {label: runs for label, runs in members.items() if all(run.point for run in runs)}
    points = frontiers(groups, metric)
    means, differences, rule = _statistics(members, decayed, base, metric)
    speedup, about_speedups = speedups_of(groups, base, members, budget, metric)
    to_end = speedups_to_end(groups, base, budget, metric)
    arms = []
    for group in groups:
        runs = members[group.label]
        arm = _arm(
            group,
            runs,
            mean=means[group.label],
            difference=differences.get(group.label),
            speedup=speedup[group.label],
            to_end=to_end.get(group.label, {}),
            points=points[group.label],
        )
        arms.append(arm)
        notes.extend(_arm_notes(arm, members[base.label] if base and base is not group else None))
    references, about_references = reference_rows(arms, key)
    facts, about_data = common_facts(arms)
    about_runs = [*workplace_notes(arms), *run_notes(arms)]
    if base is None:
        notes.append(f"no arm {baseline} among {listed(arm.label for arm in arms)}: no differences and no speed-ups")
    table = Table(
        metric=key,
        lower_is_better=lower,
        measure=metric.measure,
        about=world.about,
        baseline=base.label if base else None,
        budget=budget,
        rule=rule,
        arms=tuple(sorted(arms, key=lambda arm: (arm.mean.value if lower else -arm.mean.value, arm.label))),
        references=references,
        frontier=tuple(point for arm in groups for point in points[arm.label]),
        pays=where_it_pays(groups, base, metric),
        facts=facts,
    )
    about, two = (*clashes, *choice, *_interval_notes(arms), *notes, *about_speedups), _two_seeds_note(arms)
    return table, [
        *about,
        *about_references,
        *start_notes(arms),
        *learning_rate_notes(arms),
        *about_data,
        *about_runs,
        *two,
    ]


def _common_budget(groups: Sequence[Group]) -> int:
    """The largest budget at which every arm has a decayed point; if there is none, the smallest end of an arm."""
    shared = set.intersection(*(set(group.budgets) for group in groups))
    return max(shared) if shared else min(group.budgets[-1] for group in groups)


def _members(
    groups: Sequence[Group], base: Group | None, budget: int
) -> tuple[dict[str, tuple[SeedRun, ...]], list[str]]:
    """The runs of each arm at a budget, without arms that have none; and notes."""
    read = {group.label: _read_at(group, budget) for group in groups}
    if base is not None and not read[base.label][0]:
        smallest = min(groups, key=lambda group: group.budgets[-1])
        raise CompareError(
            f"arm {smallest.label} has the smallest budget, {budget:.3e} FLOPs, which lies before the first "
            f"evaluation of {base.label}: leave its runs out, or evaluate sooner"
        )
    notes = [note for _, about in read.values() for note in about]
    return {label: runs for label, (runs, _) in read.items() if runs}, notes


def _read_at(group: Group, budget: int) -> tuple[tuple[SeedRun, ...], list[str]]:
    """An arm's runs at a budget: those with a decayed point there; if there are none, all, read on their curves."""
    notes: list[str] = []
    members = [SeedRun(one.run, one.curve, point.value, point) for one, point in group.at(budget)]
    if members:
        missing = sorted(set(group.seeds) - {member.seed for member in members})
        if missing:
            notes.append(f"arm {group.label}: seeds {listed(missing)} have no decayed point at {budget:.3e} FLOPs")
        for member in members:
            notes.extend(_shortfall(member, budget))
        return tuple(members), notes
    for seed in group.seeds:
        runs = [one for one in group.members if one.seed == seed]
        above = [one for one in runs if one.end.budget >= budget]
        one = min(above, key=lambda run: run.end.budget) if above else runs[-1]
        step = step_flops(one.run)
        value = value_at(one.curve, budget, step)
        if value is None:
            notes.append(
                f"left out: {shown(one.run.folder)}: first evaluated above the common budget of {budget:.3e} FLOPs"
            )
            continue
        point = one.end if one.end.budget <= budget + step else None
        members.append(SeedRun(one.run, one.curve, value, point))
        notes.extend(_shortfall(members[-1], budget))
    return tuple(members), notes


def _shortfall(member: SeedRun, budget: int) -> list[str]:
    """Notes on a run that ended before it was asked to."""
    run, step = member.run, step_flops(member.run)
    at = member.point.amount["flops"] if member.point else float(member.curve.flops_E[-1])
    if at < budget - step:
        return [
            f"{shown(run.folder)}: last evaluated at {at:.3e} FLOPs, below the common budget of {budget:.3e}: its "
            "final value is used"
        ]
    if run.budget and spent(run) < run.budget - step:
        return [f"{shown(run.folder)}: spent only {spent(run):.3e} of its {run.budget:.3e} FLOPs"]
    return []


def _statistics(
    members: Mapping[str, Sequence[SeedRun]],
    decayed: Mapping[str, Sequence[SeedRun]],
    base: Group | None,
    metric: Metric,
) -> tuple[dict[str, Interval], dict[str, Difference], str]:
    """Means of all arms, differences to the baseline, and the rule of the decayed ones' intervals."""
    cells = {label: cell_of((run.seed, run.value, run.point) for run in runs) for label, runs in members.items()}
    family = {label: cells[label] for label in decayed}
    # A value inside an undecayed schedule is of another kind: it is in no family, and gets no verdict.
    means = {label: metric.means({label: cell})[label] for label, cell in cells.items() if label not in family}
    differences: dict[str, Difference] = {}
    rule = "no verdicts: the baseline's value is read inside an undecayed schedule" if base else "no baseline"
    if base and base.label in family:
        fitted = metric.fit(family, base.label)
        means, differences, rule = means | dict(fitted.means), dict(fitted.differences), fitted.rule
    elif family:
        means |= metric.means(family)
    if base:
        for label in cells.keys() - differences.keys() - {base.label}:
            differences[label] = _unjudged(members[label], members[base.label])
    return means, differences, rule


def _unjudged(members: Iterable[SeedRun], baseline: Iterable[SeedRun]) -> Difference:
    """The plain paired difference, where one of the two values is read inside an undecayed schedule."""
    other = {member.seed: member.value for member in baseline}
    found = {member.seed: member.value - other[member.seed] for member in members if member.seed in other}
    value = float(np.mean(list(found.values()))) if found else math.nan
    return Difference(value, None, None, None, None, "not told apart", tuple(found), UNDECAYED)


def _arm(
    group: Group,
    members: tuple[SeedRun, ...],
    *,
    mean: Interval,
    difference: Difference | None,
    speedup: Speedups,
    to_end: Speedups,
    points: Sequence[FrontierPoint],
) -> Arm:
    runs = [member.run for member in members]
    purposes = sorted({key for run in runs for key in run.final if key.startswith("flops/")} - {*_APART, TOTAL_FLOPS})
    decayed = [member.value for member in members if member.point is not None]
    return Arm(
        arm=group.arm,
        label=group.label,
        policy=runs[0].summary.policy,
        config_hash=runs[0].summary.config_hash,
        frontier_hash=group.frontier_hash,
        runs=members,
        mean=mean,
        difference=difference,
        budget=min(member.point.budget if member.point else member.run.budget or 0 for member in members),
        added_to_budget=_mean_count(run.summary.added_to_budget for run in runs),
        end=points[-1].mean,
        undecayed=len(decayed) < len(members),
        deviation=seed_deviation(np.array(decayed)) if len(decayed) >= _SEEDS_FOR_DEVIATION else None,
        speedup=speedup,
        speedup_to_end=to_end,
        flops_total=_mean_of(members, TOTAL_FLOPS),
        flops_by_purpose={key.removeprefix("flops/"): _mean_of(members, key) for key in purposes},
        flops_eval=_mean_of(members, "flops/eval"),
        flops_rungs=_mean_of(members, "flops/rungs"),
        pretrain_flops=_mean_known([run.summary.pretrain_total for run in runs]),
        pretrain_in_budget=_mean_count(run.summary.pretrain_in_budget for run in runs),
        flops_amortised=_mean_count(run.summary.flops_amortised for run in runs),
        flops_all_in=_mean_known([_flops_all_in(member) for member in members]),
        pairs_seen=_mean_of(members, "pairs/seen"),
        pairs_trained=_mean_of(members, "pairs/trained"),
        seconds=float(np.mean([member.counters.get("time/seconds", 0.0) for member in members])),
        curve=mean_curve([member.curve for member in members]),
        members=group.members,
    )


def _flops_all_in(member: SeedRun) -> int | None:
    pretrained = member.run.summary.pretrain_total
    return None if pretrained is None else int(member.counters.get(TOTAL_FLOPS, 0)) + pretrained


def _mean_of(members: Iterable[SeedRun], key: str) -> int:
    return _mean_count(member.counters.get(key, 0) for member in members)


def _mean_known(values: Sequence[int | None]) -> int | None:
    """The mean; ``None`` where one value is not known."""
    known = [value for value in values if value is not None]
    return _mean_count(known) if len(known) == len(values) else None


def _mean_count(values: Iterable[float]) -> int:
    # FLOPs stay integers throughout: floats would lose the last digits above 2**53.
    whole = [int(value) for value in values]
    return (2 * sum(whole) + len(whole)) // (2 * len(whole))


def _arm_notes(arm: Arm, baseline: Sequence[SeedRun] | None) -> list[str]:
    """Warnings about an arm; ``baseline`` is ``None`` for the baseline itself, and where there is none."""
    notes = []
    if arm.added_to_budget:
        notes.append(
            f"arm {arm.label} was given {arm.added_to_budget:.3e} FLOPs of pre-training beside its budget: its end, "
            f"at {arm.flops_total:.3e} FLOPs ({end_text(arm)}), stands against the other arms' all-in FLOPs; at the "
            "common budget it is read inside its schedule"
        )
    elif arm.undecayed:
        notes.append(
            f"arm {arm.label} was given {arm.budget or arm.flops_total:.3e} FLOPs: its value at the common "
            "budget is read inside an undecayed schedule, and is not what a schedule that ends there gives; no verdict"
        )
    if arm.flops_amortised:
        notes.append(
            f"arm {arm.label}: reference scoring of {arm.flops_amortised:.3e} FLOPs is amortised: it is in no "
            "total and in no speedup"
        )
    if baseline is not None:
        seeds = [member.seed for member in baseline]
        if set(seeds) != set(arm.seeds):
            notes.append(
                f"arm {arm.label} has seeds {listed(arm.seeds)}, the baseline {listed(seeds)}: they are "
                "paired where both have the seed"
            )
    unlogged = [axis for axis in AXES if not np.isfinite(arm.curve.amount_E[axis]).all()]
    if arm.pretrain_flops is None:
        unlogged.remove("flops_all_in")
        notes.append(
            f"arm {arm.label}: what the training of its reference took is not known, so that its FLOPs and speed-ups "
            "are without the reference's pre-training; state it (pretrain_flops of what run.reference binds)"
        )
    if unlogged:
        notes.append(f"arm {arm.label}: {listed(unlogged)} not logged with every evaluation: no such speedup")
    total = sum(arm.flops_by_purpose.values())
    # Each purpose's mean is rounded to a whole number.
    if arm.flops_by_purpose and abs(total - arm.flops_total) > len(arm.flops_by_purpose):
        notes.append(f"arm {arm.label}: FLOPs by purpose sum to {total}, not to the total of {arm.flops_total}")
    return notes


def _interval_notes(arms: Sequence[Arm]) -> list[str]:
    """The arms without an interval, by reason."""
    labels: dict[str, list[str]] = defaultdict(list)
    for arm in arms:
        if arm.mean.reason:
            labels[arm.mean.reason].append(arm.label)
    return [f"no interval: {reason} ({listed(which)})" for reason, which in labels.items()]


def _two_seeds_note(arms: Sequence[Arm]) -> list[str]:
    """A note of the arms that two seeds, whose intervals are wide, do not tell apart from the baseline."""
    untold = [arm for arm in arms if arm.verdict == "not told apart" and arm.difference and not arm.difference.reason]
    if which := [arm.label for arm in untold if len(arm.seeds) == 2]:
        return [f"two seeds leave wide intervals: take three or more (docs/statistics.md) ({listed(which)})"]
    return []
