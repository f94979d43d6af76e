"""Runs on a pretended CUDA device: no devices are mixed, the FLOPs are a CPU's, and the host seldom waits.

What only a GPU shows (kernels, streams, memory, seconds) is measured by ``tools/bench.py gpu``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers import SHAPE, kill_before, own_surroundings, rows_of, small_learner, summary_of, timeless
from pretended_device import CUDA, DeviceMixed, Pretended

from jestbench.batch import Batch
from jestbench.bench.arms import arms, tiny
from jestbench.engine.contrastive import Contrastive
from jestbench.engine.learner import Learner
from jestbench.engine.measured import NonFiniteLoss
from jestbench.launch.command import main
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.runs.recorder import Recorder
from jestbench.select import Remembered, Trained
from jestbench.select.remembering import learn

SIZES = [
    *("run.batch_size=8", "run.super_batch_size=24", "synthetic.pool=150", "synthetic.curated=64"),
    *("synthetic.eval=32", "evaluate.points=1", "run.checkpoints=1", "loader.workers=0"),
    *("log.every=1000", "log.progress=False", "wandb.mode=disabled"),
]
STEPS = ["run.budget=None", "budget.steps=3"]
# What differs from another arm by a switch of the budget or of the scores alone is left out.
ARMS = [name for name in arms() if not name.endswith(("_all_in", "_shuffled"))]
WAITS = ("read", "to host: blocking")
ENGINE_WAITS = {"active_clip": 4, "rho_loss_twin": 6}
"""Waits a step of the engine where more than two models are read: by default 4, of a policy that scores nothing 0."""
# What is remembered of each pair lies on the host, so a step carries it to the device: one copy of B values a number.
ENGINE_COPIES = {"dissect": 1, "dissect_momentum": 1, "jest_repetition": 1}
"""Copies from pageable memory a step of the engine, of an arm that remembers: one of each number; by default 0."""
WORDS = {"column": ["synthetic.columns=('similarity',)"]}
"""What an arm needs of the tiny world."""


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_surroundings(tmp_path_factory, JESTBENCH_FUSED="0"):
        yield


class CountedSteps:
    """What each step of a run has copied and waited for, by kind and line; without logging and evaluation."""

    def __init__(self, gpu: Pretended, patch: pytest.MonkeyPatch) -> None:
        self.gpu, self.steps, self._before = gpu, list[Counter[tuple[str, str]]](), Counter[tuple[str, str]]()
        start, step = Recorder.start, Recorder.step

        def starting(recorder: Recorder, *more: Any) -> None:
            start(recorder, *more)
            self.steps.clear()  # of the models that the run stands on
            self._before = Counter(gpu.counts)

        def stepping(recorder: Recorder, *more: Any) -> None:
            self.steps.append(Counter(gpu.counts) - self._before)
            step(recorder, *more)
            self._before = Counter(gpu.counts)

        patch.setattr(Recorder, "start", starting)
        patch.setattr(Recorder, "step", stepping)

    def of(self, step: int, kinds: tuple[str, ...], room: str = "jestbench/", but: str = "nothing") -> int:
        """How many of these kinds a step has caused from the lines of a room."""
        return sum(
            count
            for (kind, line), count in self.steps[step].items()
            if kind.startswith(kinds) and line.startswith(room) and but not in line
        )


def flops(run_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k.startswith(("flops/", "pairs/"))} for row in rows_of(run_dir)]


# One arm of each mechanism; the slow tests have every shipped arm.
FEW = {
    "jest",
    "flexi_jest",
    "rho_loss_twin",
    "active_clip",
    "cappy",
    "cascade_jest",
    "grad_norm",
    "infobatch",
    "dissect",
}
EVERY = [arm if arm in FEW else pytest.param(arm, marks=pytest.mark.slow) for arm in ARMS]


def test_the_few_arms_are_shipped() -> None:
    assert set(ARMS) >= FEW


@pytest.mark.parametrize("arm", EVERY)
def test_an_arm_on_the_device_is_charged_as_on_a_cpu_and_seldom_waits(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = ["run.budget=1e9"] if arm == "uniform_curated" else STEPS  # its budget must be in FLOPs
    words = [*tiny(arm, 1.5e9), *SIZES, *budget, *WORDS.get(arm, [])]
    assert main([*words, "run.device=cpu", "--run_dir", str(tmp_path / "cpu")]) == 0
    with Pretended() as gpu:
        counted = CountedSteps(gpu, monkeypatch)
        assert main([*words, "run.device=cuda", "--run_dir", str(tmp_path / "cuda")]) == 0
    assert gpu.ops > 500, "the models did not run on the device"
    assert flops(tmp_path / "cuda") == flops(tmp_path / "cpu")
    assert summary_of(tmp_path / "cuda")["flops"] == summary_of(tmp_path / "cpu")["flops"]
    selects = "uniform" not in arm or "cascade" in arm
    assert counted.of(1, WAITS, but="select/") <= (ENGINE_WAITS.get(arm, 4) if selects else 0), gpu.report()
    assert counted.of(1, ("to device: pageable",), but="select/") <= ENGINE_COPIES.get(arm, 0), gpu.report()
    assert counted.of(1, (*WAITS, "to device: pageable"), room="") <= 160, gpu.report()


def test_what_a_policy_has_kept_lies_on_the_device_of_the_losses_that_it_learns_from() -> None:
    """As what ``select`` is given does; a checkpoint, and the memory, bring it back on the CPU."""

    @dataclass(frozen=True)
    class Mean:
        remembers: ClassVar[tuple[str, ...]] = ("loss",)

        def learn(self, trained: Trained, state: Remembered) -> Remembered:
            risen_K = trained.loss_K - state.memory["loss"]
            return Remembered(float(state.state["mean"] + risen_K.mean()), {"loss": risen_K})

    before = Remembered({"mean": torch.ones(1)}, {"loss": torch.ones(2)})
    with Pretended():
        after = learn(Mean(), Trained(*(torch.tensor([3.0, 5.0]).to("cuda") for _ in range(2))), before)
    assert after.state == 4.0
    assert after.memory["loss"].tolist() == [2.0, 4.0]


def test_a_step_over_micro_batches_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*tiny("uniform_flexi"), *SIZES, *STEPS, "run.train_microbatch=2", "run.grad_checkpointing=True"]
    assert main([*words, "run.device=cpu", "--run_dir", str(tmp_path / "cpu")]) == 0
    with Pretended() as gpu:
        counted = CountedSteps(gpu, monkeypatch)
        assert main([*words, "run.device=cuda", "--run_dir", str(tmp_path / "cuda")]) == 0
    assert flops(tmp_path / "cuda") == flops(tmp_path / "cpu")
    assert flops(tmp_path / "cuda")[-1]["flops/recompute"] > 0
    assert counted.of(1, (*WAITS, "to device: pageable")) == 0, gpu.report()
    assert counted.of(1, ("to device: pinned",)) >= 16, "8 micro-batches of images and texts, twice"


def test_a_run_goes_on_from_a_checkpoint_on_the_device_and_of_a_cpu(tmp_path: Path) -> None:
    words = [*tiny("hard_learner"), *SIZES, *STEPS, "run.checkpoints=3", "run.precision=fp32"]
    with Pretended():
        assert main([*words, "run.device=cuda", "--run_dir", str(tmp_path / "whole")]) == 0
        kill_before(2, [*words, "run.device=cuda", "--run_dir", str(tmp_path / "cut")])
        assert main([*words, "run.device=cuda", "--run_dir", str(tmp_path / "cut"), "--resume"]) == 0
    assert timeless(rows_of(tmp_path / "cut")) == timeless(rows_of(tmp_path / "whole"))
    kill_before(2, [*words, "run.device=cpu", "--run_dir", str(tmp_path / "moved")])
    with Pretended():
        assert main([*words, "run.device=cuda", "--run_dir", str(tmp_path / "moved"), "--resume"]) == 0
    assert flops(tmp_path / "moved") == flops(tmp_path / "whole")


@pytest.mark.parametrize(("every", "tables"), [(1, 0), (1000, 0), (1000, 3)])
def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(
    every: int, tables: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether the step is logged at once, by a row or a table of examples, or read only when the next one is taken."""
    loss, calls = Contrastive.loss, iter(range(100))

    def spoilt(self: Contrastive, *more: Any) -> Any:
        value, carry_on = loss(self, *more)
        return (value * torch.nan if next(calls) == 1 else value), carry_on

    monkeypatch.setattr(Contrastive, "loss", spoilt)
    with Pretended():
        words = [*tiny("uniform"), *SIZES, f"log.every={every}", *STEPS, f"log.examples={tables}"]
        assert main([*words, "run.device=cuda", "--run_dir", str(tmp_path / "run")]) == 4
    assert "step 1: the loss is nan" in capsys.readouterr().err
    assert summary_of(tmp_path / "run")["status"] == "failed"
    assert all(row.get("train/loss", 0) == row.get("train/loss", 0) for row in rows_of(tmp_path / "run"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_bpe(["a red cat", "a blue dog"] * 3, 300).to_str(), 4)


def pairs_of(tokenizer: Tokenizer, count: int = 6) -> Batch:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=random)
    ids = tokenizer.encode((["a red cat", "a blue dog"] * count)[:count])
    return Batch(images, {tokenizer.identity: ids}, torch.arange(count), torch.arange(count))


