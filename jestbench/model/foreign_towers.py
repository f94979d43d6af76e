"""Two-tower models of other libraries, with the preprocessing and the tokenizer that they were trained with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jestbench.batch import FULL, Batch, View
from jestbench.disk import DataError
from jestbench.model.encoders import Encoders, at_least_fp32
from jestbench.model.pillow_resize import Kernel, pillow_resized
from jestbench.model.tokenizer import Tokenizer
from jestbench.select.losses import LossName

Channels = tuple[float, float, float]
"""A value for each of red, green and blue."""


class ForeignError(DataError):
    """A model of another library is named wrongly, or is of a kind that cannot be run here."""

    exit_status: ClassVar[int] = 2


@dataclass(frozen=True)
class Preprocessing:
    """What a model's own library does to a square image, as far as it can be done to many at once on a device.

    Attributes:
        resize: side of the square that an image is resized to, pixels.
        crop: side of the square that is cut from its centre, pixels.
        kernel: of the resizing.
        mean: of each channel, of values in [0, 1].
        std: likewise.
    """

    resize: int
    crop: int
    kernel: Kernel
    mean: Channels
    std: Channels

    def leaves_whole(self, view: View) -> bool:
        """Whether a view is the full one of a model that reads such images."""
        return replace(view, resolution=None if view.resolution == self.crop else view.resolution) == FULL

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Float32 pixels ``[B, 3, crop, crop]`` of square uint8 images."""
        images = pillow_resized(images_BCHW, self.resize, self.kernel)
        start = (self.resize - self.crop) // 2
        pixels = images[..., start : start + self.crop, start : start + self.crop].float() / 255
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


@dataclass(frozen=True)
class ForeignTokenizer:
    """A tokenizer of another library.

    Attributes:
        identity: by which a model recognises its own token ids: library, vocabulary and length.
        length: L, tokens of a text.
        encode: texts → int64 ids ``[N, L]``, by the library itself.
        carried: the same tokenizer as a run folder can hold it, or ``ForeignError``; ``None`` of a stand-in.
    """

    identity: str
    length: int
    encode: Callable[[list[str]], Tensor]
    carried: Callable[[], Tokenizer] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> ForeignTokenizer:
        """Itself: a copy of a model without its values is made for each price."""
        return self

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids ``[N, L]``; a text that comes twice is tokenized once."""
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        ids_CL = self.encode(list(row_of)).to(torch.int64)
        return ids_CL[torch.tensor([row_of[text] for text in texts], dtype=torch.int64)]


class ForeignImage(nn.Module):
    """The image encoder of a library's model: uint8 ``[B, 3, S, S]`` → ``[B, D]``."""

    transformer = False
    width: int

    def __init__(self, net: nn.Module, encode: Callable[[Any, Tensor], Tensor], preprocessing: Preprocessing) -> None:
        super().__init__()
        self.net, self.encode, self.preprocessing = net, encode, preprocessing
        self.described = repr(preprocessing)  # a plain attribute, which the fingerprint of the weights holds

    @property
    def backbone(self) -> nn.Module:
        """The library's own image tower."""
        return next((part for name in ("visual", "vision_model") if (part := getattr(self.net, name, None))), self.net)

    @property
    def resolution(self) -> tuple[int, int]:
        """Sides that images are resized to, pixels."""
        return (self.preprocessing.resize,) * 2

    @property
    def averages(self) -> bool:
        """Whether batch normalisation averages over the images of a pass."""
        return any(isinstance(part, _BatchNorm) for part in self.net.modules())

    def forward(self, images_BCHW: Tensor, view: View = FULL, key_B: Tensor | None = None) -> Tensor:
        """Preprocess on the device, and run; the view is the full one."""
        pixels = self.preprocessing(images_BCHW)
        return self.encode(self.net, pixels.to(next(self.net.parameters()).dtype))


class ForeignText(nn.Module):
    """The text encoder of a library's model: int64 ids ``[B, L]`` → ``[B, D]``."""

    def __init__(self, net: nn.Module, encode: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.encode = net, encode

    def forward(self, token_BL: Tensor, view: View = FULL) -> Tensor:
        """Run; the view is the full one."""
        return self.encode(self.net, token_BL)


class ForeignTowers(Encoders):
    """A model of another library, run by the library's own forward pass.

    Args:
        net: the library's model.
        encode_image: its pixels → embeddings.
        encode_text: its ids → embeddings.
        preprocessing: its own, of square images.
        tokenizer: its own.
        width: D.
        log_scale: logarithm of t.
        bias: b₀; ``None`` of a model that was trained on the softmax loss.
        encode_pictures: the library's own way from PIL images of any shape to embeddings.
        libraries: packages whose versions embeddings depend on.
    """

    image: ForeignImage

    def __init__(
        self,
        net: nn.Module,
        encode_image: Callable[[Any, Tensor], Tensor],
        encode_text: Callable[[Any, Tensor], Tensor],
        preprocessing: Preprocessing,
        tokenizer: ForeignTokenizer,
        width: int,
        log_scale: Tensor,
        bias: Tensor | None,
        encode_pictures: Callable[[Any, Sequence[Any]], Tensor],
        libraries: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.encode_pictures, self.libraries = encode_pictures, libraries
        self.image, self.text = ForeignImage(net, encode_image, preprocessing), ForeignText(net, encode_text)
        self.tokens, self.tokenizer, self.width = tokenizer, tokenizer.identity, width
        self.log_scale = nn.Parameter(log_scale.detach().float().reshape(()).clone())
        self.bias = nn.Parameter((torch.zeros(()) if bias is None else bias).detach().float().reshape(()).clone())
        self.loss: LossName = "softmax" if bias is None else "sigmoid"

    @property
    def text_length(self) -> int:
        """L, tokens of a text."""
        return self.tokens.length

    @property
    def pixels(self) -> int:
        """The side that images are resized to."""
        return self.image.preprocessing.resize

    def checked(self, view: View) -> View:
        """The full view.

        Raises:
            ValueError: the view is another one.
        """
        if not self.image.preprocessing.leaves_whole(view):
            raise ValueError(f"a model of another library is run whole, not under a view ({view.label})")
        return FULL

    def prepare(self, view: View) -> None:
        """Nothing."""

    def pictures(self, images: Sequence[Any]) -> Tensor:
        """Normalised embeddings ``[B, D]`` of PIL images of any shape, as the library itself prepares them."""
        coloured = [image.convert("RGB") for image in images]
        return F.normalize(at_least_fp32(self.encode_pictures(self.image.net, coloured)), dim=-1)

    def tokenized(self, batch: Batch) -> Batch:
        """The batch with token ids of the model's own tokenizer, made of its captions."""
        if self.tokenizer in batch.token_ids:
            return batch
        if not batch.captions:
            raise DataError("a model with a tokenizer of its own needs captions, and this data set has token ids alone")
        return replace(batch, token_ids={**batch.token_ids, self.tokenizer: self.tokens(batch.captions)})
