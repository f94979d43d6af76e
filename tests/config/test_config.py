"""The command of ``tools/run.py``, in process: what it accepts, what it refuses and how it says so."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
from filelock import FileLock
from helpers import SLOW, rows_of, start, summary_of, wait_for

import policies
from jestbench.bench.arms import tiny_stands
from jestbench.config import grammar, resolve
from jestbench.config.run import ConfigError
from jestbench.data.icons.icons import Icons
from jestbench.disk import write_json
from jestbench.launch import command, train_run
from jestbench.runs import hold_folder
from jestbench.runs.folder import RunFolder
from jestbench.select.scores import ROLES

ROOT = Path(__file__).resolve().parents[2]
GIN = ROOT / "gin"
TINY = str(GIN / "run" / "tiny.gin")
RUN_FILES = sorted((GIN / "run").glob("*.gin"))
POLICY_FILES = sorted((GIN / "policy").glob("*.gin"))
QUIET = ("run.device=cpu", "wandb.mode=disabled", "log.progress=False", "log.every=1")
SMALL = ("run.budget=3e9", "evaluate.points=2", *QUIET)
REFERENCE = ("gin/run/tiny_reference.gin", "run.budget=2e9", "run.device=cpu", "log.progress=False")

# Of the surface: one row of metrics.jsonl, and summary.json.
PURPOSES = "learner_train learner_score reference_score scorer_score scorer_train pairwise recompute".split()
INTEGERS = {"step", "pairs/seen", "pairs/trained", "flops/total", *(f"flops/{purpose}" for purpose in PURPOSES)}
SUMMARY = set(
    "arm policy config_hash seed status steps pairs_seen pairs_trained flops macs_total pretrain_flops seconds "
    "warnings metrics".split()
)


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    def value(self, key: str) -> str:
        """The value of a parameter in the printed configuration, as gin text."""
        found = re.findall(rf"^{re.escape(key)} = (.*)$", self.out, re.MULTILINE)
        assert found, f"{key} is not in the printed configuration"
        return found[-1]


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``tools/run.py``, in process, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def call(*argv: str) -> Result:
        capsys.readouterr()
        status = command.main(list(argv))
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


def expect_said(result: Result, *words: str, status: int = 2) -> str:
    """The one short paragraph on stderr, which must hold these words."""
    assert result.status == status, result.err
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert len(result.err) < 1000
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err
    return result.err


def snapshot(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every path below some folders, of a file with its size and the time it was changed."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            state = path.stat()
            found[str(path)] = (state.st_size, state.st_mtime_ns) if path.is_file() else (-1, 0)
    return found


def small_reference(policy_file: Path) -> list[str]:
    return tiny_stands(policy_file, *REFERENCE[1:])


def columns_for(policy_file: Path) -> list[str]:
    """The number that came with the pairs, where an arm chooses by one."""
    return ["synthetic.columns=('similarity',)"] if policy_file.stem == "column" else []


def file(name: str, *lines: str) -> str:
    """A gin file in the working directory: the tiny run, and from line 2 on these lines."""
    Path(name).write_text("\n".join((f'include "{TINY}"', *lines)) + "\n")
    return name


# What is wrong, the lines that are (the first is line 2), and what must be said of it.
WRONG = {
    "configurable": (["runn.seed = 1"], ["mine.gin:2", "'runn'", "did you mean 'run'?"]),
    "policy parameter": (["run.policy = 'jest'", "jest.chunk = 4"], ["mine.gin:3", "'chunk'", "'chunks'"]),
    "parameter": (["run.sed = 1"], ["mine.gin:2", "'sed'", "did you mean 'seed'?"]),
    "nothing near": (["run.zzz = 1"], ["mine.gin:2", "'zzz'; there are: arm, augment, batch_size"]),
    "word of other trainers": (
        ["run.epochs = 3"],
        ["mine.gin:2", "'epochs'; did you mean budget.steps (with run.budget = None)?"],
    ),
    "another's parameter": (["run.workers = 3"], ["mine.gin:2", "'workers'; did you mean loader.workers?"]),
    "word without a name": (["lr = 1e-3"], ["mine.gin:2", "did you mean optimizer.learning_rate?"]),
    "component": (["optimiser.clip = 1.0"], ["mine.gin:2", "'optimiser'", "'optimizer'"]),
    "parameter in a block": (["run:", "  sed = 1"], ["mine.gin:3", "did you mean 'seed'?"]),
    "reference": (["run.model = @modell()"], ["mine.gin:2", "@modell", "did you mean 'model'?"]),
    "undefined macro": (["SEED = 1", "run.seed = %SEDD"], ["mine.gin:3", "%SEDD", "did you mean 'SEED'?"]),
    "undefined macro, no other": (["run.seed = %SEED"], ["mine.gin:2", "%SEED is not defined"]),
    "macro of a macro": (["A = 1", "B = %A", "run.seed = %B"], ["mine.gin:3", "one level"]),
    "unused macro": (
        ["SEED = 1", "run.seed = %SEED", "SED = 2"],
        ["mine.gin:4", "never uses SED", "did you mean 'SEED'?", "--allow_unused 'SED'"],
    ),
    "scope": (
        ["run.optimizer = @slow/optimizer()", "slow/optimizer.final = 0.1", "slwo/optimizer.clip = 2.0"],
        ["mine.gin:4", "slwo/optimizer.clip", "did you mean 'slow'?", "--allow_unused 'slwo/optimizer.*'"],
    ),
    "parameter without a name": (
        ["batch_size = 4"],
        ["mine.gin:2", "did you mean run.batch_size, evaluate.batch_size?"],
    ),
    "scope of a parameter": (["warm/run.seed = 1"], ["mine.gin:2", "never uses warm/run.seed"]),
    "unused binding": (["jest.chunks = 4"], ["mine.gin:2", "never uses jest.chunks", "--allow_unused 'jest.*'"]),
    "unused component": (["run.log = @log()", "icons.noise = 0.5"], ["mine.gin:3", "never uses icons.noise"]),
    "missing include": (["", 'include "tinny.gin"'], ["mine.gin:3", "tinny.gin"]),
    "misspelt include": (['include "other.gni"'], ["mine.gin:2", "other.gni", "did you mean other.gin?"]),
    "circular include": (['include "other.gin"', 'include "mine.gin"'], ["mine.gin:3", "mine.gin → mine.gin"]),
    "import": (["import no_such_policy"], ["mine.gin:2", "no_such_policy"]),
    "no value": (["run.seed ="], ["mine.gin:2"]),
    "two values": (["run.seed = 1 2"], ["mine.gin:2"]),
    "expression": (["run.seed = 1 + 1"], ["mine.gin:2"]),
    "bare word": (["run.policy = jest"], ["mine.gin:2"]),
    "call": (["run.budget = float('inf')"], ["mine.gin:2", "Unable to parse"]),
    "no statement": (["run.seed"], ["mine.gin:2"]),
    "no name": (["= 3"], ["mine.gin:2"]),
    "open bracket": (["# why", "run.reference = ('a',", "", "# end"], ["mine.gin:3", "never closed"]),
    "open bracket, then more": (["run.arm = ('a',", "run.seed = 1"], ["mine.gin:3", "begins at line 2", "bracket"]),
    "open string": (["run.arm = '''a", "run.seed = 1"], ["mine.gin:2", "never closed"]),
    "half a string": (["run.arm = 'a"], ["mine.gin:2"]),
    "unhashable key": (["model.image_options = {[1]: 2}"], ["mine.gin:2", "unhashable"]),
    "word for int": (["run.batch_size = 'many'"], ["mine.gin:2", "run.batch_size", "'many'", "int"]),
    "fraction for int": (["run.batch_size = 1.5"], ["mine.gin:2", "1.5", "int"]),
    "float for int": (["run.batch_size = 32.0"], ["mine.gin:2", "32.0", "int"]),
    "bool for int": (["run.batch_size = True"], ["mine.gin:2", "True", "int"]),
    "bool for float": (["optimizer.clip = True"], ["mine.gin:2", "True", "float"]),
    "none for int": (["run.seed = None"], ["mine.gin:2", "None", "int"]),
    "number for string": (["run.arm = 3"], ["mine.gin:2", "3", "str"]),
    "one for a tuple": (
        ["evaluate.sets = ('mine')"],
        ["mine.gin:2", "'mine' must be of type tuple", "; a single one is written evaluate.sets=('mine',)"],
    ),
    "part of a tuple": (["run.reference = ('a.gin', 3)"], ["mine.gin:2", "run.reference"]),
    "foreign word": (["run.loss = 'sigmod'"], ["mine.gin:2", "'sigmod'", "'sigmoid'", "'softmax'"]),
    "type through a macro": (["B = 1.5", "run.batch_size = %B"], ["mine.gin:3", "1.5", "int"]),
    "tuple of a component": (["model.image_tower = (@view(),)"], ["mine.gin:2", "model.image_tower", "str"]),
    "component for int": (["run.seed = @model()"], ["mine.gin:2", "run.seed", "int"]),
    "wrong component": (["run.data = @model()"], ["mine.gin:2", "run.data", "Model"]),
    "component not built": (["run.data = @synthetic"], ["mine.gin:2", "run.data", "@synthetic()"]),
    "no policy object": (["run.policy = @model()"], ["mine.gin:2", "no registered policy", "uniform"]),
    "component for a string": (["evaluate.split = @model"], ["mine.gin:2", "evaluate.split"]),
    "infinite": (["run.budget = 1e400"], ["mine.gin:2", "finite"]),
    "b above B": (["run.batch_size = 161"], ["161", "160", "mine.gin:2", "tiny.gin:"]),
    "b of nothing": (["run.batch_size = 0"], ["mine.gin:2", "at least 1"]),
    "chunks": (["run.policy = 'jest'", "jest.chunks = -1"], ["mine.gin:3", "chunks", "-1"]),
    "gain": (["run.policy = 'hard_learner'", "hard_learner.gain = -0.5"], ["mine.gin:3", "gain", "-0.5"]),
    "noise": (["synthetic.noise = 1.5"], ["mine.gin:2", "synthetic.noise", "1.5", "[0, 1)"]),
    "warm-up": (["optimizer.warmup = 1.0"], ["mine.gin:2", "optimizer.warmup"]),
    "points": (["evaluate.points = 0"], ["mine.gin:2", "evaluate.points"]),
    "patch": (["model.image_size = 2"], ["mine.gin:2", "smaller than a patch", "tiny.gin:"]),
    "multiple of a patch": (["model.image_size = 18"], ["mine.gin:2", "model.patch_size", "tiny.gin:"]),
    "timm model": (["model.image_tower = 'vit_tiny_patch16_225'"], ["mine.gin:2", "timm", "vit_tiny_patch16_225"]),
    "no vision transformer": (["model.image_tower = 'resnet18'"], ["resnet18"]),
    "timm option": (["model.image_options = {'dept': 2}"], ["image_tower", "dept"]),
    "timm value": (
        ["model.image_options = {'embed_dim': 64, 'depth': 2, 'num_heads': 0}"],
        ["timm cannot build", "ZeroDivisionError"],
    ),
    "text length": (["synthetic.length = 1"], ["at least 2 tokens"]),
    "unknown policy": (["run.policy = 'jets'"], ["mine.gin:2", "'jets'", "did you mean 'jest'?"]),
    "no reference": (["run.policy = 'jest'"], ["Jest", "needs a reference", "run.reference"]),
    "no such reference": (
        ["run.policy = 'jest'", "run.reference = 'no/such.gin'"],
        ["mine.gin:3", "run.reference = 'no/such.gin'"],
    ),
    "binding of a reference": (
        ["run.policy = 'jest'", f"run.reference = ('{GIN}/run/tiny_reference.gin', 'run.budgt=2e9')"],
        ["run.reference at mine.gin:3", "'budgt'", "'budget'", "tiny_reference.gin"],
    ),
    "reference circle": (
        ["run.policy = 'jest'", "run.reference = 'mine.gin'"],
        ["mine.gin:3", "needs itself as a reference"],
    ),
    "no budget": (["run.budget = None"], ["mine.gin:2", "budget.steps"]),
    "two budgets": (["budget.steps = 3"], ["run.budget", "budget.steps", "mine.gin:2", "tiny.gin:"]),
    "small budget": (["run.budget = 1000"], ["run.budget", "one training step"]),
    "device": (["run.device = 'gpu'"], ["run.device", "'gpu'"]),
    "required": (["run.data = %gin.REQUIRED"], ["mine.gin:2", "%gin.REQUIRED"]),
}


@pytest.mark.parametrize(("lines", "words"), WRONG.values(), ids=WRONG)
def test_a_mistake_in_a_file_is_one_paragraph(run: Run, lines: list[str], words: list[str]) -> None:
    Path("other.gin").write_text("")
    expect_said(run("--gin_file", file("mine.gin", *lines), "--check"), *words)


@pytest.mark.parametrize(("lines", "words"), [(["run.split = 'pol'"], ["'pol'", "pool"])])
def test_wrong_data_is_status_3(run: Run, lines: list[str], words: list[str]) -> None:
    expect_said(run("--gin_file", file("mine.gin", *lines), "--check"), *words, status=3)


def test_a_super_batch_larger_than_the_pool_is_found_by_check(run: Run) -> None:
    binding = ("run.policy=hard_learner", "run.super_batch_size=100000")
    expect_said(run("--gin_file", TINY, *binding, "--check"), "100000", "run.super_batch_size", status=3)


@pytest.mark.parametrize(
    ("bindings", "words"),
    [
        (["run.sed=1"], ["command line", "did you mean 'seed'?"]),
        (["SED=1"], ["command line", "never uses SED", "--allow_unused 'SED'"]),
        (["run.seed 1"], ["'run.seed 1'", "Name.parameter=value"]),
        (["run.seed=[1"], ["command line", "never closed"]),
        (["run.seed=1\nrun.arm='a'"], ["not one binding"]),
        (["run.batch_size=many"], ["command line", "'many'", "int"]),
        (["evaluate.sets=mine"], ["command line", "tuple", """written "evaluate.sets=('mine',)\""""]),
        (["--batch_size=4"], ["arguments: --batch_size=4", "did you mean run.batch_size, evaluate.batch_size"]),
        (["--batch-size", "4"], ["arguments: --batch-size", "did you mean run.batch_size, evaluate.batch_size"]),
        (["--lr=1e-3"], ["arguments: --lr", "did you mean optimizer.learning_rate"]),
        (["--output_dir", "out"], ["arguments: --output_dir", "did you mean --run_dir DIR?"]),
        (["--chek"], ["arguments: --chek", "did you mean --check?"]),
        (["run.policy=jets"], ["command line", "did you mean 'jest'?"]),
        ([""], ["no binding"]),
    ],
    ids=str,
)
def test_a_mistake_on_the_command_line(run: Run, bindings: list[str], words: list[str]) -> None:
    expect_said(run("--gin_file", TINY, "--check", *bindings), *words)


