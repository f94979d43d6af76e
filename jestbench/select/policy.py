"""The contract of a policy, and the check of every selection against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from jestbench.batch import Selection
from jestbench.parallel import distributed
from jestbench.parallel.traffic import TRAFFIC
from jestbench.select.contract import PolicyError as PolicyError
from jestbench.select.contract import blamed, check_state, checked, shown_value
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
        takes_all: the policy trains on every pair of the super-batch, which is then exactly ``count`` pairs although
            ``needs`` is not empty: it decides which pairs are left out before they are read, or weighs them.
        remembers: the names of the numbers that the policy remembers of a pair, where its needs name ``memory``.
    """

    cosine_only: ClassVar[bool] = False
    by_parts: ClassVar[bool] = False
    takes_all: ClassVar[bool] = False
    remembers: ClassVar[tuple[str, ...]] = ()

    @property
    def needs(self) -> frozenset[str]:
        """All that is read of a super-batch; nothing else is given.

        * roles: ``learner``, ``reference``, ``online`` (``Scores.learner`` …), ``scorer`` (``Scores.values["g"]``);
        * columns, numbers that came with the pairs: ``column:similarity``, in ``Scores.values`` under that name;
        * ``keys``: ``Scores.key_B``; ``captions``: ``Scores.words_BL``; ``progress``: ``Scores.progress``;
        * ``memory``: ``Scores.memory``, the numbers in ``remembers``; new ones are returned as ``Selection.memory``;
        * ``trained_losses``: the losses of each training pass, handed to the policy's method ``learn``.

        Empty where the super-batch holds exactly ``count`` pairs.
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
            with blamed(name, scores), TRAFFIC.sending("strip_sums"):
                if isinstance(policy, StatefulPolicy):
                    found = policy.select(scores, count, generator, state=moved(state, scores.device))
                else:
                    found = policy.select(scores, count, generator)
            selection = checked(name, found, scores, count)
            check_memory(policy, selection.memory, len(scores))
    except PolicyError as raised:
        if scores.world.size > 1:  # the others may wait in a collective of the scores: they end because this one ends
            raise
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
            weight_K = None if selection.weight_K is None else selection.weight_K.cpu()
            own = selection.index_K, weight_K, {name: value_B.cpu() for name, value_B in selection.memory.items()}
        each = world.everybodys((own, error))
        error = error or next((other for _, other in each if other is not None), None)
        if selection is not None and (first := each[0][0]) is not None:
            selection = replace(selection, index_K=first[0], weight_K=first[1], memory=first[2])
    if error is not None:
        raise error
    assert selection is not None
    return selection


def check_memory(policy: object, memory: Mapping[str, Tensor], size: int) -> None:
    """Refuse numbers to remember that the policy has not declared, or that are not one finite number (or NaN) a pair.

    Raises:
        PolicyError: the message names the number.
    """
    name, declared = type(policy).__name__, getattr(policy, "remembers", ())
    if not isinstance(memory, Mapping):
        raise PolicyError(f"{name} must return memory as a mapping, got {shown_value(memory)}")
    for key, value_B in memory.items():
        if key not in declared:
            raise PolicyError(f"{name} remembers {key!r}, which its `remembers` = {declared} does not name")
        if not isinstance(value_B, Tensor) or value_B.shape != (size,) or bool(torch.isinf(value_B).any()):
            raise PolicyError(f"{name} remembers {key!r}: one number for each pair [{size}], none infinite")


def moved(state: Any, device: torch.device) -> Any:
    """A policy's state, or numbers by name, with the tensors on the device; the same object where none moves.

    A checkpoint loads them on the CPU.
    """
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        found: Any = {key: moved(value, device) for key, value in state.items()}
        return state if all(found[key] is value for key, value in state.items()) else found
    if isinstance(state, list | tuple):
        found = type(state)(moved(value, device) for value in state)
        return state if all(new is old for new, old in zip(found, state, strict=True)) else found
    return state
