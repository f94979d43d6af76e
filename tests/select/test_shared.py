"""Selection and losses that several processes share out: the values of one process, its ledger, a part of its work."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from thread_world import ThreadWorld, by_threads
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import policies
from jestbench import Embeddings, Scores, Selection, conditional_logits
from jestbench.parallel import distributed
from jestbench.parallel.distributed import World
from jestbench.parallel.peers import LostProcess
from jestbench.select import joint_draw
from jestbench.select.contract import PolicyFailure
from jestbench.select.losses import LOSSES, EqualPairs
from jestbench.select.policy import choose

each_loss = pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
WORLDS = (1, 2, 3, 4)
RULES = [("sigmoid", None), ("softmax", None), ("sigmoid", "masked"), ("softmax", "masked"), ("sigmoid", "positive")]
WIDTH = 6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(size: int, seed: int, scale: float = 6.0, bias: float = -3.0) -> Embeddings:
    random = torch.randn(2, size, WIDTH, generator=seeded(seed), dtype=torch.float64)
    return Embeddings(*torch.nn.functional.normalize(random, dim=2), scale, bias)


def scores_of(size: int, loss: str, rule: str | None = None, world: World | None = None) -> Scores:
    groups = torch.randint(max(1, size // 3), (size,), generator=seeded(9))
    more: dict[str, Any] = {} if rule is None else {"group_B": groups, "equal": rule}
    both = embeddings(size, 1), embeddings(size, 2, 7.0, -4.0)
    return Scores(*both, loss=loss, world=world or World(), **more)


def quantities(scores: Scores) -> dict[str, Tensor]:
    """All that a policy can ask for over several pairs."""
    size = len(scores)
    draw = joint_draw(scores, -(-size // 3), 4, generator=seeded())
    some_P = torch.randperm(size, generator=seeded(3))[: -(-size // 2)]
    halves = (torch.arange(0, size, 2), torch.arange(1, size, 2))
    halves = tuple(part for part in halves if len(part))
    found = {
        "chosen": draw.index_K,
        "diagonal": draw.score_B,
        "conditional": conditional_logits(scores, some_P),
        "learnability": scores.learnability_B("in_batch"),
        "own cosines": scores.own_cosine_B("reference"),
        "own logits": scores.only("reference").own_logit_B("reference"),
        "gradient norms": scores.gradient_norm_B("learner"),
        "of some pairs": scores.take(some_P).pair_loss_B("learner", "in_batch"),
        "cosines": scores.cosines("learner"),
        "a row": scores.cosines("learner", some_P[:1]),
        "a column": scores.cosines("learner", None, some_P[:1]),
        "a block": scores.cosines("learner", some_P, some_P[:1]),
    }
    twins = tuple((index_P, scores.side("reference").take(index_P)) for index_P in halves)
    for number, (_, part) in enumerate(replace(scores, reference=None, unseen=twins).parts()):
        found[f"part {number}"] = part.learnability_B("in_batch")
    return found


def assert_everybodys(found: list[dict[str, Tensor]], wanted: dict[str, Tensor]) -> None:
    """Bit-equal on all processes, and what one process computes but for the order of its sums."""
    for one in found:
        assert one.keys() == wanted.keys()
        for name, value in one.items():
            assert torch.equal(value, found[0][name]), f"{name} differs between processes"
            torch.testing.assert_close(value, wanted[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize(("loss", "rule"), RULES)
def test_scores_are_those_of_one_process(loss: str, rule: str | None) -> None:
    for size, n in itertools.product((41, 3), WORLDS):
        wanted = quantities(scores_of(size, loss, rule))

        def ask(world: ThreadWorld, size: int = size) -> dict[str, Tensor]:
            return quantities(scores_of(size, loss, rule, world))

        assert_everybodys(by_threads(n, ask), wanted)


def test_models_of_two_number_formats_travel_together() -> None:
    learner = embeddings(11, 1)
    coarse = Embeddings(learner.image_BD.float(), learner.text_BD.float(), 5.0, -2.0)
    wanted = joint_draw(Scores(learner, coarse), 7, 3, generator=seeded())
    for draw in by_threads(2, lambda world: joint_draw(Scores(learner, coarse, world=world), 7, 3, generator=seeded())):
        assert torch.equal(draw.index_K, wanted.index_K)


ASKED: dict[str, Callable[[Scores], object]] = {
    "jest": lambda scores: choose(policies.create("jest", chunks=5), scores, 17, seeded()),
    "learnability": lambda scores: scores.learnability_B("in_batch"),
    "grad_norm": lambda scores: scores.gradient_norm_B("learner"),
    "neighbours": lambda scores: choose(policies.create("neighbours"), scores, 17, seeded()),
}


class Counted(TorchDispatchMode):
    """Multiply-adds of matrix products, and the elements of the largest tensor that an operator returns."""

    LEFT: ClassVar = {torch.ops.aten.mm: 0, torch.ops.aten.bmm: 0, torch.ops.aten.addmm: 1, torch.ops.aten.addmm_: 1}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # else torch imports its compiler, which leaves a temporary folder
        return False

    def __init__(self) -> None:
        super().__init__()
        self.macs = self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (left := self.LEFT.get(func.overloadpacket)) is not None:
            self.macs += out.numel() * args[left].shape[-1]
        for part in out if isinstance(out, tuple | list) else (out,):
            self.elements = max(self.elements, part.numel() if isinstance(part, Tensor) else 0)
        return out


@each_loss
@pytest.mark.parametrize("name", ASKED)
def test_work_falls_with_the_number_of_processes_and_the_ledger_stays(name: str, loss: str) -> None:
    size, ask = 101, ASKED[name]
    one = scores_of(size, loss)
    ask(one)
    diagonals = 2 * size * WIDTH if name in ("jest", "learnability") else 0  # no matrix products

    for n in WORLDS:
        share = -(-size // n)

        def work(world: ThreadWorld) -> tuple[int, int, int, int]:
            scores = scores_of(size, loss, None, world)
            with Counted() as counted:
                ask(scores)
            return scores.meter.macs, scores.meter.own_macs, counted.macs, counted.elements

        found = by_threads(n, work)
        assert {macs for macs, *_ in found} == {one.meter.macs}, "what is charged depends on no number of processes"
        assert sum(own for _, own, *_ in found) == one.meter.macs, "together they compute what is charged"
        for rank, (_, own, products, elements) in enumerate(found):
            rows = min(share, max(0, size - rank * share))
            assert own * size == one.meter.macs * rows
            assert products * size == (one.meter.macs - diagonals) * rows, "what is counted as computed is computed"
            assert elements <= share * size + size


def loss_terms(loss: str, rule: str | None, weighted: bool, size: int, world: World) -> dict[str, Tensor]:
    """Value and gradients of a loss, and each pair's own losses."""
    model = embeddings(size, 5)
    parts = [part.clone() for part in (model.image_BD, model.text_BD)]
    parts += [torch.tensor(value, dtype=torch.float64) for value in (6.0, -3.0)]
    parts = [part.requires_grad_() for part in parts]
    weight_K = torch.linspace(0.2, 2, size, dtype=torch.float64) if weighted else None
    equal = None if rule is None else EqualPairs(torch.arange(size) % max(1, size // 2), rule)
    each: list[tuple[Tensor, Tensor]] = []
    value = LOSSES[loss](*parts, weight_K, equal, each, world)
    (3 * value).backward()
    slopes = {name: part.grad for name, part in zip("xytb", parts, strict=True) if part.grad is not None}
    with torch.no_grad():
        plain = LOSSES[loss](*parts, weight_K, equal, None, world)
    return {"value": value.detach(), "plain": plain, "images": each[0][0], "texts": each[0][1]} | slopes


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("loss", "rule"), [*RULES, ("softmax", "positive")])
def test_losses_and_gradients_are_whole_on_every_process(loss: str, rule: str | None, weighted: bool) -> None:
    for size, n in itertools.product((23, 3), WORLDS):
        wanted = loss_terms(loss, rule, weighted, size, World())

        def terms(world: ThreadWorld, size: int = size) -> dict[str, Tensor]:
            return loss_terms(loss, rule, weighted, size, world)

        assert_everybodys(by_threads(n, terms), wanted)


@each_loss
def test_a_losss_work_and_memory_fall_with_the_number_of_processes(loss: str) -> None:
    size, of_one = 211, {"sigmoid": 3, "softmax": 4}[loss]  # in blocks, the softmax loss makes its logits twice

    def work(world: ThreadWorld) -> tuple[int, int]:
        with Counted() as counted:
            loss_terms(loss, None, False, size, world)
        return counted.macs, counted.elements

    assert work(ThreadWorld())[1] == size * size
    for n in WORLDS[1:]:
        share = -(-size // n)
        for rank, (products, elements) in enumerate(by_threads(n, work)):
            rows = min(share, size - rank * share)
            assert products == (of_one + 1) * rows * size * WIDTH  # once more without gradients
            assert elements <= share * size


def test_a_step_has_few_collectives() -> None:
    """docs/selection.md gives these numbers."""
    size, count = 40, 20

    def select(world: ThreadWorld) -> dict[str, int]:
        joint_draw(scores_of(size, "sigmoid", None, world), count, 16, generator=seeded())
        return dict(world.counts)

    def learn(loss: str) -> dict[str, int]:
        found = by_threads(2, lambda world: loss_terms(loss, None, False, size, world) and world.counts)[0]
        return {kind: found[kind] for kind in ("gather", "add")}

    drawn = by_threads(4, select)[0]
    assert drawn["gather"] == 16
    assert drawn["add"] == 0
    assert drawn["bytes"] == 8 * (2 + 15 * 4) * size // 4
    # The loss with its gradients and each pair's losses, and once more without.
    assert learn("sigmoid") == {"gather": 1, "add": 2 + 1}
    assert learn("softmax") == {"gather": 2 + 1, "add": 1 + 1}


def test_another_process_that_is_lost_is_not_the_policys_fault() -> None:
    class Lost(World):
        def gather(self, own_X: Tensor) -> Tensor:
            raise LostProcess("process 0 ends because another process has ended")

    with pytest.raises(LostProcess):
        choose(policies.create("jest"), scores_of(9, "sigmoid", None, Lost(0, 2)), 3, seeded())


def test_a_policy_that_fails_alone_does_not_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may stand in a collective of the scores, where the failed process never comes."""

    class Failing:
        needs, prefers = frozenset({"learner"}), {}

        def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
            raise ValueError("on this process alone")

    class Busy(World):
        def everybodys(self, value: Any) -> list[Any]:
            raise AssertionError("waits for processes that are elsewhere")

    busy = Busy(0, 2)
    monkeypatch.setattr(distributed, "world", lambda: busy)
    with pytest.raises(PolicyFailure, match="on this process alone"):
        choose(Failing(), scores_of(9, "sigmoid", None, busy), 3, seeded())


def one_of_two(rank: int, folder: Path) -> None:
    """A process of the group in the next test."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = distributed.world()
    found = [quantities(scores_of(41, loss, rule, world)) for loss, rule in RULES]
    found += [loss_terms(loss, "masked", True, 23, world) for loss in LOSSES]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_over_gloo_too(tmp_path: Path) -> None:
    """In one test: the processes start once."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=one_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    wanted = [quantities(scores_of(41, loss, rule)) for loss, rule in RULES]
    wanted += [loss_terms(loss, "masked", True, 23, World()) for loss in LOSSES]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for case, expected in enumerate(wanted):
        assert_everybodys([one[case] for one in found], expected)