def test_files_that_are_not_there(run: Run) -> None:
    expect_said(run("--check"), "--gin_file")
    expect_said(
        run("--gin_file", "gin/run/tinny.gin", "--check"), "gin/run/tinny.gin", "did you mean gin/run/tiny.gin?"
    )
    expect_said(run("--gin_file", str(GIN), "--check"), str(GIN))
    expect_said(run("--gin_file", "gin/policy/jest.gin", "--check"), "run.data is required", "run.data=")
    Path("latin.gin").write_bytes("run.arm = 'é'\n".encode("latin-1"))
    expect_said(run("--gin_file", "latin.gin", "--check"), "latin.gin", "cannot be read")


def test_an_include_circle_over_two_files(run: Run) -> None:
    Path("a.gin").write_text('# first\ninclude "b.gin"\n')
    Path("b.gin").write_text('include "a.gin"\n')
    expect_said(run("--gin_file", "a.gin", "--check"), "b.gin:1", "a.gin → b.gin → a.gin")


def test_a_reference_circle_over_two_files(run: Run) -> None:
    file("a.gin", "run.policy = 'jest'", "run.reference = 'b.gin'")
    file("b.gin", "run.policy = 'learnability'", "run.reference = 'a.gin'")
    expect_said(run("--gin_file", "a.gin", "--check"), "needs itself as a reference", "a.gin:3")


