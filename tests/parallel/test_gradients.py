"""Gradients of several processes are those of one: averaged (DDP) and sharded (FSDP2), under every way to train."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from together import batch_of, shared
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from jestbench.batch import FULL, Batch, Mix, View
from jestbench.cost.price import Price
from jestbench.engine.contrastive import Contrastive
from jestbench.engine.learner import Learner
from jestbench.engine.optimizer import Optimizer
from jestbench.launch import command
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.model.towers import Model
from jestbench.parallel import distributed
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.parallel.distributed import World
from jestbench.select.losses import LossName

ROOT = Path(__file__).resolve().parents[2]
IMAGE = {"embed_dim": 16, "depth": 3, "num_heads": 2}
SHAPE = Model(image_size=16, embed_dim=8, text_width=8, text_layers=2, text_heads=2, image_options=IMAGE)
MAP = {"class_token": False, "global_pool": "map"}
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
    "a part of the mix that holds no pair": Case(((0.02, FULL), (0.98, SHORT))),
    "locked": Case(((0.5, FULL), (0.5, THIN)), model=replace(SHAPE, freeze="image")),
    "locked, cached": Case(micro=3, model=replace(SHAPE, freeze="image")),
    "checkpointed": Case(((0.5, FULL), (0.5, THIN)), rerun=True),
    "checkpointed, cached": Case(((0.5, FULL), (0.5, SHORT)), micro=4, rerun=True),
    "another tower": Case(
        model=replace(SHAPE, image_tower="eva02_tiny_patch14_224", image_options=IMAGE | {"num_heads": 2})
    ),
    "no blocks": Case(model=replace(SHAPE, image_size=32, image_tower="test_convnext", image_options={})),
    "pooled by attention": Case(model=replace(SHAPE, text_pool="attention", image_options=IMAGE | MAP)),
    "fewer pairs than processes": Case(((0.5, FULL), (0.5, THIN)), count=2),
    "fewer pairs than processes, cached": Case(count=2, micro=1),
}
SHARDED = (
    "clipped",
    "cached",
    "blocks that nobody runs",
    "views without a row on some process",
    "cached, views without a row on some process",
    "locked",
    "checkpointed",
    "checkpointed, cached",
    "no blocks",
    "fewer pairs than processes",
)
FEW = (
    (
        *("softmax", "cached", "views without a row on some process", "a part of the mix that holds no pair"),
        *("locked, cached", "checkpointed, cached"),
    ),
    ("clipped", "cached, views without a row on some process", "fewer pairs than processes"),
)
"""Ways of the default suite: averaged, and sharded."""


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


def trained_on(learner: Learner, world: World, tokenizer: Tokenizer) -> list[Tensor]:
    """What a learner scores between three updates: other numbers of pairs than it trains on, one at a time."""
    scored = []
    for step, count in enumerate((2, 7, 4)):
        scores = learner.score(shared(batch_of(count, tokenizer), world))
        assert scores.learner is not None
        scored += [scores.learner.image_BD, scores.learner.text_BD]
        learner.update(shared(batch_of(10, tokenizer), world), None, 0.5, step)
    return scored


def check_states(tokenizer: Tokenizer, world: World) -> None:
    """Sharded towers, stopped and gone on with by one process and back, are those of one process."""
    # A larger ε: what is added to a moment of rounding errors must not become a step.
    case = Case(((0.6, FULL), (0.4, SHORT)), micro=4, options={"epsilon": 1e-4})
    alone, sharded = learner_of(case, tokenizer, World()), learner_of(case, tokenizer, world, shard=True)
    for one, many in zip(trained_on(alone, World(), tokenizer), trained_on(sharded, world, tokenizer), strict=True):
        torch.testing.assert_close(many, one, rtol=1e-9, atol=1e-12)

    spread = [value for value in sharded.model.parameters() if hasattr(value, "full_tensor")]
    held, all_of = (sum(map(count, spread)) for count in (lambda p: p.to_local().numel(), torch.Tensor.numel))
    assert len(spread) == len(list(alone.model.parameters())) - 2, "all but scale and bias"
    assert held < 0.5 * all_of
    assert all(sharded.optimizer.state[value]["exp_avg"].to_local().shape == value.to_local().shape for value in spread)

    states = world.everybodys(sharded.state_dict())
    assert all(not state["model"] and not state["optimizer"] for state in states[1:])
    state, expected = states[0], deepcopy(alone.state_dict())
    assert_equal(expected["model"], state["model"], "weights")
    groups = [[group | {"lr": 0} for group in one["optimizer"]["param_groups"]] for one in (expected, state)]
    assert groups[0] == groups[1]
    moments = [one["optimizer"]["state"] for one in (expected, state)]
    assert moments[0].keys() == moments[1].keys()
    for number, values in moments[0].items():
        assert_equal(values, moments[1][number], f"moments {number}")

    again, other = learner_of(case, tokenizer, World()), learner_of(case, tokenizer, world, shard=True)
    again.load_state_dict(state)
    other.load_state_dict(expected)
    for learner, place in ((alone, World()), (again, World()), (other, world)):
        trained_on(learner, place, tokenizer)
    for found in (again.state_dict(), world.everybodys(other.state_dict())[0]):
        assert_equal(alone.state_dict()["model"], found["model"], "weights, gone on with")


def check_bf16(tokenizer: Tokenizer, world: World) -> None:
    """Under autocast sharded towers do what averaged ones do, but for the order of sums."""
    case, batch = Case(((0.5, FULL), (0.5, THIN)), 8, rerun=True), batch_of(8, tokenizer)
    averaged, sharded = (
        updated(learner_of(case, tokenizer, world, shard, bf16=True), shared(batch, world)) for shard in (False, True)
    )
    for name, value in averaged.items():
        torch.testing.assert_close(sharded[name], value, rtol=1e-4, atol=1e-5, msg=name)


def check_unusable(tokenizer: Tokenizer, world: World) -> None:
    """A step that a GPU finds unusable when it has been taken changes no sharded weight."""
    learner = learner_of(Case(), tokenizer, world, shard=True)
    batch = shared(batch_of(7, tokenizer), world)
    for unusable in (0.0, 1.0):
        learner.optimizer.found_inf = torch.tensor(unusable)
        before = {name: whole(value).clone() for name, value in learner.model.state_dict().items()}
        learner.update(batch, None, 0.5, 0)
        same = [torch.equal(whole(value), before[name]) for name, value in learner.model.state_dict().items()]
        assert all(same) if unusable else not any(same), unusable


def check_passes(world: World) -> None:
    """All pairs are embedded by one process each, and no process holds more than its part of a micro-batch."""
    objective = Contrastive("sigmoid", ((0.5, FULL), (0.3, THIN), (0.2, SHORT)), microbatch=8)
    rank_K = torch.tensor([0, 0, 0, 2, 2, 1, 2, 2, 0, 0, 1, 1])
    places = [(rank_K == rank).nonzero().flatten() for rank in range(3)]
    for even in (False, True):
        pieces = [objective.pieces(rank_K, replace(world, rank=rank), even) for rank in range(3)]
        assert max(len(index) for one in pieces for _, index in one) == 3
        embedded = [torch.cat([place[index] for _, index in one]) for place, one in zip(places, pieces, strict=True)]
        assert torch.cat(embedded).sort().values.tolist() == list(range(12))
        views = [[view for view, _ in one] for one in pieces]
        assert (views[0] == views[1] == views[2]) == even
        for place, one in zip(places, pieces, strict=True):
            seen = [(int(k), view) for view, index in one for k in place[index]]
            assert all(view == (FULL if k < 6 else THIN if k < 10 else SHORT) for k, view in seen)


def check_all(ways: str) -> int:
    """What each of three processes checks."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer(train_bpe([f"word{i}" for i in range(30)], 300).to_str(), 6)
    averaged, sharded = FEW if ways == "few" else (tuple(CASES), SHARDED)
    with distributed.started() as world:
        check_passes(world)
        for name in averaged:
            check_case(name, tokenizer, world, shard=False)
        for name in sharded:
            check_case(name, tokenizer, world, shard=True)
        check_states(tokenizer, world)
        check_bf16(tokenizer, world)
        check_unusable(tokenizer, world)
    return 0


@pytest.mark.parametrize("ways", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_gradients_and_states_of_three_processes_are_those_of_one(ways: str, tmp_path: Path) -> None:
    """In one test: the processes start once."""
    forked.all_end_well(forked.ranks(3, lambda rank: check_all(ways), tmp_path), 200)


def test_what_cannot_be_sharded_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--gin_file", str(ROOT / "gin/run/tiny_cappy.gin"), "run.shard=True", "--check"]) == 2
    assert "run.shard: a pair scorer is trained by one process" in capsys.readouterr().err
    monkeypatch.delattr(FSDPModule, "set_force_sum_reduction_for_comms")
    tokenizer = Tokenizer(train_bpe(["word"], 300).to_str(), 6)
    with pytest.raises(ValueError, match=r"run.shard = True on CPUs needs torch 2.9 or newer"):
        learner_of(Case(), tokenizer, World(0, 2), shard=True)
