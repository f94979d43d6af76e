"""Fills the shared cache of frozen models in a pass of its own: ``python tools/run.py --fill_cache``."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from jestbench.batch import DataError
from jestbench.config.resolved import Resolved
from jestbench.config.run import ConfigError
from jestbench.cost.ledger import flops_of
from jestbench.data.pairs import IndexedPairs
from jestbench.data.splits import unranked
from jestbench.engine.frozen import FrozenActor
from jestbench.launch.own_scores import keys_at, own_losses
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
            split = unranked(run.split) if run.ranks else run.split
            plain = replace(run, split=split, reference_accounting="online", cascade=None)
            setting = setting_of(plain, run.data, Path(store))
            castings = [*(trained(role, folder) for role, (folder,) in folders.items()), *foreign]
            frozen = {casting.role: actor for casting in castings if (actor := casting.frozen(setting)) is not None}
        pairs = setting.pairs.indexed("--fill_cache").expanded()
        return {role: _filled(actor, pairs) for role, actor in frozen.items()}


def _filled(actor: FrozenActor, pairs: IndexedPairs) -> dict[str, Any]:
    """Fill the cache of one model with the whole pairs of a split."""
    whole_N = own_losses(actor, pairs).isfinite().nonzero().flatten()
    failures, folder = actor.counts()["cache/failures"], actor.cache.folder
    assert folder is not None, "the cache is shared"
    actor.close(remove=True)
    if failures:
        raise DataError(f"{folder} could not be filled: see the warning above")
    size = sum(file.stat().st_size for file in folder.glob("*.rows"))
    flops = flops_of(actor.forecast_distinct(*keys_at(pairs, whole_N)))
    return {"folder": str(folder), "pairs": len(whole_N), "bytes": size, "flops": flops}
