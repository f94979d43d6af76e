"""What a policy is, and the check that no choice passes that breaks the contract."""

from __future__ import annotations

import math
from typing import ClassVar, Protocol, runtime_checkable

import torch

from jestbench.batch import Selection
from jestbench.parallel import distributed
from jestbench.select.scores import Scores, Side


class PolicyError(Exception):
    """A policy returned something that is no selection; training on it would be silent nonsense."""

    exit_status: ClassVar[int] = 2


@runtime_checkable
class Policy(Protocol):
    """A frozen object that chooses ``count`` pairs of a super-batch.

    ``needs`` names the models whose scores it reads; empty means that the super-batch holds exactly
    ``count`` pairs. A policy never sees a model, and draws randomness from the generator alone.

    A policy that reads nothing of the reference but its cosines, so that neither scale nor bias moves its choice,
    declares ``cosine_only: ClassVar[bool] = True``: a reference of another loss than the run's is refused for every
    other policy that needs one.
    """

    @property
    def needs(self) -> frozenset[Side]:
        """Of ``learner``, ``reference``, ``scorer``."""
        ...

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        """Exactly ``count`` distinct positions, and statistics."""
        ...


@runtime_checkable
class StatefulPolicy(Protocol):
    """A policy that remembers: its state is an explicit value that goes in and comes out.

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
    """A policy's state before the first step; ``None`` for one that has none."""
    return policy.initial_state() if isinstance(policy, StatefulPolicy) else None


def choose(policy: Policy, scores: Scores, count: int, generator: torch.Generator, state: object = None) -> Selection:
    """Ask the policy, and check the answer; where several processes ask, the first one's counts.

    Args:
        policy: with state or without.
        scores: of the super-batch.
        count: b.
        generator: the only source of randomness.
        state: what the policy's last selection returned, where it has state.

    Raises:
        PolicyError: wrong count, repeated or foreign indices, weights or statistics that are not finite,
            scores of another length.
    """
    if isinstance(policy, StatefulPolicy):
        selection = policy.select(scores, count, generator, state=state)
    else:
        selection = policy.select(scores, count, generator)
    name, index_K = type(policy).__name__, selection.index_K
    if index_K.dtype != torch.int64 or index_K.ndim != 1 or len(index_K) != count:
        raise PolicyError(f"{name} must return int64 indices [{count}], got {index_K.dtype} {list(index_K.shape)}")
    if int(index_K.min()) < 0 or int(index_K.max()) >= len(scores):
        raise PolicyError(f"{name} chose a position outside the super-batch of {len(scores)} pairs")
    if len(index_K.unique()) != count:
        raise PolicyError(f"{name} chose a pair twice: {count} chosen, {len(index_K.unique())} distinct")
    for key, value in selection.statistics.items():
        if not key.startswith("select/") or not math.isfinite(value):
            raise PolicyError(f"{name}: statistic {key!r} = {value} must be finite and named select/…")
    weight_K = selection.weight_K
    if weight_K is not None and (weight_K.shape != index_K.shape or not bool(torch.isfinite(weight_K).all())):
        raise PolicyError(f"{name}: weights must be finite and one for each chosen pair")
    if selection.score_B is not None and selection.score_B.shape != (len(scores),):
        raise PolicyError(f"{name}: scores are one for each pair [{len(scores)}], got {list(selection.score_B.shape)}")
    return distributed.world().agreed(selection)
