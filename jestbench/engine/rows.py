"""Stores of float rows by 64-bit key, for one run (those of all runs on a machine: ``engine/shared_rows.py``).

A key is the content hash of an image or of a caption, or of both (``pair_keys``): an image with another caption has
another pair key, and never fetches the row of the first pair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jestbench.model.encoders import at_least_fp32

Stored = Literal["float32", "float16", "float64"]
Keys = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

WRITE_SECONDS = 600.0
"""How long a run waits for another one that is writing, before it goes on without."""
WRITTEN_AT_ONCE = 8192
BEHIND = 2
"""Additions to a run's own rows that may be unwritten when the next one comes."""


class KeyIndex:
    """Row numbers by key, in 16 bytes a key: sorted arrays, each more than twice as long as the one after it.

    ``select/memory.py`` keeps numbers that change by key, in two sorted arrays; here a row is written once, and arrays
    of doubling length take a logarithm of merges.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[Keys, Keys]] = []

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._runs)

    def find(self, key_N: Keys) -> Keys:
        """The row of each key, −1 where it is unknown."""
        row_N = np.full(len(key_N), -1, np.int64)
        unknown = np.arange(len(key_N))
        for keys, rows in self._runs:
            at = np.searchsorted(keys, key_N)
            at[at == len(keys)] = 0
            found = np.where(keys[at] == key_N, rows[at], -1)
            row_N[unknown] = found
            unknown, key_N = unknown[missing := found < 0], key_N[missing]
        return row_N

    def add(self, key_N: Keys, row_N: Keys) -> None:
        """Add keys with their row numbers; a key that is already stored keeps its row."""
        unknown = np.flatnonzero(self.find(key_N) < 0)
        keys, first = np.unique(key_N[unknown], return_index=True)
        rows = row_N[unknown[first]]
        while len(keys) and self._runs and len(self._runs[-1][0]) <= 2 * len(keys):
            more, others = self._runs.pop()
            order = np.argsort(both := np.concatenate([more, keys]), kind="stable")
            keys, rows = both[order], np.concatenate([others, rows])[order]
        if len(keys):
            self._runs.append((keys, rows))

    def cut(self, count: int) -> None:
        """Forget the keys whose row numbers are not below a count."""
        self._runs = [(keys[kept], rows[kept]) for keys, rows in self._runs if (kept := rows < count).any()]

    def sight(self, key_N: Keys) -> int:
        """Add keys; return how many of them were unknown, each counted once."""
        before = len(self)
        self.add(key_N, np.zeros(len(key_N), np.int64))
        return len(self) - before


class Rows:
    """Rows that are not stored: each is computed every time. ``RunRows`` and ``SharedRows`` inherit from it.

    Args:
        width: floats per row.
        dtype: what a row is rounded to, stored or not, so that a run selects the same pairs with and without
            a store.
    """

    def __init__(self, width: int, dtype: Stored = "float32") -> None:
        self.width, self.dtype = width, np.dtype(dtype)
        self._rounded = getattr(torch, dtype)
        self._handed = np.result_type(self.dtype, np.float32)  # type in which rows are handed out

    def __len__(self) -> int:
        return 0

    @property
    def failures(self) -> int:
        """How often rows could not be read or written."""
        return 0

    def missing(self, key_B: Tensor) -> Tensor:
        """Positions whose rows are to be computed."""
        return torch.arange(len(key_B))

    def fetch(self, key_B: Tensor, compute: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
        """Rows ``[B, width]`` in fp32 (or fp64), and how many of them were computed now.

        Args:
            key_B: may hold a key twice.
            compute: positions → their rows.
        """
        return at_least_fp32(compute(torch.arange(len(key_B))).to(self._rounded)), len(key_B)

    def close(self, remove: bool) -> None:
        """Close the files; ``remove`` is true when the run has finished."""


class KeptRows(Rows):
    """Rows that are found again: what ``RunRows`` and ``SharedRows`` have in common. A thread writes behind."""

    def __init__(self, width: int, dtype: Stored = "float32") -> None:
        super().__init__(width, dtype)
        self._writer = ThreadPoolExecutor(1, "rows")
        self._writing: deque[Future[None]] = deque()

    def _written(self, left: int = 0) -> None:
        """Wait until no more than so many additions are unwritten; raises what went wrong with a written one."""
        while len(self._writing) > left or (self._writing and self._writing[0].done()):
            try:
                self._writing.popleft().result(WRITE_SECONDS)
            except FutureTimeout:
                raise OSError(f"a write has not ended for {WRITE_SECONDS:g} s") from None

    def _find(self, key_N: Keys) -> Keys:
        raise NotImplementedError

    def _take(self, row_N: Keys) -> Floats:
        raise NotImplementedError

    def _add(self, key_N: Keys, row_ND: npt.NDArray[np.floating[Any]]) -> None:
        raise NotImplementedError

    def missing(self, key_B: Tensor) -> Tensor:
        """Positions of keys that are not in the store, each distinct key once."""
        key_N = key_B.numpy()
        lacking = np.flatnonzero(self._find(key_N) < 0)
        first = np.unique(key_N[lacking], return_index=True)[1]
        return torch.from_numpy(lacking[np.sort(first)])

    def add(self, key_N: Tensor, row_ND: Tensor) -> None:
        """Append rows of keys that are not in the store."""
        self._add(key_N.numpy(), row_ND.detach().to(self._rounded).cpu().numpy())

    def fetch(self, key_B: Tensor, compute: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
        """Rows ``[B, width]`` in fp32 (or fp64), and how many of them were computed now: each distinct key once."""
        key_N = key_B.numpy()
        row_N = self._find(key_N)
        lacking = np.flatnonzero(row_N < 0)
        if not len(lacking):
            return torch.from_numpy(self._take(row_N)), 0
        _, first, inverse = np.unique(key_N[lacking], return_index=True, return_inverse=True)
        order = np.argsort(first)
        position = lacking[first[order]]
        new = compute(torch.from_numpy(position)).detach().to(self._rounded).cpu()
        self._add(key_N[position], new.numpy())
        if len(position) == len(key_N):
            return at_least_fp32(new), len(position)
        out = np.empty((len(key_N), self.width), self._handed)
        known = np.flatnonzero(row_N >= 0)
        out[known] = self._take(row_N[known])
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        out[lacking] = new.numpy()[rank[inverse.reshape(-1)]]
        return torch.from_numpy(out), len(position)


class RunRows(KeptRows):
    """Rows of one run, in memory and in an append-only file.

    The file makes a resumed run exact: an embedding recomputed in another batch may differ in its last bit. Rows
    written after the checkpoint are cut off. ``saved`` waits for the thread that writes. With ``width`` 0 the store
    records only which keys the run has encountered.

    Args:
        path: the file.
        width: floats per row.
        dtype: of the floats.
        writes: whether this process writes the file; a file of rows that all processes have alike is written by one.
    """

    def __init__(self, path: Path, width: int, dtype: Stored = "float32", writes: bool = True) -> None:
        super().__init__(width, dtype)
        self.path, self._writes = path, writes
        self._record = np.dtype([("key", "<i8"), ("row", self.dtype, (width,))])
        self._index = KeyIndex()
        self._rows = np.empty((1024, width), self.dtype)
        self._unfiled = 0  # rows in memory that other files hold
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._index)

    def _find(self, key_N: Keys) -> Keys:
        return self._index.find(key_N)

    def _take(self, row_N: Keys) -> Floats:
        taken: Floats = np.take(self._rows, row_N, axis=0).astype(self._handed, copy=False)
        return taken

    def _open(self, count: int) -> None:
        """Open the file, of which the first ``count`` rows stay: others are those of a run that was killed."""
        if self._writes:
            self._file = self.path.open("ab")
            self._file.truncate(count * self._record.itemsize)

    def _hold(self, key_N: Keys, row_ND: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
        """Keep rows of new keys in memory; return where they are kept."""
        start, end = len(self), len(self) + len(key_N)
        if end > len(self._rows):
            more = np.empty((max(end, 2 * len(self._rows)), self.width), self.dtype)
            more[:start] = self._rows[:start]
            self._rows = more
        self._rows[start:end] = row_ND
        self._index.add(key_N, np.arange(start, end))
        return self._rows[start:end]

    def _add(self, key_N: Keys, row_ND: npt.NDArray[np.floating[Any]]) -> None:
        self._written(BEHIND)
        held = self._hold(key_N, row_ND)
        if self._file is None:
            self._open(0)
        if self._file is not None:
            self._writing.append(self._writer.submit(self._write, key_N, held))

    def _write(self, key_N: Keys, row_ND: npt.NDArray[np.floating[Any]]) -> None:
        assert self._file is not None
        for start in range(0, len(key_N), WRITTEN_AT_ONCE):
            part = slice(start, start + WRITTEN_AT_ONCE)
            records = np.empty(len(key_N[part]), self._record)
            records["key"], records["row"] = key_N[part], row_ND[part]
            self._file.write(records.view(np.uint8).data)

    def load(self, count: int, others: Sequence[tuple[Path, int]] = ()) -> int:
        """Go back to the first ``count`` rows of the file; a process that holds none yet reads them.

        Args:
            count: rows that a checkpoint recorded.
            others: files of rows to hold beside them, which other processes have written, and their counts.

        Returns:
            How many rows of this file are held: fewer than ``count`` where the file has lost some.
        """
        if len(self):  # it has read or written them itself, and the disk of another machine may lag behind
            self.rewind(count + self._unfiled)
            return len(self) - self._unfiled
        found = self._read(self.path, count)
        self._open(found)
        for path, number in others:
            self._read(path, number)
        self._unfiled = len(self) - found
        return found

    def _read(self, path: Path, count: int) -> int:
        """Hold the first ``count`` rows of a file, but those of known keys; return how many of them it has."""
        try:
            records = np.fromfile(path, self._record, count)
        except FileNotFoundError:
            return 0
        key_N = np.ascontiguousarray(records["key"])
        new = np.unique(key_N, return_index=True)[1]
        new = np.sort(new[self._find(key_N[new]) < 0])
        self._hold(key_N[new], records["row"][new])
        return len(records)

    def rewind(self, count: int) -> None:
        """Go back to the first ``count`` rows in memory: those added since are cut from the file."""
        self._written()
        if count < len(self):
            self._index.cut(count)
            if self._file is not None:
                self._file.truncate((count - self._unfiled) * self._record.itemsize)

    def saved(self) -> int:
        """How many rows the file holds, all of them brought there."""
        self._written()
        if self._file is not None:
            self._file.flush()
        return len(self) - self._unfiled

    def close(self, remove: bool) -> None:
        """Close, and remove the file of a run that has finished."""
        self._writer.shutdown(cancel_futures=remove)
        if self._file is not None:
            self._file.close()
        if remove and self._writes:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):  # other stores lie there
                self.path.parent.rmdir()
