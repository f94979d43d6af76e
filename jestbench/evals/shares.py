"""Embeddings of evaluation examples, each computed by one of the processes of a run."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from jestbench.engine.actor import EmbeddingModel
from jestbench.parallel.placement import Placement


def gathered(own: Iterable[Tensor], count: int, subject: EmbeddingModel) -> Tensor:
    """Embeddings of ``count`` examples, of which every process computes those that are dealt out to it in turns.

    Args:
        own: embeddings of this process's examples, block by block; none where there are fewer examples than processes.
    """
    dtype = torch.promote_types(next(subject.model.parameters()).dtype, torch.float32)
    none = torch.empty(0, subject.model.width, device=subject.arithmetic.device, dtype=dtype)
    return Placement.in_turns(count, subject.arithmetic.world).collect(torch.cat([none, *own]))
