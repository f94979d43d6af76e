"""Paths on a page that is passed on: names of runs and relative links, never where somebody's files lie."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jestbench.disk import command_words, shown
from jestbench.runs.folder import RunFolder

_START = r"(?:file:/+|~[\w-]*/|/(?=[^\s/])|[A-Za-z]:[\\/])"
_QUOTED = re.compile(rf"""(['"])({_START}[^'"\n]*)\1""")
_BARE = re.compile(rf"""(?<![\w./<~…*-])(?<!&lt;){_START}[^\s'"`<>|,;:()\[\]]*""")
_SHARED = ("home", "Users", "Documents and Settings")
"""Folders whose folders are named after people."""


def relative(path: Path, start: Path) -> str:
    """Write a path relative to a folder, with forward slashes."""
    try:
        return Path(os.path.relpath(path, start.resolve())).as_posix()
    except ValueError:
        # On Windows there is no relative path from one drive to another.
        return path.as_posix()


def link(path: Path, page: Path) -> str | None:
    """A link from a page's folder; ``None`` where it would lead through the root or through somebody's home folder."""
    found = relative(path, page)
    climbs = found.split("/").count("..")
    above = page.resolve().parents
    common = page.resolve() if climbs == 0 else above[climbs - 1] if climbs <= len(above) else Path("/")
    through_home = common != Path.home() and common in Path.home().parents and path.is_relative_to(Path.home())
    if Path(found).is_absolute() or common == Path(common.anchor) or common.name in _SHARED or through_home:
        return None
    return None if set(_SHARED) & set(found.split("/")) else quote(found)


def run_again(folder: Path) -> str:
    """The command that starts a run once more, from its operative configuration."""
    inside = shown(folder)
    place = folder.name if Path(inside).is_absolute() else inside
    file = RunFolder(Path(place)).operative_gin.as_posix()
    return shlex.join([*command_words("run"), "--gin_file", file])


def portable(command: str) -> str:
    """A command with the paths that lie inside the working directory relative to it, and of others the name alone."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    # A shortened path is for readers, and needs no quotes against a shell.
    return " ".join(_name(shown(Path(word))) if Path(word).is_absolute() else shlex.quote(word) for word in words)


def scrubber(folders: Iterable[Path]) -> Callable[[Any], Any]:
    """A function that shortens every absolute path in texts, and in mappings and lists of them, to its name.

    Paths of the known ``folders`` are found even where they hold spaces.
    """
    known = {str(path): f"…/{path.name}" for path in folders if path.is_absolute() and len(path.parts) > 1}
    above = {str(path.parent): "…" for path in map(Path, known) if len(path.parts) > 2}
    names = above | {str(Path.home()): "~", str(Path.cwd()): "."} | known
    ordered = sorted((name for name in names if len(Path(name).parts) > 1), key=len, reverse=True)
    exact = re.compile("|".join(rf"{re.escape(name)}(?![\w-])" for name in ordered)) if ordered else None

    def scrub(value: Any) -> Any:
        if type(value) is str:
            text = exact.sub(lambda found: names[found[0]], value) if exact else value
            text = _QUOTED.sub(lambda found: f"{found[1]}{_name(found[2])}{found[1]}", text)
            return _BARE.sub(lambda found: _name(found[0]), text)
        if isinstance(value, dict):
            return {scrub(key): scrub(part) for key, part in value.items()}
        return [scrub(part) for part in value] if isinstance(value, list | tuple) else value

    return scrub


def _name(path: str) -> str:
    name = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    absolute = re.match(_START, path)
    return f"…/{name}" if absolute else path
