"""The bytes that several processes will send: what is printed, and how many chosen pairs change their process."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from helpers import small_world
from thread_world import ThreadWorld, by_threads

import policies
from jestbench import seeds
from jestbench.config import resolve
from jestbench.launch.exchange_forecast import StepSizes
from jestbench.launch.forecast import RunForecast, price_table, sizes
from jestbench.parallel.distributed import World
from jestbench.parallel.placement import Placement
from jestbench.parallel.traffic import Joined
from jestbench.select import Embeddings, Scores
from jestbench.select.losses import LossName
from jestbench.select.policy import choose, initial_state
from jestbench.select.remembering import imagined
from jestbench.select.scores import SIDES

SIZES = StepSizes(960, (96, 24), 0, (), "sigmoid", pair=1000, description=0, weights=0, joined=Joined())


@pytest.mark.parametrize("processes", [2, 3])
def test_as_many_chosen_pairs_move_as_placements_move_on_average(processes: int) -> None:
    generator, moved = torch.Generator().manual_seed(0), 0
    placement = Placement.in_turns(SIZES.super_batch, World(0, processes))
    for _ in range(400):
        index_K = torch.randperm(SIZES.super_batch, generator=generator)[: sum(SIZES.parts)]
        to = placement.taken(index_K, SIZES.parts)
        moved += int((to.rank_B != placement.rank_B[index_K]).sum())
    assert SIZES.sent(processes)["chosen_pairs"] == pytest.approx(1000 * moved / 400 / processes, rel=0.05)


def test_a_batch_that_is_the_super_batch_moves_nothing() -> None:
    whole = StepSizes(120, (120,), 0, (), "sigmoid", pair=1000, description=0, weights=0, joined=Joined())
    assert whole.sent(3)["chosen_pairs"] == 0


def test_the_price_names_what_as_many_processes_send_as_torchrun_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = resolve.resolve(["gin/run/tiny.gin", "gin/policy/hard_learner.gin"], small_world(8, 24))
    found, printed = sizes(resolved), {}
    for processes in (1, 3):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        printed[processes] = re.search(
            r"each of (\d) processes sends ([\d,]+) bytes a step: (.*)", price_table(resolved)
        )
    for asked, counted in ((1, 8), (3, 3)):
        sent, match = found.sent(counted), printed[asked]
        assert match is not None
        assert (int(match[1]), int(match[2].replace(",", ""))) == (counted, sum(sent.values()))
        assert f"weight gradients {sent['weight_gradients']:,}" in match[3]
    # One embedding a side for each of 8 rows of B and of 3 of b, to two others; one sum of the policy's for each row.
    assert found.sent(3)["embeddings"] == 2 * (8 + 3) * 2 * 4 * 64
    assert found.sent(3)["strip_sums"] > 0
    assert found.sent(3)["loss_gradients"] == 2 * 3 * 4 * (64 + 2) + 2 * 8 * 8 + -(-2 * 2 * (8 * 64 + 3) * 4 // 3)


READERS = [name for name in policies.available() if policies.get(name).needs & set(SIDES)]


CHOICES = [*((name, "sigmoid", "") for name in READERS), ("grad_norm", "softmax", ""), ("jest", "softmax", "")]
CHOICES += [("clip_loss", "sigmoid", "clip_loss.batch=8")]


@pytest.mark.parametrize(("name", "loss", "binding"), CHOICES)
def test_what_a_choice_joins_is_forecast_to_the_byte(name: str, loss: LossName, binding: str) -> None:
    """For each policy that reads embeddings: 25 pairs, which two or three processes share unevenly."""
    bindings = [*small_world(8, 25), f"run.loss={loss}", *([binding] if binding else [])]
    resolved = resolve.resolve(["gin/run/tiny.gin", f"gin/policy/{name}.gin"], bindings)
    forecast, policy = RunForecast.of(resolved), resolved.policy
    actors = [actor for role, actor in forecast.stages.scorer.actors.items() if role in policy.needs]

    def sent(world: ThreadWorld) -> int:
        random = seeds.generator(0, "check")
        given = Scores.joined((actor.imagined(25, 1, random) for actor in actors), 25, loss, world)
        for side, model in given.models().items():
            computed = Embeddings(model.image_BD, model.text_BD)
            given = replace(given, **{side: computed})
        choose(policy, imagined(policy, given, random), 8, random, initial_state(policy))
        return world.counts["sent"]

    for processes in (2, 3):
        counted = by_threads(processes, sent)
        assert set(counted) == {forecast.sizes.sent(processes)["strip_sums"]}
        assert counted[0] > 0
