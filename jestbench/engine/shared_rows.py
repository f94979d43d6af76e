"""Rows of frozen models that all runs on a machine share."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout

from jestbench import seeds
from jestbench.disk import write_all
from jestbench.engine.rows import Floats, KeptRows, KeyIndex, Keys, Stored

HEADER = 64
"""Bytes before the first record: ``MAGIC``, and the digest of all that the rows depend on besides their keys."""
MAGIC = b"jestbench rows 1"
LOCK_SECONDS = 20.0
VERIFIED_AT_ONCE = 8192


class SharedRows(KeptRows):
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
