"""The hash of an arm: its operative configuration less what does not matter to it."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jestbench.config.registry import PRETRAINED
from jestbench.config.run import ReadFolder, Resolved
from jestbench.cost.budget import Pretrained
from jestbench.disk import digest

# Not part of an arm: seed, label, logging, paths, and where it runs.
NOT_THE_ARM = tuple(
    "run.seed run.arm run.log run.wandb log.* wandb.* *.cache_dir run.device run.checkpoints run.microbatch "
    "run.reference run.scorer run.cache run.loader loader.* cache.mode cache.folder evaluate.sets".split()
)

# Parameters that came later: at their defaults an arm (and a cached reference) is what it was without them.
ADDED: Mapping[str, Any] = {
    "run.scorer": None,
    "run.twin": False,
    "run.half": None,
    "run.objective": None,
    "run.cascade": None,
    "run.augment": None,
    "cache.dtype": "float32",
    "budget.adds": [],
}


def arm_hash(flat: Mapping[str, Any], needs: frozenset[str], pretrained: Mapping[Pretrained, str]) -> str:
    """Hash of an arm: its operative configuration less what does not matter to it.

    The frozen models that it needs are in it by their own identity. A policy that scores nothing never sees a
    super-batch or a reference, so two uniform arms that differ in those are one.
    """
    arm = {key: value for key, value in flat.items() if not any(fnmatch.fnmatch(key, p) for p in NOT_THE_ARM)}
    arm = {key: value for key, value in arm.items() if key not in ADDED or value != ADDED[key]}
    if not needs:
        arm.pop("run.super_batch_size", None)
    if "learner" not in needs:
        arm.pop("run.score_view", None)
    cascaded = "run.cascade" in arm
    if "reference" not in needs and not cascaded:
        arm.pop("run.reference_view", None)
        arm.pop("run.twin", None)
    if not needs & PRETRAINED.keys() and not cascaded:
        arm.pop("run.reference_accounting", None)
        arm.pop("cache.dtype", None)
    # Saving memory costs FLOPs and is part of the arm; not doing so is none.
    if not arm.get("run.grad_checkpointing"):
        arm.pop("run.grad_checkpointing", None)
    micro, whole = arm.get("run.train_microbatch"), arm.get("run.batch_size")
    if micro is None or (whole is not None and micro >= whole):
        arm.pop("run.train_microbatch", None)
    views = ("run.train_views", "run.score_view", "run.reference_view", "online_scorer.view")
    if not any(arm.get(name) for name in views):
        arm = {key: value for key, value in arm.items() if not f"/{key}".rpartition("/")[2].startswith("view.")}
    text = json.dumps({"arm": arm, "reference": "", **pretrained}, sort_keys=True)
    return digest(text, 6)


def identity_of(resolved: Resolved | None, folder: Path | None, recorded: ReadFolder | None) -> str:
    """Configuration and seed of a frozen model's run; the same wherever its folder lies."""
    if resolved is not None:
        return f"{resolved.config_hash}{resolved.run.seed}"
    assert folder is not None
    assert recorded is not None, "a run folder is resolved with a reader of run folders"
    return recorded(folder).identity or str(folder)
