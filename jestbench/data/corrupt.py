"""Captions made worse word by word, graded by how much of the original is left (Rouge-L).

Captions may be as short as one word, so an edit is drawn among those that the caption's length allows:
a single word is replaced, doubled, or gets a foreign word beside it; of two or more words one can also be
dropped, or two swapped. A caption never becomes empty.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import accumulate

from rapidfuzz.distance import LCSseq

Words = tuple[str, ...]


def words_of(caption: str) -> Words:
    """Lower-case words of a caption: what is edited, compared and graded."""
    return tuple(caption.lower().split())


def rouge_l(words: Words, original: Words) -> float:
    """Rouge-L F with β = 1 (Lin 2004): the harmonic mean of LCS/len(words) and LCS/len(original).

    Returns:
        A share in [0, 1]: 1 for equal sequences, 0 for no common word; 2·LCS / (m + n).
    """
    total = len(words) + len(original)
    if not total:
        return 1.0
    return 2 * LCSseq.similarity(words, original) / total


def _replace(words: list[str], foreign: str, rng: random.Random) -> None:
    words[rng.randrange(len(words))] = foreign


def _insert(words: list[str], foreign: str, rng: random.Random) -> None:
    words.insert(rng.randrange(len(words) + 1), foreign)


def _double(words: list[str], foreign: str, rng: random.Random) -> None:
    place = rng.randrange(len(words))
    words.insert(place, words[place])


def _drop(words: list[str], foreign: str, rng: random.Random) -> None:
    del words[rng.randrange(len(words))]


def _swap(words: list[str], foreign: str, rng: random.Random) -> None:
    one, other = rng.sample(range(len(words)), 2)
    words[one], words[other] = words[other], words[one]


_OF_ANY = (_replace, _insert, _double)
_OF_SEVERAL = (*_OF_ANY, _drop, _swap)


def corrupt(original: Words, vocabulary: Sequence[str], share: float, rng: random.Random) -> Words:
    """One to ⌈share · words⌉ random edits of a caption.

    Args:
        original: its words, one at least.
        vocabulary: words that replace and join its own (those of other captions).
        share: largest share of the words that is edited, in (0, 1].
        rng: the only source of randomness.

    Returns:
        One word at least; by chance the original itself (two equal words that changed places, say).
    """
    words = list(original)
    # Rounded before the ceiling: 0.2 · 5 must be one word in floats too.
    most = max(1, math.ceil(round(share * len(words), 9)))
    for _ in range(rng.randint(1, most)):
        edit = rng.choice(_OF_SEVERAL if len(words) > 1 else _OF_ANY)
        edit(words, rng.choice(vocabulary), rng)
    return tuple(words)


def other_captions(captions: Sequence[Words], count: int, rng: random.Random) -> list[list[int]]:
    """For each caption the positions of ``count`` captions of other words, uniformly, with replacement.

    Where all captions are equal there is no other, and each caption's own position is returned.
    """
    groups: dict[Words, list[int]] = {}
    for position, words in enumerate(captions):
        groups.setdefault(words, []).append(position)
    # Equal captions form one run: the captions that follow the run, cyclically, are all different.
    order = [position for group in groups.values() for position in group]
    ends = dict(zip(groups, accumulate(len(group) for group in groups.values()), strict=True))
    found: list[list[int]] = []
    for position, words in enumerate(captions):
        different = len(captions) - len(groups[words])
        if different:
            places = [(ends[words] + rng.randrange(different)) % len(order) for _ in range(count)]
            found.append([order[place] for place in places])
        else:
            found.append([position] * count)
    return found
