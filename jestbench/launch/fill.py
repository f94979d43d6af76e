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

from jestbench.batch import FULL, Batch, DataError
from jestbench.config.run import ConfigError, Resolved
from jestbench.cost.price import Price, pair_macs
from jestbench.cost.tracing import FLOPS_PER_MAC
from jestbench.data.damage import Tally
from jestbench.data.pairs import IndexedPairs
from jestbench.engine.frozen import FrozenModel
from jestbench.engine.pair_scorer import PairScorer
from jestbench.engine.rows import pair_key_B
from jestbench.engine.twin import TwinModel
from jestbench.launch.stages import build_stages
from jestbench.launch.train_run import building, ensure_pretrained
from jestbench.runs.saved_model import load_model, load_regressor


def fill_cache(resolved: Resolved) -> dict[str, Any]:
    """Bring all pairs of a run's split into the cache of each frozen model; those that are there are passed over.

    Several processes may do it at once, and a killed one is gone on with.

    Returns:
        By role: where the cache lies, what it holds, and what filling it costs (FLOPs, whatever was there before).

    Raises:
        ConfigError: the run has no frozen model, or no shared cache.
        DataError: the data is damaged, or the disk refused rows.
    """
    run = resolved.run
    if run.cache is None or run.cache.mode != "shared":
        raise ConfigError('--fill_cache fills a shared cache: bind run.cache = @cache(), cache.mode = "shared"')
    if resolved.twin is not None:
        raise ConfigError("--fill_cache: two references score each other's half; they fill their caches as they run")
    run.data.prepare()
    folders = ensure_pretrained(resolved)
    if not folders:
        raise ConfigError("--fill_cache: neither run.policy nor run.cascade scores with a frozen model")
    with tempfile.TemporaryDirectory() as store:
        with building():
            plain = replace(resolved, run=replace(run, reference_accounting="online", cascade=None))
            reference = load_model(folders["reference"]) if "reference" in folders else None
            regressor = load_regressor(folders["scorer"]) if "scorer" in folders else None
            stages = build_stages(plain, run.data, reference, Path(store), draw_size=1, regressor=regressor)
        pairs = stages.pairs.indexed("--fill_cache").expanded()
        return {role: _filled(frozen, pairs, resolved) for role, frozen in stages.scorer.frozen.items()}


def _filled(frozen: FrozenModel | PairScorer | TwinModel, pairs: IndexedPairs, resolved: Resolved) -> dict[str, Any]:
    """Fill the cache of one model."""
    assert not isinstance(frozen, TwinModel), "refused before"
    view = frozen.view if isinstance(frozen, FrozenModel) else FULL
    frozen.price = Price.of(frozen.model, pairs.example(), view)
    _walk(frozen, pairs, resolved)
    failures, cost = frozen.counts()["cache/failures"], _cost(frozen, pairs)
    frozen.close(remove=True)
    if failures:
        raise DataError(f"{frozen.cache.folder} could not be filled: see the warning above")
    size = sum(file.stat().st_size for file in Path(str(frozen.cache.folder)).glob("*.rows"))
    return {"folder": str(frozen.cache.folder), "pairs": len(pairs), "bytes": size, "flops": cost}


def _walk(frozen: FrozenModel | PairScorer, pairs: IndexedPairs, resolved: Resolved) -> None:
    tally = Tally(pairs.name, pairs.max_damaged)
    done = 0
    for index_P in torch.arange(len(pairs)).split(min(1024, resolved.run.microbatch)):

        def read(position_M: Tensor, index_P: Tensor = index_P) -> Batch:
            batch = pairs.batch(index_P[position_M])
            tally.add(batch.counts)
            return batch

        image_key_P = torch.from_numpy(np.ascontiguousarray(pairs.image_key_N[index_P.numpy()]))
        frozen.own_loss(resolved.run.loss, image_key_P, pairs.text_key_N[index_P], read)
        done += len(index_P)
        if sys.stderr.isatty():
            print(f"\r{done:,} of {len(pairs):,} pairs", end="" if done < len(pairs) else "\n", file=sys.stderr)


def _cost(frozen: FrozenModel | PairScorer, pairs: IndexedPairs) -> int:
    """FLOPs of all distinct images, captions and pairs."""
    assert frozen.price is not None
    image_key_N, text_key_N = torch.from_numpy(np.ascontiguousarray(pairs.image_key_N)), pairs.text_key_N
    keys = (image_key_N, text_key_N, pair_key_B(image_key_N, text_key_N))
    images, texts, both = (len(key_N.unique()) for key_N in keys)
    if isinstance(frozen, PairScorer):
        return FLOPS_PER_MAC * pair_macs(frozen.price, frozen.head_macs, both)
    towers = frozen.price.images(images, frozen.microbatch) + texts * frozen.price.text
    return FLOPS_PER_MAC * (towers + both * frozen.model.width)
