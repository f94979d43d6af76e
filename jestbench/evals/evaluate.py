"""Runs the learner over the evaluation split at set points along the budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from jestbench.batch import Batch, DataError, Pass
from jestbench.data.pairs import IndexedPairs
from jestbench.engine.actor import EmbeddingModel
from jestbench.engine.learner import Learner
from jestbench.evals.benchmark import BenchmarkEvaluator, TextEncoding
from jestbench.evals.benchmark_files import read_benchmark
from jestbench.evals.measure import Measure, embedding_measures, mean_measure
from jestbench.evals.metrics import evaluate_embeddings
from jestbench.evals.results import Evaluation, Results
from jestbench.evals.shares import embedded


def points_reached(share: float, points: int) -> int:
    """How many of the shares 1/points, 2/points … 1 are reached.

    The next share is compared as a quotient, since 29/100 · 100 is 28.99… in floats.
    """
    below = int(share * points)
    return below + ((below + 1) / points <= share)


@dataclass(frozen=True)
class Evaluate:
    """When and on what a run is evaluated.

    Attributes:
        points: evaluations after the first step, evenly spaced over the budget; the last is at its
            end. There is one more before the first step.
        split: of the data set.
        limit: evaluate on the first so many pairs only; 0 for all.
        batch_size: images a forward pass.
        sets: folders in CLIP_benchmark's WebDataset layout, evaluated beside the split.
        few_shot: labelled examples a class, from the ``train/`` of each classification set; 0 for none.
        unseen_by: a split (``curated``, say). Images whose class is no caption of it get metrics of their own,
            ``eval/zero_shot_unseen_…``, chosen among all classes; empty for none.
    """

    points: int = 10
    split: str = "eval"
    limit: int = 0
    batch_size: int = 512
    sets: tuple[str, ...] = ()
    few_shot: int = 0
    unseen_by: str = ""

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"evaluate.points must be at least 1, got {self.points}")
        if self.batch_size < 1 or self.limit < 0:
            raise ValueError("evaluate.batch_size must be positive and evaluate.limit not negative")
        if self.few_shot < 0:
            raise ValueError(f"evaluate.few_shot must not be negative, got {self.few_shot}")
        if self.few_shot and not self.sets:
            raise ValueError("evaluate.few_shot takes its examples from evaluate.sets: name one that has train/")

    def due(self, before: float, after: float) -> bool:
        """Whether a point lies between two shares of the budget."""
        return points_reached(before, self.points) < points_reached(after, self.points)


class Evaluator:
    """The evaluation split and the sets beside it, ready to be run.

    Args:
        pairs: the split.
        config: when and on what.
        resolution: pixels, of the model's image tower; what the sets' images are brought to.
        seen_key_N: text keys of the split ``evaluate.unseen_by``; ``None`` where none is named.
        tokenizer: of the model; ``None`` is that of the split.

    Raises:
        DataError: a set is not in its layout, two have one name, few-shot is asked of none that classifies, or every
            class or no class is unseen.
    """

    def __init__(
        self,
        pairs: IndexedPairs,
        config: Evaluate,
        resolution: int = 0,
        seen_key_N: Tensor | None = None,
        tokenizer: TextEncoding | None = None,
    ) -> None:
        count = min(config.limit or len(pairs), len(pairs))
        self.pairs, self.config, self.index_N = pairs, config, torch.arange(count)
        keys_N = pairs.text_key_N[:count]
        self.class_key_C, self.class_N = keys_N.unique(return_inverse=True)
        seen_C = torch.ones_like(self.class_key_C, dtype=torch.bool)
        if seen_key_N is not None:
            seen_C = torch.isin(self.class_key_C, seen_key_N)
            if len(seen_C.unique()) < 2:
                raise DataError(
                    f"evaluate.unseen_by: {config.unseen_by} holds {'every' if bool(seen_C.all()) else 'no'} class of "
                    f"{pairs.name}: name a split that holds a part of them, or none"
                )
        self.unseen_N = ~seen_C[self.class_N].numpy()
        # One example of each class: its caption is the class's text.
        order = torch.argsort(self.class_N, stable=True)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), self.class_N.bincount().cumsum(0)[:-1]])
        self.example_C = order[starts]
        sets = [read_benchmark(folder, train=config.few_shot > 0) for folder in config.sets]
        if len({found.name for found in sets}) < len(sets):
            raise DataError(f"evaluate.sets: two folders have one name: {', '.join(found.name for found in sets)}")
        if config.few_shot and all(found.task == "retrieval" for found in sets):
            raise DataError("evaluate.few_shot classifies images, and evaluate.sets holds sets for retrieval alone")
        self.sets = [
            BenchmarkEvaluator(found, tokenizer or pairs.tokenizer, resolution, config.batch_size, config.few_shot)
            for found in sets
        ]

    @property
    def measures(self) -> dict[str, Measure]:
        """The metrics that a call gives, by key."""
        found = embedding_measures(self.class_N.bincount().numpy(), int(self.unseen_N.sum()))
        for one in self.sets:
            found |= one.measures
        return found | {mean: mean_measure([found[key] for key in keys]) for mean, keys in self.means.items()}

    @cached_property
    def means(self) -> dict[str, list[str]]:
        """Of each metric that two sets or more report: the key of its mean over them, and their keys."""
        found: dict[str, list[str]] = {}
        for one in self.sets:
            for key in one.measures:
                found.setdefault(f"eval/sets_mean_{key.rpartition('/')[2]}", []).append(key)
        return {mean: keys for mean, keys in found.items() if len(keys) > 1}

    def __call__(self, learner: Learner) -> Evaluation:
        """As ``of``, of a model in training."""
        learner.model.eval()
        with learner.gradients.whole():
            return self.of(learner)

    def of(self, subject: EmbeddingModel) -> Evaluation:
        """Metrics ``eval/…`` of a model in eval mode, the passes that they cost, and each example's results."""
        found = self.on_split(subject)
        metrics, passes, results = found.metrics, found.passes, found.results
        for one in self.sets:
            more = one(subject)
            metrics, passes = {**metrics, **more.metrics}, passes + more.passes
            results = Results({**results.rankings, **more.results.rankings})
        means = {mean: sum(metrics[key] for key in keys) / len(keys) for mean, keys in self.means.items()}
        return Evaluation({**metrics, **means}, passes, results)

    def on_split(self, subject: EmbeddingModel) -> Evaluation:
        """Metrics of a model in eval mode on the split alone, the passes that they cost, and each example's results."""
        model, arithmetic = subject.model, subject.arithmetic
        device, world = arithmetic.device, arithmetic.world

        def image_of(index: Tensor) -> Tensor:
            return model.encode_image(self._exactly(self.index_N[index]).images_BCHW.to(device))

        def text_of(index: Tensor) -> Tensor:
            batch = model.tokenized(self.pairs.batch(self.example_C[index]))
            return model.encode_text(batch.tokens(model.tokenizer).to(device))

        image_ND = embedded(subject, len(self.index_N), self.config.batch_size, image_of)
        class_CD = embedded(subject, len(self.example_C), self.config.batch_size, text_of)
        keys_N = torch.from_numpy(self.pairs.image_key_N[: len(self.index_N)].copy())
        scale = model.scale_and_bias()[0]
        class_N = self.class_N.to(device)
        results = evaluate_embeddings(image_ND, class_CD, class_N, scale, self.class_key_C, keys_N, world)
        macs = len(self.index_N) * subject.price.image + len(self.example_C) * subject.price.text
        passes: tuple[Pass, ...] = (Pass("eval", macs, f"evaluation on {len(self.index_N)} images"),)
        if self.unseen_N.any():
            unseen = results.rankings["zero_shot"].only(self.unseen_N)
            results = Results({**results.rankings, "zero_shot_unseen": unseen})
        metrics = {key: results.mean(key) for key in embedding_measures((1,), int(self.unseen_N.any()))}
        return Evaluation(metrics, passes, results)

    def _exactly(self, index_B: Tensor) -> Batch:
        """The pairs at exactly these positions; ``DataError`` where one of them is damaged and another was read."""
        batch = self.pairs.batch(index_B)
        replaced = np.flatnonzero(batch.image_key_B.numpy() != self.pairs.image_key_N[index_B.numpy()])
        if len(replaced):
            raise DataError(
                f"{self.pairs.name}: image {int(index_B[replaced[0]])} cannot be read, so the split cannot be "
                "evaluated as it is: mend it, or list the split under the data set's verify, which leaves out damage"
            )
        return batch
