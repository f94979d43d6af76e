"""A run that goes on with another number of processes: the choices and charges of the run that nothing happened to."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch.distributed as dist
from forked import ranks
from helpers import ROOT, own_surroundings, rows_of, small_world, summary_of
from photos import write_numbered_shards

from jestbench.data.super_batches import SuperBatchSource
from jestbench.launch.command import main
from jestbench.parallel import peers

REFERENCE = f'run.reference=("{ROOT}/gin/run/tiny_reference.gin", "run.budget=1e9", "run.checkpoints=4")'
STEPS = 12
"""Of four an epoch: from the fifth on every row of the reference is remembered."""
TINY = [
    *("--gin_file", str(ROOT / "gin/run/tiny.gin"), "--gin_file", str(ROOT / "gin/policy/easy_reference.gin")),
    *(
        REFERENCE,
        *small_world(8, 24),
        "synthetic.pool=96",
        "run.budget=None",
        f"budget.steps={STEPS}",
        "run.checkpoints=6",
    ),
    *("evaluate.points=3", "wandb.mode=disabled", "log.chosen=True"),
]
PHYSICAL = ("time/", "cache/hits", "data/decoded", "exchange/")
"""What depends on who computes."""


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_surroundings(tmp_path_factory), pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "GRACE_SECONDS", 0.1)
        yield


def signal_at(step: int | None, number: int = signal.SIGTERM) -> None:
    """In a forked process: send it a signal as the super-batch of a step is asked for."""
    at = SuperBatchSource.at

    def sending(self: SuperBatchSource, asked: int) -> Any:
        if asked == step:
            os.kill(os.getpid(), number)
        return at(self, asked)

    SuperBatchSource.at = sending  # type: ignore[method-assign]


def go_on(words: Sequence[str], run_dir: Path, size: int, logs: Path, stop: int | None = None) -> None:
    """Begin a run or go on with it, by so many processes, to its end or to a request to stop at a step."""

    def work(rank: int) -> int:
        signal_at(stop)
        return main([*words, "--run_dir", str(run_dir), "--resume"])

    run = ranks(size, work, logs)
    assert [one.wait(120) for one in run] == [0 if stop is None else 130] * size, run[0].said
    if stop is not None:
        assert summary_of(run_dir)["steps"] == stop + 1


def chosen_in(run_dir: Path) -> list[dict[str, Any]]:
    """The chosen pairs by their keys, and how often each was chosen."""
    table = pyarrow.parquet.read_table(run_dir / "chosen.parquet", columns=["key", "text_key", "times"])
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def logical_rows(run_dir: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith(PHYSICAL)} for row in rows_of(run_dir)]


def assert_same_choices_and_charges(run_dir: Path, whole: Path) -> None:
    assert chosen_in(run_dir) == chosen_in(whole)
    rows = [
        [{k: v for k, v in row.items() if not k.startswith(PHYSICAL)} for row in rows_of(d)] for d in (run_dir, whole)
    ]
    assert len(rows[0]) == len(rows[1]) == STEPS + 1
    for row, straight in zip(*rows, strict=True):
        assert row.keys() == straight.keys()
        for name, value in straight.items():
            exact = name.startswith(("flops/", "pairs/", "step", "data/", "select/share"))
            wanted = value if exact else pytest.approx(value, rel=2e-3, abs=1e-4)
            assert row[name] == wanted, (name, straight["step"])
    summaries = [summary_of(folder) for folder in (run_dir, whole)]
    assert [found["status"] for found in summaries] == ["finished"] * 2
    assert summaries[0]["flops"] == summaries[1]["flops"]
    assert not (run_dir / "cache").exists(), "row files of all numbers of processes are removed"


@pytest.fixture(scope="module")
def whole(surroundings: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    go_on(TINY, folder / "run", 1, folder / "logs")
    return folder / "run"


def hits_a_step(run_dir: Path) -> list[int]:
    hits = [int(row["cache/hits"]) for row in rows_of(run_dir)]
    return [after - before for before, after in itertools.pairwise(hits)]


def test_a_run_of_two_goes_on_alone_and_by_two_again(whole: Path, tmp_path: Path) -> None:
    """Rows whose files are gone are computed again, and not charged again; those of all other files are kept."""
    run_dir = tmp_path / "run"
    go_on(TINY, run_dir, 2, tmp_path / "two", stop=5)
    assert len(list((run_dir / "cache").glob("*of2.bin"))) == 4, "image and text, of each process"
    for file in (run_dir / "cache").glob("*1of2.bin"):
        file.unlink()
    go_on(TINY, run_dir, 1, tmp_path / "one", stop=7)
    go_on(TINY, run_dir, 2, tmp_path / "again")
    assert_same_choices_and_charges(run_dir, whole)
    assert hits_a_step(whole)[4:] == [48] * (STEPS - 4), "24 pairs' images and texts"
    assert all(0 < hits < 48 for hits in hits_a_step(run_dir)[6:8])


def test_a_restart_by_torchrun_may_have_one_process_fewer(whole: Path, tmp_path: Path) -> None:
    """Through one store, as torchrun serves it to all that it starts; the last one is alone, and needs no --resume."""
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    elastic = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    words = [*TINY, "--run_dir", str(tmp_path / "run")]

    def dying(rank: int) -> int:
        signal_at(7 if rank == 1 else None, signal.SIGKILL)
        return main(words)

    both = ranks(2, dying, tmp_path / "two", **elastic)
    assert [one.wait(60) for one in both] == [1, -signal.SIGKILL], both[0].said
    # Agents of torchrun count restarts each for itself: what they count may differ.
    (alone,) = ranks(1, lambda rank: main(words), tmp_path / "one", **elastic, TORCHELASTIC_RESTART_COUNT="0")
    assert alone.wait(60) == 0, alone.said
    assert_same_choices_and_charges(tmp_path / "run", whole)


KINDS: dict[str, list[str]] = {
    "uniform": ["run.policy=uniform", "run.arm=uniform", "run.super_batch_size=8"],
    "jest": ["--gin_file", str(ROOT / "gin/policy/jest.gin")],
    "twin": [
        *("--gin_file", str(ROOT / "gin/policy/rho_loss_twin.gin")),
        f'run.reference=("{ROOT}/gin/run/tiny_irreducible.gin", "run.budget=1e9", "run.split=pool")',
    ],
    "cascade": [
        *("--gin_file", str(ROOT / "gin/policy/cascade_jest.gin")),
        *("run.super_batch_size=16", "cascade.candidates=3"),
    ],
    "leaving": ["--gin_file", str(ROOT / "gin/policy/infobatch.gin"), "run.super_batch_size=8"],
    "memory": ["--gin_file", str(ROOT / "gin/policy/jest_repetition.gin")],
    "stream": [
        *("--gin_file", str(ROOT / "gin/policy/hard_learner.gin"), "run.data=@stream()", "stream.lanes=4"),
        *("stream.shards='pipe:cat $SHARDS/{000..004}.tar'", "stream.beside=@synthetic()", "stream.image_size=16"),
    ],
}
"""By what differs from ``TINY``."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_four_goes_on_by_two_by_three_and_alone(kind: str, tmp_path: Path) -> None:
    write_numbered_shards(tmp_path, [40, 9, 30, 25, 12])
    more = [word.replace("$SHARDS", str(tmp_path)) for word in KINDS[kind]]
    files = [word for pair in itertools.pairwise(more) if pair[0] == "--gin_file" for word in pair]
    words = [*TINY[:2], *(files or TINY[2:4]), *TINY[4:], *(word for word in more if word not in files)]
    words.append("run.precision=fp64")  # where sums in another order do not change a choice
    run_dir, whole_dir = tmp_path / "run", tmp_path / "whole"
    go_on(words, whole_dir, 1, tmp_path / "logs")  # before the others: it leaves the references in the cache
    for size, stop in ((4, 2), (2, 5), (3, 8), (1, None)):
        go_on(words, run_dir, size, tmp_path / f"by{size}", stop)
    assert_same_choices_and_charges(run_dir, whole_dir)
