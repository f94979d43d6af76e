"""A policy's part before pairs are read and after they were trained on, and the check of what it asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from jestbench.batch import COLUMN
from jestbench.disk import nearest_or_all
from jestbench.parallel import distributed
from jestbench.select.contract import blamed, check_state, shown_value
from jestbench.select.given import GIVEN, Moment, Remembered, Trained
from jestbench.select.memory import MOST_COLUMNS
from jestbench.select.patience import patient
from jestbench.select.policy import Policy, PolicyError, check_memory, moved
from jestbench.select.scores import ROLES, Scores


@runtime_checkable
class LeavingPolicy(Protocol):
    """A policy that leaves pairs out of an epoch before they are read and decoded."""

    def leave_out(self, keys_N: Tensor, state: Remembered, progress: Moment, generator: torch.Generator) -> Tensor:
        """Which pairs are left out of the epoch that begins, bool ``[N]``.

        Args:
            keys_N: keys of all pairs that super-batches are drawn from.
            state: the policy's own state, and what it remembers of these pairs.
            progress: how far the run is, before the epoch's first step.
            generator: the only source of randomness.
        """
        ...


@runtime_checkable
class LearningPolicy(Protocol):
    """A policy that learns from the losses of each training pass: its ``needs`` name ``trained_losses``."""

    def learn(self, trained: Trained, state: Remembered) -> Remembered:
        """The policy's next state, and what it remembers of the pairs that were trained on.

        Args:
            trained: the losses of these pairs.
            state: the policy's own state, and what it remembers of them; tensors lie on the losses' device.
        """
        ...


def remembered_names(policy: Policy) -> tuple[str, ...]:
    """The numbers that a policy remembers of a pair; none where its ``needs`` do not name ``memory``."""
    return tuple(getattr(policy, "remembers", ())) if "memory" in policy.needs else ()


def takes_all(policy: Policy) -> bool:
    """Whether the super-batch of a policy is exactly the pairs that are trained on."""
    return not policy.needs or getattr(policy, "takes_all", False)


def check_needs(policy: Policy) -> None:
    """Refuse a policy that asks for what nothing gives, or that lacks the method or the names which its needs imply.

    Raises:
        PolicyError: it does; the message names the need.
    """
    name, known = type(policy).__name__, (*ROLES, *GIVEN)
    for need in sorted(policy.needs):
        if need not in known and not need.startswith(COLUMN):
            hint = nearest_or_all(need, [*known, f"{COLUMN}NAME"])
            raise PolicyError(f"the policy {name} needs {need!r}, which nothing gives; {hint}")
    names = remembered_names(policy)
    if ("memory" in policy.needs) != bool(names) or len(names) > MOST_COLUMNS:
        raise PolicyError(
            f"the policy {name} needs 'memory': declare what it remembers of a pair, remembers = ('name', …), "
            f"{MOST_COLUMNS} numbers at most; got {names}"
        )
    if ("trained_losses" in policy.needs) != isinstance(policy, LearningPolicy):
        raise PolicyError(
            f"the policy {name}: 'trained_losses' in needs and a method learn(trained, state) go together"
        )


def imagined(policy: Policy, scores: Scores, random: torch.Generator) -> Scores:
    """Scores with random numbers for all else that a policy needs, in the middle of a run: for its price."""
    size = len(scores)
    number = {name: torch.rand(size, generator=random) for name in (*policy.needs, *remembered_names(policy))}
    return replace(
        scores,
        values={**scores.values, **{name: value for name, value in number.items() if name.startswith(COLUMN)}},
        key_B=torch.randint(1 << 62, (size,), generator=random),
        words_BL=torch.randint(size, (size, 8), generator=random),
        progress=Moment(0.5, 1 << 20),
        memory={name: number[name] for name in remembered_names(policy)},
    )


def leave_out(
    policy: LeavingPolicy,
    key_N: Tensor,
    state: Remembered,
    moment: Moment,
    generator: torch.Generator,
    patience: float | None = None,
) -> Tensor:
    """Ask a policy which pairs it leaves out of an epoch; with several processes rank 0's answer is broadcast.

    Returns:
        bool ``[N]`` on the CPU.

    Raises:
        PolicyError: the answer is not one bool for each pair, or does not come within ``patience`` minutes.
        PolicyFailure: an exception inside the policy.
    """

    def left_out() -> Tensor:
        name = type(policy).__name__
        with patient(name, patience), blamed(name):
            out_N = policy.leave_out(key_N, state, moment, generator)
        if not isinstance(out_N, Tensor) or out_N.dtype != torch.bool or out_N.shape != key_N.shape:
            raise PolicyError(f"{name}.leave_out returns bool [{len(key_N)}], one a pair, got {shown_value(out_N)}")
        return out_N.cpu()

    return distributed.world().first(left_out)


def learn(policy: LearningPolicy, trained: Trained, state: Remembered, patience: float | None = None) -> Remembered:
    """Hand a policy the losses of a training pass; with several processes rank 0's result is broadcast.

    Raises:
        PolicyError: what is to be remembered has another name or length, or is infinite; a checkpoint cannot hold the
            state; or the policy does not return within ``patience`` minutes.
        PolicyFailure: an exception inside the policy.
    """
    world = distributed.world()

    def learnt() -> Remembered:
        name, device = type(policy).__name__, trained.image_loss_K.device
        before = Remembered(moved(state.state, device), moved(dict(state.memory), device))
        with patient(name, patience), blamed(name):
            found = policy.learn(trained, before)
        if not isinstance(found, Remembered):
            raise PolicyError(f"{name}.learn returns a Remembered, got {shown_value(found)}")
        check_state(name, found.state)
        check_memory(policy, found.memory, len(trained))
        # A tensor of a GPU would be broadcast to the same GPU in every process.
        own = found.state if world.size == 1 else moved(found.state, torch.device("cpu"))
        return Remembered(own, {name: value_K.cpu() for name, value_K in found.memory.items()})

    return world.first(learnt)
