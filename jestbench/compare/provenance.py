"""The provenance of the numbers: data, code, machines, and the warnings of the runs themselves."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from jestbench.compare.comparison import Arm
from jestbench.compare.load import Fact, RunRecord
from jestbench.compare.wording import flops_text
from jestbench.runs.environment import processor

Value = TypeVar("Value", bound=Hashable)

_WORKPLACE = ("device", "number_format", "processor", "threads", "commit")
_DIFFERENCE = {"commit": "the runs come from different code", "number_format": "the towers' arithmetic differs"}
_RECORDED = ("python", "platform", "processor", "cores", "threads", "device", "number_format", "commit", "versions")


def arms_by(found: Iterable[tuple[Value, str]]) -> dict[Value, list[str]]:
    """Values, each with the labels of the arms that have it, in their order."""
    labels: dict[Value, dict[str, None]] = defaultdict(dict)
    for value, label in found:
        labels[value][label] = None
    return {value: [*which] for value, which in labels.items()}


def described(labels: Mapping[Any, Iterable[str]]) -> str:
    """Values, each with its arms behind it."""
    return "; ".join(f"{value} ({listed(which)})" for value, which in labels.items())


def common_facts(arms: Sequence[Arm]) -> tuple[dict[str, Fact], list[str]]:
    """Facts that hold for the data of all runs, and a note for each fact that differs."""
    facts: dict[str, Fact] = {}
    notes: list[str] = []
    for key in dict.fromkeys(key for arm in arms for member in arm.runs for key in member.run.facts):
        labels = arms_by((member.run.facts.get(key), arm.label) for arm in arms for member in arm.runs)
        if len(labels) == 1:
            facts[key] = next(value for value in labels if value is not None)
        else:
            notes.append(f"the data differ: {key} is {described(labels)}")
    return facts, notes


def workplace_notes(arms: Sequence[Arm]) -> list[str]:
    """A note for each way in which the runs' machines or code differ."""
    notes: list[str] = []
    for key in _WORKPLACE:
        runs = ((member.run.environment, arm.label) for arm in arms for member in arm.runs)
        labels = arms_by((str(known[key]), label) for known, label in runs if key in known)
        if len(labels) > 1:
            notes.append(f"{_DIFFERENCE.get(key, 'seconds are not comparable')}: {key} is {described(labels)}")
    return notes


def start_notes(arms: Iterable[Arm]) -> list[str]:
    """Notes on the trained models that arms began from, whose FLOPs are in no figure."""
    starts = ((member.run.summary.start, arm.label) for arm in arms for member in arm.runs)
    labels = arms_by(
        (
            (start.name if start.part == "whole" else f"the image tower of {start.name}", flops_text(start.flops)),
            label,
        )
        for start, label in starts
        if start is not None
    )
    return [
        f"{listed(which)}: training began from {what}, whose {flops.replace('?', 'unknown FLOPs')} are in no figure"
        for (what, flops), which in labels.items()
    ]


def learning_rate_notes(arms: Iterable[Arm]) -> list[str]:
    """A note on the learning rates: an arm may do better with a rate tuned for it."""
    labels = arms_by((member.run.summary.learning_rate, arm.label) for arm in arms for member in arm.runs)
    if len(labels) > 1:
        return [f"learning rates differ: {described(labels)}"]
    more = len({label for which in labels.values() for label in which}) > 1
    return [
        f"one learning rate, {rate:g}, was used for all arms: an arm may do better with one of its own"
        for rate in labels
        if more
    ]


def run_notes(arms: Iterable[Arm]) -> list[str]:
    """Warnings that the runs recorded, each text once for an arm."""
    notes: list[str] = []
    for arm in arms:
        seeds: dict[str, list[int]] = defaultdict(list)
        for member in arm.runs:
            for warning in dict.fromkeys(member.run.summary.warnings):
                seeds[warning].append(member.seed)
        notes.extend(f"arm {arm.label} (seeds {listed(which)}): {text}" for text, which in seeds.items())
    return notes


def environment(runs: Iterable[RunRecord]) -> dict[str, Any]:
    """The machine of the comparison, and the environment of the first run that records one."""
    recorded = next((run.environment for run in runs if run.environment), {})
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "cpu_model": processor(),
        "runs": {key: recorded[key] for key in _RECORDED if key in recorded},
    }


def listed(values: Iterable[object]) -> str:
    """Join values with commas."""
    return ", ".join(str(value) for value in values)
