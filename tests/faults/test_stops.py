"""A request to stop is kept in every phase: status 130 soon, nothing new begun, and the run goes on exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fault_rows import fault
from helpers import ROOT, outcome, own_surroundings, small_world, summary_of

import jestbench.launch.train_run
from jestbench.compare.report import main as compare_main
from jestbench.config import resolve
from jestbench.data.super_batches import SuperBatches
from jestbench.data.synthetic import Synthetic
from jestbench.launch.command import main
from jestbench.loop import Stages
from jestbench.parallel import stop
from jestbench.runs import checkpoint
from jestbench.runs.checkpoint import Place
from jestbench.runs.folder import RunFolder
from jestbench.runs.recorder import Recorder

REFERENCE = f'run.reference=("{ROOT}/gin/run/tiny_reference.gin", "run.budget=1e9", "run.checkpoints=4")'
JEST = [
    *("--gin_file", str(ROOT / "gin/run/tiny.gin"), "--gin_file", str(ROOT / "gin/policy/jest.gin"), REFERENCE),
    *(*small_world(8, 24), "run.budget=None", "budget.steps=6", "run.checkpoints=3", "evaluate.points=3"),
    *("wandb.mode=disabled",),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with own_surroundings(tmp_path_factory):
        yield Path(os.environ["JESTBENCH_CACHE"])


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The run that nothing happens to, and what it leaves."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*JEST, "--run_dir", str(folder)]) == 0
    return outcome(folder)


class Asked:
    """Asks this process to stop at the n-th call of a function, and counts the steps that begin after that."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str, call: int = 1, number: int = signal.SIGTERM):
        self.calls = self.steps_after = 0
        self.at: float | None = None
        work, update = getattr(owner, name), Stages.update

        def asking(*given: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == call:
                self.at = time.monotonic()
                os.kill(os.getpid(), number)
            return work(*given, **named)

        def counted(*given: Any) -> Any:
            self.steps_after += self.at is not None
            return update(*given)

        patch.setattr(Stages, "update", counted)
        patch.setattr(owner, name, asking)


TRAIN = jestbench.launch.train_run
BEFORE_THE_ARM: dict[str, tuple[Any, str, int]] = {
    "the configuration is read": (resolve, "resolve", 1),
    "data is prepared": (Synthetic, "prepare", 1),
    "the folder is opened": (TRAIN, "open_folder", 1),
    "the reference's folder is opened": (TRAIN, "open_folder", 2),
    "the reference is trained": (SuperBatches, "at", 2),
    "the reference's last step": (SuperBatches, "at", 3),
    "the reference's summary": (TRAIN, "_end", 1),
    "between reference and arm": (TRAIN, "castings_of", 2),
}
"""Phases, each by the call of a function in which the request comes; the reference has three steps."""
ALIKE = {"data is prepared", "the reference's folder is opened", "the reference is trained", "the reference's summary"}
OF_THE_ARM: dict[str, tuple[Any, str, int]] = {
    "the arm is built": (TRAIN, "build_stages", 1),
    "the first evaluation": (Recorder, "_evaluate", 1),
    "the first step": (SuperBatches, "at", 1),
    "a step": (SuperBatches, "at", 4),
    "an evaluation": (Recorder, "_evaluate", 2),
    "a checkpoint": (checkpoint, "write", 3),
}


def without_paths(found: tuple[Any, ...]) -> tuple[Any, ...]:
    rows, summary, name, weights = found
    references = [{**entry, "run_dir": ""} for entry in summary["references"]]
    return rows, {**summary, "references": references}, name, weights


def stopped(words: Sequence[str], run_dir: Path, phase: tuple[Any, str, int]) -> Asked:
    """The run up to a request in this phase."""
    with pytest.MonkeyPatch.context() as patch:
        asked = Asked(patch, *phase)
        assert main([*words, "--run_dir", str(run_dir)]) == 130
    assert asked.at is not None
    assert time.monotonic() - asked.at < 5
    assert asked.steps_after <= 1
    return asked


@fault(
    "stops", "SIGTERM before the arm's first step (start, preparation, reference, its last step)", "status 130 at once"
)
@pytest.mark.parametrize(
    "phase", [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in BEFORE_THE_ARM]
)
def test_a_stop_before_the_arm(
    whole: tuple[Any, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    run_dir = tmp_path / "run"
    stopped(JEST, run_dir, BEFORE_THE_ARM[phase])
    assert capfd.readouterr().err.splitlines()[-1] == "interrupted; go on with --resume"
    if phase not in ("the configuration is read",):
        assert summary_of(run_dir)["status"] == "interrupted"
        assert summary_of(run_dir)["steps"] == 0
        assert not RunFolder(run_dir).metrics_jsonl.exists()
    assert main([*JEST, "--run_dir", str(run_dir), "--resume"]) == 0
    assert without_paths(outcome(run_dir)) == without_paths(whole)


@fault("stops", "SIGTERM in a step, a checkpoint, the start of an arm", "the step and its checkpoint are finished; 130")
@pytest.mark.parametrize("phase", OF_THE_ARM)
def test_a_stop_in_the_arm(whole: tuple[Any, ...], tmp_path: Path, phase: str) -> None:
    run_dir = tmp_path / "run"
    stopped(JEST, run_dir, OF_THE_ARM[phase])
    assert summary_of(run_dir)["status"] == "interrupted"
    newest = RunFolder(run_dir).newest_checkpoint()
    if "step" in phase or phase in ("a checkpoint", "an evaluation"):
        assert newest is not None
        assert Place.of(newest).step == summary_of(run_dir)["steps"], "nothing is computed again"
    assert main([*JEST, "--run_dir", str(run_dir), "--resume"]) == 0
    assert outcome(run_dir) == whole


@fault(
    "stops",
    "SIGTERM in an evaluation that takes long",
    "it is left after 4 s; 130",
    "the steps since the last checkpoint, exactly",
)
def test_a_long_evaluation_is_left(whole: tuple[Any, ...], tmp_path: Path) -> None:
    run_dir, evaluate = tmp_path / "run", Recorder._evaluate

    def slowly(self: Recorder, progress: Any) -> dict[str, float]:
        time.sleep(20 if progress.step else 0)
        return evaluate(self, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "_evaluate", slowly)
        patch.setattr(stop, "SOON_SECONDS", 0.3)
        asked = stopped(JEST, run_dir, (Recorder, "_evaluate", 2))
    assert asked.steps_after == 0
    assert summary_of(run_dir)["status"] == "interrupted"
    assert main([*JEST, "--run_dir", str(run_dir), "--resume"]) == 0
    assert outcome(run_dir) == whole


AT_IMPORT = """
import os, signal, sys
class Finder:
    left = int(sys.argv[1])
    def find_spec(self, name, path=None, target=None):
        Finder.left -= 1
        if Finder.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
__file__, sys.argv = "tools/run.py", ["tools/run.py", *sys.argv[2:]]
exec(compile(open(__file__).read(), __file__, "exec"))
"""
"""Asks to stop at the n-th import from the first statement of tools/run.py on."""


@fault("stops", "SIGTERM while modules are imported, from the first statement of `tools/run.py` on", "130, no folder")
@pytest.mark.parametrize("imports", [1, 60, 1500])
def test_a_stop_from_the_first_statement_on(tmp_path: Path, imports: int) -> None:
    words = ["-c", AT_IMPORT, str(imports), *JEST, "--run_dir", str(tmp_path / "run")]
    begin = time.monotonic()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
    assert time.monotonic() - begin < 30


@fault("stops", "a second SIGTERM while the first one is waited for", "the process is killed", "as for a kill")
def test_a_second_request_kills(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            with stop.STOP.handled(), stop.STOP.ending("after"):
                stop._SAME_SECONDS = 0.0
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(20)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_signals_are_their_owners_again_after_a_command(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    assert main(["--list_policies"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)] == before


def test_a_run_that_was_stopped_at_its_start_is_left_out_of_a_comparison(
    whole: tuple[Any, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in (("whole", JEST), ("cut", [*JEST, "run.seed=1"])):
        if name == "cut":
            stopped(words, tmp_path / name, (TRAIN, "build_stages", 1))
        else:
            assert main([*words, "--run_dir", str(tmp_path / name)]) == 0
    out = ["--metric", "zero_shot_top5", "--baseline", "jest", "--out", str(tmp_path / "out")]
    assert compare_main([str(tmp_path / "whole"), str(tmp_path / "cut"), *out]) == 0
    assert "interrupted" in (tmp_path / "out" / "comparison.md").read_text()
