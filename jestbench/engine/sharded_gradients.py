"""Weights, gradients and optimizer state of a model in training, spread over the processes of a run (FSDP2)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from jestbench.batch import View
from jestbench.engine.gradients import Embed, SharedGradients
from jestbench.engine.optimizer import Optimizer
from jestbench.model.towers import TwoTowers
from jestbench.parallel.arithmetic import Arithmetic


class ShardedGradients(SharedGradients):
    """Gradients of towers of which every process holds a part, reduced to the process that holds the weight.

    Weights are gathered block by block in each pass, so every process must pass as often as every other one; where the
    model only scores, all weights are gathered once before. A locked image tower stays whole in every process: it has
    neither gradients nor optimizer state. Scale and bias stay whole, too.

    Args:
        model: the towers; the same weights on every process.
        arithmetic: device and processes.
        schedule: the optimizer's parameters, which order the optimizer's state in a checkpoint.

    Raises:
        ValueError: this version of torch cannot shard on this device.
    """

    even, collective = True, "a reduce-scatter of gradients"

    def __init__(self, model: TwoTowers, arithmetic: Arithmetic, schedule: Optimizer) -> None:
        super().__init__(model, arithmetic.world)
        self.schedule = schedule
        # On a CPU, older versions sum the gradients where they are to average them (pytorch issue 162338).
        on_cpu = arithmetic.device.type == "cpu"
        if on_cpu and not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise ValueError(f"run.shard = True on CPUs needs torch 2.9 or newer, and this is {torch.__version__}")
        mesh = init_device_mesh(arithmetic.device.type, (self.world.size,))
        self._blocks: list[FSDPModule] = []
        parts: list[FSDPModule] = []
        image, text = ([*model.image.blocks] if model.image.transformer else []), [*model.text.blocks]
        for tower, blocks in [(model.text, text)] if model.locked else [(model.text, text), (model.image, image)]:
            sharded = [fully_shard(block, mesh=mesh) for block in blocks]
            parts.append(fully_shard(tower, mesh=mesh))
            # Behind the first block FSDP would gather what ran before it: in another process, perhaps, something else.
            for first in sharded[:1]:
                first.set_modules_to_backward_prefetch(parts[-1:])
            self._blocks += sharded
        self._parts = [*parts, *self._blocks]
        for part in self._parts if on_cpu else ():
            part.set_force_sum_reduction_for_comms(True)

    def embed(self, run: Embed, views: Collection[View], last: bool = True) -> tuple[Tensor, Tensor]:
        """As in the base; the processes meet in each pass, forward and backward."""
        with self.world.waiting("an all-gather of weights"):
            return run()

    def clip(self, limit: float) -> Tensor:
        """As in the base: the norm over the gradients of all processes."""
        held = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        # A kernel over many tensors takes no mixture of sharded and whole ones.
        kinds = [[p for p in held if isinstance(p, DTensor) == sharded] for sharded in (True, False)]
        norms = []
        with self.world.waiting("an all-reduce of the gradient's norm"):
            for kind in kinds:
                norm = torch.nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None], foreach=True)
                norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        for kind in kinds:
            torch.nn.utils.clip_grads_with_norm_(kind, limit, total, foreach=True)
        return total

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside this context every process has all weights, and may run the model without gradient as it likes."""
        for block in self._blocks:
            block.set_reshard_after_forward(False)
        try:
            # A first pass gathers all blocks, as FSDP sets itself up in a pass alone.
            with torch.no_grad(), self.world.waiting("an all-gather of weights"):
                self.model(self.model.stand_in(torch.empty(0, 3, *self.model.image.resolution)))
            yield
        finally:
            for part in self._parts:
                part.reshard()
            for block in self._blocks:
                block.set_reshard_after_forward(True)

    def state_dict(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Weights and the optimizer's state, as one process holds them; on ranks but 0, which write nothing, empty.

        Every rank calls it at once. One tensor at a time is gathered.
        """
        with self.world.waiting("an all-gather of a checkpoint"):
            weights = {name: self._gathered(value) for name, value in self.model.state_dict().items()}
            order = chain(*(group for _, group in self.schedule.groups(self.model)))
            moments = {
                number: {name: self._gathered(value) for name, value in optimizer.state[parameter].items()}
                for number, parameter in enumerate(order)
                if parameter in optimizer.state
            }
        if not self.world.first_of_all:
            return {"model": {}, "optimizer": {}}
        return {"model": weights, "optimizer": {"state": moments, "param_groups": self._packed(optimizer)}}

    def load_state_dict(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Go on from a checkpoint, of which each process takes its parts; every rank calls it at once."""
        with self.world.waiting("a scatter of a checkpoint"):
            own = self.model.state_dict()
            weights = {name: _spread(value, own[name]) for name, value in state["model"].items()}
            self.model.load_state_dict(weights)
            loaded = state["optimizer"]["state"]
            place = {id(p): number for number, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
            values = {
                place[id(parameter)]: {name: _spread(value, parameter) for name, value in loaded[number].items()}
                for number, parameter in enumerate(chain(*(group for _, group in self.schedule.groups(self.model))))
                if number in loaded
            }
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": values, "param_groups": groups})

    def _packed(self, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
        """The optimizer's groups as one process has them, which holds whole and sharded parameters in one group."""
        decays = {options["weight_decay"]: options for options in optimizer.state_dict()["param_groups"]}
        numbers, packed = count(), []
        for decay, group in self.schedule.groups(self.model):
            packed.append(decays[decay] | {"params": [next(numbers) for _ in group]})
        return packed

    def _gathered(self, value: Tensor) -> Tensor:
        if isinstance(value, DTensor):
            whole = value.full_tensor()
            value = whole.cpu() if self.world.first_of_all else whole.new_empty(0)
        return value


def _spread(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, where the tensor beside it is sharded and of the same shape."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
