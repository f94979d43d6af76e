"""Two frozen models in one role, each trained on one half of the data, each scoring the half that it has not seen.

RHO-LOSS without a holdout (arXiv 2206.07137). The half of a pair is the low bit of its
image's content key: known without a list, stable, and equal images never lie in both halves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jestbench.batch import Batch, Pass
from jestbench.data.part_pairs import HALVES, half_of
from jestbench.engine.actor import Actor, EmbeddingModel, Met
from jestbench.parallel.arithmetic import to_device
from jestbench.select.losses import LossName
from jestbench.select.scores import Embeddings, Scores


class TwinActor(Actor):
    """Routes every pair to the one of two models that has not seen it.

    Args:
        trained: the models, by the half that they were trained on.
        store_dir: both stores lie in it; removed with them where nothing else is there.

    Raises:
        ValueError: the models differ in width or in their loss.
    """

    remembers = True

    def __init__(self, trained: tuple[Actor, Actor], store_dir: Path) -> None:
        self.trained, self.store_dir, one = trained, store_dir, trained[0]
        self.role, self.width, self.view, self.trained_under = one.role, one.width, one.view, one.trained_under
        self.trained_on = one.trained_on
        for name in ("width", "trained_on"):
            if getattr(trained[1], name) != getattr(one, name):
                both = " and ".join(str(getattr(model, name)) for model in trained)
                raise ValueError(f"run.twin: the two references differ ({name} {both}), so their scores do not compare")

    @property
    def amortised_macs(self) -> int:  # type: ignore[override]
        """Multiply-adds of both models that no ledger was charged."""
        return sum(model.amortised_macs for model in self.trained)

    def score(self, batch: Batch) -> Scores:
        """Of each half that is there, positions and embeddings under the other half's model (``Scores.unseen``)."""
        found: list[tuple[Tensor, Embeddings]] = []
        passes: tuple[Pass, ...] = ()
        for other, index_P in _routed(batch.image_key_B):
            scores = self.trained[other].score(batch.take(index_P))
            found.append((to_device(index_P, scores.device), scores.side("reference")))
            passes += scores.model_passes
        return Scores(unseen=tuple(found), model_passes=passes)

    @property
    def calibrated(self) -> tuple[tuple[float, float], ...]:  # type: ignore[override]
        """t and b₀ of both models."""
        return tuple(found for model in self.trained for found in model.calibrated)

    def calibrate(self, loss: LossName, batches: Iterable[Batch], batch_size: int) -> tuple[Pass, ...]:
        """As ``Actor.calibrate``, each model on the pairs of the half that it has not seen."""
        parts: tuple[list[Batch], list[Batch]] = ([], [])
        for batch in batches:
            for other, index_P in _routed(batch.image_key_B):
                parts[other].extend([batch.take(index_P)] if len(index_P) > 1 else [])
        return tuple(
            item
            for model, found in zip(self.trained, parts, strict=True)
            for item in model.calibrate(loss, found, batch_size)
        )

    def forecast(self, count: int) -> tuple[Pass, ...]:
        """As if both halves were equally large; in a run their sizes vary from step to step."""
        return tuple(item for half in HALVES for item in self.trained[1 - half].forecast((count + 1 - half) // 2))

    def forecast_new(self, image_key_B: Tensor, text_key_B: Tensor, met: Met) -> tuple[Pass, ...]:
        """Of each half under the other half's model, each with rows of its own."""
        return tuple(
            item
            for other, index_P in _routed(image_key_B)
            for item in self.trained[other].forecast_new(image_key_B[index_P], text_key_B[index_P], met)
        )

    def imagined(self, count: int, divisor: int, random: torch.Generator) -> Scores:
        """Random embeddings of two halves."""
        whole = super().imagined(count, divisor, random).side("reference")
        halves = [index for index in torch.arange(count).chunk(2) if len(index)]
        return Scores(unseen=tuple((index_P, whole.take(index_P)) for index_P in halves))

    @property
    def frozen(self) -> tuple[EmbeddingModel, ...]:
        """Both models."""
        return tuple(found for model in self.trained for found in model.frozen)

    def counts(self) -> dict[str, int]:
        """``cache/…``, summed over both models."""
        found = Counter[str]()
        for model in self.trained:
            found.update(model.counts())
        return dict(found)

    def state_dict(self) -> dict[str, Any]:
        """The states of both models."""
        return {f"half{half}": self.trained[half].state_dict() for half in HALVES}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        for half in HALVES:
            self.trained[half].load_state_dict(state[f"half{half}"])

    def mark(self) -> Any:
        """The marks of both models."""
        return [model.mark() for model in self.trained]

    def rewind(self, mark: Any) -> None:
        """Undo the scoring of both models since a mark."""
        for model, own in zip(self.trained, mark, strict=True):
            model.rewind(own)

    def close(self, remove: bool) -> None:
        """Close both stores, and remove their files when the run has finished."""
        for model in self.trained:
            model.close(remove)
        if remove:
            with suppress(OSError):  # other stores lie there, or another process has removed it
                self.store_dir.rmdir()


def _routed(image_key_B: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield, of each half that is there, the number of the model that has not seen it and the positions ``[P]``."""
    half_B = half_of(image_key_B)
    for half in HALVES:
        index_P = (half_B == half).nonzero().flatten()
        if len(index_P):
            yield 1 - half, index_P
