"""Content hashes: stable across runs and machines.

This module imports nothing heavy: worker processes that render or decode import it anew.
"""

from __future__ import annotations

import hashlib


def content_key(content: bytes) -> int:
    """A 64-bit content hash as a signed integer (the first 8 bytes of BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
