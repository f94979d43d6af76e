"""The shared reference cache: bound to what its rows depend on, safe between processes, and never wrong."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jestbench.batch import FULL, Batch, View
from jestbench.config import resolve
from jestbench.data.augment import AugmentedPairs, RandomResizedCrop
from jestbench.data.synthetic import Synthetic
from jestbench.engine import shared_rows
from jestbench.engine.cache import Bound, Cache, fingerprint
from jestbench.engine.embedding_rows import EmbeddingRows
from jestbench.engine.frozen import FrozenActor
from jestbench.engine.rows import KeyIndex, Rows, RunRows
from jestbench.engine.shared_rows import HEADER, SharedRows
from jestbench.launch.command import main
from jestbench.model.towers import Model, TwoTowers
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.given import pair_keys
from jestbench.select.scores import NonFiniteScore

WIDTH = 5
DIGEST = bytes(range(32))
CPU = Arithmetic(torch.device("cpu"), False)
SIZES = [
    *("run.batch_size=8", "run.super_batch_size=24", "synthetic.pool=100", "synthetic.curated=64"),
    *(
        "synthetic.holdout=32",
        "synthetic.eval=32",
        "log.every=1",
        "log.progress=False",
        "run.device=cpu",
        "run.checkpoints=1",
    ),
]
SMALL = 'model.image_options={"embed_dim": 32, "depth": 1, "num_heads": 2}'


def truth(key_N: Tensor, width: int = WIDTH) -> Tensor:
    """The one right row of each key."""
    return torch.sin(key_N.double().unsqueeze(1) * torch.arange(1, width + 1)).float()


def fetch(store: Rows, keys: list[int]) -> int:
    """Ask for keys, check what comes back, and say how many were computed."""
    key_B = torch.tensor(keys, dtype=torch.int64)
    found, computed = store.fetch(key_B, lambda index: truth(key_B[index]))
    assert torch.equal(found, truth(key_B))
    len(store)  # waits for what is written behind
    return computed


def shared(path: Path, **options: Any) -> SharedRows:
    return SharedRows(path, **{"width": WIDTH, "dtype": "float32", "digest": DIGEST, **options})


# Rows


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), max_size=30), max_size=6))
def test_each_distinct_key_is_computed_once_and_found_from_then_on(tmp_path_factory, asked):
    folder = tmp_path_factory.mktemp("rows")
    for store in (RunRows(folder / "run.bin", WIDTH), shared(folder / "shared.rows")):
        met: set[int] = set()
        for keys in asked:
            key_B = torch.tensor(keys, dtype=torch.int64)
            assert [keys[i] for i in store.missing(key_B)] == list(dict.fromkeys(k for k in keys if k not in met))
            assert fetch(store, keys) == len(set(keys) - met)
            met |= set(keys)
        assert len(store) == len(met)
    again = shared(folder / "shared.rows")
    assert sum(fetch(again, keys) for keys in asked) == 0
    assert again.failures == 0


def test_a_run_does_not_wait_for_the_cache_to_be_written(tmp_path):
    path, key_B = tmp_path / "behind.rows", torch.arange(5)
    store, other = shared(path), FileLock(f"{path}.lock")
    with other:  # another run is writing
        found, computed = store.fetch(key_B, lambda index: truth(key_B[index]))
        assert computed == 5
        found.zero_()  # the run's own
        assert path.stat().st_size == HEADER
    assert fetch(store, key_B.tolist()) == 0
    assert path.stat().st_size == HEADER + 5 * 32


def test_new_rows_take_a_few_times_what_it_takes_to_sort_their_keys(tmp_path):
    """No loop over keys in Python (7 times, where this takes 3)."""
    key_N, row_ND = torch.from_numpy(np.random.default_rng(0).integers(-(2**62), 2**62, 100_000)), torch.randn(10**5, 1)

    def seconds(run):
        begin = time.process_time()
        run()
        return time.process_time() - begin

    def floor():
        np.unique(key_N.numpy(), return_index=True, return_inverse=True)
        row_ND.numpy().copy()

    def anew(number):
        store = RunRows(tmp_path / f"{number}.bin", 1)
        found, computed = store.fetch(key_N, lambda index: row_ND[index])
        assert (len(store), computed, store.saved()) == (100_000,) * 3
        assert torch.equal(found, row_ND)
        store.close(remove=True)

    assert min(seconds(partial(anew, n)) for n in range(4)) < 5 * min(seconds(floor) for _ in range(4))


def test_what_cannot_be_written_behind_is_raised_before_a_checkpoint_counts_on_it(tmp_path, monkeypatch):
    store = RunRows(tmp_path / "run.bin", WIDTH)
    fetch(store, [1, 2, 3])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunRows, "_write", full)
    fetch(store, [4, 5])
    with pytest.raises(OSError, match="No space left"):
        store.saved()


def test_rows_go_back_and_are_read_again_with_those_of_other_processes(tmp_path):
    one, two = (RunRows(tmp_path / f"{name}.bin", WIDTH) for name in ("one", "two"))
    for store, keys in ((one, [1, 2, 3]), (one, [4, 5]), (two, [3, 7, 8])):
        fetch(store, keys)
    assert [one.saved(), two.saved()] == [5, 3]
    one.rewind(3)
    assert (fetch(one, [1, 2, 3]), fetch(one, [4, 6])) == (0, 2)
    assert one.saved() == 5
    fetch(one, [9])  # after a checkpoint of 5 rows
    one.close(remove=False)

    again = RunRows(tmp_path / "one.bin", WIDTH)
    assert again.load(5, [(tmp_path / "two.bin", 2), (tmp_path / "lost.bin", 4)]) == 5
    assert fetch(again, [1, 2, 3, 4, 6, 7]) == 0
    assert fetch(again, [8, 9]) == 2, "those behind the counts of the checkpoint"
    assert again.saved() == 7, "no row of another file is written twice"
    assert again.load(5) == 5
    assert fetch(again, [6, 7, 8]) == 1, "a process that goes back keeps what it has read of others"
    again.close(remove=True)
    assert not again.path.exists()
    assert two.path.exists()


def test_rows_of_a_run_that_was_killed_before_its_first_checkpoint_are_overwritten(tmp_path):
    before = RunRows(tmp_path / "run.bin", WIDTH)
    fetch(before, [1, 2])
    before.close(remove=False)
    with (tmp_path / "run.bin").open("ab") as file:
        file.write(b"torn")
    anew = RunRows(tmp_path / "run.bin", WIDTH)
    assert fetch(anew, [3]) == 1
    assert anew.saved() == 1
    assert RunRows(tmp_path / "run.bin", WIDTH).load(1) == 1
    assert (tmp_path / "run.bin").stat().st_size == 8 + 4 * WIDTH


def test_an_index_grows_by_merging_what_it_holds():
    index, keys = KeyIndex(), np.random.default_rng(0).permutation(20_000).astype(np.int64)
    for start in range(0, len(keys), 1500):
        index.add(keys[start : start + 1500], np.arange(start, min(len(keys), start + 1500)))
        index.add(keys[:10], np.full(10, -7))  # known ones keep their rows
    assert len(index) == len(keys)
    assert index.find(keys).tolist() == list(range(len(keys)))
    assert index.find(np.array([-1, 20_000])).tolist() == [-1, -1]


@settings(max_examples=50)
@given(st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2), min_size=2, max_size=20, unique=True))
def test_an_exchanged_caption_makes_another_key(pairs):
    image_B, text_B = (torch.tensor(part) for part in zip(*pairs, strict=True))
    keys = pair_keys(image_B, text_B)
    assert len(keys.unique()) == len(pairs)
    assert not set(keys.tolist()) & set(pair_keys(text_B, image_B)[image_B != text_B].tolist())
    exchanged = text_B.roll(1)
    assert not set(keys.tolist()) & set(pair_keys(image_B, exchanged)[exchanged != text_B].tolist()) - {
        key
        for key, pair in zip(keys.tolist(), pairs, strict=True)
        if pair in set(zip(image_B.tolist(), exchanged.tolist(), strict=True))
    }


# Faults


@pytest.mark.parametrize("cut", [0, 1, HEADER - 1, HEADER, HEADER + 1, HEADER + 32, HEADER + 33, HEADER + 10 * 32 - 1])
def test_a_cut_file_gives_what_is_whole_and_is_mended(tmp_path, cut):
    path = tmp_path / "cut.rows"
    store = shared(path)
    assert fetch(store, list(range(10))) == 10
    store.close(remove=True)
    assert path.stat().st_size == HEADER + 10 * 32
    os.truncate(path, cut)
    whole = max(0, cut - HEADER) // 32
    assert fetch(shared(path), list(range(10))) == 10 - whole
    mended = shared(path)
    assert (fetch(mended, list(range(10))), mended.failures) == (0, 0)


@pytest.mark.parametrize("place", [0, 7, 8, 20, 28, 31])
def test_a_flipped_bit_costs_its_row_alone(tmp_path, capsys, place):
    path = tmp_path / "flipped.rows"
    fetch(shared(path), list(range(10)))
    content = bytearray(path.read_bytes())
    content[HEADER + 3 * 32 + place] ^= 16
    path.write_bytes(content)
    store = shared(path)
    assert fetch(store, list(range(10))) == 1
    assert store.failures == 1
    assert "1 damaged rows" in capsys.readouterr().err
    assert fetch(shared(path), list(range(10))) == 0


def test_an_empty_page_is_no_row(tmp_path):
    path = tmp_path / "sparse.rows"
    fetch(shared(path), [1, 2])
    os.truncate(path, path.stat().st_size + 4096)  # a hole, as a power cut may leave
    assert fetch(shared(path), [0, 1, 2]) == 1


def test_a_file_cut_while_it_is_mapped_does_not_kill_the_run(tmp_path, capsys):
    path = tmp_path / "mapped.rows"
    store = shared(path)
    fetch(store, list(range(3000)))
    os.truncate(path, HEADER + 5 * 32)
    assert fetch(store, list(range(3000))) == 2995
    assert "has been cut while in use" in capsys.readouterr().err
    path.unlink()
    assert fetch(store, list(range(3000))) == 0, "an unlinked file stays until it is closed"


def test_rows_of_something_else_are_refused(tmp_path, capsys):
    path = tmp_path / "stale.rows"
    fetch(shared(path), [1, 2])
    before = path.read_bytes()
    store = shared(path, digest=DIGEST[::-1])
    assert (fetch(store, [1, 2]), fetch(store, [1, 2])) == (2, 2), "it goes on without"
    assert "names another model, view or preprocessing" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_full_disk_is_counted_and_the_run_goes_on(tmp_path, capsys):
    path = tmp_path / "full.rows"
    store = shared(path)
    fetch(store, list(range(10)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER + 25 * 32 + 7, hard))  # a real refusal, in the middle of a row
    try:
        assert fetch(store, list(range(100))) == 90
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.failures == 1
    assert "cannot be written to" in capsys.readouterr().err
    assert fetch(store, list(range(100))) == 90, "uncached from then on, but for what was there"
    again = shared(path)
    assert (fetch(again, list(range(100))), again.failures) == (90, 0), "nothing torn is left"


def test_a_folder_that_cannot_be_made_is_no_cache(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    store = shared(tmp_path / "file" / "sub" / "x.rows")
    assert (fetch(store, [1]), fetch(store, [1]), store.failures) == (1, 1, 1)
    assert "the run goes on without" in capsys.readouterr().err


def test_what_is_not_finite_is_never_kept(tmp_path):
    store, key_B = shared(tmp_path / "nan.rows"), torch.tensor([1, 2])
    store.fetch(key_B, lambda index: torch.tensor([[torch.nan] * WIDTH, [1.0] * WIDTH])[index])
    assert len(store) == 1


def _fill(path: Path, seed: int, ready: Any) -> None:
    store, keys = shared(path), torch.randperm(4000, generator=torch.Generator().manual_seed(seed))
    ready.wait()
    for part in keys.split(40):
        fetch(store, part.tolist())
    os._exit(0 if store.failures == 0 else 1)


def test_processes_fill_one_cache_at_once_and_a_killed_one_leaves_it_whole(tmp_path):
    path, context = tmp_path / "both.rows", multiprocessing.get_context("fork")
    ready = context.Barrier(3)
    workers = [context.Process(target=_fill, args=(path, seed, ready)) for seed in range(3)]
    for worker in workers:
        worker.start()
    while not path.exists() or path.stat().st_size < HEADER + 200 * 32:
        time.sleep(0.001)
    os.kill(workers[0].pid, signal.SIGKILL)
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0, 0]
    store = shared(path)
    assert (fetch(store, list(range(4000))), store.failures) == (0, 0)
    assert store.size == HEADER + 4000 * 32, "no row was written twice"


# What it is bound to


@pytest.fixture(scope="module")
def world() -> Synthetic:
    return Synthetic(pool=60, curated=16, holdout=16, eval=16)


def model_of(world: Synthetic, seed: int = 0, heads: int = 2) -> TwoTowers:
    options = {"embed_dim": 32, "depth": 1, "num_heads": heads}
    shape = Model(image_size=16, patch_size=4, image_options=options, embed_dim=16, text_width=32, text_layers=1)
    return shape.build(world.split("pool").tokenizer, "softmax", seed).eval()


def test_another_model_view_size_or_type_is_another_cache(world, tmp_path):
    cache, model, pairs = Cache(folder=str(tmp_path)), model_of(world), world.split("pool")

    def folder(cache: Cache = cache, model: TwoTowers = model, view: View = FULL, size: int = 16) -> Path | None:
        data = replace(world, image_size=size).split("pool")
        return cache.bind(model, view, CPU, data, 4096).folder

    nudged = model_of(world)
    with torch.no_grad():
        nudged.image.projection.weight[0, 0] += 1e-7
    assert fingerprint(model_of(world)) == fingerprint(model)
    found = [
        folder(),
        folder(model=model_of(world, seed=1)),
        folder(model=model_of(world, heads=4)),  # the same weights by name, shape and value
        folder(model=nudged),
        folder(view=View(layers=0.5, keep=0.5)),
        folder(size=32),
        folder(cache=replace(cache, dtype="float16")),
    ]
    assert len(set(found)) == len(found)
    assert folder() == found[0]
    noisier = replace(world, noise=0.9).split("pool")
    assert cache.bind(model, FULL, CPU, noisier, 4096).folder == found[0], "the noise is in the keys"
    assert cache.bind(model, FULL, CPU, pairs, 8).folder != found[0], "blocks of another size round otherwise"


def test_augmented_images_are_refused(world, tmp_path):
    pairs = AugmentedPairs(world.split("pool"), RandomResizedCrop(), 0)
    with pytest.raises(ValueError, match="augmented"):
        Cache(folder=str(tmp_path)).bind(model_of(world), FULL, CPU, pairs, 4096)


@pytest.mark.parametrize("options", [{"mode": "on"}, {"dtype": "bfloat16"}])
def test_a_wrong_option_is_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"cache\.{name}"):
        Cache(**options)


def frozen_of(world: Synthetic, folder: Path, bound: Bound | None) -> FrozenActor:
    rows = EmbeddingRows(model_of(world), CPU, world.split("pool").batch(torch.tensor([0])))
    return FrozenActor("reference", rows, "first_sight", folder, 4096, bound)


def test_a_frozen_model_whose_embeddings_are_not_finite_is_named(world, tmp_path):
    frozen, pairs = frozen_of(world, tmp_path, None), world.split("pool")
    with torch.no_grad():
        frozen.content.model.image.projection.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteScore, match="the reference's image embeddings are NaN or infinite"):
        frozen.score(pairs.batch(torch.arange(4)))


@pytest.mark.parametrize("cached", [False, True])
def test_a_damaged_pair_is_read_once_and_neither_embedded_nor_cached(cached, world, tmp_path, monkeypatch):
    """Pair 4 has the image of a damaged pair and the caption of another one: it is read once these are found."""
    pairs, damaged = replace(world, duplicates=0.0).split("pool"), {0, 3, 5}
    image_of, text_of = torch.arange(12), torch.arange(12)
    image_of[4], text_of[4] = 3, 0
    keys = torch.from_numpy(pairs.image_key_N)[image_of], pairs.text_key_N[text_of]
    asked, embedded = [], Counter()

    def whole(position_M: Tensor) -> tuple[Batch, dict[int, str]]:
        texts = pairs.batch(text_of[position_M])
        own = {"token_ids": texts.token_ids, "text_key_B": texts.text_key_B, "captions": texts.captions}
        return replace(pairs.batch(image_of[position_M]), **own), {}

    def read(position_M: Tensor) -> tuple[Batch, dict[int, str]]:
        asked.append(position_M.tolist())
        return whole(position_M)[0], {place: "gone" for place, at in enumerate(asked[-1]) if at in damaged}

    bound = Cache(folder=str(tmp_path / "cache")).bind(model_of(world), FULL, CPU, pairs, 4096) if cached else None
    frozen = frozen_of(world, tmp_path / "broken", bound)
    encode = frozen.encode

    def counted(name: str, batch: Batch) -> Tensor:
        embedded[name] += len(batch)
        return encode(name, batch)

    monkeypatch.setattr(frozen, "encode", counted)
    broken = frozen.own_loss("softmax", *keys, read)
    assert broken.isinf().nonzero().flatten().tolist() == sorted(damaged)
    assert asked == [[0, 1, 2, 3, *range(5, 12)], [4]]
    assert embedded == {"image": 9, "text": len({text_of[i].item() for i in range(12)} - {3, 5})}
    later = frozen_of(world, tmp_path / "later", bound).own_loss("softmax", *keys, whole)
    plain = frozen_of(world, tmp_path / "plain", None).own_loss("softmax", *keys, whole)
    torch.testing.assert_close(later, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(broken[broken.isfinite()], plain[broken.isfinite()], rtol=1e-6, atol=0)


def test_an_embedding_does_not_depend_on_its_neighbours(world, tmp_path):
    """Blocks of one size: what a warm cache holds is, to the last bit, what a cold one computes."""
    pairs = world.split("pool")
    bound = Cache(folder=str(tmp_path / "none")).bind(model_of(world), FULL, CPU, pairs, 4096)
    frozen = frozen_of(world, tmp_path / "run", bound)
    whole = {tower: frozen.encode(tower, pairs.batch(torch.arange(60))) for tower in ("image", "text")}
    for size in (1, 2, 3, 7, 59):
        index = torch.randperm(60, generator=torch.Generator().manual_seed(size))[:size]
        for tower, row_ND in whole.items():
            assert torch.equal(frozen.encode(tower, pairs.batch(index)), row_ND[index])


# Whole runs


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "run"
    command = ["--gin_file", "gin/run/tiny_reference.gin", *SIZES, SMALL, "run.budget=3e8", "evaluate.points=1"]
    assert main([*command, "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def train(reference: Path, tmp_path: Path) -> Callable[..., tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Run jest for six steps; its rows and summary."""
    made = 0

    def run(*more: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        nonlocal made
        made += 1
        folder = tmp_path / f"run{made}"
        files = ["--gin_file", "gin/run/tiny.gin", "--gin_file", "gin/policy/jest.gin"]
        limits = ["run.budget=None", "budget.steps=6", "evaluate.points=1", f"run.reference={reference}"]
        assert main([*files, *SIZES, *limits, *more, "--run_dir", str(folder)]) == 0
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines], json.loads((folder / "summary.json").read_text(encoding="utf-8"))

    return run


