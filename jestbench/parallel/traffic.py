"""Counts the bytes that a process sends to others, by purpose, and the seconds that its host waits in collectives.

Bytes are those of the ring algorithms, which gloo and NCCL use for large tensors: an all-gather sends each process's
part n − 1 times in all from each process, an all-reduce of N bytes 2·N·(n − 1)/n. What a process receives is as much.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from torch import Tensor

Traded = Literal[
    "embeddings", "chosen_pairs", "strip_sums", "loss_gradients", "weight_gradients", "bookkeeping", "evaluation"
]
"""What bytes are sent for: embeddings of super-batch and chosen pairs; pairs that move to the process that trains on
them; each row's sums over strips of similarities; gradients by embeddings; gradients by weights; keys, marks and
agreements; embeddings that are evaluated."""
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

    @contextmanager
    def collective(self, purpose: Traded, sent: int) -> Iterator[None]:
        """Count a collective, and the seconds inside this context."""
        self.sent[purpose] += sent
        self.calls += 1
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin

    def reduce_gradients(self, parameters: list[Tensor], size: int) -> None:
        """Count an all-reduce of these parameters' gradients that torch makes by itself."""
        self.sent["weight_gradients"] += reduced(sum(each.nbytes for each in parameters), size)

    def since_last(self) -> dict[str, float]:
        """Bytes by purpose, ``calls`` and ``seconds`` since the last time."""
        now: dict[str, float] = {"calls": self.calls, "seconds": self.seconds}
        now.update((str(purpose), sent) for purpose, sent in self.sent.items())
        since = {name: value - self._before.get(name, 0) for name, value in now.items()}
        self._before = now
        return since


TRAFFIC = Traffic()
"""The traffic of this process."""
