"""The output of a command that webdataset has started for a shard, read with a limit on its silence."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from jestbench.batch import DataError

ENDING_SECONDS = 1.0
"""How long a command may go on once nobody reads its output; then it is killed."""


class CommandOutput(io.RawIOBase):
    """What a command writes, as a file to read.

    Args:
        pipe: webdataset's ``Pipe``, of which nothing has been read.
        url: the shard, for messages.
        patience: seconds without a byte after which the command is given up.
    """

    def __init__(self, pipe: Any, url: str, patience: float) -> None:
        self._pipe, self._url, self._patience = pipe, url, patience
        self._ready = select.poll()
        self._ready.register(pipe.stream, select.POLLIN)

    def readable(self) -> bool:
        """Whether the output can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; 0 at the end.

        Raises:
            DataError: the command has been silent for too long.
            OSError: the command has failed.
        """
        if not self._ready.poll(1000 * self._patience):
            _kill(self._pipe.proc.pid)
            raise DataError(
                f"{self._url} gave no byte for {self._patience:g} s: mend the command or the server, or raise "
                "stream.patience if its storage is that slow"
            )
        count = os.readv(self._pipe.stream.fileno(), [buffer])
        if not count and (status := self._status(self._patience)) not in self._pipe.ignore_status:
            raise OSError(f"the command ended with status {status}")
        return count

    def close(self) -> None:
        """Close the output, and end the command if it does not end by itself."""
        if not self.closed:
            self._pipe.stream.close()
            # With a status webdataset's own wait, of two hours, has nothing left to wait for.
            self._pipe.status = self._status(ENDING_SECONDS)
        super().close()

    def _status(self, seconds: float) -> int:
        """The command's exit status, once it has ended; it is killed if it takes longer."""
        try:
            return int(self._pipe.proc.wait(seconds))
        except subprocess.TimeoutExpired:
            _kill(self._pipe.proc.pid)
            return int(self._pipe.proc.wait(ENDING_SECONDS))


def _kill(process: int) -> None:
    """Kill a shell and what it has started: a pipeline goes on without its shell."""
    with suppress(OSError):
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            for child in task.read_text().split():
                _kill(int(child))
        os.kill(process, signal.SIGKILL)
