"""W&B's distributions against their formulas, written out; values, their coordinates, and the ends."""

from __future__ import annotations

from math import exp, floor, isfinite, log, sqrt
from statistics import NormalDist

import pytest

from jestbench.sweep.distributions import NAMES, Choices, Quantiles, distribution

SHARES = [0.013, 0.2, 0.41, 0.53, 0.77, 0.994]
RANGE = {"min": 0.5, "max": 3.0}


def log_between(low, high):
    return lambda share: exp(log(low) + share * (log(high) - log(low)))


def rounded(law, step):
    return lambda share: round(law(share) / step) * step


CASES = {
    "uniform": (RANGE, lambda share: 0.5 + 2.5 * share),
    "int_uniform": ({"min": -2, "max": 5}, lambda share: -2 + floor(8 * share)),
    "log_uniform": (RANGE, lambda share: exp(0.5 + 2.5 * share)),
    "log_uniform_values": (RANGE, log_between(0.5, 3.0)),
    "inv_log_uniform": (RANGE, lambda share: 1 / exp(3.0 - 2.5 * share)),
    "inv_log_uniform_values": (RANGE, lambda share: 1 / log_between(1 / 3.0, 1 / 0.5)(1 - share)),
    "normal": ({"mu": 1.0, "sigma": 0.7}, NormalDist(1.0, 0.7).inv_cdf),
    "log_normal": ({"mu": 1.0, "sigma": 0.7}, lambda share: exp(NormalDist(1.0, 0.7).inv_cdf(share))),
    "beta": ({"a": 2, "b": 1}, sqrt),
    "q_uniform": ({"min": 64, "max": 320, "q": 32}, rounded(lambda share: 64 + 256 * share, 32)),
    "q_log_uniform": ({"min": 1, "max": 4, "q": 5}, rounded(lambda share: exp(1 + 3 * share), 5)),
    "q_log_uniform_values": ({"min": 2, "max": 90, "q": 0.5}, rounded(log_between(2, 90), 0.5)),
    "q_normal": ({"sigma": 3.0, "q": 0.5}, rounded(NormalDist(0.0, 3.0).inv_cdf, 0.5)),
    "q_log_normal": ({}, rounded(lambda share: exp(NormalDist().inv_cdf(share)), 1.0)),
    "q_beta": ({"b": 3, "q": 0.25}, rounded(lambda share: 1 - (1 - share) ** (1 / 3), 0.25)),
    "constant": ({"value": None}, lambda share: None),
    "categorical": ({"values": ["a", 1, 1.0, True]}, lambda share: ["a", 1, 1.0, True][floor(4 * share)]),
    "categorical_w_probabilities": (
        {"values": ["a", "b", "c"], "probabilities": [0.4, 0.0, 0.6]},
        lambda share: "a" if share < 0.4 else "c",
    ),
}


def test_every_distribution_has_a_formula_here() -> None:
    assert set(CASES) == set(NAMES)


@pytest.mark.parametrize("name", CASES)
def test_values_are_the_quantiles(name: str) -> None:
    spec, law = CASES[name]
    found = distribution("here", {"distribution": name, **spec})
    for share in SHARES:
        value, wanted = found.value(share), law(share)
        assert value == (pytest.approx(wanted) if isinstance(wanted, float) else wanted)
        assert name != "categorical" or type(value) is type(wanted)
        back = found.coordinate(value)  # and the coordinate of a value leads back to it
        again = found.value(back) if isinstance(found, Quantiles) else found.values[back]
        assert (type(again), again) == (type(value), pytest.approx(value) if isinstance(value, float) else value)


@pytest.mark.parametrize("name", CASES)
def test_the_ends_are_values(name: str) -> None:
    spec, _ = CASES[name]
    found = distribution("here", {"distribution": name, **spec})
    ends = [found.value(0.0), found.value(1.0)]
    if isinstance(found, Choices):
        assert ends == [found.values[0], found.values[-1]]
        return
    assert all(map(isfinite, ends))
    assert ends[0] < ends[1]
    if name.removeprefix("q_") in ("uniform", "int_uniform", "log_uniform_values", "inv_log_uniform_values"):
        assert ends == pytest.approx([spec["min"], spec["max"]])


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({"min": 1, "max": 9}, "int_uniform"),
        ({"min": 1, "max": 9.0}, "uniform"),
        ({"min": 1.0, "max": 9}, "uniform"),
        ({"values": [3, 4, 5]}, "categorical"),
        ({"values": [3, 4], "probabilities": [0.9, 0.1]}, "categorical_w_probabilities"),
        ({"value": 3}, "constant"),
    ],
)
def test_keys_name_the_distribution(spec: dict[str, object], name: str) -> None:
    short, long = distribution("here", spec), distribution("here", {"distribution": name, **spec})
    assert [short.value(share) for share in SHARES] == [long.value(share) for share in SHARES]


def test_whole_numbers_are_integers() -> None:
    """A gin parameter that is an int takes no 8.0: whether values are whole is W&B's rule, the type of q."""
    for step in (1, 1.0):
        found = distribution("here", {"distribution": "q_uniform", "min": 8, "max": 32, "q": step})
        assert type(found.value(0.3)) is (int if type(step) is int else float)
    assert type(distribution("here", {"min": 8, "max": 32}).value(0.3)) is int
