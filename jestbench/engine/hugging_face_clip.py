"""CLIP and SigLIP as ``transformers`` saves them: ``@hugging_face_clip()``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.disk import DataError, digest, first_line, user_path
from jestbench.engine.foreign import (
    SAFE,
    Foreign,
    checked_weights,
    described,
    files_digest,
    misfit,
    missing_extra,
    quietly,
    stand_in_tokenizer,
    three,
)
from jestbench.model.carried_tokenizer import of_transformers
from jestbench.model.carry import Tower, transformers_towers
from jestbench.model.foreign_towers import Channels, ForeignError, ForeignTokenizer, ForeignTowers, Preprocessing
from jestbench.model.pillow_resize import Kernel

KINDS: Mapping[str, str] = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
"""``model_type`` of ``config.json`` → class of ``transformers``. SigLIP 2 of a fixed resolution is saved as ``siglip``;
``siglip2`` is the one of variable resolution (NaFlex)."""
KERNELS: Mapping[int, Kernel] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow's resampling filters."""
VOCABULARIES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")
INDEX = "model.safetensors.index.json"
SHAPES = ("config.json", "preprocessor_config.json", "processor_config.json")
FILES = ("*.json", f"*{SAFE}", "*.txt", "*.model")
ENDINGS = (SAFE, ".json", ".bin", ".pt", ".pth", ".ckpt")
"""Of paths to a file of weights or of their description: a name on the hub may hold a dot, too (llama-2.5b)."""


