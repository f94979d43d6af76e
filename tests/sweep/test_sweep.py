"""Sweep files on this machine: the agent's commands, mistakes said early, arms run once, going on after a stop."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import yaml
from helpers import rows_of, summary_of
from photos import jpeg

from jestbench.batch import DataError
from jestbench.compare import report
from jestbench.launch import command
from jestbench.runs.folder import RunFolder
from jestbench.runs.kept_records import keep_records
from jestbench.runs.summary import ReferenceEntry
from jestbench.sweep import proposals, run_sweep, sweep_arms, sweep_file
from jestbench.sweep import side_by_side as processes

ROOT = Path(__file__).resolve().parents[2]
SWEEP_FILES = sorted((ROOT / "gin" / "sweep").glob("*.yaml"))
PROGRAM = str(ROOT / "tools" / "run.py")
REFERENCE = "('gin/run/tiny_reference.gin','run.budget=2e9','run.device=cpu','log.progress=False')"
SMALL = {
    "run.budget": {"value": 2e9},
    "run.device": {"value": "cpu"},
    "log.progress": {"value": False},
    "log.every": {"value": 1},
    "evaluate.points": {"value": 2},
}
COMMAND = ["${env}", "${interpreter}", "${program}", "--gin_file", "gin/run/tiny.gin", "${args_no_hyphens}"]
METRIC = {"name": "eval/zero_shot_top5", "goal": "maximize"}
START = ["run.device=cpu", "run.budget=2e9", "log.progress=False"]


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


Call = Callable[..., Result]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command of ``tools/sweep.py``, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> Result:
        capsys.readouterr()
        status = run_sweep.main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


class InProcess:
    """Stands for ``subprocess.Popen``: runs the arm's command here when it is asked how that ended."""

    started: ClassVar[list[list[str]]] = []

    def __init__(self, words: list[str], env: Mapping[str, str], **_: object) -> None:
        assert env["WANDB_RUN_GROUP"]
        self.started.append(words)
        self.arguments = words[words.index(PROGRAM) + 1 :]

    def poll(self) -> int:
        return command.main(self.arguments)


def start_with(monkeypatch: pytest.MonkeyPatch, popen: object) -> None:
    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(Popen=popen, TimeoutExpired=subprocess.TimeoutExpired))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the arms that were started; they run in this process."""
    monkeypatch.setattr(InProcess, "started", [])
    start_with(monkeypatch, InProcess)
    return InProcess.started


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("an arm was started")

    start_with(monkeypatch, forbidden)
    return lambda: _only_the_file(tmp_path)


def _only_the_file(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["sweep.yaml"]


def write(parameters: Mapping[str, object] | None, **more: object) -> Path:
    """A sweep file in the working directory."""
    content = {"program": PROGRAM, "method": "grid", "metric": METRIC, "command": COMMAND, "parameters": parameters}
    content |= more
    path = Path("sweep.yaml")
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)
    )
    return path


def arms_in(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob("*/environment.json"))


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# The commands


def agent_command(path: Path, arm: Mapping[str, object]) -> list[str]:
    """The command line that W&B's agent makes (its own functions, and its loop in ``wandb_agent.py``)."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    raw = yaml.safe_load(path.read_text())
    macros = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in arm.items()}})
    macros |= {"interpreter": [sys.executable], "program": [raw["program"]], "env": ["/usr/bin/env"]}
    words: list[str] = []
    for word in utils.create_sweep_command(list(raw["command"]) if "command" in raw else None):
        macro = str(word)
        words += macros[macro[2:-1]] if macro.startswith("${") and macro.endswith("}") else [macro]
    return words


@pytest.mark.parametrize("path", SWEEP_FILES, ids=lambda path: path.stem)
def test_dry_run_of_every_sweep_file(call: Call, path: Path, nothing_starts: Callable[[], None]) -> None:
    if path.stem == "stage":  # its comment names the command that makes what it stands on
        assert (
            command.main(["--gin_file", str(ROOT / "gin/run/tiny.gin"), *START, "--run_dir", "runs/stage_start"]) == 0
        )
    before = sorted(Path().rglob("*"))
    result = call(path, "--dry_run")
    assert (result.status, result.err) == (0, "")
    commands = [line for line in result.out.splitlines() if not line.startswith("passed over")]
    found = sweep_file.read_sweep(path)
    if found.method == "grid":
        expected = [agent_command(path, arm) for arm in sweep_arms.grid(found.parameters, path)]
        assert [shlex.split(line) for line in commands] == [
            words for words in expected if shlex.join(words) in commands
        ]
        assert len(commands) + result.out.count("passed over") == len(expected)
    assert commands
    assert sorted(Path().rglob("*")) == before


