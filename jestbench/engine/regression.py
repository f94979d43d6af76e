"""Learning to grade pairs: g(image, text) ∈ [0, 1] by regression, after Cappy.

Source: Tan et al. 2023 (tanyuqian/cappy): a small encoder with one regression output under the squared error; label
1 for the ground truth, 0 for another example's target, Rouge-L for graded candidates. For image–text pairs (our
design): the pair's own caption has label 1, another pair's caption 0, and the own caption made worse word by word
its Rouge-L F with the original; the loss is the mean of the three kinds' mean squared errors.
Departures: graded candidates are word edits, not a language model's answers; the caption of another pair stays at 0
even where it shares words with the own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch, DataError, Mix, Pass
from jestbench.cost.price import Price
from jestbench.cost.tracing import TRAINING_PASSES
from jestbench.data.corrupt import corrupt, other_captions, rouge_l, words_of
from jestbench.engine.learner import Learner, Update
from jestbench.engine.optimizer import Optimizer
from jestbench.model.regressor import Regressor
from jestbench.model.tokenizer import Tokenizer
from jestbench.parallel.arithmetic import Arithmetic


@dataclass(frozen=True)
class Regression:
    """What a pair scorer learns from; bind ``run.objective = @regression()``.

    Attributes:
        others: captions of other pairs a pair, label 0. They cost the head alone (their embeddings are
            there), and weigh together as much as the pair's own caption.
        corruptions: corrupted captions a pair, label Rouge-L F; each costs a pass of the text tower.
        share: largest share of a caption's words that a corruption edits (between one word and
            this share, rounded up, at random).
        hidden: width of the head's hidden layer.
    """

    others: int = 8
    corruptions: int = 1
    share: float = 0.5
    hidden: int = 64

    def __post_init__(self) -> None:
        if self.others < 1:
            raise ValueError(f"regression.others must be at least 1, or nothing is wrong, got {self.others}")
        if self.corruptions < 0:
            raise ValueError(f"regression.corruptions must not be negative, got {self.corruptions}")
        if not 0 < self.share <= 1:
            raise ValueError(f"regression.share is a share of the words in (0, 1], got {self.share}")
        if self.hidden < 1:
            raise ValueError(f"regression.hidden must be at least 1, got {self.hidden}")

    def examples_of(self, pairs: int) -> int:
        """Graded examples made of so many pairs."""
        return pairs * (1 + self.others + self.corruptions)


@dataclass(frozen=True, eq=False)
class Examples:
    """Graded examples made of N pairs: E = N·(1 + others + corruptions), in this order of kinds.

    Attributes:
        image_E: int64 position of the example's image among the N.
        text_E: int64 position of its text among the N captions followed by the corrupted ones.
        label_E: float32 in [0, 1].
        corrupted: the corrupted captions, N·corruptions of them.
        sizes: how many examples there are of each kind.
    """

    image_E: Tensor
    text_E: Tensor
    label_E: Tensor
    corrupted: tuple[str, ...]
    sizes: tuple[int, int, int]

    def kinds(self, value_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values of the examples apart: own captions, those of other pairs, corrupted ones."""
        own, other, corrupted = value_E.split(list(self.sizes))
        return own, other, corrupted

    def mean_of_kinds(self, value_E: Tensor) -> Tensor:
        """Mean over the kinds that there are of each kind's own mean, so that each counts alike."""
        return torch.stack([part.mean() for part in self.kinds(value_E) if len(part)]).mean()


def graded(captions: Sequence[str], objective: Regression, seed: int) -> Examples:
    """The examples that these pairs are made into; a function of captions, objective and seed alone.

    Equality is that of words: a caption of another pair that says the same keeps label 1, and so does a
    corrupted one that came out unchanged.
    """
    rng = random.Random(seeds.derive(seed, "corrupt"))
    words_N = [words_of(caption) for caption in captions]
    count, each = len(words_N), range(len(words_N))
    other_NO = other_captions(words_N, objective.others, rng)
    vocabulary = [word for words in words_N for word in words]
    damaged = [
        (i, corrupt(words_N[i], vocabulary, objective.share, rng)) for i in each for _ in range(objective.corruptions)
    ]
    exchanged = [(i, other, float(words_N[i] == words_N[other])) for i in each for other in other_NO[i]]
    rows = [(i, i, 1.0) for i in each] + exchanged
    rows += [(i, count + place, rouge_l(words, words_N[i])) for place, (i, words) in enumerate(damaged)]
    image, text, label = zip(*rows, strict=True)
    corrupted = tuple(" ".join(words) for _, words in damaged)
    sizes = (count, len(exchanged), len(damaged))
    return Examples(torch.tensor(image), torch.tensor(text), torch.tensor(label), corrupted, sizes)


