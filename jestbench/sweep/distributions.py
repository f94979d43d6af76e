"""W&B's distributions of a parameter: shares in [0, 1] to values, and values to coordinates of a search space.

All distributions of numbers are read off their quantile functions, as W&B's own search does: a search space is then a
cube in which equal lengths are equally probable, whatever the distributions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import accumulate
from math import exp, isclose, isfinite
from typing import Any

import numpy as np

from jestbench.config.run import ConfigError
from jestbench.disk import nearest_or_all

_TAIL = 1e-4
"""Share of an unbounded distribution that is cut off at each end, where its quantiles are infinite."""


@dataclass(frozen=True)
class Choices:
    """Values of which each has a probability.

    Attributes:
        values: the values.
        probabilities: their probabilities, which sum to 1.
    """

    values: Sequence[Any]
    probabilities: Sequence[float]

    def value(self, share: float) -> Any:
        """The value at a share of the cumulative probability."""
        above = (index for index, total in enumerate(accumulate(self.probabilities)) if share < total)
        return self.values[next(above, len(self.values) - 1)]

    def coordinate(self, value: Any) -> int:
        """The index of a value. Values are compared as JSON text, in which 1, 1.0 and true differ."""
        return [json.dumps(one) for one in self.values].index(json.dumps(value))


@dataclass(frozen=True)
class Quantiles:
    """A distribution of numbers.

    Attributes:
        law: the frozen distribution of scipy.stats.
        step: what values are rounded to multiples of; ``None`` for no rounding.
        whole: values are integers.
    """

    law: Any
    step: float | None
    whole: bool

    def value(self, share: float) -> float | int:
        """The quantile at a share, rounded to a multiple of the step."""
        low, high = self.law.support()
        tail = 0.0 if isfinite(low) and isfinite(high) else _TAIL
        found = float(np.clip(self.law.ppf(min(max(share, tail), 1 - tail)), low, high))
        if self.step is not None:
            found = round(found / self.step) * self.step
        return round(found) if self.whole else found

    def coordinate(self, value: float) -> float:
        """The share at a value; of a rounded one, the middle of the shares that round to it."""
        half = (self.step or 0.0) / 2
        return float(self.law.cdf(value - half) + self.law.cdf(value + half)) / 2


def _stats() -> Any:
    from scipy import stats  # imported here: half a second, spent only on searches

    return stats


_BOUNDS = dict.fromkeys(("min", "max"))
_Laws = dict[str, tuple[Mapping[str, float | None], Callable[..., Any]]]
_LAWS: _Laws = {
    "uniform": (_BOUNDS, lambda min, max: _stats().uniform(min, max - min)),
    "log_uniform": (_BOUNDS, lambda min, max: _stats().loguniform(exp(min), exp(max))),
    "log_uniform_values": (_BOUNDS, lambda min, max: _stats().loguniform(min, max)),
    "inv_log_uniform": (_BOUNDS, lambda min, max: _stats().loguniform(exp(-max), exp(-min))),
    "inv_log_uniform_values": (_BOUNDS, lambda min, max: _stats().loguniform(min, max)),
    "normal": ({"mu": 0.0, "sigma": 1.0}, lambda mu, sigma: _stats().norm(mu, sigma)),
    "log_normal": ({"mu": 0.0, "sigma": 1.0}, lambda mu, sigma: _stats().lognorm(sigma, scale=exp(mu))),
    "beta": ({"a": 1.0, "b": 1.0}, lambda a, b: _stats().beta(a, b)),
    "int_uniform": (_BOUNDS, lambda min, max: _stats().randint(min, max + 1)),
}
"""Each distribution's keys with their defaults (``None``: required), and its law."""
_ROUNDED = ("uniform", "log_uniform", "log_uniform_values", "normal", "log_normal", "beta")
"""Distributions that W&B has with ``q_`` before the name and a key ``q``, too."""
_OF_VALUES = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
}
NAMES = (*_OF_VALUES, *_LAWS, *(f"q_{name}" for name in _ROUNDED))


def _name(spec: Mapping[str, Any]) -> str:
    """The name of a parameter's distribution, which W&B finds by the keys where there is none."""
    if "distribution" in spec:
        return str(spec["distribution"])
    for keys, name in (("value", "constant"), ("probabilities", NAMES[2]), ("values", NAMES[1])):
        if keys in spec:
            return name
    whole = all(type(spec.get(key)) is int for key in ("min", "max"))
    return "int_uniform" if whole else "uniform"


def distribution(where: str, spec: Mapping[str, Any]) -> Choices | Quantiles:
    """Read a parameter's distribution, from what the file has below its name; ``where`` stands in messages.

    Raises:
        ConfigError: no such distribution, a key that it lacks or does not take, or a value that it cannot have.
    """
    name = _name(spec)
    if name not in NAMES:
        raise ConfigError(f"{where}: there is no distribution {name!r}; {nearest_or_all(name, NAMES)}")
    rounded = name.startswith("q_")
    keys, law = _LAWS.get(name.removeprefix("q_"), (dict.fromkeys(_OF_VALUES.get(name, ())), None))
    known = {**keys, "q": 1.0} if rounded else keys
    for key in spec:
        if key not in (*known, "distribution"):
            raise ConfigError(f"{where}: {name} has no key {key!r}: it takes {' and '.join(known)}")
    found = {**known, **spec}
    for key, default in known.items():
        if default is None and key not in spec:
            raise ConfigError(f"{where}: {name} needs {' and '.join(known)}: {key} is missing")
    if law is None:
        return _choices(where, found)
    numbers = {key: found[key] for key in known}
    _check(where, name, numbers)
    step = numbers.pop("q", None)
    whole = name == "int_uniform"
    return Quantiles(law(**numbers), 1.0 if whole else step, whole or type(step) is int)


def _choices(where: str, found: Mapping[str, Any]) -> Choices:
    values = found["values"] if "values" in found else [found["value"]]
    # As the command line has them, and as the record of the proposals, which is JSON, gives them back.
    values = [str(value) if isinstance(value, date) else value for value in values]
    probabilities = found.get("probabilities", [1 / len(values)] * len(values))
    if (
        not isinstance(probabilities, list)
        or not all(_number(one) and one >= 0 for one in probabilities)
        or len(probabilities) != len(values)
        or not isclose(sum(probabilities), 1.0, rel_tol=1e-5)
    ):
        raise ConfigError(f"{where}: probabilities must be one a value and sum to 1, got {probabilities!r}")
    return Choices(values, probabilities)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)


def _check(where: str, name: str, numbers: Mapping[str, Any]) -> None:
    for key, value in numbers.items():
        if not _number(value) or (name == "int_uniform" and type(value) is not int):
            kind = "a whole number" if name == "int_uniform" else "a number (YAML has 1.0e-4, not 1e-4)"
            raise ConfigError(f"{where}: {key} must be {kind}, got {value!r}")
        if key in ("sigma", "a", "b", "q") and not value > 0:
            raise ConfigError(f"{where}: {key} must be positive, got {value!r}")
    if "min" not in numbers:
        return
    if not numbers["min"] < numbers["max"]:
        raise ConfigError(f"{where}: min must be below max, got {numbers['min']!r} and {numbers['max']!r}")
    if name.endswith("_values") and not numbers["min"] > 0:
        raise ConfigError(f"{where}: min of {name} must be positive, got {numbers['min']!r}")
    if name.endswith("log_uniform") and max(map(abs, (numbers["min"], numbers["max"]))) > 700:
        raise ConfigError(f"{where}: min and max of {name} are exponents of e; for values there is {name}_values")
