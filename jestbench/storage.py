"""Errors of the disk in plain words: what went wrong, where, and the way out.

This module imports no torch: the command line turns errors into messages without it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jestbench.disk import DataError, cache_root, shown

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota on this disk is used up"}
_REFUSED = {
    errno.EACCES: "it may not be written to or read by this user",
    errno.EPERM: "it may not be written to or read by this user",
    errno.EROFS: "the disk is mounted read-only",
}
_GONE = dict.fromkeys(
    (errno.ENOENT, errno.ESTALE, errno.ENOTCONN, errno.EIO, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO),
    "the disk, or the folder on it, does not answer or is gone",
)
_LOCKLESS = dict.fromkeys(
    (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS),
    "the disk keeps no file locks, without which two runs could write one folder",
)
_TORCH = ("PytorchStreamWriter", "inline_container", "iostream")
"""Words of torch where a file cannot be written."""
_PROBE = 1 << 16
"""Bytes that are written to learn why another write has failed."""


class StorageError(DataError):
    """The disk refuses a file; the message names the cause and the way out."""


def is_of_the_disk(error: BaseException) -> bool:
    """Whether an error is one that ``storage_error`` explains."""
    return isinstance(error, OSError) and error.errno in _FULL | _REFUSED | _GONE | _LOCKLESS


def storage_error(error: OSError, path: Path | None = None) -> StorageError:
    """The error in plain words.

    Args:
        error: of a file operation.
        path: of the file, where the error does not name it.
    """
    place = path if error.filename is None else Path(os.fsdecode(error.filename))
    where = "" if place is None else f"{shown(place)}: "
    if error.errno == errno.ENOENT and place is not None and place.parent.is_dir() and place.suffix:
        return StorageError(f"{where}there is no such file: bring it back, or name one that is there")
    cause = (_FULL | _REFUSED | _GONE | _LOCKLESS).get(error.errno or 0, error.strerror or str(error))
    if error.errno == errno.ENOSPC and place is not None and (free := _free(place)) is not None:
        cause += f" ({free / 2**20:,.1f} MiB free)"
    in_cache = place is not None and place.absolute().is_relative_to(cache_root().absolute())
    other = "name another folder in JESTBENCH_CACHE" if in_cache else "choose another --run_dir"
    if error.errno in _FULL:
        way = f"free space there, or {other}, and go on with --resume"
    elif error.errno in _REFUSED:
        way = f"give this user the right to write there, or {other}"
    elif error.errno in _LOCKLESS:
        way = f"mount it with locks (NFS: with its lock manager; Lustre: -o flock), or {other}"
    else:
        way = f"bring it back (mount it again) and go on with --resume, or {other}"
    return StorageError(f"{where}{cause}: {way}")


def _free(path: Path) -> int | None:
    """Free bytes of the disk that a path lies on, or would; ``None`` where the disk does not answer."""
    for folder in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin a file that the disk has no space for.

    Args:
        folder: where it is to lie.
        needed: bytes.
        what: is to be written, for the message.

    Raises:
        StorageError: there is less space.
    """
    free = _free(folder)
    if free is not None and free < needed:
        raise StorageError(
            f"{shown(folder)}: {what} needs {needed / 2**20:,.1f} MiB, and {free / 2**20:,.1f} MiB are free: free "
            "space there and go on with --resume (nothing of it was begun, and the checkpoints before are whole)"
        )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Explain what goes wrong with the disk in here, whichever library reports it, and however.

    Args:
        folder: that is written to.

    Raises:
        StorageError: a file cannot be written.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        of_disk = _behind(error, folder)
        if of_disk is None:
            raise
        raise storage_error(of_disk, folder) from error


def _behind(error: Exception, folder: Path) -> OSError | None:
    """The error of the disk behind another one: in its chain, in its words, or found by writing once more."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and is_of_the_disk(link):
            return link
        if found := re.search(r"\(os error (\d+)\)", str(link)):  # safetensors
            return OSError(int(found[1]), os.strerror(int(found[1])))
        link = link.__cause__ or link.__context__
    if not any(word in str(error) for word in _TORCH):
        return None
    probe = folder / f".{os.getpid()}.probe"
    try:  # torch reports no cause
        with probe.open("wb") as file:
            file.write(bytes(_PROBE))
            os.fsync(file.fileno())
    except OSError as found_now:
        return found_now
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
