"""Every random stream is a function of the run's seed, its purpose and a position.

Nothing depends on how many numbers something else has drawn: two policies with one seed see the
same super-batches, a new consumer of randomness moves no other, and a resumed run needs no saved
generator state to go on exactly.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

from jestbench import seeds

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
]


def derive(seed: int, stream: Stream, position: int = 0) -> int:
    """A 63-bit seed for one stream at one position (a step or an epoch)."""
    text = f"{seed}/{stream}/{position}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(seed: int, stream: Stream, position: int = 0) -> torch.Generator:
    """A CPU generator for one stream at one position."""
    return torch.Generator().manual_seed(derive(seed, stream, position))


def update_seed(seed: int, step: int) -> int:
    """Seed of the model's own randomness in one step."""
    return seeds.derive(seed, "update", step)
