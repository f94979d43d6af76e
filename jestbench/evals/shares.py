"""Embeddings and ranks of evaluation examples, each computed by one of the processes of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from jestbench.engine.actor import EmbeddingModel
from jestbench.parallel.arithmetic import to_device
from jestbench.parallel.distributed import World
from jestbench.parallel.placement import Placement

_ROWS = 4096  # of which values are computed at once: similarities with all classes, say


def embedded(subject: EmbeddingModel, count: int, batch_size: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Embeddings of ``count`` examples; ``encode`` computes those of the examples at some positions."""
    own = subject.arithmetic.world.rows(count).split(batch_size)
    return gathered((encode(index) for index in own if len(index)), count, subject)


def gathered(own: Iterable[Tensor], count: int, subject: EmbeddingModel) -> Tensor:
    """Embeddings of ``count`` examples, of which every process computes those that are dealt out to it in turns.

    Args:
        own: computes the embeddings of this process's examples, block by block, in the model's number format and
            without gradient; no block where there are fewer examples than processes.
        count: of all examples.
        subject: the model.
    """
    dtype = torch.promote_types(next(subject.model.parameters()).dtype, torch.float32)
    none = torch.empty(0, subject.model.width, device=subject.arithmetic.device, dtype=dtype)
    with torch.no_grad(), subject.arithmetic.autocast():
        own_ND = torch.cat([none, *own])
    return Placement.in_turns(count, subject.arithmetic.world).collect(own_ND)


def by_rows(world: World, compute: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """A value of each row ``[N]``, of which every process computes those that are dealt out to it in turns.

    Args:
        world: the processes; each of them has all rows.
        compute: takes some rows of each of the tensors, and returns the value of each of these rows.
        rows: tensors ``[N, …]`` on one device.
    """
    own = rows
    if world.size > 1:
        index = to_device(world.rows(len(rows[0])), rows[0].device)
        own = tuple(each[index] for each in rows)
    blocks = zip(*(each.split(_ROWS) for each in own), strict=True)
    return Placement.in_turns(len(rows[0]), world).collect(torch.cat([compute(*block) for block in blocks]))
