"""The provenance of the numbers: data, code, machines, and the warnings of the runs themselves."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from jestbench.compare.comparison import Arm
from jestbench.compare.load import Fact, RunRecord
from jestbench.compare.wording import flops_text
from jestbench.runs.environment import processor

_WORKPLACE = ("device", "number_format", "processor", "threads", "commit")
_DIFFERENCE = {"commit": "the runs come from different code", "number_format": "the towers' arithmetic differs"}
_RECORDED = ("python", "platform", "processor", "cores", "threads", "device", "number_format", "commit", "versions")


def common_facts(arms: Iterable[Arm]) -> tuple[dict[str, Fact], list[str]]:
    """Facts that hold for the data of all runs, and a note for each fact that differs.

    Args:
        arms: the arms.

    Returns:
        The common facts, and the notes.
    """
    by_arm = {arm.label: [member.run.facts for member in arm.runs] for arm in arms}
    facts: dict[str, Fact] = {}
    notes: list[str] = []
    for key in dict.fromkeys(key for runs in by_arm.values() for known in runs for key in known):
        labels: dict[Fact | None, list[str]] = defaultdict(list)
        for label, runs in by_arm.items():
            for value in dict.fromkeys(known.get(key) for known in runs):
                labels[value].append(label)
        if len(labels) == 1:
            facts[key] = next(value for value in labels if value is not None)
        else:
            notes.append(f"the data differ: {key} is {_described(labels)}")
    return facts, notes


def workplace_notes(arms: Iterable[Arm]) -> list[str]:
    """A note for each way in which the runs' machines or code differ."""
    notes: list[str] = []
    for key in _WORKPLACE:
        labels: dict[str, dict[str, None]] = defaultdict(dict)
        for arm in arms:
            for member in arm.runs:
                if key in member.run.environment:
                    labels[str(member.run.environment[key])][arm.label] = None
        if len(labels) > 1:
            notes.append(f"{_DIFFERENCE.get(key, 'seconds are not comparable')}: {key} is {_described(labels)}")
    return notes


def start_notes(arms: Iterable[Arm]) -> list[str]:
    """Notes on the trained models that arms began from, whose FLOPs are in no figure."""
    labels: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for arm in arms:
        for start in (member.run.summary.start for member in arm.runs):
            if start is not None:
                what = start.name if start.part == "whole" else f"the image tower of {start.name}"
                labels[what, flops_text(start.flops)][arm.label] = None
    return [
        f"{listed(which)}: training began from {what}, whose {flops.replace('?', 'unknown FLOPs')} are in no figure"
        for (what, flops), which in labels.items()
    ]


def learning_rate_notes(arms: Iterable[Arm]) -> list[str]:
    """A note on the learning rates: an arm may do better with a rate tuned for it."""
    labels: dict[float, dict[str, None]] = defaultdict(dict)
    for arm in arms:
        for member in arm.runs:
            labels[member.run.summary.learning_rate][arm.label] = None
    if len(labels) > 1:
        return [f"learning rates differ: {_described(labels)}"]
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


def _described(labels: Mapping[Any, Iterable[str]]) -> str:
    return "; ".join(f"{value} ({', '.join(which)})" for value, which in labels.items())