def lasting(found: list[dict[str, Any]]) -> list[str]:
    """The rows as written, less what is physical."""
    return [json.dumps({k: v for k, v in row.items() if k != "time/seconds" and k[:6] != "cache/"}) for row in found]


@pytest.mark.parametrize("accounting", ["online", "first_sight", "amortised"])
def test_cold_warm_and_broken_caches_write_the_same_run(train, tmp_path, monkeypatch, accounting):
    charged = f"run.reference_accounting={accounting}"
    use = [charged, "run.cache=@cache()", f"cache.folder={tmp_path / 'shared'}"]
    encoded: list[int] = []
    encode = FrozenActor.encode

    def counted(self: FrozenActor, tower: Any, batch: Batch) -> Tensor:
        encoded.append(len(batch))
        return encode(self, tower, batch)

    monkeypatch.setattr(FrozenActor, "encode", counted)
    off, without = train(charged)
    cold, _ = train(*use)
    before = len(encoded)
    warm, with_cache = train(*use)
    assert len(encoded) == before, "a warm cache runs no reference"
    write = shared_rows.write_all

    def full(descriptor: int, content: bytes, offset: int) -> None:
        write(descriptor, content[: len(content) // 2], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shared_rows, "write_all", full)
    broken, _ = train(charged, "run.cache=@cache()", f"cache.folder={tmp_path / 'full'}")
    assert lasting(cold) == lasting(warm) == lasting(broken)
    assert broken[-1]["cache/failures"] > 0 == warm[-1]["cache/failures"]
    assert warm[-1]["cache/hits"] == 6 * 24 * 2 > cold[-1]["cache/hits"]

    # Without a cache the batches are of other sizes, and a last bit of a statistic may differ.
    for key in (key for key in off[-1] if key.startswith(("flops/", "pairs/", "train/"))):
        assert [row.get(key) for row in off] == [row.get(key) for row in warm], key
    same = ("flops", "flops_amortised", "config_hash", "metrics")
    assert [without[key] for key in same] == [with_cache[key] for key in same]


def test_half_precision_is_another_arm_and_rounds_alike_without_a_cache(train, tmp_path):
    half = ["run.cache=@cache()", "cache.dtype=float16", f"cache.folder={tmp_path / 'half'}"]
    (cold, kept), (warm, _), (off, plain) = train(*half), train(*half), train(*half, "cache.mode=off")
    _, exact = train()
    assert lasting(cold) == lasting(warm)
    assert [row.get("train/loss") for row in off] == [row.get("train/loss") for row in cold]
    assert kept["config_hash"] == plain["config_hash"] != exact["config_hash"]
    size = sum(file.stat().st_size for file in (tmp_path / "half").rglob("image.rows"))
    with_padding = 8 + 2 * 64 + 4
    assert (size - HEADER) % with_padding == 0


def test_a_pass_of_its_own_fills_it(train, reference, tmp_path, capsys):
    folder = tmp_path / "filled"
    files = ["--gin_file", "gin/run/tiny.gin", "--gin_file", "gin/policy/jest.gin"]
    more = [*SIZES, f"run.reference={reference}", "run.cache=@cache()", f"cache.folder={folder}"]
    assert main([*files, *more, "--fill_cache"]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)["reference"]
    assert told["pairs"] == 100
    assert told["bytes"] == sum(file.stat().st_size for file in folder.rglob("*.rows"))
    assert "MiB" in said.err
    found, _ = train("run.cache=@cache()", f"cache.folder={folder}")
    assert found[-1]["cache/hits"] == 6 * 24 * 2
    assert main([*files, *more, "cache.mode=off", "--fill_cache"]) == 2
    assert main([*files, *more, "--gin_file", "gin/policy/uniform.gin", "--fill_cache"]) == 2


def test_the_cache_is_no_part_of_an_arm():
    files = ["gin/run/tiny.gin", "gin/policy/jest.gin"]
    reference = ["run.reference=gin/run/tiny_reference.gin"]
    plain = resolve.resolve(files, reference).config_hash
    cached = resolve.resolve(files, [*reference, "run.cache=@cache()", "cache.folder=/elsewhere"]).config_hash
    assert cached == plain
