"""What a run's training begins from: a trained model, whole or its image tower alone."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from jestbench.model.carry import Carried
from jestbench.model.library_towers import LibraryTowers
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import Model, TwoTowers
from jestbench.select.losses import LossName

if TYPE_CHECKING:
    from jestbench.config.run import Run

IMAGE = ("image_tower", "image_size", "patch_size", "image_options", "image_mean", "image_std", "image_projection")
"""Parameters of ``Model`` that the image tower alone decides."""


@dataclass(frozen=True)
class Start(ABC):
    """A trained model that a run's training begins from.

    Attributes:
        label: its name, for messages and tables.
        flops: that its training took, with all that it stood on; ``None``: not known.
        run_dir: folder of the run that trained it; empty of a model that another library brings.
    """

    label: str
    flops: int | None
    run_dir: str = field(default="", kw_only=True)

    @abstractmethod
    def shape(self, run: Run) -> Model:
        """The shape of a run's towers: the start's own, or its image tower beside the run's text tower.

        Args:
            run: its ``model`` is what is bound; ``freeze = "image"`` takes the image tower alone.

        Raises:
            ValueError: a parameter of the run does not go with the start.
        """

    @abstractmethod
    def tokenizer(self, asked: Model, data: Tokenizer) -> Tokenizer:
        """The tokenizer of a run's text tower: the start's own, or that of the data for a new text tower."""

    @abstractmethod
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

    def _check_loss(self, own: LossName, loss: LossName, instead: str = "") -> None:
        """Refuse to go on from another loss than the run's."""
        if loss != own:
            raise ValueError(
                f"run.init: {self.label} was trained on the {own} loss, and its scale and bias belong to it: set "
                f"run.loss = {own!r}{instead}"
            )


@dataclass(frozen=True)
class CarriedStart(Start):
    """A trained model in our towers.

    Attributes:
        model: its shape, weights and tokenizer.
    """

    model: Carried

    def shape(self, run: Run) -> Model:
        """As ``Start.shape``."""
        own, asked = self.model.shape, run.model
        if not asked.freeze:
            return replace(own, freeze="")
        image = {name: getattr(own, name) for name in IMAGE}
        return replace(asked, **image, embed_dim=own.embed_dim, pretrained=False)

    def tokenizer(self, asked: Model, data: Tokenizer) -> Tokenizer:
        """As ``Start.tokenizer``."""
        return data if asked.freeze else self.model.tokenizer

    def build(self, shape: Model, data: Tokenizer, loss: LossName, seed: int) -> TwoTowers:
        """As ``Start.build``."""
        if not shape.freeze:
            self._check_loss(self.model.loss, loss, ", or take its image tower alone (model.freeze = 'image')")
        model = shape.build(self.tokenizer(shape, data), loss, seed)
        if not model.log_scale.is_meta:  # there is no value to take over
            own = self.model.weights.items()
            taken = {name: value for name, value in own if not shape.freeze or name[:6] == "image."}
            model.load_state_dict({**model.state_dict(), **taken})
        model.brings_tokenizer = model.tokenizer != data.identity
        return model


@dataclass(frozen=True)
class LibraryStart(Start):
    """A trained model that its own library runs, since our towers do not express it.

    Attributes:
        model: the model; a run trains a copy.
        loss: that it was trained on.
    """

    model: LibraryTowers
    loss: LossName

    def shape(self, run: Run) -> Model:
        """Its side of an image and its width alone: the towers are the library's.

        Raises:
            ValueError: a parameter of the run needs towers of ours.
        """
        reasons = {
            "model.freeze = 'image': a new text tower stands beside an image tower of ours": bool(run.model.freeze),
            "run.compile = True: blocks of our towers are compiled": run.compile is True,
            "run.shard = True: blocks of our towers are sharded": run.shard,
            **{
                f"run.{name} = 'auto' measures towers of ours: bind a number": getattr(run, name) == "auto"
                for name in ("microbatch", "train_microbatch")
            },
        }
        for reason, there in reasons.items():
            if there:
                raise ValueError(
                    f"{reason}; {self.label} is trained as {self.model.source['library']} runs it "
                    f"({self.model.source['reason']})"
                )
        side = self.model.pixels
        return Model(image_size=side, patch_size=side, embed_dim=self.model.width)

    def tokenizer(self, asked: Model, data: Tokenizer) -> Tokenizer:
        """The model's own."""
        return self.model.tokens

    def build(self, shape: Model, data: Tokenizer, loss: LossName, seed: int) -> TwoTowers:
        """As ``Start.build``."""
        self._check_loss(self.loss, loss)
        model = copy.deepcopy(self.model).requires_grad_(True)
        model.bias.requires_grad_(loss == "sigmoid")
        if torch.get_default_device().type != "meta":  # which gradients there are, no price asks
            model.freeze_unused()
        return model
