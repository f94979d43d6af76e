"""Micro-batches on their way to the device: one is brought while the one before it is computed with.

Images go from page-locked memory through a side stream into one of two buffers on the device, in turns, so that any
number of micro-batches takes the memory of two. Nothing here makes the host wait for the device, but for images of
pageable memory: no more than two micro-batches of them are page-locked at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from jestbench.batch import Batch
from jestbench.parallel.arithmetic import to_device


def on_device(
    pieces: Sequence[Batch], device: torch.device, tokenizer: str | None, *, keys: bool = False, slots: int = 2
) -> Iterator[Batch]:
    """Each piece with its images and token ids on the device; valid until the next one is asked for.

    Args:
        pieces: pairs in host memory; images that lie on the device already are not copied.
        device: of the models; on a CPU the pieces are returned as they are.
        tokenizer: whose token ids are brought; ``None`` for an image tower alone.
        keys: whether the images' keys are brought, too.
        slots: pieces whose images stay valid at once: 2, or all of them where a backward pass comes after the last.
    """
    if device.type != "cuda":
        yield from pieces
    elif len(pieces) < 2 or pieces[0].images_BCHW.is_cuda:
        yield from (_brought(piece, to_device(piece.images_BCHW, device), device, tokenizer, keys) for piece in pieces)
    else:
        yield from _in_turns(pieces, device, tokenizer, keys, slots)


def _in_turns(
    pieces: Sequence[Batch], device: torch.device, tokenizer: str | None, keys: bool, slots: int
) -> Iterator[Batch]:
    main, side = torch.cuda.current_stream(device), _side_stream(device)
    turns = [_Slot() for _ in range(min(slots, len(pieces)))]

    def bring(position: int) -> Batch:
        piece, slot = pieces[position], turns[position % len(turns)]
        images = slot.ready_for(piece.images_BCHW, device, main, side)
        with torch.cuda.stream(side):
            if slot.used is not None:
                side.wait_event(slot.used)
            there = _brought(piece, slot.filled(images), device, tokenizer, keys)
            slot.copied = side.record_event()
        return there

    try:
        coming = bring(0)
        for position in range(len(pieces)):
            here, slot = coming, turns[position % len(turns)]
            if position + 1 < len(pieces):
                coming = bring(position + 1)
            assert slot.copied is not None
            main.wait_event(slot.copied)
            # Made on the side stream, used on the main one: not to be given to others before the main one is through.
            for tensor in (*here.token_ids.values(), *([here.image_key_B] if keys else [])):
                tensor.record_stream(main)
            yield here
            slot.used = main.record_event()
    finally:
        main.wait_stream(side)  # the buffers go back to the main stream's memory


@dataclass
class _Slot:
    """Device memory for the images of one micro-batch.

    Attributes:
        buffer: the memory, made for the first piece; pieces after it are no larger.
        copied: after the last copy into it.
        used: after the last computation that reads it.
    """

    buffer: Tensor | None = None
    copied: torch.cuda.Event | None = None
    used: torch.cuda.Event | None = None

    def ready_for(
        self, images: Tensor, device: torch.device, main: torch.cuda.Stream, side: torch.cuda.Stream
    ) -> Tensor:
        """The images in page-locked memory, with room for them on the device."""
        if not images.is_pinned():
            if self.copied is not None:
                self.copied.synchronize()
            images = images.pin_memory()
        held = self.buffer
        if held is None or held.shape[1:] != images.shape[1:] or len(held) < len(images):
            # In the layout of the images, or the copy would go through another one.
            self.buffer = torch.empty_like(images, device=device)
            side.wait_stream(main)  # the main stream may still use what lay there
        return images

    def filled(self, images: Tensor) -> Tensor:
        """The images on the device."""
        assert self.buffer is not None
        return self.buffer[: len(images)].copy_(images, non_blocking=True)


def _brought(piece: Batch, images: Tensor, device: torch.device, tokenizer: str | None, keys: bool) -> Batch:
    """A piece with these images, and with what else a tower reads on the device."""
    ids = {} if tokenizer is None else {tokenizer: to_device(piece.tokens(tokenizer), device)}
    key_B = to_device(piece.image_key_B, device) if keys else piece.image_key_B
    return replace(piece, images_BCHW=images, token_ids=ids, image_key_B=key_B)


@lru_cache(maxsize=8)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
