"""The shared cache of a frozen model: what its rows depend on, and where they lie.

What is charged never depends on it: see ``jestbench.engine.frozen``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from jestbench.batch import View
from jestbench.data.pairs import Pairs
from jestbench.disk import cache_root, digest, hashed, user_path, write_json
from jestbench.engine.rows import Stored
from jestbench.engine.shared_rows import SharedRows
from jestbench.model.encoders import Encoders
from jestbench.parallel.arithmetic import Arithmetic

FORMAT = 1
"""Counted up when the same model, view and input give other rows, so that cached ones are computed anew."""

BLOCK = {"cpu": 64, "cuda": 256}
"""Examples in one forward pass that fills a shared cache, by device type. The number is fixed (a short last block is
padded): the last bit of an embedding must not depend on how many other rows a run happened to lack."""

Mode = Literal["shared", "off"]


@dataclass(frozen=True)
class Cache:
    """Whether the frozen models' embeddings and per-pair scores outlive the run.

    Attributes:
        mode: ``shared`` reads and fills files that all runs share; ``off`` keeps rows for the run alone.
        dtype: of the stored embeddings, ``float32`` or ``float16`` (half the size). Embeddings are rounded to it
            whether they come from the cache or not, so ``float16`` makes another arm.
        folder: where the files lie; the default is ``embeddings`` in the cache folder.
    """

    mode: Mode = "shared"
    dtype: Stored = "float32"
    folder: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("mode", ("shared", "off")), ("dtype", ("float32", "float16"))):
            if getattr(self, name) not in known:
                raise ValueError(f"cache.{name} is one of {', '.join(known)}, got {getattr(self, name)!r}")

    def bind(self, model: Encoders, view: View, arithmetic: Arithmetic, pairs: Pairs, microbatch: int) -> Bound:
        """The cache of one frozen model under one view and one preprocessing.

        Raises:
            ValueError: the images are augmented, so that a key does not determine the model's input.
        """
        if self.mode == "off":
            return Bound(self.dtype)
        if pairs.augmented:
            raise ValueError(
                'cache.mode = "shared" would keep embeddings of augmented images: give the reference plain '
                'images, or set cache.mode = "off"'
            )
        block = min(microbatch, BLOCK.get(arithmetic.device.type, BLOCK["cuda"]))
        described = {
            "format": FORMAT,
            "model": fingerprint(model),
            "view": asdict(view),
            "tokenizer": model.tokenizer,
            "text_length": model.text_length,
            "preprocessing": pairs.preprocessing,
            "device": arithmetic.device.type,
            "bf16": arithmetic.bf16,
            **({"fp64": True} if arithmetic.fp64 else {}),
            "block": block,
            "dtype": self.dtype,
            "versions": {name: version(name) for name in ("torch", *model.libraries)},
        }
        identity = hashed(json.dumps(described, sort_keys=True), 32)
        root = cache_root() / "embeddings" if self.folder is None else user_path(self.folder)
        return Bound(self.dtype, block, root / identity.hex()[:16], identity, described)


@dataclass(frozen=True)
class Bound:
    """The cache of one frozen model under one view and one preprocessing.

    Attributes:
        dtype: type that embeddings are rounded to.
        block: examples in one forward pass; ``None`` for the run's micro-batch.
        folder: of the shared files; ``None`` where no row outlives the run.
        digest: of ``described``, 32 bytes.
        described: all that the rows depend on besides their keys.
    """

    dtype: Stored = "float32"
    block: int | None = None
    folder: Path | None = None
    digest: bytes = b""
    described: Mapping[str, Any] | None = None

    def shared(self, name: str, width: int, dtype: Stored) -> SharedRows:
        """The shared rows of that name."""
        assert self.folder is not None
        identity = hashed(self.digest + f"{name}/{width}/{dtype}".encode(), 32)
        return SharedRows(self.folder / f"{name}.rows", width, dtype, identity)

    def describe(self) -> None:
        """Write ``about.json`` into the folder, for readers; a failed write is ignored."""
        if self.folder is None or (self.folder / "about.json").exists():
            return
        try:
            write_json(self.folder / "about.json", self.described or {})
        except OSError:
            return


def fingerprint(model: Encoders) -> str:
    """Hash of a model's weights and of what its modules are (class, and plain attributes such as heads)."""

    def pieces() -> Iterator[bytes]:
        for name, module in model.named_modules():
            plain = {key: value for key, value in vars(module).items() if _is_plain(value) and key != "training"}
            yield f"{name} {type(module).__qualname__} {sorted(plain.items())!r}\n".encode()
        # Once each, where two encoders share what a library keeps in one module.
        for name, value in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
            yield f"{name} {value.dtype} {tuple(value.shape)}\n".encode()
            yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()

    return digest(pieces(), 16)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(part) for part in value)
    return isinstance(value, str | int | float | bool | None)
