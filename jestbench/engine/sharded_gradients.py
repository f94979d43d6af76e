"""Weights, gradients and optimizer state of a model in training, spread over the processes of a run (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from jestbench.batch import View
from jestbench.engine.gradients import Embed, SharedGradients
from jestbench.engine.optimizer import Optimizer
from jestbench.engine.spread_weights import spread_parts
from jestbench.model.towers import TwoTowers
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.parallel.traffic import TRAFFIC, Traded, gathered

_GATHER = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_REDUCE = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)  # the older names are deprecated


class _Counted:
    """A collective of torch's engine, as the engine itself runs it, counted in the traffic.

    Args:
        purpose: of the bytes.
        run: the collective.
    """

    def __init__(self, purpose: Traded, run: Callable[..., Any]) -> None:
        self.purpose, self.run = purpose, run

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer, as the engine allocates it."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, **more: Any) -> Any:
        """Run the collective; the smaller tensor is one process's part."""
        own = min(output_tensor.nbytes, input_tensor.nbytes)
        with TRAFFIC.collective(self.purpose, gathered(own, group.size())):
            return self.run(output_tensor, input_tensor, group=group, **more)


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
        for tower, blocks in spread_parts(model):
            sharded = [fully_shard(block, mesh=mesh) for block in blocks]
            parts.append(fully_shard(tower, mesh=mesh))
            # Behind the first block FSDP would gather what ran before it: in another process, perhaps, something else.
            for first in sharded[:1]:
                first.set_modules_to_backward_prefetch(parts[-1:])
            self._blocks += sharded
        self._parts = [*parts, *self._blocks]
        for part in self._parts if on_cpu else ():
            part.set_force_sum_reduction_for_comms(True)
        gather: Any = _Counted("weights", _GATHER)  # torch asks for a subclass of a private class
        reduce: Any = _Counted("weight_gradients", _REDUCE)
        for part in self._parts if hasattr(FSDPModule, "set_custom_all_gather") else ():  # from torch 2.9 on
            part.set_custom_all_gather(gather)
            part.set_custom_reduce_scatter(reduce)

    def embed(self, run: Embed, views: Collection[View], last: bool = True) -> tuple[Tensor, Tensor]:
        """As in the base; the processes meet in each pass, forward and backward."""
        with self.world.waiting("an all-gather of weights"):
            return run()

    def clip(self, limit: float) -> Tensor:
        """As in the base: the norm over the gradients of all processes."""
        held = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        # A kernel over many tensors takes no mixture of sharded and whole ones.
        kinds = [[p for p in held if isinstance(p, DTensor) == sharded] for sharded in (True, False)]
        # By parts: of sharded tensors torch reduces one norm after the other, each by a collective of its own.
        parts = ([_part(p.grad) for p in kind if p.grad is not None] for kind in kinds)
        spread, whole = (torch.nn.utils.get_total_norm(part, foreach=True).square() for part in parts)
        total = (self.world.add(spread)[0] + whole).sqrt()
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


def _part(value: Tensor) -> Tensor:
    """This process's part of a tensor, or the whole of one that is not sharded."""
    return value.to_local() if isinstance(value, DTensor) else value


def _spread(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, where the tensor beside it is sharded and of the same shape."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
