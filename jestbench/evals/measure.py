"""What is known about each metric before it is measured. No torch here: the comparison reads measures without it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = Sequence[int] | npt.NDArray[Any]

RANKS = (1, 5, 10)
"""The k of recall@k."""


@dataclass(frozen=True)
class Measure:
    """What is known about a metric before it is measured.

    Attributes:
        low: the smallest value that it can have; ``None`` where there is none.
        high: the largest; ``None`` where there is none.
        examples: number of evaluation examples that the metric is a mean over; ``None`` if it is no such mean.
        chance: its expected value where the answers are ranked at random; ``None`` where there is none.
        lower_is_better: whether a smaller value is better.
    """

    low: float | None = None
    high: float | None = None
    examples: int | None = None
    chance: float | None = None
    lower_is_better: bool = False

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value, infinite where there is none."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high


def share_of(examples: int, chance: float | None = None) -> Measure:
    """The measure of a mean over examples of values in [0, 1]: a share of hits, a mean reciprocal rank."""
    return Measure(0.0, 1.0, examples, chance)


def mean_measure(each: Sequence[Measure]) -> Measure:
    """The measure of a mean over sets of one metric; each set weighs alike, so that it is no mean over examples."""
    chances = [one.chance for one in each if one.chance is not None]
    chance = sum(chances) / len(each) if len(chances) == len(each) else None
    return replace(each[0], examples=None, chance=chance)


def zero_shot_measures(images: int, classes: int, question: str = "zero_shot") -> dict[str, Measure]:
    """The measures of zero-shot classification, by name.

    Args:
        images: number of images that are classified.
        classes: number of classes to choose from.
        question: the start of the names: ``zero_shot``, or ``zero_shot_unseen``.
    """
    found = {f"{question}_top{k}": share_of(images, min(1.0, k / classes)) for k in (1, 5)}
    found[f"{question}_mrr"] = share_of(images, random_reciprocal_rank([1], classes))
    return found | {f"{question}_nll": Measure(0.0, None, images, math.log(classes), True)}


def retrieval_measures(right_I: Counts, right_T: Counts, captions: int) -> dict[str, Measure]:
    """The measures of retrieval among different captions and images, by name.

    Args:
        right_I: for each image as a query, how many of the captions are right.
        right_T: for each caption as a query, how many of the images are right.
        captions: in the gallery that images are asked of.
    """
    return _retrieval(_chances(right_I, captions), _chances(right_T, len(right_I)), len(right_I), len(right_T))


def embedding_measures(images_C: Counts, unseen: int = 0) -> dict[str, Measure]:
    """The measures of ``metrics.evaluate_embeddings``, by key.

    Args:
        images_C: number of images of each class, that is of each distinct caption; the captions are the queries of
            text-to-image retrieval.
        unseen: number of images of unseen classes (``evaluate.unseen_by``); 0: they are not asked for.
    """
    images_C = np.asarray(images_C)
    images, classes = int(images_C.sum()), len(images_C)
    found = zero_shot_measures(images, classes)
    if unseen:
        found |= zero_shot_measures(unseen, classes, "zero_shot_unseen")
    found |= _retrieval(_class_chances(images_C), _chances(images_C, images), images, classes)
    return {f"eval/{name}": measure for name, measure in found.items()}


def _retrieval(to_text: Sequence[float], to_image: Sequence[float], images: int, texts: int) -> dict[str, Measure]:
    """Measures from the chances of both directions: recalls at ``RANKS``, then the mean reciprocal rank."""
    found: dict[str, Measure] = {}
    for direction, chances, queries in (("image_to_text", to_text, images), ("text_to_image", to_image, texts)):
        found |= {f"{direction}_recall{k}": share_of(queries, c) for k, c in zip(RANKS, chances[:-1], strict=True)}
    return found | {"retrieval_mrr": share_of(images + texts, (to_text[-1] + to_image[-1]) / 2)}


def _chances(right_Q: Counts, gallery: int) -> list[float]:
    return [*(random_recall(right_Q, gallery, k) for k in RANKS), random_reciprocal_rank(right_Q, gallery)]


def _class_chances(images_C: npt.NDArray[Any]) -> list[float]:
    """Chances of an image among captions that repeat; equal captions stand together, so whole classes are shuffled.

    Averaged over the images and over at most 400 random orders of the classes, always the same ones.
    """
    orders = max(4, min(400, 4_000_000 // len(images_C)))
    order_OC = np.random.default_rng(0).permuted(np.tile(images_C, (orders, 1)), axis=1)
    rank_OC = 1 + np.cumsum(order_OC, axis=1) - order_OC
    values = [*((rank_OC <= k) for k in RANKS), 1 / rank_OC]
    return [float(np.average(value_OC, weights=order_OC)) for value_OC in values]


def random_recall(right_Q: Counts, gallery: int, k: int) -> float:
    """The expected recall@k of random rankings: 1 − C(G − m, k) / C(G, k), averaged over queries with m right of G."""
    drawn = np.arange(min(k, gallery))
    chances = {m: 1 - np.prod(np.maximum(0, gallery - m - drawn) / (gallery - drawn)) for m in set(right_Q)}
    return float(np.mean([chances[m] for m in right_Q]))


def random_reciprocal_rank(right_Q: Counts, gallery: int) -> float:
    """The expected 1/rank of the first right answer in random rankings, averaged over queries with m right of G.

    The first right answer stands at rank r with probability m/(G − r + 1) · Π_{s<r} (1 − m/(G − s + 1)).
    """
    rank = np.arange(1, gallery + 1)

    def expected(m: int) -> float:
        hit = np.minimum(1.0, m / (gallery - rank + 1))
        return float(np.sum(hit * np.cumprod(np.concatenate([[1.0], 1 - hit[:-1]])) / rank))

    chances = {m: expected(m) for m in set(right_Q)}
    return float(np.mean([chances[m] for m in right_Q]))


REGRESSION_MEASURES = {
    "eval/mse": Measure(0.0, None, lower_is_better=True),
    "eval/auc": Measure(0.0, 1.0, chance=0.5),
    "eval/rank_correlation": Measure(-1.0, 1.0, chance=0.0),
}
"""The measures of a pair scorer's metrics (evals/grading.py)."""