def test_a_reference_folder_without_a_run(run: Run) -> None:
    Path("empty").mkdir()
    argv = ("--gin_file", TINY, "run.policy=jest", "run.reference=empty", *SMALL)
    expect_said(run(*argv, "--check"), "empty", status=3)
    expect_said(run(*argv, "--run_dir", "out"), "empty", status=3)


def test_wrong_options_end_with_status_2(run: Run) -> None:
    for argv in (["--chek"], ["--gin_file"], ["--gin_param"], ["--run_dir"], ["--check=yes"]):
        result = run(*argv)
        assert result.status == 2
        assert "error:" in result.err
        assert "Traceback" not in result.err


def test_help_and_list(run: Run) -> None:
    result = run("--help")
    assert (result.status, result.err) == (0, "")
    for option in "--gin_file --run_dir --resume --check --price --list_policies --allow_unused BINDING".split():
        assert option in result.out
    result = run("--list_policies")
    assert (result.status, result.err) == (0, "")
    assert [line.split()[0] for line in result.out.splitlines()] == list(policies.available())
    assert all(len(line.split()) > 1 for line in result.out.splitlines())


# Spellings


@pytest.mark.parametrize(
    "words",
    [
        ["run.seed=7"],
        ["--run.seed=7"],
        ["-run.seed=7"],
        ["--gin_param", "run.seed=7"],
        ["--gin_param=run.seed=7"],
        ["--gin_param", "--run.seed=7"],
        ["run.seed = 7"],
        ["run.seed=1", "run.seed=7"],
        ["--gin_param", "run.seed=1", "run.seed=7"],
        ["run.seed=1", "--gin_param=run.seed=7"],
        ["--run.seed=1", "--gin_param", "run.seed=2", "run.seed=7"],
        ["--allow_unused", "jest.*", "run.seed=1", "--run.seed=7"],
        ["run.seed=1", "--allow_unused", "jest.*", "run.seed=7"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("file_first", [True, False])
def test_spellings_of_a_binding(words: list[str], file_first: bool) -> None:
    files = ["--gin_file", TINY]
    arguments = command.parse([*files, *words] if file_first else [*words, *files])
    resolved = resolve.resolve(arguments.gin_file, arguments.bindings, arguments.allow_unused)
    assert resolved.run.seed == 7


@pytest.mark.parametrize(
    "words",
    [
        ["--gin_file", "a.gin", "--gin_file", "b.gin"],
        ["--gin_file=a.gin", "--gin_file=b.gin"],
        ["gin_file=a.gin", "gin_file=b.gin"],
        ["gin_file=a.gin", "--gin_file", "b.gin"],
        ["--gin_file", "a.gin", "run.split=pool", "gin_file=b.gin"],
        ["--gin_param", "gin_file=a.gin", "--allow_unused", "x", "gin_file=b.gin"],
    ],
    ids=" ".join,
)
def test_spellings_of_a_file_keep_their_order(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file("a.gin", "run.seed = 1", "run.arm = 'a'")
    Path("b.gin").write_text("run.seed = 2\n")
    arguments = command.parse(words)
    assert arguments.gin_file == ["a.gin", "b.gin"]
    resolved = resolve.resolve(arguments.gin_file, arguments.bindings, arguments.allow_unused)
    assert (resolved.run.seed, resolved.run.arm) == (2, "a")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("run.arm=plain", "plain"),
        ("run.arm='quoted'", "quoted"),
        ("run.arm=two words", "two words"),
        ("run.arm=path/to-a.b", "path/to-a.b"),
        ("run.arm=~/runs/a_1", "~/runs/a_1"),
        ("run.arm=1e-3x", "1e-3x"),
        ("run.arm=a=b", "a=b"),
        ("run.arm=größer", "größer"),
        ("webdataset.pool=shards/pool-{00000..00003}.tar", "shards/pool-{00000..00003}.tar"),
        ("webdataset.pool=shards/{a,b}/[0-9].tar::c.tar", "shards/{a,b}/[0-9].tar::c.tar"),
        ("huggingface.pool=pairs.parquet:train[:100]", "pairs.parquet:train[:100]"),
        ("run.split=pool[top=0.5, by=column:similarity]", "pool[top=0.5, by=column:similarity]"),
        ("run.seed=12", 12),
        ("run.budget=4e9", 4e9),
        ("run.budget=None", None),
        ("run.reference=('a.gin', 'run.seed=1')", ("a.gin", "run.seed=1")),
        ("model.image_options={'depth': 2}", {"depth": 2}),
        ("log.progress=False", False),
    ],
)
def test_values_on_the_command_line(text: str, value: object) -> None:
    assert grammar.read_binding(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        "run.arm='a",
        "run.arm=[a",
        "run.arm=@nothing",
        "run.arm=a b]",
        "run.arm=a{b",
        "run.arm={a}",
        "run.arm=",
        "=1",
        "a",
    ],
)
def test_values_that_are_no_string(text: str) -> None:
    with pytest.raises(ConfigError):
        grammar.read_binding(text)


def test_quotes_that_a_shell_took_off_are_named() -> None:
    with pytest.raises(ConfigError, match="put the whole binding into quotes, 'model"):
        grammar.read_binding("model.image_options={depth:2}")


def test_a_pattern_that_a_shell_expanded_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without quotes bash makes a binding of each path: the last alone would be the pool."""
    monkeypatch.chdir(tmp_path)
    words = ["--check", "--gin_file", "gin/run/webdataset.gin"]
    expanded = [f"webdataset.pool=shards/{i}.tar" for i in range(4)]
    assert command.main([*words, *expanded, "webdataset.eval=e.tar"]) == 2
    said = capsys.readouterr().err
    assert "webdataset.pool is bound 4 times in a row, to shards/0.tar … shards/3.tar" in said
    assert "put quotes around the binding ('webdataset.pool=…{…}…')" in said
    apart = [expanded[0], "webdataset.eval=e.tar", expanded[1]]
    assert command.main([*words, *apart]) == 3, "later bindings win: the files are looked for"
    assert "the first is shards/1.tar" in capsys.readouterr().err
    others = ["webdataset.pool=old/0.tar", "webdataset.pool=new/0.tar", "webdataset.eval=e.tar"]
    assert command.main([*words, *others]) == 3
    assert "the first is new/0.tar" in capsys.readouterr().err


def test_the_printed_configuration_is_what_was_bound(run: Run) -> None:
    file("mine.gin", "SEED = 3", "run.seed = %SEED", "run.arm = 'file'", "log.every = 5")
    result = run(
        "--run.arm=mine",
        "--gin_file",
        "mine.gin",
        "--check",
        "--verbose",
        "--gin_param",
        "log.every=2",
        "SEED=4",
        *QUIET[:2],
    )
    assert (result.status, result.err) == (0, "")
    assert result.value("run.arm") == "'mine'"
    assert result.value("log.every") == "2"
    assert result.value("SEED") == "4"


def test_allow_unused(run: Run) -> None:
    unused = ("jest.chunks=4", "rho_loss.pair_loss=own", "slow/optimizer.clip=2.0")
    argv = ("--gin_file", TINY, "--check", "--verbose", *QUIET)
    expect_said(run(*argv, *unused), "jest.chunks", "rho_loss.pair_loss", "slow/optimizer.clip")
    expect_said(run(*argv, *unused, "--allow_unused", "jest.*"), "rho_loss.pair_loss")
    assert run(*argv, *unused, "--allow_unused", "jest.*", "rho_loss.*", "slow/*").status == 0
    assert run("--allow_unused", "jest.*", "--allow_unused=*", *argv, *unused).status == 0
    # It excuses no misspelling, and binds nothing by accident.
    expect_said(run(*argv, "jest.chunk=4", "--allow_unused", "jest.*"), "did you mean 'chunks'?")
    result = run(*argv, "--allow_unused", "jest.*", "run.seed=9", "jest.chunks=4")
    assert result.value("run.seed") == "9"


def test_a_scoped_binding_overrides_the_plain_one(run: Run) -> None:
    file("mine.gin", "run.optimizer = @slow/optimizer()", "slow/optimizer.learning_rate = 1e-4")
    result = run("--gin_file", "mine.gin", "--check", "--verbose")
    assert result.status == 0, result.err
    assert "slow/optimizer.learning_rate = 0.0001" in result.out


def test_includes_are_relative_to_the_including_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "there/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "there" / "deep" / "part.gin").write_text("run.seed = 5\n")
    (tmp_path / "here" / "part.gin").write_text("run.seed = 6\n")
    (tmp_path / "there" / "mine.gin").write_text(f'include "{TINY}"\ninclude "deep/part.gin"\n')
    (tmp_path / "there" / "other.gin").write_text(f'include "{TINY}"\ninclude "../here/part.gin"\n')
    (tmp_path / "there" / "reference.gin").write_text(f'include "{TINY}"\nrun.arm = "beside"\n')
    (tmp_path / "there" / "jest.gin").write_text('run.policy = "jest"\nrun.reference = "reference.gin"\n')
    for cwd in (tmp_path, tmp_path / "here", Path("/")):
        monkeypatch.chdir(cwd)
        assert run("--gin_file", str(tmp_path / "there" / "mine.gin"), "--check", "--verbose").value("run.seed") == "5"
        assert run("--gin_file", str(tmp_path / "there" / "other.gin"), "--check", "--verbose").value("run.seed") == "6"
        result = run("--gin_file", TINY, "--gin_file", str(tmp_path / "there" / "jest.gin"), "--check", "--verbose")
        assert "# arm 'beside'" in result.out


# --check


@pytest.fixture
def nothing_happens(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """No training, no fetching, and a function that says whether anything was written."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("this must not happen")

    cache = tmp_path_factory.mktemp("empty-cache")
    monkeypatch.setenv("JESTBENCH_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_run, "train_run", forbidden)
    monkeypatch.setattr(Icons, "prepare", forbidden)
    watched = (tmp_path, cache, GIN, ROOT / "runs")
    before = snapshot(*watched)

    def check() -> None:
        assert snapshot(*watched) == before

    return check


AS_PUBLISHED = {"cc3m", "datacomp_small", "cc3m_reference", "datacomp_small_reference"}
"""Run files of towers that a check on a CPU takes minutes for: they are checked with small ones."""
CHECKED = [path for path in RUN_FILES if path.stem != "siglip2_stage"]  # that one: tests/engine/test_starts.py


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.stem)
def test_check_of_every_run_file(run: Run, path: Path, nothing_happens: Callable[[], None]) -> None:
    small = ["--gin_file", "gin/model/clip_tiny.gin", "model.image_mean=None", "model.image_std=None"]
    words = [*small, "webdataset.image_size=32"] if path.stem in AS_PUBLISHED else []
    result = run("--gin_file", str(path), *words, "--check", "--verbose", "run.device=cpu")
    assert (result.status, result.err) == (0, "")
    assert result.value("run.device") == "'cpu'"
    nothing_happens()


@pytest.mark.parametrize("path", POLICY_FILES, ids=lambda path: path.stem)
def test_check_of_every_policy_file(run: Run, path: Path, nothing_happens: Callable[[], None]) -> None:
    words = tiny_stands(path, "run.device=cpu", "log.progress=False")
    result = run(
        "--gin_file", "gin/run/tiny.gin", "--gin_file", str(path), "--check", "--verbose", *words, *columns_for(path)
    )
    assert (result.status, result.err) == (0, "")
    assert result.value("run.arm") != "''"
    twins = result.value("run.twin") == "True"
    assert result.out.count("# arm 'tiny_") == (2 if twins else len(words))
    nothing_happens()


def test_every_policy_file_binds_its_label() -> None:
    labels = [grammar.read_file(path) for path in POLICY_FILES]
    arms = [binding.value for bindings in labels for binding in bindings if binding.key == "run.arm"]
    assert len(arms) == len(set(arms)) == len(POLICY_FILES)


@pytest.mark.parametrize("mode", ["--check", "--price"])
def test_pretrained_weights_are_not_fetched(
    run: Run, mode: str, monkeypatch: pytest.MonkeyPatch, nothing_happens: Callable[[], None]
) -> None:
    asked = []
    build = timm.create_model

    def create(*args: Any, **options: Any) -> object:
        asked.append(options["pretrained"])
        return build(*args, **options | {"pretrained": False})

    monkeypatch.setattr(timm, "create_model", create)
    words = ("run.policy=jest", "run.reference=('gin/run/tiny_reference.gin','model.pretrained=True')")
    result = run("--gin_file", TINY, "model.pretrained=True", *words, mode)
    assert result.status == 0, result.err
    assert asked
    assert not any(asked)
    nothing_happens()


# Runs


@pytest.mark.parametrize("path", POLICY_FILES, ids=lambda path: path.stem)
def test_every_policy_file_runs_in_miniature(run: Run, path: Path) -> None:
    words = small_reference(path)
    words += columns_for(path)
    result = run("--gin_file", TINY, "--gin_file", str(path), *words, *SMALL, "--run_dir", "out")
    assert result.status == 0, result.err
    assert "warning" not in result.err
    assert result.out.splitlines()[-1] == "finished: out"
    found, end = rows_of(Path("out")), summary_of(Path("out"))
    _check_rows(found)
    assert set(end) >= SUMMARY
    last, policy = found[-1], policies.get(end["policy"])
    assert (end["status"], end["arm"], end["seed"]) == ("finished", path.stem, 0)
    assert (end["steps"], end["pairs_seen"], end["pairs_trained"]) == (
        last["step"],
        last["pairs/seen"],
        last["pairs/trained"],
    )
    assert end["flops"]["total"] == last["flops/total"] == 2 * end["macs_total"]
    assert all(end["flops"][purpose] == last[f"flops/{purpose}"] for purpose in PURPOSES)
    added, taken = end["added_to_budget"], end["pretrain_in_budget"]
    assert end["flops"]["total"] >= 3e9 + added - taken > found[-2]["flops/total"]
    assert added == (2e9 if path.stem == "uniform_curated" else 0)
    assert (taken > 0) == path.stem.endswith("_all_in")
    assert set(end["metrics"]) == {key for key in last if key.startswith("eval/")} != set()
    in_training = {"learner"} | ({"online"} if end["flops"]["scorer_train"] else set())
    cascaded = path.stem.startswith("cascade_")
    needs = policy.needs & set(ROLES)
    assert end["pretrain_flops"].keys() == (needs | ({"reference"} if cascaded else set())) - in_training
    assert all(flops >= 2e9 for flops in end["pretrain_flops"].values())
    files = {entry.name for entry in Path("out").iterdir()}
    text = {"config.gin", "operative.gin", "environment.json", "metrics.jsonl", "summary.json"}
    assert files == text | {"checkpoints", "eval", "examples", ".lock"}
    assert [file.stem for file in Path("out/eval").iterdir()] == [str(int(3e9 + added))]
    if not policy.needs or policy.takes_all:
        assert last["pairs/seen"] == last["pairs/trained"]
        assert last["flops/learner_score"] == 0
        assert (last["flops/reference_score"] > 0) == cascaded
    else:
        assert last["pairs/seen"] == (4 if cascaded else 5) * last["pairs/trained"]
        assert (last["flops/learner_score"] > 0) == ("learner" in policy.needs)
        assert (last["flops/reference_score"] > 0) == ("reference" in policy.needs)


def _check_rows(found: list[dict[str, Any]]) -> None:
    assert [row["step"] for row in found] == list(range(len(found)))
    for row in found:
        assert row.keys() >= INTEGERS | {"time/seconds", "flops/eval"}
        assert all(type(row[key]) is int for key in INTEGERS | {"flops/eval"})
        assert row["flops/total"] == sum(row[f"flops/{purpose}"] for purpose in PURPOSES)
        assert all(type(value) in (int, float) for value in row.values())
    for before, after in pairwise(found):
        assert all(before[key] <= after[key] for key in INTEGERS | {"time/seconds", "flops/eval"})
        assert after.keys() >= {"train/loss", "train/learning_rate"}
    assert any(key.startswith("eval/") for key in found[0])
    assert any(key.startswith("eval/") for key in found[-1])


# The halves of a super-batch vary in size, and with them the products of their losses (tests/engine/test_twin.py).
EVENLY_PRICED = [path for path in POLICY_FILES if path.stem != "rho_loss_twin"]
# Shuffled scores, another view and another gain cost what another arm's passes cost: these are slow tests.
ALIKE = re.compile(
    r"\w+_shuffled|acid_h|jest_(lowres|patch|repetition|independent)|(jest|rho_loss)_all_in|dissect_momentum"
)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * bool(ALIKE.fullmatch(path.stem))) for path in EVENLY_PRICED],
    ids=lambda path: path.stem,
)
def test_price_is_what_a_run_is_charged(run: Run, path: Path) -> None:
    argv = ("--gin_file", TINY, "--gin_file", str(path), *small_reference(path), *SMALL, *columns_for(path))
    argv = (*argv, "run.reference_accounting=online", "evaluate.points=1", "run.checkpoints=1", "evaluate.limit=32")
    result = run(*argv, "--price")
    assert (result.status, result.err) == (0, "")
    lines = {
        line.split()[0]: line.split() for line in result.out.splitlines() if line.split()[0] in (*PURPOSES, "total")
    }
    price = {name: int(words[1].replace(",", "")) for name, words in lines.items()}
    bought = re.search(r"buys ([\d,]+) steps, ([\d,]+) pairs seen, ([\d,]+) trained on", result.out)
    assert bought is not None
    assert run(*argv, "--run_dir", "out").status == 0
    found = rows_of(Path("out"))
    for before, after in pairwise(found):
        for purpose in (*PURPOSES, "total"):
            assert after[f"flops/{purpose}"] - before[f"flops/{purpose}"] == price.get(purpose, 0), purpose
    last = found[-1]
    expected = [last["step"], last["pairs/seen"], last["pairs/trained"]]
    assert [int(number.replace(",", "")) for number in bought.groups()] == expected


