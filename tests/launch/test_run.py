"""Whole runs through the command: what is charged, what is reproduced, what survives a kill."""

from __future__ import annotations

import gc
import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import make_golden
import pytest
import torch
from helpers import SLOW, Passes, kill_before, outcome, own_surroundings, rows_of, start, summary_of, wait_for
from torch import nn

import policies
from jestbench.batch import PURPOSES, DataError, Selection
from jestbench.cost.tracing import FLOPS_PER_MAC, TRAINING_PASSES, forward_macs
from jestbench.data.super_batches import SuperBatches
from jestbench.launch.command import main
from jestbench.model.towers import TwoTowers
from jestbench.runs.folder import RunFolder
from jestbench.runs.saved_model import towers_of
from jestbench.select.draws import joint_sample
from jestbench.select.scores import Embeddings, Scores

MODEL_POLICIES = [name for name in policies.available() if policies.get(name).needs <= {"learner", "reference"}]
WITH_REFERENCE = [name for name in MODEL_POLICIES if "reference" in policies.get(name).needs]
SCORING = [name for name in MODEL_POLICIES if policies.get(name).needs]
ACCOUNTINGS = ("online", "first_sight", "amortised")

BATCH, SUPER_BATCH, WIDTH = 8, 24, 64
WORLD = ["synthetic.pool=100", "synthetic.curated=64", "synthetic.holdout=64", "synthetic.eval=32"]
QUIET = ["log.every=1", "log.progress=False", "wandb.mode=disabled", "run.device=cpu"]
SIZES = [f"run.batch_size={BATCH}", f"run.super_batch_size={SUPER_BATCH}", *WORLD]
# Another shape than the learner's, so that neither can be charged for the other.
SMALL_MODEL = 'model.image_options={"embed_dim": 32, "depth": 1, "num_heads": 2}'
REFERENCE = [*SIZES, SMALL_MODEL, "run.budget=3e8", "evaluate.points=1"]


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_surroundings(tmp_path_factory, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"):
        yield


def arm(policy: str) -> list[str]:
    return ["--gin_file", "gin/run/tiny.gin", "--gin_file", f"gin/policy/{policy}.gin", *SIZES, *QUIET]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run to take as a reference."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    assert main(["--gin_file", "gin/run/tiny_reference.gin", *REFERENCE, *QUIET, "--run_dir", str(folder)]) == 0
    return folder


def bound(policy: str, reference: Path, *more: str) -> list[str]:
    """The command of an arm, with that reference where it needs one."""
    needed = [f"run.reference={reference}"] if policy in WITH_REFERENCE else []
    return [*arm(policy), *needed, *more]


# What is charged


def macs_of(passes: Passes) -> dict[str, int]:
    """Multiply-adds by what the passes can be told apart by: gradient or none, learner or not."""
    learner = {module for module, gradient in passes.examples if gradient}
    found = {"train": 0, "learner": 0, "others": 0}
    for (module, gradient), count in passes.examples.items():
        macs = count * forward_macs(module, passes.example[module])
        kind = "train" if gradient else "learner" if module in learner else "others"
        found[kind] += macs * (TRAINING_PASSES if gradient else 1)
    return found


@dataclass(frozen=True)
class Measured:
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    macs: dict[str, int]
    keys: list[list[int]]
    folder: Path

    def charged(self) -> dict[str, int]:
        """The ledger's multiply-adds, sorted like ``macs_of``."""
        macs = {purpose: flops // FLOPS_PER_MAC for purpose, flops in self.summary["flops"].items()}
        amortised = self.summary["flops_amortised"] // FLOPS_PER_MAC
        return {
            "train": macs["learner_train"],
            "learner": macs["learner_score"] + macs["eval"],
            "others": macs["reference_score"] + amortised,
        }


def measure(command: list[str], run_dir: Path) -> Measured:
    """Run while counting passes and noting the super-batches."""
    keys, at = [], SuperBatches.at

    def noted(self: SuperBatches, step: int) -> Any:
        batch = at(self, step)
        keys.append(batch.image_key_B.tolist())
        return batch

    with Passes() as passes, pytest.MonkeyPatch.context() as patch:
        patch.setattr(SuperBatches, "at", noted)
        assert main([*command, "--run_dir", str(run_dir)]) == 0
    return Measured(rows_of(run_dir), summary_of(run_dir), macs_of(passes), keys, run_dir)


@pytest.fixture(scope="module")
def measured(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Measured]:
    """A measured run of six steps by policy and accounting, each made once."""
    done: dict[tuple[str, str], Measured] = {}

    def run(policy: str, accounting: str = "first_sight") -> Measured:
        if (policy, accounting) not in done:
            more = ["run.budget=None", "budget.steps=6", "evaluate.points=2"]
            if policy in WITH_REFERENCE:
                more.append(f"run.reference_accounting={accounting}")
            folder = tmp_path_factory.mktemp("measured") / "run"
            done[policy, accounting] = measure(bound(policy, reference, *more), folder)
        return done[policy, accounting]

    return run


@pytest.mark.parametrize(
    ("policy", "accounting"),
    [(policy, accounting) for policy in MODEL_POLICIES for accounting in ACCOUNTINGS if policy in WITH_REFERENCE]
    + [(policy, "first_sight") for policy in MODEL_POLICIES if policy not in WITH_REFERENCE],
)
def test_what_is_charged_is_what_was_run(measured, policy, accounting):
    run = measured(policy, accounting)
    assert run.macs == run.charged()
    if policy in WITH_REFERENCE:
        assert run.macs["others"] > 0
        assert (run.summary["flops"]["reference_score"] == 0) == (accounting == "amortised")


@pytest.mark.parametrize("policy", MODEL_POLICIES)
def test_the_purposes_sum_to_the_total(measured, policy):
    run = measured(policy)
    for row in run.rows:
        flops = {name.removeprefix("flops/"): value for name, value in row.items() if name.startswith("flops/")}
        assert set(flops) == {"total", *PURPOSES}
        assert all(type(value) is int for value in flops.values())
        assert flops["total"] == sum(value for name, value in flops.items() if name not in ("total", "eval"))
    assert run.summary["flops"] == flops, "the summary agrees with the last row"
    assert run.summary["flops"]["total"] == FLOPS_PER_MAC * run.summary["macs_total"]


def test_the_summary_holds_what_is_known_of_each_metric(measured):
    summary = measured("uniform").summary
    images, classes = summary["data"]["eval_images"], summary["data"]["eval_classes"]
    assert summary["measures"].keys() == summary["metrics"].keys()
    for name, measure in summary["measures"].items():
        examples = classes if name.startswith("eval/text_to_image") else images
        examples = images + classes if name == "eval/retrieval_mrr" else examples
        nll = name == "eval/zero_shot_nll"
        assert (measure["low"], measure["high"], measure["examples"]) == (0.0, None if nll else 1.0, examples), name
        assert measure["lower_is_better"] == nll
        assert measure["chance"] == pytest.approx(math.log(classes)) if nll else 0 < measure["chance"] < 1
        if not name.endswith(("nll", "mrr")):  # a share of so many examples is a whole number of them
            assert summary["metrics"][name] * examples == pytest.approx(round(summary["metrics"][name] * examples))


def test_the_end_is_kept_example_by_example(measured):
    """The results of the last evaluation and of none before it, under the FLOPs spent where the budget counts steps."""
    run = measured("uniform")
    ((budget, results),) = RunFolder(run.folder).results().items()
    assert budget == run.summary["flops"]["total"]
    assert {key: results.mean(key) for key in run.summary["metrics"]} == run.summary["metrics"]


def test_the_summary_holds_the_rate_at_its_peak(measured):
    summary = measured("uniform").summary
    assert summary["learning_rate"] == 2e-3


def test_uniform_is_charged_its_training_alone(measured):
    spent = {purpose for purpose, flops in measured("uniform").summary["flops"].items() if flops}
    assert spent == {"total", "learner_train", "pairwise", "eval"}


def test_first_sight_charges_each_tower_once_for_what_it_meets(measured):
    """Fewer passes than online, more than the first super-batch; the pool has repeated captions and images."""
    online, first = (measured("jest", accounting).summary["flops"] for accounting in ("online", "first_sight"))
    assert online["reference_score"] / 6 < first["reference_score"] < online["reference_score"]
    assert (
        measured("jest", "online").rows[-1]["cache/hits"] == 0 < measured("jest", "first_sight").rows[-1]["cache/hits"]
    )


@dataclass(frozen=True)
class Smuggler:
    """A policy that finds a model by itself and runs it on the side."""

    needs: ClassVar[frozenset[str]] = frozenset({"learner"})

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Ask the learner something behind the ledger's back."""
        model = next(m for m in gc.get_objects() if isinstance(m, TwoTowers) and m.log_scale.requires_grad)
        with torch.no_grad():
            model.encode_image(torch.zeros(5, 3, 16, 16, dtype=torch.uint8))
        return Selection(torch.arange(count))


def test_a_smuggled_pass_is_found(tmp_path, monkeypatch):
    """The count above is worth something: it sees what no stage reports."""
    monkeypatch.setitem(policies.registry._CLASSES, "smuggler", Smuggler)
    gc.collect()
    more = ["run.policy=smuggler", "run.budget=None", "budget.steps=2"]
    run = measure([*arm("uniform"), *more], tmp_path / "run")
    assert run.macs["train"] == run.charged()["train"]
    assert run.macs["learner"] + run.macs["others"] > run.charged()["learner"] + run.charged()["others"]


def test_jest_online_costs_its_closed_form(reference, tmp_path):
    steps, chunks, run_dir = 3, 4, tmp_path / "run"
    more = ["run.budget=None", f"budget.steps={steps}", "run.reference_accounting=online", f"jest.chunks={chunks}"]
    assert main([*bound("jest", reference, *more), "--run_dir", str(run_dir)]) == 0
    images, tokens = torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.ones(1, 8, dtype=torch.int64)
    learner, frozen = (
        forward_macs(model.image, images) + forward_macs(model.text, tokens)
        for model in (towers_of(run_dir), towers_of(reference))
    )
    conditioned = BATCH - BATCH // chunks  # all chunks but the last: row and column strips under both models
    selection = 2 * SUPER_BATCH * WIDTH + 2 * 2 * SUPER_BATCH * conditioned * WIDTH
    step = 3 * BATCH * learner + SUPER_BATCH * learner + SUPER_BATCH * frozen + 3 * BATCH**2 * WIDTH + selection
    assert summary_of(run_dir)["macs_total"] == steps * step


# The same data


def test_all_scoring_policies_see_the_same_super_batches(measured):
    seen = [measured(policy).keys for policy in SCORING]
    assert len(seen[0]) == 6
    assert all(keys == seen[0] for keys in seen)
    assert all(len(keys) == SUPER_BATCH for keys in seen[0])


def test_uniform_draws_straight_from_the_pool(measured):
    run = measured("uniform")
    assert all(len(keys) == BATCH for keys in run.keys)
    assert run.summary["pairs_seen"] == run.summary["pairs_trained"] == 6 * BATCH
    other = measured("jest").summary
    assert (other["pairs_seen"], other["pairs_trained"]) == (6 * SUPER_BATCH, 6 * BATCH)


def test_what_an_earlier_pass_left_out_is_counted(measured):
    """100 pairs hold four super-batches of 24, so the second pass begins with the fifth step."""
    skipped = [row["data/skipped"] for row in measured("jest").rows]
    assert skipped == [0, 0, 0, 0, 4, 4, 4]


@pytest.mark.parametrize("policy", ["uniform", "jest"])
def test_the_same_seed_is_the_same_run(reference, tmp_path, policy):
    outcomes = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)  # the state that a caller happens to be in
        command = bound(policy, reference, "run.budget=None", "budget.steps=4", f"run.seed={seed}")
        assert main([*command, "--run_dir", str(tmp_path / str(number))]) == 0
        outcomes.append(outcome(tmp_path / str(number)))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] != outcomes[2][0]


