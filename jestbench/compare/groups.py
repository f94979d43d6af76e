"""Groups the comparable runs into arms.

An arm is one configuration under one label. Runs that would distort a mean (unfinished, repeated,
without the metric) are split off here, each with a note of the reason.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from jestbench.compare.comparison import Excluded
from jestbench.compare.curves import Array, Curve
from jestbench.compare.load import CompareError, RunRecord, find_run_folders, load_run
from jestbench.disk import nearest, shown

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)

TOTAL_FLOPS = "flops/total"

_EVAL = "eval/"
_HASH_LENGTH = 8


@dataclass(frozen=True)
class Candidate:
    """A run that can be compared.

    Attributes:
        run: the run.
        curve: its evaluations.
    """

    run: RunRecord
    curve: Curve


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, before they are compared.

    Attributes:
        arm: their label.
        label: the label, with the configuration's hash where another group has the same label.
        config_hash: hash of the configuration.
        members: one for each seed, by seed.
    """

    arm: str
    label: str
    config_hash: str
    members: tuple[Candidate, ...]

    @property
    def budget(self) -> int | None:
        """FLOPs asked for; ``None`` if the runs do not record it."""
        budgets = [member.run.budget for member in self.members if member.run.budget is not None]
        return min(budgets) if budgets else None

    @property
    def reached(self) -> int:
        """The budget; where it is not recorded, the FLOPs spent by the shortest run."""
        return self.budget or int(min(spent(member.run) for member in self.members))


def spent(run: RunRecord) -> float:
    """FLOPs of a run, with the pre-training that was taken out of its budget."""
    return run.final.get(TOTAL_FLOPS, 0) + run.summary.pretrain_in_budget


def step_flops(run: RunRecord) -> float:
    """FLOPs of a run's average step."""
    steps = run.final.get("step", 0)
    return run.final.get(TOTAL_FLOPS, 0) / steps if steps > 0 else 0.0


def load_all(run_dirs: Sequence[Path]) -> tuple[list[RunRecord], list[Excluded]]:
    """Read every run that the arguments name or contain.

    Args:
        run_dirs: run folders, or folders that hold them one or two levels down.

    Returns:
        The runs, and the folders that cannot be read.

    Raises:
        CompareError: a folder does not exist (status 2), or no run can be read (status 3).
    """
    named, found = find_run_folders(run_dirs)
    runs: list[RunRecord] = []
    unreadable: list[Excluded] = []
    for folder in (*named, *found):
        try:
            runs.append(load_run(folder))
        except CompareError as error:
            unreadable.append(Excluded(folder, None, None, str(error)))
    # A reference is trained by a run of its own, which a search through a common parent finds as well.
    references = {folder for run in runs for folder in run.references.values()} - set(named)
    runs = [run for run in runs if run.folder not in references]
    if not runs:
        raise CompareError("no run can be read\n" + "\n".join(run.reason for run in unreadable))
    return runs, unreadable


def resolve_metric(runs: Iterable[RunRecord], metric: str) -> str:
    """Find the key that a metric's name means.

    Args:
        runs: the runs.
        metric: a key, or one without its leading ``eval/``.

    Returns:
        The key.

    Raises:
        CompareError: no run has the metric (status 2); the message lists the metrics that exist.
    """
    known = {key for run in runs for key in run.metrics}
    for name in (metric, _EVAL + metric):
        if name in known:
            return name
    evaluations = sorted(name for name in known if name.startswith(_EVAL))
    hint = nearest(metric, evaluations, "; did you mean {}?", cutoff=0.3)
    exist = "\n  ".join(evaluations) or "(none: no run was evaluated)"
    raise CompareError(f"no run has the metric {metric!r}{hint}\nmetrics that exist:\n  {exist}", status=2)


def split_usable(runs: Iterable[RunRecord], metric: str) -> tuple[list[Candidate], tuple[Excluded, ...], list[str]]:
    """Split off the runs that would distort a mean.

    Args:
        runs: the runs.
        metric: key of the metric.

    Returns:
        The finished runs that have the metric, the runs left out, and notes on the finished ones.

    Raises:
        CompareError: no run can be used (status 3).
    """
    usable: list[Candidate] = []
    excluded: list[Excluded] = []
    notes: list[str] = []
    for run in runs:
        finished = run.summary.status == "finished"
        curve, reason = read_curve(run, metric) if finished else (None, f"status: {run.summary.status}")
        if curve is None:
            excluded.append(Excluded(run.folder, run.summary.arm, run.summary.seed, reason))
        else:
            usable.append(Candidate(run, curve))
            notes.extend(f"{shown(run.folder)}: {problem}" for problem in (*run.problems, reason) if problem)
    if not usable:
        raise CompareError(f"no finished run with {metric}\n" + "\n".join(str(run) for run in excluded))
    return usable, tuple(excluded), notes