def test_a_saved_configuration_starts_the_same_run_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    reference = f'include "{GIN}/run/tiny_reference.gin"\nrun.budget = 2e9\nrun.device = "cpu"\n'
    (tmp_path / "mine" / "reference.gin").write_text(reference)
    (tmp_path / "mine" / "jest.gin").write_text('run.policy = "jest"\nrun.reference = "reference.gin"\n')
    label = "a 'quoted' \"label\", " + "long enough to be broken " * 6
    Path("label.gin").write_text(f"run.arm = {label!r}\nSEED = 3\nrun.seed = %SEED\n")
    argv = ("--gin_file", TINY, "--gin_file", "mine/jest.gin", "--gin_file", "label.gin", *SMALL)
    assert run(*argv, "--run_dir", "first").status == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name, text in {"second": "operative.gin", "third": "config.gin"}.items():
        result = run("--gin_file", f"../first/{text}", "--run_dir", name)
        assert result.status == 0, result.err
        for before, after in zip(rows_of(tmp_path / "first"), rows_of(Path(name)), strict=True):
            assert before.pop("time/seconds") >= 0
            assert after.pop("time/seconds") >= 0
            assert before == after
        again = summary_of(Path(name))
        assert again["config_hash"] == summary_of(tmp_path / "first")["config_hash"]
        assert (again["arm"], again["seed"]) == (label, 3)
    assert Path("second/operative.gin").read_text() == (tmp_path / "first" / "operative.gin").read_text()


