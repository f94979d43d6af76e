"""The values that travel between the stages of a training step.

Shape suffixes, used everywhere in this project:

* ``B`` pairs of a super-batch,
* ``K`` pairs selected from it (the sub-batch, ``b`` in the papers),
* ``N`` pairs of a whole split, or of an evaluation set,
* ``L`` text tokens, ``D`` embedding width, ``C H W`` image channels, height, width.

Every value is frozen: a stage receives values and returns new ones, and nothing that a later
stage does can change what an earlier one saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

Purpose = Literal[
    "learner_train",
    "learner_score",
    "reference_score",
    "scorer_score",
    "scorer_train",
    "pairwise",
    "recompute",
    "eval",
]
"""What a pass was run for. All but ``eval`` count towards the total."""

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


class DataError(Exception):
    """The data is wrong or missing; the message says what to do (exit status 3)."""


@dataclass(frozen=True)
class Batch:
    """Pairs as they come from a data set, before any model has seen them.

    Attributes:
        images_BCHW: uint8 images; they stay uint8 until they reach the device.
        token_ids: tokenizer identity → int64 ids ``[B, L]``. A model asks for the ids of *its*
            tokenizer by identity, so ids of another tokenizer can never be fed to it.
        image_key_B: int64 content hashes of the images, stable across runs and machines.
        text_key_B: int64 content hashes of the captions.
        marks: name → bool ``[B]``: what is known about a pair (``noisy``, ``curated``). Read by
            diagnostics alone; no policy and no model ever sees it.
        captions: the captions themselves, for diagnostics and for training a pair scorer.
        passes: what choosing these pairs among more candidates has cost (a cascade); empty otherwise.
        counts: what happened while these pairs were read, name → number (``read``, ``damaged``).
    """

    images_BCHW: Tensor
    token_ids: Mapping[str, Tensor]
    image_key_B: Tensor
    text_key_B: Tensor
    marks: Mapping[str, Tensor] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    passes: tuple[Pass, ...] = ()
    counts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {len(self.images_BCHW), len(self.image_key_B), len(self.text_key_B)}
        sizes |= {len(ids) for ids in self.token_ids.values()} | {len(m) for m in self.marks.values()}
        if self.captions:
            sizes.add(len(self.captions))
        if len(sizes) != 1:
            raise ValueError(f"the parts of a batch differ in length: {sorted(sizes)}")
        if self.images_BCHW.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 until they reach the device, got {self.images_BCHW.dtype}")

    def __len__(self) -> int:
        return len(self.images_BCHW)

    @property
    def own(self) -> Batch:
        """The pairs that this process holds: all, where no others share the batch."""
        return self

    def everywhere(self, index_P: Tensor) -> Batch:
        """A few pairs, at every process that shares the batch."""
        return self.take(index_P)

    def tokens(self, tokenizer: str) -> Tensor:
        """The token ids ``[B, L]`` made by the tokenizer of that identity.

        Raises:
            DataError: this batch holds no ids of that tokenizer.
        """
        try:
            return self.token_ids[tokenizer]
        except KeyError:
            raise DataError(
                f"a model trained on tokenizer {tokenizer} was offered token ids of "
                f"{', '.join(self.token_ids) or 'no tokenizer'}: train it on this data set, or give the data "
                "set the model's tokenizer"
            ) from None

    def take(self, index_K: Tensor) -> Batch:
        """The pairs at these positions of the super-batch, in this order."""
        index_K = index_K.cpu()
        return Batch(
            images_BCHW=self.images_BCHW[index_K],
            token_ids={name: ids[index_K] for name, ids in self.token_ids.items()},
            image_key_B=self.image_key_B[index_K],
            text_key_B=self.text_key_B[index_K],
            marks={name: mark[index_K] for name, mark in self.marks.items()},
            captions=tuple(self.captions[i] for i in index_K.tolist()) if self.captions else (),
        )


@dataclass(frozen=True)
class Selection:
    """What a policy chose.

    Attributes:
        index_K: int64, distinct positions in the super-batch.
        statistics: ``select/…`` → float, for the metrics.
        weight_K: optional loss weight of each chosen pair, acting on the pair's row and column of
            the loss alike; ``None`` weighs all alike.
        state: the policy's next state, where it has one (an explicit value, checkpointed).
        score_B: what the policy thinks of each pair by itself, before anything is chosen; shown beside the
            examples, where there is one. It costs nothing: a policy gives what it has computed anyway.
    """

    index_K: Tensor
    statistics: Mapping[str, float] = field(default_factory=dict)
    weight_K: Tensor | None = None
    state: object = None
    score_B: Tensor | None = None


@dataclass(frozen=True)
class Pass:
    """Work done by a model (or a similarity product) and what it was for.

    Attributes:
        purpose: what it is charged to.
        macs: multiply-adds, an exact integer. A training pass counts 3 forward passes
            (forward, gradient by activations, gradient by weights).
        what: for people: ``image tower, 640 images``.
    """

    purpose: Purpose
    macs: int
    what: str

    def __post_init__(self) -> None:
        if type(self.macs) is not int or self.macs < 0:
            raise ValueError(f"the multiply-adds of a pass are a non-negative int, got {self.macs!r}")
