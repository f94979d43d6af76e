"""Tiny runs of every policy and every mechanism, by one process and by several, and what differs between them.

The processes are forked and stay: a group of them makes one run after another. An arm that fails ends its group, and
the arms behind it are run by a new one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from foreign_models import COCA, open_clip_folder, siglip_folder
from helpers import rows_of, summary_of
from packaging.version import Version
from photos import jpeg, write_numbered_shards
from safetensors.torch import load_file

import policies
from jestbench.batch import COLUMN
from jestbench.launch.command import main
from jestbench.parallel import distributed
from jestbench.parallel.distributed import World
from jestbench.runs.choices import shown_by
from jestbench.runs.folder import RunFolder
from jestbench.select.given import GIVEN

ROOT = Path(__file__).resolve().parent.parent
PHYSICAL = ("time/", "cache/", "exchange/", "data/decoded", "train/scale", "select/overlap_top")
"""What depends on who computes, and on what lies in caches; the scale is that of the weights, which are compared, and
equal pairs tie at the border of the top."""
LEDGER = ("flops/", "pairs/", "step", "data/", "ladder/")
EXACT = (*LEDGER, "select/share", "memory/", "train/equal_pairs")
FIRST = 10
"""Steps whose losses and choices are compared in fp32: last digits grow."""

TINY = [
    *("--gin_file", "gin/run/tiny.gin"),
    *("log.progress=False", "run.device=cpu", "log.every=1", "evaluate.points=1", "run.checkpoints=1"),
    *("synthetic.pool=120", "synthetic.curated=64", "synthetic.holdout=64", "synthetic.eval=32"),
    # Equal pairs tie, and the last digits of their scores decide which one is ranked first.
    "synthetic.duplicates=0.0",
    *("model.embed_dim=32", "model.text_width=32"),
    'model.image_options={"embed_dim": 32, "depth": 2, "num_heads": 2}',
]
SIZES = ["run.batch_size=13", "run.super_batch_size=41"]
LADDER = ["run.budget=None", "optimizer.schedule=ladder", "optimizer.rungs=(7e8, 1.6e9)", "optimizer.cooldown=0.4"]
TRAINED = "run.budget=None", "budget.steps=4", "run.batch_size=16", "model.embed_dim=32"
SIGMOID = ["run.loss=sigmoid", "run.reference_calibrate=True"]
COARSE = ["cheap/view.patch_size=8", "cheap/view.resolution=16"]


def trained(name: str, *more: str) -> str:
    """The binding of a run that is stood on: in the arm's cache it is trained once."""
    return str((f"gin/run/{name}.gin", *TRAINED, *more))


def policy(name: str) -> list[str]:
    """The words that bind a policy, whose own gin file is taken where there is one."""
    path = f"gin/policy/{name}.gin"
    return ["--gin_file", path] if (ROOT / path).is_file() else [f"run.policy={name}", f"run.arm={name}"]


def stood_on(name: str) -> list[str]:
    """What a policy's ``needs`` ask for beside the learner; ``$START`` is a trained run."""
    needs = policies.create(name).needs
    columns = tuple(need.removeprefix(COLUMN) for need in needs if need.startswith(COLUMN))
    words = {
        "reference": ["run.reference=$START"],
        "scorer": ["run.scorer=" + trained("tiny_cappy", "run.split=curated")],
        "online": ["run.scorer=@online_scorer()"] if policy(name)[0] != "--gin_file" else [],
    }
    unknown = needs - {"learner"} - words.keys() - set(GIVEN) - {COLUMN + column for column in columns}
    assert not unknown, f"the matrix has nothing for the needs {sorted(unknown)} of {name}"
    found = [word for need in words if need in needs for word in words[need]]
    return [*found, *([f"synthetic.columns={columns}"] if columns else [])]


