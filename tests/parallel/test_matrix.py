"""One process and several make the same run: every policy, and everything that processes share out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matrix import ARMS, ROOT, SHORT, Matrix

import policies


@pytest.fixture(autouse=True, scope="module")
def at_the_root() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


def test_two_processes_make_the_run_of_one(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path, "fp64", steps=4)
    for size in (1, 2):
        matrix.run(SHORT, size)
    matrix.check(SHORT, 2)


def test_every_policy_is_in_the_matrix() -> None:
    assert {*policies.available(), *SHORT} <= ARMS.keys()


@pytest.fixture(scope="module", params=["fp64", "fp32"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """All arms, run by one process."""
    matrix = Matrix(tmp_path_factory.mktemp(request.param), request.param, steps=10)
    matrix.run(tuple(ARMS), 1)
    return matrix


@pytest.mark.slow  # the short one above has two processes, fewer arms and fewer steps
@pytest.mark.parametrize("size", [2, 3, 4])
def test_several_processes_make_the_run_of_one_under_every_policy(size: int, alone: Matrix) -> None:
    alone.run(tuple(ARMS), size)
    alone.check(tuple(ARMS), size)
