"""Policies that misbehave while a run goes on: named with their step, a checkpoint before it, exact resumption."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import pytest
import torch
from fault_rows import fault
from helpers import outcome, own_surroundings, small_world, start, summary_of
from hypothesis import given, settings
from hypothesis import strategies as st

import policies
from jestbench.batch import DataError, Selection
from jestbench.launch.command import main
from jestbench.select import Scores, gumbel_top_k
from jestbench.select.contract import PolicyError, PolicyFailure
from jestbench.select.policy import choose, initial_state
from policies import registry

COUNT, SIZE = 3, 5
FINE = torch.tensor([0, 2, 4])
Misdeed = Callable[[Scores, int, torch.Generator], Any]


def fine(scores: Scores, count: int, generator: torch.Generator) -> Selection:
    return Selection(torch.randperm(len(scores), generator=generator)[:count], {"select/steps": 1.0})


@dataclasses.dataclass(frozen=True)
class Moody:
    """Takes an even draw, but for one step (count of its calls), in which it does something else."""

    needs: ClassVar[frozenset[str]] = frozenset({"learner", "reference"})
    prefers: ClassVar[Mapping[str, int]] = {}
    cosine_only: ClassVar[bool] = False
    by_parts: ClassVar[bool] = False
    misdeed: ClassVar[Misdeed] = staticmethod(fine)
    at: ClassVar[int] = -1

    def initial_state(self) -> Any:
        return {"calls": 0}

    def select(self, scores: Scores, count: int, generator: torch.Generator, *, state: Any) -> Any:
        if state["calls"] == type(self).at:
            return type(self).misdeed(scores, count, generator)
        return dataclasses.replace(fine(scores, count, generator), state={"calls": state["calls"] + 1})


class Unprintable:
    def __repr__(self) -> NoReturn:
        raise OSError("no text")


def raising(error: BaseException) -> Misdeed:
    def misdeed(*_: object) -> NoReturn:
        raise error

    return misdeed


def returning(value: Any) -> Misdeed:
    return lambda *_: value


def chosen(index_K: Any = FINE, *more: Any, **others: Any) -> Misdeed:
    return returning(Selection(index_K, *more, **others))


def with_statistic(value: Any, key: Any = "select/mine") -> Misdeed:
    return chosen(FINE, {key: value})


def with_weights(*weights: float) -> Misdeed:
    return chosen(weight_K=torch.tensor(weights))


def leaving(setting: Callable[[], object]) -> Misdeed:
    def misdeed(*given_: Any) -> Selection:
        setting()
        return Selection(FINE)

    return misdeed


def by_nan(scores: Scores, count: int, generator: torch.Generator) -> Selection:
    return Selection(gumbel_top_k(torch.zeros(len(scores)).log() - torch.zeros(len(scores)).log(), count, generator))


def by_too_few(scores: Scores, count: int, generator: torch.Generator) -> Selection:
    return Selection(gumbel_top_k(torch.full((len(scores),), -torch.inf), count, generator))


class Unreadable(Mapping[str, float]):
    def __getitem__(self, key: str) -> float:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(["select/gone"])

    def __len__(self) -> int:
        return 1


BROKEN: dict[str, tuple[Misdeed, str]] = {
    "nothing": (returning(None), "must return a Selection, got NoneType: None"),
    "a tensor": (returning(FINE), r"must return a Selection, got torch.int64 \[3\]"),
    "a tuple": (returning((FINE, {})), "must return a Selection, got tuple"),
    "the class": (returning(Selection), "must return a Selection, got type"),
    "no text": (returning(Unprintable()), "must return a Selection, got .*Unprintable$"),
    "a list of indices": (chosen([0, 2, 4]), r"index_K as an int64 tensor, got list: \[0, 2, 4\]"),
    "numpy indices": (chosen(FINE.numpy()), "index_K as an int64 tensor, got numpy.ndarray"),
    "float indices": (chosen(FINE.float()), "got torch.float32"),
    "a mask": (chosen(torch.ones(SIZE, dtype=torch.bool)), "got torch.bool"),
    "a matrix": (chosen(FINE[None]), r"got torch.int64 \[1, 3\]"),
    "a scalar": (chosen(FINE[0]), r"got torch.int64 \[\]"),
    "too few": (chosen(FINE[:2]), r"got torch.int64 \[2\]"),
    "too many": (chosen(torch.arange(4)), r"got torch.int64 \[4\]"),
    "none": (chosen(FINE[:0]), r"got torch.int64 \[0\]"),
    "twice": (chosen(torch.tensor([1, 1, 2])), "chose a pair twice: 3 chosen, 2 distinct"),
    "negative": (chosen(torch.tensor([0, 1, -1])), "outside the super-batch of 5 pairs: -1"),
    "past the end": (chosen(torch.tensor([0, 1, 5])), "outside the super-batch of 5 pairs: 5"),
    "no values": (chosen(torch.empty(3, dtype=torch.int64, device="meta")), "cannot be read: NotImplementedError"),
    "statistics as a list": (chosen(FINE, [1.0]), r"statistics as a mapping, got list: \[1.0\]"),
    "statistics that fail": (chosen(FINE, Unreadable()), "cannot be read: KeyError"),
    "a text": (with_statistic("much"), "'select/mine' must be a plain number, got str: 'much'"),
    "a tensor statistic": (with_statistic(torch.tensor(1.0)), r"plain number, got torch.float32 \[\]"),
    "a numpy statistic": (with_statistic(np.float32(1)), "plain number, got numpy.float32"),
    "a complex statistic": (with_statistic(1j), "plain number, got complex: 1j"),
    "a huge integer": (with_statistic(10**400), "cannot be read: OverflowError"),
    "NaN": (with_statistic(float("nan")), "= nan must be finite"),
    "a key that is no text": (with_statistic(1.0, 7), "statistic 7 must be"),
    "another's key": (with_statistic(1.0, "train/loss"), "named select/…"),
    "weights as a list": (chosen(weight_K=[1.0, 1.0, 1.0]), "weights are floats"),
    "whole weights": (chosen(weight_K=FINE), r"weights are floats, .* got torch.int64 \[3\]"),
    "complex weights": (chosen(weight_K=torch.ones(3, dtype=torch.complex64)), "weights are floats"),
    "weights of other pairs": (chosen(weight_K=torch.ones(4)), r"\[3\], got torch.float32 \[4\]"),
    "negative weights": (with_weights(1.0, 1.0, -1.0), "not negative.* from -1 to 1"),
    "weights of zero": (with_weights(0.0, 0.0, 0.0), "not all zero; got values from 0 to 0"),
    "infinite weights": (with_weights(1.0, 1.0, float("inf")), "finite.* to inf"),
    "NaN weights": (with_weights(1.0, 1.0, float("nan")), "finite.* nan"),
    "enormous weights": (with_weights(1.0, 1.0, 1e30), r"at most 1e\+12.* to 1e\+30"),
    "scores as a list": (chosen(score_B=[1.0] * SIZE), "score_B must be a tensor"),
    "complex scores": (chosen(score_B=torch.ones(SIZE, dtype=torch.complex64)), "score_B must be a tensor"),
    "scores of the chosen": (chosen(score_B=torch.ones(3)), r"one for each pair \[5\], got \[3\]"),
    "a state of objects": (chosen(state={"model": torch.nn.Linear(1, 1)}), r"state\['model'\] must be a tensor"),
    "a state of numpy": (chosen(state=[np.float64(1)]), r"state\[0\] must be a tensor.* got numpy.float64"),
    "a state of sets": (chosen(state={1, 2}), "state must be .* got set"),
    "a draw by NaN": (by_nan, "NaN or .inf, although the models' scores are finite"),
    "a draw of none": (by_too_few, "cannot draw 3 distinct pairs: 0 of 5"),
    "no gradients": (leaving(lambda: torch.set_grad_enabled(False)), "gradient mode from True to False"),
    "another dtype": (leaving(lambda: torch.set_default_dtype(torch.float64)), "default dtype from torch.float32"),
    "another folder": (leaving(lambda: os.chdir("/")), "the working directory from"),
}


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    """What a misdeed changes for the whole process must not reach the next test, whoever fails."""
    folder = Path.cwd()
    yield
    os.chdir(folder)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


def misbehave(misdeed: Misdeed) -> Selection:
    class Bad(Moody):
        pass

    Bad.misdeed, Bad.at = staticmethod(misdeed), 0
    scores = Scores(values={"g": torch.zeros(SIZE)})
    return choose(Bad(), scores, COUNT, torch.Generator().manual_seed(0), {"calls": 0})


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_contract_is_named_with_what_was_returned(kind: str) -> None:
    misdeed, message = BROKEN[kind]
    folder = Path.cwd()
    with pytest.raises(PolicyError, match=message) as caught:
        misbehave(misdeed)
    assert (type(caught.value), caught.value.exit_status) == (PolicyError, 2)
    assert str(caught.value).startswith("Bad")
    assert (torch.is_grad_enabled(), torch.get_default_dtype(), Path.cwd()) == (True, torch.float32, folder)


RAISED = [
    ZeroDivisionError("division by zero"),
    KeyError("missing"),
    RuntimeError("CUDA error: device-side assert triggered"),
    MemoryError(),
    RecursionError("too deep"),
    StopIteration(),
    SystemExit(0),
    DataError("with a status of its own"),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_an_exception_inside_a_policy_is_its_own_failure(error: BaseException) -> None:
    with pytest.raises(PolicyFailure, match=f"Bad raised {type(error).__name__}") as caught:
        misbehave(raising(error))
    assert caught.value.exit_status == 1
    assert caught.value.__cause__ is error


def test_a_wrong_signature_is_a_failure_and_a_keyboard_interrupt_is_not() -> None:
    with pytest.raises(PolicyFailure, match="positional argument"):
        misbehave(lambda scores: None)  # type: ignore[arg-type, misc]
    with pytest.raises(KeyboardInterrupt):
        misbehave(raising(KeyboardInterrupt()))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-2, SIZE + 1), max_size=SIZE + 1),
    st.none() | st.lists(st.floats(width=32), max_size=COUNT + 1),
    st.dictionaries(st.sampled_from(["select/a", "a"]), st.floats() | st.text(max_size=2) | st.none(), max_size=2),
)
def test_what_passes_is_a_choice(index: list[int], weights: list[float] | None, statistics: dict[str, Any]) -> None:
    """Nothing but a usable choice passes, and every usable choice does."""
    weight_K = None if weights is None else torch.tensor(weights)
    usable = (
        len(index) == len(set(index)) == COUNT
        and all(0 <= one < SIZE for one in index)
        and (weights is None or (len(weights) == COUNT and all(0 <= w <= 1e12 for w in weights) and any(weights)))
        and all(key == "select/a" and isinstance(v, float) and abs(v) < float("inf") for key, v in statistics.items())
    )
    misdeed = chosen(torch.tensor(index, dtype=torch.int64), statistics, weight_K)
    if usable:
        assert misbehave(misdeed).index_K.tolist() == index
    else:
        with pytest.raises(PolicyError):
            misbehave(misdeed)


def test_a_first_state_that_no_checkpoint_can_hold_is_refused() -> None:
    class Bad(Moody):
        def initial_state(self) -> Any:
            return {"seen": set()}

    with pytest.raises(PolicyError, match=r"initial state\['seen'\]"):
        initial_state(Bad())


# In a run


@pytest.fixture(scope="module", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_surroundings(tmp_path_factory, WANDB_MODE="disabled"):
        yield


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> type[Moody]:
    """The policy, registered; as it was defined."""
    policies.available()
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    monkeypatch.setattr(Moody, "at", -1)
    monkeypatch.setattr(Moody, "misdeed", staticmethod(fine))
    return registry.register("moody")(Moody)


COMMAND = ["--gin_file", "gin/run/tiny.gin", *small_world(8, 24), "run.budget=None", "budget.steps=7"]
COMMAND += ["run.policy=moody", "run.reference=gin/run/tiny_reference.gin", "run.arm=moody", "run.checkpoints=2"]


@fault("policies", "an exception inside a policy", "status 1: policy, step and checkpoint, the policy's traceback last")
@fault("policies", "a choice that breaks the contract (47 kinds)", "status 2: policy, step, what it returned")
@pytest.mark.parametrize(
    ("misdeed", "status", "said"),
    [
        (raising(ZeroDivisionError("mine")), 1, "raised ZeroDivisionError: mine"),
        (chosen(FINE), 2, r"int64 indices \[8\], got torch.int64 \[3\]"),
        (leaving(lambda: torch.set_grad_enabled(False)), 2, "gradient mode"),
    ],
    ids=["exception", "wrong count", "no gradients"],
)
def test_a_mended_policy_goes_on_exactly(
    moody: type[Moody],
    misdeed: Misdeed,
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*COMMAND, "--run_dir", str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(moody, "misdeed", staticmethod(misdeed))
    monkeypatch.setattr(moody, "at", 4)
    capsys.readouterr()
    run = [*COMMAND, "--run_dir", str(tmp_path / "run")]
    assert main(run) == status
    err = capsys.readouterr().err
    line = next(line for line in err.splitlines() if line.startswith("error:"))
    assert re.search(f"step 4: policy 'moody': Moody.*{said}.*newest checkpoint is step-0000000004; mend", line)
    assert summary_of(tmp_path / "run")["status"] == "failed"
    if status == 1:
        assert err.rstrip().endswith("ZeroDivisionError: mine")
        shown = re.findall(r'File "([^"]+)"', err)
        assert shown
        assert all(name.endswith("test_policies_at_run_time.py") for name in shown), "the policy's own frames alone"
    else:
        assert "Traceback" not in err
    monkeypatch.setattr(moody, "at", -1)
    assert main([*run, "--resume"]) == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@fault(
    "policies", "a policy that never returns", "status 2 after run.patience minutes: policy, step, newest checkpoint"
)
def test_a_policy_that_never_returns_is_ended(
    moody: type[Moody], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(moody, "misdeed", staticmethod(lambda *_: time.sleep(60)))
    monkeypatch.setattr(moody, "at", 6)
    run = [*COMMAND, "--run_dir", str(tmp_path / "run")]
    begun = time.monotonic()
    assert main([*run, "run.patience=0.01"]) == 2
    assert time.monotonic() - begun < 30
    said = capsys.readouterr().err
    assert re.search(r"step 6: policy 'moody': .*run.patience = 0.01 minutes: its newest checkpoint is step-0+4;", said)
    assert summary_of(tmp_path / "run")["status"] == "failed"
    monkeypatch.setattr(moody, "at", -1)
    assert main([*run, "--resume"]) == 0, "patience is no part of the arm"


STUBBORN = """
import re, sys, torch
from jestbench.select import Scores, patience
from jestbench.select.policy import choose
patience.GRACE_SECONDS, patience._LOOK_SECONDS = 0.2, 0.05
class Stubborn:
    needs, prefers = frozenset(), {}
    def select(self, scores, count, generator):
        while True:
            try:
                sys.stdin.read()
            except Exception:
                pass
choose(Stubborn(), Scores(size=5), 3, torch.Generator(), patience=0.005)
"""


@fault("policies", "a policy that catches its interruption", "the process ends with status 2, policy and limit named")
def test_a_policy_that_cannot_be_interrupted_ends_its_process() -> None:
    process = start("-c", STUBBORN)
    try:
        said = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 2, said
    assert "Stubborn did not return within run.patience = 0.005 minutes, and could not be interrupted" in said


@fault("policies", "jest.gain = 1e38", "status 2: the gain is named, not the learning rate")
@pytest.mark.parametrize("policy", ["jest", "learnability"])
def test_an_enormous_gain_is_blamed_itself(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in COMMAND if not word.startswith(("run.policy", "run.arm"))]
    assert main([*words, f"run.policy={policy}", f"{policy}.gain=1e38", "--run_dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"policy '{policy}'" in said
    assert "gain = 1e+38 makes selection logits infinite" in said
    assert "learning_rate" not in said


@pytest.mark.parametrize("minutes", ["0", "-1", "1e9", "nan"])
def test_a_patience_that_is_no_time_is_refused(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gin_file", "gin/run/tiny.gin", "--check", f"run.patience={minutes}"]) == 2
    assert "run.patience" in capsys.readouterr().err
