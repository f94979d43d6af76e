"""The price of a forward pass through two towers under a view, traced once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from jestbench.batch import FULL, Batch, View
from jestbench.cost.tracing import counted_macs, forward_macs, without_values

if TYPE_CHECKING:
    from jestbench.model.towers import TwoTowers


class _UnderView(nn.Module):
    """A tower with its view filled in: what is traced takes tensors only."""

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
        fixed: of a pass over any number of images: a view of another patch size resizes the patch
            embedding, which multiplies matrices too.
    """

    image: int
    text: int
    fixed: int = 0

    @classmethod
    def of(cls, model: TwoTowers, batch: Batch, view: View = FULL) -> Price:
        """Trace both towers on the first pair of a batch, under a view; on the CPU, wherever the model is."""
        model.image.prepare(view)
        ghost = without_values(model, "cpu")
        tokens_1L = batch.tokens(model.tokenizer)[:1].cpu()
        text = forward_macs(ghost.text if view.full_text else _UnderView(ghost.text, view), tokens_1L)
        images_1CHW, key_1 = batch.images_BCHW[:1].cpu(), batch.image_key_B[:1].cpu()
        if view.full_image:
            return cls(forward_macs(ghost.image, images_1CHW), text)
        tower = _UnderView(ghost.image, view)
        one = forward_macs(tower, images_1CHW, key_1)
        two = forward_macs(tower, images_1CHW.expand(2, -1, -1, -1), key_1.expand(2))
        # What a second image adds is the price of an image; the rest does not depend on how many there are.
        return cls(two - one, text, 2 * one - two)

    @classmethod
    def of_training(cls, model: TwoTowers, batch: Batch, view: View = FULL, checkpointing: bool = False) -> Price:
        """Forward *and* backward as torch's own counter sees them: what the 3x convention is judged by.

        Args:
            model: the towers; they are counted without values (``meta``), and left alone.
            batch: its first pair gives the shapes.
            view: under which they are run.
            checkpointing: with activation checkpointing.
        """
        ghost = without_values(model)
        ghost.image.prepare(view)
        image, text = _UnderView(ghost.image, view), _UnderView(ghost.text, view)
        tokens_1L = batch.tokens(model.tokenizer)[:1].to("meta")
        images_1CHW, key_1 = batch.images_BCHW[:1].to("meta"), batch.image_key_B[:1].to("meta")
        with ghost.checkpointing(checkpointing):
            spent = counted_macs(text, tokens_1L).training
            one = counted_macs(image, images_1CHW, key_1).training
            if view.patch_size is None:  # nothing is resized: all of it is the image's
                return cls(one, spent)
            two = counted_macs(image, images_1CHW.expand(2, -1, -1, -1), key_1.expand(2)).training
            return cls(two - one, spent, 2 * one - two)

    @classmethod
    def of_rerun(cls, model: TwoTowers, batch: Batch, view: View = FULL) -> Price:
        """What a backward pass runs again under activation checkpointing.

        Measured, as torch stops short of a block's end once it has what the backward pass needs.
        """
        plain, again = (cls.of_training(model, batch, view, checkpointing) for checkpointing in (False, True))
        return cls(again.image - plain.image, again.text - plain.text, again.fixed - plain.fixed)

    @property
    def pair(self) -> int:
        """One pair through both towers."""
        return self.image + self.text

    def images(self, count: int, microbatch: int | None = None) -> int:
        """One pass over so many images, or as many as it takes with at most ``microbatch`` at once."""
        passes = -(-count // (microbatch or max(1, count)))
        return count * self.image + passes * self.fixed

    def pairs(self, count: int, microbatch: int | None = None) -> int:
        """One pass over so many pairs, or as many as it takes with at most ``microbatch`` at once."""
        return self.images(count, microbatch) + count * self.text