# The run folder


def test_a_run_folder_is_never_overwritten(run: Run, tmp_path: Path) -> None:
    argv = ("--gin_file", TINY, *SMALL, "--run_dir", "out")
    assert run(*argv).status == 0
    before = snapshot(tmp_path)
    expect_said(run(*argv), "out already holds a run", "--resume")
    expect_said(run(*argv, "run.seed=1"), "out already holds a run")
    expect_said(run(*argv, "run.seed=1", "--resume"), "holds another run", "seed 0", "seed 1")
    expect_said(run(*argv, "optimizer.clip=2.0", "--resume"), "holds another run", "operative.gin")
    result = run(*argv, "--resume")
    assert (result.status, result.out) == (0, "finished: out\n")
    result = run("--run_dir", "out", "--resume")
    assert (result.status, result.out) == (0, "finished: out\n")
    expect_said(run("--gin_file", TINY, *SMALL, "--resume"), "--run_dir")
    assert snapshot(tmp_path) == before


def test_a_folder_is_written_by_one_process(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("--gin_file", TINY, *SMALL, "run.budget=None", "budget.steps=40", "--run_dir", str(tmp_path / "out"))
    folder = RunFolder(tmp_path / "out")
    slow = start("-c", SLOW, *argv)
    wait_for(slow, lambda: folder.last_row().get("step", 0) >= 2)
    holder = f"in use by process {slow.pid} on {socket.gethostname()}, since 20"
    for more in ([], ["--resume"], ["run.seed=1"]):
        expect_said(run(*argv, *more), holder, "choose another --run_dir")
    slow.kill()  # the lock goes with it
    slow.communicate()
    rows = len(rows_of(folder.path))
    assert run(*argv, "--resume").status == 0
    assert len(rows_of(folder.path)) >= rows
    assert summary_of(folder.path)["steps"] == 40
    # A process that is gone, but whose worker still has its lock: the lock is waited for, not for ever.
    monkeypatch.setattr(hold_folder, "DYING_SECONDS", 0.3)
    write_json(folder.path / ".holder.json", {"process": slow.pid, "machine": socket.gethostname(), "since": "2026"})
    with FileLock(folder.path / ".lock"):
        expect_said(run(*argv, "--resume"), f"in use by process {slow.pid}")


def test_a_run_that_died_before_it_began_is_begun_again(run: Run, tmp_path: Path) -> None:
    argv = ("--gin_file", TINY, *SMALL, "--run_dir", "out")
    for resume in ([], ["--resume"]):
        shutil.rmtree("out", ignore_errors=True)
        Path("out").mkdir()
        for name in ("config.gin", "operative.gin", ".environment.json.123.partial", ".lock"):
            (Path("out") / name).write_text("torn")
        assert run(*argv, *resume).status == 0
        assert summary_of("out")["status"] == "finished"
        assert "torn" not in Path("out/operative.gin").read_text()


def test_a_foreign_folder_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("…")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "environment.json").write_text("{")
    (tmp_path / "file").write_text("")
    before = snapshot(tmp_path)
    argv = ("--gin_file", TINY, *SMALL, "--run_dir")
    for resume in ([], ["--resume"]):
        expect_said(run(*argv, "photos", *resume), "photos", "not empty")
        expect_said(run(*argv, "file", *resume), "file", "--run_dir")
        expect_said(run(*argv, "file/below", *resume), "file/below", "--run_dir")
    expect_said(run(*argv, "broken"), "already holds a run")
    expect_said(run(*argv, "broken", "--resume"), "environment.json")
    expect_said(run("--run_dir", "nowhere", "--resume"), "nowhere/operative.gin")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("wrong", ["run.budget=1000", "model.image_options={'depth':-1}", "run.device=gpu"])
