"""The configurations of arms: read back from ``operative.gin``, named by what differs, side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jestbench.config.arm_parameters import WHOSE_WEIGHTS, is_of_the_arm
from jestbench.runs.folder import RunFolder

Configuration = Mapping[str, str]
"""Parameter, ``name.parameter``, → value as gin text."""

_BINDING = re.compile(r"^(?P<key>[A-Za-z_][\w./]*)\s*=\s*(?P<value>.*)$")
_STANDS_ON = ("run.reference", "run.scorer")
"""Not part of an arm by their text, which may be a path, but by the model that they name."""
_MOST_NAMED = 3
_LONGEST = 28


def read_configuration(run_dir: Path) -> Configuration:
    """The operative configuration of a run; empty where it cannot be read."""
    try:
        text = RunFolder(run_dir).operative_gin.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if binding := _BINDING.match(line):
            key, value = binding["key"], binding["value"]
            found[key] = value.removesuffix("\\").rstrip()
        elif key:
            found[key] = f"{found[key]} {line.strip().removesuffix(chr(92)).rstrip()}".strip()
    return {key: _tidy(value) for key, value in found.items()}


def _tidy(value: str) -> str:
    """A large whole number as a power of ten: ``2e+12`` for ``2000000000000.0``."""
    try:
        number = float(value)
    except ValueError:
        return value
    return f"{number:g}" if len(value) > 8 and float(f"{number:g}") == number else value


def differing(configurations: Sequence[Configuration]) -> tuple[str, ...]:
    """Parameters in whose values arms differ, where at least two of them have the parameter; sorted."""
    keys = sorted({key for found in configurations for key in found})
    return tuple(
        key for key in keys if _distinguishes(key) and len({found[key] for found in configurations if key in found}) > 1
    )


def of_the_arm(configuration: Configuration) -> dict[str, str]:
    """The parameters that distinguish arms: without seed, label, logging and where a run lies."""
    return {key: value for key, value in configuration.items() if _distinguishes(key)}


def _distinguishes(key: str) -> bool:
    return is_of_the_arm(key) or key.rpartition("/")[2] in (*_STANDS_ON, *WHOSE_WEIGHTS)


def own_parameters(configurations: Mapping[str, Configuration]) -> dict[str, dict[str, str]]:
    """By arm: the parameters that it alone has, such as those of its policy."""
    return {
        arm: {
            key: value
            for key, value in of_the_arm(found).items()
            if not any(key in other for name, other in configurations.items() if name != arm)
        }
        for arm, found in configurations.items()
    }


def labels(arm: str, configurations: Mapping[str, Configuration], length: int) -> dict[str, str]:
    """Names by hash of the configurations that share an arm's label, by what distinguishes them: ``jest chunks=4``.

    It is ``jest@hash``, with ``length`` digits of the hash, where the configurations were not read or differ in nothing
    that has two values.
    """
    keys = differing(list(configurations.values()))
    short = {key: key.rpartition(".")[2] for key in keys}
    last = list(short.values())
    short = {key: name if last.count(name) == 1 else key for key, name in short.items()}
    found = {}
    for frontier_hash, values in configurations.items():
        named = [f"{short[key]}={_cut(values[key])}" for key in keys if key in values]
        more = ", …" if len(named) > _MOST_NAMED else ""
        found[frontier_hash] = f"{arm} {', '.join(named[:_MOST_NAMED])}{more}" if named else ""
    known = list(found.values())
    return {
        frontier_hash: name if name and known.count(name) == 1 else f"{arm}@{frontier_hash[:length]}"
        for frontier_hash, name in found.items()
    }


def _cut(value: str) -> str:
    value = value.strip("'\"")
    if value.startswith(("/", "~", "local-dir:")):
        value = Path(value).name
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"
