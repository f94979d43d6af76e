"""Each pair is read by one process: the order, counts and states of one process, for any number of processes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import files_of, jpeg, write_numbered_shards
from thread_world import ThreadWorld, by_threads
from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch, DataError, Pass
from jestbench.data import file_pairs
from jestbench.data.augment import AugmentedPairs, RandomResizedCrop
from jestbench.data.cascade import CandidateScoring, Cascade, CascadePlan
from jestbench.data.file_pairs import FilePairs
from jestbench.data.joined_pairs import JoinedPairs, MixturePlan
from jestbench.data.loader import Loader
from jestbench.data.pairs import IndexedPairs, ReadPairs
from jestbench.data.part_pairs import HalfPairs
from jestbench.data.sources import lanes
from jestbench.data.sources.lanes import Shards
from jestbench.data.sources.shards import MemberRules
from jestbench.data.sources.stream_batches import StreamBatches
from jestbench.data.super_batches import EpochPlan, StepPlan, SuperBatches, SuperBatchSource
from jestbench.data.synthetic import Synthetic
from jestbench.parallel import distributed
from jestbench.parallel.distributed import World
from jestbench.parallel.placement import Placement
from jestbench.parallel.shared_batch import SharedBatch
from jestbench.parallel.traffic import TRAFFIC

SIZES = (2, 3, 4)
PHYSICAL = ("time/", "data/decoded", "exchange/")
Make = Callable[[World], SuperBatchSource]


# Who holds a row


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 40), st.data())
def test_rows_stay_as_far_as_balance_allows(size: int, count: int, data: st.DataObject) -> None:
    ranks = data.draw(st.lists(st.integers(0, size - 1), min_size=count, max_size=count))
    index_K = torch.tensor(data.draw(st.permutations(range(count)))[: data.draw(st.integers(1, count))])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(index_K)), max_size=3)))
    parts = [end - start for start, end in zip([0, *cuts], [*cuts, len(index_K)], strict=True)]
    to = Placement(torch.tensor(ranks), World(0, size)).taken(index_K, parts)
    turns, held = torch.arange(len(index_K)) % size, torch.tensor(ranks)[index_K]
    kept = 0
    for new_P, turn_P, held_P in zip(*(each.split(parts) for each in (to.rank_B, turns, held)), strict=True):
        quota, had = torch.bincount(turn_P, minlength=size), torch.bincount(held_P, minlength=size)
        assert torch.equal(torch.bincount(new_P, minlength=size), quota), "of every part as many as in turns"
        kept += int(torch.minimum(quota, had).sum())
    assert int((to.rank_B == held).sum()) == (kept if size > 1 else len(index_K)), "as many stay as can"
    assert max(to.counts) <= -(-len(index_K) // size)


@pytest.mark.parametrize("size", SIZES)
def test_rows_of_several_formats_are_gathered_at_once(size: int) -> None:
    """By one collective, and to the last bit: of flags, keys, halves, rows of no numbers."""
    random = torch.Generator().manual_seed(size)
    rank_B = torch.randint(0, size - 1, (13,), generator=random)  # the last rank holds nothing
    whole = [
        torch.rand(13, generator=random) < 0.5,
        torch.randint(-(2**62), 2**62, (13,), generator=random),
        torch.randn(13, 3, generator=random).to(torch.bfloat16),
        torch.randn(13, 2, 2, generator=random, dtype=torch.float64).transpose(1, 2),
        torch.empty(13, 0),
    ]

    def gathered(world: ThreadWorld) -> list[Tensor]:
        placement = Placement(rank_B, world)
        found = placement.collect_all([rows_BX[placement.rows] for rows_BX in whole])
        assert world.counts["gather"] == 1
        return found

    for found in by_threads(size, gathered):
        for collected, rows_BX in zip(found, whole, strict=True):
            assert collected.dtype == rows_BX.dtype
            assert torch.equal(collected, rows_BX)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(), (3,), (3, 4, 4)])
def test_rows_move_to_who_holds_them_next(size: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(size)
    whole = torch.randint(0, 255, (23, *shape), dtype=torch.uint8, generator=generator)
    rank_B = torch.randint(0, size - 1, (23,), generator=generator)  # the last rank holds nothing
    index_K = torch.randperm(23, generator=generator)[:11]

    def exchanged(world: World) -> tuple[Tensor, Tensor, Tensor]:
        placement = Placement(rank_B, world)
        to, own = placement.taken(index_K, (4, 7)), whole[placement.rows]
        own = own.contiguous(memory_format=torch.channels_last) if len(shape) == 3 else own
        moved = placement.exchange(own, index_K, to)
        assert not shape or moved.stride() == own[: len(moved)].stride() or not len(own)
        assert torch.equal(moved, whole[index_K][to.rows])
        return placement.collect(own), to.collect(moved), to.rows

    for collected, taken, _ in (found := by_threads(size, exchanged)):
        assert torch.equal(collected, whole)
        assert torch.equal(taken, whole[index_K])
    assert sorted(i for *_, rows in found for i in rows.tolist()) == list(range(11))


def test_the_gradient_of_gathered_rows_is_that_of_the_own_rows_times_the_processes() -> None:
    rank_B, weight_BD = torch.tensor([1, 1, 0, 1, 0]), torch.arange(10.0).view(5, 2)

    def gradient(world: World) -> bool:
        placement = Placement(rank_B, world)
        own = torch.ones(len(placement.rows), 2, requires_grad=True)
        other = torch.ones(len(placement.rows), 3, requires_grad=True)
        collected_BD, other_BX = placement.collect_with_gradient(own, other)
        ((collected_BD * weight_BD).sum() + 3 * other_BX.sum()).backward()
        assert torch.equal(other.grad, torch.full_like(other, 6.0))
        return torch.equal(own.grad, 2 * weight_BD[placement.rows])

    assert by_threads(2, gradient) == [True, True]


@pytest.mark.parametrize("captioned", [True, False])
def test_pairs_that_all_are_to_see_are_those_of_one_process(captioned: bool) -> None:
    """Positions in any order, some twice; pairs may have no captions, and a process none of these pairs."""
    whole = Synthetic().split("pool").batch(torch.arange(7))
    whole = whole if captioned else replace(whole, captions=())

    def seen(world: World) -> list[Batch]:
        shared = SharedBatch.of(whole.take(world.rows(7)), Placement.in_turns(7, world))
        return [shared.everywhere(index_P) for index_P in given]

    given = [torch.tensor(index) for index in ([4, 0, 4, 6, 1], [3, 0], [5])]
    for found in by_threads(3, seen):
        for batch, index_P in zip(found, given, strict=True):
            wanted = whole.take(index_P)
            assert batch.captions == wanted.captions
            assert torch.equal(batch.images_BCHW, wanted.images_BCHW)
            assert torch.equal(batch.image_key_B, wanted.image_key_B)
            assert all(torch.equal(batch.marks[name], mark) for name, mark in wanted.marks.items())


# What is read


@dataclass
class Reading:
    """What was read in some steps, by all ranks together."""

    keys: list[list[tuple[int, int]]] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    columns: list[dict[str, Tensor]] = field(default_factory=list)
    counts: list[dict[str, float]] = field(default_factory=list)
    own: int = 0
    state: Any = None

    def same(self, other: Reading) -> None:
        assert self.keys == other.keys
        assert all(torch.equal(one, two) for one, two in zip(self.images, other.images, strict=True))
        for one, two in zip(self.columns, other.columns, strict=True):
            assert one.keys() == two.keys()
            assert all(torch.equal(value, two[name]) for name, value in one.items())
        assert self.counts == other.counts


def read(make: Make, world: World, steps: range, state: Any = None) -> Reading:
    """The super-batches of some steps, gathered."""
    source, found = make(world), Reading()
    if state is not None:
        source.load_state_dict(state)
    for step in steps:
        batch = source.at(step)
        found.own += len(batch.rows)
        found.keys.append(list(zip(batch.image_key_B.tolist(), batch.text_key_B.tolist(), strict=True)))
        found.images.append(batch.collect(batch.images_BCHW.contiguous()))
        assert len(batch.own.captions) == len(batch.rows)
        found.columns.append({**batch.columns, **batch.marks})
        counts = source.counts(step + 1)
        found.counts.append({name: count for name, count in counts.items() if not name.startswith(PHYSICAL)})
    found.state = source.state_dict()
    source.close()
    return found


def assert_same_order(make: Make, steps: int, cut: int, sizes: tuple[int, ...] = SIZES) -> list[Reading]:
    """Read by any number of processes; stopped by one number, gone on with by another one."""
    alone = read(make, World(), range(steps))
    before = by_threads(3, lambda world: read(make, world, range(cut)))
    for size in sizes:
        found = by_threads(size, lambda world: read(make, world, range(steps)))
        later = by_threads(size, lambda world: read(make, world, range(cut, steps), before[0].state))
        for whole, part, stopped in zip(found, later, [before[0]] * size, strict=True):
            alone.same(whole)
            alone.same(
                Reading(*([*getattr(stopped, n), *getattr(part, n)] for n in ("keys", "images", "columns", "counts")))
            )
        states = [{**each.state, "waited": 0} for each in (alone, *found, *later)]
        assert states.count(states[0]) == len(states), "a state depends on no number of processes"
        assert sum(each.own for each in found) == alone.own
    alone.same(read(make, World(), range(steps)))
    return found


def broken_files(folder: Path) -> FilePairs:
    """60 pairs, every fifth of them damaged."""
    contents = [jpeg(i) if i % 5 else jpeg(i)[:100] + bytes([i]) for i in range(60)]
    return files_of(folder, contents, max_damaged=0.5, marks={"odd": np.arange(60) % 2 == 1})


@pytest.mark.parametrize("kind", ["plain", "augmented", "half", "workers"])
def test_damaged_pairs_are_replaced_as_by_one_process(kind: str, tmp_path: Path) -> None:
    pairs = files = broken_files(tmp_path)
    pairs = AugmentedPairs(files, RandomResizedCrop((0.3, 0.8)), 0) if kind == "augmented" else pairs
    pairs = HalfPairs(files, 1) if kind == "half" else pairs
    loader = Loader(workers=1 if kind == "workers" else 0, part=3)
    size = min(17, len(pairs) // 2)
    assert_same_order(lambda world: SuperBatches.of(EpochPlan(pairs, size, 0), loader, world=world), 5, 2)


def noted_decodings() -> Counter[bytes]:
    """Count each image that this process decodes from now on."""
    decoded, decode = Counter[bytes](), file_pairs.decode

    def counted(content: bytes, size: int) -> Any:
        decoded[content] += 1
        return decode(content, size)

    file_pairs.decode = counted
    return decoded


def collectives(pairs: IndexedPairs, world: World) -> int:
    """How many collectives it takes to read a super-batch of all pairs but one."""
    source, before = SuperBatches(EpochPlan(pairs, len(pairs) - 1, 0), world=world), TRAFFIC.calls
    source.at(0)
    return TRAFFIC.calls - before


def check_replacements(files: FilePairs, crowded: FilePairs, whole: FilePairs, one: FilePairs) -> int:
    """What each of several processes checks: keys, images and counts of one process; nothing is decoded twice."""
    decoded = noted_decodings()
    plans: dict[str, StepPlan] = {
        "plain": EpochPlan(files, 17, 0),
        "one damaged pair takes what stood for another one": EpochPlan(crowded, 10, 0),
        "augmented": EpochPlan(AugmentedPairs(files, RandomResizedCrop((0.3, 0.8)), 0), 17, 0),
        "half": EpochPlan(HalfPairs(crowded, 1), 3, 0),
        "mixture": MixturePlan(JoinedPairs([files, crowded], ["a", "b"], [0.6, 0.4]), 15, 0),
    }
    with distributed.started() as world:
        for name, plan in plans.items():
            found = []
            for place in (World(), world):
                decoded.clear()
                reading = read(lambda each, plan=plan: SuperBatches(plan, world=each), place, range(2))
                found.append((reading, sum(place.everybodys(Counter(decoded)), Counter[bytes]())))
            (alone, once), (together, by_all) = found
            alone.same(together)
            assert alone.counts[-1]["data/damaged"] > 2, name
            assert once.total() == alone.counts[-1]["data/read"], f"{name}: pairs and damaged tries"
            assert by_all == once, f"{name}: each image is decoded as often as by one process"
        assert collectives(one, world) == collectives(whole, world) + 1, "none where nothing is damaged"
    return 0


def test_each_pair_that_stands_for_a_damaged_one_is_decoded_by_one_process(tmp_path: Path) -> None:
    contents = [jpeg(i) for i in range(40)]
    cut = [content[:99] + bytes([i]) for i, content in enumerate(contents)]
    sets = {
        "most": [contents[i] if i % 3 == 0 else cut[i] for i in range(40)],
        "whole": contents[:9],
        "one": [*contents[:8], cut[8]],
    }
    for name in ("some", *sets):
        (tmp_path / name).mkdir()
    given = [files_of(tmp_path / name, found, max_damaged=1.0) for name, found in sets.items()]
    given = [broken_files(tmp_path / "some"), *given]
    assert 8 in EpochPlan(given[-1], 8, 0).positions(0).index_B, "the damaged one is read"
    forked.all_end_well(forked.ranks(3, lambda rank: check_replacements(*given), tmp_path))


def test_too_much_damage_is_the_damage_of_all(tmp_path: Path) -> None:
    pairs = replace(broken_files(tmp_path), max_damaged=0.02)

    def failure(world: World) -> str:
        source = SuperBatches(EpochPlan(pairs, 20, 0), world=world)
        with pytest.raises(DataError, match=r"are damaged, more than max_damaged = 0\.02 allows") as raised:
            [source.at(step) for step in range(40)]
        return f"{source.tally.summed} {raised.value}"

    assert by_threads(3, failure) == [failure(World())] * 3, "on every process at once, with the same numbers"


def test_a_mixture_of_which_a_process_holds_one_split_alone(tmp_path: Path) -> None:
    contents = [jpeg(100 + i) if i != 2 else jpeg(1)[:90] for i in range(8)]
    (tmp_path / "more").mkdir()
    more = files_of(tmp_path / "more", contents, max_damaged=0.5)  # without marks
    pairs = JoinedPairs([broken_files(tmp_path), more], ["a", "b"], [0.9, 0.1])
    assert_same_order(lambda world: SuperBatches(MixturePlan(pairs, 11, 0), world=world), 6, 3)


class KeyLoss:
    """The own loss of a pair: a function of its keys, that reads a pair which it has not seen before."""

    def __init__(self) -> None:
        self.known: dict[int, float] = {}

    def __call__(
        self, image_key_C: Tensor, text_key_C: Tensor, read: Callable[[Tensor], ReadPairs], own_P: Tensor
    ) -> Tensor:
        keys = image_key_C[own_P].tolist()
        new = torch.tensor([place for place, key in enumerate(keys) if key not in self.known], dtype=torch.int64)
        if len(new):
            batch, damaged = read(own_P[new])
            assert batch.image_key_B.tolist() == image_key_C[own_P[new]].tolist()
            for place, key in enumerate(batch.image_key_B.tolist()):
                mixed = int(seeds.mixed(torch.tensor(key))) % 1000 / 100
                self.known[key] = float("inf") if place in damaged else mixed
        return torch.tensor([self.known[key] for key in keys], dtype=torch.float64)

    def passes(self, image_key_C: Tensor, text_key_C: Tensor) -> tuple[Pass, ...]:
        return (Pass("reference_score", len(image_key_C), "candidates"),)


def cascaded(pairs: IndexedPairs, world: World, size: int = 6) -> SuperBatches:
    """The super-batches of a cascade of 24 candidates."""
    loss = KeyLoss()
    plan = CascadePlan(pairs, size, 0, Cascade(candidates=24 // size), CandidateScoring(loss, loss.passes), world)
    return SuperBatches(plan, world=world)


@pytest.mark.parametrize("size", [1, *SIZES])
def test_nothing_is_read_in_the_place_of_a_damaged_candidate(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is read by one process and counted; the whole ones alone are charged and drawn."""
    pairs, counted = broken_files(tmp_path), Counter[int]()
    lock, image = threading.Lock(), FilePairs.image

    def noted(self: FilePairs, position: int) -> Any:
        with lock:
            counted[position] += 1
        return image(self, position)

    monkeypatch.setattr(FilePairs, "image", noted)
    candidates = [EpochPlan(pairs, 24, 0).positions(step).index_B for step in range(2)]

    def in_two_steps(world: World) -> tuple[list[int], dict[str, float], dict[str, tuple[int, str]], list[int]]:
        source, drawn, charged = cascaded(pairs, world), list[int](), list[int]()
        for step in range(2):
            batch = source.at(step)
            drawn += [int(np.flatnonzero(pairs.image_key_N == key)[0]) for key in batch.image_key_B.tolist()]
            charged += [item.macs for item in batch.passes]
        return drawn, source.counts(2), source.damage, charged

    lost = int((torch.cat(candidates) % 5 == 0).sum())
    for drawn, counts, damage, charged in by_threads(size, in_two_steps):
        assert all(position % 5 for position in drawn)
        assert (counts["data/read"], counts["data/damaged"], counts["data/decoded"]) == (48 + 12, lost, 48 + 12)
        ((kind, (count, example)),) = damage.items()
        assert (kind, count) == ("no image", lost)
        assert ".jpg" in example
        assert charged == [int((index_C % 5 != 0).sum()) for index_C in candidates]
    assert counted == Counter(torch.cat(candidates).tolist()) + Counter(drawn), (
        "each candidate once, each drawn once more"
    )


