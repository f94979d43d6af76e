"""Exchanging captions: noise whose share is exact and whose every pair is truly wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def normalised(caption: str) -> str:
    """A caption as far as it means something: lower case, single spaces."""
    return " ".join(caption.lower().split())


def exchange_captions(captions: Sequence[str], share: float, seed: int) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """Exchange the captions of a share of the pairs among one another.

    The captions keep their frequencies, exactly ``round(share · N)`` pairs are touched, and each of
    them ends with a caption whose normalised form differs from its own.

    Returns:
        The captions, and which pairs are noisy.

    Raises:
        ValueError: the share lies outside [0, 1), or so many of the captions are equal that they
            cannot all be exchanged.
    """
    if not 0 <= share < 1:
        raise ValueError(f"noise is a share in [0, 1), got {share}")
    count = round(share * len(captions))
    noisy = np.zeros(len(captions), dtype=np.bool_)
    if count == 0:
        return list(captions), noisy
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(captions))[:count]
    noisy[chosen] = True
    _, label = np.unique([normalised(captions[i]) for i in chosen], return_inverse=True)
    largest = int(np.bincount(label).max())
    if 2 * largest > count:
        raise ValueError(f"{largest} of {count} pairs to exchange share one caption: fewer wrong captions than pairs")
    # Ordered by caption, a shift by the largest class never lands in the same class; the order within
    # a class and among classes is random, so partners are.
    order = np.lexsort((rng.permutation(count), rng.permutation(int(label.max()) + 1)[label]))
    shift = int(rng.integers(largest, count - largest + 1))
    exchanged = list(captions)
    for here, there in zip(chosen[order], chosen[np.roll(order, -shift)], strict=True):
        exchanged[int(here)] = captions[int(there)]
    return exchanged, noisy