@dataclass(frozen=True)
class HuggingFaceClip(Foreign):
    """A ``CLIPModel``, ``SiglipModel`` or ``Siglip2Model`` of ``transformers``.

    Attributes:
        path: a folder that ``save_pretrained`` has written (model, tokenizer and image processor), or a name on the
            Hugging Face hub.
        revision: of a name on the hub: a branch, a tag or a commit.
    """

    path: str = ""
    revision: str = "main"

    library = "hugging_face_clip"

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("hugging_face_clip.path is required: a folder of save_pretrained, or a name on the hub")

    @property
    def label(self) -> str:
        """The folder's name, or the name on the hub."""
        return user_path(self.path).name if self._local is not None else self.path

    @property
    def identity(self) -> str:
        """A digest of configuration and weights; of a name on the hub the name."""
        if self._local is None:
            return f"hugging_face/{self.path}/{self.revision}"
        files = [self._local / "config.json", *self._weights(self._local)]
        files += [found for name in VOCABULARIES if (found := self._local / name).is_file()]
        return f"hugging_face/{files_digest(files)}"

    @property
    def remote(self) -> str:
        """The name on the hub, where its files are not in the hub's cache."""
        try:
            self._folder(fetch=False)
        except DataError:
            return "" if self._local is not None else f"the weights of {self.path}"
        return ""

    @property
    def _local(self) -> Path | None:
        path = user_path(self.path)
        return path if path.is_dir() else None

    def _folder(self, fetch: bool = True, patterns: tuple[str, ...] = FILES) -> Path:
        """The folder, or that of a name's files in the hub's cache; ``DataError`` where neither can be had."""
        if self._local is not None:
            return self._local
        if self.path.endswith(ENDINGS) or self.path.startswith((".", "/", "~")) or self.path.count("/") != 1:
            raise DataError(
                f"hugging_face_clip.path = {self.path!r}: no such folder, and no name on the hub (OWNER/NAME)"
            )
        from huggingface_hub import snapshot_download

        more = ("*.bin",) if self.trust_pickle else ()
        try:
            with quietly():
                return Path(
                    snapshot_download(
                        self.path, revision=self.revision, allow_patterns=[*patterns, *more], local_files_only=not fetch
                    )
                )
        except Exception as error:  # the hub's client raises any kind
            raise DataError(
                f"hugging_face_clip.path = {self.path!r} is no folder, and cannot be fetched from the hub: "
                f"{first_line(error)}; where there is no network, bind a folder that save_pretrained has written"
            ) from error

    def _weights(self, folder: Path) -> list[Path]:
        """The files of weights; ``DataError`` where one is missing, damaged or an untrusted pickle."""
        if (folder / INDEX).is_file():
            names = sorted(set(described(folder / INDEX).get("weight_map", {}).values()))
        else:
            names = [name for name in (f"model{SAFE}", "pytorch_model.bin") if (folder / name).is_file()][:1]
        if not names:
            raise DataError(f"{folder} holds no weights: save_pretrained writes model{SAFE}")
        return [checked_weights(folder / name, self.trust_pickle) for name in names]

    def load(self, untrained: bool = False) -> ForeignTowers:
        """As ``Foreign.load``."""
        try:
            with quietly():
                import transformers
        except ImportError as error:
            raise missing_extra("hugging_face", "transformers") from error
        # Prices need shapes alone, and those stand in two small files.
        folder = self._folder(patterns=("*.json",)) if untrained else self._folder()
        config = described(folder / "config.json")
        net = self._net(transformers, folder, str(config.get("model_type", "")), untrained)
        processor = self._processor(transformers, folder)
        length = int(net.config.text_config.max_position_embeddings)
        tokenizer = stand_in_tokenizer(length) if untrained else self._tokenizer(transformers, folder, length)
        preprocessing, image = self._preprocessing(net, processor)
        width = net.config.projection_dim if net.config.model_type == "clip" else net.config.vision_config.hidden_size
        bias = getattr(net, "logit_bias", None)
        scale, pictures = net.logit_scale, partial(_pictures, processor)
        return ForeignTowers(
            net, image, _text, preprocessing, tokenizer, int(width), scale, bias, pictures, ("transformers",)
        )

    def towers(self, foreign: ForeignTowers) -> tuple[Tower, Tower]:
        """As ``Foreign.towers``."""
        return transformers_towers(foreign.image.net)

    def files(self, foreign: ForeignTowers) -> dict[str, Any]:
        """As ``Foreign.files``."""
        folder = self._folder(patterns=("*.json",))
        return {name: described(folder / name) for name in SHAPES if (folder / name).is_file()}

    @classmethod
    def at(cls, folder: Path) -> HuggingFaceClip:
        """As ``Foreign.at``."""
        return cls(path=str(folder))

    def _net(self, library: Any, folder: Path, kind: str, untrained: bool) -> Any:
        """The library's own model, in float32; ``ForeignError`` if it does not fit, ``DataError`` if damaged."""
        cls = getattr(library, KINDS.get(kind, ""), None)
        if cls is None:
            known = ", ".join(name for name, found in KINDS.items() if hasattr(library, found))
            raise ForeignError(
                f"{self.label} is of the type {kind!r}: transformers {library.__version__} has here {known}"
            )
        if untrained:
            try:
                with torch.random.fork_rng(devices=[]):
                    return cls(cls.config_class.from_pretrained(folder)).eval()
            except Exception as error:
                raise misfit(error, f"{folder} describes no {cls.__name__} that can be built") from error
        weights = self._weights(folder)
        try:
            with quietly():
                safe = all(file.suffix == SAFE for file in weights)
                net, found = cls.from_pretrained(
                    folder, use_safetensors=safe, weights_only=True, local_files_only=True, output_loading_info=True
                )
        except Exception as error:
            found = misfit(error, f"{weights[0]} is of another architecture than config.json", weights)
            if isinstance(found, ForeignError):
                self._net(library, folder, kind, untrained=True)  # raises where the fault is not in the weights
            raise found from error
        odd = [*found["missing_keys"], *found["unexpected_keys"], *found.get("mismatched_keys", ())]
        odd = [name for name in odd if "position_ids" not in str(name)]
        if odd:
            raise ForeignError(
                f"{weights[0]} is of another architecture than config.json ({cls.__name__}): {len(odd)} tensors are "
                f"missing or do not belong to it, such as {odd[0]}"
            )
        return net.float().eval()

    def _processor(self, library: Any, folder: Path) -> Any:
        """The library's own image processor, on Pillow; ``DataError`` where its file is missing or cannot be read."""
        try:
            with quietly():
                return library.AutoImageProcessor.from_pretrained(folder, use_fast=False, local_files_only=True)
        except Exception as error:
            raise DataError(
                f"{folder} holds no image processor that can be read (preprocessor_config.json): {first_line(error)}; "
                "save it beside the model: AutoImageProcessor.from_pretrained(…).save_pretrained(folder)"
            ) from error

    def _tokenizer(self, library: Any, folder: Path, length: int) -> ForeignTokenizer:
        """The library's own tokenizer; ``DataError`` where its files are missing or cannot be read."""
        if not any((folder / name).is_file() for name in VOCABULARIES):
            raise DataError(
                f"{folder} holds no tokenizer ({', '.join(VOCABULARIES)}): save it beside the model, "
                "AutoTokenizer.from_pretrained(…).save_pretrained(folder)"
            )
        try:
            with quietly():
                made = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise DataError(f"the tokenizer in {folder} cannot be read: {first_line(error)}") from error
        backend = getattr(made, "backend_tokenizer", None)
        content = sorted(made.get_vocab().items()) if backend is None else backend.to_str()
        identity = digest(json.dumps([type(made).__name__, content, made.pad_token_id]), 6)
        own = ForeignTokenizer(f"hugging_face/{identity}/{length}", length, partial(_ids, made, length))
        return replace(own, carried=partial(of_transformers, made, own))

    def _preprocessing(self, net: Any, processor: Any) -> tuple[Preprocessing, Any]:
        """The image processor on square images, and the model's call on pixels; ``ForeignError`` if not done here."""
        given = processor.to_dict()
        kernel = KERNELS.get(int(given.get("resample", 3)))
        if kernel is None or not all(given.get(f"do_{step}", True) for step in ("resize", "normalize")):
            raise ForeignError(
                f"{self.label}: only images that are resized (bilinear, bicubic, lanczos) and normalised are made "
                "here, and its preprocessor_config.json asks for something else"
            )
        mean, std = self._of_unit_pixels(given)
        image = _image
        if net.config.model_type == "siglip2":
            patch, most = int(given["patch_size"]), int(given["max_num_patches"])
            side = patch * math.isqrt(most)
            crop, image = side, partial(_flexible_image, patch, most)
        else:
            side = self._side(given["size"])
            crop = self._side(given["crop_size"]) if given.get("do_center_crop") else side
            takes = int(net.config.vision_config.image_size)
            if crop != takes or crop > side:
                raise ForeignError(f"{self.label} takes images of {takes} px, and its image processor makes {crop} px")
        return Preprocessing(side, crop, kernel, mean, std), image

    def _of_unit_pixels(self, given: Mapping[str, Any]) -> tuple[Channels, Channels]:
        """Mean and deviation of unit pixels, the processor's rescaling in them; ``ForeignError`` for a bad one."""
        factor = float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0
        if not 0 < factor < math.inf:
            raise ForeignError(f"{self.label}: the rescale_factor of its preprocessor_config.json is {factor}")
        mean, std = three(given["image_mean"]), three(given["image_std"])
        most = 255 * factor  # of a pixel, once it is rescaled
        if math.isclose(most, 1, rel_tol=1e-6):
            return mean, std
        return three([value / most for value in mean]), three([value / most for value in std])

    def _side(self, size: Any) -> int:
        """The side of the square that a size of an image processor makes of a square."""
        if isinstance(size, int):
            return size
        sides = {int(value) for name in ("shortest_edge", "height", "width") if (value := dict(size).get(name))}
        if len(sides) != 1:
            raise ForeignError(f"{self.label} reads images of {dict(size)}: only square ones are made here")
        return sides.pop()


