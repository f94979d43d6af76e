"""What a command imports before it answers, how long that takes, and how it ends."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jestbench.batch import DataError
from jestbench.config.run import ConfigError
from jestbench.cost.tracing import UnknownOperator
from jestbench.engine.learner import NonFiniteLoss
from jestbench.launch.command import guarded, importing, new_run_dir
from jestbench.runs.open_folder import RunFolderError
from jestbench.runs.saved_model import ForeignCheckpoint
from jestbench.select import PolicyError

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


COMMAND = "from jestbench.launch.command import main; assert main(['{}']) == 0"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        (COMMAND.format("--help"), "torch gin wandb timm numpy policies"),
        (COMMAND.format("--list_policies"), "gin wandb timm fvcore scipy.stats"),
        (
            "from jestbench.launch.run_evaluate import main; assert main(['--help']) == 0",
            "torch gin wandb timm numpy policies",
        ),
        ("import jestbench", "torch gin wandb timm numpy policies"),
        ("import jestbench.batch; from jestbench import Embeddings, Scores", "gin wandb timm policies"),
        ("import jestbench.disk", "torch"),
        ("import jestbench.data.icons.icon_render", "torch"),
        ("import jestbench.launch.rehearse, jestbench.sweep.run_sweep", "fvcore scipy.stats"),
    ],
)
def test_what_is_not_needed_is_not_imported(code: str, heavy: str) -> None:
    run("-c", f"import sys\n{code}\nheavy = set({heavy.split()!r}) & set(sys.modules)\nassert not heavy, heavy")


def test_help_is_answered_at_once() -> None:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        done = run("tools/run.py", "--help")
        taken.append(time.perf_counter() - start)
        assert "--gin_file" in done.stdout
        assert not done.stderr
    assert min(taken) < 2


def spent(*words: str) -> float:
    """Seconds on all cores, the best of three: waiting for a core on a busy machine is no one's fault."""
    found = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(*words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


@pytest.mark.slow
def test_a_command_starts_about_as_fast_as_torch_and_timm() -> None:
    limit = spent("-c", "import torch, timm") + 1.5
    assert spent("tools/run.py", "--help") < 0.2
    assert spent("tools/run.py", "--list_policies") < limit
    assert spent("tools/run.py", "--gin_file", "gin/run/tiny.gin", "--check") < limit
    assert spent("tools/sweep.py", "--dry_run", "gin/sweep/tiny.yaml") < limit


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError, 2),
        (RunFolderError, 2),
        (PolicyError, 2),
        (UnknownOperator, 2),
        (DataError, 3),
        (ForeignCheckpoint, 3),
        (NonFiniteLoss, 4),
        (KeyboardInterrupt, 130),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_a_status(
    error: type[BaseException], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        raise error("what to do")

    assert guarded(work) == status
    said = capsys.readouterr().err
    assert said == ("interrupted; go on with --resume\n" if status == 130 else "error: what to do\n")


def test_two_runs_that_start_in_one_second_have_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    assert len({new_run_dir("jest", 0) for _ in range(3)}) == 3


def test_any_other_exception_keeps_its_traceback() -> None:
    class Foreign(Exception):
        status = 404

    def work() -> int:
        raise Foreign

    with pytest.raises(Foreign):
        guarded(work)


def test_garbage_is_collected_after_the_imports() -> None:
    with importing():  # torch is there: a process that has lived is left as it is
        assert gc.isenabled()
    code = "with importing():\n    assert not gc.isenabled()\nassert gc.isenabled() and gc.get_freeze_count()"
    run("-c", f"import gc\nfrom jestbench.launch.command import importing\n{code}")
