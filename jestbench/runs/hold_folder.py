"""One writer a run folder: a lock that the kernel keeps, and that goes with the process that holds it."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jestbench.batch import DataError
from jestbench.config.run import ConfigError
from jestbench.disk import read_object, write_json
from jestbench.runs.folder import RunFolder
from jestbench.storage import storage_error

LOCK, HOLDER = ".lock", ".holder.json"
KEPT = frozenset({LOCK, HOLDER})
"""Files that holding a folder leaves in it."""
DYING_SECONDS = 30.0
"""How long the lock of a process that is gone is waited for: its workers may still be ending."""


class RunFolderError(ConfigError):
    """The run folder cannot be used as asked; nothing in it was changed."""


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Hold a run folder, which is made where there is none, for this process alone.

    Raises:
        RunFolderError: another process is at work in it, or it cannot be made or written to.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run_dir / LOCK, timeout=0)
        _acquire(lock, run_dir)
        write_json(run_dir / HOLDER, _self())
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTDIR):
            raise storage_error(error, run_dir) from error
        raise RunFolderError(f"{run_dir} cannot be a run folder: {error}: choose another --run_dir") from error
    try:
        yield
    finally:
        (run_dir / HOLDER).unlink(missing_ok=True)
        if not RunFolder(run_dir).is_run_folder():  # a folder of somebody else's: as it was
            (run_dir / LOCK).unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, run_dir: Path) -> None:
    end = time.monotonic() + DYING_SECONDS
    while True:
        try:
            lock.acquire()
            return
        except Timeout:
            holder = _holder(run_dir)
            if _lives(holder) or time.monotonic() > end:
                who = "process {process} on {machine}, since {since}".format(**holder) if holder else "another process"
                # Where a disk keeps no locks, a file is the lock, and stays where its machine has died.
                foreign = holder and holder["machine"] != socket.gethostname()
                freed = f" (or, if that machine has died, remove {run_dir / LOCK})" if foreign else ""
                raise RunFolderError(
                    f"{run_dir} is in use by {who}: wait until it has ended{freed}, or choose another --run_dir"
                ) from None
            time.sleep(0.1)


def _self() -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"process": os.getpid(), "machine": socket.gethostname(), "since": since}


def _holder(run_dir: Path) -> dict[str, Any]:
    """The process that holds a folder; empty where that cannot be read."""
    try:
        found = read_object(run_dir / HOLDER) or {}
    except DataError:
        return {}
    return found if _self().keys() <= found.keys() else {}


def _lives(holder: dict[str, Any]) -> bool:
    """Whether a holder is not known to be gone: of a process on another machine nothing is known."""
    if not holder or holder["machine"] != socket.gethostname():
        return bool(holder)
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
