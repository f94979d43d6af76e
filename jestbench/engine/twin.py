"""Two references, each trained on one half of the data, each scoring the half that it has not seen.

RHO-LOSS without a holdout (arXiv 2206.07137). The half of a pair is the low bit of its
image's content key: known without a list, stable, and equal images never lie in both halves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from jestbench.batch import Batch, Pass, View
from jestbench.data.half_pairs import HALVES, half_of
from jestbench.engine.frozen import FrozenModel
from jestbench.model.towers import TwoTowers
from jestbench.select.scores import Embeddings


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
