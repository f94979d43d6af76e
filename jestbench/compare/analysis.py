"""Compares runs: each arm's metric at the common budget, and the compute that it saves over the baseline.

Nothing is dropped in silence: each run left out of a mean, and each fact that makes two numbers less
comparable than they look, becomes a warning of the comparison.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from jestbench.compare.comparison import Absent, Arm, Comparison, Kind, Paired, ReferenceRow, SeedRun, Speedup
from jestbench.compare.curves import AXES, FEWEST_SEEDS, Reach, SeedCurve, first_reach, interval, mean_curve, value_at
from jestbench.compare.groups import (
    TOTAL_FLOPS,
    Candidate,
    Group,
    choose_baseline,
    group_arms,
    load_all,
    newest_by_seed,
    read_curve,
    resolve_metric,
    spent,
    split_usable,
    step_flops,
)
from jestbench.compare.load import CompareError, RunRecord, load_run
from jestbench.compare.provenance import (
    common_facts,
    environment,
    learning_rate_notes,
    listed,
    run_notes,
    workplace_notes,
)
from jestbench.compare.wording import end_text
from jestbench.disk import shown
from jestbench.evals.measure import Measure

_EVAL_FLOPS = "flops/eval"
_RUNG_FLOPS = "flops/rungs"


def analyse(
    run_dirs: Sequence[Path], metric: str, baseline: str, lower_is_better: bool | None, command: str
) -> Comparison:
    """Compare the runs in some folders.

    Args:
        run_dirs: run folders, or folders that hold them one or two levels down.
        metric: key in ``metrics.jsonl``; the leading ``eval/`` may be left out.
        baseline: label of the baseline, or ``label@hash`` where two configurations share it.
        lower_is_better: whether a smaller value is better; ``None``: if the name holds "loss" or "mse".
        command: recorded as the command that reproduces the comparison.

    Returns:
        The comparison.

    Raises:
        CompareError: a folder, the metric or the baseline does not exist (status 2), or no run can be
            used (status 3).
    """
    runs, unreadable = load_all(run_dirs)
    metric = resolve_metric(runs, metric)
    lower = any(word in metric.lower() for word in ("loss", "mse")) if lower_is_better is None else lower_is_better
    candidates, unusable, reading = split_usable(runs, metric)
    kept, duplicates = newest_by_seed(candidates)
    groups, clashes = group_arms(kept)
    base, choice = choose_baseline(groups, baseline, unusable)
    budget = min(group.reached for group in groups)
    measure = _measure(kept, metric)
    arms, about_arms = _compare(groups, base, budget, lower, measure)
    references, about_references = _reference_rows(arms, metric)
    facts, about_data = common_facts(arms)
    excluded = (*unusable, *unreadable)
    left_out = [f"left out: {run}" for run in excluded]
    about_runs = [*workplace_notes(arms), *run_notes(arms)]
    return Comparison(
        metric=metric,
        lower_is_better=lower,
        baseline=base.label,
        budget=budget,
        arms=tuple(sorted(arms, key=lambda arm: (arm.mean if lower else -arm.mean, arm.label))),
        references=references,
        excluded=excluded,
        warnings=(
            *(*clashes, *choice, *left_out, *duplicates, *reading, *_few_seeds_notes(arms)),
            *(*about_arms, *about_references, *learning_rate_notes(arms), *about_data, *about_runs),
        ),
        facts=facts,
        command=command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        environment=environment([member.run for arm in arms for member in arm.runs]),
    )


def _measure(candidates: Iterable[Candidate], metric: str) -> Measure:
    """The metric's range and number of examples, where all runs that record them agree."""
    measures = [candidate.run.summary.measures for candidate in candidates]
    known = {found[metric] for found in measures if metric in found}
    return known.pop() if len(known) == 1 else Measure()


def _compare(
    groups: Sequence[Group], base: Group, budget: int, lower: bool, measure: Measure
) -> tuple[list[Arm], list[str]]:
    read = {group.label: _read_at(group, budget) for group in groups}
    members = {label: runs for label, (runs, _) in read.items() if runs}
    notes = [note for _, about in read.values() for note in about]
    if base.label not in members:
        smallest = min(groups, key=lambda group: group.reached)
        raise CompareError(
            f"arm {smallest.label} has the smallest budget, {budget:.3e} FLOPs, which lies before the first "
            f"evaluation of {base.label}: leave its runs out, or evaluate sooner"
        )
    curves = {label: mean_curve([member.curve for member in runs]) for label, runs in members.items()}
    target = float(curves[base.label].value_E[-1])
    reached = {label: first_reach(curve, target, lower_is_better=lower) for label, curve in curves.items()}
    base_reach = reached[base.label]
    if base_reach is not None and not base_reach.at_end:
        notes.append(
            f"the baseline {base.label} first touches its own final value before its end: its side of each first "
            "touch is read there"
        )
    arms = []
    for group in groups:
        if group.label not in members:
            continue
        own = group is base
        runs, curve = members[group.label], curves[group.label]
        end = float(curve.value_E[-1])
        arm = _arm(
            group,
            runs,
            budget,
            measure,
            speedup=_speedups(reached[group.label], base_reach, own=own, worse=end > target if lower else end < target),
            paired=None if own else _paired(runs, members[base.label], lower, measure),
            curve=curve,
        )
        arms.append(arm)
        notes.extend(_arm_notes(arm, None if own else members[base.label]))
    return arms, notes


