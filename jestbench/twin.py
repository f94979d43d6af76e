"""Two references, each trained on one half of the data, each scoring the half that it has not seen.

RHO-LOSS without a holdout (arXiv 2206.07137). The half of a pair is the low bit of its
image's content key: known without a list, stable, and equal images never lie in both halves.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jestbench.batch import Batch, DataError, Pass
from jestbench.data.pairs import Wrapped, attempt, drawn
from jestbench.model.towers import TwoTowers
from jestbench.model.views import View
from jestbench.reference import FrozenModel
from jestbench.scores import Embeddings

Half = Literal[0, 1]
HALVES: tuple[Half, Half] = (0, 1)


def half_of(image_key_B: Tensor) -> Tensor:
    """The half, 0 or 1, that each pair belongs to, ``[B]``."""
    return image_key_B & 1


@dataclass(frozen=True, eq=False)
class HalfPairs(Wrapped):
    """The pairs of a split, ``pairs``, whose images belong to one half.

    Attributes:
        half: which.
        index_N: positions of its pairs in the whole split.
    """

    half: Half
    index_N: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        of_half_N = half_of(torch.as_tensor(self.pairs.image_key_N)) == self.half
        object.__setattr__(self, "index_N", of_half_N.nonzero().flatten())

    @property
    def name(self) -> str:
        """The split's, with the half."""
        return f"{self.pairs.name}, half {self.half}"

    @property
    def fingerprint(self) -> str:
        """The split's, with the half."""
        return f"{self.pairs.fingerprint}-half{self.half}"

    @property
    def image_key_N(self) -> npt.NDArray[np.int64]:
        """Content hash of each image of the half."""
        keys: npt.NDArray[np.int64] = self.pairs.image_key_N[self.index_N.numpy()]
        return keys

    @property
    def text_key_N(self) -> Tensor:
        """Content hash of each caption of the half."""
        return self.pairs.text_key_N[self.index_N]

    def __len__(self) -> int:
        return len(self.index_N)

    def drawn(self, seed: int, epoch: int) -> HalfPairs:
        """The half of the split as it stands in an epoch; images, and so halves, stay what they are."""
        whole = drawn(self.pairs, seed, epoch)
        if whole is self.pairs:
            return self
        same = copy.copy(self)
        object.__setattr__(same, "pairs", whole)
        return same

    def attempt(self, index_B: Tensor) -> tuple[Batch, Mapping[int, Any]]:
        """The pairs at these positions of the half, and which of them are damaged."""
        return attempt(self.pairs, self.index_N[index_B])

    def mended(self, batch: Batch, damaged: Mapping[int, Any], index_B: Tensor) -> Batch:
        """What ``attempt`` gave; read anew as a whole where something is damaged."""
        return self.batch(index_B) if damaged else batch

    def batch(self, index_B: Tensor) -> Batch:
        """The pairs at these positions of the half.

        A split may put another pair in the place of a damaged one; where that is of the other half, the next free
        one of this half is read instead.

        Raises:
            DataError: the split's own, or nothing of this half is left.
        """
        positions, counts = index_B.tolist(), Counter[str]()
        tried = set(positions)
        while True:
            batch = self.pairs.batch(self.index_N[torch.tensor(positions, dtype=torch.int64)])
            counts.update(batch.counts)
            foreign = (half_of(batch.image_key_B) != self.half).nonzero().flatten().tolist()
            if not foreign:
                return replace(batch, counts=dict(counts))
            for slot in foreign:
                following = ((positions[slot] + step) % len(self) for step in range(len(self)))
                free = next((position for position in following if position not in tried), None)
                if free is None:
                    raise DataError(f"{self.name}: no pair is left to stand for a damaged one: mend the data")
                positions[slot] = free
                tried.add(free)


class TwinModel:
    """Two frozen models over super-batches: every pair goes through the one that has not seen it.

    Args:
        trained: the models, by the half that they were trained on.
        store_dir: both stores lie in it; removed with them where nothing else is there.
    """

    def __init__(self, trained: tuple[FrozenModel, FrozenModel], store_dir: Path) -> None:
        self.trained, self.store_dir = trained, store_dir

    @property
    def model(self) -> TwoTowers:
        """One of the two; they have one shape."""
        return self.trained[0].model

    @property
    def view(self) -> View:
        """The view of both."""
        return self.trained[0].view

    @property
    def hits(self) -> int:
        """Remembered embeddings used."""
        return sum(model.hits for model in self.trained)

    @property
    def amortised_macs(self) -> int:
        """Multiply-adds that are charged to nobody."""
        return sum(model.amortised_macs for model in self.trained)

    def unseen(self, batch: Batch) -> tuple[tuple[tuple[Tensor, Embeddings], ...], tuple[Pass, ...]]:
        """Of each half that is there, positions and embeddings under the other half's model; and the passes."""
        half_B = half_of(batch.image_key_B)
        found: list[tuple[Tensor, Embeddings]] = []
        passes: tuple[Pass, ...] = ()
        for half in HALVES:
            index_P = (half_B == half).nonzero().flatten()
            if len(index_P):
                embeddings, spent = self.trained[1 - half].embeddings(batch.take(index_P))
                found.append((index_P.to(embeddings.image_BD.device), embeddings))
                passes += spent
        return tuple(found), passes

    def counts(self) -> dict[str, int]:
        """``cache/…`` of both."""
        found = Counter[str]()
        for model in self.trained:
            found.update(model.counts())
        return dict(found)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of both."""
        return {f"half{half}": self.trained[half].state() for half in HALVES}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        for half in HALVES:
            self.trained[half].restore(state[f"half{half}"])

    def close(self, remove: bool) -> None:
        """Close both stores, and remove their files when the run has finished."""
        for model in self.trained:
            model.close(remove)
        if remove and self.store_dir.is_dir() and not any(self.store_dir.iterdir()):
            self.store_dir.rmdir()