MECHANISMS: Mapping[str, Sequence[str]] = {
    "flexi_cached_odd": [
        *(*policy("flexi_jest"), *COARSE, "run.reference=$START", *SIGMOID),
        *("run.batch_size=15", "run.super_batch_size=43", "run.train_microbatch=4", "run.grad_checkpointing=True"),
        "run.microbatch=8",
    ],
    "patchdrop_cached": [*policy("jest_patchdrop"), "run.reference=$START", "run.train_microbatch=3"],
    "cascade": [
        *(*policy("cascade_jest"), "run.reference=$START", "run.batch_size=8", "run.super_batch_size=20"),
        "cascade.candidates=3",
    ],
    "stream_ladder": [
        *("--gin_file", "$STREAM", *policy("hard_learner"), "run.batch_size=5", "run.super_batch_size=10", *LADDER),
    ],
    "stream": ["--gin_file", "$STREAM", *policy("grad_norm"), "run.batch_size=7", "run.super_batch_size=15"],
    "twins": [*policy("rho_loss_twin"), "run.reference=" + trained("tiny_irreducible", "run.split=pool")],
    "online_sigmoid": [
        *policy("active_clip"),
        "run.reference=$START",
        "run.loss=sigmoid",
        "run.reference_calibrate=True",
    ],
    "weights_mixture": [
        *(*policy("grad_norm"), "run.split={'pool': 0.8, 'curated': 0.2}", "run.loss=sigmoid"),
        *("run.train_microbatch=4", "synthetic.columns=('similarity',)"),
    ],
    "lit": [*policy("jest"), "run.reference=$START", "run.init=$START", "model.freeze=image"],
    "lit_cached": [*policy("uniform"), "run.init=$START", "model.freeze=image", "run.train_microbatch=2"],
    "lit_remembered": [
        *(*policy("jest"), "run.reference=$START", "run.init=$START", "model.freeze=image", "run.remember_images=True"),
    ],
    "sharded": [*policy("active_clip"), "run.reference=$START", "run.shard=True", "run.train_microbatch=5"],
    "started": [*policy("hard_learner"), "run.init=@open_clip()", "open_clip.model=local-dir:$CLIP"],
    "naflex": [
        *(*policy("hard_learner"), "run.init=@hugging_face_clip()", "hugging_face_clip.path=$NAFLEX"),
        *("run.loss=sigmoid", "run.batch_size=7", "run.super_batch_size=15"),
    ],
    "library_cached": [
        *(*policy("jest"), "run.init=@open_clip()", "run.reference=@open_clip()", "open_clip.model=local-dir:$COCA"),
        *("run.batch_size=7", "run.super_batch_size=15", "run.train_microbatch=4"),
    ],
    "masked": [*policy("hard_learner"), "run.equal=masked"],
    "positive": [*policy("jest"), "run.reference=$START", "run.equal=positive", *SIGMOID],
    "penalty_late": [*policy("jest_repetition"), "run.reference=$START", "run.select_from=0.3", "loader.workers=2"],
    "cache_online": [
        *(*policy("easy_reference"), "run.reference=$START", "run.cache=@cache()", "run.reference_accounting=online"),
    ],
    "top_of_split": [*policy("uniform"), 'run.split="pool[top=0.5, by=reference]"', "run.reference=$START"],
    "top_of_damaged": [
        *("--gin_file", "$DAMAGED", "--allow_unused", "synthetic.*", *policy("jest")),
        "run.reference=" + trained("tiny_reference", "run.precision=fp64"),
        *('run.split="pool[top=0.5, by=reference]"', "run.batch_size=7", "run.super_batch_size=17"),
    ],
    "augmented": [*policy("hard_learner"), "run.augment=@random_resized_crop()"],
    "ladder_trained_together": [
        *(*policy("jest"), "run.reference=" + trained("tiny_reference", "run.precision=fp64")),
        *("run.batch_size=8", "run.super_batch_size=24", *LADDER),
    ],
}
"""What is not a policy by itself; odd sizes leave processes with unequal shares."""
if Version(torch.__version__) >= Version("2.9"):  # on CPUs
    sharded = [*policy("flexi_jest"), *COARSE, "run.reference=$START", "run.shard=True", "run.train_microbatch=6"]
    MECHANISMS = {**MECHANISMS, "sharded_flexi": sharded}

ARMS: Mapping[str, Sequence[str]] = {
    **{name: [*policy(name), *SIZES, *stood_on(name)] for name in policies.available()},
    **{
        f"{name} sigmoid": [*policy(name), *SIZES, *stood_on(name), *SIGMOID]
        for name in policies.available()
        if {"learner", "reference"} <= policies.get(name).needs or policies.get(name).needs == {"learner"}
    },
    **{name: [*SIZES, *words] for name, words in MECHANISMS.items()},
}
SHORT = "flexi_cached_odd", "cascade", "stream_ladder", "twins", "online_sigmoid", "cappy", "weights_mixture", "lit"
SHORT += "infobatch", "concept_balance", "started", "ladder_trained_together"
"""Arms that together touch every mechanism: those of the default suite."""
SEPARATE = "ladder_trained_together", "top_of_split", "top_of_damaged"
"""Arms whose reference and scores each number of processes makes by itself; others share those of the first."""
TIED = ("naflex",)
"""Arms whose tokenizer takes every caption for one, so that all texts tie in the evaluation."""

STREAM = """run.data = @stream()
stream.shards = "pipe:cat {folder}/{{000..008}}.tar"
stream.beside = @synthetic()
stream.image_size = 16
stream.lanes = 6
"""

