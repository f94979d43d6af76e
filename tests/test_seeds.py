"""Random streams: functions of seed, purpose and position, the same on every machine."""

from __future__ import annotations

import torch

from jestbench import seeds


def test_each_seed_stream_and_position_has_numbers_of_its_own() -> None:
    streams = ("init", "data", "select", "update")
    derived = [seeds.derive(seed, stream, at) for seed in range(5) for stream in streams for at in range(5)]
    assert len(set(derived)) == len(derived)
    assert all(0 <= value < 2**63 for value in derived)


def test_a_stream_is_the_same_wherever_it_is_made() -> None:
    assert seeds.derive(3, "data", 7) == 5300680554748150849
    one, other = (torch.rand(4, generator=seeds.generator(3, "data", 7)) for _ in range(2))
    assert torch.equal(one, other)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(4, generator=seeds.generator(0, "select"))
    assert torch.equal(torch.get_rng_state(), before)
