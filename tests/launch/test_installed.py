"""The package from a wheel: the same commands from any folder, and the shipped gin files by the same names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import summary_of

from jestbench.launch import console

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]


def test_every_package_is_listed() -> None:
    """setuptools takes what pyproject.toml lists: a room that is not there would be missing from the wheel alone."""
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert listed is not None
    folders = [file.parent for name in ("jestbench", "policies") for file in (ROOT / name).rglob("__init__.py")]
    wanted = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"jestbench.gin"}
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == wanted


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs ``jestbench …`` from a wheel's content, in a folder that has nothing of the project."""
    source, site, cwd = (tmp_path_factory.mktemp(name) for name in ("source", "site", "cwd"))
    for part in ("jestbench", "policies", "gin"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / part, source / part)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(source)]
    subprocess.run(pip, check=True, capture_output=True)

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(site)}
        script = [sys.executable, str(site / "bin" / "jestbench")]  # the console command that pip has made
        return subprocess.run([*script, *words], cwd=cwd, env=environment, capture_output=True, text=True)

    return command


def test_a_run_and_a_sweep_start_from_any_folder(installed: Command, tmp_path: Path) -> None:
    small = ["run.budget=2e9", "log.progress=False", "run.device=cpu"]
    done = installed("run", "--gin_file", "gin/run/tiny.gin", *small, "--run_dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert summary_of(tmp_path / "run")["status"] == "finished"
    planned = installed("sweep", "gin/sweep/tiny.yaml", "--dry_run")
    assert planned.returncode == 0, planned.stderr
    first, *_ = planned.stdout.splitlines()
    assert " -m jestbench run --gin_file gin/run/tiny.gin" in first
    words = ("compare", str(tmp_path / "run"), "--out", str(tmp_path / "comparison"))
    assert "name one with --metric:\n  eval/" in installed(*words).stderr
    compared = installed(*words, "--metric", "zero_shot_top1", "--watch")
    assert compared.returncode == 0, compared.stderr
    assert "jestbench compare" in (tmp_path / "comparison" / "comparison.md").read_text()


@pytest.mark.slow  # what the package installs is run from other folders above
def test_new_commands_answer_from_any_folder(installed: Command, tmp_path: Path) -> None:
    described = installed("run", "--describe", "jest")
    assert described.returncode == 0, described.stderr
    assert "jest.chunks: int = 16\n" in described.stdout
    assert "Arms: gin/policy/acid_h.gin, " in described.stdout, (
        "the arms that are shipped, by the names they are found by"
    )
    small = ["run.budget=2e9", "log.progress=False", "run.device=cpu"]
    done = installed("run", "--gin_file", "gin/run/tiny.gin", *small, "--run_dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    again = installed("run", "--gin_file", str(tmp_path / "run" / "operative.gin"), "--check")
    assert again.returncode == 0, again.stderr
    checked = installed("run", "--gin_file", "gin/run/tiny.gin", "--gin_file", "gin/policy/jest.gin", "--check")
    assert checked.returncode == 0, checked.stderr
    assert "nothing trained\n" in checked.stdout
    misspelt = installed("run", "--describe", "jset")
    assert (misspelt.returncode, misspelt.stdout) == (2, "")
    for name in ("prepare", "bench"):
        assert f"usage: jestbench {name} " in installed(name, "--help").stdout


def test_a_wrong_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["rum"]) == 2
    assert "no command 'rum'" in capsys.readouterr().err
    assert console.main([]) == 2
    assert console.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in console.COMMANDS)
