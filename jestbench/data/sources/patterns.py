"""Patterns of paths and URLs, as a user binds them."""

from __future__ import annotations

import re
from pathlib import Path


def is_url(path: str) -> bool:
    """Whether a path is a URL, or a command whose output is read."""
    return re.match(r"(pipe|file):|[a-z][a-z0-9+]*://", path) is not None


def globbed(pattern: str) -> list[Path] | None:
    """Files of a glob, sorted; ``None`` where the pattern is not a glob."""
    path = Path(pattern).expanduser()
    if not any(mark in pattern for mark in "*?["):
        return None
    base = Path(path.anchor) if path.is_absolute() else Path()
    return sorted(base.glob(str(path.relative_to(path.anchor))))
