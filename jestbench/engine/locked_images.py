"""The images of a locked image tower (LiT), embedded once and remembered, as the rows of a frozen model are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from jestbench.batch import FULL, Batch, Pass, Purpose
from jestbench.cost.price import Price
from jestbench.engine.embedding_rows import EmbeddingRows
from jestbench.engine.frozen import Accounting, FrozenActor, RowName
from jestbench.model.towers import TwoTowers
from jestbench.parallel.arithmetic import Arithmetic


class ImageRows(EmbeddingRows):
    """Image embeddings of a model in training, whose image tower alone is frozen."""

    scored = ("image",)

    def __init__(self, model: TwoTowers, arithmetic: Arithmetic, price: Price) -> None:
        """Take a model as it is: its text tower goes on training."""
        self.model, self.view, self.arithmetic, self.price = model, FULL, arithmetic, price
        self.width = model.width
        self.widths = {"image": self.width}

    def passes(self, purpose: Purpose, counts: Mapping[RowName, int], microbatch: int) -> tuple[Pass, ...]:
        """The image tower alone."""
        images = counts["image"]
        return (Pass(purpose, self.price.images(images, microbatch), f"locked image tower, {images} examples"),)


class LockedImages(FrozenActor):
    """Embeddings of images under a learner's locked tower, computed and charged as those of a frozen model are.

    They are the learner's own part: its scoring and its training ask for them, and its state holds theirs.
    """

    def __init__(
        self,
        model: TwoTowers,
        arithmetic: Arithmetic,
        price: Price,
        accounting: Accounting,
        store_dir: Path,
        block: int,
    ) -> None:
        """Open the rows of a run.

        Args:
            model: the learner's.
            arithmetic: device and precision.
            price: of its towers under the full view.
            accounting: what is charged.
            store_dir: where the rows of this run lie.
            block: images that the tower sees at once.
        """
        super().__init__("learner", ImageRows(model, arithmetic, price), accounting, store_dir, block)

    def embedded(self, own: Batch) -> Batch:
        """Pairs with the embeddings of their images in the images' place."""
        row_PD = self.rows("image", own.image_key_B, own.take)
        return replace(own.without_images(), image_rows_BD=row_PD)

    def charge(self, image_key_B: Tensor, purpose: Purpose) -> tuple[Pass, ...]:
        """What the images of a batch, whichever process holds them, are charged now."""
        found = self._charged({"image": self._sighted("image", image_key_B)})
        return tuple(replace(item, purpose=purpose) for item in found if item.macs)

    def forecast_step(self, accounting: Accounting, scored: int, trained: int) -> tuple[Pass, ...]:
        """What the images of a step are charged, all of them new to the run.

        Args:
            accounting: of the run.
            scored: pairs that the learner scores; those that it trains on are among them.
            trained: pairs that it trains on.
        """
        if accounting == "amortised":
            return ()
        counts: dict[Purpose, int] = {"learner_score": scored}
        if accounting == "online" or not scored:
            counts["learner_train"] = trained
        passes = [(purpose, self.forecast(count)) for purpose, count in counts.items() if count]
        return tuple(replace(item, purpose=purpose) for purpose, found in passes for item in found)