VALUES = {
    "run.seed": 3,
    "run.budget": 1e10,
    "log.progress": False,
    "run.arm": "two words",
    "jest.chunks": None,
    "model.x": [1],
}


@pytest.mark.parametrize(
    "words",
    [
        None,
        COMMAND,
        ["${env}", "${interpreter}", "${program}", "${args}"],
        ["${interpreter}", "-u", "${program}", "--gin_file=a.gin", "${args_no_hyphens}", "--allow_unused", "jest.*"],
        ["nice", "-n", 5, "${program}", "${envvar:JESTBENCH_WORD}", "x-${envvar:JESTBENCH_NONE}-y", "${args}"],
    ],
    ids=str,
)
def test_the_command_is_the_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[object] | None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JESTBENCH_WORD", "word")
    path = write({key: {"value": value} for key, value in VALUES.items()}, command=words)
    found = sweep_file.read_sweep(path)
    (arm,) = sweep_arms.grid(found.parameters, path)
    assert found.command_line(arm) == agent_command(path, VALUES)


def test_both_spellings_of_arguments_are_the_same_arm(call: Call) -> None:
    parameters = {"gin_file": {"value": "gin/policy/hard_learner.gin"}, "run.arm": {"value": "bare word"}, **SMALL}
    keys = set()
    for macro in ("${args}", "${args_no_hyphens}"):
        found = sweep_file.read_sweep(write(parameters, command=[*COMMAND[:-1], macro]))
        arm = sweep_arms.resolve_arm(found, next(sweep_arms.grid(found.parameters, found.path)))
        assert (arm.resolved.run.arm, arm.resolved.policy_name) == ("bare word", "hard_learner")
        keys.add(arm.key)
    assert len(keys) == 1


# What is said before the first arm starts

