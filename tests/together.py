"""What the processes of test_distributed do: they check what they exchange, or run an arm."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from jestbench.batch import Batch, Selection, View
from jestbench.cost.price import Price
from jestbench.engine.contrastive import Contrastive
from jestbench.engine.learner import Learner
from jestbench.engine.optimizer import Optimizer
from jestbench.launch.command import main
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.model.towers import Model
from jestbench.parallel import distributed
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.parallel.distributed import HEAD, World
from jestbench.parallel.placement import Placement
from jestbench.parallel.shared_batch import SharedBatch
from jestbench.select import Moment, Remembered, Scores
from jestbench.select.contract import PolicyError, PolicyFailure
from jestbench.select.policy import choose
from jestbench.select.remembering import leave_out

TINY = ["--gin_file", "gin/run/tiny.gin"]
REFERENCE = 'run.reference=("gin/run/tiny_reference.gin", "run.budget=4e9")'
QUICK = ["run.budget=4e9", "log.every=1", "log.progress=False", "run.device=cpu"]
LADDER = ["optimizer.schedule=ladder", "optimizer.rungs=(2e9, 4e9)", "optimizer.cooldown=0.4"]
LADDER += ["optimizer.learning_rate=5e-4"]  # a rate that stays at its peak lets last digits grow
COARSE = ["cheap/view.patch_size=8", "cheap/view.resolution=16"]


def policy(name: str) -> list[str]:
    return ["--gin_file", f"gin/policy/{name}.gin"]


ARMS: dict[str, list[str]] = {
    "jest": [*policy("jest"), REFERENCE, "loader.workers=2"],
    "odd": [
        *policy("flexi_jest"),
        *COARSE,
        'run.reference=("gin/run/tiny_reference.gin", "run.budget=4e9", "run.loss=sigmoid")',
        "run.loss=sigmoid",
        "run.batch_size=15",
        "run.super_batch_size=67",
        "run.train_microbatch=3",
        "run.grad_checkpointing=True",
        "run.microbatch=8",
    ],
    "ladder": [*policy("jest"), REFERENCE, "run.batch_size=8", "run.super_batch_size=24", *LADDER],
}


def command(arm: str, run_dir: Path) -> list[str]:
    words = [*TINY, *ARMS[arm], *QUICK, "--run_dir", str(run_dir)]
    return [os.path.expandvars(word) for word in words]


def batch_of(count: int, tokenizer: Tokenizer) -> Batch:
    generator = torch.Generator().manual_seed(count)
    captions = tuple(f"word{i} word{i % 3}" for i in range(count))
    return Batch(
        images_BCHW=torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator),
        token_ids={tokenizer.identity: tokenizer.encode(captions)},
        image_key_B=torch.arange(count) + 100,
        text_key_B=torch.arange(count) + 200,
        marks={"noisy": torch.arange(count) % 3 == 0},
        captions=captions,
    )


def shared(batch: Batch, world: World) -> SharedBatch:
    return SharedBatch.of(batch.take(world.rows(len(batch))), Placement.in_turns(len(batch), world))


def same(one: Batch, other: Batch, captions: bool = True) -> None:
    assert torch.equal(one.images_BCHW, other.images_BCHW)
    assert torch.equal(one.image_key_B, other.image_key_B)
    assert torch.equal(one.text_key_B, other.text_key_B)
    assert all(torch.equal(one.token_ids[name], ids) for name, ids in other.token_ids.items() if one.token_ids)
    assert all(torch.equal(one.marks[name], mark) for name, mark in other.marks.items())
    assert not captions or one.captions == other.captions


def check_batches(world: World, tokenizer: Tokenizer) -> None:
    """What each holds of a batch, of pairs taken from it, and of pairs that all want to see."""
    generator = torch.Generator().manual_seed(0)
    for count in (world.size, 7, 24):
        whole = batch_of(count, tokenizer)
        spread = shared(whole, world)
        assert len(spread) == count
        same(spread.own, whole.take(world.rows(count)))
        for taken in range(1, count + 1):
            index = torch.randperm(count, generator=generator)[:taken]
            chosen = spread.take(index)
            assert len(chosen) == taken
            assert sorted(i for rows in world.everybodys(chosen.rows.tolist()) for i in rows) == list(range(taken))
            same(chosen.own, whole.take(index).take(chosen.rows), captions=False)
            same(spread.everywhere(index), whole.take(index))


@dataclass(frozen=True)
class OwnChoice:
    """Chooses another pair on each process; from −2 on it fails."""

    rank: int
    needs: ClassVar[frozenset[str]] = frozenset()
    prefers: ClassVar[dict[str, int]] = {}

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        if self.rank < -1:
            raise ValueError("on one process")
        return Selection(torch.tensor([self.rank, 5]), weight_K=torch.tensor([1.0, float(self.rank)]).abs())

    def leave_out(self, keys_N: Tensor, state: Remembered, progress: Moment, generator: torch.Generator) -> Tensor:
        return keys_N == self.rank


def check_agreement(world: World) -> None:
    """Who says what, and who hears it."""
    assert world.everybodys(world.rank) == list(range(world.size))
    for length in (0, HEAD - 100, HEAD, 3 * HEAD):  # of the last rank alone; the other ranks have little to send
        each = world.everybodys(b"x" * length if world.rank == world.size - 1 else b"")
        assert [*map(len, each)] == [*(0 for _ in range(world.size - 1)), length]
    assert world.first(lambda: world.rank) == 0
    assert [world.any(world.rank == r) for r in (*range(world.size), world.size)] == [True] * world.size + [False]
    chosen = choose(OwnChoice(world.rank), Scores(size=9), 2, torch.Generator())
    assert chosen.index_K.tolist() == [0, 5]
    assert chosen.weight_K.tolist() == [1.0, 0.0]
    for choice, error in ((-1, PolicyError), (-2, PolicyFailure)):  # of the last rank alone, raised on every one
        last = world.rank == world.size - 1
        with pytest.raises(error):
            choose(OwnChoice(choice if last else 0), Scores(size=9), 2, torch.Generator())
    out_N = leave_out(OwnChoice(world.rank), torch.arange(3), Remembered(), Moment(), torch.Generator())
    assert out_N.tolist() == [True, False, False], "rank 0's pairs on every process"
    with pytest.raises(ZeroDivisionError, match="division"):
        world.first(lambda: 1 // 0)
    with distributed.alone():
        assert distributed.world() == World()
    assert distributed.world() == world


def gradients(world: World, batch: Batch, model: Model, tokenizer: Tokenizer, options: dict) -> dict[str, Tensor]:
    """Gradients, before clipping, of one update in float64."""
    towers = model.build(tokenizer, options["loss"], 0).double()
    price = Price(1, 1)
    mix = options["mix"]
    learner = Learner(
        towers,
        Contrastive(options["loss"], mix, microbatch=options["microbatch"]),
        Optimizer(learning_rate=1e-9, clip=0.0),
        Arithmetic(torch.device("cpu"), False, world),
        {view: price for _, view in mix},
    )
    weight_K = torch.linspace(0.5, 1.5, len(batch), dtype=torch.float64) if options["weighted"] else None
    update = learner.update(batch, weight_K, 0.5, 1)
    found = {name: value.grad for name, value in towers.named_parameters() if value.grad is not None}
    return found | {"loss": torch.tensor(update.loss), "norm": torch.tensor(update.gradient_norm)}


def check_gradients(world: World, tokenizer: Tokenizer) -> None:
    """Those of all processes together are those of one, for each loss, mix of views, weights and micro-batch."""
    model = Model(
        image_size=16,
        patch_size=8,
        embed_dim=8,
        text_width=8,
        text_layers=1,
        text_heads=2,
        image_options={"embed_dim": 16, "depth": 2, "num_heads": 2},
    )
    plain, mixed = ((1.0, View()),), ((0.5, View()), (0.25, View(patch_size=4)), (0.25, View(layers=0.5)))
    for loss, mix, weighted, microbatch in itertools.product(
        ("sigmoid", "softmax"), (plain, mixed), (False, True), (None, 2)
    ):
        options = {"loss": loss, "mix": mix, "weighted": weighted, "microbatch": microbatch}
        whole = batch_of(13, tokenizer)
        alone = gradients(World(), whole, model, tokenizer, options)
        together = gradients(world, shared(whole, world), model, tokenizer, options)
        assert alone.keys() == together.keys(), options
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=1e-9, atol=1e-12, msg=f"{name} {options}")


def check_all(folder: Path) -> int:
    """All checks by the processes of a group; exit status 0 unless one of them fails."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer(train_bpe([f"word{i}" for i in range(30)], 300).to_str(), 6)
    with distributed.started() as world:
        assert world.size > 1
        check_batches(world, tokenizer)
        check_agreement(world)
        check_gradients(world, tokenizer)
        refused = ["run.batch_size=1", "run.super_batch_size=8"]
        # All refuse it; who comes later ends because another has failed.
        assert main([*command("jest", folder / "refused"), *refused]) in (1, 2)
        world.everybodys(None)  # rank 0, which serves the store, stays until all have ended the run
    return 0