DAMAGED = """include "gin/data/csv.gin"
csv.pool = "{folder}/pool.csv"
csv.curated = "{folder}/curated.csv"
csv.eval = "{folder}/eval.csv"
csv.image_size = 16
csv.max_damaged = 0.5
tokenizer.length = 6
"""


def write_damaged_tables(folder: Path) -> None:
    """Tables of pictures, every fifth of the pool damaged, and the gin file that reads them."""
    folder.mkdir()
    for name, first, count in (("pool", 0, 80), ("curated", 80, 32), ("eval", 112, 16)):
        rows = ["filepath,title"]
        for number in range(first, first + count):
            content = jpeg(number) if name != "pool" or number % 5 else jpeg(number)[:100] + bytes([number])
            (folder / f"{name}{number}.jpg").write_bytes(content)
            rows.append(f"{name}{number}.jpg,drawing {number}")
        (folder / f"{name}.csv").write_text("\n".join(rows))
    (folder / "csv.gin").write_text(DAMAGED.format(folder=folder))


@dataclass
class Matrix:
    """Runs of arms in a folder, by any number of processes.

    Attributes:
        folder: of all runs, of their shards, their caches and the run that they stand on.
        precision: ``run.precision`` of the arms.
        steps: of an arm without a ladder.
        failed: what went wrong with an arm, by the number of processes and the arm.
    """

    folder: Path
    precision: str
    steps: int
    failed: dict[tuple[int, str], str] = field(default_factory=dict)

    def _prepare(self) -> None:
        if (self.folder / "start").exists():
            return
        write_numbered_shards(self.folder, [5, 9, 1, 7, 12, 3, 8, 6, 10])
        (self.folder / "stream.gin").write_text(STREAM.format(folder=self.folder))
        write_damaged_tables(self.folder / "damaged")
        open_clip_folder(self.folder / "clip")
        open_clip_folder(self.folder / "coca", config=COCA)
        siglip_folder(self.folder / "naflex", flexible=True)
        start = ["--gin_file", "gin/policy/uniform.gin", "run.arm=start", "run.split=curated", *TRAINED[:3]]
        assert main([*TINY, *start, "--run_dir", str(self.folder / "start")]) == 0

    def run_dir(self, arm: str, size: int) -> Path:
        """The run folder of an arm by so many processes."""
        return self.folder / f"{size}" / arm.replace(" ", "_")

    def command(self, arm: str, size: int) -> list[str]:
        """The words of an arm."""
        length = [] if "optimizer.schedule=ladder" in ARMS[arm] else ["run.budget=None", f"budget.steps={self.steps}"]
        places = {"$START": "start", "$STREAM": "stream.gin", "$DAMAGED": "damaged/csv.gin"}
        places |= {"$CLIP": "clip", "$COCA": "coca", "$NAFLEX": "naflex"}
        words = [*TINY, *ARMS[arm], *length, f"log.examples={self.steps}", f"run.precision={self.precision}"]
        for name, place in places.items():
            words = [word.replace(name, str(self.folder / place)) for word in words]
        return [*words, "--run_dir", str(self.run_dir(arm, size))]

    def run(self, arms: Sequence[str], size: int) -> None:
        """Run arms by so many processes, and note which of them fail."""
        self._prepare()
        left = list(arms)
        while left:
            logs = self.folder / f"logs{size}-{len(left)}"
            group = forked.ranks(size, partial(self._one_after_another, tuple(left), size), logs)
            try:
                statuses = [process.wait(60 + 30 * len(left)) for process in group]
            finally:
                for process in group:
                    process.kill()
            if not any(statuses):
                return
            begun = [process.said.count(BEGINS) for process in group]
            broken = left[max(0, max(begun) - 1)]
            last = [process.said.rpartition(BEGINS)[2].strip()[-800:] for process in group]
            each = zip(range(size), statuses, last, strict=True)
            self.failed[size, broken] = "\n".join(
                f"rank {rank}, status {status}: {said}" for rank, status, said in each
            )
            left = left[left.index(broken) + 1 :]

    def _one_after_another(self, arms: Sequence[str], size: int, rank: int) -> int:
        torch.set_num_threads(1)
        with distributed.started() as world:
            assert world == World(rank, size)
            for arm in arms:
                print(BEGINS, arm, flush=True)
                os.environ["JESTBENCH_CACHE"] = str(self.folder / f"cache{size if arm in SEPARATE else ''}")
                status = main(self.command(arm, size))
                if status:
                    return status
        return 0

    def differences(self, arm: str, size: int) -> list[str]:
        """What so many processes have done otherwise than one, in words; empty where nothing."""
        for made in (1, size):
            if (made, arm) in self.failed:
                return [f"failed by {made} processes: {self.failed[made, arm]}"]
        one, other = self.run_dir(arm, 1), self.run_dir(arm, size)
        found = [
            *_choices(one, other, self.precision),
            *_rows(one, other, self.precision),
            *_whole_run(one, other, size),
        ]
        if self.precision == "fp64":
            found += _weights(one, other)
        return found

    def check(self, arms: Sequence[str], size: int) -> None:
        """Fail with all that differs between the runs of one process and of so many."""
        found = {arm: self.differences(arm, size) for arm in arms}
        lines = [f"{arm}, {size} processes, {self.precision}: {what[0]}" for arm, what in found.items() if what]
        more = [f"  … {arm}: {line}" for arm, what in found.items() for line in what[1:6]]
        assert not lines, "\n".join([f"{len(lines)} of {len(arms)} arms differ", *lines, *more])


