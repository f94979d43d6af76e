"""What the benchmarks share: their options, interleaved rounds, ratios of medians, and the machine's own facts."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def add_numbers(parser: argparse.ArgumentParser, plan: type, named: Iterable[tuple[str, str]]) -> None:
    """Options for whole numbers of a plan, by name and what they are of; its defaults are theirs."""
    for name, text in named:
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=getattr(plan, name), help=f"{text} (%(default)s)")


def interleaved(contenders: Mapping[str, Callable[[], float]], rounds: Mapping[str, int]) -> dict[str, list[float]]:
    """What the contenders measure, by name; in each round, everyone who still has rounds to do."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(max(rounds.values())):
        for name, measure in contenders.items():
            if turn < rounds[name]:
                found[name].append(measure())
    return found


def ratio(over: list[float], under: list[float]) -> float:
    """Of medians."""
    return statistics.median(over) / statistics.median(under)


def load() -> float:
    """Processes that run or wait to, on average over the last minute."""
    return os.getloadavg()[0]


def machine(load_before: float, **more: Any) -> dict[str, Any]:
    """What was measured on, ready for JSON: processor, cores, load before and now, date, Python, and more."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load before": load_before,
        "load after": load(),
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        **more,
    }


def machine_line(facts: Mapping[str, Any]) -> str:
    """The same as text, without what is more."""
    return ("{processor}, {cores} cores, load {load before:.1f} to {load after:.1f}, {date}, Python {python}").format(
        **facts
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor() or sys.platform