def _read_at(group: Group, budget: int) -> tuple[tuple[SeedRun, ...], list[str]]:
    members: list[SeedRun] = []
    notes: list[str] = []
    for candidate in group.members:
        run, curve = candidate.run, candidate.curve
        step = step_flops(run)
        value = value_at(curve, budget, step)
        if value is None:
            notes.append(
                f"left out: {shown(run.folder)}: first evaluated above the common budget of {budget:.3e} FLOPs"
            )
            continue
        if curve.flops_E[-1] < budget - step:
            notes.append(
                f"{shown(run.folder)}: last evaluated at {curve.flops_E[-1]:.3e} FLOPs, below the common "
                f"budget of {budget:.3e}: its final value is used"
            )
        elif run.budget and spent(run) < run.budget - step:
            notes.append(f"{shown(run.folder)}: spent only {spent(run):.3e} of its {run.budget:.3e} FLOPs")
        members.append(SeedRun(run, curve, value))
    return tuple(members), notes


def _arm(
    group: Group,
    members: tuple[SeedRun, ...],
    budget: int,
    measure: Measure,
    *,
    speedup: Mapping[str, Speedup],
    paired: Paired | None,
    curve: SeedCurve,
) -> Arm:
    values = [member.value for member in members]
    low, high = interval(values, *measure.limits) or (None, None)
    ends = [float(member.curve.value_E[-1]) for member in members]
    runs = [member.run for member in members]
    purposes = sorted({key for run in runs for key in run.final if key.startswith("flops/")})
    return Arm(
        arm=group.arm,
        label=group.label,
        policy=runs[0].summary.policy,
        config_hash=group.config_hash,
        runs=members,
        mean=float(np.mean(values)),
        low=low,
        high=high,
        evaluation_error=_binomial_error(float(np.mean(values)), measure.examples),
        budget=group.budget,
        added_to_budget=_mean_count(run.summary.added_to_budget for run in runs),
        end=(float(np.mean(ends)), *(interval(ends, *measure.limits) or (None, None))),
        undecayed=group.reached > budget + max(step_flops(run) for run in runs),
        paired=paired,
        speedup=speedup,
        flops_total=_mean_final(runs, TOTAL_FLOPS),
        flops_by_purpose={
            key.removeprefix("flops/"): _mean_final(runs, key)
            for key in purposes
            if key not in (TOTAL_FLOPS, _EVAL_FLOPS, _RUNG_FLOPS)
        },
        flops_eval=_mean_final(runs, _EVAL_FLOPS),
        pretrain_flops=_mean_count(run.summary.pretrain_total for run in runs),
        pretrain_in_budget=_mean_count(run.summary.pretrain_in_budget for run in runs),
        flops_amortised=_mean_count(run.summary.flops_amortised for run in runs),
        flops_all_in=_mean_count(int(run.final.get(TOTAL_FLOPS, 0)) + run.summary.pretrain_total for run in runs),
        pairs_seen=_mean_final(runs, "pairs/seen"),
        pairs_trained=_mean_final(runs, "pairs/trained"),
        seconds=float(np.mean([run.final.get("time/seconds", 0.0) for run in runs])),
        curve=curve,
    )


def _mean_final(runs: Iterable[RunRecord], key: str) -> int:
    return _mean_count(run.final.get(key, 0) for run in runs)


def _mean_count(values: Iterable[float]) -> int:
    # FLOPs stay integers throughout: floats would lose the last digits above 2**53.
    whole = [int(value) for value in values]
    return (2 * sum(whole) + len(whole)) // (2 * len(whole))


def _speedups(arm: Reach | None, baseline: Reach | None, *, own: bool, worse: bool) -> dict[str, Speedup]:
    """Speedup by axis.

    Args:
        arm: where the arm first reaches the baseline's final value; ``None`` if nowhere.
        baseline: where the baseline first reaches it.
        own: whether the arm is the baseline.
        worse: whether the arm ends worse than the baseline, and so loses again a value that it reached on the way.
    """
    speedups = {}
    for axis in AXES:
        need = _finite(arm.amount[axis]) if arm else None
        have = _finite(baseline.amount[axis]) if baseline else None
        absent: Absent = ""
        if own:
            speedups[axis] = Speedup(1.0, "decayed", arm=need, baseline=have)
            continue
        if arm is None or baseline is None:
            absent = "never"
        elif worse:
            absent = "worse"
        elif not (arm.resolved and baseline.resolved):
            absent, need = "early", None
        elif not need or have is None:
            absent = "unknown"
        if absent or arm is None or baseline is None or not need or have is None:
            speedups[axis] = Speedup(None, None, absent, arm=need, baseline=have)
        else:
            kind: Kind = "decayed" if arm.at_end and baseline.at_end else "touch"
            speedups[axis] = Speedup(have / need, kind, arm=need, baseline=have)
    return speedups


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _binomial_error(share: float, examples: int | None) -> float | None:
    """One standard error of a share by the number of its examples, √(p(1 − p)/n).

    The formula assumes independent examples; those of one class share a prompt, so the true error is larger.

    Args:
        share: p.
        examples: n; ``None`` where the value is not a share of examples.
    """
    if examples is None or not 0 <= share <= 1:
        return None
    return math.sqrt(share * (1 - share) / examples)


