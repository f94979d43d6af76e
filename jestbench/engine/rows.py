"""Stores of float rows by 64-bit key: for one run, or shared by all runs on a machine.

A key is the content hash of an image or of a caption, or of both (``pair_key_B``): an image with another caption has
another pair key, and never fetches the row of the first pair.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from jestbench import seeds
from jestbench.batch import DataError
from jestbench.disk import write_all
from jestbench.model.encoders import at_least_fp32

Stored = Literal["float32", "float16", "float64"]
Keys = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

HEADER = 64
"""Bytes before the first record: ``MAGIC``, and the digest of all that the rows depend on besides their keys."""
MAGIC = b"jestbench rows 1"
LOCK_SECONDS = 20.0
WRITE_SECONDS = 600.0
"""How long a run waits for another one that is writing, before it goes on without."""
VERIFIED_AT_ONCE = WRITTEN_AT_ONCE = 8192
BEHIND = 2
"""Additions to a run's own rows that may be unwritten when the next one comes."""


def pair_key_B(image_key_B: Tensor, text_key_B: Tensor) -> Tensor:
    """One int64 key of each pair, from the content hashes of its image and its caption (not interchangeable)."""
    return seeds.mixed(seeds.mixed(image_key_B + seeds.GOLDEN) + text_key_B)


class KeyIndex:
    """Row numbers by key, in 16 bytes a key: sorted arrays, each more than twice as long as the one after it."""

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

    def saved(self) -> int:
        """What a checkpoint keeps."""
        return 0

    def restore(self, count: int) -> None:
        """Go back to the rows that a checkpoint recorded."""

    def close(self, remove: bool) -> None:
        """Close the files; ``remove`` is true when the run has finished."""


class _Kept(Rows):
    """Rows that are found again: what the two stores have in common. A thread writes behind."""

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


class RunRows(_Kept):
    """Rows of one run, in memory and in an append-only file.

    The file makes a resumed run exact: an embedding recomputed in another batch may differ in its last bit. Rows
    written after the checkpoint are cut off. ``saved`` waits for the thread that writes. With ``width`` 0 the store
    records only which keys the run has encountered.
    """

    def __init__(self, path: Path, width: int, dtype: Stored = "float32") -> None:
        super().__init__(width, dtype)
        self.path = path
        self._record = np.dtype([("key", "<i8"), ("row", self.dtype, (width,))])
        self._index = KeyIndex()
        self._rows = np.empty((1024, width), self.dtype)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def __len__(self) -> int:
        return len(self._index)

    def _find(self, key_N: Keys) -> Keys:
        return self._index.find(key_N)

    def _take(self, row_N: Keys) -> Floats:
        taken: Floats = np.take(self._rows, row_N, axis=0).astype(self._handed, copy=False)
        return taken

    def _add(self, key_N: Keys, row_ND: npt.NDArray[np.floating[Any]]) -> None:
        self._written(BEHIND)
        start, end = len(self), len(self) + len(key_N)
        if end > len(self._rows):
            more = np.empty((max(end, 2 * len(self._rows)), self.width), self.dtype)
            more[:start] = self._rows[:start]
            self._rows = more
        self._rows[start:end] = row_ND
        self._index.add(key_N, np.arange(start, end))
        self._writing.append(self._writer.submit(self._write, key_N, self._rows[start:end]))

    def _write(self, key_N: Keys, row_ND: npt.NDArray[np.floating[Any]]) -> None:
        for start in range(0, len(key_N), WRITTEN_AT_ONCE):
            part = slice(start, start + WRITTEN_AT_ONCE)
            records = np.empty(len(key_N[part]), self._record)
            records["key"], records["row"] = key_N[part], row_ND[part]
            self._file.write(records.view(np.uint8).data)

    def restore(self, count: int) -> None:
        """Go back to the first ``count`` rows of the file.

        Raises:
            DataError: the file holds fewer.
        """
        self._written()
        self._file.close()
        if self.path.stat().st_size < count * self._record.itemsize:
            raise DataError(f"{self.path} is shorter than its checkpoint says; start the run anew")
        with self.path.open("r+b") as file:
            file.truncate(count * self._record.itemsize)
        records = np.fromfile(self.path, dtype=self._record)
        self._index = KeyIndex()
        self._index.add(np.ascontiguousarray(records["key"]), np.arange(len(records)))
        self._rows = np.ascontiguousarray(records["row"])
        self._file = self.path.open("ab")

    def saved(self) -> int:
        """How many rows there are, all of them brought to the file."""
        self._written()
        self._file.flush()
        return len(self)

    def close(self, remove: bool) -> None:
        """Close, and remove the file of a run that has finished."""
        self._writer.shutdown(cancel_futures=remove)
        self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):  # other stores lie there
                self.path.parent.rmdir()


