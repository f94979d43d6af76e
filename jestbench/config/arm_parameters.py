"""Which parameters make an arm. Nothing is imported here: the comparison reads it without gin and without torch."""

from __future__ import annotations

import fnmatch
import re

# Not part of an arm: seed, label, logging, paths, and where it runs.
NOT_THE_ARM = tuple(
    "run.seed run.arm run.control run.log run.wandb log.* wandb.* *.cache_dir run.device run.shard run.checkpoints "
    "run.microbatch run.reference run.scorer run.init run.cache run.loader run.patience loader.* cache.mode "
    "cache.folder evaluate.sets stream.patience *.trust_pickle".split()
)
WHOSE_WEIGHTS = ("open_clip.model", "open_clip.pretrained", "hugging_face_clip.path", "hugging_face_clip.revision")
"""Where the weights of a model of another library lie: an arm holds the digest of the weights instead."""
BUDGETS = ("run.budget", "optimizer.schedule", "optimizer.rungs", "optimizer.cooldown")
"""In what the points of one curve may differ: separate runs at several budgets, and a ladder over them."""
_NOT_THE_ARM = re.compile("|".join(map(fnmatch.translate, (*NOT_THE_ARM, *(f"*{key}" for key in WHOSE_WEIGHTS)))))


def is_of_the_arm(key: str) -> bool:
    """Whether a parameter, ``name.parameter``, is part of an arm's configuration."""
    return _NOT_THE_ARM.match(key) is None
