"""How pairs are read: worker processes, and how far ahead of the step they decode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from jestbench.data.spawned import usable_cores

MOST = 16
"""Workers that ``auto`` starts at most."""
MANY = 64
"""Workers that may be asked for on any machine; above, no more than 8 a core."""


@dataclass(frozen=True)
class Loader:
    """Settings of the worker processes that decode. None of them changes a run's results, only its speed.

    Attributes:
        workers: processes that read and decode; ``auto`` is none for images that lie decoded in memory
            and else one a core, at most 16; 0 decodes in the main process.
        prefetch: super-batches made ahead of the one that is trained on.
        prefetch_bytes: bytes of images that super-batches made ahead may take; fewer are made ahead where it is less.
        part: pairs that a worker decodes at a time; a super-batch is decoded by several at once.
        pin_memory: page-locked memory for the images, which a GPU fetches by itself; ``auto`` where the
            run is on CUDA.
        timeout: seconds after which a worker that has not finished its part counts as lost.
        restarts: number of lost workers that are replaced before the run fails.
    """

    workers: int | Literal["auto"] = "auto"
    prefetch: int = 2
    prefetch_bytes: int = 8 << 30
    part: int = 256
    pin_memory: bool | Literal["auto"] = "auto"
    timeout: float = 300.0
    restarts: int = 3

    def __post_init__(self) -> None:
        if isinstance(self.workers, bool) or (self.workers != "auto" and self.workers < 0):
            raise ValueError(f"loader.workers is a number of processes (0: none) or 'auto', got {self.workers}")
        if self.workers != "auto" and self.workers > (most := max(MANY, 8 * usable_cores())):
            raise ValueError(
                f"loader.workers = {self.workers} processes on {usable_cores()} cores: at most {most} here; one a core "
                "is plenty ('auto')"
            )
        for name, low, high in (("prefetch", 0, 64), ("part", 1, 8192), ("restarts", 0, 1000)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"loader.{name} lies between {low} and {high}, got {getattr(self, name)}")
        if not self.prefetch_bytes >= 0:
            raise ValueError(f"loader.prefetch_bytes must not be negative, got {self.prefetch_bytes}")
        if not self.timeout > 0:
            raise ValueError(f"loader.timeout is a positive number of seconds, got {self.timeout}")

    def workers_for(self, decoded: bool = False) -> int:
        """Number of worker processes, for images that are ``decoded`` already or not."""
        if self.workers != "auto":
            return self.workers
        return 0 if decoded else min(MOST, usable_cores())

    def pairs_ahead(self, size: int, pair_bytes: int) -> int:
        """Pairs that may be read ahead of a super-batch, whose images take so many bytes each; 0: not known."""
        asked = self.prefetch * size
        return min(asked, int(self.prefetch_bytes // pair_bytes)) if pair_bytes else asked

    def described(self, size: int, pair_bytes: int) -> str:
        """How far ahead pairs are read, for people."""
        ahead, asked = self.pairs_ahead(size, pair_bytes) // size, self.prefetch
        fewer = f" instead of {asked}, for loader.prefetch_bytes = {self.prefetch_bytes:,}" if ahead < asked else ""
        return f"workers read {ahead} super-batches of {size * pair_bytes / 2**20:,.1f} MiB ahead{fewer}"

    def pins(self, device: str) -> bool:
        """Whether images go to page-locked memory, for a run on this device."""
        if self.pin_memory == "auto":
            return torch.device(device).type == "cuda"
        return self.pin_memory and torch.cuda.is_available()
