"""The cores of the processes of one machine."""

from __future__ import annotations

import os
import sys

import pytest

from jestbench.parallel.cores import own_cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no affinity of threads")


def kept(monkeypatch: pytest.MonkeyPatch, cores: int, size: int, load: float = 0.0) -> list[set[int]]:
    """The cores of each process, on a machine of so many that are numbered by twos."""
    held = {2 * core for core in range(cores)}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(held))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, asked: (held.clear(), held.update(asked)))
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    found = []
    for rank in range(size):
        before = set(held)
        with own_cores(rank, size):
            found.append(set(held))
        assert held == before
    return found


def test_each_process_keeps_to_as_many_cores_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept(monkeypatch, 7, 3) == [{0, 2}, {4, 6}, {8, 10}]
    assert kept(monkeypatch, 2, 2, load=1.0) == [{0}, {2}]


@pytest.mark.parametrize(("cores", "size", "load"), [(2, 3, 0.0), (4, 1, 0.0), (4, 2, 2.1)])
def test_all_cores_stay_where_they_are_few_or_busy(
    cores: int, size: int, load: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept(monkeypatch, cores, size, load) == [{2 * core for core in range(cores)}] * size


def test_a_failure_gives_the_cores_back() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError), own_cores(0, len(before)):
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == before
