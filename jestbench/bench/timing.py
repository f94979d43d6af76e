"""What the benchmarks share: plans and their options, interleaved rounds, ratios of medians, facts of the machine."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

import torch

from jestbench.runs import environment

INSTALL = "pip install -e '.[bench]'"
_P = TypeVar("_P", bound="Plan")


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


def option(default: Any, text: str, choices: Sequence[Any] | None = None) -> Any:
    """A field of a plan that the command line sets.

    Args:
        default: of the field; its type is the option's, a tuple takes several values, ``False`` makes a switch.
        text: help.
        choices: the values that are taken; ``None`` is all.
    """
    return field(default=default, metadata={"text": text, "choices": choices})


class Options(Protocol):
    """A parser, or a group of one."""

    def add_argument(self, *names: str, **more: Any) -> object:
        """As argparse's."""


@dataclass(frozen=True)
class Plan:
    """What a benchmark measures. Each field that is an ``option`` has one of its name on the command line."""

    @classmethod
    def add_arguments(cls, parser: Options) -> None:
        """Give the parser the plan's options."""
        for each in (each for each in fields(cls) if "text" in each.metadata):
            name, text, default = f"--{each.name.replace('_', '-')}", each.metadata["text"], each.default
            if default is False:
                parser.add_argument(name, action="store_true", help=text)
                continue
            one = default[0] if isinstance(default, tuple) else default
            parser.add_argument(
                name,
                type=type(one),
                nargs="+" if isinstance(default, tuple) else None,
                choices=each.metadata["choices"],
                default=default,
                help=f"{text} (%(default)s)",
            )

    @classmethod
    def of(cls: type[_P], arguments: argparse.Namespace) -> _P:
        """The plan that the command line asks for."""
        values = {each.name: getattr(arguments, each.name) for each in fields(cls) if "text" in each.metadata}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


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


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch's threads, as many as asked for while inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def device_name(device: torch.device) -> str:
    """The device's model, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def versions(*distributions: str) -> dict[str, str]:
    """Versions of installed distributions, by name; one that is not installed is left out."""
    return {name: found for name, found in environment.versions(*distributions).items() if found is not None}


def machine_line(facts: Mapping[str, Any]) -> str:
    """The same as text: of what is more, the versions alone."""
    line = "{processor}, {cores} cores, load {load before:.1f} to {load after:.1f}, {date}, Python {python}"
    return line.format(**facts) + "".join(f", {name} {version}" for name, version in facts.get("versions", {}).items())
