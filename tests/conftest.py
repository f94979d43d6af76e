"""What all tests share: a cache of their own, no W&B, one thread; and that nothing of them is left behind."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from left_behind import Session


def pytest_addoption(parser: pytest.Parser) -> None:
    """A policy that is neither in policies/ nor installed can be tried by the conformance suite."""
    parser.addoption("--policy_file", metavar="FILE", action="append", default=[], help="a Python file of policies")


def pytest_configure(config: pytest.Config) -> None:
    """Register the policies of such files, before tests are collected."""
    for file in config.getoption("--policy_file"):
        path = Path(file).resolve()
        sys.path.append(str(path.parent))
        importlib.import_module(path.stem)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail after the last test, and after every other fixture's end, if a test has left something behind."""
    session = Session(tmp_path_factory.mktemp("t"))
    yield
    left = session.left()
    assert not left, "tests have left behind:\n" + "\n".join(left)


@pytest.fixture(scope="session", autouse=True)
def isolated(nothing_left_behind: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's is read or written; a reference is trained once a session.

    One thread makes results repeatable, and leaves the other cores to other tests; processes that a test
    starts inherit it.
    """
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setenv("JESTBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("WANDB_MODE", "disabled")
    patch.setenv("OMP_NUM_THREADS", "1")
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # its service lives as long as the process that has started it
    patch.undo()
