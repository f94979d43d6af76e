"""Decoding of image files: encoded bytes become RGB pixels, or raise with the reason why they are damaged."""

from __future__ import annotations

import io
import re
from contextlib import suppress
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from jestbench.data.damage import AS_TEXT, DECODE, Damaged

Damage = Literal["empty image", "no image", "too many pixels", "undecodable image", "unreadable file", "changed file"]
"""Why an image cannot be read or decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Image formats that are opened. No vector formats: Pillow hands those to Ghostscript."""

MAX_PIXELS = 2**26
"""Images of more pixels than this (8,192 × 8,192) are refused before any is decoded: one of 50,000 × 50,000
takes a few kilobytes on the disk and 7.5 GB in memory."""


DECODER = f"decoder 2, Pillow {PIL.__version__}"
"""Version of the pixels that ``decode`` makes of a file; incremented when they change, so that caches expire."""


class DamagedImage(Damaged):
    """An image cannot be read or decoded."""

    reason: Damage

    def __init__(self, reason: Damage, said: str = "", cause: str = "") -> None:
        super().__init__(reason, said, cause)


def _open(content: bytes, max_pixels: int) -> Image.Image:
    """The image as its header describes it; ``DamagedImage`` without a known one, or of too many pixels."""
    if not content:
        raise DamagedImage("empty image")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        count = "".join(re.findall(r"\d+", str(error))[:1])
        raise DamagedImage("too many pixels", f"{count or error}, more than {max_pixels}") from error
    except Exception as error:  # Pillow's readers raise any kind: struct.error, KeyError, SyntaxError …
        raise DamagedImage("no image", *_other_kind(content, error)) from error
    width, height = image.size
    if width * height > max_pixels:
        raise DamagedImage("too many pixels", f"{width} × {height}, more than {max_pixels}")
    return image


OTHER_KINDS = (
    (
        re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE),
        "an HTML page",
        "a download that failed",
    ),
    (re.compile(rb"\s*(<\?xml|<svg)"), "an SVG or XML file", "drawings are not read: render them first"),
    (re.compile(rb".{4}ftyp(hei|hev|mif1)", re.DOTALL), "a HEIC picture", "Pillow does not read it: save it as JPEG"),
    (re.compile(rb".{4}ftyp", re.DOTALL), "a video or an MP4 container", "take pictures out of it first"),
    (re.compile(rb"%PDF"), "a PDF file", "render it first"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "a JPEG XL picture", "Pillow does not read it: save it as JPEG"),
    (re.compile(rb"8BPS"), "a Photoshop file", "save it as PNG"),
    (re.compile(rb"\x93NUMPY"), "an array of NumPy", "save it as PNG: Image.fromarray(array)"),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS", "fetch the file: git lfs pull"),
    (re.compile(AS_TEXT.encode()), "a picture written as text", DECODE),
)
"""First bytes of files that are often found in place of images, what they are, and what to do."""


def _other_kind(content: bytes, error: Exception) -> tuple[str, str]:
    for pattern, what, remedy in OTHER_KINDS:
        if pattern.match(content[:256]):
            return what, remedy
    if isinstance(error, UnidentifiedImageError):
        return "of no kind that is read", f"{', '.join(FORMATS)} are"
    return f"{type(error).__name__}: {error}", ""


def probe(content: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height that the header gives, in pixels, without decoding.

    Raises:
        DamagedImage: what the header alone shows to be of no use.
    """
    return _open(content, max_pixels).size


def decode(content: bytes, size: int, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode an image, scale its shortest side to ``size`` (bicubic, antialiased) and crop the centre.

    The first frame of an animation; EXIF orientation applied; alpha over white; CMYK, palette and grey as RGB; of 16
    bits the upper 8. A JPEG more than four times as large as asked for is decoded at the reduced scale that its
    format offers and is at least twice ``size``.

    Args:
        content: the file's bytes.
        size: width and height of the result, in pixels.
        max_pixels: of the encoded image; more are refused by the header.

    Returns:
        uint8 ``[size, size, 3]``.

    Raises:
        DamagedImage: it cannot be decoded.
    """
    image = _open(content, max_pixels)
    try:
        image.draft(None, (2 * size, 2 * size))
        image.load()
        image = _without_key(image, content)
        with suppress(Exception):  # EXIF that cannot be read says nothing
            ImageOps.exif_transpose(image, in_place=True)
        return squared(image, size)
    except MemoryError:
        raise
    except Exception as error:
        raise DamagedImage("undecodable image", f"{type(error).__name__}: {error}") from error


def squared(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """The centre of a picture as RGB, its shortest side scaled to ``size``: uint8 ``[size, size, 3]``."""
    image = _rgb(image)
    width, height = image.size
    if width == height == size:
        return np.array(image, dtype=np.uint8)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    # The box crops first, so that a picture of 1 × 60,000 px is not scaled up as a whole.
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.array(square, dtype=np.uint8)


def _without_key(image: Image.Image, content: bytes) -> Image.Image:
    """A grey or RGB PNG with the pixels of its key colour (tRNS) white; any other image as it is.

    The key has the depth of the file, and Pillow would compare it with pixels brought to 8 bits.
    """
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or image.mode == "P" or isinstance(key, bytes):
        return image
    depth, pixels = content[24], np.asarray(image)
    if image.mode == "RGB" and depth == 16:
        lower = _open(content, MAX_PIXELS)
        assert isinstance(lower, ImageFile.ImageFile)
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]  # of each 16 bits the lower 8
        lower.load()
        pixels = pixels.astype(np.int64) << 8 | np.asarray(lower)
    elif image.mode == "1":
        pixels = pixels.astype(np.int64) * 255  # as Pillow's key is
    elif depth < 8:
        key = key % 2**depth * 255 // (2**depth - 1)
    clear = (pixels == np.asarray(key)).all(-1) if image.mode == "RGB" else pixels == key
    exif = image.getexif().tobytes()
    del image.info["transparency"]
    image = Image.fromarray(np.where(clear[..., None], np.uint8(255), np.asarray(_rgb(image))))
    image.info["exif"] = exif
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    if image.mode.startswith("I"):  # Pillow's own conversion cuts at 255 instead of scaling
        grey = np.asarray(image).astype(np.int64).clip(0, 2**16 - 1) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    return image if image.mode == "RGB" else image.convert("RGB")