# The budget


@pytest.mark.parametrize("policy", ["uniform", "jest"])
def test_a_budget_of_flops_is_overshot_by_less_than_a_step(reference, tmp_path, policy):
    assert main([*bound(policy, reference, "run.budget=3e9"), "--run_dir", str(tmp_path / "run")]) == 0
    rows, summary = rows_of(tmp_path / "run"), summary_of(tmp_path / "run")
    spent = [row["flops/total"] for row in rows]
    assert spent[-2] < 3_000_000_000 <= spent[-1] == 3_000_000_000 + summary["overshoot"]
    assert summary["status"] == "finished"
    rates = [row["train/learning_rate"] for row in rows[1:]]
    assert rates[0] < max(rates)
    assert rates[-1] < 0.05 * max(rates), "the decay ends with the budget"
    assert "eval/zero_shot_top1" in rows[-1]
    assert "eval/zero_shot_top1" in rows[0]


def test_pre_training_can_be_taken_out_of_the_budget(reference, tmp_path):
    trained = summary_of(reference)["flops"]["total"]
    command = bound("jest", reference, "run.budget=2e9", "budget.includes=('reference',)")
    assert main([*command, "--run_dir", str(tmp_path / "run")]) == 0
    summary, spent = summary_of(tmp_path / "run"), [row["flops/total"] for row in rows_of(tmp_path / "run")]
    assert summary["pretrain_in_budget"] == summary["pretrain_flops"]["reference"] == trained
    assert spent[-2] + trained < 2_000_000_000 <= spent[-1] + trained


