"""What each example of an evaluation contributes to its metrics. No torch here: the comparison reads it without."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from jestbench.batch import Pass

Whole = npt.NDArray[np.int64]
Real = npt.NDArray[np.float64]


def influence_SG(example_SN: Real, unit_N: Whole | None) -> Real:
    """What each unit adds to each seed's mean; the sum of its squares estimates the mean's variance over units.

    The mean over examples is a ratio of two sums over units (of values, of sizes). Its linearisation is
    Σ_{i in unit} (x_i − x̄) / N, here times √(G / (G − 1)) (Cochran 1977, Sampling Techniques, sections 6.4 and 9A.1).

    Args:
        example_SN: values, the same examples for every seed.
        unit_N: unit of each example; ``None``: each is its own.
    """
    rest_SN = (example_SN - example_SN.mean(1, keepdims=True)) / example_SN.shape[1]
    if unit_N is not None:
        name_G, code_N = np.unique(unit_N, return_inverse=True)
        rest_SN = np.stack([np.bincount(code_N, rest_N, len(name_G)) for rest_N in rest_SN])
    units = rest_SN.shape[1]
    return np.asarray(rest_SN * math.sqrt(units / max(units - 1, 1)), dtype=np.float64)


@dataclass(frozen=True)
class Ranking:
    """One question, asked of many examples, and where each example's right answer ranks.

    Attributes:
        rank_N: rank of the (first) right answer; 1 is best.
        unit_N: class or caption group of the example: examples of one unit share a prompt, so that they err together.
        key_N: identity of the example, equal in all runs over one split.
        log_probability_N: of the right class in nats, under a softmax over the classes at the model's own scale;
            ``None`` where the question has no probabilities.
    """

    rank_N: Whole
    unit_N: Whole
    key_N: Whole
    log_probability_N: Real | None = None

    def only(self, chosen_N: npt.NDArray[np.bool_]) -> Ranking:
        """The ranking of these examples alone, among the same answers."""
        log_N = self.log_probability_N
        log_P = None if log_N is None else log_N[chosen_N]
        return Ranking(self.rank_N[chosen_N], self.unit_N[chosen_N], self.key_N[chosen_N], log_P)


@dataclass(frozen=True)
class Examples:
    """A metric as a mean over examples: the mean of ``value_N`` is the metric.

    Attributes:
        value_N: what each example contributes.
        unit_N: class or caption group of the example.
        key_N: identity of the example.
    """

    value_N: Real
    unit_N: Whole
    key_N: Whole

    @property
    def standard_error(self) -> float | None:
        """Of the mean, from unit to unit (docs/statistics.md); ``None`` where there is one unit."""
        influence_G = influence_SG(self.value_N[None], self.unit_N)[0]
        return float(np.sqrt((influence_G**2).sum())) if len(influence_G) > 1 else None


@dataclass(frozen=True)
class Results:
    """All rankings of an evaluation.

    Attributes:
        rankings: by question (``zero_shot``, ``zero_shot_unseen``, ``image_to_text``, ``text_to_image``, ``10_shot``),
            with the name of a benchmark set and ``/`` before it where the set is asked and not the evaluation split.
    """

    rankings: Mapping[str, Ranking]

    def of(self, metric: str) -> Examples | None:
        """The examples of a metric.

        Args:
            metric: its key, ``eval/…``.

        Returns:
            The examples; ``None`` where the metric is no mean over examples, or was not evaluated.
        """
        *above, name = metric.removeprefix("eval/").split("/")
        of_set = "".join(f"{part}/" for part in above)
        for pattern, question, value_of in _RULES:
            found = re.fullmatch(pattern, name)
            ranking = self.rankings.get(of_set + found.expand(question)) if found else None
            if found and ranking is not None:
                value_N = value_of(ranking, int(found.groupdict().get("k") or 0))
                return None if value_N is None else Examples(value_N, ranking.unit_N, ranking.key_N)
        return self._retrieval_mrr(of_set) if name == "retrieval_mrr" else None

    def _retrieval_mrr(self, of_set: str) -> Examples | None:
        """Both directions of retrieval with equal weight, whatever the numbers of images and captions."""
        both = [self.rankings.get(of_set + question) for question in ("image_to_text", "text_to_image")]
        there = [ranking for ranking in both if ranking is not None]
        if len(there) < len(both):
            return None
        total = sum(len(ranking.rank_N) for ranking in there)
        weights = [total / (len(there) * len(ranking.rank_N)) for ranking in there]
        return Examples(
            np.concatenate([weight / ranking.rank_N for weight, ranking in zip(weights, there, strict=True)]),
            np.concatenate([ranking.unit_N for ranking in there]),
            np.concatenate([ranking.key_N for ranking in there]),
        )

    def mean(self, metric: str) -> float:
        """The value of a metric that is a mean over examples.

        Raises:
            KeyError: it is none.
        """
        found = self.of(metric)
        if found is None:
            raise KeyError(metric)
        return float(found.value_N.mean())

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The content as named arrays, for a file."""
        found: dict[str, npt.NDArray[Any]] = {}
        for question, ranking in self.rankings.items():
            for field in ("rank_N", "unit_N", "key_N", "log_probability_N"):
                if (array := getattr(ranking, field)) is not None:
                    found[f"{question}/{field.removesuffix('_N')}"] = array
        return found

    @staticmethod
    def of_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Results:
        """Results from what ``arrays`` returned.

        Raises:
            KeyError: an array is missing.
        """
        questions = dict.fromkeys(name.rpartition("/")[0] for name in arrays)
        return Results(
            {
                question: Ranking(
                    arrays[f"{question}/rank"],
                    arrays[f"{question}/unit"],
                    arrays[f"{question}/key"],
                    arrays.get(f"{question}/log_probability"),
                )
                for question in questions
            }
        )


class Evaluation(NamedTuple):
    """What an evaluation gives.

    Attributes:
        metrics: by key, ``eval/…``.
        passes: what it costs.
        results: what each example contributes to those metrics that are means over examples.
    """

    metrics: Mapping[str, float]
    passes: tuple[Pass, ...]
    results: Results = Results({})


def _hit(ranking: Ranking, k: int) -> Real:
    return (ranking.rank_N <= k).astype(np.float64)


_RULES: tuple[tuple[str, str, Callable[[Ranking, int], Real | None]], ...] = (
    (r"(zero_shot(?:_unseen)?)_top(?P<k>\d+)", r"\1", _hit),
    (r"(zero_shot(?:_unseen)?)_mrr", r"\1", lambda ranking, k: 1 / ranking.rank_N),
    (
        r"(zero_shot(?:_unseen)?)_nll",
        r"\1",
        lambda ranking, k: None if ranking.log_probability_N is None else -ranking.log_probability_N,
    ),
    (r"(image_to_text|text_to_image)_recall(?P<k>\d+)", r"\1", _hit),
    (r"(\d+_shot)_top(?P<k>\d+)", r"\1", _hit),
)
"""By a pattern of the metric's name: the question, and what an example contributes."""
