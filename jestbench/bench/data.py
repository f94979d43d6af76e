"""Pairs/s from shards, measured against open_clip's own pipeline over the same shards, in one run.

The bench writes the shards: noisy photographs as JPEG of two sizes, with captions. Each contender has the same
number of worker processes, and makes RGB images of the same size and token ids by its own tokenizer. Rounds of the
contenders are interleaved, so that a disturbance of the machine slows all of them alike. Each round times ``--pairs``
pairs after the first ``1 + 2 × workers`` batches, which leaves out the start and the batches prefetched during it.

* indexed over open_clip: pairs/s of jestbench's indexed path (byte ranges, any order) ÷ that of
  ``open_clip_train.data.get_wds_dataset`` with open_clip's image transform;
* stream over open_clip: the same ratio for jestbench's streams (webdataset's openers, virtual lanes);
* webdataset over datasets: raw samples/s of webdataset's tar reader, which the streams use, ÷ those of Hugging
  Face ``datasets`` streaming the same shards; neither decodes, and both run in this process;
* memory: resident set of this process and its workers at the end of a long read of the indexed path and of the
  stream ÷ that after the first quarter of the read.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from jestbench.bench import timing
from jestbench.data.encoded_images import ByteRanges
from jestbench.data.file_pairs import FilePairs, Texts
from jestbench.data.loader import Loader
from jestbench.data.sources.lanes import Shards
from jestbench.data.sources.shards import MemberRules
from jestbench.data.sources.stream_batches import StreamBatches
from jestbench.data.super_batches import EpochPlan, SuperBatches, SuperBatchSource
from jestbench.disk import content_key
from jestbench.model.tokenizer import Tokenizer, train_bpe

TARGETS = {
    "indexed over open_clip": "≥ 1.0",
    "stream over open_clip": "≥ 1.0",
    "webdataset over datasets": "",
    "memory": "≤ 1.05",
}
TRAINED = {64: 64, 256: 224}
"""Side in pixels of an image in the shard → side that it is resized to."""


@dataclass(frozen=True)
class DataPlan(timing.Plan):
    """Sizes of the shards, and how many pairs and worker processes read them."""

    pairs: int = timing.option(2048, "read in a round")
    batch: int = timing.option(256, "pairs of a batch")
    workers: int = timing.option(2, "processes, of each contender")
    shards: int = timing.option(8, "tar files of each size, at least as many as workers")
    per_shard: int = timing.option(256, "pairs in each")
    rounds: int = timing.option(5, "of each contender")
    minutes: float = timing.option(0.2, "of each memory reading")
    sizes: tuple[int, ...] = timing.option((64, 256), "pixels", tuple(TRAINED))


def write_shards(folder: Path, pixels: int, plan: DataPlan) -> list[str]:
    """Write shards of JPEGs that compress as photographs do: smooth shapes under grain."""
    import webdataset

    paths = []
    random = np.random.default_rng(pixels)
    for shard in range(plan.shards):
        paths.append(str(folder / f"{pixels}-{shard:05d}.tar"))
        with webdataset.TarWriter(paths[-1]) as writer:
            for number in range(plan.per_shard):
                grid = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                smooth = np.asarray(grid.resize((pixels, pixels), Image.Resampling.BICUBIC), dtype=np.int16)
                grain = random.normal(0, 6, smooth.shape).astype(np.int16)
                file = io.BytesIO()
                Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
                words = " ".join(f"word{w}" for w in random.integers(0, 500, 8).tolist())
                sample = {"__key__": f"{shard:05d}{number:05d}", "jpg": file.getvalue(), "txt": words}
                writer.write(sample)
    return paths


def _tokenizer() -> Tokenizer:
    return Tokenizer(train_bpe([f"word{i} word{i + 1}" for i in range(500)], 1024).to_str(), 32)


def indexed(paths: list[str], pixels: int) -> FilePairs:
    """Open the shards by an index of byte ranges."""
    import tarfile

    rows, captions, keys = [], [], []
    for which, path in enumerate(paths):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                if member.name.endswith(".jpg"):
                    rows.append((which, member.offset_data, member.size))
                    keys.append(content_key(file.read()))
                else:
                    captions.append(file.read().decode())
    which_N, offset_N, size_N = (np.array(column) for column in zip(*rows, strict=True))
    source = ByteRanges(paths, which_N.astype(np.int32), offset_N, size_N)
    name, size = "bench", TRAINED[pixels]
    return FilePairs(name, name, source, Texts.of(captions), _tokenizer(), np.array(keys, dtype=np.int64), size)


def make_source(kind: str, paths: list[str], pixels: int, plan: DataPlan) -> SuperBatchSource:
    """Build the batch source of one of jestbench's two paths."""
    loader = Loader(workers=plan.workers, part=64)
    if kind == "indexed":
        return SuperBatches.of(EpochPlan(indexed(paths, pixels), plan.batch, 0), loader)
    lanes = max(plan.workers, plan.shards // 2)
    shards = Shards(tuple(paths), _tokenizer(), TRAINED[pixels], MemberRules(), lanes, plan.batch, 0.01)
    return StreamBatches(shards, plan.batch, loader)


def steps_of(source: SuperBatchSource) -> Iterator[int]:
    """Yield the sizes of the source's batches, without end."""
    step = 0
    while True:
        yield len(source.at(step))
        step += 1


def open_clip_batches(paths: list[str], pixels: int, plan: DataPlan) -> Iterator[int]:
    """Yield the sizes of the batches of open_clip's training pipeline, without end."""
    from open_clip import image_transform
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip_train import data as theirs
    from webdataset.tariterators import tar_file_expander

    # Newer versions of webdataset mark a shard's end by an empty member, which open_clip's grouping stumbles over.
    theirs.tar_file_expander = partial(tar_file_expander, eof_value=None)
    arguments = SimpleNamespace(
        train_data=f"{Path(paths[0]).parent}/{pixels}-{{00000..{plan.shards - 1:05d}}}.tar",
        train_num_samples=plan.shards * plan.per_shard,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=plan.batch,
        workers=plan.workers,
        world_size=1,
    )
    # The transform without augmentation: shortest side, bicubic, centre crop, normalise.
    transform = image_transform(TRAINED[pixels], is_train=False)
    data = theirs.get_wds_dataset(arguments, transform, is_train=True, tokenizer=SimpleTokenizer(context_length=32))
    epoch = 0
    while True:
        data.set_epoch(epoch)
        for images, _ in data.dataloader:
            yield len(images)
        epoch += 1


def raw_webdataset(paths: list[str]) -> Iterator[int]:
    """Yield 1 for each undecoded sample of webdataset's reader."""
    from webdataset.tariterators import tarfile_samples

    while True:
        for _ in tarfile_samples({"url": path} for path in paths):
            yield 1


def raw_datasets(paths: list[str]) -> Iterator[int]:
    """Yield 1 for each undecoded sample that Hugging Face datasets streams."""
    import datasets

    stream = datasets.load_dataset("webdataset", data_files={"train": paths}, split="train", streaming=True)
    stream = stream.cast_column("jpg", datasets.Image(decode=False))
    while True:
        for _ in stream:
            yield 1


def rate(batches: Iterator[int], pairs: int) -> float:
    """Pairs/s over the next ``pairs`` pairs."""
    begin, seen = time.perf_counter(), 0
    while seen < pairs:
        seen += next(batches)
    return seen / (time.perf_counter() - begin)


def rates(contenders: Mapping[str, Callable[[], Iterator[int]]], plan: DataPlan) -> dict[str, list[float]]:
    """Pairs/s by contender and round; workers restart in each round, so that none prefetches in another's round."""

    def measured(begin: Callable[[], Iterator[int]]) -> float:
        batches = begin()
        for _ in range(1 + 2 * plan.workers):  # past the start, and the batches prefetched during it
            next(batches)
        found = rate(batches, plan.pairs)
        batches.close()  # type: ignore[attr-defined]
        return found

    measures = {name: partial(measured, begin) for name, begin in contenders.items()}
    return timing.interleaved(measures, dict.fromkeys(contenders, plan.rounds))


def resident(pids: list[int]) -> int:
    """Resident bytes of processes, shared pages counted in each."""
    return sum(timing.status_bytes("VmRSS", pid) for pid in pids)


def memory(source: SuperBatchSource, minutes: float) -> dict[str, Any]:
    """Resident set over time while a source is read as fast as possible."""
    samples: list[int] = []
    begin, step = time.monotonic(), 0
    while (spent := time.monotonic() - begin) < 60 * minutes or step < 8:
        source.at(step)
        step += 1
        if spent >= len(samples) * 60 * minutes / 100:
            samples.append(resident([os.getpid(), *source.pids]))
    source.close()
    quarter = len(samples) // 4
    early = statistics.median(samples[quarter : 2 * quarter] or samples)
    return {"value": statistics.median(samples[-max(1, quarter) :]) / early, "bytes": samples, "batches": step}


def measure(plan: DataPlan) -> dict[str, Any]:
    """All numbers, ready for JSON.

    Raises:
        MissingPeer: open_clip's pipeline is not installed.
    """
    timing.need("webdataset", "open_clip", "open_clip_train.data")
    load = timing.load()
    report: dict[str, Any] = {"plan": asdict(plan), "sizes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for pixels in plan.sizes:
            paths = write_shards(Path(folder), pixels, plan)
            report["sizes"][str(pixels)] = _one_size(paths, pixels, plan)
    versions = timing.versions("torch", "open_clip_torch", "webdataset", "datasets", "pillow")
    report["machine"] = timing.machine(load, versions=versions)
    return report


def _ours(kind: str, paths: list[str], pixels: int, plan: DataPlan) -> Iterator[int]:
    source = make_source(kind, paths, pixels, plan)
    try:
        yield from steps_of(source)
    finally:
        source.close()


def _one_size(paths: list[str], pixels: int, plan: DataPlan) -> dict[str, Any]:
    found = rates(
        {
            "open_clip": partial(open_clip_batches, paths, pixels, plan),
            "indexed": partial(_ours, "indexed", paths, pixels, plan),
            "stream": partial(_ours, "stream", paths, pixels, plan),
        },
        plan,
    )
    report: dict[str, Any] = {
        "indexed over open_clip": timing.ratio_and_range(found["indexed"], found["open_clip"]),
        "stream over open_clip": timing.ratio_and_range(found["stream"], found["open_clip"]),
    }
    try:
        raw = rates({"webdataset": partial(raw_webdataset, paths), "datasets": partial(raw_datasets, paths)}, plan)
        report["webdataset over datasets"] = timing.ratio_and_range(raw["webdataset"], raw["datasets"])
    except ImportError as error:
        raw = {}
        print(f"webdataset over datasets is left out: {error}", file=sys.stderr)
    report["pairs/s"] = found | {f"raw {name}": values for name, values in raw.items()}
    for kind in ("indexed", "stream"):
        report[f"memory, {kind}"] = memory(make_source(kind, paths, pixels, plan), plan.minutes)
    return report


def table(report: Mapping[str, Any]) -> str:
    """The ratios, one a line, with their targets."""
    plan, machine = report["plan"], report["machine"]
    lines = [
        "data: {workers} workers, batches of {batch}, {rounds} rounds of {pairs} pairs from {shards} shards".format(
            **plan
        ),
        timing.machine_line(machine),
        "",
        f"{'':40s}{'value':>8s}  {'rounds':>13s}  target",
    ]
    for pixels, part in report["sizes"].items():
        for name, entry in part.items():
            if name != "pairs/s":
                target = next(text for start, text in TARGETS.items() if name.startswith(start))
                spread = timing.spread(entry)
                lines.append(f"{f'{name} ({pixels} px)':40s}{entry['value']:8.2f}  {spread:>13s}  {target}".rstrip())
        medians = {name: statistics.median(values) for name, values in part["pairs/s"].items()}
        lines.append(f"  pairs/s: {', '.join(f'{name} {value:,.0f}' for name, value in medians.items())}")
    return "\n".join(lines)
