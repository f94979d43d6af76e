"""The bytes that torch's engines send: counted, forecast, and seen by torch itself, are one number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from helpers import rows_of, small_world
from test_gradients import CASES, SHARDED, learner_of
from together import batch_of, shared
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jestbench.config.resolve import resolve
from jestbench.engine.spread_weights import SpreadWeights
from jestbench.launch import command
from jestbench.launch.forecast import sizes
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.parallel import distributed
from jestbench.parallel.distributed import World
from jestbench.parallel.traffic import TRADED, TRAFFIC

SPREAD = (*SHARDED, "mix, the part of blocks last", "pooled by attention", "fewer pairs than processes, cached")
FEW = (("cached, views without a row on some process", "mix, the part of blocks last", "locked"), ("clipped",))
"""Ways of the default suite: spread, and averaged."""
AVERAGED = ("clipped", "cached", "blocks that nobody runs", "views without a row on some process", "locked")


class Collectives(TorchDispatchMode):
    """Sees each collective that torch runs, in the backward pass and in torch's own engines, too.

    Attributes:
        sent: bytes that a process sends by ring algorithms, by operator.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.sent = size, Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), more: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it dispatches to operators of its parts, which are seen
        namespace, _, name = function._schema.name.partition("::")
        if "c10d" in namespace and name not in ("wait_tensor", "_wrap_tensor_autograd"):
            held = [tree_leaves(each) for each in arguments]
            tensors = [[each for each in one if isinstance(each, torch.Tensor)] for one in held]
            sizes = [sum(each.nbytes for each in one) for one in tensors if one]
            others = self.size - 1
            if name in ("allreduce_", "all_reduce"):
                self.sent[name] += -(-2 * sizes[0] * others // self.size)
            else:  # what is gathered, or the result of a reduction: one process's part is the smaller one
                assert name in ("allgather_", "_allgather_base_", "_reduce_scatter_base_"), name
                self.sent[name] += min(sizes) * others
        return function(*arguments, **(more or {}))


def check(name: str, tokenizer: Tokenizer, world: World, shard: bool) -> None:
    """Count, forecast and what torch runs of a step, scoring and an update; the first two set the engines up."""
    case = CASES[name]
    learner = learner_of(case, tokenizer, world, shard)
    batch, asked = shared(batch_of(case.count, tokenizer), world), shared(batch_of(2 * case.count, tokenizer), world)
    passes = partial(learner.objective.passes_through, case.count)
    forecast = SpreadWeights.of(learner_of(case, tokenizer, World()).model, learner.trained_under, passes, scored=True)
    for step in range(2):
        learner.update(batch, None, 0.5, step)
    TRAFFIC.since_last()
    with Collectives(world.size) as seen:
        learner.score(asked)
        learner.update(batch, None, 0.5, 2)
    counted = TRAFFIC.since_last()
    what = f"{name}, {'spread' if shard else 'averaged'}: {counted}, {seen.sent}"
    assert sum(counted[purpose] for purpose in TRADED) == seen.sent.total(), what
    if shard:
        assert counted["weights"] == seen.sent["_allgather_base_"], what
        assert counted["weight_gradients"] == seen.sent["_reduce_scatter_base_"], what
        assert (counted["weights"], counted["weight_gradients"]) == forecast.sent(world.size), f"{what}; {forecast}"


def check_all(spread: Sequence[str], averaged: Sequence[str]) -> int:
    """What each of several processes checks."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer(train_bpe([f"word{i}" for i in range(30)], 300).to_str(), 6)
    with distributed.started() as world:
        for shard, names in ((True, spread), (False, averaged)):
            for name in names:
                check(name, tokenizer, world, shard)
    return 0


@pytest.mark.parametrize("ways", [FEW, pytest.param((SPREAD, AVERAGED), marks=pytest.mark.slow)], ids=["few", "all"])
def test_what_torch_sends_is_counted_and_forecast_to_the_byte(
    ways: tuple[Sequence[str], Sequence[str]], tmp_path: Path
) -> None:
    forked.all_end_well(forked.ranks(3, lambda rank: check_all(*ways), tmp_path), 200)


ARM = ["--gin_file", "gin/run/tiny.gin", "--gin_file", "gin/policy/hard_learner.gin", *small_world(8, 24)]
ARM += ["run.budget=None", "budget.steps=4", "run.checkpoints=1", "evaluate.points=2", "log.every=1"]
ARM += ["log.progress=False", "run.device=cpu", "run.shard=True", "run.train_microbatch=4"]


def test_a_sharded_run_sends_what_its_price_says(tmp_path: Path) -> None:
    expected = sizes(resolve([ARM[1], ARM[3]], ARM[4:])).sent(2)
    words = [*ARM, "--run_dir", str(tmp_path / "run")]
    forked.all_end_well(forked.ranks(2, lambda rank: command.main(words), tmp_path))
    rows = [row for row in rows_of(tmp_path / "run") if "exchange/weights" in row]
    assert len(rows) >= 4
    for row in rows:
        for purpose in ("weights", "weight_gradients", "embeddings", "loss_gradients", "strip_sums"):
            assert row[f"exchange/{purpose}"] == expected[purpose] > 0, (row["step"], purpose)
    assert max(row["exchange/evaluation"] for row in rows) > sum(expected.values()) / 8, "weights for the evaluation"
