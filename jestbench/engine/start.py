"""What a run's training begins from: a trained model, whole or its image tower alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jestbench.model.carry import Carried
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import Model, TwoTowers
from jestbench.select.losses import LossName

IMAGE = ("image_tower", "image_size", "patch_size", "image_options", "image_mean", "image_std", "image_projection")
"""Parameters of ``Model`` that the image tower alone decides."""


@dataclass(frozen=True)
class Start:
    """A trained model that a run's training begins from.

    Attributes:
        model: its shape, weights and tokenizer.
        label: its name, for messages and tables.
        flops: that its training took, with all that it stood on; ``None``: not known.
        run_dir: folder of the run that trained it; empty of a model that another library brings.
    """

    model: Carried
    label: str
    flops: int | None
    run_dir: str = ""

    def shape(self, asked: Model) -> Model:
        """The shape of a run's towers: the start's own, or its image tower beside the run's text tower.

        Args:
            asked: what the run binds; ``freeze = "image"`` takes the image tower alone.
        """
        own = self.model.shape
        if not asked.freeze:
            return replace(own, freeze="")
        image = {name: getattr(own, name) for name in IMAGE}
        return replace(asked, **image, embed_dim=own.embed_dim, pretrained=False)

    def tokenizer(self, asked: Model, data: Tokenizer) -> Tokenizer:
        """The tokenizer of a run's text tower: the start's own, or that of the data for a new text tower."""
        return data if asked.freeze else self.model.tokenizer

    def build(self, shape: Model, data: Tokenizer, loss: LossName, seed: int) -> TwoTowers:
        """A run's model before its first step.

        Args:
            shape: as ``shape`` gives it.
            data: the tokenizer of the run's data set.
            loss: the run's.
            seed: of a new text tower.

        Raises:
            ValueError: the start was trained on another loss, and its scale and bias are taken over.
        """
        if not shape.freeze and loss != self.model.loss:
            raise ValueError(
                f"run.init: {self.label} was trained on the {self.model.loss} loss, and its scale and bias belong to "
                f"it: set run.loss = {self.model.loss!r}, or take its image tower alone (model.freeze = 'image')"
            )
        model = shape.build(self.tokenizer(shape, data), loss, seed)
        if not model.log_scale.is_meta:  # there is no value to take over
            own = self.model.weights.items()
            taken = {name: value for name, value in own if not shape.freeze or name[:6] == "image."}
            model.load_state_dict({**model.state_dict(), **taken})
        model.brings_tokenizer = model.tokenizer != data.identity
        return model