BEGINS = "arm begins:"


def _choices(one: Path, other: Path, precision: str) -> Iterator[str]:
    """The super-batches and the keys of the pairs chosen, step by step, in their order."""
    (tables, problems), (others, more) = shown_by(one), shown_by(other)
    yield from (*problems, *more)
    if not tables or [table.step for table in tables] != [table.step for table in others]:
        yield f"steps with tables: {[table.step for table in tables]} | {[table.step for table in others]}"
    for alone, shared in zip(tables, others, strict=False):
        if precision == "fp32" and alone.step > FIRST:
            return
        if alone.choice.super_batch != shared.choice.super_batch:
            yield f"step {alone.step}: another super-batch"
            return
        mine, theirs = (table.choice.key_B[table.choice.chosen_K].tolist() for table in (alone, shared))
        if mine != theirs:
            gone, come = sorted({*mine} - {*theirs}), sorted({*theirs} - {*mine})
            yield (
                f"step {alone.step}: chosen instead of {gone}: {come}" if gone else f"step {alone.step}: another order"
            )
            return


def _rows(one: Path, other: Path, precision: str) -> Iterator[str]:
    """Numbers of ``metrics.jsonl``: those of the ledger exactly, losses to 1e-9 (fp32: of the first steps, to 1e-4)."""
    mine, theirs = rows_of(one), rows_of(other)
    if len(mine) != len(theirs) or len(mine) < 4:
        yield f"rows: {len(mine)} | {len(theirs)}"
    loss = {"rel": 1e-9, "abs": 1e-10} if precision == "fp64" else {"rel": 1e-4, "abs": 1e-6}
    # Means of many terms cancel, and eval/… is computed in fp32.
    rest = {"rel": 1e-6, "abs": 1e-7} if precision == "fp64" else {"rel": 5e-3, "abs": 2e-3}
    for alone, shared in zip(mine, theirs, strict=False):
        if apart := sorted(name for name in alone.keys() ^ shared.keys() if not name.startswith("exchange/")):
            yield f"step {alone['step']}: names {apart}"
        for name in sorted(alone.keys() & shared.keys(), key=lambda name: not name.startswith(EXACT)):
            late = precision == "fp32" and alone["step"] > FIRST and not name.startswith(LEDGER)
            if late or name.startswith(PHYSICAL) or (one.name in TIED and name.startswith("eval/")):
                continue
            # In fp32 the norm of a small gradient is what large terms leave.
            tight = name == "train/loss" or (precision == "fp64" and name.startswith("train/"))
            close: Any = partial(pytest.approx, **(loss if tight else rest))
            if shared[name] != (alone[name] if name.startswith(EXACT) else close(alone[name])):
                yield f"step {alone['step']}: {name}: {alone[name]!r} | {shared[name]!r}"


def _whole_run(one: Path, other: Path, size: int) -> Iterator[str]:
    """What the summary and the environment hold."""
    mine, theirs = summary_of(one), summary_of(other)
    for name in ("config_hash", "status", "steps", "flops", "pretrain_flops", "pairs_seen", "pairs_trained"):
        if mine[name] != theirs[name]:
            yield f"summary, {name}: {mine[name]} | {theirs[name]}"
    if (found := RunFolder(other).environment()["processes"]) != size:
        yield f"environment: {found} processes"


def _weights(one: Path, other: Path) -> Iterator[str]:
    """The final weights."""
    mine, theirs = (load_file(RunFolder(folder).newest_checkpoint() / "model.safetensors") for folder in (one, other))
    for name, value in mine.items():
        apart = float((theirs[name] - value).abs().max())
        if value.dtype != torch.float64 or not apart <= 1e-7:
            yield f"final weights ({value.dtype}), {name}: {apart:.2g} apart"
