"""Fills the shared cache of frozen models in a pass of its own: ``python tools/run.py --fill_cache``."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jestbench.batch import Batch, DataError
from jestbench.config.run import ConfigError, Resolved, Run
from jestbench.cost.tracing import FLOPS_PER_MAC
from jestbench.data.damage import Tally
from jestbench.data.pairs import IndexedPairs
from jestbench.engine.frozen import FrozenActor
from jestbench.launch.stages import setting_of
from jestbench.launch.stands import trained
from jestbench.launch.train_run import building, ensure_pretrained


def fill_cache(resolved: Resolved) -> dict[str, Any]:
    """Score all pairs of a run's split into the cache of each frozen model, except those already there.

    Several processes may fill one cache at once, and a killed one can be started again to finish.

    Returns:
        By role: the cache's folder, its contents, and the FLOPs of filling it from empty.

    Raises:
        ConfigError: the run has no frozen model, or no shared cache.
        DataError: the data is damaged, or rows cannot be written to disk.
    """
    run = resolved.run
    if run.cache is None or run.cache.mode != "shared":
        raise ConfigError('--fill_cache fills a shared cache: bind run.cache = @cache(), cache.mode = "shared"')
    if run.twin and resolved.run.needs & {"reference"}:
        raise ConfigError("--fill_cache: two references score each other's half; they fill their caches as they run")
    run.data.prepare()
    folders = ensure_pretrained(resolved)
    foreign = [casting for role, casting in run.castings.items() if role in resolved.stated_flops]
    if not folders and not foreign:
        raise ConfigError("--fill_cache: neither run.policy nor run.cascade scores with a frozen model")
    with tempfile.TemporaryDirectory() as store:
        with building():
            setting = setting_of(replace(run, reference_accounting="online", cascade=None), run.data, Path(store))
            castings = [*(trained(role, folder) for role, (folder,) in folders.items()), *foreign]
            frozen = {casting.role: actor for casting in castings if (actor := casting.frozen(setting)) is not None}
        pairs = setting.pairs.indexed("--fill_cache").expanded()
        return {role: _filled(actor, pairs, run) for role, actor in frozen.items()}


def _filled(actor: FrozenActor, pairs: IndexedPairs, run: Run) -> dict[str, Any]:
    """Fill the cache of one model."""
    _walk(actor, pairs, run)
    failures = actor.counts()["cache/failures"]
    actor.close(remove=True)
    if failures:
        raise DataError(f"{actor.cache.folder} could not be filled: see the warning above")
    size = sum(file.stat().st_size for file in Path(str(actor.cache.folder)).glob("*.rows"))
    cost = sum(item.macs for item in actor.forecast_distinct(*_keys(pairs, torch.arange(len(pairs)))))
    return {"folder": str(actor.cache.folder), "pairs": len(pairs), "bytes": size, "flops": FLOPS_PER_MAC * cost}


def _walk(actor: FrozenActor, pairs: IndexedPairs, run: Run) -> None:
    tally = Tally(pairs.name, pairs.max_damaged)
    done = 0
    for index_P in torch.arange(len(pairs)).split(min(1024, actor.microbatch)):

        def read(position_M: Tensor, index_P: Tensor = index_P) -> Batch:
            batch = pairs.batch(index_P[position_M])
            tally.add(batch.counts)
            return batch

        actor.own_loss(run.loss, *_keys(pairs, index_P), read)
        done += len(index_P)
        if sys.stderr.isatty():
            print(f"\r{done:,} of {len(pairs):,} pairs", end="" if done < len(pairs) else "\n", file=sys.stderr)


def _keys(pairs: IndexedPairs, index_P: Tensor) -> tuple[Tensor, Tensor]:
    """Image and text keys of some pairs."""
    return torch.from_numpy(np.ascontiguousarray(pairs.image_key_N[index_P.numpy()])), pairs.text_key_N[index_P]
