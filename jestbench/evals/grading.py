"""How well a pair scorer grades: squared error, matched against exchanged captions, and order of the corrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from jestbench.batch import Pass
from jestbench.data.pairs import IndexedPairs
from jestbench.engine.actor import EmbeddingModel
from jestbench.engine.regression import GradedObjective, captions_of, graded
from jestbench.evals.benchmark import TextEncoding
from jestbench.evals.evaluate import Evaluate, Evaluator
from jestbench.evals.measure import REGRESSION_MEASURES, Measure
from jestbench.evals.results import Evaluation

EVALUATION_SEED = 0
"""Seed of the graded examples: the same for all runs over one split, so that their figures can be compared."""


def area_under_curve(right_N: Tensor, wrong_M: Tensor) -> float:
    """Probability that a right pair is graded above a wrong one, ties counted half; 0.5 where there is none."""
    from scipy.stats import mannwhitneyu  # imported here: half a second, spent only when grades are evaluated

    if not len(right_N) or not len(wrong_M):
        return 0.5
    # Only the statistic is used, not the p-value, so the fastest method for the latter will do.
    found = mannwhitneyu(right_N.double().numpy(), wrong_M.double().numpy(), method="asymptotic")
    return float(found.statistic) / (len(right_N) * len(wrong_M))


def rank_correlation(one_N: Tensor, other_N: Tensor) -> float:
    """Spearman's ρ, ties at their mean rank; 0 where either side is constant."""
    from scipy.stats import spearmanr

    if len(one_N.unique()) < 2 or len(other_N.unique()) < 2:
        return 0.0
    return float(spearmanr(one_N.double().numpy(), other_N.double().numpy()).statistic)


class RegressionEvaluator(Evaluator):
    """The evaluation split, made into the same graded examples each time."""

    def __init__(self, pairs: IndexedPairs, config: Evaluate, objective: GradedObjective) -> None:
        super().__init__(pairs, config)
        self.objective = objective

    @property
    def measures(self) -> dict[str, Measure]:
        """The metrics of an evaluation, by key."""
        return REGRESSION_MEASURES

    def of(self, subject: EmbeddingModel) -> Evaluation:
        """``eval/mse``, ``eval/auc`` and ``eval/rank_correlation`` of a model in eval mode, and what they cost."""
        matched, exchanged, corrupted, labels, errors, macs = [], [], [], [], [], 0
        for number, index in enumerate(self.index_N.split(self.config.batch_size)):
            batch = self.pairs.batch(index)
            examples = graded(captions_of(batch), self.objective.regression, EVALUATION_SEED + number)
            with torch.no_grad():
                # A NaN grade counts as 0.5, no better than chance; the next update then ends the run.
                grade_E = self.objective.grade(subject, batch, examples).cpu().nan_to_num(0.5)
            macs += self.objective.forward_macs(subject, len(index))
            own_E, other_E, damaged_E = examples.kinds(grade_E)
            _, other_label_E, label_E = examples.kinds(examples.label_E)
            matched.append(own_E)
            exchanged.append(other_E[other_label_E == 0])
            corrupted.append(damaged_E)
            labels.append(label_E)
            errors.append(len(index) * examples.mean_of_kinds((grade_E - examples.label_E).square()))
        metrics = {
            "eval/mse": float(sum(errors)) / len(self.index_N),
            "eval/auc": area_under_curve(torch.cat(matched), torch.cat(exchanged)),
            "eval/rank_correlation": rank_correlation(torch.cat(corrupted), torch.cat(labels)),
        }
        return Evaluation(metrics, (Pass("eval", macs, f"grading the pairs of {len(self.index_N)} images"),))


EVALUATORS: Mapping[str, Callable[[IndexedPairs, Evaluate, int, Any, Tensor | None, TextEncoding], Evaluator]] = {
    "contrastive": lambda pairs, config, side, objective, seen, own: Evaluator(pairs, config, side, seen, own),
    "regression": lambda pairs, config, side, objective, seen, own: RegressionEvaluator(pairs, config, objective),
}
"""By the kind of the model; it takes the side of the model's images, what the model is trained for (of a pair scorer),
the text keys of ``evaluate.unseen_by``, and the model's tokenizer."""
