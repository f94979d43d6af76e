"""Drawings to pixels, on all cores.

This module imports neither torch nor anything that does: every worker process imports it anew.
"""

from __future__ import annotations

import io
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from jestbench.data.spawned import spawned, usable_cores
from jestbench.disk import content_key, whole

CHUNK = 250
"""Drawings handed to a worker at a time: a quarter of a second of work, 3 MB of pixels at 64 px."""

THUMBNAIL = 16
"""Width and height of the grey thumbnails by which copies are known."""


def render(drawings: Sequence[str], pixels: int) -> npt.NDArray[np.uint8]:
    """Render SVG texts over white.

    A drawing that cannot be rendered comes out white, like one with nothing in it.

    Args:
        drawings: SVG texts, whose width and height are ``pixels``.
        pixels: width and height of the images.

    Returns:
        uint8 images ``[N, pixels, pixels, 3]``.
    """
    import resvg_py
    from PIL import Image

    images = np.full((len(drawings), pixels, pixels, 3), 255, dtype=np.uint8)
    for image, drawing in zip(images, drawings, strict=True):
        try:
            # Fonts differ between machines: a drawing that needs one does without, everywhere.
            png = resvg_py.svg_to_bytes(svg_string=drawing, background="white", skip_system_fonts=True)
        except ValueError:
            continue
        image[:] = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
    return images


def render_all(drawings: Sequence[str], pixels: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Render many drawings, in order, a chunk at a time, with a progress bar.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a worker died.
    """
    chunks = [drawings[start : start + CHUNK] for start in range(0, len(drawings), CHUNK)]
    work = partial(render, pixels=pixels)
    with tqdm(total=len(drawings), desc="rendering icons", unit="icon", disable=None) as progress:
        if len(chunks) <= 1:
            yield from map(work, chunks)
            return
        with spawned(min(usable_cores(), len(chunks))) as workers:
            for images in workers.map(work, chunks):
                progress.update(len(images))
                yield images


@dataclass(frozen=True)
class Part:
    """Rendered drawings as they lie in one file, those that came out blank (of one colour) among them.

    Attributes:
        path: the file.
        size_N: int64, bytes of each drawing's PNG; 0 where it is blank.
        key_NK: int64 ``[N, 2]``, content hash of the pixels, whole and halved.
        thumbnail_ND: uint8, small grey images.
    """

    path: Path
    size_N: npt.NDArray[np.int64]
    key_NK: npt.NDArray[np.int64]
    thumbnail_ND: npt.NDArray[np.uint8]

    @classmethod
    def read(cls, path: Path) -> Part | None:
        """Read all but the pixels; ``None`` where the file is missing or damaged."""
        try:
            with np.load(path) as file:
                return cls(path, file["size"], file["key"], file["thumbnail"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    @staticmethod
    def pixels(path: Path) -> tuple[list[bytes], list[npt.NDArray[np.uint8]]] | None:
        """The PNG of each drawing and, as an array, its image at half the width and height; empty where it is blank.

        ``None`` where the file is damaged.
        """
        try:
            with np.load(path) as file:
                size_N, blob, halved = file["size"], file["blob"].tobytes(), iter(file["halved"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        ends, nothing = np.cumsum(size_N).tolist(), np.empty((0, 0, 3), dtype=np.uint8)
        sizes = size_N.tolist()
        pngs = [blob[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        return pngs, [next(halved) if size else nothing for size in sizes]


def render_part(drawings: Sequence[str], pixels: int, path: Path) -> int:
    """Render SVG texts into a file that :class:`Part` reads; it appears when it is complete.

    Returns:
        How many drawings.
    """
    images = render(drawings, pixels)
    drawn = (images != images[:, :1, :1]).any(axis=(1, 2, 3))
    pngs = [encode(image) if kept else b"" for image, kept in zip(images, drawn, strict=True)]
    small = halve(images)
    keys = [(content_key(one.tobytes()), content_key(half.tobytes())) for one, half in zip(images, small, strict=True)]
    with whole(path) as part, part.open("wb") as file:
        np.savez(
            file,
            size=np.array([len(png) for png in pngs], dtype=np.int64),
            key=np.array(keys, dtype=np.int64).reshape(-1, 2),
            thumbnail=np.rint(thumbnail(images) * 255).astype(np.uint8),
            blob=np.frombuffer(b"".join(pngs), dtype=np.uint8),
            halved=small[drawn],
        )
    return len(drawings)


def encode(image_HWC: npt.NDArray[np.uint8]) -> bytes:
    """A PNG with the very pixels of an RGB image; grey ones are written as grey, which is read twice as fast."""
    from PIL import Image

    grey = bool((image_HWC == image_HWC[..., :1]).all())
    file = io.BytesIO()
    Image.fromarray(image_HWC[..., 0] if grey else image_HWC).save(file, "png", compress_level=6)
    return file.getvalue()


def halve(images_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Images of half the width and height: means of 2 × 2 pixels, rounded."""
    count, height, width, channels = images_NHWC.shape
    blocks = images_NHWC.reshape(count, height // 2, 2, width // 2, 2, channels)
    small: npt.NDArray[np.uint8] = ((blocks.sum(axis=(2, 4), dtype=np.uint16) + 2) // 4).astype(np.uint8)
    return small


def thumbnail(images_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Small grey images in [0, 1], flattened: float32 ``[N, D]``."""
    count, size = images_NHWC.shape[:2]
    step = size // THUMBNAIL
    grey = images_NHWC[..., : step * THUMBNAIL, : step * THUMBNAIL, :].mean(axis=-1, dtype=np.float32) / 255
    blocks = grey.reshape(count, THUMBNAIL, step, THUMBNAIL, step).mean(axis=(2, 4))
    small: npt.NDArray[np.float32] = blocks.reshape(count, THUMBNAIL**2)
    return small


def render_parts(parts: Iterable[tuple[Path, Sequence[str]]], pixels: int, total: int) -> None:
    """Render parts into files, several at a time, with a progress bar; parts that are there are passed over.

    Args:
        parts: the file and the drawings of each.
        pixels: width and height of the images.
        total: how many drawings there are in all, for the progress bar.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a worker died.
        OSError: a part cannot be written.
    """
    waiting: deque[Future[int]] = deque()
    with (
        tqdm(total=total, desc="rendering icons", unit="icon", disable=None) as progress,
        spawned(usable_cores()) as workers,
    ):
        try:
            for path, drawings in parts:
                if Part.read(path) is not None:
                    progress.update(len(drawings))
                    continue
                waiting.append(workers.submit(render_part, drawings, pixels, path))
                if len(waiting) > 4 * usable_cores():  # the texts of all drawings would fill the memory
                    progress.update(waiting.popleft().result())
            while waiting:
                progress.update(waiting.popleft().result())
        finally:
            workers.shutdown(wait=True, cancel_futures=True)
