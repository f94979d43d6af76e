"""Random streams, each a function of the run's seed, the stream's purpose and a position.

No stream depends on how many numbers another stream has drawn: two policies with one seed get the
same super-batches, a new consumer of randomness shifts no existing one, and a resumed run continues
exactly without a saved generator state.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jestbench.disk import hashed

Stream = Literal[
    "init",
    "data",
    "select",
    "update",
    "noise",
    "check",
    "captions",
    "corrupt",
    "cascade",
    "examples",
    "augment",
    "stream",
    "leave",
]


# SplitMix64's constants (Steele, Lea & Flood 2014) as signed 64-bit integers, whose sums and products wrap.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
"""SplitMix64's increment from one state to the next."""
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def derive(seed: int, stream: Stream, position: int = 0) -> int:
    """A 63-bit seed for one stream at one position (a step or an epoch)."""
    return int.from_bytes(hashed(f"{seed}/{stream}/{position}"), "little") >> 1


def generator(seed: int, stream: Stream, position: int = 0) -> torch.Generator:
    """A CPU generator for one stream at one position."""
    return torch.Generator().manual_seed(derive(seed, stream, position))


def update_seed(seed: int, step: int) -> int:
    """Seed of the model's own randomness (dropout, drop path) in one step."""
    return derive(seed, "update", step)


def mixed(value: Tensor) -> Tensor:
    """Hash 64-bit integers to well-mixed 64-bit integers (SplitMix64's finaliser), element by element.

    Args:
        value: int64, on any device.

    Returns:
        int64 of the same shape.
    """
    # A right shift of a negative integer fills with ones from the left: the masks clear them.
    value = (value ^ ((value >> 30) & ((1 << 34) - 1))) * _MIX_1
    value = (value ^ ((value >> 27) & ((1 << 37) - 1))) * _MIX_2
    return value ^ ((value >> 31) & ((1 << 33) - 1))