def test_candidates_too_few_of_which_are_whole_are_mended_as_any_super_batch(tmp_path: Path) -> None:
    """Of 24 candidates all but the damaged ones are drawn, and those that are missing are drawn of the damaged."""
    pairs = broken_files(tmp_path)
    alone = read(lambda world: cascaded(pairs, world, 24), World(), range(2))
    assert all(len({*keys}) == 24 for keys in alone.keys)
    assert {key for keys in alone.keys for key, _ in keys} <= {
        int(key) for key in pairs.image_key_N[np.arange(60) % 5 > 0]
    }
    for size in SIZES:
        for found in by_threads(size, lambda world: read(lambda each: cascaded(pairs, each, 24), world, range(2))):
            alone.same(found)


def test_candidates_are_read_and_scored_by_one_process_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = files_of(tmp_path, [jpeg(i) for i in range(48)])
    decoded, lock, decode = Counter[bytes](), threading.Lock(), file_pairs.decode

    def counted(content: bytes, size: int) -> Any:
        with lock:
            decoded[content] += 1
        return decode(content, size)

    def make(world: World) -> SuperBatches:
        return cascaded(pairs, world)

    alone = read(make, World(), range(4))
    monkeypatch.setattr(file_pairs, "decode", counted)
    for size in SIZES:
        decoded.clear()
        for found in by_threads(size, lambda world: read(make, world, range(4))):
            alone.same(found)
        # Two passes over the candidates: a pair is read once for its score, and once for each time that it is drawn.
        assert sum(decoded.values()) == 48 + 4 * 6

    def gone_on(world: World) -> Reading:
        return read(make, world, range(2, 4), state)

    state = by_threads(3, lambda world: read(make, world, range(2)))[0].state
    for found in (*by_threads(2, gone_on), gone_on(World())):  # what was remembered is lost: read again
        assert found.keys == alone.keys[2:]


