"""Pairs whose images are read and decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch, DataError
from jestbench.data.damage import FLOOR
from jestbench.data.decode import DECODER, DamagedImage, decode
from jestbench.data.encoded_images import Encoded
from jestbench.data.pairs import IndexedPairs
from jestbench.data.tries import TriedPair, Tries
from jestbench.disk import content_key
from jestbench.model.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Texts(Sequence[str]):
    """Texts in one array of UTF-8 bytes: without one object per text, so that forked workers copy nothing.

    Attributes:
        utf8: uint8, all texts concatenated.
        end_M: int64, offset at which each text ends.
    """

    utf8: npt.NDArray[np.uint8]
    end_M: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Pack texts."""
        encoded = [text.encode() for text in texts]
        ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.end_M)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        position %= len(self)
        start = int(self.end_M[position - 1]) if position else 0
        return self.utf8[start : int(self.end_M[position])].tobytes().decode()


def text_keys(captions: Sequence[str]) -> npt.NDArray[np.int64]:
    """Content key of each caption: int64 ``[M]``."""
    return np.fromiter((content_key(text.encode()) for text in captions), dtype=np.int64, count=len(captions))


@dataclass(frozen=True, eq=False)
class FilePairs(IndexedPairs):
    """A split whose images are decoded on demand.

    An image may have several captions (``first_N``): ``drawn`` gives the split with one of them drawn anew for each
    epoch, ``expanded`` the split in which each caption is a pair of its own; without either, the first caption is used.

    An image that turns out to be damaged when it is read is replaced by another pair of the split, image and caption,
    drawn by the replaced position: a pure function of the requested positions and the files on the disk, so that a
    resumed run reads the same pairs. No pair occurs twice in a batch. ``Batch.counts`` counts replacements.

    Attributes:
        source: where the encoded images lie; an image's key is the hash of its encoded file.
        captions: M captions, none empty.
        image_size: pixels, width and height.
        marks: diagnostics, name → bool ``[N]``.
        text_key_M: int64 content hash of each caption; computed where not given.
        first_N: position in ``captions`` of each pair's first caption; its captions end where the next pair's begin.
            ``None``: one caption a pair.
        row_N: position of each pair's image in ``source``; ``None``: the pair's own position.
        caption_N: position in ``captions`` of each pair's current caption; ``None``: its first.
        exact: raise instead of replacing: evaluated pairs may not change.
        uids: of the images in ``source``, empty where they are not known.
        origin: makes the split anew from the cache; sent to other processes in place of the split.
    """

    name: str
    fingerprint: str
    source: Encoded
    captions: Sequence[str]
    tokenizer: Tokenizer
    image_key_N: npt.NDArray[np.int64]
    image_size: int
    marks: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    columns: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    text_key_M: npt.NDArray[np.int64] | None = None
    first_N: npt.NDArray[np.int64] | None = None
    row_N: npt.NDArray[np.int64] | None = None
    caption_N: npt.NDArray[np.int64] | None = None
    max_damaged: float = 0.01
    exact: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    uids: Sequence[str] = ()
    origin: Callable[[], FilePairs] | None = None

    def __post_init__(self) -> None:
        if self.text_key_M is None:
            object.__setattr__(self, "text_key_M", text_keys(self.captions))
        if self.caption_N is None:
            first = np.arange(len(self.image_key_N)) if self.first_N is None else np.asarray(self.first_N)
            object.__setattr__(self, "caption_N", first)
        object.__setattr__(self, "redraws", self.first_N is not None)
        assert self.caption_N is not None
        captions = len(self.captions) if self.first_N is None and self.row_N is None else len(self.caption_N)
        if not len(self.image_key_N) == len(self.caption_N) == captions:
            raise ValueError(f"{self.name}: images, captions and keys differ in length")

    def __reduce__(self) -> tuple[Any, ...]:
        if self.origin is not None:
            return _reopened, (self.origin,)
        return _rebuilt, ({name: getattr(self, name) for name in self.__dataclass_fields__},)

    @cached_property
    def preprocessing(self) -> str:
        """What an embedding depends on besides the image's key, which hashes the encoded file."""
        return f"decoded to {self.image_size}×{self.image_size} by {DECODER}"

    def __len__(self) -> int:
        return len(self.image_key_N)

    @property
    def text_key_N(self) -> Tensor:
        """Content hash of each pair's caption, as drawn."""
        return self.text_keys_at(torch.arange(len(self)))

    def text_keys_at(self, index_B: Tensor) -> Tensor:
        """Content hashes of the captions at these positions; the keys of all other pairs stay where they lie."""
        assert self.caption_N is not None
        assert self.text_key_M is not None
        return torch.from_numpy(np.ascontiguousarray(self.text_key_M[self.caption_N[index_B.numpy()]]))

    def drawn(self, seed: int, epoch: int) -> FilePairs:
        """The split with one of its captions drawn for each pair: a function of the image's key, seed and epoch."""
        return self if self.first_N is None else _draw(self, seed, epoch)

    def firsts(self) -> FilePairs:
        """The split with the first of each image's captions alone."""
        if self.first_N is None:
            return self
        origin = None if self.origin is None else _Derived(self.origin, "firsts")
        return replace(self, first_N=None, row_N=np.arange(len(self)), caption_N=self.first_N, origin=origin)

    def expanded(self) -> FilePairs:
        """The split in which each caption is a pair of its own."""
        if self.first_N is None:
            return self
        row_M = np.repeat(np.arange(len(self)), np.diff(self.first_N, append=len(self.captions)))
        return replace(
            self,
            fingerprint=f"{self.fingerprint}-expanded",
            image_key_N=self.image_key_N[row_M],
            row_N=row_M if self.row_N is None else self.row_N[row_M],
            first_N=None,
            caption_N=np.arange(len(self.captions)),
            marks={name: mark[row_M] for name, mark in self.marks.items()},
            columns={name: column[row_M] for name, column in self.columns.items()},
            origin=None if self.origin is None else _Derived(self.origin, "expanded"),
        )

    def uid_of(self, key_K: npt.NDArray[np.int64]) -> Sequence[str | None]:
        """The uids of images, by content key; ``None`` where it is not known."""
        if not len(self.uids):
            return super().uid_of(key_K)
        order_N = np.argsort(self.image_key_N, kind="stable")
        place_K = np.searchsorted(self.image_key_N, key_K, sorter=order_N).clip(max=len(self) - 1)
        position_K = order_N[place_K]
        there_K = self.image_key_N[position_K] == key_K
        row_K = position_K if self.row_N is None else self.row_N[position_K]
        uids = (self.uids[row] if there else "" for row, there in zip(row_K.tolist(), there_K.tolist(), strict=True))
        return [uid or None for uid in uids]

    def image(self, position: int) -> npt.NDArray[np.uint8]:
        """The image of a pair, uint8 ``[size, size, 3]``.

        Raises:
            DamagedImage: the image cannot be read or decoded, or has changed since it was indexed.
        """
        row = position if self.row_N is None else int(self.row_N[position])
        try:
            content = self.source.read(row)
            if content_key(content) != self.image_key_N[position]:
                raise DamagedImage("changed file", "it is not what was indexed", "touch the table that names it")
            return decode(content, self.image_size)
        except DamagedImage as damaged:
            damaged.at(self.source.where(row))
            raise

    def attempt(self, index_B: Tensor) -> tuple[Batch, dict[int, DamagedImage]]:
        """The pairs at these positions, damaged images left black; and the damage, by its place in the batch.

        Replacements depend on all pairs of a batch, so who decodes a part of a batch cannot choose them.
        """
        images = np.zeros((len(index_B), self.image_size, self.image_size, 3), dtype=np.uint8)
        damaged = {}
        for slot, position in enumerate(index_B.tolist()):
            try:
                images[slot] = self.image(position)
            except DamagedImage as error:
                damaged[slot] = error
        return self._batch(index_B, images), damaged

    def replaced(self, damaged: Mapping[int, DamagedImage], index_B: Tensor, tries: Tries) -> list[TriedPair]:
        """The pairs in the place of the damaged ones of a batch, in their order.

        Raises:
            DataError: the split is exact, or too many pairs are damaged to replace them.
        """
        taken, lost, places = set(index_B.tolist()), 0, list[TriedPair]()
        for slot, error in damaged.items():
            asked = position = int(index_B[slot])
            attempt, failed = 0, error
            while failed is not None:
                lost += 1
                if self.exact or lost > max(FLOOR, len(taken)) or len(taken) == len(self):
                    raise DataError(f"{self.name}: pair {position}: {failed.reason}: {failed.example}") from failed
                while position in taken:
                    bits = seeds.mixed(torch.tensor(asked << 20 | attempt) + seeds.GOLDEN)
                    position = int(bits) % (1 << 64) % len(self)
                    attempt += 1
                taken.add(position)
                place, failed = self.tried(position, tries)
            places.append(place)
        return places

    def _batch(self, index_B: Tensor, images_BHWC: npt.NDArray[np.uint8]) -> Batch:
        index = index_B.numpy()
        assert self.caption_N is not None
        caption_B = self.caption_N[index]
        captions = tuple(self.captions[i] for i in caption_B.tolist())
        return Batch(
            images_BCHW=torch.from_numpy(images_BHWC).permute(0, 3, 1, 2),
            token_ids={self.tokenizer.identity: self.tokenizer.encode(captions)},
            image_key_B=torch.from_numpy(self.image_key_N[index]),
            text_key_B=self.text_keys_at(index_B),
            marks={name: torch.from_numpy(mark[index]) for name, mark in self.marks.items()},
            captions=captions,
            columns=self.columns_at(index),
            counts={"read": len(index), "damaged": 0},
        )


