"""Where things lie that outlive a run."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_root() -> Path:
    """The user's cache folder of this project; the environment variable JESTBENCH_CACHE moves it."""
    moved = os.environ.get("JESTBENCH_CACHE")
    return Path(moved).expanduser() if moved else platformdirs.user_cache_path("jestbench")
