"""Caption noise by exchange: an exact share of pairs, every one of them wrong, with nothing to learn from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jestbench.batch import DataError


def normalised(caption: str) -> str:
    """A caption as it is compared: equal ones are one class."""
    return " ".join(caption.lower().split())


def exchange_captions(
    captions: Sequence[str], share: float, seed: int | Sequence[int]
) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """Exchange the captions of a share of the pairs among themselves, so that each of them is wrong.

    Exactly ``round(share · N)`` pairs take part. None of them keeps its caption, nor gets an equal one, and
    how often each caption occurs stays the same. Otherwise a pair may get any caption: the wrong captions of
    one class are spread like the captions of all, so that no wrong caption can be learned.

    Args:
        captions: one a pair.
        share: of the pairs, in [0, 1).
        seed: decides which pairs, and which captions they get.

    Returns:
        The captions after the exchange, and which pairs took part.

    Raises:
        DataError: so many captions are equal that the exchange cannot be done.
    """
    count = round(share * len(captions))
    generator = np.random.default_rng(seed)
    _, class_N = np.unique([normalised(caption) for caption in captions], return_inverse=True)
    order = generator.permutation(len(captions))
    # No exchange is possible once more than half of the pairs that take part have equal captions.
    chosen = order[_occurrence(class_N[order]) < count // 2][:count]
    if len(chosen) < count:
        raise DataError(
            f"{count} of {len(captions)} captions cannot all be exchanged for different ones, too many are "
            "equal: ask for less noise or take more data"
        )
    class_M = class_N[chosen]
    source_M = generator.permutation(count)
    for position in np.flatnonzero(class_M[source_M] == class_M):
        if class_M[source_M[position]] != class_M[position]:
            continue  # an earlier exchange has changed its caption already
        # Both pairs must end up with a caption other than their own; as no caption is held by more than half of
        # the pairs, there always is a partner.
        partners = np.flatnonzero((class_M[source_M] != class_M[position]) & (class_M != class_M[source_M[position]]))
        partner = partners[generator.integers(len(partners))]
        source_M[[position, partner]] = source_M[[partner, position]]

    exchanged = list(captions)
    for target, source in zip(chosen.tolist(), chosen[source_M].tolist(), strict=True):
        exchanged[target] = captions[source]
    noisy_N = np.zeros(len(captions), dtype=np.bool_)
    noisy_N[chosen] = True
    return exchanged, noisy_N


def _occurrence(class_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many equal values stand before each value."""
    order = np.argsort(class_N, kind="stable")
    ordered = class_N[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, np.int64)
    lengths = np.diff(np.append(starts, len(ordered)))
    occurrence = np.empty(len(class_N), dtype=np.int64)
    occurrence[order] = np.arange(len(class_N)) - np.repeat(starts, lengths)
    return occurrence
