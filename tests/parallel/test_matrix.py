"""One process and several make the same run: every policy, and everything that processes share out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matrix import ARMS, ROOT, SHORT, Matrix
from safetensors.torch import load_file, save_file

import policies
from jestbench.runs.choices import Choice
from jestbench.runs.folder import RunFolder


@pytest.fixture(autouse=True, scope="module")
def at_the_root() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """Few arms of few steps, run by one process and by two."""
    matrix = Matrix(tmp_path_factory.mktemp("short"), "fp64", steps=4)
    for size in (1, 2):
        matrix.run(SHORT, size)
    return matrix


def test_two_processes_make_the_run_of_one(short: Matrix) -> None:
    short.check(SHORT, 2)


def other_number(run_dir: Path, name: str, change: Callable[[float], float]) -> None:
    path = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2][name] = change(rows[2][name])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_pair(run_dir: Path) -> None:
    path = RunFolder(run_dir).examples / "step-0000000002.npz"
    choice = Choice.read(path)
    refused = int((~choice.chosen_B).nonzero()[0][0])
    replace(choice, chosen_K=np.r_[choice.chosen_K[:-1], refused]).write(path)


def other_weight(run_dir: Path) -> None:
    path = RunFolder(run_dir).newest_checkpoint() / "model.safetensors"
    weights = load_file(path)
    weights["text.projection.weight"][0, 0] += 1e-6
    save_file(weights, path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: other_number(folder, "train/loss", lambda loss: loss * (1 + 1e-8)), "step 2: train/loss: "),
        (lambda folder: other_number(folder, "flops/pairwise", lambda flops: flops + 2), "step 2: flops/pairwise: "),
        (other_pair, "step 2: chosen instead of ["),
        (other_weight, "final weights (torch.float64), text.projection.weight: 1e-06 apart"),
    ],
)
def test_a_difference_is_named(change: Callable[[Path], None], named: str, short: Matrix, tmp_path: Path) -> None:
    copy = replace(short, folder=tmp_path / "copy")
    for size in (1, 2):
        shutil.copytree(short.run_dir("lit", size), copy.run_dir("lit", size))
    copy.check(["lit"], 2)
    change(copy.run_dir("lit", 2))
    with pytest.raises(AssertionError) as error:
        copy.check(["lit"], 2)
    assert f"lit, 2 processes, fp64: {named}" in str(error.value)


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
