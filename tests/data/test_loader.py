"""The worker loader and the streams: the same super-batches however they are made, and nothing that hangs."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
from dataclasses import fields, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from photos import files_of, jpeg, write_numbered_shards

from jestbench.batch import Batch, DataError
from jestbench.bench import data as bench
from jestbench.config import resolve
from jestbench.config.run import ConfigError
from jestbench.data.augment import AugmentedPairs, RandomResizedCrop
from jestbench.data.fetch import Assembly, Packed, Positions, WorkerFetch
from jestbench.data.file_pairs import FilePairs
from jestbench.data.loader import Loader
from jestbench.data.pairs import IndexedPairs, Wrapped
from jestbench.data.sources.lanes import Shards, deal, take_turns
from jestbench.data.sources.shards import MemberRules
from jestbench.data.sources.stream_batches import StreamBatches
from jestbench.data.super_batches import EpochPlan, SuperBatches
from jestbench.data.synthetic import Synthetic
from jestbench.launch import command, train_run

ROOT = Path(__file__).resolve().parents[2]
WORLD = Synthetic(pool=300, image_size=8)
POOL = WORLD.split("pool")


def assert_same(one: Batch, other: Batch) -> None:
    assert torch.equal(one.images_BCHW, other.images_BCHW)
    assert torch.equal(one.image_key_B, other.image_key_B)
    assert torch.equal(one.text_key_B, other.text_key_B)
    assert one.captions == other.captions
    assert one.token_ids.keys() == other.token_ids.keys()
    assert all(torch.equal(ids, other.token_ids[name]) for name, ids in one.token_ids.items())
    assert one.marks.keys() == other.marks.keys()
    assert all(torch.equal(mark, other.marks[name]) for name, mark in one.marks.items())


def gone(pid: int) -> bool:
    """Ended: no such process, or one that nobody has asked about yet."""
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True


def soon(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def of_workers(workers: int, prefetch: int = 2, part: int = 256, pairs=POOL, size: int = 64, **more) -> SuperBatches:
    return SuperBatches.of(EpochPlan(pairs, size, 0), Loader(workers=workers, prefetch=prefetch, part=part, **more))


@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 4), st.integers(0, 4), st.sampled_from([1, 7, 20, 64, 1000]), st.integers(1, 5))
def test_workers_change_nothing(workers, prefetch, part, jump):
    plain, source = of_workers(0), of_workers(workers, prefetch, part)
    try:
        for step in [0, 1, 2, 5, 6, 5 + jump, 0]:  # across an epoch's end, forward, back
            assert_same(source.at(step), plain.at(step))
    finally:
        source.close()


def test_a_run_goes_on_with_another_number_of_workers():
    first = of_workers(2)
    for step in range(3):
        first.at(step)
    state = first.state_dict()
    first.close()
    for workers in (0, 1, 3):
        source = of_workers(workers)
        source.load_state_dict(state)
        assert_same(source.at(3), of_workers(0).at(3))
        if workers:
            assert source.counts(4)["time/data_wait"] >= state["waited"] > 0
        source.close()


class Slow(Wrapped):
    """Pairs that take their time, or never come."""

    def __init__(self, pairs: IndexedPairs, stuck: Path | None = None) -> None:
        super().__init__(pairs)
        self.stuck, self.decoded = stuck, False

    def attempt(self, index_B):
        if self.stuck is not None and not self.stuck.exists():
            self.stuck.touch()
            time.sleep(1000)
        time.sleep(0.02)
        return self.pairs.attempt(index_B)


def test_a_killed_worker_is_replaced_and_counted():
    plain, source = of_workers(0), of_workers(2, part=8, pairs=Slow(POOL))
    try:
        for step in range(4):
            batch = source.at(step)
            if step in (0, 2):
                os.kill(source.pids[0], signal.SIGKILL)
            assert_same(batch, plain.at(step))
        assert source.counts(4)["data/worker_restarts"] == 2
        assert source.state_dict()["restarts"] == 2
    finally:
        source.close()


def test_workers_that_die_again_and_again_end_the_run_with_a_message():
    source = of_workers(2, part=8, pairs=Slow(POOL), restarts=2)

    def run() -> None:
        for step in range(100):
            source.at(step)
            os.kill(source.pids[0], signal.SIGKILL)

    with pytest.raises(DataError, match=r"3 data workers were lost.*exit code -9.*loader.workers"):
        run()
    with pytest.raises(DataError, match="were lost"):
        source.at(50)
    pids = source.pids
    source.close()
    assert all(gone(pid) for pid in pids)


def test_a_worker_that_hangs_is_replaced(tmp_path):
    source = of_workers(1, pairs=Slow(POOL, stuck=tmp_path / "once"), timeout=0.5)
    assert_same(source.at(0), of_workers(0).at(0))
    assert source.counts(1)["data/worker_restarts"] == 1
    source.close()


def test_a_stopped_worker_does_not_stop_the_run():
    source = of_workers(2, part=8, pairs=Slow(POOL), timeout=0.5)
    source.at(0)
    os.kill(source.pids[0], signal.SIGSTOP)
    for step in (1, 2, 3):
        assert_same(source.at(step), of_workers(0).at(step))
    assert 1 <= source.counts(1)["data/worker_restarts"] <= 3
    source.close()


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_work_ahead_is_done_once_by_step(ahead):
    """Positions are asked for once a step, in order, as long as the run goes forward; a jump drops what was begun."""
    asked = []

    def positions(step: int) -> Positions:
        asked.append(step)
        return plan.positions(step)

    plan = EpochPlan(POOL, 64, 0)
    fetch = WorkerFetch(POOL, 0, 2, Loader(part=20), ahead)
    for step in (0, 1, 2):
        assert_same(fetch.at(step, positions).batch, POOL.batch(plan.positions(step).index_B))
        assert asked == list(range(step + ahead + 1))
    assert_same(fetch.attempt(plan.positions(7)).batch, POOL.batch(plan.positions(7).index_B))
    assert_same(fetch.at(9, positions).batch, POOL.batch(plan.positions(9).index_B))
    assert asked == [*range(ahead + 3), *range(9, ahead + 10)]
    fetch.workers.close()


def test_a_part_carries_all_that_a_batch_carries():
    batch = replace(POOL.batch(torch.arange(5)), columns={"number": torch.rand(5)}, counts={"read": 5.0})
    assembly = Assembly(Positions(0, torch.arange(5)), pinned=False)
    for start in (3, 0):
        part = replace(batch.take(torch.arange(start, 5 if start else 3)), counts={"read": 2.0 if start else 3.0})
        assembly.put(start, pickle.loads(ForkingPickler.dumps(Packed.of(part, {}))))
    later = {"passes", "image_rows_BD"}  # with the positions, and from a locked tower
    whole = assembly.batch()
    assert whole.captions == batch.captions
    for name in {field.name for field in fields(Batch)} - later - {"captions"}:
        assert len(getattr(batch, name)), name
        torch.testing.assert_close(getattr(whole, name), getattr(batch, name), rtol=0, atol=0)


def damaged_files(folder: Path) -> FilePairs:
    contents = [jpeg(i) if i % 5 else jpeg(i)[:100] + bytes([i]) for i in range(60)]
    return files_of(folder, contents, max_damaged=0.5, marks={"odd": np.arange(60) % 2 == 1})


@pytest.mark.parametrize("augment", [None, RandomResizedCrop((0.3, 0.8))], ids=["plain", "augmented"])
def test_damaged_images_are_replaced_alike_by_any_number_of_workers(tmp_path, augment):
    pairs = damaged_files(tmp_path)
    pairs = pairs if augment is None else AugmentedPairs(pairs, augment, 0)
    plain = of_workers(0, pairs=pairs, size=20)
    for workers, part in ((1, 3), (2, 7), (2, 100)):
        source = of_workers(workers, part=part, pairs=pairs, size=20)
        for step in range(4):
            assert_same(source.at(step), plain.at(step))
        if workers == 1:
            first = plain.counts(4)
        wanted = {"data/read": first["data/read"], "data/damaged": first["data/damaged"]}
        assert wanted.items() <= source.counts(4).items()
        assert wanted["data/damaged"] >= 12
        source.close()


def test_a_crop_is_a_function_of_seed_pair_and_step():
    plain, augment = of_workers(0), RandomResizedCrop((0.2, 0.9))
    cropped = [AugmentedPairs(POOL, augment, seed) for seed in (0, 1)]
    sources = [of_workers(0, pairs=cropped[0]), of_workers(2, part=5, pairs=cropped[0])]
    other = SuperBatches(EpochPlan(cropped[1], 64, 1))
    seen = []
    for step in (0, 5, 4, 4):
        one, two = (source.at(step) for source in sources)
        assert_same(one, two)
        whole = plain.at(step)
        assert torch.equal(one.image_key_B, whole.image_key_B)
        assert one.images_BCHW.shape == whole.images_BCHW.shape
        assert (one.images_BCHW != whole.images_BCHW).flatten(1).any(1).float().mean() > 0.9
        seen.append(dict(zip(one.image_key_B.tolist(), one.images_BCHW, strict=True)))
    assert all(torch.equal(image, seen[3][key]) for key, image in seen[2].items()), "the same at the same step"
    first = dict(zip(other.at(0).image_key_B.tolist(), other.at(0).images_BCHW, strict=True))
    for these in (seen[1], first):
        both = seen[0].keys() & these.keys()
        assert sum(torch.equal(seen[0][key], these[key]) for key in both) < len(both) / 4
    sources[1].close()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
def test_a_crop_lies_in_the_image(height, width, seed):
    top, left, h, w = RandomResizedCrop((0.1, 1.0)).box(height, width, np.random.default_rng(seed))
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h > 0 < w


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 1.1)},
        {"scale": (0.9, 0.8)},
        {"ratio": (2.0, 1.0)},
    ],
)
def test_a_crop_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=f"random_resized_crop.{next(iter(wrong))}"):
        RandomResizedCrop(**wrong)


def test_augmentation_is_refused_where_a_reference_remembers():
    file, more = str(ROOT / "gin/run/tiny.gin"), ["run.augment=@random_resized_crop()"]
    assert resolve.resolve([file], more).run.augment == RandomResizedCrop()
    scored = [*more, "run.policy=jest", "run.reference=gin/run/tiny_reference.gin"]
    with pytest.raises(ConfigError, match=r"run.augment with run.reference_accounting = 'first_sight'.*'online'"):
        resolve.resolve([file], scored)
    assert resolve.resolve([file], [*scored, "run.reference_accounting=online"]).run.augment


def test_a_run_with_workers_is_the_run_without(tmp_path):
    rows = {}
    for workers in (0, 2):
        bindings = [
            f"loader.workers={workers}",
            "loader.part=50",
            "log.every=1",
            "log.progress=False",
            "run.device=cpu",
        ]
        resolved = resolve.resolve([str(ROOT / "gin/run/tiny.gin")], [*bindings, "run.budget=4e9"])
        assert train_run.train_run(resolved, tmp_path / str(workers), resume=False) == "finished"
        lines = (tmp_path / str(workers) / "metrics.jsonl").read_text().splitlines()
        rows[workers] = [json.loads(line) for line in lines]
    assert rows[2][-1]["time/data_wait"] > 0
    own = {"time/seconds", "time/data_wait", "data/worker_restarts"}
    assert [{k: v for k, v in row.items() if k not in own} for row in rows[2]] == [
        {k: v for k, v in row.items() if k not in own} for row in rows[0]
    ]
    assert not multiprocessing.active_children()
    hashes = {resolve.resolve([str(ROOT / "gin/run/tiny.gin")], [f"loader.workers={n}"]).config_hash for n in (0, 2)}
    assert len(hashes) == 1, "who decodes is no part of the arm"


class Wrong(Slow):
    """Pairs that cannot be had."""

    error: Exception

    def attempt(self, index_B):
        raise self.error


def test_what_a_worker_raises_reaches_the_run():
    for error, wanted in ((DataError("the data is wrong"), DataError), (KeyError("x"), RuntimeError)):
        pairs = Wrong(POOL)
        pairs.error = error
        source = of_workers(2, pairs=pairs)
        with pytest.raises(wanted, match=r"the data is wrong|KeyError\('x'\)"):
            source.at(0)
        source.close()


def test_a_process_without_a_pair_of_a_super_batch_waits_for_no_worker(tmp_path):
    """A candidate of a cascade belongs to a process by its key: of few pairs a process may have none."""
    fetch = WorkerFetch(files_of(tmp_path, [jpeg(0)]), 0, 1, Loader(workers=1))
    try:
        found = fetch.attempt(Positions(0, torch.empty(0, dtype=torch.int64))).batch
    finally:
        fetch.workers.close()
    assert found.images_BCHW.shape == (0, 3, 16, 16)
    assert found.captions == ()


def test_close_ends_all_workers_and_twice_is_no_harm():
    source = of_workers(3)
    source.at(0)
    pids = source.pids
    assert len(set(pids)) == 3
    assert not any(gone(pid) for pid in pids)
    source.close()
    assert all(gone(pid) for pid in pids)
    source.close()
    of_workers(3).close()  # never started


def run_until(end: object, said) -> None:
    source = of_workers(2)
    source.at(0)
    said.send(source.pids)
    if end == "exit":
        sys.exit(7)
    time.sleep(100)


@pytest.mark.parametrize("end", ["exit", signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_no_worker_outlives_its_run(end):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_until, args=(end, theirs))
    process.start()
    pids = ours.recv()
    assert len(pids) == 2
    if end != "exit":
        os.kill(process.pid, end)
    process.join(20)
    assert process.exitcode
    assert soon(lambda: all(gone(pid) for pid in pids))


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": -1},
        {"workers": True},
        {"prefetch": -1},
        {"prefetch_bytes": -1},
        {"part": 0},
        {"timeout": 0.0},
        {"restarts": -1},
    ],
)
def test_a_loader_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=f"loader.{next(iter(wrong))}"):
        Loader(**wrong)


@pytest.mark.parametrize(("room", "ahead"), [(0, 0), (1, 1), (2, 2), (99, 2)])
def test_what_is_read_ahead_takes_no_more_memory_than_it_may(room, ahead):
    image = POOL.example().images_BCHW.nbytes
    loader = Loader(workers=1, prefetch_bytes=room * 64 * image + 64 * image // 2)
    source = SuperBatches.of(EpochPlan(POOL, 64, 0), loader, pair_bytes=image)
    source.at(0)
    assert len(source.fetch._begun) == ahead
    source.close()
    said = loader.described(64, image)
    assert said.startswith(f"workers read {ahead} super-batches")
    assert ("prefetch_bytes" in said) == (ahead < 2)


def test_auto_is_no_worker_for_images_in_memory():
    assert Loader().workers_for(POOL.decoded) == 0
    assert 1 <= Loader().workers_for(Slow(POOL).decoded) <= 16
    assert Loader(workers=3).workers_for(POOL.decoded) == 3
    assert replace(Loader(), pin_memory=True).pins("cpu") == torch.cuda.is_available()


# Streams


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Shards:
    urls = write_numbered_shards(tmp_path_factory.mktemp("shards"), [5, 9, 1, 7, 12, 3, 8, 6, 10])
    return Shards(urls, POOL.tokenizer, 8, MemberRules(), lanes=6, buffer=4, max_damaged=0.5)


def read_by(workers: int, ahead: int = 2, part: int = 256) -> Loader:
    return Loader(workers=workers, prefetch=ahead, part=part)


def keys_of(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.image_key_B.tolist(), batch.text_key_B.tolist(), strict=True))


def test_an_epoch_of_a_stream_holds_each_pair_once_but_for_a_counted_tail(shards):
    source = StreamBatches(shards, 10)
    tails = set()
    for epoch in range(3):
        drawn = [key for step in range(6) for key in keys_of(source.at(6 * epoch + step))]
        assert len(set(drawn)) == len(drawn) == 60, "61 pairs, the tail left out"
        tails.add(frozenset(drawn))
    source.at(18)
    assert len(tails) > 1, "another tail each epoch"
    assert source.counts(19)["data/skipped"] == 3
    assert source.counts(19)["data/read"] == 3 * 61 + 10
    assert source.counts(19)["data/damaged"] == 0


@settings(deadline=None, max_examples=4, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 3), st.integers(0, 3), st.sampled_from([1, 3, 100]), st.integers(0, 9))
def test_the_order_of_a_stream_does_not_depend_on_who_reads(shards, workers, ahead, part, cut):
    plain = StreamBatches(shards, 10)
    wanted = [plain.at(step) for step in range(10)]
    source = StreamBatches(shards, 10, read_by(workers, ahead, part))
    for step in range(cut):
        assert_same(source.at(step), wanted[step])
    state = source.state_dict()
    source.close()
    gone_on = StreamBatches(shards, 10, read_by((workers + 2) % 4, ahead, part))
    gone_on.load_state_dict(state)
    for step in range(cut, 10):
        assert_same(gone_on.at(step), wanted[step])
    assert plain.counts(10).items() <= gone_on.counts(10).items()
    gone_on.close()
    assert [keys_of(batch) for batch in wanted] != [
        keys_of(StreamBatches(replace(shards, seed=1), 10).at(0)),
        *(keys_of(batch) for batch in wanted[1:]),
    ]


def test_a_state_of_a_stream_can_be_checkpointed(shards, tmp_path):
    source = StreamBatches(shards, 10)
    source.at(0)
    torch.save(source.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == source.state_dict()


@given(st.integers(1, 8), st.integers(0, 30))
def test_every_shard_has_one_lane_and_every_lane_a_shard(lanes, more):
    dealt = deal(lanes + more, lanes, 0, 3)
    assert sorted(shard for lane in dealt for shard in lane) == list(range(lanes + more))
    assert all(dealt), "no lane without a shard"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 20), st.data())
def test_turns_are_fair(available, need, data):
    first = data.draw(st.integers(0, len(available) - 1))
    lanes, _ = take_turns(available, first, need)
    assert len(lanes) == min(need, sum(available))
    given_by = [lanes.count(lane) for lane in range(len(available))]
    assert all(count <= has for count, has in zip(given_by, available, strict=True))
    for count, has in zip(given_by, available, strict=True):
        assert count == has or count >= max(given_by) - 1


def test_no_pair_stands_twice_in_a_super_batch(tmp_path):
    urls = write_numbered_shards(tmp_path, [4, 4])
    twice = Shards((*urls, *urls), POOL.tokenizer, 8, MemberRules(), lanes=4, buffer=4, max_damaged=0.5)
    source = StreamBatches(twice, 6)
    keys = keys_of(source.at(0))
    assert len(set(keys)) == 6
    assert source.counts(1)["data/duplicates"] > 0


@pytest.mark.parametrize(
    ("lanes", "workers", "said"),
    [
        (10, 0, r"9 shards cannot feed 10 lanes.*stream.lanes to 9"),
        (5, 6, r"5 lanes leave.*6 workers.*loader.workers to 5"),
    ],
)
def test_too_few_shards_or_lanes_are_said_at_the_start(shards, lanes, workers, said):
    with pytest.raises(DataError, match=said):
        StreamBatches(replace(shards, lanes=lanes), 10, read_by(workers))


def test_a_stream_of_less_than_a_super_batch_is_refused(shards):
    with pytest.raises(DataError, match=r"fewer pairs than the 62.*super_batch_size"):
        StreamBatches(shards, 62).at(0)


def test_a_stream_goes_forward_only(shards):
    with pytest.raises(ValueError, match="cannot go to 3"):
        StreamBatches(shards, 10).at(3)


def damage(shards: Shards, folder: Path) -> Shards:
    """A truncated shard, one that is gone, one with half an image, one without captions, a pipe that fails."""
    urls = list(shards.urls)
    cut = folder / "cut.tar"
    cut.write_bytes(Path(urls[4]).read_bytes()[:9000])
    bad = [jpeg(200), jpeg(201)[:150], b""]
    import webdataset

    with webdataset.TarWriter(str(folder / "bad.tar")) as writer:
        for number, content in enumerate(bad):
            writer.write({"__key__": f"a{number}", "jpg": content, "txt": f"bad {number}"})
        writer.write({"__key__": "b", "jpg": jpeg(202)})
        writer.write({"__key__": "c", "txt": "no image"})
        writer.write({"__key__": "d", "jpg": jpeg(203), "txt": b"\xff\xfe"})
    urls[4] = str(cut)
    urls[5] = str(folder / "gone.tar")
    return replace(shards, urls=(*urls, str(folder / "bad.tar"), "pipe:false"))


def test_damage_is_counted_and_passed_over(shards, tmp_path):
    broken = damage(shards, tmp_path)
    counts = []
    for workers, cut in ((0, 99), (2, 3)):
        source = StreamBatches(broken, 10, read_by(workers))
        keys = []
        for step in range(10):
            if step == cut:
                state = source.state_dict()
                source.close()
                source = StreamBatches(broken, 10, read_by(workers))
                source.load_state_dict(state)
            keys.append(keys_of(source.at(step)))
        counts.append((keys, {name: source.counts(10)[f"data/{name}"] for name in ("read", "damaged", "skipped")}))
        source.close()
    assert counts[0] == counts[1], "whoever reads, and resumed"
    assert counts[0][1]["damaged"] >= 2 * 7
    strict = StreamBatches(replace(broken, max_damaged=0.0), 10)
    with pytest.raises(DataError, match=r"streamed pairs are damaged.*max_damaged"):
        [strict.at(step) for step in range(100)]


def test_a_stream_that_is_closed_leaves_no_command_running(tmp_path):
    """Read in this process, too: a shard of more than a pipe holds is half read."""
    (path,) = write_numbered_shards(tmp_path, [80])
    stream = StreamBatches(Shards((f"pipe:cat {path}",), WORLD.split("pool").tokenizer, 8, MemberRules(), 1, 8, 0.5), 4)

    def running() -> bool:
        found = Path("/proc").glob("[0-9]*/cmdline")
        return any(path.encode() in one.read_bytes() for one in found if not gone(int(one.parent.name)))

    stream.at(0)
    assert running()
    stream.close()
    assert not running()


def test_a_killed_reader_is_replaced(shards):
    plain, source = StreamBatches(shards, 10), StreamBatches(shards, 10, read_by(2))
    for step in range(12):
        assert_same(source.at(step), plain.at(step))
        if step in (1, 6):
            os.kill(source.pids[0], signal.SIGKILL)
    assert source.counts(12)["data/worker_restarts"] >= 1
    pids = source.pids
    source.close()
    assert all(gone(pid) for pid in pids)


def test_a_run_reads_a_stream_and_resumes(shards, tmp_path, capsys):
    urls = str(Path(shards.urls[0]).parent / "{000..008}.tar")
    gin = tmp_path / "stream.gin"
    gin.write_text(
        f"""include "{ROOT / "gin/run/tiny.gin"}"
