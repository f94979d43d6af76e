"""Tools of all benchmarks: plans and their options, interleaved rounds, ratios of medians, facts of the machine."""

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
from pathlib import Path
from typing import Any, TypeVar

import torch

from jestbench.engine.fit_memory import peak_bytes
from jestbench.runs import environment

INSTALL = "pip install -e '.[bench]'"
_P = TypeVar("_P", bound="Plan")


class MissingPeer(Exception):
    """A peer package cannot be imported (exit status 2)."""


def need(*modules: str) -> None:
    """Import the modules of peers before anything is measured.

    Raises:
        MissingPeer: a module cannot be imported; the message contains the command that installs it.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingPeer(f"the peer {name} cannot be imported ({error}); install it: {INSTALL}") from error


def option(default: Any, text: str, choices: Sequence[Any] | None = None) -> Any:
    """A field of a plan that the command line sets.

    Args:
        default: the field's default; the option has its type, a tuple takes several values, ``False`` makes a switch.
        text: the option's help.
        choices: the values allowed; ``None`` allows all.
    """
    return field(default=default, metadata={"text": text, "choices": choices})


@dataclass(frozen=True)
class Plan:
    """Settings of a benchmark; each field made by ``option`` is a command-line option of the same name."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
        """Add the plan's options to the parser."""
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
        """Build the plan from parsed command-line arguments."""
        values = {each.name: getattr(arguments, each.name) for each in fields(cls) if "text" in each.metadata}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def interleaved(contenders: Mapping[str, Callable[[], float]], rounds: Mapping[str, int]) -> dict[str, list[float]]:
    """Measurements of the contenders, by name; each round runs every contender that has rounds left."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(max(rounds.values())):
        for name, measure in contenders.items():
            if turn < rounds[name]:
                found[name].append(measure())
    return found


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, including the work that it leaves queued on a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def status_bytes(name: str, pid: int | str = "self") -> int:
    """A size in the status of a process, such as its resident set; 0 of a process that has ended and keeps its id."""
    words = Path(f"/proc/{pid}/status").read_text().split()
    return 1024 * int(words[words.index(f"{name}:") + 1]) if f"{name}:" in words else 0


def spread(entry: Mapping[str, float]) -> str:
    """The range of a ratio over the rounds; empty of one that was measured once."""
    return f"{entry['low']:.2f} to {entry['high']:.2f}" if "low" in entry else ""


def gpu_peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes by which a call raises the peak of a GPU's allocated memory."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return peak_bytes(run, device)


def ratio(over: list[float], under: list[float]) -> float:
    """Ratio of medians."""
    return statistics.median(over) / statistics.median(under)


def ratio_and_range(over: list[float], under: list[float]) -> dict[str, float]:
    """Ratio of medians (``value``), and the smallest and largest ratio of a round (``low``, ``high``)."""
    each = [one / other for one, other in zip(over, under, strict=True)]
    return {"value": ratio(over, under), "low": min(each), "high": max(each)}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set the number of torch's threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load() -> float:
    """Processes running or waiting for a core, on average over the last minute."""
    return os.getloadavg()[0]


def machine(load_before: float, **more: Any) -> dict[str, Any]:
    """Facts of the machine, ready for JSON: processor, cores, load before and now, date, Python, and ``more``."""
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
    """Format the facts of a machine as one line; of those in ``more``, only the versions."""
    line = "{processor}, {cores} cores, load {load before:.1f} to {load after:.1f}, {date}, Python {python}"
    return line.format(**facts) + "".join(f", {name} {version}" for name, version in facts.get("versions", {}).items())
