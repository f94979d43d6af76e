"""Splits of data sets, and the pairs in them."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jestbench.batch import Batch, DataError, with_rows
from jestbench.data.tries import Replacements, TriedPair, Tries
from jestbench.disk import content_key
from jestbench.model.tokenizer import Tokenizer
from jestbench.select.scores import Role

ReadPairs = tuple[Batch, Mapping[int, Any]]
"""Pairs as they were read, none of the damaged ones replaced; and the damage, by its place among them."""


class Pairs(ABC):
    """A split of a data set; an :class:`IndexedPairs` where its pairs can be read by position.

    Attributes:
        name: name of the split, for messages.
        fingerprint: hash of everything that the pairs depend on (content, captions, noise, preprocessing).
        tokenizer: makes the token ids.
        facts: about the split, for the summary.
        ranked: the splits that this is the top of by a frozen model's own scores, each with the model's role.
        decoded: a pair is read without being decoded, so that no worker processes are started for it.
        augmented: a pair is augmented anew at each step, so that its key does not identify its pixels.
    """

    name: str
    fingerprint: str
    tokenizer: Tokenizer
    facts: Mapping[str, Any] = MappingProxyType({})
    ranked: tuple[tuple[Role, IndexedPairs], ...] = ()
    decoded: bool = False
    augmented: bool = False

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of the numbers that came with each pair."""
        return ()

    @cached_property
    def preprocessing(self) -> str:
        """What an embedding depends on besides the image's key; by default all that the pairs depend on."""
        return self.fingerprint

    def uid_of(self, key_K: npt.NDArray[np.int64]) -> Sequence[str | None]:
        """The uids of images, by content key; ``None`` where it is not known."""
        return [None] * len(key_K)

    @abstractmethod
    def example(self) -> Batch:
        """One pair, from which shapes are taken and costs are traced."""

    def indexed(self, needed_by: str) -> IndexedPairs:
        """The split itself, where its pairs have positions.

        Args:
            needed_by: what needs the positions, for the message.

        Raises:
            ValueError: the split is a stream, whose pairs have no positions.
        """
        raise ValueError(
            f"{needed_by} needs an indexed data set: the pairs of {self.name} have no keys before they come"
        )


