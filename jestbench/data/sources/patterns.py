"""Patterns of paths and URLs, as a user binds them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from jestbench.disk import user_path


def is_url(path: str) -> bool:
    """Whether a path is a URL of another place than this disk, or a command whose output is read."""
    return re.match(r"pipe:|(?!file:)[a-z][a-z0-9+]*://", path) is not None


def local_path(text: str) -> Path:
    """The path on this disk that a user has written: a plain one, one below ``~``, or that of a ``file:`` URL."""
    if scheme := re.match(r"file:(//(localhost(?=/))?)?", text):
        text = unquote(text[scheme.end() :])
    return user_path(text)


def globbed(pattern: str) -> list[Path] | None:
    """Files of a glob, sorted; ``None`` where the pattern is not a glob, or a file has that very name."""
    path = local_path(pattern)
    if not any(mark in pattern for mark in "*?[") or path.exists():
        return None
    base = Path(path.anchor) if path.is_absolute() else Path()
    return sorted(base.glob(str(path.relative_to(path.anchor))))
