"""Finds the frozen models that arms were scored with, each once, wherever its records lie."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from jestbench.compare.comparison import Arm, ReferenceRow
from jestbench.compare.load import CompareError, load_run
from jestbench.compare.points import TOTAL_FLOPS, read_metric
from jestbench.compare.provenance import listed
from jestbench.compare.wording import reference_label
from jestbench.disk import shown
from jestbench.runs.summary import ReferenceEntry


class ReferenceIdentity(NamedTuple):
    """What the records of one model have in common.

    Attributes:
        name: its own.
        known_by: configuration and seed, else the name of its folder.
        flops: of its training.
        value: its own.
    """

    name: str
    known_by: str
    flops: int | None
    value: float | None


@dataclass(frozen=True)
class _Scored:
    """A frozen model as the run folder of an arm refers to it.

    Attributes:
        model: which model it is.
        problem: with its own value; an empty text where there is none.
        folder: its run folder, where that is found.
    """

    model: ReferenceIdentity
    problem: str
    folder: Path | None


def reference_rows(arms: Iterable[Arm], metric: str) -> tuple[tuple[ReferenceRow, ...], list[str]]:
    """A row for each frozen model, with its own value of the metric, and notes on whom it serves.

    Runs in whose folders copies of one model's records lie were scored with one model.
    """
    found: dict[ReferenceEntry, dict[Path | None, _Scored]] = defaultdict(dict)
    used: dict[ReferenceIdentity, list[tuple[str, int, _Scored]]] = defaultdict(list)
    own: dict[str, set[int]] = defaultdict(set)
    for arm in arms:
        for member in arm.runs:
            for entry, folder in member.run.references.items():
                if entry.seeding == "own":
                    own[arm.label].add(member.seed)
                if folder not in found[entry]:
                    found[entry][folder] = _scored(entry, folder, metric)
                scored = found[entry][folder]
                used[scored.model].append((arm.label, member.seed, scored))
    rows: list[ReferenceRow] = []
    notes = [f"arm {label}: each seed ({listed(sorted(its))}) has a reference of its own" for label, its in own.items()]
    shared = [name for name, count in Counter(model.name for model in used).items() if count > 1]
    for (name, _, flops, value), uses in sorted(used.items(), key=lambda item: str((*item[0],))):
        labels, seeds = tuple(dict.fromkeys(label for label, _, _ in uses)), sorted({seed for _, seed, _ in uses})
        # A reference whose name another one has, too, is named with its arms and seeds.
        title = f"{name} of {listed(labels)}, seeds {listed(seeds)}" if name in shared else name
        if len(seeds) > 1:
            notes.append(
                f"one model {name} (one seed) serves the seeds {listed(seeds)} of {listed(labels)}: what "
                "is particular to it is in all of them and in no interval"
            )
        first = uses[0][2]
        rows.append(ReferenceRow(title, labels, value, flops, first.folder))
        notes.extend([f"{reference_label(title)}: {first.problem}"] if first.problem else [])
    return tuple(rows), notes


def _scored(entry: ReferenceEntry, folder: Path | None, metric: str) -> _Scored:
    """A frozen model's own value, and what it is known by: records of one model may lie in many folders."""
    known, flops, value, problem = PurePath(entry.run_dir).name, entry.pretrain_flops, None, ""
    if entry.metrics is not None and metric in entry.metrics:
        value = entry.metrics[metric]
    elif folder is None:
        problem = "its run folder is not recorded or not found, so its own score is not known"
    else:
        try:
            run = load_run(folder)
        except CompareError as error:
            return _Scored(ReferenceIdentity(entry.name, str(folder), flops, None), str(error), folder)
        candidate, problems = read_metric(run, metric)
        known, value = f"{run.summary.config_hash}, seed {run.summary.seed}", candidate.end.value if candidate else None
        flops = int(run.final[TOTAL_FLOPS]) if TOTAL_FLOPS in run.final else flops
        problem = f"{shown(folder)}: {'; '.join(problems)}" if problems else ""
    return _Scored(ReferenceIdentity(entry.name, known, flops, value), problem, folder)
