"""Checkpoints written behind: a thread writes them from a copy of the state, while training goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from jestbench.parallel.distributed import World
from jestbench.parallel.stop import STOP
from jestbench.runs import checkpoint
from jestbench.runs.checkpoint import Place
from jestbench.runs.folder import RunFolder
from jestbench.storage import check_space, storage_error


def bytes_of(state: Any) -> int:
    """Bytes of all tensors in a state."""
    if isinstance(state, Tensor):
        return state.nbytes
    parts = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(bytes_of, parts))


def copied(state: Any) -> Any:
    """The same state (tensors, plain values, lists and dicts of these), with its tensors copied into main memory."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {name: copied(part) for name, part in state.items()}
    return type(state)(map(copied, state)) if isinstance(state, list | tuple) else state


class CheckpointWriter:
    """Writes the checkpoints of a run on rank 0, at most one at a time. Every rank makes the same calls.

    Args:
        run_dir: the run's folder.
        world: the processes of the run.
    """

    def __init__(self, run_dir: Path, world: World) -> None:
        self.run_dir, self.world = run_dir, world
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[object] | None = None  # on rank 0
        self._begun: Place | None = None

    @property
    def failed(self) -> bool:
        """Whether the writing of a checkpoint has ended with an error that was not raised yet; no collective call."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def begun(self, place: Place) -> bool:
        """Whether the checkpoint of a place was begun last."""
        return place == self._begun

    def write(self, place: Place, state: Any, fill: Callable[[Path, Any], None], behind: bool) -> Path:
        """Write the checkpoint of a place; return its folder.

        Args:
            state: tensors, plain values, lists and dicts of these; read on rank 0.
            fill: writes files of a state into the folder that it is given.
            behind: whether training goes on once the state is copied. At most one checkpoint is then being written: the
                next one waits for it.

        Raises:
            StorageError: this checkpoint, or the one before, cannot be written; the checkpoints before those are whole.
        """

        def begin() -> None:
            self._wait()
            self._check_disk(bytes_of(state))
            held = copied(state) if behind else state
            self._writing = self._thread.submit(
                checkpoint.write, self.run_dir, place, lambda folder: fill(folder, held)
            )
            if not behind:
                self._wait()

        with STOP.ending("after"):
            self.world.first(begin)
        self._begun = place
        return RunFolder(self.run_dir).checkpoints / place.name

    def settle(self) -> None:
        """Wait until the checkpoint that was begun last is whole.

        Raises:
            StorageError: it cannot be written.
        """
        with STOP.ending("after"):
            self.world.first(self._wait)

    def close(self) -> None:
        """End the thread of this process once it has written what it has begun; no collective call.

        Raises:
            StorageError: that cannot be written.
        """
        self._thread.shutdown()
        self._wait()

    def _wait(self) -> None:
        """Wait for the thread; its error is raised, once."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _check_disk(self, needed: int) -> None:
        """Look for the run's folder, and for space in it, before a checkpoint is begun.

        Raises:
            StorageError: the folder is gone (what is mounted there otherwise must not be written to), or it is full.
        """
        if not RunFolder(self.run_dir).metrics_jsonl.exists():
            raise storage_error(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.run_dir)))
        check_space(self.run_dir, needed, "the next checkpoint")
