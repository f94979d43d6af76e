"""The rows of a frozen model with two towers: embeddings of images and of texts, cosines of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.batch import FULL, Batch, Pass, Purpose, View, together
from jestbench.data.damage import intact
from jestbench.data.pairs import ReadPairs
from jestbench.engine.actor import Read
from jestbench.engine.frozen import FrozenActor, RowContent, RowName, keys_of
from jestbench.model.encoders import Encoders
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.losses import LossName
from jestbench.select.scores import Embeddings, Role, Scores


class EmbeddingRows(RowContent):
    """Embeddings of images and of texts, and the cosines of pairs."""

    noun = "embeddings"
    scored: ClassVar[tuple[RowName, ...]] = ("image", "text")

    def __init__(self, model: Encoders, arithmetic: Arithmetic, example: Batch, view: View = FULL) -> None:
        super().__init__(model, arithmetic, example, view)
        self.width = model.width
        self.widths = {"image": self.width, "text": self.width, "pair": 1}

    @cached_property
    def scale_and_bias(self) -> tuple[float, float]:
        """The frozen model's own, read from the device once."""
        return self.model.scale_and_bias()

    def rescale(self, scale: float, bias: float) -> None:
        """Set the model's t and b₀."""
        super().rescale(scale, bias)
        self.__dict__.pop("scale_and_bias", None)  # what was read before

    def encode(self, name: RowName, batch: Batch) -> Tensor:
        """Embeddings ``[B, D]`` under one tower."""
        if name == "text":
            return self.model.encode_text(batch.tokens(self.model.tokenizer), self.view)
        return self.model.encode_image(batch.images_BCHW, self.view, batch.image_key_B)

    def passes(self, purpose: Purpose, counts: Mapping[RowName, int], microbatch: int) -> tuple[Pass, ...]:
        """Each tower, and the own logits of pairs where any are asked for."""
        images, texts = counts["image"], counts["text"]
        under = "" if self.view == FULL else f" under {self.view.label}"
        image = Pass(purpose, self.price.images(images, microbatch), f"image tower, {images} examples{under}")
        text = Pass(purpose, texts * self.price.text, f"text tower, {texts} examples{under}")
        if "pair" not in counts:
            return image, text
        dots = Pass("pairwise", counts["pair"] * self.width, f"own logits of {counts['pair']} candidates")
        return image, text, dots

    def scores(self, role: Role, rows: Mapping[RowName, Tensor]) -> Scores:
        """The embeddings, with the model's own scale and bias."""
        return Scores.of(role, Embeddings(rows["image"], rows["text"], *self.scale_and_bias))

    def own_loss_C(self, loss: LossName, value_C: Tensor) -> Tensor:
        """softplus(−u_ii) or −a_ii."""
        scale, bias = self.scale_and_bias
        own_C = value_C * scale
        return -own_C if loss == "softmax" else F.softplus(-(own_C + bias))

    def pair_rows(self, actor: FrozenActor, image_key_C: Tensor, text_key_C: Tensor, read: Read) -> Tensor:
        """Cosines of candidates, ``[C, 1]``, from embeddings that are found or computed."""

        def compute(position_M: Tensor) -> Tensor:
            parts = position_M.split(actor.microbatch)
            return torch.cat([self._cosine_P1(actor, image_key_C[at], text_key_C[at], at, read) for at in parts])

        return actor.fetch("pair", keys_of("pair", image_key_C, text_key_C), compute)

    def _cosine_P1(
        self, actor: FrozenActor, image_key_P: Tensor, text_key_P: Tensor, position_P: Tensor, read: Read
    ) -> Tensor:
        """Cosines ``[P, 1]`` of candidates; each that lacks an embedding is read once, a damaged one gives NaN."""
        whole_P, source = torch.arange(len(position_P)), _ReadOnce(position_P, read)
        while True:
            image_key, text_key = image_key_P[whole_P], text_key_P[whole_P]
            lacking = torch.cat([actor.missing("image", image_key), actor.missing("text", text_key)]).unique()
            damaged = source.read(whole_P[lacking])
            if not len(damaged):
                break
            # Another candidate may hold the text or image that a damaged pair was read for: look again without it.
            whole_P = whole_P[~torch.isin(whole_P, damaged)]
        if not len(whole_P):
            return torch.full((len(position_P), 1), torch.nan)
        image_PD = actor.tried_rows("image", image_key, lambda index_M: source(whole_P[index_M]))
        text_PD = actor.tried_rows("text", text_key, lambda index_M: source(whole_P[index_M], images=False))
        cosine_P1 = torch.full((len(position_P), 1), torch.nan, dtype=image_PD.dtype)
        # In float64 the order of the sum cannot show after rounding to fp32.
        cosine_P1[whole_P, 0] = (image_PD.double() * text_PD.double()).sum(1).to(image_PD.dtype).cpu()
        return cosine_P1


class _ReadOnce:
    """A source of candidates by their place: each is read once, and the pairs of the whole ones are kept."""

    def __init__(self, position_P: Tensor, read: Read) -> None:
        self._position_P, self._ask = position_P, read
        self._place_R = torch.empty(0, dtype=torch.int64)  # of the pairs that are kept, ascending
        self._batch: Batch | None = None

    def read(self, place_M: Tensor) -> Tensor:
        """Read the candidates at these places (ascending) that are not kept yet; return the places of damaged ones."""
        place_M = place_M[~torch.isin(place_M, self._place_R)]
        if not len(place_M):
            return place_M
        batch, damaged = self._ask(self._position_P[place_M])
        lost = place_M[torch.tensor(sorted(damaged), dtype=torch.int64)]
        if damaged:
            whole_P = intact(len(batch), damaged)
            batch, place_M = batch.take(whole_P), place_M[whole_P]
        if self._batch is not None:
            place_M, order_R = torch.cat([self._place_R, place_M]).sort()
            batch = together([self._batch, batch]).take(order_R)
        self._batch, self._place_R = batch, place_M
        return lost

    def __call__(self, place_M: Tensor, images: bool = True) -> ReadPairs:
        """The candidates at these places, without their images where no image tower reads them; and the damage."""
        if self._batch is None or not bool(torch.isin(place_M, self._place_R).all()):
            return self._ask(self._position_P[place_M])  # the shared file has been cut since
        batch = self._batch if images else self._batch.without_images()
        return batch.take(torch.searchsorted(self._place_R, place_M)), {}