def read_curve(run: RunRecord, metric: str) -> tuple[Curve | None, str]:
    """Read a metric along a run.

    Args:
        run: the run.
        metric: key of the metric.

    Returns:
        The curve and its problem (empty if none); or ``None`` and the reason why there is no curve.
    """
    rows = [row for row in run.rows if metric in row and TOTAL_FLOPS in row]
    finite = [row for row in rows if math.isfinite(row[metric])]
    if not finite:
        return None, f"{metric} is {'not finite' if rows else 'missing'}"
    flops_E = _column(finite, TOTAL_FLOPS)
    if not np.isfinite(flops_E).all() or (np.diff(flops_E) < 0).any():
        return None, f"{TOTAL_FLOPS} goes backwards or is not finite"
    curve = Curve(
        value_E=_column(finite, metric),
        amount_E={
            "flops": flops_E + run.summary.pretrain_in_budget,
            "flops_all_in": flops_E + run.summary.pretrain_total,
            "pairs_seen": _column(finite, "pairs/seen"),
            "pairs_trained": _column(finite, "pairs/trained"),
            "seconds": _column(finite, "time/seconds"),
        },
    )
    dropped = len(rows) - len(finite)
    return curve, f"{dropped} value(s) of {metric} are not finite and are left out" if dropped else ""


def _column(rows: Iterable[Mapping[str, float]], key: str) -> Array:
    return np.array([row.get(key, math.nan) for row in rows], dtype=np.float64)


def newest_by_seed(candidates: Iterable[Candidate]) -> tuple[list[Candidate], list[str]]:
    """Keep the newest run of each arm, configuration and seed.

    Args:
        candidates: finished runs.

    Returns:
        The runs kept, and a note for each run dropped.
    """
    kept: list[Candidate] = []
    notes: list[str] = []
    for (arm, _, seed), same in _by(candidates, _identity).items():
        newest = max(same, key=lambda item: (item.run.modified, str(item.run.folder)))
        kept.append(newest)
        notes.extend(
            f"duplicate left out: {shown(other.run.folder)} repeats arm {arm}, seed {seed}; "
            f"{shown(newest.run.folder)} is newer"
            for other in same
            if other is not newest
        )
    return kept, notes


def _identity(candidate: Candidate) -> tuple[str, str, int]:
    summary = candidate.run.summary
    return summary.arm, summary.config_hash, summary.seed


def group_arms(candidates: Iterable[Candidate]) -> tuple[list[Group], list[str]]:
    """Group runs by label and configuration.

    Args:
        candidates: runs, one for each arm, configuration and seed.

    Returns:
        The groups, and a warning for each label shared by several configurations.
    """
    groups: list[Group] = []
    notes: list[str] = []
    for arm, same_label in sorted(_by(candidates, lambda item: item.run.summary.arm).items()):
        by_hash = _by(same_label, lambda item: item.run.summary.config_hash)
        clash = len(by_hash) > 1
        for config_hash, members in sorted(by_hash.items()):
            label = f"{arm}@{config_hash[:_HASH_LENGTH]}" if clash else arm
            by_seed = tuple(sorted(members, key=lambda item: item.run.summary.seed))
            groups.append(Group(arm, label, config_hash, by_seed))
        if clash:
            notes.append(
                f"ONE LABEL, {len(by_hash)} CONFIGURATIONS: arm {arm} stands for "
                f"{', '.join(sorted(by_hash))}. Each has its own row and "
                "they are never averaged; give them different run.arm labels"
            )
    return groups, notes


def choose_baseline(groups: Sequence[Group], baseline: str, excluded: Iterable[Excluded]) -> tuple[Group, list[str]]:
    """Find the group that all other groups are compared with.

    Args:
        groups: all groups.
        baseline: a label, or ``label@hash``.
        excluded: runs that cannot be used, to distinguish a missing baseline from an unfinished one.

    Returns:
        The group, and a warning if several groups have that label.

    Raises:
        CompareError: there is no such arm (status 2), or none of its runs can be used (status 3).
    """
    name, _, prefix = baseline.partition("@")
    chosen = [group for group in groups if group.arm == baseline] or [
        group for group in groups if prefix and group.arm == name and group.config_hash.startswith(prefix)
    ]
    if not chosen:
        unusable = [str(run) for run in excluded if run.arm == name]
        if unusable:
            raise CompareError(f"no run of the baseline {baseline!r} can be used\n" + "\n".join(unusable))
        labels = [group.label for group in groups]
        hint = nearest(baseline, labels, "; did you mean {}?")
        raise CompareError(f"no arm {baseline!r} to compare with{hint}\narms: {', '.join(labels)}", status=2)
    best = max(chosen, key=lambda group: (len(group.members), group.reached))
    if len(chosen) == 1:
        return best, []
    return best, [
        f"the baseline {baseline} is ambiguous: {best.label} is used, which has the most seeds or else the "
        f"largest budget; --baseline {name}@HASH chooses another"
    ]


def _by(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    groups: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
