"""Gradients of a model in training: how the parts that several processes compute become one gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jestbench.batch import View
from jestbench.model.towers import TwoTowers
from jestbench.parallel.distributed import World
from jestbench.parallel.traffic import TRAFFIC, reduced

CarryOn = Callable[[], None]
"""Brings the gradient from where the loss's graph ends on to the parameters."""
Embed = Callable[[], tuple[Tensor, Tensor]]
"""Embeds pairs: images and texts."""


class Gradients:
    """The gradients of one process, which are whole as they are.

    Attributes:
        model: the model in training.
        even: whether each process must pass as often as every other one through the towers under each view.
    """

    even = False

    def __init__(self, model: TwoTowers) -> None:
        self.model = model

    def embed(self, run: Embed, views: Collection[View], last: bool = True) -> tuple[Tensor, Tensor]:
        """Run a function that embeds pairs with the model.

        Args:
            run: called once.
            views: under which some process embeds pairs of the step.
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


class SharedGradients(Gradients):
    """Gradients of several processes.

    Args:
        model: the model in training; the same weights on every process.
        world: the processes.
    """

    collective: ClassVar[str]
    """What the processes wait in while the backward pass goes on, for messages."""

    def __init__(self, model: TwoTowers, world: World) -> None:
        super().__init__(model)
        self.world = world

    def backward(self, loss: Tensor, carry_on: CarryOn | None) -> None:
        """As in the base, for all processes together.

        The gradients of scale and bias come whole, and the same on every process, out of the loss's all-reduce.
        """
        with self.world.waiting(self.collective):
            super().backward(loss, carry_on)


class _Weights(nn.Module):
    """Weights of a model's towers as one module, whose forward pass runs a function that embeds with them.

    Scale and bias stay out: their gradient is that of the loss, which every process computes whole. Buffers stay out,
    too: they are constants, which DDP would broadcast in each step.
    """

    def __init__(self, weights: Collection[nn.Parameter], partial: bool) -> None:
        super().__init__()
        self.weights, self.partial = nn.ParameterList(weights), partial

    def forward(self, run: Embed) -> tuple[Tensor, Tensor]:
        image_PD, text_PD = run()
        return image_PD, _Tied.apply(text_PD, *self.weights) if self.partial else text_PD


class _Tied(torch.autograd.Function):
    """Embeddings as they are, in whose backward pass every weight takes part, by no gradient.

    DDP waits for each weight. It can look for those that take no part, but goes through the whole graph in each step.
    """

    @staticmethod
    def forward(ctx: Any, text_PD: Tensor, *weights: Tensor) -> Tensor:
        ctx.count = len(weights)
        return text_PD.view_as(text_PD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*gradients, *(None,) * ctx.count)


class AveragedGradients(SharedGradients):
    """Gradients of towers that every process holds whole, averaged while the backward pass goes on (DDP).

    A parameter that has no gradient on any process stays without, so that AdamW leaves it alone.

    Args:
        model: the towers; the same weights on every process.
        world: the processes.
        views: that the model is trained under.
    """

    collective = "an all-reduce of gradients"

    def __init__(self, model: TwoTowers, world: World, views: Collection[View]) -> None:
        super().__init__(model, world)
        # Of the patch embedding's gradient, the smallest of all, which a convolution returns in channels last.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        self._trained = model.trained_by(views)
        every = frozenset[str]().union(*self._trained.values())
        self._held = {name: value for name, value in model.named_parameters() if name in every}
        # A process may have no pair of the view that trains a weight.
        weights = _Weights(self._held.values(), partial=any(names != every for names in self._trained.values()))
        self._wrapped = DistributedDataParallel(weights, gradient_as_bucket_view=True)
        self._now, self._sent = every, reduced(sum(value.nbytes for value in self._held.values()), world.size)

    def embed(self, run: Embed, views: Collection[View], last: bool = True) -> tuple[Tensor, Tensor]:
        """As in the base; the processes meet in the last backward pass of a step alone."""
        if not torch.is_grad_enabled():
            return run()
        self._now = frozenset[str]().union(*(self._trained[view] for view in views))
        with nullcontext() if last else self._wrapped.no_sync():
            embedded: tuple[Tensor, Tensor] = self._wrapped(run)
        return embedded

    def backward(self, loss: Tensor, carry_on: CarryOn | None) -> None:
        """As in the base; what no process has run has no gradient."""
        super().backward(loss, carry_on)
        TRAFFIC.sent["weight_gradients"] += self._sent
        for name in self._held.keys() - self._now:
            self._held[name].grad = None
