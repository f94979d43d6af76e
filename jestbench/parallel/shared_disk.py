"""Whether all processes of a run, on one machine or several, see the same files."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path

from jestbench.disk import DataError, digest
from jestbench.parallel.distributed import World

SEEN_SECONDS = 5.0
"""How long a file that rank 0 has written is looked for elsewhere: network disks show it a little later."""


def check_shared(path: Path, world: World, what: str) -> None:
    """Refuse to go on where a process does not see a file as rank 0 does; every process refuses.

    Args:
        path: of the file, which rank 0 has written and closed.
        world: the processes.
        what: the file belongs to, for the message: ``the run folder``.

    Raises:
        DataError: a process finds no file there, or another one.
    """
    if world.size == 1:
        return
    wanted = world.first(lambda: digest(path.read_bytes()))
    blind = [machine for machine, seen in world.everybodys((socket.gethostname(), _holds(path, wanted))) if not seen]
    if blind:
        where = ", ".join(sorted(set(blind)))
        raise DataError(
            f"{what} {path.parent} is not seen by {len(blind)} of {world.size} processes (on {where}): "
            "run folder and cache (JESTBENCH_CACHE) of a run on several machines lie on a disk that all of them share"
        )


def _holds(path: Path, wanted: str) -> bool:
    """Whether a file of this content is there, or comes soon."""
    end = time.monotonic() + SEEN_SECONDS
    while True:
        with suppress(OSError):
            if digest(path.read_bytes()) == wanted:
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
