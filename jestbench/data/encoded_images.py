"""Encoded images by position: ranges of bytes in files."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from jestbench.data.decode import DamagedImage

WHOLE = -1
"""Size of a byte range that is a whole file."""

OPEN_FILES = 64
"""Files that one process keeps open."""


class Encoded(Protocol):
    """A source of encoded images. Sources are pickled into workers, so they open files at the first read."""

    def __len__(self) -> int: ...

    def read(self, position: int) -> bytes:
        """The encoded bytes of an image.

        Raises:
            DamagedImage: they cannot be read.
        """
        ...

    def where(self, position: int) -> str:
        """The place of an image, for messages: its path, with the key or row in it."""
        ...


@dataclass(frozen=True)
class ByteRanges:
    """Images as ranges of bytes: members of tar shards, or whole files.

    Attributes:
        paths: of the files.
        path_N: which of them holds each image.
        offset_N: where it begins, in bytes.
        size_N: its size in bytes, or ``WHOLE``.
    """

    paths: Sequence[str]
    path_N: npt.NDArray[np.int32]
    offset_N: npt.NDArray[np.int64]
    size_N: npt.NDArray[np.int64]
    _open: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.path_N)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __del__(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, position: int) -> bytes:
        """The encoded bytes; positional reads, so that forked processes may share the file's descriptor."""
        which, size = int(self.path_N[position]), int(self.size_N[position])
        try:
            if size == WHOLE:
                with open(self.paths[which], "rb") as file:  # noqa: PTH123  # Path is twice as slow, a million times
                    return file.read()
            content = os.pread(self._descriptor(which), size, int(self.offset_N[position]))
        except OSError as error:
            raise DamagedImage("unreadable file", f"{self.paths[which]}: {error.strerror}") from error
        if len(content) < size:
            raise DamagedImage("changed file", f"{self.paths[which]} ends before byte {self.offset_N[position] + size}")
        return content

    def where(self, position: int) -> str:
        """The path; in a tar, the name of the member behind it."""
        which, offset = int(self.path_N[position]), int(self.offset_N[position])
        path = self.paths[which]
        if self.size_N[position] == WHOLE:
            return path
        with suppress(OSError, tarfile.HeaderError):
            header = os.pread(self._descriptor(which), tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)
            return f"{path}: {tarfile.TarInfo.frombuf(header, 'utf-8', 'replace').name}"
        return f"{path}, byte {offset}"

    def _descriptor(self, which: int) -> int:
        if which not in self._open:
            if len(self._open) >= OPEN_FILES:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[which] = os.open(self.paths[which], os.O_RDONLY)
        return self._open[which]
