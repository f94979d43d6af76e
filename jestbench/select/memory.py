"""The memory of a policy: a few numbers of each pair, read and written by the pair's key.

Keys are kept sorted in two arrays, a large one and a small one of the newest keys, which is merged into the large one
once it is full: a step reads by binary search and moves only the small array. A pair takes 12 to 24 bytes, its numbers
beside its key. (``KeyIndex`` of ``engine/rows.py``, at 16 bytes a key, finds rows that lie in a file and never change.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MOST_COLUMNS = 4
"""Columns of a memory at most: 8 bytes of key and 4 of each number are then 24 bytes a pair."""
NEWEST = 1 << 18
"""Keys of the small array before it is merged into the large one."""

_Part = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Sorted keys ``[M]`` and their numbers ``[M, columns]``."""


class Memory:
    """Numbers of pairs by key; a number that was never written is NaN.

    Args:
        columns: the names of the numbers.
        limit: bytes that keys and numbers may take. Once it is reached, pairs that are new are not remembered.

    Raises:
        ValueError: more than ``MOST_COLUMNS`` columns.
    """

    def __init__(self, columns: Sequence[str] = (), limit: int = 8 << 30) -> None:
        self.limit = limit
        self.clear(columns)

    def clear(self, columns: Sequence[str]) -> None:
        """Forget everything; from now on these numbers are remembered."""
        if len(columns) > MOST_COLUMNS:
            raise ValueError(f"a policy remembers at most {MOST_COLUMNS} numbers of a pair, got {', '.join(columns)}")
        self.columns, self.refused = tuple(columns), 0
        self._parts: list[_Part] = [self._empty(), self._empty()]  # the large one, the newest keys

    def _empty(self) -> _Part:
        return np.empty(0, np.int64), np.empty((0, len(self.columns)), np.float32)

    def __len__(self) -> int:
        return sum(len(key_M) for key_M, _ in self._parts)

    @property
    def pair_bytes(self) -> int:
        """Bytes that a pair takes."""
        return 8 + 4 * len(self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and numbers; while the newest keys are merged, twice as many."""
        return len(self) * self.pair_bytes

    def counts(self) -> dict[str, float]:
        """``memory/…``: pairs that are remembered, their bytes, and pairs that were refused for ``limit``."""
        return {"memory/pairs": len(self), "memory/bytes": self.nbytes, "memory/refused": self.refused}

    def read(self, key_B: Tensor) -> dict[str, Tensor]:
        """The numbers of these pairs, column → float32 ``[B]`` on the CPU."""
        keys = key_B.cpu().numpy()
        found = np.full((len(keys), len(self.columns)), np.nan, np.float32)
        for part_key_M, number_MX in self._parts:
            place_B, there_B = _places(part_key_M, keys)
            found[there_B] = number_MX[place_B[there_B]]
        return {name: torch.from_numpy(found[:, at].copy()) for at, name in enumerate(self.columns)}

    def write(self, key_B: Tensor, numbers: Mapping[str, Tensor]) -> None:
        """Write numbers of some pairs; of a key that comes twice, the last one stays. NaN leaves a number as it is."""
        if not numbers or not len(key_B):
            return
        keys, number_BX = key_B.cpu().numpy(), np.full((len(key_B), len(self.columns)), np.nan, np.float32)
        for name, value_B in numbers.items():
            number_BX[:, self.columns.index(name)] = value_B.detach().float().cpu().numpy()
        new_B = np.ones(len(keys), bool)
        for part_key_M, number_MX in self._parts:
            place_B, there_B = _places(part_key_M, keys)
            new_B &= ~there_B
            _put(number_MX, place_B[there_B], number_BX[there_B])
        self._insert(keys[new_B], number_BX[new_B])

    def holds(self, key_B: Tensor) -> Tensor:
        """The pairs whose numbers stay where they are written next, bool ``[B]``: the last of each key, if it fits."""
        keys = key_B.cpu().numpy()
        there_B = np.logical_or.reduce([_places(key_M, keys)[1] for key_M, _ in self._parts])
        fits_B = there_B | np.isin(keys, np.unique(keys[~there_B])[: self._room])
        last_B = np.zeros(len(keys), bool)
        last_B[len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]] = True
        return torch.from_numpy(fits_B & last_B)

    @property
    def _room(self) -> int:
        """How many keys the limit allows for beside those that are there."""
        return max(0, self.limit // self.pair_bytes - len(self))

    def _insert(self, keys: npt.NDArray[np.int64], number_BX: npt.NDArray[np.float32]) -> None:
        """Add keys that are not there yet, as many as the limit allows."""
        key_M, place_B = np.unique(keys, return_inverse=True)
        number_MX = np.full((len(key_M), len(self.columns)), np.nan, np.float32)
        _put(number_MX, place_B, number_BX)
        room = self._room
        self.refused += max(0, len(key_M) - room)
        newest = _merged(self._parts[1], (key_M[:room], number_MX[:room]))
        if len(newest[0]) > NEWEST:
            self._parts = [_merged(self._parts[0], newest), self._empty()]
        else:
            self._parts[1] = newest

    def state_dict(self) -> dict[str, Any]:
        """Keys and numbers, in the order of the keys: the memory's own arrays, which the next write may change."""
        self._parts = [_merged(*self._parts), self._empty()]
        key_M, number_MX = self._parts[0]
        numbers = {name: torch.from_numpy(number_MX[:, at]) for at, name in enumerate(self.columns)}
        return {"key": torch.from_numpy(key_M), "refused": self.refused, "numbers": numbers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.clear(tuple(state["numbers"]))
        key_M, self.refused = state["key"].numpy().copy(), state["refused"]
        number_MX = np.empty((len(key_M), len(self.columns)), np.float32)
        for at, name in enumerate(self.columns):
            number_MX[:, at] = state["numbers"][name].numpy()
        self._parts = [(key_M, number_MX), self._empty()]


def _places(key_M: npt.NDArray[np.int64], keys: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The place of each key among sorted ones, and whether it is there."""
    if not len(key_M):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    order_B, place_B = np.argsort(keys), np.empty(len(keys), np.int64)
    place_B[order_B] = np.searchsorted(key_M, keys[order_B])  # in order: neighbouring searches read the same memory
    place_B = np.minimum(place_B, len(key_M) - 1)
    return place_B, key_M[place_B] == keys


def _put(into_MX: npt.NDArray[np.float32], place_B: npt.NDArray[Any], number_BX: npt.NDArray[np.float32]) -> None:
    """Write numbers at their places, the last one where several have one place; NaN leaves a number as it is."""
    for at, number_B in enumerate(number_BX.T):
        set_B = ~np.isnan(number_B)
        into_MX[place_B[set_B], at] = number_B[set_B]


def _merged(one: _Part, other: _Part) -> _Part:
    """Two parts without a common key as one part."""
    if not len(other[0]):
        return one
    place_M = np.searchsorted(one[0], other[0])
    return np.insert(one[0], place_M, other[0]), np.insert(one[1], place_M, other[1], axis=0)
