"""Gradients of a model in training: how the parts that several processes compute become one gradient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jestbench.batch import View
from jestbench.model.towers import TwoTowers
from jestbench.parallel.distributed import World

_Embedded = TypeVar("_Embedded")
CarryOn = Callable[[], None]
"""Brings the gradient from where the loss's graph ends on to the parameters."""


class Gradients:
    """The gradients of one process, which are whole as they are.

    Attributes:
        model: the model in training.
        even: whether each process must pass as often as every other one through the towers under each view.
    """

    even = False

    def __init__(self, model: TwoTowers) -> None:
        self.model = model

    def embed(self, run: Callable[[], _Embedded], last: bool = True) -> _Embedded:
        """Run a function that embeds pairs with the model.

        Args:
            run: called once.
            last: whether its backward pass is the last one of the step; gradients of the passes before are kept until
                then.
        """
        return run()

    def backward(self, loss: Tensor, carry_on: CarryOn | None) -> None:
        """Compute the gradients of all parameters.

        Args:
            loss: with its graph.
            carry_on: what is left to do after ``loss.backward()``.
        """
        loss.backward()
        if carry_on is not None:
            carry_on()

    def clip(self, limit: float) -> Tensor:
        """Scale the gradients down to a norm of at most ``limit``; return the norm before."""
        # One call for all parameters: on a CPU the loop over them takes longer than the arithmetic of a small model.
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)

    def whole(self) -> AbstractContextManager[None]:
        """Inside this context every process has all weights, and may run the model without gradient as it likes."""
        return nullcontext()

    def state_dict(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Weights and the optimizer's state, the same for any number of processes."""
        return {"model": self.model.state_dict(), "optimizer": optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])


class _Towers(nn.Module):
    """The towers of a model as one module, whose forward pass runs a function that embeds with them.

    Scale and bias stay out: their gradient is that of the loss, which every process computes whole.
    """

    def __init__(self, model: TwoTowers) -> None:
        super().__init__()
        self.image, self.text = model.image, model.text

    def forward(self, run: Callable[[], _Embedded]) -> _Embedded:
        return run()


class AveragedGradients(Gradients):
    """Gradients of towers that every process holds whole, averaged while the backward pass goes on (DDP).

    A parameter that has no gradient on any process stays without, so that AdamW leaves it alone.

    Args:
        model: the towers; the same weights on every process.
        world: the processes.
        views: that the model is trained under.
    """

    def __init__(self, model: TwoTowers, world: World, views: Collection[View]) -> None:
        super().__init__(model)
        self.world = world
        self._towers = DistributedDataParallel(
            _Towers(model),
            broadcast_buffers=False,  # constants
            gradient_as_bucket_view=True,
            find_unused_parameters=_may_leave_unused(model, views),
        )

    def embed(self, run: Callable[[], _Embedded], last: bool = True) -> _Embedded:
        """As in the base; the processes meet in the last backward pass of a step alone."""
        if not torch.is_grad_enabled():
            return run()
        with nullcontext() if last else self._towers.no_sync():
            embedded: _Embedded = self._towers(run)
        return embedded

    def backward(self, loss: Tensor, carry_on: CarryOn | None) -> None:
        """As in the base, for all processes together."""
        with self.world.waiting("an all-reduce of gradients"):
            super().backward(loss, carry_on)
        self.world.average([own.grad for own in (self.model.log_scale, self.model.bias) if own.grad is not None])


def _may_leave_unused(model: TwoTowers, views: Collection[View]) -> bool:
    """Whether a process may compute no gradient of some parameter; DDP then looks for them in each step."""
    partial = any(view.layers < 1 or view.text_layers < 1 for view in views)
    return partial or type(model.image.backbone) is not VisionTransformer
