"""The check that no test leaves anything behind finds what is left."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from forked import Forked
from left_behind import SHARED, Session


def test_what_is_left_behind_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own session, a fork whose parent is gone, a segment, a folder; and nothing once they end."""
    for name in ("JESTBENCH_TESTS", "TMPDIR"):
        monkeypatch.setenv(name, os.environ[name])
    (tmp_path / "t").mkdir()
    session = Session(tmp_path / "t")
    try:
        assert not session.shared_memory() + session.temporary()
        sleeping = subprocess.Popen(["sleep", "30"], start_new_session=True)
        grandchild = tmp_path / "grandchild"

        def orphaned() -> int:
            pid = os.fork()
            if pid == 0:
                time.sleep(30)
                os._exit(0)
            grandchild.write_text(str(pid))
            return 0

        assert Forked(orphaned, tmp_path / "log").wait() == 0
        kept = Path(tempfile.mkdtemp())
        segment = SHARED / f"torch_{os.getpid()}_1_1"
        segment.touch()
        found = "\n".join(session.left(0.0))
        assert f"process {sleeping.pid}: sleep 30" in found
        assert f"process {grandchild.read_text()}: " in found
        assert f"temporary: {kept}" in found
        assert f"shared memory: {segment.name}" in found
        os.kill(int(grandchild.read_text()), 9)
        sleeping.kill()
        sleeping.wait()
        kept.rmdir()
        segment.unlink()
        assert not [line for line in session.left(2.0) if str(sleeping.pid) in line or "temporary" in line]
    finally:
        tempfile.tempdir = None
