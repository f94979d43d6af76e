"""Embeddings and ranks of evaluation examples, each computed by one of the processes of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from jestbench.engine.actor import EmbeddingModel
from jestbench.parallel.arithmetic import to_device
from jestbench.parallel.distributed import World
from jestbench.parallel.placement import Placement


def gathered(own: Iterable[Tensor], count: int, subject: EmbeddingModel) -> Tensor:
    """Embeddings of ``count`` examples, of which every process computes those that are dealt out to it in turns.

    Args:
        own: embeddings of this process's examples, block by block; none where there are fewer examples than processes.
    """
    dtype = torch.promote_types(next(subject.model.parameters()).dtype, torch.float32)
    none = torch.empty(0, subject.model.width, device=subject.arithmetic.device, dtype=dtype)
    return Placement.in_turns(count, subject.arithmetic.world).collect(torch.cat([none, *own]))


def by_rows(world: World, compute: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """A value of each row ``[N]``, of which every process computes those that are dealt out to it in turns.

    Args:
        world: the processes; each of them has all rows.
        compute: takes some rows of each of the tensors, and returns the value of each of these rows.
        rows: tensors ``[N, …]`` on one device.
    """
    if world.size == 1:
        return compute(*rows)
    own = to_device(world.rows(len(rows[0])), rows[0].device)
    return Placement.in_turns(len(rows[0]), world).collect(compute(*(each[own] for each in rows)))