run.data = @stream()
stream.shards = "pipe:cat {urls}"
stream.beside = @synthetic()
stream.image_size = 16
stream.lanes = 6
run.batch_size = 10
run.budget = None
budget.steps = 9
"""
    )
    quiet = ["log.every=1", "log.progress=False", "evaluate.points=1", "run.device=cpu", "loader.workers=2"]
    assert command.main(["--gin_file", str(gin), *quiet, "--check"]) == 0
    assert command.main(["--gin_file", str(gin), *quiet, "--price"]) == 0
    for binding, asks in (
        ("run.augment=@random_resized_crop()", "run.augment"),
        ("evaluate.split=pool", "evaluate.split"),
    ):
        capsys.readouterr()
        assert command.main(["--gin_file", str(gin), *quiet, binding, "--check", "--allow_pipes"]) == 2
        assert f"{asks} needs an indexed data set: the pairs of stream/pool have no keys" in capsys.readouterr().err
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    resolved = resolve.resolve([str(gin)], quiet)
    assert train_run.train_run(resolved, whole, resume=False) == "finished"
    shutil.copytree(whole, cut)
    (cut / "summary.json").unlink()
    shutil.rmtree(max((cut / "checkpoints").iterdir()))
    assert train_run.train_run(resolved, cut, resume=True) == "finished"
    rows = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (whole, cut)]
    own = {"time/seconds", "time/data_wait", "data/worker_restarts"}
    first, second = ([{k: v for k, v in json.loads(x).items() if k not in own} for x in part] for part in rows)
    assert first == second
    assert first[-1]["data/skipped"] == 1
    assert json.loads((whole / "summary.json").read_text())["data"]["pairs"] is None


# The benchmark


def test_both_paths_of_the_benchmark_read_the_same_shards(tmp_path):
    plan = bench.DataPlan(batch=8, workers=1, shards=2, per_shard=10, minutes=0.0)
    paths = bench.write_shards(tmp_path, 64, plan)
    found = {}
    for kind in ("indexed", "stream"):
        source = bench.make_source(kind, paths, 64, plan)
        batches = [source.at(step) for step in range(2)]
        source.close()
        found[kind] = {key: image for batch in batches for key, image in zip(keys_of(batch), batch.images_BCHW)}  # noqa: B905
        assert len(found[kind]) == 16
    both = found["indexed"].keys() & found["stream"].keys()
    assert len(both) >= 12
    assert all(torch.equal(found["indexed"][key], found["stream"][key]) for key in both)
    measured = bench.memory(bench.make_source("stream", paths, 64, plan), 0.0)
    assert measured["value"] > 0
    assert bench.resident([os.getpid()]) > 2**20
