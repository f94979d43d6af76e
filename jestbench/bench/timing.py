"""What the benchmarks share: their options, interleaved rounds, ratios of medians, and the machine's own facts."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from jestbench.runs import environment

INSTALL = "pip install -e '.[bench]'"


class MissingPeer(Exception):
    """A package that is measured against cannot be imported (exit status 2)."""


def need(*modules: str) -> None:
    """Import the modules of peers before anything is measured.

    Raises:
        MissingPeer: one cannot be imported; the message says how to install it.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingPeer(f"the peer {name} cannot be imported ({error}); install it: {INSTALL}") from error


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


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, with what it leaves queued on a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def ratio(over: list[float], under: list[float]) -> float:
    """Of medians."""
    return statistics.median(over) / statistics.median(under)


def ratio_and_range(over: list[float], under: list[float]) -> dict[str, float]:
    """Ratio of medians (``value``); the smallest and largest ratio of a round beside it (``low``, ``high``)."""
    each = [one / other for one, other in zip(over, under, strict=True)]
    return {"value": ratio(over, under), "low": min(each), "high": max(each)}


def load() -> float:
    """Processes that run or wait to, on average over the last minute."""
    return os.getloadavg()[0]


def machine(load_before: float, **more: Any) -> dict[str, Any]:
    """What was measured on, ready for JSON: processor, cores, load before and now, date, Python, and more."""
    return {
        "processor": environment.processor(),
        "cores": os.cpu_count(),
        "load before": load_before,
        "load after": load(),
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        **more,
    }


def versions(*distributions: str) -> dict[str, str]:
    """Versions of installed distributions, by name; one that is not installed is left out."""
    return {name: found for name, found in environment.versions(*distributions).items() if found is not None}


def machine_line(facts: Mapping[str, Any]) -> str:
    """The same as text: of what is more, the versions alone."""
    line = "{processor}, {cores} cores, load {load before:.1f} to {load after:.1f}, {date}, Python {python}"
    return line.format(**facts) + "".join(f", {name} {version}" for name, version in facts.get("versions", {}).items())
