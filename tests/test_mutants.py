"""Every fault of ``mutants/table.py`` can be planted, and is caught by the fast tests that it names (slow)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
FILES = ("pyproject.toml", "LICENSE", "README.md", "CONTRIBUTING.md")
PARTS = ("jestbench", "policies", "gin", "tools", "tests", "docs", *FILES)
FAILED = 1
"""pytest's status where tests ran and one failed; a module that cannot be imported has another."""

each_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.fault for mutant in MUTANTS])


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project in a folder of its own, to be spoilt."""
    folder = tmp_path_factory.mktemp("mutants")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy2(ROOT / part, folder / part)
    return folder


def run(folder: Path, tests: str, limit: float = 900) -> subprocess.CompletedProcess[str]:
    """Run tests in a folder, up to the first that fails."""
    # Bytecode of a spoilt file would outlive it: two files of one size and second have the same.
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests.split()]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=limit
    )


@pytest.fixture
def spoilt(copy: Path, mutant: Mutant) -> Iterator[Path]:
    """The copy with a mutant's fault in it."""
    file = copy / mutant.file
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    yield copy
    file.write_text(text, encoding="utf-8")


def test_faults_have_names_of_their_own() -> None:
    assert len({mutant.fault for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.old != mutant.new for mutant in MUTANTS)


@each_mutant
def test_the_text_stands_there_once(mutant: Mutant) -> None:
    found = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
    assert found == 1, f"{mutant.file} holds {mutant.old!r} {found} times: write the mutant anew in mutants/table.py"


@pytest.mark.slow
def test_without_a_fault_the_tests_pass(copy: Path) -> None:
    nodes = dict.fromkeys(node for mutant in MUTANTS for node in mutant.tests.split())
    done = run(copy, " ".join(nodes), 3600)  # half of the suite, in one process
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@each_mutant
def test_a_fault_is_caught(spoilt: Path, mutant: Mutant) -> None:
    done = run(spoilt, mutant.tests)
    assert done.returncode == FAILED, f"{mutant.fault}: it survives, or stops the tests\n{done.stdout[-3000:]}"
