"""What a step has measured: loss and gradient norm, which a device may still have to compute."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor


class NonFiniteLoss(Exception):
    """The training loss, or a score that it rests on, is NaN or infinite.

    Attributes:
        late: whether the counter of steps has gone on since the step that it is about.
    """

    exit_status: ClassVar[int] = 4

    def __init__(self, message: str, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


class Measured:
    """Loss and gradient norm of a step, on their way to the host; nobody waits for them before ``read``.

    Attributes:
        deferred: whether reading waits for a device.
        unusable: fp32, 1 where one of them is NaN or infinite, else 0; on the device of the loss.
    """

    def __init__(self, loss: Tensor, norm: Tensor) -> None:
        both = torch.stack([loss.detach().double(), norm.detach().double()])
        self.unusable = (~both.isfinite().all()).float()
        self._both = both.to("cpu", non_blocking=True)
        self.deferred = both.is_cuda
        self._ready = torch.cuda.current_stream(loss.device).record_event() if both.is_cuda else None

    def read(self) -> tuple[float, float]:
        """Loss and gradient norm, as soon as the device has computed them.

        Raises:
            NonFiniteLoss: one of them is NaN or infinite.
        """
        if self._ready is not None:
            self._ready.synchronize()
        loss, norm = self._both.tolist()
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"the loss is {loss}", self.deferred)
        if not math.isfinite(norm):
            raise NonFiniteLoss(f"the loss is {loss}, but its gradient's norm is {norm}", self.deferred)
        return loss, norm
