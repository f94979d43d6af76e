"""The own scores of a split's pairs by a frozen model: what ``run.split`` takes the top by, before the first step.

Scores are kept in the cache folder, by a digest of all that they depend on. What is charged never depends on it: the
rows of every pair count as scored once when a run begins, and under ``first_sight`` are not charged again.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jestbench.config.resolved import Resolved
from jestbench.config.run import ConfigError
from jestbench.cost.budget import Allowance, Pretrained
from jestbench.cost.ledger import flops_of
from jestbench.data.damage import Tally, counted, first_examples
from jestbench.data.pairs import Dataset, IndexedPairs, ReadPairs
from jestbench.disk import cache_root, digest, whole
from jestbench.engine.cache import Cache
from jestbench.engine.casting import Casting
from jestbench.engine.frozen import FrozenActor
from jestbench.launch.stages import setting_of
from jestbench.loop import Progress, Stages
from jestbench.parallel import distributed
from jestbench.parallel.placement import Placement
from jestbench.select.scores import Role

AT_ONCE = 1024
"""Pairs that are read at once."""


def own_scores(
    resolved: Resolved, data: Dataset, castings: Mapping[Pretrained, Casting], role: Role, split: str
) -> npt.NDArray[np.float64]:
    """Own scores ``[N]`` of a split's pairs: the cosine of image and text, or a pair scorer's grade.

    Args:
        data: the run's data set, prepared.
        castings: its frozen models by role.
        role: of the model that scores.
        split: whose pairs are scored; −∞ where an image is damaged.

    Raises:
        ConfigError: the model scores no single pairs.
        DataError: too many pairs are damaged, or the cache folder cannot be written.
    """
    run, world = resolved.run, distributed.world()
    casting = castings[role] if role in castings else run.castings[role]  # type: ignore[index]
    plain = replace(run, split=split, half=None, cascade=None, augment=None, reference_accounting="online")
    with tempfile.TemporaryDirectory() as store:
        setting = setting_of(plain, data, Path(store))
        actor, pairs = casting.frozen(setting), setting.pairs.indexed("run.split")
        if actor is None:
            raise ConfigError(f"run.split takes the top by the {role}'s scores of single pairs, and it has none")
        kept = replace(run.cache or Cache(), mode="shared")
        bound = kept.bind(actor.content.model, actor.view, setting.arithmetic, pairs, setting.micro.score)
        path = cache_root() / "own_scores" / f"{digest(bound.digest + pairs.fingerprint.encode(), 16)}.npy"
        if world.first(lambda: not path.is_file()):
            if world.first_of_all:
                print(f"scoring the {len(pairs):,} pairs of {pairs.name} by the {role}, once", file=sys.stderr)
            value_N = -own_losses(actor, pairs).numpy()
            world.first(lambda: _save(path, value_N))
        actor.close(remove=True)
        return world.first(lambda: np.load(path))


def _save(path: Path, value_N: npt.NDArray[np.float64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial, partial.open("wb") as file:
        np.save(file, value_N)


def own_losses(actor: FrozenActor, pairs: IndexedPairs) -> Tensor:
    """The own loss −t·cos (or −g) of each pair, float64 ``[N]``, block by block, the blocks dealt out in turns.

    A block is computed as one process computes it, so that the values are the same for any number of processes. A
    damaged pair is counted, and its loss is infinite.

    Raises:
        DataError: too many pairs are damaged.
    """
    tally, world = Tally(pairs.name, pairs.max_damaged), actor.world
    size = min(AT_ONCE, actor.microbatch)
    blocks, found = torch.arange(len(pairs)).split(size), []
    for start in range(0, len(blocks), world.size):
        counts, lost = Counter[str](), list[Any]()
        for index_P in blocks[start + world.rank : start + world.rank + 1]:
            read = partial(_read, pairs, index_P, counts, lost)
            found.append(actor.own_loss("softmax", *keys_at(pairs, index_P), read))
        for part, examples in world.everybodys(({**counts, **counted(lost)}, first_examples(lost))):
            tally.add(part, examples)
        done = min((start + world.size) * size, len(pairs))
        if sys.stderr.isatty() and world.first_of_all:
            print(f"\r{done:,} of {len(pairs):,} pairs", end="" if done < len(pairs) else "\n", file=sys.stderr)
    own = torch.cat([torch.empty(0, dtype=torch.float64), *found])
    return Placement(torch.arange(len(pairs)) // size % world.size, world).collect(own)


def _read(pairs: IndexedPairs, index_P: Tensor, counts: Counter[str], lost: list[Any], position_M: Tensor) -> ReadPairs:
    """Read pairs at positions of a block; ``counts`` takes up how many, ``lost`` the damage."""
    batch, damaged = pairs.attempt(index_P[position_M])
    counts.update(batch.counts)
    lost.extend(damaged.values())
    return batch, damaged


def keys_at(pairs: IndexedPairs, index_P: Tensor) -> tuple[Tensor, Tensor]:
    """Image and text keys of some pairs."""
    return torch.from_numpy(np.ascontiguousarray(pairs.image_key_N[index_P.numpy()])), pairs.text_keys_at(index_P)


def keys_of_all(pairs: IndexedPairs) -> tuple[Tensor, Tensor]:
    """Image and text keys of all pairs."""
    return keys_at(pairs, torch.arange(len(pairs)))


def charge(stages: Stages, progress: Progress, allowance: Allowance) -> None:
    """Charge a run, before its first step, for the scores that its split takes the top by.

    Raises:
        ConfigError: nothing of the budget is left.
    """
    for role, pairs in stages.pairs.ranked:
        progress.ledger.charge(stages.scorer.actors[role].own_loss_passes(*keys_of_all(pairs)))
    if stages.pairs.ranked and progress.share(allowance) >= 1:
        raise ConfigError(
            f"run.split: scoring the pool to take its top spends {progress.ledger.total:.3g} FLOPs, which leaves "
            "nothing of run.budget: raise it, or take the top by a column"
        )


def forecast_ranking(resolved: Resolved, stages: Stages) -> int:
    """FLOPs that ``charge`` will charge."""
    if resolved.run.reference_accounting == "amortised":
        return 0
    flops = 0
    for role, pairs in stages.pairs.ranked:
        actor = stages.scorer.actors[role]
        assert isinstance(actor, FrozenActor), "a model that scores single pairs is one frozen model"
        if resolved.run.reference_accounting == "online":
            passes = actor.forecast_own_loss(len(pairs))
        else:
            passes = actor.forecast_distinct(*keys_of_all(pairs))
        flops += flops_of(passes)
    return flops
