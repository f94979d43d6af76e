"""Device, number format and processes of a run, the same for training and scoring."""

from __future__ import annotations

import os
import socket
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from jestbench.parallel import distributed
from jestbench.parallel.distributed import World

Precision = Literal["auto", "fp32", "bf16", "fp64"]
NumberFormat = Literal["fp32", "bf16", "fp64"]
_Module = TypeVar("_Module", bound=nn.Module)


def number_format(device: str, precision: Precision) -> NumberFormat:
    """The number format of a run's towers; ``auto`` is bf16 on CUDA and fp32 elsewhere."""
    if precision != "auto":
        return precision
    return "bf16" if (torch.cuda.is_available() if device == "auto" else device.startswith("cuda")) else "fp32"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A copy to CUDA goes through page-locked memory, and the host does not wait for it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


@dataclass(frozen=True)
class Arithmetic:
    """The device that models run on, their number format, and the processes that share the work.

    Attributes:
        device: a torch device.
        bf16: towers run under bf16 autocast; embeddings and everything after them stay fp32.
        world: the processes, each with its own rows of a batch.
        fp64: towers and everything after them are float64, for checks: several orders of summation then agree to some
            twelve digits. Weights that are loaded from a run folder were rounded to fp32.
    """

    device: torch.device
    bf16: bool
    world: World = field(default_factory=World)
    fp64: bool = False

    @classmethod
    def of(cls, device: str, precision: Precision) -> Arithmetic:
        """Resolve ``auto``: CUDA with bf16 where available (each process on its own device), else the CPU with fp32.

        Raises:
            ValueError: the device does not exist, or one GPU is named for several processes.
        """
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        try:
            resolved = torch.device(name)
        except RuntimeError:
            resolved = None
        if resolved is None or resolved.type not in ("cpu", "cuda"):
            raise ValueError(f"run.device = {device!r}: models run on 'cpu' or 'cuda' ('auto' takes CUDA where it is)")
        if resolved.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"run.device = {device!r}, but torch sees no CUDA device")
        world = distributed.world()
        if resolved.type == "cuda" and world.size > 1:
            if resolved.index is not None:
                raise ValueError(
                    f"run.device = {device!r} would put all {world.size} processes of torchrun on one GPU: "
                    "bind run.device = 'cuda', of which each process takes its own"
                )
            here, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if here >= found:
                raise ValueError(
                    f"run.device = {device!r}: process {here} of {socket.gethostname()} finds {found} GPUs there: "
                    f"start at most {found} processes a machine (torchrun --nproc_per_node {found}), or run on 'cpu'"
                )
            resolved = torch.device("cuda", torch.cuda.current_device())
        used = number_format(resolved.type, precision)
        return cls(resolved, used == "bf16", world, used == "fp64")

    def placed(self, model: _Module) -> _Module:
        """The model on the device, in float64 where the run is."""
        return model.to(self.device, torch.float64) if self.fp64 else model.to(self.device)

    def building(self) -> AbstractContextManager[object]:
        """Where models are built, before they are moved: on the CPU, or on ``meta``, where they have no values."""
        return self.device if self.device.type == "meta" else nullcontext()

    def autocast(self) -> AbstractContextManager[object]:
        """The autocast that every tower runs under."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
