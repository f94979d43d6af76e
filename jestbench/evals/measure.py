"""What is known about each metric before it is measured. No torch here: the comparison reads measures without it."""

from __future__ import annotations

import math
from dataclasses import dataclass

RANKS = (1, 5, 10)
"""The k of recall@k."""


@dataclass(frozen=True)
class Measure:
    """What is known about a metric before it is measured.

    Attributes:
        low: the smallest value that it can have; ``None`` where there is none.
        high: the largest; ``None`` where there is none.
        examples: number of evaluation examples that the metric is a share of; ``None`` if it is not such a share.
    """

    low: float | None = None
    high: float | None = None
    examples: int | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value, infinite where there is none."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high


def share_of(examples: int) -> Measure:
    """The measure of a share of hits among some examples."""
    return Measure(0.0, 1.0, examples)


def embedding_measures(images: int, captions: int) -> dict[str, Measure]:
    """The measures of what ``evaluate_embeddings`` returns, by key.

    Args:
        images: of the split.
        captions: distinct ones, the queries of text-to-image retrieval.
    """
    found = {f"eval/zero_shot_top{k}": share_of(images) for k in (1, 5)}
    found |= {f"eval/image_to_text_recall{k}": share_of(images) for k in RANKS}
    return found | {f"eval/text_to_image_recall{k}": share_of(captions) for k in RANKS}


REGRESSION_MEASURES = {
    "eval/mse": Measure(0.0, None),
    "eval/auc": Measure(0.0, 1.0),
    "eval/rank_correlation": Measure(-1.0, 1.0),
}
"""The measures of a pair scorer's metrics (evals/grading.py); higher is better in all but mse."""
