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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench import seeds
from jestbench.batch import FULL, Batch, DataError, Pass
from jestbench.cost.price import Price
from jestbench.cost.tracing import TRAINING_PASSES
from jestbench.data.corrupt import corrupt, other_captions, rouge_l, words_of
from jestbench.engine.actor import EmbeddingModel
from jestbench.engine.casting import Setting, Training, check_training, shape_of
from jestbench.engine.grade_rows import GradeRows
from jestbench.engine.learner import Learner, Objective
from jestbench.model.regressor import Regressor
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import TwoTowers
from jestbench.parallel.arithmetic import to_device
from jestbench.select.losses import Each

if TYPE_CHECKING:
    from jestbench.config.run import Run


@dataclass(frozen=True)
class Regression(Training):
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

    kind = "regression"
    content = GradeRows
    taken_as = "run.scorer takes a run that was trained to grade pairs (gin/run/cappy.gin)"
    does = "trains a pair scorer"
    together = selects = False
    refuses: ClassVar[Mapping[str, str]] = {
        "init": "run.init: a run with run.objective trains a pair scorer from random weights",
        "model.freeze": "model.freeze is for the contrastive loss: a run with run.objective trains both towers",
        "remember_images": "run.remember_images is for a locked image tower, and a run with run.objective has none",
        "evaluate.sets": "evaluate.sets are for embeddings: a run with run.objective is evaluated by its grades",
        "train_views": "run.train_views are for the contrastive loss: a run with run.objective has the full view",
        "grad_checkpointing": "run.grad_checkpointing: a run with an objective of its own cannot save memory that way",
        "shard": "run.shard: a pair scorer is trained by one process, which has nothing to share",
        "train_microbatch": "run.train_microbatch: a run with an objective of its own cannot save memory that way",
    }

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

    def build(self, run: Run, tokenizer: Tokenizer) -> Regressor:
        """Two towers of the run's shape, and a head."""
        return Regressor.build(run.model, tokenizer, self.hidden, run.seed)

    def learner(self, setting: Setting) -> Learner:
        """The pair scorer in training."""
        run, tokenizer = setting.run, setting.pairs.tokenizer
        model = self.build(run, tokenizer).to(setting.arithmetic.device)
        check_training(model, setting)
        prices = {FULL: Price.of(model, setting.example)}
        if setting.compiled:
            model.compile_blocks()
        return Learner(model, self.objective(model, tokenizer), run.optimizer, setting.arithmetic, prices)

    def objective(self, model: TwoTowers, tokenizer: Tokenizer) -> GradedObjective:
        """Grades, by their squared error."""
        return GradedObjective(cast(Regressor, model), self, tokenizer)

    def described(self) -> dict[str, Any]:
        """Its kind, and the width of the head."""
        return super().described() | {"hidden": self.hidden}

    @classmethod
    def rebuilt(cls, described: Mapping[str, Any], tokenizer: Tokenizer) -> Regressor:
        """A pair scorer, with random weights."""
        return Regressor.build(shape_of(described), tokenizer, described["hidden"], seed=0)


@dataclass(frozen=True, eq=False)
class GradedExamples:
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


def graded(captions: Sequence[str], objective: Regression, seed: int) -> GradedExamples:
    """Graded examples of the pairs with these captions; a function of captions, objective and seed alone.

    Captions are compared by their words: another pair's caption of the same words has label 1, and so does a
    corrupted caption that came out unchanged.
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
    return GradedExamples(torch.tensor(image), torch.tensor(text), torch.tensor(label), corrupted, sizes)


def captions_of(batch: Batch) -> tuple[str, ...]:
    """The captions of a batch.

    Raises:
        DataError: the data set returns no captions.
    """
    if not batch.captions:
        raise DataError(
            "a pair scorer is trained on captions word by word, and this data set hands out token ids alone"
        )
    return batch.captions


class GradedObjective(Objective):
    """Grades of the examples made of a batch, by their squared error.

    Args:
        model: towers and head; the learner's own.
        regression: what it learns from.
        tokenizer: of the split, for the corrupted captions.
    """

    def __init__(self, model: Regressor, regression: Regression, tokenizer: Tokenizer) -> None:
        self.model, self.regression, self.tokenizer = model, regression, tokenizer
        self.head_macs = model.head_macs()

    def loss(
        self, learner: Learner, batch: Batch, weight_K: Tensor | None, seed: int, each: Each | None = None
    ) -> tuple[Tensor, None]:
        """The mean of the kinds' squared errors; ``weight_K`` weighs a pair's examples alike.

        Raises:
            DataError: the batch holds no captions, or token ids of another tokenizer.
        """
        examples = graded(captions_of(batch), self.regression, seed)
        torch.manual_seed(seed)
        grade_E = self.grade(learner, batch, examples)
        loss_E = F.mse_loss(grade_E, to_device(examples.label_E, grade_E.device).to(grade_E.dtype), reduction="none")
        if weight_K is not None:
            loss_E = loss_E * to_device(weight_K[examples.image_E.to(weight_K.device)], loss_E.device)
        return examples.mean_of_kinds(loss_E), None

    def grade(self, subject: EmbeddingModel, batch: Batch, examples: GradedExamples) -> Tensor:
        """g ``[E]`` of the examples made of a batch: each image and each distinct text goes through its tower once."""
        device = subject.arithmetic.device
        token_TL = self.model.tokenized(batch).tokens(self.model.tokenizer)
        if examples.corrupted:
            token_TL = torch.cat([token_TL, self.tokenizer.encode(examples.corrupted)])
        with subject.arithmetic.autocast():
            image_ND = self.model.encode_image(to_device(batch.images_BCHW, device))
            text_TD = self.model.encode_text(to_device(token_TL, device))
        image_E, text_E = to_device(examples.image_E, device), to_device(examples.text_E, device)
        return self.model.grade(image_ND[image_E], text_TD[text_E])

    def forward_macs(self, subject: EmbeddingModel, count: int) -> int:
        """Multiply-adds of grading all examples made of ``count`` pairs once."""
        texts = count * (1 + self.regression.corruptions)
        heads = self.regression.examples_of(count)
        return subject.price.images(count) + texts * subject.price.text + heads * self.head_macs

    def passes(self, learner: Learner, count: int) -> tuple[Pass, ...]:
        """Towers and head, three times forward; no K×K logits."""
        what = f"pair scorer, training on {count} pairs, {self.regression.examples_of(count)} examples"
        return (Pass(learner.part.train, TRAINING_PASSES * self.forward_macs(learner, count), what),)
