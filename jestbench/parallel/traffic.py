"""Counts the bytes that a process sends to others, by purpose, and the seconds that its host waits in collectives.

Bytes are those of the ring algorithms, which gloo and NCCL use for large tensors: an all-gather sends each process's
part n − 1 times in all from each process, an all-reduce of N bytes 2·N·(n − 1)/n. What a process receives is as much.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

Traded = Literal[
    "embeddings",
    "chosen_pairs",
    "strip_sums",
    "loss_gradients",
    "weights",
    "weight_gradients",
    "bookkeeping",
    "evaluation",
]
"""What bytes are sent for: embeddings of super-batch and chosen pairs; pairs that move to the process that trains on
them; each row's sums over strips of similarities; gradients by embeddings; weights that are spread (``run.shard``),
gathered for a pass; gradients by weights; keys, marks and agreements; embeddings that are evaluated."""
TRADED: tuple[Traded, ...] = get_args(Traded)


def gathered(own: int, size: int) -> int:
    """Bytes that a process sends in an all-gather.

    Args:
        own: bytes of one process's part.
        size: number of processes.
    """
    return own * (size - 1)


def reduced(whole: int, size: int) -> int:
    """Bytes that a process sends in an all-reduce: a reduce-scatter and an all-gather.

    Args:
        whole: bytes of the tensor that is reduced.
        size: number of processes.
    """
    return -(-2 * whole * (size - 1) // size)


def pickled(value: object) -> int:
    """Bytes of a value that is sent as a pickle."""
    return len(pickle.dumps(value))


@dataclass(frozen=True)
class Joined:
    """What one process computes alone, and several would share out and join: bytes of what each of them sends.

    Attributes:
        rows: of each row, by how many rows there are in all, of which each process computes its share.
        terms: of sums to which every process contributes, gathered from each of them.
        sums: of sums that are reduced.
    """

    rows: Mapping[int, int] = field(default_factory=dict)
    terms: int = 0
    sums: int = 0

    def __add__(self, other: Joined) -> Joined:
        rows = Counter(self.rows) + Counter(other.rows)
        return Joined(rows, self.terms + other.terms, self.sums + other.sums)

    def sent(self, size: int) -> int:
        """Bytes that each of ``size`` processes sends."""
        own = sum(-(-count // size) * row for count, row in self.rows.items())
        return gathered(own + self.terms, size) + reduced(self.sums, size)


class Traffic:
    """The bytes that this process has sent, and the seconds that its host has waited in collectives.

    Attributes:
        sent: bytes, by purpose.
        calls: number of collectives.
        seconds: between the begin and the end of each collective's call. On a GPU the host does not wait for the
            collectives that it queues.
    """

    def __init__(self) -> None:
        self.sent = dict.fromkeys(TRADED, 0)
        self.calls, self.seconds = 0, 0.0
        self._before: dict[str, float] = {}
        self._named = threading.local()  # each thread names its own purposes
        self._alone = Joined()

    @contextmanager
    def sending(self, purpose: Traded) -> Iterator[None]:
        """Inside this context all collectives serve this purpose."""
        before, self._named.purpose = self._purpose, purpose
        try:
            yield
        finally:
            self._named.purpose = before

    @property
    def _purpose(self) -> Traded | None:
        purpose: Traded | None = getattr(self._named, "purpose", None)
        return purpose

    @contextmanager
    def collective(self, purpose: Traded, sent: int) -> Iterator[None]:
        """Count a collective, and the seconds inside this context.

        Args:
            purpose: where none was named around it (``sending``).
            sent: bytes that this process sends.
        """
        self.sent[self._purpose or purpose] += sent
        self.calls += 1
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin

    def computed_alone(
        self, rows: Sequence[Tensor] = (), terms: Sequence[Tensor] = (), sums: Sequence[Tensor] = ()
    ) -> None:
        """Note what one process has computed of ``Joined``."""
        found = Counter[int]()
        for each in rows:
            found[len(each)] += each.nbytes // max(1, len(each))
        self._alone += Joined(found, *(sum(each.nbytes for each in part) for part in (terms, sums)))

    def since_alone(self) -> Joined:
        """What this process has computed alone since the last time."""
        found, self._alone = self._alone, Joined()
        return found

    def since_last(self) -> dict[str, float]:
        """Bytes by purpose, ``calls`` and ``seconds`` since the last time."""
        now: dict[str, float] = {"calls": self.calls, "seconds": self.seconds}
        now.update((str(purpose), sent) for purpose, sent in self.sent.items())
        since = {name: value - self._before.get(name, 0) for name, value in now.items()}
        self._before = now
        return since


TRAFFIC = Traffic()
"""The traffic of this process."""
