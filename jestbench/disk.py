"""Files and names that outlive a process: whole files, content hashes, the user's cache folder, nearest names.

This module imports no torch: worker processes that render drawings import it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import platformdirs

LEFTOVERS = ".*.partial"
"""Pattern of the partial files that ``whole`` leaves in a folder when its process is killed."""


_ABOVE = Path(__file__).resolve().parents[1]
IS_CHECKOUT = (_ABOVE / "tools" / "run.py").is_file()
"""Whether the package lies in a checkout of the project; otherwise it is installed from a wheel."""
PROJECT = _ABOVE if IS_CHECKOUT else Path(__file__).resolve().parent
"""The folder that the shipped ``gin/…`` is found in, in a checkout and in an installed package alike."""


def command_words(name: str) -> tuple[str, ...]:
    """The words that start a command: ``python tools/NAME.py`` in a checkout, ``jestbench NAME`` from a wheel."""
    return ("python", f"tools/{name}.py") if IS_CHECKOUT else ("jestbench", name)


def command_name(name: str) -> str:
    """A command's name in its own help: ``NAME.py`` in a checkout, ``jestbench NAME`` from a wheel."""
    return f"{name}.py" if IS_CHECKOUT else f"jestbench {name}"


class DataError(Exception):
    """A data file, or another file, is wrong or missing; the message names the remedy."""

    exit_status: ClassVar[int] = 3


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside the target, and rename it to the target at the end.

    So the target is either complete or unchanged, whenever the process is killed. An error inside removes the
    temporary file or folder.

    Args:
        path: the target; a file is replaced, a folder must not exist. The parent folder must exist.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _remove(partial)
    try:
        yield partial
        partial.replace(path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a text file in UTF-8, whole or not at all.

    Args:
        path: the file.
        text: its content.
        errors: ``strict`` raises where UTF-8 cannot hold a character (half a surrogate pair), ``replace`` writes ``?``.
    """
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        ValueError: a number is not finite.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_all(descriptor: int, content: bytes, offset: int) -> None:
    """Write all bytes at an offset, in as many calls as it takes: one call may write a part (a disk that fills up).

    Raises:
        OSError: a write fails.
    """
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def hashed(content: bytes | str | Iterable[bytes], size: int = 8) -> bytes:
    """BLAKE2b hash of a text, of bytes or of an iterable of bytes, ``size`` bytes long."""
    if isinstance(content, str):
        content = content.encode()
    digest_of = hashlib.blake2b(digest_size=size)
    for piece in (content,) if isinstance(content, bytes) else content:
        digest_of.update(piece)
    return digest_of.digest()


def digest(content: bytes | str | Iterable[bytes], size: int = 8) -> str:
    """``hashed`` in hexadecimal digits, two for each of ``size`` bytes."""
    return hashed(content, size).hex()


def file_digest(path: Path) -> str:
    """A file's BLAKE2b hash, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return digest(iter(lambda: file.read(1 << 20), b""), 16)


def decoded(content: bytes) -> str:
    """UTF-8 text, without a byte-order mark.

    Raises:
        ValueError: the bytes are in another encoding, which the message names.
    """
    even, odd = any(content[:64:2]), any(content[1:64:2])
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(content) > 1 and even != odd):
        raise ValueError("it is UTF-16, not UTF-8: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        here = content[max(0, error.start - 20) : error.start + 20].decode("latin-1").strip()
        raise ValueError(f"it is not UTF-8 (as Latin-1 it reads {here!r}): save it as UTF-8") from None


def content_key(content: bytes) -> int:
    """A 64-bit content hash as a signed integer (the first 8 bytes of BLAKE2b)."""
    return int.from_bytes(hashed(content), "little", signed=True)


def key_text(key: int) -> str:
    """A content key as 16 hexadecimal digits."""
    return f"{int(key) % 2**64:016x}"  # numpy 2 has no 2**64 beside its own integers


def user_path(text: str | Path) -> Path:
    """The path that a user has written, ``~`` and ``~user`` for a home folder in it; an unknown user stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def cache_root() -> Path:
    """The user's cache folder of this project; the environment variable JESTBENCH_CACHE moves it."""
    moved = os.environ.get("JESTBENCH_CACHE")
    return user_path(moved) if moved else platformdirs.user_cache_path("jestbench")


def nearest(
    name: object, known: Iterable[str], form: str = "did you mean {!r}?", count: int = 1, cutoff: float = 0.6
) -> str:
    """A hint that lists the known names nearest to a name; empty where none is near.

    Args:
        name: the unknown name.
        known: names that exist.
        form: the hint, with ``{}`` for the names.
        count: most names that the hint lists.
        cutoff: least similarity of a listed name, in [0, 1].
    """
    near = difflib.get_close_matches(str(name), list(known), n=count, cutoff=cutoff)
    return form.format(", ".join(near)) if near else ""


def nearest_or_all(name: str, known: Iterable[str]) -> str:
    """A hint with the nearest known name, or with all known names where none is near."""
    known = sorted(known)
    every = f"there are: {', '.join(known)}" if known else "there is none"
    return nearest(name, known) or every


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; ``None`` where there is no file.

    Raises:
        DataError: the file cannot be read, or holds no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error}") from error
    except ValueError as error:
        raise DataError(f"{shown(path)}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{shown(path)}: not a JSON object")
    return found


def shown(path: Path) -> str:
    """Write a path for a reader: relative to the working directory where it lies inside."""
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