@lru_cache(maxsize=2)
def _draw(pairs: FilePairs, seed: int, epoch: int) -> FilePairs:
    assert pairs.first_N is not None
    count_N = np.diff(pairs.first_N, append=len(pairs.captions))
    origin = None if pairs.origin is None else _Derived(pairs.origin, "drawn", (seed, epoch))
    caption_N = pairs.first_N + drawn_captions(pairs.image_key_N, count_N, seed, epoch)
    return replace(pairs, caption_N=caption_N, origin=origin)


def drawn_captions(
    image_key_N: npt.NDArray[np.int64], count_N: npt.NDArray[np.int64], seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Index, among an image's captions, of the one drawn, int64 ``[N]``: a function of image key, seed and epoch."""
    key_N = torch.from_numpy(image_key_N ^ np.int64(seeds.derive(seed, "captions", epoch)))
    hash_N = seeds.mixed(key_N + seeds.GOLDEN).numpy().view(np.uint64)
    drawn_N: npt.NDArray[np.int64] = (hash_N % count_N.astype(np.uint64)).astype(np.int64)
    return drawn_N


def _rebuilt(fields: Mapping[str, Any]) -> FilePairs:
    return FilePairs(**fields)


def _reopened(origin: Callable[[], FilePairs]) -> FilePairs:
    return origin()


@dataclass(frozen=True)
class _Derived:
    """A split that a method of another one gives."""

    origin: Callable[[], FilePairs]
    method: Literal["drawn", "firsts", "expanded"]
    arguments: tuple[int, ...] = ()

    def __call__(self) -> FilePairs:
        made: FilePairs = getattr(self.origin(), self.method)(*self.arguments)
        return made