def _paired(members: Iterable[SeedRun], baseline: Iterable[SeedRun], lower: bool, measure: Measure) -> Paired | None:
    of_baseline = {member.seed: member.value for member in baseline}
    difference = {
        member.seed: member.value - of_baseline[member.seed] for member in members if member.seed in of_baseline
    }
    if not difference:
        return None
    values = list(difference.values())
    lowest, highest = measure.limits
    widest = highest - lowest
    low, high = interval(values, -widest, widest) or (None, None)
    ahead = sum(value < 0 if lower else value > 0 for value in values)
    return Paired(tuple(difference), ahead, float(np.mean(values)), low, high)


def _arm_notes(arm: Arm, baseline: Sequence[SeedRun] | None) -> list[str]:
    """Warnings about an arm; ``baseline`` is ``None`` for the baseline itself."""
    notes = []
    if arm.added_to_budget:
        notes.append(
            f"arm {arm.label} was given {arm.added_to_budget:.3e} FLOPs of pre-training beside its budget: its end, "
            f"at {arm.flops_total:.3e} FLOPs ({end_text(arm)}), stands against the other arms' all-in FLOPs; at the "
            "common budget it is read inside its schedule"
        )
    elif arm.undecayed:
        notes.append(
            f"arm {arm.label} was given {arm.budget or arm.flops_all_in:.3e} FLOPs: its value at the common "
            "budget is read inside an undecayed schedule, and is not what a schedule that ends there gives"
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
    if unlogged:
        notes.append(f"arm {arm.label}: {listed(unlogged)} not logged with every evaluation: no such speedup")
    total = sum(arm.flops_by_purpose.values())
    # Each purpose's mean is rounded to a whole number.
    if arm.flops_by_purpose and abs(total - arm.flops_total) > len(arm.flops_by_purpose):
        notes.append(f"arm {arm.label}: FLOPs by purpose sum to {total}, not to the total of {arm.flops_total}")
    return notes


def _few_seeds_notes(arms: Sequence[Arm]) -> list[str]:
    """Notes on the arms without an interval, with the reason."""
    few = [f"{arm.label} ({len(arm.runs)})" for arm in arms if len(arm.runs) < FEWEST_SEEDS]
    equal = [arm.label for arm in arms if len(arm.runs) >= FEWEST_SEEDS and arm.low is None]
    notes = [f"no interval is given below {FEWEST_SEEDS} seeds: {listed(few)}"] if few else []
    if equal:
        notes.append(
            f"all seeds have the same value, which is no certainty, so that no interval is given: {listed(equal)}"
        )
    return notes


def _reference_rows(arms: Iterable[Arm], metric: str) -> tuple[tuple[ReferenceRow, ...], list[str]]:
    used: dict[tuple[str, Path | None, int], dict[str, None]] = defaultdict(dict)
    seeds: dict[tuple[str, Path | None, int], set[int]] = defaultdict(set)
    own: dict[str, set[int]] = defaultdict(set)
    for arm in arms:
        for member in arm.runs:
            for entry, folder in member.run.references.items():
                if entry.seeding == "own":
                    own[arm.label].add(member.seed)
                key = (entry.name, folder, entry.pretrain_flops)
                used[key][arm.label] = None
                seeds[key].add(member.seed)
    rows: list[ReferenceRow] = []
    notes = [f"arm {label}: each seed ({listed(sorted(its))}) has a reference of its own" for label, its in own.items()]
    for key, labels in sorted(used.items(), key=lambda item: str(item[0])):
        name, folder, pretrain_flops = key
        value, flops, problem = _reference_score(folder, metric)
        if len(seeds[key]) > 1:
            notes.append(
                f"one model {name} (one seed) serves the seeds {listed(sorted(seeds[key]))} of {listed(labels)}: what "
                "is particular to it is in all of them and in no interval"
            )
        rows.append(ReferenceRow(name, tuple(labels), value, pretrain_flops if flops is None else flops, folder))
        notes.extend([f"reference {name}: {problem}"] if problem else [])
    return tuple(rows), notes


def _reference_score(folder: Path | None, metric: str) -> tuple[float | None, int | None, str]:
    """A reference's final value, the FLOPs of its run, and a problem with them (or an empty text)."""
    if folder is None:
        return None, None, "its run folder is not recorded or not found, so its own score is not known"
    try:
        run = load_run(folder)
    except CompareError as error:
        return None, None, str(error)
    curve, problem = read_curve(run, metric)
    flops = int(run.final[TOTAL_FLOPS]) if TOTAL_FLOPS in run.final else None
    value = float(curve.value_E[-1]) if curve else None
    return value, flops, f"{shown(folder)}: {problem}" if problem else ""