class SharedRows(_Kept):
    """Rows that outlive a run, memory-mapped, read and appended to by any number of processes at once.

    One file: a header with ``digest``, then records of key, row and checksum. A process appends under the file lock;
    a partial record that a killed writer left is overwritten, and a record whose checksum does not match is skipped.
    One addition at most is unwritten, and every look at the file waits for it.
    The store never stops a run: disk errors and damage are counted in ``failures``, the first one is printed as a
    warning, and the run goes on without the affected rows.

    Args:
        path: the file, created where there is none.
        width: floats per row.
        dtype: of the floats in the file.
        digest: 32 bytes that identify all that the rows depend on besides their keys.
    """

    def __init__(self, path: Path, width: int, dtype: Stored, digest: bytes) -> None:
        super().__init__(width, dtype)
        self.path, self._failures = path, 0
        padding = -(width * self.dtype.itemsize) % 4
        fields = [("key", "<i8"), ("row", self.dtype.newbyteorder("<"), (width,)), ("pad", "u1", (padding,))]
        self._record = np.dtype([*fields, ("check", "<u4")])
        self._header = (MAGIC + digest).ljust(HEADER, b"\0")
        self._lock = FileLock(f"{path}.lock", timeout=LOCK_SECONDS)
        words = torch.arange(1, self._record.itemsize // 4)
        self._start = np.uint64(seeds.GOLDEN % (1 << 64))
        self._odd: npt.NDArray[np.uint64] = (seeds.mixed(words * seeds.GOLDEN) | 1).numpy().view(np.uint64)
        self._descriptor = -1
        self._writable = False
        self._forget()
        try:
            self._open()
            self._look()
        except (OSError, Timeout) as error:
            self._fail(f"cannot be used ({error})")

    def __len__(self) -> int:
        self._written()
        return len(self._index)

    @property
    def failures(self) -> int:
        """How often rows could not be read or written."""
        self._written()
        return self._failures

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return os.fstat(self._descriptor).st_size if self._descriptor >= 0 else 0

    def _forget(self) -> None:
        self._index, self._count = KeyIndex(), 0
        self._records = np.empty(0, self._record)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._lock:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
                if self.size < HEADER:  # new, or cut so short that nothing is left
                    os.ftruncate(self._descriptor, 0)
                    write_all(self._descriptor, self._header, 0)
                self._writable = True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self._descriptor = os.open(self.path, os.O_RDONLY)  # another's cache may still be read
        if os.pread(self._descriptor, HEADER, 0) != self._header:
            self._let_go()
            raise OSError("its header names another model, view or preprocessing")

    def _let_go(self) -> None:
        self._writable = False
        self._forget()
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _fail(self, what: str) -> None:
        """Count a failure, and print a warning at the first one."""
        self._failures += 1
        if self._failures == 1:
            print(f"warning: the cache {self.path} {what}; the run goes on without", file=sys.stderr)

    def _whole(self) -> int:
        return max(0, self.size - HEADER) // self._record.itemsize

    def _look(self) -> None:
        """Take notice of what the file has gained, or lost, since the last look."""
        if self._whole() < self._count:
            self._forget()  # before anything is read: a page behind the end of the file would kill the process
            self._fail("has been cut while in use")
        if self._whole() > self._count:
            # Under the lock no process is in the middle of writing a record.
            with self._lock if self._writable else nullcontext():
                self._read()

    def _read(self) -> None:
        """Map the file anew, and index its new records; the lock is held."""
        count = self._whole()
        if count == self._count:
            return
        length = HEADER + count * self._record.itemsize
        mapped = mmap.mmap(self._descriptor, length, access=mmap.ACCESS_READ)
        self._records = np.frombuffer(mapped, self._record, count, HEADER)
        damaged = 0
        for start in range(self._count, count, VERIFIED_AT_ONCE):
            part = self._records[start : min(count, start + VERIFIED_AT_ONCE)]
            good = self._checks(part) == part["check"]
            damaged += int((~good).sum())
            self._index.add(part["key"][good], start + np.flatnonzero(good))
        self._count = count
        if damaged:
            self._fail(f"holds {damaged} damaged rows, which are computed anew")

    def _checks(self, records: npt.NDArray[np.void]) -> npt.NDArray[np.uint32]:
        """Checksum of each record: a multilinear hash of its words; that of an empty page is not 0."""
        words = np.frombuffer(records.tobytes(), "<u4").reshape(len(records), self._record.itemsize // 4)[:, :-1]
        summed: npt.NDArray[np.uint64] = (words * self._odd).sum(1, dtype=np.uint64) + self._start
        checks: npt.NDArray[np.uint32] = (summed >> np.uint64(32)).astype(np.uint32)
        return checks

    def _find(self, key_N: Keys) -> Keys:
        self._written()
        if self._descriptor >= 0:
            try:
                self._look()
            except (OSError, ValueError, Timeout) as error:
                self._fail(f"cannot be read on ({error})")
        return self._index.find(key_N)

    def _take(self, row_N: Keys) -> Floats:
        taken: Floats = self._records["row"][row_N].astype(self._handed, copy=False)
        return taken

    def _add(self, key_N: Keys, row_ND: npt.NDArray[np.floating[Any]]) -> None:
        self._written()
        self._writing.append(self._writer.submit(self._write, key_N, row_ND.copy()))  # the caller goes on with its own

    def _write(self, key_N: Keys, row_ND: npt.NDArray[np.floating[Any]]) -> None:
        finite = np.isfinite(row_ND).all(1)  # a non-finite row ends this run, and must not reach later runs
        if not self._writable or not finite.any():
            return
        try:
            with self._lock:
                self._read()
                new = finite & (self._index.find(key_N) < 0)  # another process may have been faster
                if new.any():
                    self._append(key_N[new], row_ND[new])
                    self._read()
        except (OSError, ValueError, Timeout) as error:
            self._writable = isinstance(error, Timeout)
            self._fail(f"cannot be written to ({error})")

    def _append(self, key_N: Keys, row_ND: npt.NDArray[np.floating[Any]]) -> None:
        records = np.zeros(len(key_N), self._record)
        records["key"], records["row"] = key_N, row_ND
        records["check"] = self._checks(records)
        end = HEADER + self._whole() * self._record.itemsize
        try:
            if self.size < HEADER:
                write_all(self._descriptor, self._header, 0)
            elif self.size > end:
                os.ftruncate(self._descriptor, end)
            write_all(self._descriptor, records.tobytes(), end)
        except OSError:
            os.ftruncate(self._descriptor, end)
            raise

    def close(self, remove: bool) -> None:
        """Let go of the file, which stays."""
        self._writer.shutdown()
        self._let_go()
