"""Groups the comparable runs: into worlds, which are never ranked together, and each world into arms.

An arm is one configuration under one label; runs that differ in budget and rungs alone are one arm, whose decayed
points form one frontier. Runs that would distort a mean (unfinished, repeated, without the metric) are split off here,
each with a note of the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from jestbench.compare.comparison import Excluded
from jestbench.compare.configurations import labels, read_configuration
from jestbench.compare.ladder_so_far import so_far
from jestbench.compare.load import EVAL, CompareError, RunRecord, find_run_folders, load_run
from jestbench.compare.points import Candidate, Point, read_metric
from jestbench.compare.provenance import arms_by, described
from jestbench.disk import nearest, shown
from jestbench.evals.measure import Measure

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)

_HASH_LENGTH = 8
_OF_THE_SPLIT = ("split", "pairs", "damaged_when_indexed", "captions_cut", "beside", "damage_page")
"""Facts about the split that a run was trained on. A control may train on another one of the same data."""


@dataclass(frozen=True)
class Group:
    """Runs of one arm, before they are compared.

    Attributes:
        arm: their label.
        label: the label; where other arms of the world have the same one, with the parameters in which they differ, or
            else with the hash.
        frontier_hash: hash of the configuration without budget and rungs.
        members: the runs, by seed and budget.
    """

    arm: str
    label: str
    frontier_hash: str
    members: tuple[Candidate, ...]

    @property
    def budgets(self) -> tuple[int, ...]:
        """Budgets of the decayed points, ascending."""
        return tuple(sorted({point.budget for member in self.members for point in member.points}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs, ascending."""
        return tuple(sorted({member.seed for member in self.members}))

    def at(self, budget: int) -> list[tuple[Candidate, Point]]:
        """The decayed points at a budget, one for each seed: of several runs with one, that of the newest."""
        newest: dict[int, tuple[Candidate, Point]] = {}
        for member in sorted(self.members, key=_age):
            point = member.point(budget)
            if point is not None:
                newest[member.seed] = member, point
        return [newest[seed] for seed in sorted(newest)]


@dataclass(frozen=True)
class ComparedWorld:
    """Runs that can be ranked together: of the same data, loss and evaluation.

    Attributes:
        about: what distinguishes it from the other worlds.
        members: its runs.
    """

    about: Mapping[str, str]
    members: tuple[Candidate, ...]


