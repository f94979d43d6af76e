"""Drawings to pixels, on all cores.

This module imports neither torch nor the rest of the project: every worker process imports it anew.
"""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

CHUNK = 250
"""Drawings handed to a worker at a time: a quarter of a second of work, 3 MB of pixels at 64 px."""


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
        # Spawned, not forked: a fork of a process in which torch has started threads can hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(_cores(), len(chunks)), mp_context=context) as workers:
            for images in workers.map(work, chunks):
                progress.update(len(images))
                yield images


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
