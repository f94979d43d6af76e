"""The price of a forward pass through two towers under a view, traced once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from jestbench.batch import FULL, Batch, View
from jestbench.cost.tracing import counted_macs, forward_macs, without_values

if TYPE_CHECKING:
    from jestbench.model.encoders import Encoders
    from jestbench.model.towers import TwoTowers


class _UnderView(nn.Module):
    """A tower with its view filled in: a traced module may take tensors only."""

    def __init__(self, tower: nn.Module, view: View) -> None:
        super().__init__()
        self.tower, self.view = tower, view

    def forward(self, inputs: Tensor, *more: Tensor) -> Tensor:
        """The tower's own forward call, under the view."""
        out: Tensor = self.tower(inputs, self.view, *more)
        return out


@dataclass(frozen=True)
class Price:
    """Multiply-adds of a forward pass through each tower, under one view.

    Attributes:
        image: of one image.
        text: of one text.
        fixed: of a pass, once, over any number of images: a view of another patch size resizes the patch
            embedding by a matrix product.
    """

    image: int
    text: int
    fixed: int = 0

    @classmethod
    def of(cls, model: Encoders, batch: Batch, view: View = FULL) -> Price:
        """Trace both towers on the first pair of a batch, under a view; on the CPU, wherever the model is."""
        ghost = without_values(model, "cpu")
        ghost.prepare(view)
        tokens_1L = batch.tokens(model.tokenizer)[:1].cpu()
        text = forward_macs(ghost.text if view.full_text else _UnderView(ghost.text, view), tokens_1L)
        images_1CHW, key_1 = batch.images_BCHW[:1].cpu(), batch.image_key_B[:1].cpu()
        if view.full_image:
            return cls(forward_macs(ghost.image, images_1CHW), text)
        tower = _UnderView(ghost.image, view)
        one = forward_macs(tower, images_1CHW, key_1)
        two = forward_macs(tower, images_1CHW.expand(2, -1, -1, -1), key_1.expand(2))
        # The second image adds the price of one image; the rest is fixed, whatever the number of images.
        return cls(two - one, text, 2 * one - two)

    @classmethod
    def of_training(cls, model: TwoTowers, batch: Batch, view: View = FULL, checkpointing: bool = False) -> Price:
        """Measure forward *and* backward by torch's own counter, to judge the 3x convention by.

        Args:
            model: the towers; a copy without values is counted, the model stays unchanged.
            batch: its first pair gives the shapes.
        """
        place = model.counted_on
        ghost = without_values(model, place).requires_grad_(True)
        ghost.prepare(view)
        image, text = _UnderView(ghost.image, view), _UnderView(ghost.text, view)
        tokens_1L = batch.tokens(model.tokenizer)[:1].to(place)
        images_1CHW, key_1 = batch.images_BCHW[:1].to(place), batch.image_key_B[:1].to(place)
        with ghost.checkpointing(checkpointing):
            spent = counted_macs(text, tokens_1L).training
            two = counted_macs(image, images_1CHW.expand(2, -1, -1, -1), key_1.expand(2)).training
            if view.patch_size is None:  # no kernel is resized: there is no fixed part
                return cls(two // 2, spent)  # batch normalisation trains on no fewer than two images
            one = counted_macs(image, images_1CHW, key_1).training
            return cls(two - one, spent, 2 * one - two)

    @classmethod
    def of_rerun(cls, model: TwoTowers, batch: Batch, view: View = FULL) -> Price:
        """The price of the forward work that a backward pass repeats under activation checkpointing.

        Measured, not derived: torch stops before a block's end, once it has all tensors that the backward pass needs.
        """
        plain, again = (cls.of_training(model, batch, view, checkpointing) for checkpointing in (False, True))
        if model.locked:  # an image tower without a backward pass runs nothing again
            return cls(0, again.text - plain.text)
        return cls(again.image - plain.image, again.text - plain.text, again.fixed - plain.fixed)

    @property
    def pair(self) -> int:
        """Multiply-adds of one pair through both towers."""
        return self.image + self.text

    def images(self, count: int, microbatch: int | None = None) -> int:
        """Multiply-adds for ``count`` images, in one pass or in passes of at most ``microbatch`` images."""
        passes = -(-count // (microbatch or max(1, count)))
        return count * self.image + passes * self.fixed

    def pairs(self, count: int) -> int:
        """Multiply-adds for ``count`` pairs, in one pass."""
        return self.images(count) + count * self.text
