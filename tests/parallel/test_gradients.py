"""Gradients of several processes are those of one: averaged (DDP) and sharded (FSDP2), under every way to train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from together import batch_of, shared
from torch import Tensor

from jestbench.batch import FULL, Batch, Mix, View
from jestbench.cost.price import Price
from jestbench.engine.contrastive import Contrastive
from jestbench.engine.learner import Learner
from jestbench.engine.optimizer import Optimizer
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.model.towers import Model
from jestbench.parallel import distributed
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.parallel.distributed import World
from jestbench.select.losses import LossName

ROOT = Path(__file__).resolve().parents[2]
IMAGE = {"embed_dim": 16, "depth": 3, "num_heads": 2}
SHAPE = Model(image_size=16, embed_dim=8, text_width=8, text_layers=2, text_heads=2, image_options=IMAGE)
PLAIN: Mix = ((1.0, FULL),)
SHORT, THIN = View(layers=0.3, text_layers=0.5), View(keep=0.5, text_length=5)


@dataclass(frozen=True)
class Case:
    """A way to train.

    Attributes:
        mix: views of the sub-batch.
        count: pairs of it.
        micro: ``train_microbatch``.
        loss: of the towers.
        model: their shape.
        rerun: activation checkpointing.
        options: of the optimizer.
    """

    mix: Mix = PLAIN
    count: int = 7
    micro: int | None = None
    loss: LossName = "sigmoid"
    model: Model = SHAPE
    rerun: bool = False
    options: Mapping[str, float] = field(default_factory=lambda: {"clip": 0.0})


CASES: dict[str, Case] = {
    "plain": Case(),
    "softmax": Case(loss="softmax"),
    "clipped": Case(options={"clip": 1e-3}),
    "cached": Case(micro=4),
    "blocks that nobody runs": Case(((1.0, SHORT),)),
    "cached, blocks that nobody runs": Case(((1.0, SHORT),), micro=3),
    "mix, the part of blocks last": Case(((0.5, FULL), (0.5, SHORT))),
    "views without a row on some process": Case(((0.5, THIN), (0.2, FULL), (0.3, SHORT)), 6),
    "cached, views without a row on some process": Case(((0.6, FULL), (0.2, THIN), (0.2, SHORT)), 10, micro=4),
    "locked": Case(((0.5, FULL), (0.5, THIN)), model=replace(SHAPE, freeze="image")),
    "locked, cached": Case(micro=3, model=replace(SHAPE, freeze="image")),
    "checkpointed": Case(((0.5, FULL), (0.5, THIN)), rerun=True),
    "checkpointed, cached": Case(((0.5, FULL), (0.5, SHORT)), micro=4, rerun=True),
    "another tower": Case(
        model=replace(SHAPE, image_tower="eva02_tiny_patch14_224", image_options=IMAGE | {"num_heads": 2})
    ),
    "no blocks": Case(
        model=replace(SHAPE, image_size=32, image_tower="test_convnext", image_options={}, embed_dim=8),
    ),
}
SHARDED = [name for name in CASES if name not in ("softmax", "cached, blocks that nobody runs")]


def learner_of(case: Case, tokenizer: Tokenizer, world: World, shard: bool = False, bf16: bool = False) -> Learner:
    towers = case.model.build(tokenizer, case.loss, 0)
    prices = {view: Price(3, 2) for view in {FULL, *(view for _, view in case.mix)}}
    return Learner(
        towers if bf16 else towers.double(),
        Contrastive(case.loss, case.mix, prices if case.rerun else None, case.micro),
        Optimizer(learning_rate=1e-2, warmup=0.0, **case.options),
        Arithmetic(torch.device("cpu"), bf16, world),
        prices,
        shard=shard,
    )


def whole(value: Tensor) -> Tensor:
    """The value of a sharded tensor as one process holds it."""
    return getattr(value, "full_tensor", lambda: value)()


def updated(learner: Learner, batch: Batch, steps: int = 1) -> dict[str, Tensor]:
    """Gradients by name, after clipping, of the last of some updates; their norm before; the loss; the price."""
    for step in range(steps):
        update = learner.update(batch, torch.linspace(0.5, 1.5, len(batch)).double(), 0.5, step)
    named = {name: whole(value.grad) for name, value in learner.model.named_parameters() if value.grad is not None}
    numbers = {"loss": update.loss, "norm": update.gradient_norm, "macs": sum(one.macs for one in update.passes)}
    return named | {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}


def assert_equal(one: Mapping[str, Any], many: Mapping[str, Any], what: str) -> None:
    assert one.keys() == many.keys(), (what, one.keys() ^ many.keys())
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, rtol=1e-9, atol=1e-12, msg=f"{what}: {name}")


def check_case(name: str, tokenizer: Tokenizer, world: World, shard: bool) -> None:
    case, what = CASES[name], f"{name}, {'sharded' if shard else 'averaged'}"
    batch = batch_of(case.count, tokenizer)
    alone = updated(learner_of(case, tokenizer, World()), batch)
    assert_equal(alone, updated(learner_of(case, tokenizer, world, shard), shared(batch, world)), what)


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = Tokenizer(train_bpe([f"word{i}" for i in range(30)], 300).to_str(), 6)
    with distributed.started() as world:
        for name in CASES:
            check_case(name, tokenizer, world, shard=False)
            print("ddp", name, flush=True)
        for name in SHARDED:
            check_case(name, tokenizer, world, shard=True)
            print("fsdp", name, flush=True)


if __name__ == "__main__":
    main()