SEEDS = {"run.seed": {"values": [0, 1]}}
WRONG: dict[str, tuple[object, dict[str, object], list[str]]] = {
    "key": (SEEDS, {"paramters": {}}, ["'paramters'", "did you mean 'parameters'?"]),
    "no parameters": (None, {}, ["parameters is empty"]),
    "empty grid": ({"run.seed": {"values": []}}, {}, ["run.seed.values is empty"]),
    "no values": ({"run.seed": {}}, {}, ["run.seed"]),
    "bare value": ({"run.seed": 3}, {}, ["run.seed needs value"]),
    "misspelt values": ({"run.seed": {"vales": [1]}}, {}, ["run.seed", "'vales'", "did you mean 'values'?"]),
    "values that are none": ({"run.seed": {"values": 3}}, {}, ["run.seed.values must be a list, got 3"]),
    "value and values": ({"run.seed": {"value": 1, "values": [1]}}, {}, ["run.seed has both"]),
    "distribution in a grid": ({"run.seed": {"min": 0, "max": 1}}, {}, ["run.seed", "value or values"]),
    "nested": ({"run": {"parameters": {"seed": {"value": 1}}}}, {}, ["parameters.run is nested", "run.seed"]),
    "unknown metric": (SEEDS, {"metric": {"name": "eval/zero_shot_top6"}}, ["did you mean 'eval/zero_shot_top"]),
    "foreign metric": (SEEDS, {"metric": {"name": "accuracy!"}}, ["'accuracy!'", "eval/zero_shot_top1"]),
    "training metric": (SEEDS, {"metric": {"name": "train/los"}}, ["'train/los'", "did you mean 'train/loss'?"]),
    "another policy's metric": (SEEDS, {"metric": {"name": "select/entropy"}}, ["no run logs", "'select/entropy'"]),
    "metric with a space": (SEEDS, {"metric": {"name": "train/loss "}}, ["'train/loss '", "'train/loss'?"]),
    "metric that is no text": (SEEDS, {"metric": {"name": 5}}, ["metric.name is required"]),
    "metric's key": (SEEDS, {"metric": METRIC | {"gaol": "minimize"}}, ["'gaol'", "did you mean 'goal'?"]),
    "goal": (SEEDS, {"metric": METRIC | {"goal": "maximise"}}, ["metric.goal", "'maximise'", "maximize or minimize"]),
    "unknown distribution": (
        {"run.seed": {"distribution": "q_unifrom", "min": 0, "max": 1}},
        {"method": "random"},
        ["parameters.run.seed", "'q_unifrom'", "did you mean 'q_uniform'?"],
    ),
    "distribution's key": (
        {"run.seed": {"distribution": "normal", "mu": 0, "max": 1}},
        {"method": "bayes"},
        ["normal has no key 'max'", "mu and sigma"],
    ),
    "distribution without an end": (
        {"run.seed": {"min": 0}},
        {"method": "random"},
        ["uniform needs min and max", "max is missing"],
    ),
    "ends exchanged": ({"run.seed": {"min": 3, "max": 1}}, {"method": "random"}, ["min must be below max", "3 and 1"]),
    "logarithm of zero": (
        {"run.seed": {"distribution": "log_uniform_values", "min": 0.0, "max": 1.0}},
        {"method": "bayes"},
        ["min of log_uniform_values must be positive"],
    ),
    "exponents that are values": (
        {"run.budget": {"distribution": "log_uniform", "min": 1000, "max": 2000}},
        {"method": "random"},
        ["exponents of e", "log_uniform_values"],
    ),
    "number that is text": (
        {"run.seed": {"distribution": "uniform", "min": "1e-4", "max": 1.0}},
        {"method": "random"},
        ["min must be a number", "1.0e-4", "'1e-4'"],
    ),
    "step of zero": (
        {"run.seed": {"distribution": "q_beta", "q": 0}},
        {"method": "random"},
        ["q must be positive"],
    ),
    "probabilities": (
        {"run.seed": {"values": [0, 1], "probabilities": [0.5, 0.6]}},
        {"method": "random"},
        ["one a value and sum to 1", "[0.5, 0.6]"],
    ),
    "bayes without a goal": (
        SEEDS,
        {"method": "bayes", "metric": {"name": METRIC["name"]}},
        ["metric.goal is required", "minimizes"],
    ),
    "early termination": (SEEDS, {"early_terminate": {"type": "hyperband"}}, ["early_terminate", "not FLOPs"]),
    "no metric": (SEEDS, {"metric": None}, ["metric.name is required"]),
    "unknown method": (SEEDS, {"method": "gird"}, ["grid, random, bayes", "'gird'", "did you mean 'grid'?"]),
    "unknown macro": (SEEDS, {"command": [*COMMAND[:-1], "${args_hydra}"]}, ["${args_hydra}", "${args_no_hyphens}"]),
    "command without the program": (SEEDS, {"command": ["python", "${args}"]}, ["${program}"]),
    "command in one word": (SEEDS, {"command": "python ${program} ${args}"}, ["list of words"]),
    "command without the arms": (SEEDS, {"command": COMMAND[:-1]}, ["never passes", "${args_no_hyphens}"]),
    "run cap": (SEEDS, {"run_cap": "ten"}, ["run_cap", "'ten'"]),
    "misspelt parameter": ({"run.sed": {"values": [0, 1]}}, {}, ["{'run.sed': 0}", "did you mean 'seed'?"]),
    "mistake in the last arm": ({"run.batch_size": {"values": [8, 500]}}, {}, ["{'run.batch_size': 500}", "160"]),
    "unused binding": ({"jest.chunks": {"values": [1, 4]}}, {}, ["jest.chunks", "--allow_unused"]),
    "no such file": ({"gin_file": {"values": ["gin/policy/jets.gin"]}}, {}, ["gin/policy/jets.gin", "jest.gin"]),
    "misspelt file": ({"gin_fiel": {"value": "gin/policy/jest.gin"}}, {}, ["gin_fiel", "did you mean 'gin_file'?"]),
    "misspelt owner": ({"rum.seed": {"value": 1}}, {}, ["{'rum.seed': 1}", "did you mean 'run'?"]),
    "no owner": ({"seed": {"value": 1}}, {"command": [*COMMAND[:-1], "${args}"]}, ["parameters.seed", "'run.seed'?"]),
}


