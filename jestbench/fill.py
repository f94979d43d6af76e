"""Fills the shared reference cache in a pass of its own: ``python tools/run.py --fill_cache``."""

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
from jestbench.data.loader import Tally
from jestbench.data.pairs import Pairs
from jestbench.flops import FLOPS_PER_MAC
from jestbench.launch import building, ensure_reference
from jestbench.learner import Price
from jestbench.reference import FrozenModel, load_model
from jestbench.rows import pair_key_B
from jestbench.run import ConfigError, Resolved
from jestbench.stages import build_stages


def fill_cache(resolved: Resolved) -> dict[str, Any]:
    """Bring all pairs of a run's split into its reference cache; those that are there already are passed over.

    Several processes may do it at once, and a killed one is gone on with.

    Returns:
        Where the cache lies, what it holds, and what filling it costs (FLOPs, whatever was there before).

    Raises:
        ConfigError: the run has no reference, or no shared cache.
        DataError: the data is damaged, or the disk refused rows.
    """
    run = resolved.run
    if run.cache is None or run.cache.mode != "shared":
        raise ConfigError('--fill_cache fills a shared cache: bind run.cache = @cache(), cache.mode = "shared"')
    if not run.needs_reference:
        raise ConfigError("--fill_cache: neither run.policy nor run.cascade scores with a reference")
    run.data.prepare()
    folder = ensure_reference(resolved)
    assert folder is not None
    with tempfile.TemporaryDirectory() as store:
        with building():
            plain = replace(resolved, run=replace(run, reference_accounting="online", cascade=None))
            stages = build_stages(plain, run.data, load_model(folder), Path(store), draw_size=1)
        frozen = stages.scorer.reference
        assert frozen is not None
        expanded = getattr(stages.pairs, "expanded", None)  # each of several captions is a pair
        pairs: Pairs = stages.pairs if expanded is None else expanded()
        frozen.price = Price.of(frozen.model, pairs.batch(torch.zeros(1, dtype=torch.int64)), frozen.view)
        _walk(frozen, pairs, resolved)
        failures, cost = frozen.counts()["cache/failures"], _cost(frozen, pairs)
        frozen.close(remove=True)
    if failures:
        raise DataError(f"{frozen.cache.folder} could not be filled: see the warning above")
    size = sum(file.stat().st_size for file in Path(str(frozen.cache.folder)).glob("*.rows"))
    return {"folder": str(frozen.cache.folder), "pairs": len(pairs), "bytes": size, "flops": cost}


def _walk(frozen: FrozenModel, pairs: Pairs, resolved: Resolved) -> None:
    tally = Tally(pairs)
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


def _cost(frozen: FrozenModel, pairs: Pairs) -> int:
    """FLOPs of all distinct images, captions and pairs."""
    assert frozen.price is not None
    image_key_N, text_key_N = torch.from_numpy(np.ascontiguousarray(pairs.image_key_N)), pairs.text_key_N
    keys = (image_key_N, text_key_N, pair_key_B(image_key_N, text_key_N))
    images, texts, dots = (len(key_N.unique()) for key_N in keys)
    return FLOPS_PER_MAC * (frozen.price.images(images) + texts * frozen.price.text + dots * frozen.model.width)