def test_a_cascade_by_a_column_and_indexed_pairs_are_each_read_once(tmp_path: Path) -> None:
    pairs = Synthetic(pool=90, columns=("similarity",)).split("pool")
    cascade = Cascade(candidates=3, score="column:similarity")
    for plan in (EpochPlan(pairs, 20, 0), CascadePlan(pairs, 10, 0, cascade, None)):
        found = assert_same_order(lambda world, plan=plan: SuperBatches(plan, world=world), 5, 3)
        assert max(each.own for each in found) - min(each.own for each in found) <= 5


# Streams


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("shards")
    urls = [*write_numbered_shards(folder, [5, 9, 1, 7, 12, 3, 8, 6, 10, 4, 9]), str(folder / "gone.tar"), "pipe:false"]
    cut = folder / "cut.tar"
    cut.write_bytes(Path(urls[4]).read_bytes()[:9000])
    urls[4] = str(cut)
    urls[7] = urls[0]  # duplicates within a super-batch
    return Shards(
        tuple(urls), Synthetic().split("pool").tokenizer, 8, MemberRules(), lanes=5, buffer=4, max_damaged=0.5
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_read_in_the_order_of_one_process(workers: int, shards: Shards) -> None:
    found = assert_same_order(
        lambda world: StreamBatches(shards, 10, Loader(workers=workers, part=3), world=world), 14, 5, (2, 4)
    )
    last = found[0].counts[-1]
    assert last["data/duplicates"] > 0
    assert last["data/damaged"] > 3
    assert last["data/skipped"] > 0


def test_a_process_without_a_lane_holds_no_pair(shards: Shards) -> None:
    few = replace(shards, lanes=2)
    found = assert_same_order(lambda world: StreamBatches(few, 9, world=world), 5, 2, (3,))
    assert [each.own == 0 for each in found] == [False, False, True]


def test_every_shard_is_opened_by_one_process_and_every_pair_decoded_once(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, decoded, lock = list[str](), list[bytes](), threading.Lock()
    open_shard, decode = lanes.open_shard, lanes.decode

    def noted_open(url: str, *more: Any) -> Any:
        with lock:
            opened.append(url)
        return open_shard(url, *more)

    def noted_decode(content: bytes, size: int) -> Any:
        with lock:
            decoded.append(content)
        return decode(content, size)

    monkeypatch.setattr(lanes, "open_shard", noted_open)
    monkeypatch.setattr(lanes, "decode", noted_decode)
    logs = []
    for size in (1, 2, 3):
        opened.clear(), decoded.clear()
        by_threads(size, lambda world: read(lambda w: StreamBatches(shards, 10, world=w), world, range(12)))
        logs.append((Counter(opened), Counter(decoded)))
    assert logs[0] == logs[1] == logs[2]


def test_too_much_damage_in_a_stream_is_the_damage_of_all(shards: Shards) -> None:
    strict = replace(shards, max_damaged=0.01)

    def failure(world: World) -> str:
        source = StreamBatches(strict, 10, world=world)
        with pytest.raises(DataError) as raised:
            [source.at(step) for step in range(99)]
        return f"{source._step} {raised.value}"

    assert by_threads(3, failure) == [failure(World())] * 3, "in the same step, with the same numbers"
