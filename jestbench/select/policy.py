"""The contract of a policy, and the check of every selection against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from jestbench.batch import Selection
from jestbench.parallel import distributed
from jestbench.select.contract import PolicyError as PolicyError
from jestbench.select.contract import blamed, check_state, checked
from jestbench.select.patience import patient
from jestbench.select.scores import Scores


@runtime_checkable
class Policy(Protocol):
    """A frozen object that chooses ``count`` pairs of a super-batch.

    A policy gets no model, and draws randomness from the generator alone. ``registry.register`` adds the defaults of
    the attributes that a class does not declare.

    Attributes:
        cosine_only: the policy reads only cosines of the reference, so that neither scale nor bias changes the choice.
            For every other policy, a reference that was trained on another loss than the run's is refused.
        by_parts: pairs are compared within ``Scores.parts`` alone, so that two references may score one part each.
    """

    cosine_only: ClassVar[bool] = False
    by_parts: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """The roles whose scores are read, and the columns (``column:similarity``), numbers that came with the pairs.

        A column is in ``Scores.values`` under that name, finite for every pair. Empty where the super-batch holds
        exactly ``count`` pairs.
        """
        ...

    @property
    def prefers(self) -> Mapping[str, int]:
        """The direction of the choice: 1 where a larger quantity is preferred, −1 where a smaller one is.

        The quantity is the pair's loss under a model, keyed by the model's role, or a value in ``Scores.values``, keyed
        by its name; all else being equal. A missing key means no direction. The conformance suite tests the sign on
        pairs of two kinds.
        """
        ...

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Choose exactly ``count`` distinct positions; statistics are optional."""
        ...


@runtime_checkable
class StatefulPolicy(Protocol):
    """A policy with memory: its state is an explicit argument and result of ``select``.

    The policy itself stays frozen. The loop carries the state from step to step and checkpoints it, so it is
    made of tensors, numbers, strings, and lists, tuples or dicts of these.
    """

    def initial_state(self) -> object:
        """The state before the first step."""
        ...

    def select(self, scores: Scores, count: int, generator: torch.Generator, *, state: object) -> Selection:
        """As ``Policy.select``; the next state is ``Selection.state``."""
        ...


def initial_state(policy: Policy) -> object:
    """A policy's state before the first step; ``None`` for one that has none.

    Raises:
        PolicyError: a checkpoint could not hold the state, or the policy fails.
    """
    if not isinstance(policy, StatefulPolicy):
        return None
    name = type(policy).__name__
    with blamed(name):
        state = policy.initial_state()
    check_state(name, state, "the initial state")
    return state


def choose(
    policy: Policy,
    scores: Scores,
    count: int,
    generator: torch.Generator,
    state: object = None,
    patience: float | None = None,
) -> Selection:
    """Run the policy and check its selection; with several processes rank 0's selection is broadcast.

    Args:
        policy: stateful or not.
        scores: of the super-batch.
        count: b.
        generator: the only source of randomness.
        state: the ``state`` of the last selection, for a stateful policy.
        patience: minutes within which the policy must return; ``None`` for no limit.

    Raises:
        PolicyError: what the policy returned breaks its contract, or it did not return in time.
        PolicyFailure: an exception inside the policy.
    """
    name, selection, error = type(policy).__name__, None, None
    try:
        with patient(name, patience):
            with blamed(name, scores):
                if isinstance(policy, StatefulPolicy):
                    found = policy.select(scores, count, generator, state=_moved(state, scores.device))
                else:
                    found = policy.select(scores, count, generator)
            selection = checked(name, found, scores, count)
    except PolicyError as raised:
        error = raised
    return _agreed(selection, error)


def _agreed(selection: Selection | None, error: PolicyError | None) -> Selection:
    """Rank 0's choice, or on every process the error of any.

    A difference in the last bit on one GPU must not lead to another choice there.
    """
    world = distributed.world()
    if world.size > 1:
        own = None
        if selection is not None and world.first_of_all:
            weight_K = selection.weight_K
            own = selection.index_K, None if weight_K is None else weight_K.cpu()
        each = world.everybodys((own, error))
        error = error or next((other for _, other in each if other is not None), None)
        if selection is not None and each[0][0] is not None:
            selection = replace(selection, index_K=each[0][0][0], weight_K=each[0][0][1])
    if error is not None:
        raise error
    assert selection is not None
    return selection


def _moved(state: Any, device: torch.device) -> Any:
    """The state with its tensors on the device (a checkpoint loads them on the CPU); the same object if none moves."""
    if isinstance(state, torch.Tensor):
        return state.to(device)
    if isinstance(state, dict):
        moved: Any = {key: _moved(value, device) for key, value in state.items()}
        return state if all(moved[key] is value for key, value in state.items()) else moved
    if isinstance(state, list | tuple):
        moved = type(state)(_moved(value, device) for value in state)
        return state if all(new is old for new, old in zip(moved, state, strict=True)) else moved
    return state
