"""Models of open_clip, built by its own factory: ``@open_clip()``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jestbench.disk import DataError, digest, first_line, nearest, user_path
from jestbench.engine.foreign import (
    SAFE,
    Foreign,
    checked_weights,
    chosen_weights,
    described,
    files_digest,
    misfit,
    missing_extra,
    quietly,
    stand_in_tokenizer,
    three,
)
from jestbench.model.carried_tokenizer import of_open_clip
from jestbench.model.carry import Tower, open_clip_towers
from jestbench.model.foreign_towers import ForeignError, ForeignTokenizer, ForeignTowers, Preprocessing
from jestbench.model.pillow_resize import Kernel

CONFIG = "open_clip_config.json"
WEIGHTS = tuple(
    f"{name}{suffix}"
    for suffix in (SAFE, ".bin", ".pth")
    for name in ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")
)
"""Names of weights in a folder, in order."""
LIBRARIES = ("open_clip_torch", "timm")
LOCAL, HUB = "local-dir:", "hf-hub:"


@dataclass(frozen=True)
class OpenClip(Foreign):
    """A model of open_clip.

    Attributes:
        model: its name in open_clip (``open_clip.list_models()``); or ``local-dir:FOLDER``, ``hf-hub:OWNER/NAME``,
            where configuration, weights and tokenizer lie together.
        pretrained: a tag of open_clip, a file of weights, or a folder that holds one; left empty where ``model`` is a
            folder or on the hub.
    """

    model: str = ""
    pretrained: str = ""

    library = "open_clip"

    def __post_init__(self) -> None:
        together = self.model.startswith((LOCAL, HUB))
        if together and self.pretrained:
            raise ValueError(f"open_clip.model = {self.model!r} brings its own weights: leave open_clip.pretrained out")
        folder = bool(self.model) and user_path(self.model).is_dir()
        if not together and not (self.model and self.pretrained):
            raise ValueError(
                "open_clip needs a model and its weights: bind open_clip.model (a name) and open_clip.pretrained (a "
                f"tag, a file or a folder), or open_clip.model = '{LOCAL}{self.model if folder else 'FOLDER'}'"
            )

    @property
    def label(self) -> str:
        """Model and weights, without the folders that they lie in."""
        name = self._folder.name if self.model.startswith(LOCAL) else self.model
        return " ".join(["open_clip", name, *([Path(self.pretrained).name] if self.pretrained else [])])

    @property
    def identity(self) -> str:
        """The model's name, and a digest of its weights; of a tag or of a name on the hub the name."""
        if (weights := self._weights()) is None:
            return f"open_clip/{self.model}/{self.pretrained}"
        config = [self._config_file] if self.model.startswith(LOCAL) else []
        return f"open_clip/{'' if config else self.model}/{files_digest([*config, weights])}"

    @property
    def remote(self) -> str:
        """The tag or name."""
        return "" if self._weights() is not None else f"the weights of {self.label}"

    @property
    def _folder(self) -> Path:
        return user_path(self.model.removeprefix(LOCAL))

    @property
    def _config_file(self) -> Path:
        """The configuration in the folder; ``DataError`` where it holds none."""
        folder = self._folder
        if folder.is_dir() and not (folder / CONFIG).is_file():
            other = (folder / "config.json").is_file()
            hint = f": of transformers, it is bound as hugging_face_clip.path = {str(folder)!r}" if other else ""
            raise DataError(f"{folder} holds no {CONFIG}, as open_clip's push_to_hf_hub writes it{hint}")
        return folder / CONFIG

    def _weights(self) -> Path | None:
        """The local file of weights, ``None`` for a hub's; ``DataError`` where none is there or may be read."""
        if self.model.startswith(HUB):
            return None
        path = self._folder if self.model.startswith(LOCAL) else user_path(self.pretrained)
        if path.is_dir():
            path = chosen_weights(path, WEIGHTS)
        elif not path.exists() and not self.model.startswith(LOCAL):
            return None
        return checked_weights(path, self.trust_pickle)

    def load(self, untrained: bool = False) -> ForeignTowers:
        """As ``Foreign.load``."""
        try:
            with quietly():
                import open_clip
        except ImportError as error:
            raise missing_extra("open_clip", "open_clip_torch") from error
        config = self._config(open_clip)
        weights = None if untrained and self.model.startswith(LOCAL) else self._weights()
        if weights is None and untrained and not self.model.startswith((LOCAL, HUB)):
            self._tag(open_clip)  # refuses what is none, with nothing fetched
        weights = None if untrained else weights or self._fetched(open_clip)
        net = self._built(open_clip, config, weights)
        size = net.visual.preprocess_cfg["size"]
        side = size if isinstance(size, int) else size[0]
        if not isinstance(size, int) and len(set(size)) > 1:
            raise ForeignError(f"{self.label} reads images of {size[0]} × {size[1]} px: only square ones are made here")
        given = net.visual.preprocess_cfg
        kernel: Kernel = "bilinear" if given["interpolation"] == "bilinear" else "bicubic"
        preprocessing = Preprocessing(side, side, kernel, three(given["mean"]), three(given["std"]))
        length = config["text_cfg"].get("context_length", 77)
        tokenizer = stand_in_tokenizer(length) if untrained else self._tokenizer(open_clip)
        width = int(config["embed_dim"])
        transform = open_clip.transform
        whole = transform.image_transform_v2(transform.PreprocessCfg(**given), is_train=False)
        scale, bias, pictures = net.logit_scale, getattr(net, "logit_bias", None), partial(_pictures, whole)
        return ForeignTowers(net, _image, _text, preprocessing, tokenizer, width, scale, bias, pictures, LIBRARIES)

    def towers(self, foreign: ForeignTowers) -> tuple[Tower, Tower]:
        """As ``Foreign.towers``."""
        import open_clip

        return open_clip_towers(foreign.image.net, self._config(open_clip))

    def files(self, foreign: ForeignTowers) -> dict[str, Any]:
        """As ``Foreign.files``."""
        import open_clip

        net: Any = foreign.image.net
        return {CONFIG: {"model_cfg": self._config(open_clip), "preprocess_cfg": dict(net.visual.preprocess_cfg)}}

    @classmethod
    def at(cls, folder: Path) -> OpenClip:
        """As ``Foreign.at``."""
        return cls(model=f"{LOCAL}{folder}")

    def _config(self, library: Any) -> dict[str, Any]:
        """The library's configuration of the model; ``ForeignError`` for an unknown name, ``DataError`` for no file."""
        if self.model.startswith(LOCAL):
            found = described(self._config_file)
            if "model_cfg" not in found:
                raise DataError(f"{self._folder / CONFIG} holds no 'model_cfg'")
            return dict(found["model_cfg"])
        try:
            with quietly():
                config = library.get_model_config(self.model.replace("/", "-") if HUB not in self.model else self.model)
        except Exception as error:  # the hub's client raises any kind
            raise self._not_fetched(error) from error
        if config is None:
            near = nearest(self.model, library.list_models(), "; did you mean {}?", count=3)
            raise ForeignError(f"open_clip.model = {self.model!r}: open_clip has no such model{near}")
        return dict(config)

    def _tag(self, library: Any) -> Mapping[str, Any]:
        """The configuration of a pretrained tag in the library; ``ForeignError`` where the model has no such tag."""
        found: Mapping[str, Any] = library.get_pretrained_cfg(self.model, self.pretrained)
        if not found:
            tags = library.list_pretrained_tags_by_model(self.model)
            near = nearest(self.pretrained, tags, "; did you mean {}?", count=3)
            raise ForeignError(
                f"open_clip.pretrained = {self.pretrained!r} is no file, no folder and no tag of {self.model}"
                f"{near or '; it has ' + (', '.join(tags) or 'none')}"
            )
        return found

    def _fetched(self, library: Any) -> Path:
        """The file of weights from the hub or its cache; ``DataError`` if it is not there, or is a pickle."""
        try:
            with quietly():
                if self.model.startswith(HUB):
                    path = library.pretrained.download_pretrained_from_hf(self.model.removeprefix(HUB))
                else:
                    path = library.download_pretrained(self._tag(library))
        except ForeignError:
            raise
        except Exception as error:  # the hub's client raises any kind
            raise self._not_fetched(error) from error
        return checked_weights(Path(path), self.trust_pickle)

    def _not_fetched(self, error: Exception) -> DataError:
        return DataError(
            f"{self.label} cannot be fetched: {first_line(error)}; where there is no network, "
            f"bind a file or a folder that holds the weights, or '{LOCAL}FOLDER'"
        )

    def _built(self, library: Any, config: Mapping[str, Any], weights: Path | None) -> Any:
        """The library's own model; ``ForeignError`` where weights do not fit, ``DataError`` where they are damaged."""
        local_or_hub = self.model.startswith((LOCAL, HUB))
        given = None if local_or_hub or weights is None else str(weights)
        if not local_or_hub and weights is not None and not user_path(self.pretrained).exists():
            given = self.pretrained  # a tag, by which the library finds mean, std and interpolation
        try:
            with quietly(), warnings.catch_warnings():
                warnings.filterwarnings("error", "QuickGELU mismatch")
                net = library.create_model(
                    *(self.model, given),
                    device=torch.get_default_device(),
                    load_weights=weights is not None,
                    pretrained_text=False,
                    weights_only=True,
                )
        except UserWarning as error:
            raise ForeignError(
                f"open_clip.model = {self.model!r} and the tag {self.pretrained!r} differ in their activation: take "
                f"{self.model}-quickgelu, or without -quickgelu"
            ) from error
        except Exception as error:  # of any kind, assertions too
            if weights is None:
                raise misfit(error, f"{self.label} cannot be built") from error
            found = misfit(error, f"{weights} does not hold a {self.model}", [weights])
            if isinstance(found, ForeignError):
                self._built(library, config, None)  # raises where the fault is not in the weights
            raise found from error
        return net

    def _tokenizer(self, library: Any) -> ForeignTokenizer:
        """The library's own tokenizer; ``DataError`` where its files are missing, or on the hub alone."""
        try:
            with quietly():
                made = library.get_tokenizer(self.model)
        except Exception as error:
            raise DataError(
                f"the tokenizer of {self.label} cannot be had: {first_line(error)}; put its files beside the weights, "
                f"and bind open_clip.model = '{LOCAL}FOLDER'"
            ) from error
        if getattr(made, "reduction_fn", None) is not None:
            raise ForeignError(
                f"{self.label} draws the words of a text at random: such a text has no embedding of its own"
            )
        inner = getattr(made, "tokenizer", None)
        vocabulary = made.encoder if inner is None else inner.get_vocab()
        plain = [type(made).__name__, made.context_length, made.clean_fn.__name__, *map(str, sorted(vars(made)))]
        plain += [
            getattr(made, "strip_sep_token", False),
            getattr(made, "tokenizer_mode", ""),
            sorted(vocabulary.items()),
        ]
        identity = f"open_clip/{digest(json.dumps(plain), 6)}/{made.context_length}"
        own = ForeignTokenizer(identity, made.context_length, made)
        return replace(own, carried=partial(of_open_clip, made, own))


def _image(net: Any, pixels: Tensor) -> Tensor:
    found: Tensor = net.encode_image(pixels, normalize=False)
    return found


def _pictures(transform: Any, net: Any, images: Sequence[Any]) -> Tensor:
    return _image(net, torch.stack([transform(image) for image in images]).to(net.logit_scale.device))


def _text(net: Any, token_BL: Tensor) -> Tensor:
    found: Tensor = net.encode_text(token_BL, normalize=False)
    return found