def test_pre_training_that_eats_the_budget_is_refused(reference, tmp_path, capsys):
    command = bound("jest", reference, "run.budget=3e8", "budget.includes=('reference',)")
    assert main([*command, "--run_dir", str(tmp_path / "run")]) == 2
    assert "pre-training" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "steps"), [("budget.steps=5", 5), (f"budget.pairs={4 * SUPER_BATCH}", 4)])
def test_a_limit_of_steps_or_pairs_is_met_exactly(reference, tmp_path, limit, steps):
    command = bound("jest", reference, "run.budget=None", limit)
    assert main([*command, "--run_dir", str(tmp_path / "run")]) == 0
    summary = summary_of(tmp_path / "run")
    assert (summary["steps"], summary["pairs_seen"]) == (steps, steps * SUPER_BATCH)
    assert summary["overshoot"] is None


# Interruption


LONG = ["run.budget=None", "budget.steps=30", "run.checkpoints=6", "evaluate.points=3"]


@pytest.fixture(scope="module")
def uninterrupted(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, ...]]:
    """What the long arm of a policy comes to when left alone."""
    done: dict[str, tuple[Any, ...]] = {}

    def run(policy: str) -> tuple[Any, ...]:
        if policy not in done:
            folder = tmp_path_factory.mktemp("uninterrupted") / "run"
            assert main([*bound(policy, reference, *LONG), "--run_dir", str(folder)]) == 0
            done[policy] = outcome(folder)
        return done[policy]

    return run


