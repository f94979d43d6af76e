"""A synthetic data set for tests: the pairs worth training on are known, and nothing is downloaded.

Each concept is a smooth colour pattern and a two-word caption; an image of a concept is its pattern with
noise. The pool holds, in configurable shares: pairs with exchanged captions, exact duplicates, and
pairs of a few very frequent concepts that are learned at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from jestbench.batch import DataError
from jestbench.data.caption_noise import exchange_captions
from jestbench.data.pairs import ArrayPairs, Pairs
from jestbench.disk import content_key, digest
from jestbench.model.tokenizer import Tokenizer, train_bpe

SYLLABLES = tuple(a + b for a in "bdfgklmnprstvz" for b in "aeiou")
SPLITS = ("pool", "curated", "holdout", "eval")


@dataclass(frozen=True)
class Synthetic:
    """The planted world.

    Attributes:
        concepts: classes; each has one pattern and one caption.
        pool: pairs in the pool.
        curated: clean pairs, drawn from all concepts.
        holdout: pairs as noisy as the pool, apart from it.
        eval: clean pairs, apart from all others.
        noise: share of the pool's and holdout's captions exchanged.
        duplicates: share of the pool that copies another of its pairs exactly.
        easy: share of the pool that shows one of four concepts.
        image_size: pixels.
        length: L, text tokens.
        seed: of the world, not of the run.
        columns: names of numbers that come with each pair, larger where its caption is right: 1 or 0, and noise of
            standard deviation 0.2, each its own.
        clean: the splits in which every caption is right.
        of_noisy: parameters that change nothing in a clean split.
    """

    concepts: int = 64
    pool: int = 2048
    curated: int = 512
    holdout: int = 512
    eval: int = 256
    noise: float = 0.4
    duplicates: float = 0.1
    easy: float = 0.2
    image_size: int = 16
    length: int = 8
    seed: int = 0
    columns: tuple[str, ...] = ()
    clean: ClassVar[tuple[str, ...]] = ("curated", "eval")
    of_noisy: ClassVar[frozenset[str]] = frozenset({"noise", "duplicates", "easy"})

    def __post_init__(self) -> None:
        for name in ("noise", "duplicates", "easy"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"synthetic.{name} is a share in [0, 1), got {getattr(self, name)}")
        if not 4 <= self.concepts <= len(SYLLABLES) ** 2:
            raise ValueError(f"synthetic.concepts must lie between 4 and {len(SYLLABLES) ** 2}, got {self.concepts}")
        if self.seed < 0:
            raise ValueError(f"synthetic.seed must not be negative, got {self.seed}")
        if self.image_size < 4:
            raise ValueError(f"synthetic.image_size must be at least 4 px, got {self.image_size}")
        for name in SPLITS:
            if getattr(self, name) < 1:
                raise ValueError(f"synthetic.{name} must hold at least one pair, got {getattr(self, name)}")

    def prepare(self) -> None:
        """Nothing to fetch."""

    def is_prepared(self) -> bool:
        """Always."""
        return True

    def stand_in(self) -> Synthetic:
        """A smaller data set of the same kind."""
        return replace(self, pool=256, curated=64, holdout=64, eval=64)

    def split(self, name: str) -> Pairs:
        """A split, or several joined by ``+``.

        Raises:
            DataError: no such split.
        """
        parts = [_draw(self, part) for part in name.split("+") if _known(part)]
        images = np.concatenate([part[0] for part in parts])
        captions = [caption for part in parts for caption in part[1]]
        marks = {mark: np.concatenate([part[2][mark] for part in parts]) for mark in parts[0][2]}
        return ArrayPairs(
            name=f"synthetic/{name}",
            fingerprint=digest(f"{asdict(self)}/{name}"),
            images_NHWC=images,
            row_N=np.arange(len(images), dtype=np.int64),
            captions=captions,
            tokenizer=Tokenizer(_tokenizer(self.concepts, self.seed), self.length),
            image_key_N=np.array([content_key(image.tobytes()) for image in images], dtype=np.int64),
            marks=marks,
            columns={column: _numbers(self, column, name, marks["noisy"]) for column in self.columns},
        )


def _numbers(world: Synthetic, column: str, split: str, noisy_N: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng([world.seed, 4, *f"{column}/{split}".encode()])
    found_N: npt.NDArray[np.float64] = np.where(noisy_N, 0.0, 1.0) + rng.normal(0, 0.2, len(noisy_N))
    return found_N


def _known(part: str) -> bool:
    if part not in SPLITS:
        raise DataError(f"the synthetic data has no split {part!r}; it has {', '.join(SPLITS)}")
    return True


def _captions(concepts: int, seed: int) -> list[str]:
    rng = np.random.default_rng([seed, 1])
    numbers = rng.permutation(len(SYLLABLES) ** 2)[:concepts]
    count = len(SYLLABLES)
    # Three syllables a word, so that words of different concepts overlap like natural ones.
    return [
        f"{SYLLABLES[n // count]}{SYLLABLES[(n * 7) % count]} {SYLLABLES[n % count]}{SYLLABLES[(n * 3) % count]}"
        for n in numbers.tolist()
    ]


@lru_cache(maxsize=4)
def _tokenizer(concepts: int, seed: int) -> str:
    definition: str = train_bpe(_captions(concepts, seed) * 2, 768).to_str()
    return definition


def _patterns(world: Synthetic) -> npt.NDArray[np.float64]:
    """A 4×4 grid of colours a concept, ``[concepts, size, size, 3]`` in [0, 255]."""
    rng = np.random.default_rng([world.seed, 2])
    grid = rng.uniform(0, 255, (world.concepts, 4, 4, 3))
    place = (np.arange(world.image_size) * 4) // world.image_size
    return grid[:, place][:, :, place]


@lru_cache(maxsize=8)
def _draw(
    world: Synthetic, split: str
) -> tuple[npt.NDArray[np.uint8], Sequence[str], dict[str, npt.NDArray[np.bool_]]]:
    rng = np.random.default_rng([world.seed, 3, SPLITS.index(split)])
    count: int = getattr(world, split)
    concept = rng.integers(0, world.concepts, count)
    noisy_split = split in ("pool", "holdout")
    easy = (rng.random(count) < world.easy) & noisy_split
    concept[easy] = rng.integers(0, 4, int(easy.sum()))
    pictures = _patterns(world)[concept] + rng.normal(0, 40, (count, world.image_size, world.image_size, 3))
    images = pictures.clip(0, 255).astype(np.uint8)
    names = _captions(world.concepts, world.seed)
    captions = [names[i] for i in concept.tolist()]
    captions, noisy = exchange_captions(captions, world.noise if noisy_split else 0.0, world.seed)
    duplicate = (rng.random(count) < world.duplicates) & (split == "pool")
    duplicate[0] = False  # at least one original to copy; a copy of a copy could lose its original
    source = rng.choice(np.flatnonzero(~duplicate), count)
    for here in np.flatnonzero(duplicate).tolist():
        there = int(source[here])
        images[here], captions[here] = images[there], captions[there]
        noisy[here], easy[here] = noisy[there], easy[there]
    marks = {
        "noisy": noisy,
        "curated": np.full(count, split == "curated"),
        "duplicate": duplicate,
        "easy": easy,
    }
    return images, captions, marks