def test_a_step_that_is_not_finite_changes_no_parameter_on_the_device(tokenizer: Tokenizer) -> None:
    batch = pairs_of(tokenizer)
    with Pretended():
        model = SHAPE.build(tokenizer, "softmax", 0)
        plain = small_learner(tokenizer, "softmax")
        learner = Learner(model, plain.objective, plain.schedule, Arithmetic(CUDA, False), plain.prices)
        learner.update(batch, None, 0.5, 0)
        before = {name: value.cpu().clone() for name, value in learner.model.state_dict().items()}
        wrong = learner.update(batch, torch.full((6,), torch.nan), 0.5, 1)
        assert all(torch.equal(v.cpu(), before[name]) for name, v in learner.model.state_dict().items())
        with pytest.raises(NonFiniteLoss, match="the loss is nan"):
            _ = wrong.loss
        with pytest.raises(NonFiniteLoss, match="the loss is nan"):
            learner.state_dict()


def test_tensors_of_two_devices_are_refused() -> None:
    with Pretended():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device == CUDA
        assert float((2 * there).sum()) == 6
        with pytest.raises(DeviceMixed):
            there + here
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


def test_copies_and_blocking_reads_are_counted() -> None:
    with Pretended(watched=("/tests/",)) as gpu:
        there = torch.ones(4).to("cuda")
        float(there.sum())
        there.cpu()
        torch.ones(4).pin_memory().to("cuda", non_blocking=True)
    assert gpu.totals() == {
        "to device: pageable, blocking": 1,
        "to device: pinned, async": 1,
        "read item": 1,
        "to host: blocking": 1,
    }
    assert "tests/launch/test_pretended_device.py" in gpu.report()