@pytest.mark.parametrize("dry", [[], ["--dry_run"]], ids=["run", "dry"])
@pytest.mark.parametrize(("parameters", "more", "words"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_said_before_the_first_arm_starts(
    call: Call,
    nothing_starts: Callable[[], None],
    parameters: Mapping[str, object] | None,
    more: dict[str, object],
    words: list[str],
    dry: list[str],
) -> None:
    result = call(write(parameters, **more), "--out", "out", *dry)
    assert (result.status, result.out) == (2, "")
    message = result.err.splitlines()[-1]
    assert re.match(r"error: .*sweep.yaml: ", message)
    assert "Traceback" not in result.err
    for word in words:
        assert word in message
    nothing_starts()


TABLE = {"gin_file": {"value": "gin/run/csv.gin"}, "csv.eval": {"value": "eval.csv"}, "run.seed": {"values": [0, 1]}}
UNREADABLE: Mapping[str, tuple[dict[str, object], list[str]]] = {
    "no file": ({"csv.pool": {"value": "pol.csv"}}, ["csv.pool: there is no file pol.csv", "did you mean pool.csv?"]),
    "in the last arm": ({"csv.pool": {"values": ["pool.csv", "none.csv"]}}, ["'csv.pool': 'none.csv'", "no file none"]),
    "no column": (
        {"csv.pool": {"value": "pool.csv"}, "csv.caption_column": {"value": "caption"}},
        ["eval.csv has no column 'caption'", "set csv.caption_column"],
    ),
    "no image": (
        {"csv.pool": {"value": "gone.csv"}},
        ["none of its first pairs", "no image of 1", "gone.jpg"],
    ),
    "a split of the reference": (
        {
            "csv.pool": {"value": "pool.csv"},
            "run.policy": {"value": "easy_reference"},
            "run.reference": {"value": "gin/run/reference.gin"},
        },
        ["the split 'curated' is not given: bind csv.curated", "in the run 'reference'"],
    ),
}


@pytest.mark.parametrize("way", [["--dry_run"], ["--out", "out"]], ids=["dry", "run"])
@pytest.mark.parametrize(("parameters", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_data_that_cannot_be_read_are_found_before_the_first_arm_starts(
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    nothing_starts: Callable[[], None],
    parameters: dict[str, object],
    words: list[str],
    way: list[str],
) -> None:
    """A dry run prints its commands even so: they may be meant for another machine."""
    monkeypatch.setenv("JESTBENCH_CACHE", str(Path("cache").absolute()))
    Path("0.jpg").write_bytes(jpeg(0))
    for name in ("pool", "eval"):
        Path(f"{name}.csv").write_text("filepath,title\n0.jpg,a cat\n")
    Path("gone.csv").write_text("filepath,title\ngone.jpg,a cat\n")
    result = call(write(TABLE | parameters, command=[*COMMAND[:3], "${args}"]), *way)
    assert result.status == 3
    commands = result.out.count("--csv.eval=eval.csv")
    assert commands == 0 if "--out" in way else commands >= 2
    for word in ("sweep.yaml: arm {", *words):
        assert word in result.err
    assert not Path("cache").exists(), "nothing is indexed"


def test_files_that_cannot_be_read(call: Call) -> None:
    result = call("none.yaml")
    assert (result.status, result.err) == (2, "error: there is no file none.yaml\n")
    for text in ("a: [", "- a\n- b\n", "", "\0"):
        Path("sweep.yaml").write_text(text)
        result = call("sweep.yaml")
        assert result.status == 2
        assert re.fullmatch(r"error: .*sweep.yaml: .*\n", result.err)
    path = write(SEEDS)
    for count in (0, -1):
        assert call(path, "--count", count, "--dry_run").status == 2


def test_a_program_that_is_not_there(call: Call, nothing_starts: Callable[[], None]) -> None:
    path = write(SEEDS, program="tools/rum.py")
    result = call(path, "--out", "out")
    assert (result.status, result.out) == (2, "")
    assert "there is no file tools/rum.py" in result.err
    nothing_starts()
    assert call(path, "--dry_run").status == 0  # the commands may be meant for another folder


POLICIES = {
    "gin_file": {"values": ["gin/policy/uniform.gin", "gin/policy/hard_learner.gin"]},
    "optimizer.learning_rate": {"values": [1e-3, 1e-2]},
}


@pytest.mark.parametrize(
    "name", ["train/loss", "flops/total", "pairs/seen", "time/seconds", "data/skipped", "select/entropy"]
)
def test_a_metric_that_some_run_logs(call: Call, nothing_starts: Callable[[], None], name: str) -> None:
    """Of training, the ledger, the data, or of one of the policies: all that the JSONL holds."""
    sweep_arms.check_metric(sweep_file.read_sweep(write(POLICIES, metric={"name": name})))
    nothing_starts()


def test_a_policy_of_a_search_is_asked_for_its_metrics(call: Call) -> None:
    parameters = {
        **POLICIES,
        "optimizer.learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
    }
    metric = {"name": "select/entropy", "goal": "minimize"}
    for method in ("random", "bayes"):
        found = sweep_file.read_sweep(write(parameters, method=method, metric=metric))
        assert len(list(sweep_arms._one_of_each_policy(found))) == 2
        sweep_arms.check_metric(found)


# Arms


def test_an_arm_that_repeats_another_is_passed_over(call: Call) -> None:
    parameters = {
        "gin_file": {"values": ["gin/policy/uniform.gin", "gin/policy/jest.gin"]},
        "run.reference": {"value": "gin/run/tiny_reference.gin"},
        "jest.chunks": {"values": [1, 4]},
        "run.seed": {"values": [0, 1]},
    }
    path = write(parameters, command=[*COMMAND, "--allow_unused", "jest.*"])
    result = call(path, "--dry_run")
    assert (result.status, result.err) == (0, "")
    passed = [line for line in result.out.splitlines() if line.startswith("passed over")]
    assert len(passed) == 2
    assert all(line.count("uniform.gin") == 2 and "'jest.chunks': 4" in line and "repeats" in line for line in passed)
    assert len(result.out.splitlines()) == 8
    assert call(path, "--dry_run", "--count", "3").out.count("/usr/bin/env") == 3


def test_a_sweep_ends_with_the_comparison(call: Call, started: list[list[str]]) -> None:
    parameters = {
        "gin_file": {"values": ["gin/policy/jest.gin", "gin/policy/uniform.gin"]},
        "run.reference": {"value": REFERENCE},
        **SMALL,
    }
    path = write(parameters)
    result = call(path, "--out", "out")
    assert result.status == 0, result.err
    folders = arms_in(Path("out"))
    assert [folder.name.split("-")[0] for folder in folders] == ["jest", "uniform"]
    assert [words[-2:] for words in started] == [[str(folder), "--resume"] for folder in folders]
    found = json.loads(Path("out/comparison/comparison.json").read_text())
    assert {arm["arm"] for arm in found["arms"]} == {"uniform", "jest"}
    assert (found["metric"], found["baseline"]) == ("eval/zero_shot_top5", "uniform")
    assert Path("out/comparison/index.html").exists()
    before = [contents(folder) for folder in folders]
    assert call(path, "--out", "out").out.count("already finished") == 2
    assert len(started) == 2
    assert [contents(folder) for folder in folders] == before


def test_a_checkout_sweeps_from_any_folder(call: Call, started: list[list[str]]) -> None:
    """Its own script is found, as its gin files are, though there is none in the working directory."""
    assert call(write({**SMALL, "run.budget": {"value": 1e9}}, program="tools/run.py"), "--out", "out").status == 0
    assert [words[words.index(sys.executable) + 1] for words in started] == [PROGRAM]


def _without_paths(found: object) -> object:
    """JSON in which every path into a folder of runs is one word."""
    if isinstance(found, Mapping):
        return {key: _without_paths(value) for key, value in found.items()}
    if isinstance(found, list):
        return [_without_paths(value) for value in found]
    return "path" if isinstance(found, str) and re.search(r"/(jest|uniform|references|models)[-/]", found) else found


def test_kept_records_stand_for_the_runs(call: Call, started: list[list[str]], tmp_path: Path) -> None:
    """Records without any model give the same comparison, references included, and their arms are not run again."""
    parameters = {
        "gin_file": {"values": ["gin/policy/jest.gin", "gin/policy/uniform.gin"]},
        "run.reference": {"value": REFERENCE},
        **SMALL,
    }
    path = write(parameters)
    assert call(path, "--out", "out", "--logs", "logs").status == 0
    first = json.loads(Path("out/comparison/comparison.json").read_text())
    shutil.move("logs", "elsewhere")  # records stand by themselves
    shutil.rmtree("out")
    references = list(Path("elsewhere").glob("jest-*/references/*/summary.json"))
    assert len(references) == 1
    assert not list(Path("elsewhere").rglob("*.safetensors"))
    assert not list(Path("elsewhere").glob(".*"))
    (entry,) = RunFolder(references[0].parents[2]).summary().references
    assert not Path(entry.run_dir).is_absolute()
    started.clear()
    again = call(path, "--out", "new", "--logs", "elsewhere")
    assert (again.status, started, again.out.count("already finished: elsewhere")) == (0, [], 2)
    second = json.loads(Path("new/comparison/comparison.json").read_text())
    assert _without_paths(second["arms"]) == _without_paths(first["arms"])
    assert second["frontier"] == first["frontier"]
    assert _without_paths(second["references"]) == _without_paths(first["references"])
    assert not list(Path("new").glob("jest*")), "nothing was run or copied there"
    assert report.main(["elsewhere", "--out", "page"]) == 0
    assert _without_paths(json.loads(Path("page/comparison.json").read_text())["arms"]) == _without_paths(first["arms"])
    with pytest.raises(DataError, match="no run that has ended"):
        keep_records(Path("elsewhere"), Path("kept"))
    assert not Path("kept").exists()


def test_records_of_a_cpu_are_not_made_again_on_a_gpu(
    call: Call, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = {"value": REFERENCE.replace("'run.device=cpu',", "")}
    parameters = {"gin_file": {"values": ["gin/policy/jest.gin"]}, "run.reference": reference, **SMALL}
    path = write({**parameters, "run.device": {"value": "auto"}})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(path, "--out", "out", "--logs", "logs").status == 0
    started.clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = call(path, "--out", "new", "--logs", "logs")
    assert (found.status, started) == (2, [])
    assert "logs holds records of jest, seed 0, in fp32; on this machine it would be another arm, in bf16" in found.err
    assert "put CUDA_VISIBLE_DEVICES= before the command" in found.err


@pytest.mark.parametrize(
    ("sweep", "logs", "baseline"),
    [("quickstart", "rivals", "uniform"), ("equal", "equal", "uniform equal=negative")],
)
def test_the_tables_of_the_docs_need_no_training(
    call: Call, nothing_starts: Callable[[], None], sweep: str, logs: str, baseline: str
) -> None:
    """Of several arms of one label the first of the file is the baseline, whatever its hash."""
    found = call(ROOT / f"gin/sweep/{sweep}.yaml", "--out", "out", "--logs", ROOT / "docs" / "logs" / logs)
    assert found.status == 0, found.err
    assert found.out.count("already finished") == 12
    assert json.loads(Path("out/comparison/comparison.json").read_text())["baseline"] == baseline


def test_kept_records_hold_those_of_the_start_and_of_no_model_of_a_library(tmp_path: Path, call: Call) -> None:
    begun = ["--gin_file", str(ROOT / "gin/run/tiny.gin"), *START]
    assert command.main([*begun, "--run_dir", "first"]) == 0
    assert command.main([*begun, "run.init=first", "--run_dir", "second"]) == 0
    keep_records(Path("second"), Path("kept/second"))
    kept = RunFolder(Path("kept/second")).summary()
    assert kept.start.run_dir == "start/first"
    assert RunFolder(Path("kept/second/start/first")).summary() == RunFolder(Path("first")).summary()
    summary = RunFolder(Path("second")).summary()
    library = replace(summary, start=replace(summary.start, run_dir=""), references=(ReferenceEntry("ViT", "", None),))
    RunFolder(Path("second")).write_summary(library)
    keep_records(Path("second"), Path("kept/library"))
    assert RunFolder(Path("kept/library")).summary() == library
    assert not list(Path("kept/library").glob("*/*/summary.json")), "no copy of the run itself"


def test_a_sweep_may_be_about_the_loss_and_goes_to_wandb_once(
    call: Call, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[Any, ...]] = []

    def log(settings: Any, out: Path, *more: str) -> None:
        assert (out / "comparison.json").exists()
        (out / "wandb").mkdir()
        sent.append((settings, out, *more))

    monkeypatch.setattr(run_sweep, "log_comparison", log)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    parameters = {**SMALL, "run.budget": {"value": 1e9}, "wandb.tags": {"value": "('icons',)"}, **SEEDS}
    more = {"metric": {"name": "train/gradient_norm", "goal": "minimize"}, "project": "ours", "entity": "us"}
    path = write(parameters, name="night", **more)
    assert call(path, "--out", "out").status == 0
    ((settings, out, name, group),) = sent
    assert (settings.project, settings.entity, settings.tags) == ("ours", "us", ("icons",))
    assert (out, name, group) == (Path("out/comparison"), "night-comparison", "night")
    found = json.loads(Path("out/comparison/comparison.json").read_text())
    assert (found["metric"], found["lower_is_better"]) == ("train/gradient_norm", True)
    for folder in arms_in(Path("out")):
        assert RunFolder(folder).final_value("train/gradient_norm") == rows_of(folder)[-1]["train/gradient_norm"]
    assert RunFolder(Path("out")).final_value("train/loss") is None
    assert call(path, "--out", "out").out.count("already finished") == 2
    assert len(sent) == 1  # nothing has run: the summary run of before still stands


def test_a_comparison_that_wandb_refuses_is_said(
    call: Call, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no key")

    monkeypatch.setattr(run_sweep, "log_comparison", refuse)
    result = call(write({**SMALL, "run.budget": {"value": 1e9}}), "--out", "out")
    assert result.status == 0
    assert "the comparison is not in W&B: no key" in result.err


def test_a_sweep_with_an_arm_that_fails(call: Call, started: list[list[str]]) -> None:
    parameters = {
        "run.policy": {"values": ["uniform", "hard_learner"]},
        "run.arm": {"value": "arm"},
        "optimizer.learning_rate": {"values": [1e30, 1e-3]},
        "optimizer.warmup": {"value": 0.0},
        **SMALL,
    }
    path = write(parameters)
    result = call(path, "--out", "out")
    assert result.status == 4
    assert len(started) == 4
    assert result.err.count("failed with status 4") == 2
    assert "1e+30" in result.err
    assert "the others go on" in result.err
    statuses = [summary_of(folder)["status"] for folder in arms_in(Path("out"))]
    assert sorted(statuses) == ["failed", "failed", "finished", "finished"]
    found = json.loads(Path("out/comparison/comparison.json").read_text())
    assert len(found["arms"]) == 2
    finished = [folder for folder in arms_in(Path("out")) if summary_of(folder)["status"] == "finished"]
    before = [contents(folder) for folder in finished]
    again = call(path, "--out", "out")
    assert again.out.count("already finished") == 2
    assert len(started) == 6  # those that failed are tried again
    assert [contents(folder) for folder in finished] == before


def test_a_budget_below_one_step_fails_alone(call: Call, started: list[list[str]]) -> None:
    path = write({**SMALL, "run.budget": {"values": [1000, 1e9]}})
    result = call(path, "--out", "out")
    assert result.status == 2
    assert "failed with status 2" in result.err
    assert "one training step" in result.err
    assert len(started) == 2
    (folder,) = arms_in(Path("out"))
    assert summary_of(folder)["status"] == "finished"
    assert Path("out/comparison/comparison.json").exists()


def test_a_sweep_where_every_arm_fails(call: Call, started: list[list[str]]) -> None:
    parameters = {**SMALL, "optimizer.learning_rate": {"value": 1e30}, "optimizer.warmup": {"value": 0.0}, **SEEDS}
    result = call(write(parameters), "--out", "out")
    assert result.status == 4
    assert len(started) == 2
    assert "no comparison" in result.err
    assert "Traceback" not in result.err
    result = call(write({**SMALL, "run.budget": {"value": 1000}}), "--out", "other")
    assert result.status == 2
    assert "Traceback" not in result.err


# Real processes


def real(path: Path, out: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "sweep.py"), str(path), "--out", out]


def test_an_interrupted_sweep_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, started: list[list[str]]
) -> None:
    steps = 120
    parameters = {
        **{key: value for key, value in SMALL.items() if key != "run.budget"},
        "run.budget": {"value": None},
        "run.batch_size": {"values": [8, 32]},
        "budget.steps": {"value": steps},
    }
    path = write(parameters)
    assert call(path, "--out", "whole").status == 0
    expected = {folder.name: rows_of(folder) for folder in arms_in(Path("whole"))}
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    # The first arm lies there finished, so that the second one is running when the signal comes.
    (first,) = (folder for folder in arms_in(Path("whole")) if rows_of(folder)[-1]["pairs/seen"] == 8 * steps)
    (second,) = (name for name in expected if name != first.name)
    Path("out").mkdir()
    first.rename(Path("out") / first.name)
    before = contents(Path("out") / first.name)
    process = subprocess.Popen(real(path, "out"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        metrics, deadline = Path("out") / second / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            assert time.monotonic() < deadline, "the second arm does not start"
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "the same command goes on where it stopped" in err
    stopped = summary_of(Path("out") / second)
    assert stopped["status"] == "interrupted"
    assert 2 <= stopped["steps"] < steps
    assert (Path("out") / second / "checkpoints" / f"step-{stopped['steps']:010d}").exists()
    assert not (Path("out") / "comparison").exists()
    done = subprocess.run(real(path, "out"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already finished") == 1
    assert (Path("out") / "comparison" / "comparison.json").exists()
    assert contents(Path("out") / first.name) == before
    for found, wanted in zip(rows_of(Path("out") / second), expected[second], strict=True):
        assert {**found, "time/seconds": 0} == {**wanted, "time/seconds": 0}


# Random and bayes


SEARCH = {
    "optimizer.learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
    "run.batch_size": {"distribution": "int_uniform", "min": 8, "max": 32},
    **SMALL,
}


def test_a_bayes_search_without_its_library(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = call(write(SEARCH, method="bayes"), "--dry_run")
    assert result.status == 2
    assert "pip install 'jestbench[search]'" in result.err
    assert result.err.count("\n") == 1
    assert call(write(SEARCH, method="random"), "--dry_run").status == 0
    assert call(write(SEEDS), "--dry_run").status == 0


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_proposes_arms(call: Call, method: str, nothing_starts: Callable[[], None]) -> None:
    if method == "bayes":
        pytest.importorskip("optuna")
    path = write(SEARCH, method=method)
    result = call(path, "--dry_run", "--count", "2")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert len(lines) == len(set(lines)) == 2
    for line in lines:
        found = dict(word.split("=", 1) for word in shlex.split(line) if "=" in word)
        assert found.keys() == SEARCH.keys()
        assert 1e-4 <= float(found["optimizer.learning_rate"]) <= 1e-2
        assert 8 <= int(found["run.batch_size"]) <= 32
    assert call(path, "--dry_run", "--count", "2").out == result.out
    nothing_starts()


@pytest.mark.parametrize(("method", "count"), [("random", 3), ("bayes", 5)])
def test_a_shipped_search_runs_and_goes_on(
    call: Call, started: list[list[str]], monkeypatch: pytest.MonkeyPatch, method: str, count: int
) -> None:
    """Filter ratio × chunks × policy in miniature, stopped after two arms; of bayes' arms the fifth is modelled."""
    if method == "bayes":
        pytest.importorskip("optuna")
    raw = yaml.safe_load((ROOT / "gin" / "sweep" / f"search_{method}.yaml").read_text())
    small = {**raw.pop("parameters"), "run.reference": {"value": REFERENCE}, **SMALL, "run.budget": {"value": 5e8}}
    path = write(small, **(raw | {"program": PROGRAM}))
    with monkeypatch.context() as patch:
        patch.setattr(run_sweep.LocalSweep, "_compare", lambda *_: False)
        assert call(path, "--out", "out", "--count", 2).status == 0
    assert len(started) == len(arms_in(Path("out"))) == 2
    result = call(path, "--out", "out", "--count", count)
    assert result.status == 0, result.err
    assert result.out.count("already finished") == 2
    assert len(started) == len(arms_in(Path("out"))) == count
    for name in ("run.super_batch_size=", "jest.chunks="):
        assert len({word for words in started for word in words if word.startswith(name)}) >= 2
    assert json.loads(Path("out/comparison/comparison.json").read_text())["metric"] == raw["metric"]["name"]


def test_an_arm_of_a_search_that_cannot_be_is_passed_over(
    call: Call, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_sweep.LocalSweep, "_compare", lambda *_: None)
    words = [*COMMAND, "run.budget=1e9", "run.device=cpu"]
    path = write({"run.batch_size": {"min": 8, "max": 500}}, method="random", command=words)
    for out, sizes in (("out", (8, 500, 16)), ("other", (500, 8))):
        memory = proposals.memory_of(sweep_file.read_sweep(path), Path(out))
        memory.parent.mkdir()
        memory.write_text("".join(json.dumps({"run.batch_size": size}) + "\n" for size in sizes))
    result = call(path, "--out", "out", "--count", "2")
    assert result.status == 0
    assert len(started) == 2
    assert "passed over" in result.err
    assert "500" in result.err
    # Where none can be, the first one's mistake is said.
    assert call(path, "--out", "other").status == 2


def test_a_search_that_finds_nothing_new_ends(call: Call, nothing_starts: Callable[[], None]) -> None:
    result = call(write({"run.seed": {"values": [0, 1]}}, method="random"), "--dry_run", "--count", "5")
    assert result.status == 0
    assert result.out.count("$") + result.out.count("/usr/bin/env") == 2
    assert "it ends here" in result.out


def test_the_environment_is_passed_on(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    seen: list[Mapping[str, str]] = []

    class Popen(InProcess):
        def __init__(self, words: list[str], env: Mapping[str, str], **more: object) -> None:
            super().__init__(words, env, **more)
            seen.append(env)

    start_with(monkeypatch, Popen)
    monkeypatch.setattr(run_sweep.LocalSweep, "_compare", lambda sweep: compared.append(sweep.out))
    compared: list[Path] = []
    for name in ("WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    path = write({**SMALL, "run.budget": {"value": 1e9}}, name="night", project="ours", entity="us")
    assert call(path).status == 0
    assert [seen[0][f"WANDB_{name}"] for name in ("RUN_GROUP", "PROJECT", "ENTITY")] == ["night", "ours", "us"]
    assert seen[0]["JESTBENCH_CACHE"] == os.environ["JESTBENCH_CACHE"]
    assert compared == [Path("runs/night")]
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert call(path, "--out", "other").status == 0
    assert seen[1]["WANDB_RUN_GROUP"] == "mine"
