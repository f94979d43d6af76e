"""Rendering of drawings to pixels, on all cores.

This module imports neither torch nor anything that imports torch: every worker process imports it anew.
"""

from __future__ import annotations

import io
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from jestbench.data.icons.icon_looks import LOOKS, Alike
from jestbench.data.spawned import spawned, usable_cores
from jestbench.disk import content_key, whole

PART_SECONDS = 1800.0
"""How long the next part is waited for, before its worker is taken to hang."""
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
_Arrays = Mapping[str, npt.NDArray[Any]]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Form:
    """How a drawing is rendered, and what is kept of it.

    Attributes:
        pixels: width and height at which it is rendered.
        halved: keep the image at half of that width and height; else unchanged.
        encoded: keep the full-size image as a PNG, too.
        alike: how drawings are compared: see :mod:`jestbench.data.icons.icon_looks`.
    """

    pixels: int = 64
    halved: bool = False
    encoded: bool = False
    alike: Alike = "pixels"


@dataclass(frozen=True)
class IconPart:
    """Rendered drawings of one file, without the blank ones (of one colour).

    Attributes:
        count: number of drawings, including the blank ones.
        which_N: int64, number of each image's drawing among all drawings of the part.
        key_NK: int64 ``[N, 2]``, content hash of the pixels, whole and as they are kept.
        look_NW: thumbnail or hash by which drawings are compared.
        size_N: int64, bytes of each PNG; 0 where none is kept.
    """

    count: int
    which_N: npt.NDArray[np.int64]
    key_NK: npt.NDArray[np.int64]
    look_NW: npt.NDArray[Any]
    size_N: npt.NDArray[np.int64]

    @classmethod
    def read(cls, path: Path) -> IconPart | None:
        """Read all but the pixels; ``None`` where the file is missing or damaged."""
        names = ("which", "key", "look", "size")
        return _held(path, lambda file: cls(int(file["count"]), *(file[name] for name in names)))

    @staticmethod
    def images(path: Path) -> npt.NDArray[np.uint8] | None:
        """The image of each; ``None`` where the file is damaged."""
        return _held(path, lambda file: file["images"])

    @staticmethod
    def pngs(path: Path) -> list[bytes] | None:
        """The PNG of each, empty without one; ``None`` where the file is damaged."""
        return _held(path, _pngs)


def _held(path: Path, take: Callable[[_Arrays], _T]) -> _T | None:
    """What is taken of a file's arrays; ``None`` where the file is missing or damaged."""
    try:
        with np.load(path) as file:
            return take(file)
    except _UNREADABLE:
        return None


def _pngs(file: _Arrays) -> list[bytes]:
    sizes, blob = file["size"], file["blob"].tobytes()
    ends = np.cumsum(sizes, dtype=np.int64)
    return [blob[end - size : end] for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)]


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
            # Fonts differ between machines, so drawings are rendered without fonts everywhere.
            png = resvg_py.svg_to_bytes(svg_string=drawing, background="white", skip_system_fonts=True)
        except ValueError:
            continue
        image[:] = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
    return images


def render_part(drawings: Sequence[str], form: Form, path: Path) -> int:
    """Render SVG texts into a file that :class:`IconPart` reads; it appears when it is complete.

    Returns:
        How many drawings.
    """
    images = render(drawings, form.pixels)
    which_N = np.flatnonzero((images != images[:, :1, :1]).any(axis=(1, 2, 3)))
    images = images[which_N]
    kept = halve(images) if form.halved else images
    pngs = [encode(image) if form.encoded else b"" for image in images]
    keys = [(content_key(image.tobytes()), content_key(one.tobytes())) for image, one in zip(images, kept, strict=True)]
    with whole(path) as part, part.open("wb") as file:
        np.savez(
            file,
            count=np.array(len(drawings)),
            which=which_N,
            key=np.array(keys, dtype=np.int64).reshape(-1, 2),
            look=LOOKS[form.alike].of(images),
            size=np.array([len(png) for png in pngs], dtype=np.int64),
            blob=np.frombuffer(b"".join(pngs), dtype=np.uint8),
            images=kept,
        )
    return len(drawings)


def render_parts(parts: Iterable[tuple[Path, Sequence[str]]], form: Form, total: int) -> None:
    """Render parts into files, several at a time, with a progress bar; parts that are there are passed over.

    Args:
        parts: the file and the drawings of each.
        form: what is kept of them.
        total: how many drawings there are in all, for the progress bar.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a worker died.
        OSError: a part cannot be written, or its worker hangs.
    """
    waiting: deque[Future[int]] = deque()
    with (
        tqdm(total=total, desc="rendering icons", unit="icon", disable=None) as progress,
        spawned(usable_cores()) as workers,
    ):
        try:
            for path, drawings in parts:
                if IconPart.read(path) is not None:
                    progress.update(len(drawings))
                    continue
                waiting.append(workers.submit(render_part, drawings, form, path))
                if len(waiting) > 4 * usable_cores():  # the texts of all drawings would fill the memory
                    progress.update(waiting.popleft().result(PART_SECONDS))
            while waiting:
                progress.update(waiting.popleft().result(PART_SECONDS))
        except FutureTimeout:
            for process in workers._processes.values():
                process.kill()
            raise OSError(f"no part of the icons was rendered in {PART_SECONDS / 60:g} min") from None
        finally:
            workers.shutdown(wait=True, cancel_futures=True)


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
