"""What makes a world of icons more like the web: rare classes, captions that are partly right, repeats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jestbench.batch import DataError
from jestbench.data.caption_noise import normalised

Index = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def long_tail(captions: Sequence[str], exponent: float, seed: Sequence[int]) -> Index:
    """Positions of the pairs that are kept where the caption of rank k keeps at most n/k^s of its pairs.

    Ranks are drawn at random, n is the largest number of pairs of one caption; each caption keeps at least one.

    Args:
        captions: one a pair.
        exponent: s.
        seed: decides the ranks and which pairs are kept.
    """
    generator = np.random.default_rng(seed)
    _, class_N = np.unique([normalised(caption) for caption in captions], return_inverse=True)
    count_C = np.bincount(class_N)
    rank_C = 1 + generator.permutation(len(count_C))
    most_C = np.maximum(1, np.floor(count_C.max() / rank_C**exponent)).astype(np.int64)
    order = generator.permutation(len(captions))
    # The place of each pair among those of its caption, in a random order.
    by_class = order[np.argsort(class_N[order], kind="stable")]
    place = np.arange(len(by_class)) - np.repeat(np.cumsum(count_C) - count_C, count_C)
    return np.sort(by_class[place < most_C[class_N[by_class]]])


def partly_right(captions: Sequence[str], among: Flags, share: float, seed: Sequence[int]) -> tuple[list[str], Flags]:
    """Replace one word in the captions of a share of the pairs by a word of another caption.

    Args:
        captions: one a pair.
        among: the pairs that may be taken; only captions of two words and more are.
        share: of all pairs.
        seed: decides which pairs, which word, and what it becomes: words as frequent in captions are as likely.

    Returns:
        The captions, and which pairs were taken: exactly ``round(share · N)``.

    Raises:
        DataError: too few captions have two words.
    """
    generator, count = np.random.default_rng(seed), round(share * len(captions))
    words = [caption.split() for caption in captions]
    several = np.flatnonzero(among & np.array([len(found) > 1 for found in words]))
    if len(several) < count:
        raise DataError(
            f"{count} captions cannot each have one wrong word: of those that are not exchanged {len(several)} have "
            "two words or more; ask for fewer"
        )
    everywhere = [word for found in words for word in found]
    changed, partial = list(captions), np.zeros(len(captions), dtype=np.bool_)
    for pair in generator.permutation(several)[:count].tolist():
        found = words[pair]
        place = int(generator.integers(len(found)))
        new = everywhere[generator.integers(len(everywhere))]
        while new in found:
            new = everywhere[generator.integers(len(everywhere))]
        changed[pair] = " ".join([*found[:place], new, *found[place + 1 :]])
        partial[pair] = True
    return changed, partial


def repeated(count: int, exponent: float, seed: Sequence[int]) -> tuple[Index, Flags]:
    """As many positions as there are pairs, drawn with replacement, p ∝ rank^−s with ranks at random.

    Args:
        count: number of pairs.
        exponent: s.
        seed: decides the ranks and the draws.

    Returns:
        The positions ``[count]`` in ascending order, and which of them repeat an earlier one.
    """
    generator = np.random.default_rng(seed)
    weight_N = (1.0 + generator.permutation(count)) ** -exponent
    drawn = np.sort(generator.choice(count, count, p=weight_N / weight_N.sum()))
    return drawn, np.r_[False, drawn[1:] == drawn[:-1]]
