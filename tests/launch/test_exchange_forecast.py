"""The bytes that several processes will send: what is printed, and how many chosen pairs change their process."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import small_world

from jestbench.config import resolve
from jestbench.launch.exchange_forecast import StepSizes
from jestbench.launch.forecast import price_table, sizes
from jestbench.parallel.distributed import World
from jestbench.parallel.placement import Placement
from jestbench.parallel.traffic import Joined

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
