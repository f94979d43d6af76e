"""A split of a data set: pairs that can be asked for by position."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jestbench.batch import Batch, DataError
from jestbench.disk import content_key
from jestbench.model.tokenizer import Tokenizer


class Pairs(Protocol):
    """An indexed split: its size, keys and captions are known before any image is decoded.

    A split may say more about itself: ``drawn``, ``expanded``, ``attempt``, ``mended``, ``max_damaged``, ``decoded``,
    ``augmented``, ``preprocessing``, ``facts``. The functions of these names in this module ask for it, and know what
    holds for a split that says nothing.

    Attributes:
        name: of the split, for messages.
        fingerprint: hash of everything that the pairs depend on (content, captions, noise, preprocessing).
        tokenizer: makes the token ids.
        image_key_N: int64 content hash of each image.
        text_key_N: int64 content hash of each caption.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def tokenizer(self) -> Tokenizer: ...  # noqa: D102
    @property
    def image_key_N(self) -> npt.NDArray[np.int64]: ...  # noqa: D102
    @property
    def text_key_N(self) -> Tensor: ...  # noqa: D102

    def __len__(self) -> int: ...

    def batch(self, index_B: Tensor) -> Batch:
        """The pairs at these positions, read, decoded and ready for a model."""
        ...


def drawn(pairs: Pairs, seed: int, epoch: int) -> Pairs:
    """The split as it stands in an epoch: with one of several captions drawn for each image, where it has several."""
    draw: Callable[[int, int], Pairs] | None = getattr(pairs, "drawn", None)
    return pairs if draw is None else draw(seed, epoch)


def expanded(pairs: Pairs) -> Pairs:
    """The split in which each of several captions of an image is a pair of its own."""
    expand: Callable[[], Pairs] | None = getattr(pairs, "expanded", None)
    return pairs if expand is None else expand()


def attempt(pairs: Pairs, index_B: Tensor) -> tuple[Batch, Mapping[int, Any]]:
    """Pairs whose damaged ones are not replaced yet, and what is damaged, by its place in the batch."""
    tried: Callable[[Tensor], tuple[Batch, Mapping[int, Any]]] | None = getattr(pairs, "attempt", None)
    return (pairs.batch(index_B), {}) if tried is None else tried(index_B)


def mended(pairs: Pairs, batch: Batch, damaged: Mapping[int, Any], index_B: Tensor) -> Batch:
    """What ``attempt`` gave, in one piece or in parts put together, with its damaged pairs replaced."""
    mend: Callable[[Batch, Mapping[int, Any], Tensor], Batch] | None = getattr(pairs, "mended", None)
    return batch if mend is None else mend(batch, damaged, index_B)


def max_damaged(pairs: Pairs) -> float:
    """Share of damaged pairs above which a run stops; 1 where nothing is said."""
    share: float = getattr(pairs, "max_damaged", 1.0)
    return share


def decoded(pairs: object) -> bool:
    """Whether reading is all that a pair takes, so that no worker processes are started for it."""
    ready: bool = getattr(pairs, "decoded", False)
    return ready


def augmented(pairs: Pairs) -> bool:
    """Whether a pair looks another way at each step, so that its key does not say what a model sees."""
    changing: bool = getattr(pairs, "augmented", False)
    return changing


def preprocessing(pairs: Pairs) -> str:
    """What an embedding depends on besides the image's key; all that the pairs depend on where nothing is said."""
    said: str | None = getattr(pairs, "preprocessing", None)
    return said or pairs.fingerprint


def facts(pairs: Pairs) -> Mapping[str, Any]:
    """What is known about the split, for the summary."""
    known: Mapping[str, Any] = getattr(pairs, "facts", {})
    return known