class IndexedPairs(Pairs):
    """A split whose size, keys and captions are known before any image is decoded.

    Attributes:
        image_key_N: int64 content hash of each image.
        max_damaged: share of damaged pairs above which a run stops.
        columns: numbers that came with the pairs, name → float64 ``[N]``, all finite.
        redraws: ``drawn`` gives an image another of its captions in another epoch.
    """

    image_key_N: npt.NDArray[np.int64]
    max_damaged: float = 1.0
    columns: Mapping[str, npt.NDArray[np.float64]] = MappingProxyType({})
    redraws: bool = False

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of ``columns``."""
        return tuple(self.columns)

    def columns_at(self, index: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """The columns at these positions, as a batch holds them."""
        return {name: torch.from_numpy(column[index].astype(np.float32)) for name, column in self.columns.items()}

    @property
    @abstractmethod
    def text_key_N(self) -> Tensor:
        """Content hash of each caption, int64."""

    def text_keys_at(self, index_B: Tensor) -> Tensor:
        """Content hashes of the captions at these positions, int64 ``[B]``."""
        return self.text_key_N[index_B]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def attempt(self, index_B: Tensor) -> ReadPairs:
        """The pairs at these positions, damaged ones not replaced yet; and the damage, by its place in the batch."""

    def batch(self, index_B: Tensor) -> Batch:
        """The pairs at these positions, read, decoded and ready for a model, damaged ones replaced.

        Raises:
            DataError: too many pairs are damaged to replace them.
        """
        batch, damaged = self.attempt(index_B)
        if not damaged:
            return batch
        found, slot_K = Replacements.found(self, damaged, index_B), torch.tensor([*damaged])
        counts = Counter(batch.counts)
        counts.update(found.counts)
        return replace(with_rows(batch, slot_K, self.shown(found.rows, index_B[slot_K])), counts=dict(counts))

    def at_step(self, step: int, index_B: Tensor) -> Tensor:
        """The positions under which pairs are read at a step: other ones at each step where they are augmented anew."""
        return index_B

    def drawn(self, seed: int, epoch: int) -> IndexedPairs:
        """The split for an epoch: where an image has several captions, one of them is drawn."""
        return self

    def expanded(self) -> IndexedPairs:
        """The split in which each of several captions of an image is a pair of its own."""
        return self

    def tried(self, position: int, tries: Tries) -> tuple[TriedPair, Any]:
        """Try the pair at a position in the place of a damaged one (``Tries.pair``)."""
        return tries.pair(self, position)

    def replaced(self, damaged: Mapping[int, Any], index_B: Tensor, tries: Tries) -> list[TriedPair]:
        """Which pairs stand in the place of the damaged ones of a batch, in their order.

        Args:
            damaged: the damage of ``attempt`` by place in the batch, whoever has read which part of the batch.
            index_B: positions of the whole batch.
            tries: reads other pairs.

        Raises:
            DataError: too many pairs are damaged to replace them.
        """
        return [self.tried(int(index_B[slot]), tries)[0] for slot in damaged]

    def shown(self, rows: Batch, index_K: Tensor) -> Batch:
        """Pairs of ``replaced`` as the split shows them in the place of pairs at these positions."""
        return rows

    def example(self) -> Batch:
        """The first pair."""
        return self.batch(torch.zeros(1, dtype=torch.int64))

    def indexed(self, needed_by: str) -> IndexedPairs:
        """This split."""
        return self


class Wrapped(IndexedPairs):
    """A split made from an inner split, from which everything comes that a subclass does not define.

    Every subclass defines how pairs are read (``drawn``, ``attempt`` and ``replaced``). Attributes of its own are set
    after ``super().__init__``.
    """

    def __init__(self, pairs: IndexedPairs) -> None:
        self.pairs = pairs
        self.name, self.fingerprint, self.tokenizer = pairs.name, pairs.fingerprint, pairs.tokenizer
        self.facts, self.image_key_N, self.max_damaged = pairs.facts, pairs.image_key_N, pairs.max_damaged
        self.columns, self.redraws, self.ranked = pairs.columns, pairs.redraws, pairs.ranked
        self.decoded, self.augmented, self.preprocessing = pairs.decoded, pairs.augmented, pairs.preprocessing

    @property
    def text_key_N(self) -> Tensor:
        """The split's own."""
        return self.pairs.text_key_N

    def text_keys_at(self, index_B: Tensor) -> Tensor:
        """The split's own."""
        return self.pairs.text_keys_at(index_B)

    def uid_of(self, key_K: npt.NDArray[np.int64]) -> Sequence[str | None]:
        """The split's own."""
        return self.pairs.uid_of(key_K)

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True, eq=False)
class ArrayPairs(IndexedPairs):
    """A split whose decoded images lie in one array, typically memory-mapped; nothing is decoded again.

    A memory map is sent to another process as file name and offset.

    Attributes:
        images_NHWC: uint8, typically memory-mapped.
        row_N: row of ``images_NHWC`` that holds the image of each pair.
        captions: one caption a pair, not empty.
        marks: diagnostics, name → bool ``[N]`` (``noisy``, ``curated``).
        ahead: tokenize all captions at the first batch; else only those of each batch, where tokenizing hundreds of
            thousands would delay the start of every run.
    """

    name: str
    fingerprint: str
    images_NHWC: npt.NDArray[np.uint8]
    row_N: npt.NDArray[np.int64]
    captions: Sequence[str]
    tokenizer: Tokenizer
    image_key_N: npt.NDArray[np.int64]
    marks: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    columns: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    ahead: bool = True
    decoded = True

    def __post_init__(self) -> None:
        for position, caption in enumerate(self.captions):
            if not caption.strip():
                raise DataError(f"{self.name}: the caption of pair {position} is empty; drop it when preparing")
        if not len(self.row_N) == len(self.captions) == len(self.image_key_N):
            raise ValueError(f"{self.name}: rows, captions and keys differ in length")

    def __getstate__(self) -> dict[str, Any]:
        mapped = _Mapped.of(self.images_NHWC)
        return self.__dict__ if mapped is None else self.__dict__ | {"images_NHWC": mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        images = state["images_NHWC"]
        self.__dict__.update(state | {"images_NHWC": images.opened() if isinstance(images, _Mapped) else images})

    @cached_property
    def token_NL(self) -> Tensor | None:
        """Token ids of all captions, where ``ahead``."""
        return self.tokenizer.encode(self.captions) if self.ahead else None

    @cached_property
    def text_key_N(self) -> Tensor:
        """Content hash of each caption, int64."""
        keys = {caption: content_key(caption.encode()) for caption in set(self.captions)}
        return torch.tensor([keys[caption] for caption in self.captions], dtype=torch.int64)

    @cached_property
    def preprocessing(self) -> str:
        """What an embedding depends on besides the image's key, which hashes the pixels themselves."""
        return f"pixels of {self.images_NHWC.shape[1]}×{self.images_NHWC.shape[2]}"

    def __len__(self) -> int:
        return len(self.captions)

    def attempt(self, index_B: Tensor) -> ReadPairs:
        """The pairs at these positions; none can be damaged."""
        index = index_B.numpy()
        captions = tuple(self.captions[i] for i in index.tolist())
        images = torch.from_numpy(np.ascontiguousarray(self.images_NHWC[self.row_N[index]]))
        tokens = self.tokenizer.encode(captions) if self.token_NL is None else self.token_NL[index_B]
        batch = Batch(
            images_BCHW=images.permute(0, 3, 1, 2),
            token_ids={self.tokenizer.identity: tokens},
            image_key_B=torch.from_numpy(self.image_key_N[index]),
            text_key_B=self.text_key_N[index_B],
            marks={name: torch.from_numpy(mark[index]) for name, mark in self.marks.items()},
            captions=captions,
            columns=self.columns_at(index),
        )
        return batch, {}


@dataclass(frozen=True)
class _Mapped:
    """Where a memory-mapped array lies."""

    path: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> _Mapped | None:
        """Describe a map; ``None`` for an array in memory, or a slice of a map, whose file offset is not recorded."""
        if not isinstance(array, np.memmap) or not isinstance(array.base, mmap.mmap) or not array.flags.c_contiguous:
            return None
        return cls(str(array.filename), array.dtype, array.shape, array.offset)

    def opened(self) -> npt.NDArray[Any]:
        """The same array, mapped anew."""
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


class SplitNotGiven(DataError):
    """A split of a user's data is asked for that nothing is bound to; the message names what can be bound."""


class Dataset(Protocol):
    """A data set: the pairs of each of its splits; every field is a configuration value."""

    def prepare(self) -> None:
        """Fetch and prepare what is missing; safe when two processes call it at once.

        Raises:
            DataError: the data cannot be prepared; the message gives the remedy.
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
