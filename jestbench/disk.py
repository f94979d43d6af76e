"""Files and names that outlive a process: atomic writes, content hashes, the user's cache folder, nearest names."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import platformdirs


class DataError(Exception):
    """Data, or another file, is wrong or missing; the message names what to do (exit status 3)."""


def content_key(content: bytes) -> int:
    """A 64-bit content hash as a signed integer (the first 8 bytes of BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def cache_root() -> Path:
    """The user's cache folder of this project; the environment variable JESTBENCH_CACHE moves it."""
    moved = os.environ.get("JESTBENCH_CACHE")
    return Path(moved).expanduser() if moved else platformdirs.user_cache_path("jestbench")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest known name, or all of them where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are: {', '.join(known)}" if known else "there is none"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)