def load_all(run_dirs: Sequence[Path]) -> tuple[list[RunRecord], list[Excluded]]:
    """Read every run that the arguments name or contain, one or two levels down; and the folders that cannot be read.

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
    """Find the key that a metric's name means, which may lack its leading ``eval/``.

    Raises:
        CompareError: no run has the metric (status 2); the message lists the metrics that exist.
    """
    known = {key for run in runs for key in run.metrics}
    for name in (metric, EVAL + metric):
        if name in known:
            return name
    evaluations = sorted(name for name in known if name.startswith(EVAL))
    hint = nearest(metric, evaluations, "; did you mean {}?", cutoff=0.3)
    exist = "\n  ".join(evaluations) or "(none: no run was evaluated)"
    raise CompareError(f"no run has the metric {metric!r}{hint}\nmetrics that exist:\n  {exist}", status=2)


def split_usable(runs: Iterable[RunRecord], metric: str) -> tuple[list[Candidate], tuple[Excluded, ...], list[str]]:
    """Split off the runs that would distort a mean.

    Returns:
        The finished runs and the ended rungs of interrupted ladders that have the metric, the runs left out, and
        notes on those that are used.

    Raises:
        CompareError: no run can be used (status 3).
    """
    usable: list[Candidate] = []
    excluded: list[Excluded] = []
    notes: list[str] = []
    for found in runs:
        run, finished = found, found.summary.status == "finished"
        if not finished and (shorter := so_far(found)) is not None:
            run, finished = shorter[0], True
            notes.append(f"{shown(run.folder)}: {shorter[1]}")
        candidate, problems = read_metric(run, metric) if finished else (None, (f"status: {run.summary.status}",))
        if candidate is None:
            excluded.append(Excluded(run.folder, run.summary.arm, run.summary.seed, "; ".join(problems)))
        else:
            usable.append(candidate)
            notes.extend(f"{shown(run.folder)}: {problem}" for problem in (*run.problems, *problems))
    if not usable:
        raise CompareError(f"no finished run with {metric}\n" + "\n".join(str(run) for run in excluded))
    return usable, tuple(excluded), notes


def newest_by_seed(candidates: Iterable[Candidate]) -> tuple[list[Candidate], list[str]]:
    """Keep the newest finished run of each arm, configuration and seed; with a note for each run dropped."""
    kept: list[Candidate] = []
    notes: list[str] = []
    for (arm, _, seed), same in _by(candidates, _identity).items():
        newest = max(same, key=_age)
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


def _age(candidate: Candidate) -> tuple[float, str]:
    return candidate.run.modified, str(candidate.run.folder)


def split_worlds(candidates: Sequence[Candidate], metric: str, baseline: str) -> tuple[list[ComparedWorld], list[str]]:
    """Split runs whose data, loss or evaluation differ; with a note for each fact that differs.

    Runs whose training data, evaluation data or evaluation examples are not recorded go with those of the same facts
    that have a record, unless these differ. The worlds with the baseline come first, then those of most runs.
    """
    worlds: dict[tuple[tuple[str, str], ...], list[Candidate]] = {}
    for facts, same in _by(candidates, lambda item: _facts(item, metric)).items():
        records = [_records(item) for item in same]
        kinds = {name: sorted({record[name] for record in records} - {""}) for name in records[0]}
        for item, record in zip(same, records, strict=True):
            filled = [
                (name, kind or (kinds[name][0] if len(kinds[name]) == 1 else "not recorded" if kinds[name] else ""))
                for name, kind in record.items()
            ]
            worlds.setdefault((*filled, *facts), []).append(item)
    label = baseline.partition("@")[0]
    ordered = sorted(
        worlds.items(), key=lambda item: (label not in {one.run.summary.arm for one in item[1]}, -len(item[1]))
    )
    keys = dict.fromkeys(key for facts, _ in ordered for key, _ in facts)
    found = {key: [dict(facts).get(key, "not recorded") for facts, _ in ordered] for key in keys}
    differing = {key: values for key, values in found.items() if len(set(values)) > 1}
    notes = []
    for key, values in differing.items():
        arms = (sorted(member.run.summary.arm for member in members) for _, members in ordered)
        by_value = arms_by((value, arm) for value, of in zip(values, arms, strict=True) for arm in of)
        said = f"{len(worlds)} WORLDS, each with its own table, never ranked together"
        notes.append(f"{said}: {key} is {described(by_value)}")
    return [
        ComparedWorld({key: values[index] for key, values in differing.items()}, tuple(members))
        for index, (_, members) in enumerate(ordered)
    ], notes


def _records(candidate: Candidate) -> dict[str, str]:
    """What two runs must have in common as well, but may hold no record of: empty."""
    prints = candidate.run.summary.fingerprints
    return {
        "training data": prints.get("training", "")[:_HASH_LENGTH],
        "evaluation data": prints.get("evaluation", "")[:_HASH_LENGTH],
        "evaluation examples": candidate.examples,
    }


def _facts(candidate: Candidate, metric: str) -> tuple[tuple[str, str], ...]:
    """What two runs must have in common to be ranked together, as far as their summaries hold it."""
    facts = {key: str(value) for key, value in candidate.run.facts.items() if key not in _OF_THE_SPLIT}
    measure = candidate.run.summary.measures.get(metric, Measure())
    counted = {"number of evaluation examples": measure.examples, "chance": measure.chance}
    recorded = {key: f"{value:g}" for key, value in counted.items() if value is not None}
    return (*sorted(facts.items()), *recorded.items())


def group_arms(world: ComparedWorld) -> tuple[list[Group], list[str]]:
    """Group the runs of a world by label, and by configuration without budget and rungs.

    Returns:
        The groups; and a warning for each label shared by several configurations, and for each seed of a group that
        has several decayed points at one budget.
    """
    groups: list[Group] = []
    notes: list[str] = []
    for arm, same_label in sorted(_by(world.members, lambda item: item.run.summary.arm).items()):
        by_hash = _by(same_label, lambda item: item.run.summary.frontier_hash)
        clash, names = len(by_hash) > 1, dict.fromkeys(by_hash, arm)
        if clash:
            configurations = {key: read_configuration(same[0].run.folder) for key, same in sorted(by_hash.items())}
            names = labels(arm, configurations, _HASH_LENGTH)
        for frontier_hash, members in sorted(by_hash.items()):
            label = names[frontier_hash]
            ordered = sorted(_one_budget(members), key=lambda item: (item.seed, item.end.budget))
            groups.append(Group(arm, label, frontier_hash, tuple(ordered)))
            if repeated := _repeated(ordered):
                seeds = ", ".join(str(seed) for seed in sorted({seed for _, seed in repeated}))
                budgets = ", ".join(f"{budget:.3g}" for budget in sorted({budget for budget, _ in repeated}))
                notes.append(
                    f"arm {label}: several runs have a decayed point at {budgets} FLOPs for one seed ({seeds}): the "
                    "newest run's counts, so that a point may hold ends of ladders and of separate runs"
                )
        if clash:
            notes.append(
                f"ONE LABEL, {len(by_hash)} CONFIGURATIONS: arm {arm} stands for "
                f"{', '.join(f'{names[key]} ({key})' for key in sorted(by_hash))}. Each has its own row and "
                "they are never averaged; give them different run.arm labels"
            )
    return groups, notes


def _one_budget(members: Iterable[Candidate]) -> Iterable[Candidate]:
    """Where the budget is in steps or pairs, the seeds of a configuration end within a step of one another."""
    for same in _by(members, lambda item: item.run.summary.config_hash).values():
        shortest = min(item.end.budget for item in same)
        for item in same:
            end = item.end if item.run.budget else replace(item.end, budget=shortest)
            yield replace(item, points=(*item.points[:-1], end))


def _repeated(members: Iterable[Candidate]) -> dict[tuple[int, int], int]:
    points = _by(((point.budget, member.seed) for member in members for point in member.points), lambda key: key)
    return {key: len(same) for key, same in sorted(points.items()) if len(same) > 1}


def choose_baseline(groups: Sequence[Group], baseline: str) -> tuple[Group | None, list[str]]:
    """Find the group that a label, or ``label@hash``, names, if any; with a warning where several have it."""
    name, _, prefix = baseline.partition("@")
    chosen = [group for group in groups if baseline in (group.arm, group.label)] or [
        group for group in groups if prefix and group.arm == name and group.frontier_hash.startswith(prefix)
    ]
    if not chosen:
        return None, []
    best = max(chosen, key=_standing)
    if len(chosen) == 1:
        return best, []
    others = [group for group in chosen if group is not best]
    if all(len(group.seeds) < len(best.seeds) for group in others):
        reason = "which has the most seeds"
    elif all(_standing(group) < _standing(best) for group in others):
        reason = "which has the largest budget of those with the most seeds"
    else:
        reason = "whose hash comes first of those with as many seeds and as large a budget"
    return best, [
        f"the baseline {baseline} is ambiguous: {best.label} is used, {reason}; --baseline '{others[0].label}' "
        "chooses another"
    ]


def _standing(group: Group) -> tuple[int, int]:
    """Number of seeds and largest budget of a group, by which a baseline is chosen among groups of one label."""
    return len(group.seeds), group.budgets[-1]


def no_baseline(labels: Sequence[str], baseline: str, excluded: Iterable[Excluded]) -> CompareError:
    """The error of a baseline in no world; runs left out distinguish a missing baseline from an unfinished one."""
    unusable = [str(run) for run in excluded if run.arm == baseline.partition("@")[0]]
    if unusable:
        return CompareError(f"no run of the baseline {baseline!r} can be used\n" + "\n".join(unusable))
    hint = nearest(baseline, labels, "; did you mean {}?")
    return CompareError(f"no arm {baseline!r} to compare with{hint}\narms: {', '.join(labels)}", status=2)


def _by(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    groups: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
