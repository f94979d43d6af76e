"""Prepared folders: one process at a time, checksums, and who made the drawings."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from jestbench.data.iconify import IconSet

_LOG = logging.getLogger(__name__)

CHECKED_BYTES = 2**25
"""Files up to this size are compared with their checksum whenever the data are opened."""


def write_images(path: Path, raw: Path, rows: Sequence[int], pixels: int) -> None:
    """Copy these images of a file of pixels into an array file.

    Written, not memory-mapped: a full disk is then an error with a message, and not a killed process.
    """
    images = np.memmap(raw, dtype=np.uint8, mode="r").reshape(-1, pixels, pixels, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *images.shape[1:])}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), 4096):
            file.write(images[rows[start : start + 4096]].tobytes())


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock between processes; who has to wait for it says so."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _LOG.warning("another process is preparing icons in %s: waiting for it", path.parent)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def licences(sets: Iterable[tuple[IconSet, Mapping[str, Any]]], count: Mapping[str, int]) -> list[dict[str, Any]]:
    """Who made each set, and under which licence.

    Args:
        sets: each with its ``info.json``.
        count: of its icons that were kept.
    """
    return [
        {
            "set": icon_set.name,
            "version": icon_set.version,
            "title": info.get("name"),
            "author": info.get("author", {}).get("name"),
            "url": info.get("author", {}).get("url"),
            "licence": info.get("license", {}).get("title"),
            "spdx": info.get("license", {}).get("spdx"),
            "licence_url": info.get("license", {}).get("url"),
            "count": count.get(icon_set.name, 0),
        }
        for icon_set, info in sets
    ]


def is_complete(path: Path, bytes: int, blake2b: str) -> bool:
    """Whether a file has the size that the manifest gives and, where reading it costs nothing, the checksum."""
    if not path.is_file() or path.stat().st_size != bytes:
        return False
    return bytes > CHECKED_BYTES or file_hash(path) == blake2b


def file_hash(path: Path) -> str:
    """Checksum of a file (BLAKE2b, 16 bytes)."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, content: object) -> None:
    """Write a JSON file on one line."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=None), encoding="utf-8")
