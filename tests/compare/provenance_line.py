"""The machines, versions, dates and commits that kept records are from, in a sentence."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from jestbench.runs.folder import RunFolder


def provenance(folders: Sequence[Path]) -> str:
    """What the environments of some runs record: machine, versions, days, and which arms are from which commit."""
    by_machine = defaultdict[str, list[Path]](list)
    for folder in folders:
        by_machine[_machine(folder)].append(folder)
    parts = [f"{machine}; {_days(runs)}; {_commits(runs)}" for machine, runs in by_machine.items()]
    return f"*Records: {'. '.join(parts)}.*"


def _machine(folder: Path) -> str:
    found = RunFolder(folder).environment()
    threads = "one thread" if found["threads"] == 1 else f"{found['threads']} threads"
    processor = found["processor"].replace("(R)", "")
    where = f"{found['cores']} cores of {processor}, {threads} a run, {found['device']}, {found['number_format']}"
    return f"{where}, Python {found['python']}, torch {found['versions']['torch']}"


def _days(folders: Iterable[Path]) -> str:
    days = sorted({RunFolder(folder).environment()["started"][:10] for folder in folders})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _commits(folders: Sequence[Path]) -> str:
    """The commits, each with its arms; of the one with the most runs its arms go without saying."""
    by_commit = defaultdict[str, Counter[str]](Counter)
    for folder in folders:
        by_commit[RunFolder(folder).environment()["commit"]][_arm(folder)] += 1
    every = sum(by_commit.values(), Counter[str]())
    *rest, most = sorted(by_commit.items(), key=lambda item: item[1].total())
    if not rest:
        return f"commit {most[0]}"
    named = [f"{commit} ({_arms(arms, every)})" for commit, arms in rest]
    return f"commits {', '.join(named)}, {most[0]} (all others)"


def _arm(folder: Path) -> str:
    summary = RunFolder(folder).summary()
    assert summary is not None
    return summary.arm


def _arms(here: Counter[str], every: Counter[str]) -> str:
    return ", ".join(
        arm if count == every[arm] else f"{arm}: {count} of {every[arm]} runs" for arm, count in sorted(here.items())
    )