def captions_of(batch: Batch) -> tuple[str, ...]:
    """The captions of a batch.

    Raises:
        DataError: the data set does not hand them out.
    """
    if not batch.captions:
        raise DataError(
            "a pair scorer is trained on captions word by word, and this data set hands out token ids alone"
        )
    return batch.captions


class RegressionLearner(Learner):
    """A pair scorer in training: the same loop, another loss."""

    model: Regressor

    def __init__(
        self,
        model: Regressor,
        objective: Regression,
        tokenizer: Tokenizer,
        optimizer: Optimizer,
        arithmetic: Arithmetic,
        price: Price,
    ) -> None:
        """Take a model.

        Args:
            model: towers and head.
            objective: what it learns from.
            tokenizer: of the split, for the corrupted captions.
            optimizer: and its schedule.
            arithmetic: device and precision.
            price: of the towers.
        """
        super().__init__(model, "sigmoid", optimizer, arithmetic, price)
        self.objective, self.tokenizer = objective, tokenizer
        self.head_macs = model.head_macs()

    def update(self, batch: Batch, weight_K: Tensor | None, share: float, seed: int) -> Update:
        """One optimizer step on the examples made of the chosen pairs.

        Args:
            batch: the sub-batch, with captions.
            weight_K: weight of each pair on all of its examples, or ``None``.
            share: of the budget spent before this step.
            seed: for the corruptions of this step, and the model's own randomness.

        Raises:
            NonFiniteLoss: before anything is changed.
            DataError: the batch holds no captions, or token ids of another tokenizer.
        """
        examples = graded(captions_of(batch), self.objective, seed)
        torch.manual_seed(seed)
        self.model.train()
        loss_E = F.mse_loss(self.grade(batch, examples), examples.label_E.to(self.arithmetic.device), reduction="none")
        if weight_K is not None:
            loss_E = loss_E * weight_K.to(loss_E.device)[examples.image_E.to(loss_E.device)]
        value, rate, norm = self._descend(examples.mean_of_kinds(loss_E), share)
        return Update(value, rate, norm, self.training_passes(len(batch)))

    def grade(self, batch: Batch, examples: Examples) -> Tensor:
        """g ``[E]`` of the examples made of a batch: each image and each distinct text goes through its tower once."""
        device = self.arithmetic.device
        token_TL = batch.tokens(self.model.tokenizer)
        if examples.corrupted:
            token_TL = torch.cat([token_TL, self.tokenizer.encode(examples.corrupted)])
        with self.arithmetic.autocast():
            image_ND = self.model.encode_image(batch.images_BCHW.to(device, non_blocking=True))
            text_TD = self.model.encode_text(token_TL.to(device, non_blocking=True))
        return self.model.grade(image_ND[examples.image_E.to(device)], text_TD[examples.text_E.to(device)])

    def forward_macs(self, count: int) -> int:
        """Multiply-adds of grading all examples made of ``count`` pairs once."""
        texts = count * (1 + self.objective.corruptions)
        heads = self.objective.examples_of(count)
        return self.price.images(count) + texts * self.price.text + heads * self.head_macs

    def training_passes(self, count: int, mix: Mix | None = None) -> tuple[Pass, ...]:
        """What training on ``count`` pairs is charged: towers and head, three times forward; no K×K logits."""
        what = f"pair scorer, training on {count} pairs, {self.objective.examples_of(count)} examples"
        return (Pass("learner_train", TRAINING_PASSES * self.forward_macs(count), what),)
