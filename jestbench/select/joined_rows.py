"""Sums over a super-batch that several processes share out: each computes its share, one all-gather joins them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.parallel.distributed import World
from jestbench.parallel.traffic import TRAFFIC


def joined(
    world: World, size: int, own: Sequence[Tensor], partial: Sequence[Tensor] = ()
) -> tuple[list[Tensor], list[Tensor]]:
    """Bring what the processes have computed together by one all-gather; every process gets the same bits.

    Args:
        world: the processes.
        size: B, of which each process has computed ``world.share(B)``.
        own: values of the share's rows, ``[P, …]`` each.
        partial: terms of sums to which every process contributes, of one shape on all processes.

    Returns:
        The values of all rows, ``[B, …]`` each, and of each sum the terms of every process, ``[processes, …]``.
    """
    if world.size == 1:
        TRAFFIC.computed_alone(own, partial)
        return list(own), [part.unsqueeze(0) for part in partial]
    most = -(-size // world.size)
    padded = [F.pad(part, (0, 0) * (part.ndim - 1) + (0, most - len(part))) for part in own]
    sent = [*padded, *partial]
    came = world.gather(torch.cat([part.flatten() for part in sent])).split([part.numel() for part in sent], 1)
    found = [terms.reshape(world.size, *part.shape).to(part.dtype) for terms, part in zip(came, sent, strict=True)]
    return [terms.flatten(0, 1)[:size] for terms in found[: len(own)]], found[len(own) :]