@dataclass(frozen=True, eq=False)
class Wrapped:
    """A split made of another: it is as that one is, where a subclass does not say otherwise.

    How pairs are read (``batch``, ``drawn``, ``attempt``, ``mended``) is the subclass's to say.

    Attributes:
        pairs: the split that it is made of.
    """

    pairs: Pairs

    @property
    def name(self) -> str:
        """For messages."""
        return self.pairs.name

    @property
    def fingerprint(self) -> str:
        """Of everything that the pairs depend on."""
        return self.pairs.fingerprint

    @property
    def tokenizer(self) -> Tokenizer:
        """Makes the token ids."""
        return self.pairs.tokenizer

    @property
    def image_key_N(self) -> npt.NDArray[np.int64]:
        """Content hash of each image."""
        return self.pairs.image_key_N

    @property
    def text_key_N(self) -> Tensor:
        """Content hash of each caption."""
        return self.pairs.text_key_N

    @property
    def max_damaged(self) -> float:
        """Share of damaged pairs above which a run stops."""
        return max_damaged(self.pairs)

    @property
    def decoded(self) -> bool:
        """Whether reading is all that a pair takes."""
        return decoded(self.pairs)

    @property
    def augmented(self) -> bool:
        """Whether a pair looks another way at each step."""
        return augmented(self.pairs)

    @property
    def preprocessing(self) -> str:
        """What an embedding depends on besides the image's key."""
        return preprocessing(self.pairs)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is known about the split, for the summary."""
        return facts(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True, eq=False)
class ArrayPairs:
    """A split whose decoded images lie in one array, typically memory-mapped; nothing is decoded twice.

    A memory map is sent to another process as its place in the file.

    Attributes:
        name: of the split, for messages.
        fingerprint: hash of everything that the pairs depend on (content, captions, noise).
        images_NHWC: uint8, typically memory-mapped.
        row_N: row of ``images_NHWC`` that holds the image of each pair.
        captions: one caption a pair, not empty.
        tokenizer: makes the token ids.
        image_key_N: int64 content hash of each image.
        marks: diagnostics, name → bool ``[N]`` (``noisy``, ``curated``).
        ahead: tokenize all captions now; else those of a batch when it is asked for, where hundreds of thousands
            would hold up the start of every run.
        token_NL: token ids of all captions, where ``ahead``.
        text_key_N: int64 content hash of each caption.
        decoded: reading is all that a pair takes: no worker processes are started for it.
    """

    decoded: ClassVar[bool] = True
    name: str
    fingerprint: str
    images_NHWC: npt.NDArray[np.uint8]
    row_N: npt.NDArray[np.int64]
    captions: Sequence[str]
    tokenizer: Tokenizer
    image_key_N: npt.NDArray[np.int64]
    marks: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    ahead: bool = True
    token_NL: Tensor | None = field(init=False, repr=False)
    text_key_N: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for position, caption in enumerate(self.captions):
            if not caption.strip():
                raise DataError(f"{self.name}: the caption of pair {position} is empty; drop it when preparing")
        if not len(self.row_N) == len(self.captions) == len(self.image_key_N):
            raise ValueError(f"{self.name}: rows, captions and keys differ in length")
        keys = {caption: content_key(caption.encode()) for caption in set(self.captions)}
        object.__setattr__(self, "token_NL", self.tokenizer.encode(self.captions) if self.ahead else None)
        object.__setattr__(self, "text_key_N", torch.tensor([keys[c] for c in self.captions], dtype=torch.int64))

    def __getstate__(self) -> dict[str, Any]:
        mapped = _Mapped.of(self.images_NHWC)
        return self.__dict__ if mapped is None else self.__dict__ | {"images_NHWC": mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        images = state["images_NHWC"]
        self.__dict__.update(state | {"images_NHWC": images.opened() if isinstance(images, _Mapped) else images})

    @property
    def preprocessing(self) -> str:
        """What an embedding depends on besides the image's key, which hashes the pixels themselves."""
        return f"pixels of {self.images_NHWC.shape[1]}×{self.images_NHWC.shape[2]}"

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, index_B: Tensor) -> Batch:
        """The pairs at these positions, read and ready for a model."""
        index = index_B.numpy()
        captions = tuple(self.captions[i] for i in index.tolist())
        images = torch.from_numpy(np.ascontiguousarray(self.images_NHWC[self.row_N[index]]))
        tokens = self.tokenizer.encode(captions) if self.token_NL is None else self.token_NL[index_B]
        return Batch(
            images_BCHW=images.permute(0, 3, 1, 2),
            token_ids={self.tokenizer.identity: tokens},
            image_key_B=torch.from_numpy(self.image_key_N[index]),
            text_key_B=self.text_key_N[index_B],
            marks={name: torch.from_numpy(mark[index]) for name, mark in self.marks.items()},
            captions=captions,
        )


@dataclass(frozen=True)
class _Mapped:
    """Where a memory-mapped array lies."""

    path: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> _Mapped | None:
        """``None`` where it is in memory, or is a part of a map: that does not know where it begins."""
        if not isinstance(array, np.memmap) or not isinstance(array.base, mmap.mmap) or not array.flags.c_contiguous:
            return None
        return cls(str(array.filename), array.dtype, array.shape, array.offset)

    def opened(self) -> npt.NDArray[Any]:
        """The same array, mapped anew."""
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


class Dataset(Protocol):
    """A data set that knows its splits; every field is a configuration value."""

    def prepare(self) -> None:
        """Fetch and prepare what is missing; safe when two processes do it at once.

        Raises:
            DataError: it cannot be had; the message says what to do.
        """
        ...

    def is_prepared(self) -> bool:
        """Whether ``prepare`` has nothing left to do."""
        ...

    def split(self, name: str) -> Pairs:
        """The split of that name: ``pool``, ``curated``, ``holdout``, ``eval`` …, or several joined by ``+``."""
        ...

    def stand_in(self) -> Dataset:
        """A small data set of the same shapes that needs no download, for ``--check`` and ``--price``."""
        ...
