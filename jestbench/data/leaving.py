"""A plan of super-batches for a policy that leaves pairs out of an epoch before they are read.

The policy is asked once an epoch, before its first step; the pairs that remain are permuted and cut into super-batches.
How many steps an epoch has depends on the answer, so the plan has a state, and no step of a later epoch is read ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from jestbench import seeds
from jestbench.data.fetch import Positions
from jestbench.data.pairs import IndexedPairs, ReadPairs
from jestbench.data.super_batches import EpochPlan, Leave, StepPlan
from jestbench.select.given import pair_keys
from jestbench.select.policy import PolicyError


class LeavingPlan(StepPlan):
    """A plan in which each epoch is a permutation of the pairs that the policy does not leave out.

    Args:
        pairs: the split.
        size: pairs of a super-batch.
        seed: of the run.
        policy: the policy's name, for messages.

    Raises:
        DataError: the split holds fewer pairs than one super-batch needs.
    """

    def __init__(self, pairs: IndexedPairs, size: int, seed: int, policy: str) -> None:
        self.pairs, self.size, self.seed, self.policy = pairs, size, seed, policy
        assert EpochPlan(pairs, size, seed).per_epoch, "the split fills a super-batch"
        self._epoch, self._first, self._skipped, self._left_out = -1, 0, 0, 0
        self._out_N = torch.zeros(len(pairs), dtype=torch.bool)
        self._kept_M = torch.arange(0)

    def _steps(self) -> int:
        return len(self._kept_M) // self.size

    def begin(self, step: int, leave: Leave | None) -> None:
        """Begin the next epoch where the last one has ended before a step: ask which pairs are left out of it.

        Raises:
            PolicyError: fewer pairs than a super-batch needs are left.
        """
        if step < self._first + self._steps():
            return
        self._skipped += len(self._kept_M) - self._steps() * self.size
        self._epoch, self._first = self._epoch + 1, step
        self._out_N = torch.zeros(len(self.pairs), dtype=torch.bool)
        if leave is not None:
            drawn = self.pairs.drawn(self.seed, self._epoch)
            self._out_N = leave(pair_keys(torch.from_numpy(drawn.image_key_N), drawn.text_key_N), self._epoch)
        self._left_out += int(self._out_N.sum())
        self._keep()
        if not self._steps():
            raise PolicyError(
                f"the policy {self.policy} leaves {len(self._kept_M)} of {len(self.pairs)} pairs in epoch "
                f"{self._epoch}, fewer than the {self.size} of one step"
            )

    def _keep(self) -> None:
        order_N = torch.randperm(len(self.pairs), generator=seeds.generator(self.seed, "data", self._epoch))
        self._kept_M = order_N[~self._out_N[order_N]]

    def epoch(self, step: int) -> int:
        """The epoch that has begun."""
        return max(0, self._epoch)

    def left_out(self) -> int:
        """Pairs that are left out of the epoch."""
        return int(self._out_N.sum())

    def known_until(self, step: int) -> int:
        """The last step of the epoch that has begun."""
        return self._first + self._steps() - 1

    def positions(self, step: int, read: Callable[[Positions], ReadPairs] | None = None) -> Positions:
        """The positions of a step of the epoch that has begun."""
        self.begin(step, None)
        number = step - self._first
        index_B = self._kept_M[number * self.size : (number + 1) * self.size]
        return Positions(self._epoch, self.pairs.at_step(step, index_B))

    def skipped(self, step: int) -> int:
        """Pairs left out as tails of the epochs that have ended."""
        return self._skipped

    def counts(self) -> dict[str, float]:
        """Pairs that the policy has left out, of all epochs together."""
        return {"data/left_out": self._left_out}

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch began and which pairs are left out of it, eight to a byte."""
        bits = torch.from_numpy(np.packbits(self._out_N.numpy()))
        names = ("_epoch", "_first", "_skipped", "_left_out")
        return {"out": bits, **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name in ("_epoch", "_first", "_skipped", "_left_out"):
            setattr(self, name, state[name])
        bits = np.unpackbits(state["out"].numpy(), count=len(self.pairs))
        self._out_N = torch.from_numpy(bits.astype(bool))
        if self._epoch >= 0:
            self._keep()
