"""What a policy is given beside scores, where its ``needs`` name it: keys, words, progress, memory, training losses."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from jestbench.disk import hashed
from jestbench.seeds import GOLDEN, mixed

Given = Literal["keys", "captions", "progress", "memory", "trained_losses"]
"""What ``needs`` can name beside roles and columns."""
GIVEN: tuple[Given, ...] = get_args(Given)
NO_WORD = -1
"""Fills the rows of captions that have fewer words than the longest."""


@dataclass(frozen=True)
class Moment:
    """How far the run is, before a step.

    Attributes:
        share: share of the budget that is spent; of a ladder, where its schedule stands (``Allowance.position``).
        epoch: completed passes over the pairs that super-batches are drawn from.
        left_out: pairs that the policy has left out of this epoch.
    """

    share: float = 0.0
    epoch: int = 0
    left_out: int = 0


@dataclass(frozen=True, eq=False)
class Remembered:
    """What a policy has kept of earlier steps.

    Attributes:
        state: the policy's own state; ``None`` where it has none.
        memory: the numbers that it remembers of some pairs, name → float32, NaN where nothing was written.
    """

    state: Any = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Trained:
    """The losses of a training pass, pair by pair; they are parts of the loss that the pass computes anyway.

    Attributes:
        image_loss_K: of each image against the texts of the sub-batch (the row of the loss).
        text_loss_K: of each text against the images (the column); the mean over pairs and both sides is the batch loss.
        progress: how far the run was.
        held_K: the pairs of which the policy's memory will hold what it is told now, bool: of several pairs of one key
            the last one, and none that is new once the memory is full. By default all.
    """

    image_loss_K: Tensor
    text_loss_K: Tensor
    progress: Moment = field(default_factory=Moment)
    held_K: Tensor = field(default_factory=lambda: torch.ones((), dtype=torch.bool))

    def __post_init__(self) -> None:
        held_K = self.held_K.to(self.image_loss_K.device).expand_as(self.image_loss_K)
        object.__setattr__(self, "held_K", held_K)

    def __len__(self) -> int:
        return len(self.image_loss_K)

    @property
    def loss_K(self) -> Tensor:
        """The mean of both sides."""
        return (self.image_loss_K + self.text_loss_K) / 2


def pair_keys(image_key_B: Tensor, text_key_B: Tensor) -> Tensor:
    """One int64 key of each pair, from the content hashes of its image and its caption (not interchangeable)."""
    return mixed(mixed(image_key_B + GOLDEN) + text_key_B)


def word_ids(captions: Sequence[str]) -> Tensor:
    """The distinct words of each caption as ids, in the order of the caption.

    Words are runs of letters, digits and underscores of the caption in lower case and Unicode's NFKC form. A word's id
    is a hash of it, so that it is the same in every process, run and data set.

    Returns:
        int64 ``[B, L]``, L the most words of a caption; not negative, ``NO_WORD`` after a caption's last word.
    """
    found = [
        list(dict.fromkeys(map(_word_id, re.findall(r"\w+", unicodedata.normalize("NFKC", caption).lower()))))
        for caption in captions
    ]
    words_BL = torch.full((len(found), max(map(len, found), default=0)), NO_WORD, dtype=torch.int64)
    for row, ids in enumerate(found):
        words_BL[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return words_BL


@lru_cache(maxsize=1 << 16)
def _word_id(word: str) -> int:
    return int.from_bytes(hashed(word), "little") >> 1


def equal_groups(image_key_B: Tensor, text_key_B: Tensor) -> Tensor:
    """The group of each pair, int64 ``[B]``: pairs of one image or of one caption are in one group.

    Two pairs that share neither are in one group, too, where a chain of such pairs joins them.
    """
    size, group_B = len(image_key_B), torch.arange(len(image_key_B))
    sides = [torch.unique(key_B.cpu(), return_inverse=True)[1] for key_B in (image_key_B, text_key_B)]
    while True:  # each pair takes the least group that its image or its caption has, until nothing changes
        before_B = group_B
        for side_B in sides:
            group_B = torch.full((size,), size).scatter_reduce(0, side_B, group_B, "amin")[side_B]
        if torch.equal(group_B, before_B):
            return group_B


def equal_pairs(image_key_K: Tensor, text_key_K: Tensor) -> int:
    """How many twos of pairs are equal (``equal_groups``), each two counted once."""
    sizes = torch.unique(equal_groups(image_key_K, text_key_K), return_counts=True)[1]
    return int((sizes * (sizes - 1)).sum()) // 2
