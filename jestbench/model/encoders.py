"""The interface of models that embed images and texts: our own two towers, and those of other libraries."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jestbench.batch import FULL, Batch, View
from jestbench.parallel.arithmetic import to_device


def at_least_fp32(value: Tensor) -> Tensor:
    """Cast to fp32, or keep fp64: similarities are never computed in half precision."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


class Encoders(nn.Module):
    """An image and a text encoder, with a multiplier t (as its logarithm) and an offset b₀.

    Attributes:
        image: uint8 images ``[B, 3, H, W]`` → ``[B, D]``, not normalised.
        text: int64 ids ``[B, L]`` → ``[B, D]``, not normalised.
        tokenizer: identity of the tokenizer whose ids the text encoder takes.
        width: D.
        log_scale: the logarithm of t.
        bias: b₀.
        counted_on: where a copy of it without values is run to count what training costs.
        libraries: packages whose versions embeddings depend on, besides torch.
    """

    image: nn.Module
    text: nn.Module
    tokenizer: str
    width: int
    log_scale: nn.Parameter
    bias: nn.Parameter
    counted_on: str = "meta"
    libraries: tuple[str, ...] = ("timm",)

    @property
    @abstractmethod
    def text_length(self) -> int:
        """L, tokens of a text."""

    @property
    @abstractmethod
    def pixels(self) -> int:
        """The side that images are resized to."""

    @abstractmethod
    def checked(self, view: View) -> View:
        """The view in the model's own terms: a field that equals the model's own value is reset to the default.

        Raises:
            ValueError: the model cannot be run under the view; the message gives the reason.
        """

    @abstractmethod
    def prepare(self, view: View) -> None:
        """Compute what a view needs, outside of any trace."""

    def tokenized(self, batch: Batch) -> Batch:
        """The batch with token ids of the model's own tokenizer, where the data set does not make them itself."""
        return batch

    @property
    def scale(self) -> Tensor:
        """The multiplier t."""
        return self.log_scale.exp()

    def scale_and_bias(self) -> tuple[float, float]:
        """t and b₀ as numbers."""
        scale, bias = torch.stack([self.scale.detach(), self.bias.detach()]).tolist()  # one read
        return scale, bias

    def rescale(self, scale: float, bias: float) -> None:
        """Set t and b₀."""
        with torch.no_grad():
            self.log_scale.fill_(math.log(scale))
            self.bias.fill_(bias)

    def encode_image(self, images_BCHW: Tensor, view: View = FULL, key_B: Tensor | None = None) -> Tensor:
        """Normalised fp32 image embeddings ``[B, D]``, whatever autocast the tower ran under."""
        return F.normalize(at_least_fp32(self.image(images_BCHW, view, key_B)), dim=-1)

    def encode_text(self, token_BL: Tensor, view: View = FULL) -> Tensor:
        """Normalised fp32 text embeddings ``[B, D]``."""
        return F.normalize(at_least_fp32(self.text(token_BL, view)), dim=-1)

    def forward(self, batch: Batch, view: View = FULL) -> tuple[Tensor, Tensor]:
        """Image and text embeddings of a batch under a view.

        Raises:
            DataError: the batch holds no ids of this model's own tokenizer.
        """
        device = self.log_scale.device
        tokens = self.tokenized(batch).tokens(self.tokenizer)
        if batch.image_rows_BD is None:
            key_B = to_device(batch.image_key_B, device) if view.keep < 1 else None
            image_BD = self.encode_image(to_device(batch.images_BCHW, device), view, key_B)
        else:
            image_BD = to_device(batch.image_rows_BD, device)
        return image_BD, self.encode_text(to_device(tokens, device), view)