@pytest.mark.parametrize(
    ("policy", "number"),
    [
        pytest.param("uniform", signal.SIGKILL, marks=pytest.mark.slow),
        ("jest", signal.SIGKILL),
        ("jest", signal.SIGINT),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else value,
)
def test_a_stopped_process_goes_on_as_if_nothing_had_happened(uninterrupted, reference, tmp_path, policy, number):
    """To the last bit: metrics, ledger, and the bytes of the final model."""
    run_dir = tmp_path / "run"
    command = [*bound(policy, reference, *LONG), "--run_dir", str(run_dir)]
    process = start("-c", SLOW, *command)
    wait_for(process, lambda: any(run_dir.glob("checkpoints/step-*5")))
    process.send_signal(number)
    stderr = process.communicate()[1]
    if number == signal.SIGINT:
        assert process.returncode == 130, stderr
        assert summary_of(run_dir)["status"] == "interrupted"
        last = rows_of(run_dir)[-1]["step"]
        assert (run_dir / "checkpoints" / f"step-{last:010d}").is_dir(), "stopped after a step, with a checkpoint"
    else:
        assert process.returncode == -number
        assert not (run_dir / "summary.json").exists()
    assert main([*command, "--resume"]) == 0
    assert outcome(run_dir) == uninterrupted(policy)


@pytest.mark.parametrize("step", [0, 1, 5, 7, 29])
def test_jest_goes_on_from_any_step(uninterrupted, reference, tmp_path, step):
    """From the checkpoint before the first step too, when the reference's store is still empty."""
    run_dir = tmp_path / "run"
    command = [*bound("jest", reference, *LONG), "--run_dir", str(run_dir)]
    kill_before(step, command)
    assert main([*command, "--resume"]) == 0
    assert outcome(run_dir) == uninterrupted("jest")


def test_what_a_kill_tears_is_cut(uninterrupted, reference, tmp_path):
    """Half a line, rows past the checkpoint, half a checkpoint, embeddings past the checkpoint."""
    run_dir = tmp_path / "run"
    command = [*bound("jest", reference, *LONG), "--run_dir", str(run_dir)]
    kill_before(8, command)
    assert rows_of(run_dir)[-1]["step"] == 8
    newest = max((run_dir / "checkpoints").glob("step-*"))
    assert newest.name == "step-0000000005"
    torn = run_dir / "checkpoints" / ".step-0000000010.12345.partial"
    shutil.copytree(newest, torn)
    (torn / "model.safetensors").write_bytes(b"half")
    with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 9, "pairs/se')
    with (run_dir / "cache" / "reference_score-image.bin").open("ab") as file:
        file.write(b"half a row")
    assert main([*command, "--resume"]) == 0
    assert outcome(run_dir) == uninterrupted("jest")
    assert not torn.exists()


def test_a_finished_run_is_left_alone(reference, tmp_path, capsys):
    run_dir = tmp_path / "run"
    command = [*bound("uniform", reference, "run.budget=None", "budget.steps=3"), "--run_dir", str(run_dir)]
    assert main([*command, "--resume"]) == 0, "an empty folder: from the start"
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert main([*command, "--resume"]) == 0
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    assert main(command) == 2, "without --resume it is not overwritten"
    assert "--resume" in capsys.readouterr().err
    assert main([*command, "--resume", "run.seed=5"]) == 2
    assert "another run" in capsys.readouterr().err
    assert main(["--run_dir", str(run_dir), "--resume"]) == 0, "its own operative.gin starts it again"
    assert not (run_dir / "cache").exists()


# What goes wrong


@pytest.mark.parametrize("policy", ["uniform", "jest"])
def test_a_loss_that_is_not_finite_ends_the_run(reference, tmp_path, capsys, policy):
    """An absurd rate: the first update leaves a model whose loss, or whose score, is NaN."""
    command = bound(policy, reference, "run.budget=3e9", "optimizer.learning_rate=1e25", "optimizer.warmup=0.0")
    assert main([*command, "--run_dir", str(tmp_path / "run")]) == 4
    message = capsys.readouterr().err
    assert "step 1:" in message
    assert "Traceback" not in message
    summary = summary_of(tmp_path / "run")
    assert (summary["status"], summary["steps"]) == ("failed", 1)
    assert all(row.get("eval/zero_shot_top1", 0) < 1 for row in rows_of(tmp_path / "run"))


def test_a_folder_without_a_finished_run_is_no_reference(reference, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    unfinished = tmp_path / "unfinished"
    shutil.copytree(reference, unfinished)
    (unfinished / "summary.json").write_text(json.dumps(summary_of(reference) | {"status": "interrupted"}))
    for folder in (tmp_path / "empty", unfinished):
        command = bound("jest", folder, "run.budget=3e9", "--run_dir", str(tmp_path / f"run-{folder.name}"))
        assert main(command) == 3
        assert "no finished run" in capsys.readouterr().err


def test_a_reference_of_another_tokenizer_is_refused(tmp_path, capsys):
    foreign = tmp_path / "foreign"
    world = [*REFERENCE, *QUIET, "synthetic.seed=1"]
    assert main(["--gin_file", "gin/run/tiny_reference.gin", *world, "--run_dir", str(foreign)]) == 0
    capsys.readouterr()
    command = bound("jest", foreign, "run.budget=3e9", "--run_dir", str(tmp_path / "run"))
    assert main(command) == 3
    message = capsys.readouterr().err
    assert "tokenizer" in message
    assert "Traceback" not in message


def test_two_processes_train_a_reference_once(tmp_path):
    """A cache that is empty, two arms that start together, one reference."""
    asked = ", ".join(repr(part) for part in ("gin/run/tiny_reference.gin", *REFERENCE, *QUIET))
    processes = [
        start(
            "tools/run.py",
            *arm(policy),
            f"run.reference=({asked})",
            *("run.budget=None", "budget.steps=2", "--run_dir", str(tmp_path / policy)),
            JESTBENCH_CACHE=str(tmp_path / "cache"),
        )
        for policy in ("jest", "learnability")
    ]
    messages = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], messages
    assert sum(message.count("training the reference") for message in messages) == 1
    used = [summary_of(tmp_path / policy)["references"] for policy in ("jest", "learnability")]
    assert used[0] == used[1]


# Records


@pytest.mark.parametrize("name", make_golden.ARMS)
def test_golden_losses(tmp_path, name):
    """A refactor leaves them as they are, to the last bit on the machine that recorded them."""
    golden = json.loads(make_golden.GOLDEN.read_text(encoding="utf-8"))
    found = make_golden.tiny_losses(name, tmp_path)
    expected = golden["losses"][name]
    assert len(found) == make_golden.STEPS
    same_machine = golden["machine"] == make_golden.machine()
    assert found == (expected if same_machine else pytest.approx(expected, rel=1e-4))


# Devices


CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_bf16_autocast_comes_close(tmp_path, device):
    losses = []
    for precision in ("fp32", "bf16"):
        more = ["run.budget=None", "budget.steps=4", f"run.device={device}", f"run.precision={precision}"]
        assert main([*arm("uniform"), *more, "--run_dir", str(tmp_path / precision)]) == 0
        losses.append([row["train/loss"] for row in rows_of(tmp_path / precision)[1:]])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("device", [CUDA])
def test_jest_runs_on_the_device(reference, tmp_path, device):
    command = bound("jest", reference, "run.budget=None", "budget.steps=10", f"run.device={device}")
    assert main([*command, "--run_dir", str(tmp_path / "run")]) == 0
    run = rows_of(tmp_path / "run")
    assert run[-1]["train/loss"] < run[1]["train/loss"]
    assert summary_of(tmp_path / "run")["flops"]["reference_score"] > 0


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_every_device_makes_the_same_choice(device, loss):
    random = torch.Generator().manual_seed(0)
    parts = [nn.functional.normalize(torch.randn(96, 16, generator=random).double(), dim=-1) for _ in range(4)]

    def chosen(where: str) -> list[int]:
        on = [part.to(where) for part in parts]
        scores = Scores(Embeddings(*on[:2], 10.0, -5.0), Embeddings(*on[2:], 8.0, -4.0), loss=loss)
        return joint_sample(scores, 32, chunks=8, generator=torch.Generator().manual_seed(1)).tolist()

    assert chosen(device) == chosen("cpu")


def test_a_start_that_fails_before_its_first_step_leaves_the_folder_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> list[str]:
        raise DataError("an evaluated image cannot be read")

    command = [*arm("uniform"), "run.budget=None", "budget.steps=1", "--run_dir", str(tmp_path / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jestbench.launch.train_run.text_warnings", refused)
        assert main(command) == 3
    assert main(command) == 0, capsys.readouterr().err
