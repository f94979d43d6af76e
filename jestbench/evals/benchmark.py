"""Runs a learner over evaluation sets in CLIP_benchmark's layout: zero-shot, retrieval, few-shot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.batch import DataError, Pass
from jestbench.data.decode import DamagedImage, decode
from jestbench.engine.actor import EmbeddingModel
from jestbench.evals.benchmark_files import Benchmark, Member
from jestbench.evals.few_shot import ridge_scores, shots_of
from jestbench.evals.measure import Measure, retrieval_measures, share_of, zero_shot_measures
from jestbench.evals.metrics import array_of, group_ranks, log_probabilities
from jestbench.evals.results import Evaluation, Ranking, Results
from jestbench.evals.shares import by_rows, embedded, gathered
from jestbench.parallel.distributed import World

PER_CLASS = "mean_per_class_recall"
KEPT_BYTES = 2**30
"""A set whose decoded images fit in here is decoded once; a larger one at each evaluation."""


class TextEncoding(Protocol):
    """A tokenizer, of ours or of another library."""

    @property
    def encode(self) -> Callable[[list[str]], Tensor]:
        """Texts → ids ``[N, L]``."""
        ...


class BenchmarkEvaluator:
    """One set, ready to be run.

    Images are resized (shortest side, bicubic) and cropped to the centre at the tower's resolution, as CLIP does.

    Args:
        benchmark: the set.
        tokenizer: of the model under test.
        resolution: pixels, of the model's image tower.
        batch_size: images a forward pass.
        few_shot: labelled examples a class; 0 for none. Needs the set's ``train/``.

    Raises:
        DataError: few-shot is asked of a set that has no ``train/``.
    """

    def __init__(
        self, benchmark: Benchmark, tokenizer: TextEncoding, resolution: int, batch_size: int, few_shot: int = 0
    ) -> None:
        self.benchmark, self.resolution, self.batch_size, self.few_shot = benchmark, resolution, batch_size, few_shot
        self._kept: dict[int, Tensor] = {}
        self.token_TL = tokenizer.encode(self.texts).to(torch.int64)
        self._shots: tuple[tuple[Member, ...], Tensor] | None = None
        if few_shot and benchmark.task == "zero_shot":
            if benchmark.train is None:
                raise DataError(f"evaluate.few_shot: the set {benchmark.name} has no train/ folder")
            class_N = torch.tensor(benchmark.train.classes)
            index_S = shots_of(class_N, few_shot)
            self._shots = tuple(benchmark.train.images[i] for i in index_S.tolist()), class_N[index_S]

    def __call__(self, subject: EmbeddingModel) -> Evaluation:
        """Metrics ``eval/NAME/…``, the passes that they cost, and the results of each example.

        Raises:
            DataError: an image of the set cannot be decoded.
        """
        image_ND = self._embed_images(subject, self.benchmark.test.images)
        text_TD = self._embed_texts(subject)
        count = len(image_ND)
        if self.benchmark.task == "zero_shot":
            found = self._zero_shot(image_ND, text_TD, subject.model.scale_and_bias()[0], subject.arithmetic.world)
            if self._shots is not None:
                members, class_S = self._shots
                found |= self._few_shot(self._embed_images(subject, members), class_S, image_ND)
                count += len(members)
        else:
            found = self._retrieval(image_ND, text_TD, subject.arithmetic.world)
        macs = count * subject.price.image + len(text_TD) * subject.price.text
        name = self.benchmark.name
        passes = (Pass("eval", macs, f"evaluation on {name}, {count} images"),)
        results = Results({f"{name}/{question}": ranking for question, ranking in found.items()})
        metrics = {key: results.mean(key) for key in self.measures if not key.endswith(PER_CLASS)}
        if "zero_shot" in found:
            rank_N, class_N = found["zero_shot"].rank_N, found["zero_shot"].unit_N
            metrics[f"eval/{name}/{PER_CLASS}"] = float(
                np.mean([(rank_N[class_N == c] <= 1).mean() for c in set(class_N)])
            )
        return Evaluation(metrics, passes, results)

    @property
    def texts(self) -> list[str]:
        """The prompts of each class, class by class, or the captions of each image, image by image."""
        if self.benchmark.task == "zero_shot":
            return [t.replace("{c}", name) for name in self.benchmark.classnames for t in self.benchmark.templates]
        return [caption for captions in self.benchmark.test.captions for caption in captions]

    @property
    def measures(self) -> dict[str, Measure]:
        """The metrics that a call gives, by key."""
        images, texts = len(self.benchmark.test.images), len(self.token_TL)
        if self.benchmark.task == "zero_shot":
            classes = len(self.benchmark.classnames)
            found = zero_shot_measures(images, classes)
            if self.few_shot:
                found[f"{self.few_shot}_shot_top1"] = share_of(images, 1 / classes)
            found[PER_CLASS] = Measure(0.0, 1.0, chance=1 / classes)  # classes of unequal sizes: no mean over examples
        else:
            captions = [len(captions) for captions in self.benchmark.test.captions]
            found = retrieval_measures(captions, [1] * texts, texts)
        return {f"eval/{self.benchmark.name}/{metric}": measure for metric, measure in found.items()}

    def _zero_shot(self, image_ND: Tensor, text_TD: Tensor, scale: float, world: World) -> dict[str, Ranking]:
        classes = len(self.benchmark.classnames)
        # A class is the mean over its templates of normalised embeddings (Radford et al. 2021, section 3.1.4).
        class_CD = F.normalize(text_TD.unflatten(0, (classes, -1)).mean(1), dim=-1)
        class_N = torch.tensor(self.benchmark.test.classes, device=image_ND.device)
        class_C = torch.arange(classes, device=image_ND.device)
        rank_N = by_rows(
            world, lambda image_PD, class_P: group_ranks(image_PD, class_CD, class_P, class_C), image_ND, class_N
        )
        log_N = by_rows(
            world, lambda image_PD, class_P: log_probabilities(image_PD, class_CD, class_P, scale), image_ND, class_N
        )
        return {"zero_shot": self._ranking(rank_N, class_N, log_N)}

    def _few_shot(self, shot_SD: Tensor, class_S: Tensor, image_ND: Tensor) -> dict[str, Ranking]:
        scores_NC = ridge_scores(shot_SD, class_S.to(shot_SD.device), image_ND, len(self.benchmark.classnames))
        class_N = torch.tensor(self.benchmark.test.classes, device=scores_NC.device)
        # Of equal scores the lowest class is chosen, as argmax does; NaN hits nothing.
        hit_N = (scores_NC.argmax(1) == class_N) & scores_NC.isfinite().all(1)
        rank_N = torch.where(hit_N, 1, 2)
        return {f"{self.few_shot}_shot": self._ranking(rank_N, class_N)}

    def _retrieval(self, image_ND: Tensor, text_TD: Tensor, world: World) -> dict[str, Ranking]:
        counts = torch.tensor([len(captions) for captions in self.benchmark.test.captions])
        group_T = torch.repeat_interleave(torch.arange(len(counts)), counts).to(image_ND.device)
        group_N = torch.arange(len(counts), device=image_ND.device)
        to_text = by_rows(
            world, lambda image_PD, group_P: group_ranks(image_PD, text_TD, group_P, group_T), image_ND, group_N
        )
        to_image = by_rows(
            world, lambda text_PD, group_P: group_ranks(text_PD, image_ND, group_P, group_N), text_TD, group_T
        )
        return {
            "image_to_text": self._ranking(to_text, group_N),
            "text_to_image": self._ranking(to_image, group_T),
        }

    @staticmethod
    def _ranking(rank_N: Tensor, unit_N: Tensor, log_N: Tensor | None = None) -> Ranking:
        """Ranks of the set's examples, which are known by their place in it."""
        key_N = np.arange(len(rank_N))
        return Ranking(array_of(rank_N), array_of(unit_N), key_N, None if log_N is None else array_of(log_N.double()))

    def _embed_texts(self, subject: EmbeddingModel) -> Tensor:
        model, device = subject.model.eval(), subject.arithmetic.device

        def text_of(index: Tensor) -> Tensor:
            return model.encode_text(self.token_TL[index].to(device))

        return embedded(subject, len(self.token_TL), self.batch_size, text_of)

    def _embed_images(self, subject: EmbeddingModel, members: Sequence[Member]) -> Tensor:
        model, arithmetic = subject.model.eval(), subject.arithmetic
        own = self._decoded(members, arithmetic.world)
        return gathered((model.encode_image(part.to(arithmetic.device)) for part in own), len(members), subject)

    def _decoded(self, members: Sequence[Member], world: World) -> Iterator[Tensor]:
        """Batches ``[P, 3, H, W]`` of this process's uint8 images; kept where all of them fit."""
        own = [members[at] for at in world.rows(len(members)).tolist()]
        keep = len(own) * 3 * self.resolution**2 <= KEPT_BYTES
        # By identity: the test images and the shots are two tuples that live as long as this object.
        if id(members) in self._kept:
            yield from self._kept[id(members)].split(self.batch_size)
            return
        batches = []
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for start in range(0, len(own), self.batch_size):
                images = list(threads.map(self._image, own[start : start + self.batch_size]))
                batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
                batches += [batch] if keep else []
                yield batch
        if keep and batches:
            self._kept[id(members)] = torch.cat(batches)

    def _image(self, member: Member) -> npt.NDArray[np.uint8]:
        try:
            return decode(member.read(), self.resolution)
        except DamagedImage as error:
            raise DataError(f"{member.tar}: an image of {self.benchmark.name} is damaged: {error}") from error
