"""A trained model for a notebook or a script: of a run folder, of open_clip or of ``transformers``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from jestbench.data.decode import squared
from jestbench.disk import user_path
from jestbench.engine.foreign import Foreign
from jestbench.engine.hugging_face_clip import HuggingFaceClip
from jestbench.engine.open_clip_model import HUB, LOCAL, OpenClip
from jestbench.model.encoders import Encoders
from jestbench.runs.saved_model import tokenizer_of, towers_of

AT_ONCE = 256
"""Images or texts in one forward pass."""
Pictures = Tensor | Sequence[Image.Image]
"""Uint8 images ``[B, 3, H, W]``, or PIL images of any size."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that embeds images and texts, prepared as it was trained.

    Attributes:
        model: the two encoders, in eval mode.
        tokenize: its own tokenizer: texts → ids ``[N, L]``.
        encode_pictures: PIL images of any size → normalised embeddings.
    """

    model: Encoders
    tokenize: Callable[[Sequence[str]], Tensor]
    encode_pictures: Callable[[Sequence[Image.Image]], Tensor]

    @property
    def scale_and_bias(self) -> tuple[float, float]:
        """The multiplier t and the offset b₀ of cosine similarities."""
        return self.model.scale_and_bias()

    @torch.no_grad()
    def encode_image(self, images: Pictures) -> Tensor:
        """Normalised embeddings ``[B, D]`` of images, float32 on the CPU.

        Raises:
            ValueError: a tensor holds no uint8 images ``[B, 3, H, W]``.
        """
        if isinstance(images, Tensor):
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
                raise ValueError(f"images are uint8 [B, 3, H, W], got {images.dtype} {list(images.shape)}")
            if images.shape[2] == images.shape[3]:
                device = self.model.log_scale.device
                return _joined([self.model.encode_image(part.to(device)) for part in images.split(AT_ONCE)])
            images = [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]
        parts = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
        return _joined([self.encode_pictures(part) for part in parts])

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings ``[N, D]`` of texts, float32 on the CPU."""
        if isinstance(texts, str):
            raise ValueError("texts are a list of strings, not one string")
        ids_NL = self.tokenize(list(texts)).to(self.model.log_scale.device)
        return _joined([self.model.encode_text(part) for part in ids_NL.split(AT_ONCE)])

    def zero_shot(self, images: Pictures, classes: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """Probabilities ``[B, C]`` of classes: a softmax over them at the model's own scale.

        Args:
            images: uint8 ``[B, 3, H, W]``, or PIL images.
            classes: names, or whole captions.
            templates: sentences with ``{}`` for a name; a class is the mean over them (Radford et al. 2021, 3.1.4).
        """
        texts = [template.replace("{}", name) for name in classes for template in templates]
        class_CD = F.normalize(self.encode_text(texts).unflatten(0, (len(classes), -1)).mean(1), dim=-1)
        return (self.scale_and_bias[0] * self.encode_image(images) @ class_CD.T).softmax(1)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.float().cpu() for part in parts])


def load_model(source: str | Path, device: str = "cpu", trust_pickle: bool = False) -> LoadedModel:
    """Load a trained model.

    Args:
        source: a run folder; ``open_clip:MODEL:PRETRAINED`` (a tag, a file or a folder); ``open_clip:local-dir:FOLDER``
            or ``open_clip:hf-hub:OWNER/NAME``; ``hf:`` and a folder of ``save_pretrained`` or a name on the hub.
        device: that it is run on.
        trust_pickle: take weights in a pickle too, which torch reads with ``weights_only``.

    Raises:
        DataError: there is no such model, or it cannot be read.
        ValueError: the source names no model.
    """
    named = foreign_named(str(source), trust_pickle)
    if named is None:
        return _of_run(user_path(source), device)
    foreign = named.load().to(device).eval()
    return LoadedModel(foreign, foreign.tokens, foreign.pictures)


def foreign_named(source: str, trust_pickle: bool = False) -> Foreign | None:
    """The model of another library that a source of ``load_model`` names; ``None`` where it is a run folder.

    Raises:
        ValueError: the source names no model.
    """
    kind, _, rest = source.partition(":")
    if kind == "open_clip":
        together = rest.startswith((LOCAL, HUB))
        model, _, pretrained = (rest, "", "") if together else rest.partition(":")
        return OpenClip(model=model, pretrained=pretrained, trust_pickle=trust_pickle)
    return HuggingFaceClip(path=rest, trust_pickle=trust_pickle) if kind == "hf" else None


def _of_run(folder: Path, device: str) -> LoadedModel:
    """The model of a finished run; a picture is turned, put on white, cropped and resized as data sets do it."""
    model = towers_of(folder).to(device).eval()

    def pictures(images: Sequence[Image.Image]) -> Tensor:
        square = np.stack([squared(ImageOps.exif_transpose(image), model.pixels) for image in images])
        return model.encode_image(torch.from_numpy(square).permute(0, 3, 1, 2).to(device))

    return LoadedModel(model, tokenizer_of(folder).encode, pictures)
