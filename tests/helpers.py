"""What several test files need: reading a run's record, killing a run and waiting for one, a model of two blocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from jestbench.batch import FULL
from jestbench.cost.price import Price
from jestbench.data.super_batches import SuperBatchSource
from jestbench.engine.contrastive import Contrastive
from jestbench.engine.learner import Learner
from jestbench.engine.optimizer import Optimizer
from jestbench.launch.command import main
from jestbench.model.image_tower import ImageTower
from jestbench.model.regressor import PairHead
from jestbench.model.text_tower import TextTower
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import Model
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.losses import LossName

ROOT = Path(__file__).resolve().parent.parent


def small_world(batch: int, super_batch: int) -> list[str]:
    """Bindings of a planted world of 100 pairs, for runs that end in seconds and log every step."""
    return [
        f"run.batch_size={batch}",
        f"run.super_batch_size={super_batch}",
        "synthetic.pool=100",
        "synthetic.curated=64",
        "synthetic.holdout=64",
        "synthetic.eval=32",
        "log.every=1",
        "log.progress=False",
        "run.device=cpu",
    ]


@contextmanager
def own_surroundings(factory: pytest.TempPathFactory, **variables: str) -> Iterator[None]:
    """A cache of its own, in which each reference is trained once, and one thread: sums over several may differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"JESTBENCH_CACHE": str(factory.mktemp("cache")), **variables}.items():
            patch.setenv(name, value)
        yield
    torch.set_num_threads(threads)


# What a run has left


def rows_of(run_dir: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def timeless(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what depends on the clock, and on the processes that share a run."""
    return [{key: value for key, value in row.items() if not key.startswith(("time/", "exchange/"))} for row in rows]


def summary_of(run_dir: str | Path) -> dict[str, Any]:
    return json.loads((Path(run_dir) / "summary.json").read_text(encoding="utf-8"))


def final_model(run_dir: Path) -> bytes:
    return (max((run_dir / "checkpoints").glob("step-*")) / "model.safetensors").read_bytes()


def outcome(run_dir: Path) -> tuple[Any, ...]:
    """All that a run must reproduce, the final model to the last bit."""
    summary = {key: value for key, value in summary_of(run_dir).items() if key != "seconds"}
    final = max((run_dir / "checkpoints").glob("step-*"))
    return timeless(rows_of(run_dir)), summary, final.name, final_model(run_dir)


class Passes:
    """Examples through every tower and head of the process, counted by forward hooks on all modules."""

    def __init__(self) -> None:
        self.examples: dict[tuple[nn.Module, bool], int] = {}
        self.example: dict[nn.Module, Tensor] = {}

    def __enter__(self) -> Passes:
        self._handle = register_module_forward_hook(self._count)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, ImageTower | TextTower | PairHead) and torch._C._get_tracing_state() is None:
            key = (module, torch.is_grad_enabled())
            self.examples[key] = self.examples.get(key, 0) + len(inputs[0])
            self.example[module] = inputs[0][:1].clone()

    def by_type(self) -> Counter[tuple[type, bool]]:
        """Examples by the module's type, and whether there was a gradient."""
        found: Counter[tuple[type, bool]] = Counter()
        for (module, gradient), count in self.examples.items():
            found[type(module), gradient] += count
        return found


# Kills


class Killed(BaseException):
    """Stands for a kill between two statements: nothing catches it."""


def kill_before(step: int, command: Sequence[str]) -> None:
    """Start a run in this process, and end it as it asks for the super-batch of a step."""
    at = SuperBatchSource.at

    def dying(self: SuperBatchSource, asked: int) -> Any:
        if asked == step:
            raise Killed
        return at(self, asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SuperBatchSource, "at", dying)
        with pytest.raises(Killed):
            main(command)


SLOW = """
import sys, time
from jestbench.launch.command import main
from jestbench.runs import recorder
step = recorder.Recorder.step
def slow(self, *args):
    step(self, *args)
    time.sleep(0.1)
recorder.Recorder.step = slow
sys.exit(main(sys.argv[1:]))
"""
"""A real process that takes its time after each step, so that it is met in mid-run."""


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    for _ in range(20_000):
        if ready():
            return
        assert process.poll() is None, f"ended too early: {process.communicate()[1]}"
        time.sleep(0.01)
    process.kill()
    pytest.fail("the run did not get that far")


# A small model

CPU = Arithmetic(torch.device("cpu"), False)
SHAPE = Model(
    image_size=16,
    patch_size=8,
    image_options={"embed_dim": 16, "depth": 1, "num_heads": 2},
    embed_dim=8,
    text_width=16,
    text_layers=1,
    text_heads=2,
)


def small_learner(tokenizer: Tokenizer, loss: LossName) -> Learner:
    """A learner that has not learned anything, at a price that is easy to multiply by."""
    return Learner(SHAPE.build(tokenizer, loss, 0), Contrastive(loss), Optimizer(), CPU, {FULL: Price(1000, 10)})