def test_a_run_that_cannot_be_built_leaves_its_folder_free(run: Run, wrong: str) -> None:
    expect_said(run("--gin_file", TINY, *SMALL, wrong, "--run_dir", "out"))
    assert not Path("out").exists()
    assert run("--gin_file", TINY, *SMALL, "run.budget=1e9", "--run_dir", "out").status == 0


def test_without_run_dir_every_run_gets_a_new_folder(run: Run) -> None:
    argv = ("--gin_file", TINY, *QUIET, "run.budget=1e9", "run.arm=a/b c")
    for _ in range(2):
        assert run(*argv).status == 0
    folders = list(Path("runs").iterdir())
    assert len(folders) == 2
    assert all(folder.name.startswith("a-b-c-seed0-") for folder in folders)


@pytest.mark.parametrize("policy", ["uniform", "hard_learner"])
def test_a_loss_that_is_not_finite_is_status_4_and_names_the_step(run: Run, policy: str) -> None:
    wild = ("optimizer.learning_rate=1e30", "optimizer.warmup=0.0", f"run.policy={policy}")
    result = run("--gin_file", TINY, *SMALL, *wild, "--run_dir", "out")
    expect_said(result, "step 1", "optimizer.learning_rate", status=4)
    assert summary_of(Path("out"))["status"] == "failed"
    assert [row["step"] for row in rows_of(Path("out"))] == [0, 1]


def test_flat_configuration_is_plain() -> None:
    flat: Mapping[str, Any] = resolve.resolve([TINY], ["run.policy=hard_learner"]).flat
    assert json.loads(json.dumps(flat)) == flat
    assert flat["run.batch_size"] == 32
