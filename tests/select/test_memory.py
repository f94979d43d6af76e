"""A policy's memory against a dictionary: reads, writes, bounds, checkpoints; its time at ten million pairs."""

from __future__ import annotations

import math
import time
import tracemalloc

import pytest
import torch

from jestbench.select import memory
from jestbench.select.memory import Memory


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("newest", [1, 7, 1 << 18])
def test_it_is_a_dictionary(newest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many steps, merging often, rarely or never; also once it went through a checkpoint."""
    monkeypatch.setattr(memory, "NEWEST", newest)
    held, plain, random = Memory(("a", "b")), dict[int, list[float]](), seeded(newest)
    for step in range(60):
        keys = torch.randperm(90, generator=random)[:13] * (1 << 55) - (1 << 61)
        found = held.read(keys)
        for at, key in enumerate(keys.tolist()):
            expected = plain.get(key, [math.nan, math.nan])
            got = [float(found[name][at]) for name in "ab"]
            assert all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in zip(got, expected, strict=True))
        numbers = {name: torch.rand(13, generator=random) for name in ("ab", "a", "b")[step % 3]}
        for name in numbers:
            numbers[name][step % 13] = math.nan  # leaves the number as it is
        held.write(keys, numbers)
        for at, key in enumerate(keys.tolist()):
            row = plain.setdefault(key, [math.nan, math.nan])
            for name, value_B in numbers.items():
                if not math.isnan(value_B[at]):
                    row["ab".index(name)] = float(value_B[at])
        if step % 20 == 19:
            state, held = held.state_dict(), Memory()
            held.load_state_dict(state)
    assert len(held) == len(plain)
    assert held.columns == ("a", "b")


def test_a_key_that_comes_twice_keeps_the_last_number() -> None:
    held = Memory(("a",))
    held.write(torch.tensor([5, 3, 5]), {"a": torch.tensor([1.0, 2.0, 3.0])})
    assert held.read(torch.tensor([3, 5, 4]))["a"].nan_to_num(-1).tolist() == [2.0, 3.0, -1.0]
    held.write(torch.tensor([5, 5]), {"a": torch.tensor([7.0, 8.0])})
    assert held.read(torch.tensor([5]))["a"].tolist() == [8.0]
    for _ in range(2):  # of a new key, and of one that is there
        held.write(torch.tensor([9, 5, 9]), {"a": torch.tensor([4.0, math.nan, math.nan])})
        assert held.read(torch.tensor([9, 5]))["a"].tolist() == [4.0, 8.0], "NaN leaves a number as it is"


def test_what_it_holds_is_known_before_it_is_written() -> None:
    held = Memory(("a",), limit=12 * 3)
    assert held.holds(torch.tensor([5, 3, 5])).tolist() == [False, True, True]
    held.write(torch.tensor([5, 3]), {"a": torch.tensor([1.0, 2.0])})
    assert held.holds(torch.tensor([9, 3, 8, 9, 3])).tolist() == [False, False, True, False, True], "the least new key"
    held.write(torch.tensor([9, 3, 8, 9, 3]), {"a": torch.ones(5)})
    assert held.read(torch.tensor([3, 5, 8, 9]))["a"].isnan().tolist() == [False, False, False, True]
    assert not held.holds(torch.empty(0, dtype=torch.int64)).numel()


def test_its_bytes_are_bounded_and_what_is_refused_is_counted() -> None:
    held = Memory(("a", "b", "c", "d"), limit=24 * 10)
    assert held.pair_bytes == 24
    held.write(torch.arange(8), {"a": torch.ones(8)})
    held.write(torch.arange(4, 16), {"b": torch.full((12,), 2.0)})
    assert held.counts() == {"memory/pairs": 10, "memory/bytes": 240, "memory/refused": 6}
    assert held.read(torch.arange(8))["b"].nan_to_num(0).tolist() == [0.0] * 4 + [2.0] * 4, "known pairs are written"
    with pytest.raises(ValueError, match="at most 4 numbers"):
        Memory("abcde")


def test_a_checkpoint_takes_no_second_copy_of_it() -> None:
    held = Memory(("a",))
    held.write(torch.arange(200_000), {"a": torch.rand(200_000, generator=seeded())})
    held.state_dict()
    tracemalloc.start()
    state = held.state_dict()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < held.nbytes / 10
    assert state["key"].nbytes + state["numbers"]["a"].nbytes == held.nbytes


@pytest.mark.slow
def test_ten_million_pairs_are_read_and_written_within_50_ms_a_step() -> None:
    held, count = Memory(("a", "b")), 10_000_000
    keys = torch.unique(torch.randint(-(2**62), 2**62, (count,), generator=seeded()))
    held.load_state_dict(
        {"key": keys, "refused": 0, "numbers": {"a": torch.zeros(len(keys)), "b": torch.zeros(len(keys))}}
    )
    seconds = []
    for step in range(40):
        old = keys[torch.randint(len(keys), (4096,), generator=seeded(step))]
        asked = torch.cat([old, torch.randint(-(2**62), 2**62, (4096,), generator=seeded(-step))])
        begin = time.perf_counter()
        held.read(asked)
        held.write(asked, {"a": torch.ones(8192)})
        seconds.append(time.perf_counter() - begin)
    assert sorted(seconds)[20] < 0.05, "a step; merges of new keys, one in dozens of steps, take longer"