def _ids(tokenizer: Any, length: int, texts: list[str]) -> Tensor:
    """Ids of texts, cut or padded to ``length`` on the right, as CLIP and SigLIP are trained."""
    found = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    ids: Tensor = found["input_ids"]
    return ids


def _pooled(found: Any) -> Tensor:
    """The embeddings: from version 5 on in an output with more."""
    pooled: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return pooled


def _image(net: Any, pixels: Tensor) -> Tensor:
    return _pooled(net.get_image_features(pixel_values=pixels))


def _flexible_image(patch: int, most: int, net: Any, pixels: Tensor) -> Tensor:
    """Square images as sequences of patches, padded to the most that the model takes."""
    count, grid = len(pixels), pixels.shape[-1] // patch
    cut = pixels.reshape(count, 3, grid, patch, grid, patch).permute(0, 2, 4, 3, 5, 1)
    patches = F.pad(cut.reshape(count, grid * grid, 3 * patch * patch), (0, 0, 0, most - grid * grid))
    mask = torch.zeros(count, most, dtype=torch.int32, device=pixels.device)
    mask[:, : grid * grid] = 1
    shapes = torch.full((count, 2), grid, dtype=torch.int64, device=pixels.device)
    features = net.get_image_features(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)
    return _pooled(features)


def _pictures(processor: Any, net: Any, images: Sequence[Any]) -> Tensor:
    made = processor(images=list(images), return_tensors="pt").to(net.logit_scale.device)
    return _pooled(net.get_image_features(**made))


def _text(net: Any, token_BL: Tensor) -> Tensor:
    """Without a mask: CLIP's text tower is causal, and SigLIP's was trained to read its padding."""
    return _pooled(net.get_text_features(input_ids=token_BL))
