"""Runs a learner over evaluation sets in CLIP_benchmark's layout: zero-shot, retrieval, few-shot."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.batch import DataError, Pass
from jestbench.data.decode import DamagedImage, decode
from jestbench.engine.learner import Learner
from jestbench.evals.benchmark_files import Benchmark, Member
from jestbench.evals.few_shot import ridge_scores, shots_of
from jestbench.evals.measure import RANKS, Measure, share_of
from jestbench.evals.metrics import group_ranks, zero_shot_ranks
from jestbench.model.tokenizer import Tokenizer

KEPT_BYTES = 2**30
"""A set whose decoded images fit in here is decoded once; a larger one at each evaluation."""


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
        self, benchmark: Benchmark, tokenizer: Tokenizer, resolution: int, batch_size: int, few_shot: int = 0
    ) -> None:
        self.benchmark, self.resolution, self.batch_size, self.few_shot = benchmark, resolution, batch_size, few_shot
        self._kept: dict[int, Tensor] = {}
        if benchmark.task == "zero_shot":
            texts = [t.replace("{c}", name) for name in benchmark.classnames for t in benchmark.templates]
        else:
            texts = [caption for captions in benchmark.test.captions for caption in captions]
        self._token_TL = tokenizer.encode(texts)
        self._shots: tuple[tuple[Member, ...], Tensor] | None = None
        if few_shot and benchmark.task == "zero_shot":
            if benchmark.train is None:
                raise DataError(f"evaluate.few_shot: the set {benchmark.name} has no train/ folder")
            class_N = torch.tensor(benchmark.train.classes)
            index_S = shots_of(class_N, few_shot)
            self._shots = tuple(benchmark.train.images[i] for i in index_S.tolist()), class_N[index_S]

    def __call__(self, learner: Learner) -> tuple[dict[str, float], tuple[Pass, ...]]:
        """Metrics ``eval/NAME/…`` as shares in [0, 1], and the passes that they cost.

        Raises:
            DataError: an image of the set cannot be decoded.
        """
        image_ND = self._embed_images(learner, self.benchmark.test.images)
        text_TD = self._embed_texts(learner)
        count = len(image_ND)
        if self.benchmark.task == "zero_shot":
            found = self._zero_shot(image_ND, text_TD)
            if self._shots is not None:
                members, class_S = self._shots
                found |= self._few_shot(self._embed_images(learner, members), class_S, image_ND)
                count += len(members)
        else:
            found = self._retrieval(image_ND, text_TD)
        macs = count * learner.price.image + len(text_TD) * learner.price.text
        name = self.benchmark.name
        passes = (Pass("eval", macs, f"evaluation on {name}, {count} images"),)
        return {f"eval/{name}/{metric}": value for metric, value in found.items()}, passes

    @property
    def measures(self) -> dict[str, Measure]:
        """The metrics that a call gives, by key."""
        images, texts = len(self.benchmark.test.images), len(self._token_TL)
        if self.benchmark.task == "zero_shot":
            shares = ["zero_shot_top1", "zero_shot_top5"] + ([f"{self.few_shot}_shot_top1"] if self.few_shot else [])
            found = {name: share_of(images) for name in shares}
            found["mean_per_class_recall"] = Measure(0.0, 1.0)  # classes of unequal sizes: no share of examples
        else:
            found = {f"image_to_text_recall{k}": share_of(images) for k in RANKS}
            found |= {f"text_to_image_recall{k}": share_of(texts) for k in RANKS}
        return {f"eval/{self.benchmark.name}/{metric}": measure for metric, measure in found.items()}

    def _zero_shot(self, image_ND: Tensor, text_TD: Tensor) -> dict[str, float]:
        classes = len(self.benchmark.classnames)
        # A class is the mean over its templates of normalised embeddings (Radford et al. 2021, section 3.1.4).
        class_CD = F.normalize(text_TD.unflatten(0, (classes, -1)).mean(1), dim=-1)
        class_N = torch.tensor(self.benchmark.test.classes, device=image_ND.device)
        rank_N = zero_shot_ranks(image_ND, class_CD, class_N)
        hit_N = (rank_N <= 1).double()
        number_C = torch.bincount(class_N, minlength=classes)
        hits_C = torch.zeros(classes, dtype=torch.float64, device=hit_N.device).index_add_(0, class_N, hit_N)
        there = number_C > 0
        return {
            "zero_shot_top1": float(hit_N.mean()),
            "zero_shot_top5": float((rank_N <= 5).double().mean()),
            "mean_per_class_recall": float((hits_C[there] / number_C[there]).mean()),
        }

    def _few_shot(self, shot_SD: Tensor, class_S: Tensor, image_ND: Tensor) -> dict[str, float]:
        scores_NC = ridge_scores(shot_SD, class_S.to(shot_SD.device), image_ND, len(self.benchmark.classnames))
        class_N = torch.tensor(self.benchmark.test.classes, device=scores_NC.device)
        return {f"{self.few_shot}_shot_top1": float((scores_NC.argmax(1) == class_N).double().mean())}

    def _retrieval(self, image_ND: Tensor, text_TD: Tensor) -> dict[str, float]:
        counts = torch.tensor([len(captions) for captions in self.benchmark.test.captions])
        group_T = torch.repeat_interleave(torch.arange(len(counts)), counts).to(image_ND.device)
        group_N = torch.arange(len(counts), device=image_ND.device)
        to_text = group_ranks(image_ND, text_TD, group_N, group_T)
        to_image = group_ranks(text_TD, image_ND, group_T, group_N)
        found = {f"image_to_text_recall{k}": float((to_text <= k).double().mean()) for k in RANKS}
        return found | {f"text_to_image_recall{k}": float((to_image <= k).double().mean()) for k in RANKS}

    def _embed_texts(self, learner: Learner) -> Tensor:
        model = learner.model.eval()
        with torch.no_grad(), learner.arithmetic.autocast():
            parts = self._token_TL.split(self.batch_size)
            return torch.cat([model.encode_text(part.to(learner.arithmetic.device)) for part in parts])

    def _embed_images(self, learner: Learner, members: Sequence[Member]) -> Tensor:
        model = learner.model.eval()
        with torch.no_grad(), learner.arithmetic.autocast():
            return torch.cat([model.encode_image(p.to(learner.arithmetic.device)) for p in self._decoded(members)])

    def _decoded(self, members: Sequence[Member]) -> Iterator[Tensor]:
        """Batches ``[P, 3, H, W]`` of uint8 images; kept where all of them fit."""
        keep = len(members) * 3 * self.resolution**2 <= KEPT_BYTES
        # By identity: the test images and the shots are two tuples that live as long as this object.
        if id(members) in self._kept:
            yield from self._kept[id(members)].split(self.batch_size)
            return
        batches = []
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for start in range(0, len(members), self.batch_size):
                images = list(threads.map(self._image, members[start : start + self.batch_size]))
                batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
                batches += [batch] if keep else []
                yield batch
        if keep:
            self._kept[id(members)] = torch.cat(batches)

    def _image(self, member: Member) -> npt.NDArray[np.uint8]:
        try:
            return decode(member.read(), self.resolution)
        except DamagedImage as error:
            raise DataError(f"{member.tar}: an image of {self.benchmark.name} is damaged: {error}") from error
