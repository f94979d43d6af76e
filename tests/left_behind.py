"""What tests have left behind: processes, shared memory, temporary folders."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path

MARK = "JESTBENCH_TESTS"
OURS_TO_THE_END = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")
"""Helpers of Python that live as long as the process which has started them."""
SHARED = Path("/dev/shm")
THEIRS = ("torchelastic_*", "torchinductor_*", "*wandb-media", "*wandb-artifacts", "pymp-*", "pytest-of-*")
"""Folders that torchrun and torch's compiler never remove, that W&B and multiprocessing remove unless they are killed, and pytest's own."""


class Session:
    """What there was when the tests began; a folder of their own for temporary files, and a mark on their processes.

    Args:
        folder: for temporary files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark, self._began = folder, uuid.uuid4().hex, time.time()
        self._shared = set(self._shared_now())
        os.environ |= {MARK: self.mark, "TMPDIR": str(folder)}
        tempfile.tempdir = None

    @staticmethod
    def _shared_now() -> Iterator[str]:
        if SHARED.is_dir():
            yield from (path.name for path in SHARED.iterdir())

    def processes(self) -> list[str]:
        """Children of this process, and whatever descends from it, wherever that hangs now."""
        own, found = os.getpid(), []
        ours = Path(f"/proc/{own}/environ").read_bytes()
        mark = f"{MARK}={self.mark}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            try:
                state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
                environment, words = (path / "environ").read_bytes(), (path / "cmdline").read_bytes()
            except OSError:  # gone, or another user's
                continue
            orphan = environment == ours and int(parent) == 1 and path.stat().st_mtime >= self._began
            mine = int(parent) == own or mark in environment or orphan
            if mine and state != "Z" and int(path.name) != own and not any(name in words for name in OURS_TO_THE_END):
                found.append(f"process {path.name}: {words.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
        return found

    def shared_memory(self) -> list[str]:
        """Segments that were not there, and whose process (it stands in their names) is this one or is gone."""
        found = []
        for name in set(self._shared_now()) - self._shared:
            pid = next((part for part in name.replace("-", "_").split("_") if part.isdigit()), "")
            if name.startswith("torch_") and (int(pid or 0) == os.getpid() or not Path(f"/proc/{pid}").exists()):
                found.append(f"shared memory: {name}")
        return found

    def temporary(self) -> list[str]:
        """What lies in the folder for temporary files, but others' and what the end of this process removes."""
        at_the_end = {str(argument) for kept in weakref.finalize._registry.values() for argument in kept.args or ()}
        found = [path for path in self.folder.iterdir() if not any(path.match(pattern) for pattern in THEIRS)]
        return [f"temporary: {path}" for path in found if str(path) not in at_the_end]

    def left(self, patience: float = 5.0) -> list[str]:
        """All of these, once what is ending has had some time to end."""
        end = time.monotonic() + patience
        while (found := [*self.processes(), *self.shared_memory(), *self.temporary()]) and time.monotonic() < end:
            time.sleep(0.1)
        return found
