"""Two towers, an image tower by timm and a text transformer, that embed into the same D dimensions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import timm
import torch
from timm.layers import HybridEmbed
from torch import Tensor, nn

from jestbench import seeds
from jestbench.batch import Batch, View
from jestbench.cost.tracing import without_values
from jestbench.disk import nearest
from jestbench.model.encoders import Encoders
from jestbench.model.image_tower import HALF, TRANSFORMERS, ImageTower
from jestbench.model.text_tower import Activation, TextPool, TextTower
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.views import check
from jestbench.select.losses import LossName

# SigLIP starts at t = 10, b₀ = −10; CLIP at t = 1/0.07, and keeps t ≤ 100.
INITIAL: Mapping[LossName, tuple[float, float]] = {"sigmoid": (10.0, -10.0), "softmax": (1 / 0.07, 0.0)}
MAX_SCALE = 100.0


class TwoTowers(Encoders):
    """Image and text tower with a learned multiplier t (as its logarithm) and offset b₀.

    Attributes:
        tokens: the tokenizer whose ids the text tower takes.
        locked: the image tower is not trained.
        brings_tokenizer: training began from a model of another tokenizer than the data set's, which token ids are made
            by; ids of any other tokenizer are refused.
    """

    image: ImageTower
    text: TextTower

    def __init__(
        self, image: ImageTower, text: TextTower, tokenizer: Tokenizer, loss: LossName, locked: bool = False
    ) -> None:
        """Join two towers.

        Args:
            image: the image tower.
            text: the text tower.
            tokenizer: whose ids the text tower takes.
            loss: that the model is trained on.
            locked: the image tower is not trained (``model.freeze``).
        """
        super().__init__()
        scale, bias = INITIAL[loss]
        self.image, self.text, self.tokens, self.tokenizer = image, text, tokenizer, tokenizer.identity
        self.locked, self.brings_tokenizer = locked, False
        if locked:
            image.requires_grad_(False).eval()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        # The softmax loss does not use the offset, and DDP fails on a trainable parameter without gradient.
        self.bias = nn.Parameter(torch.tensor(bias), requires_grad=loss == "sigmoid")
        self.width = image.width

    @property
    def text_length(self) -> int:
        """L, tokens of a text."""
        return len(self.text.positions)

    @property
    def pixels(self) -> int:
        """The side that images are resized to."""
        return self.image.resolution[0]

    def checked(self, view: View) -> View:
        """As ``views.check``."""
        return check(view, self)

    def prepare(self, view: View) -> None:
        """Compute and cache the resize matrix of a view, outside of any trace."""
        self.image.prepare(view)

    def tokenized(self, batch: Batch) -> Batch:
        """The batch with ids of the model's own tokenizer, made of its captions where the model has begun with one."""
        if not self.brings_tokenizer or self.tokenizer in batch.token_ids or not batch.captions:
            return batch
        return replace(batch, token_ids={**batch.token_ids, self.tokenizer: self.tokens.encode(batch.captions)})

    def stand_in(self, images_BCHW: Tensor) -> Batch:
        """One pair of no data set, for a pass of a process that has no pairs.

        Args:
            images_BCHW: any number of images, whose size the pair's image has.
        """
        token_1L = torch.full((1, self.text_length), int(self.tokens.pad_id == 0))  # a text of padding has no embedding
        key_1 = torch.zeros(1, dtype=torch.int64)
        image_1CHW = torch.zeros(1, *images_BCHW.shape[1:], dtype=torch.uint8)
        return Batch(image_1CHW, {self.tokenizer: token_1L}, key_1, key_1)

    def train(self, mode: bool = True) -> TwoTowers:
        """Set both towers to train mode; a locked image tower stays in eval mode (Zhai et al. 2022, LiT)."""
        super().train(mode)
        if self.locked:
            self.image.eval()
        return self

    def trained_by(self, views: Collection[View]) -> dict[View, frozenset[str]]:
        """The names of the weights that have a gradient under each view, by a backward pass without values."""
        ghost, found = without_values(self).eval(), {}
        for view in views:
            embedded = ghost(ghost.stand_in(torch.empty(0, 3, *ghost.image.resolution)), view)
            torch.autograd.backward([part.sum() for part in embedded if part.requires_grad])
            found[view] = frozenset(name for name, value in ghost.named_parameters() if value.grad is not None)
            ghost.zero_grad(set_to_none=True)
        return found

    def clamp_scale(self) -> None:
        """Keep t ≤ 100 (CLIP, section 2.5)."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_SCALE))

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks of both towers by ``torch.compile``, each kind of block once for all of its kind.

        Blocks do nearly all the work, run under every view, and take a fraction of the time that whole towers take to
        compile. Weights, their names and the traced price stay as they are.
        """
        for block in (*self.image.blocks, *self.text.blocks):
            block.compile(backend=backend)

    @contextmanager
    def checkpointing(self, enabled: bool) -> Iterator[None]:
        """Checkpoint activations: forward keeps each block's input alone, backward reruns the block (arXiv 1604.06174).

        The random state is restored for the second run, so that drop path drops the same branches.
        """
        if not enabled:
            yield
            return
        self.image.backbone.set_grad_checkpointing(True)
        self.text.grad_checkpointing = True
        try:
            yield
        finally:
            self.image.backbone.set_grad_checkpointing(False)
            self.text.grad_checkpointing = False


@cache
def _sizes_taken(image_tower: str) -> frozenset[str]:
    """Which of ``img_size`` and (a transformer) ``patch_size`` a timm model takes; ``ValueError`` for no model."""
    try:
        with torch.device("meta"):
            built = timm.create_model(image_tower, num_classes=0)
    except Exception as error:  # any error of timm's constructors
        raise ValueError(f"timm cannot build model.image_tower = {image_tower!r}: {error}") from error
    if not isinstance(built, TRANSFORMERS):
        return frozenset({"img_size"} & inspect.signature(type(built)).parameters.keys())
    # Behind a convolutional stem the patches are those of its features.
    stem = isinstance(getattr(built, "patch_embed", None), HybridEmbed)
    return frozenset({"img_size"} if stem else {"img_size", "patch_size"})


@dataclass(frozen=True)
class Model:
    """Shape of the two towers.

    Attributes:
        image_tower: any timm image model by name. Views that keep a share of the patches or layers, or change the
            patch, need a plain vision transformer (ViT, SigLIP, FlexiViT).
        image_size: side of an image, pixels; images of another size are resized on the device.
        patch_size: side of a patch of a vision transformer (ViT, EVA, BEiT, NaFlexViT), pixels; any other tower, and a
            ViT behind a convolutional stem, keeps its own, which ``image_options`` can change.
        image_options: further keyword arguments of the timm model (``embed_dim``, ``depth`` …).
        pretrained: load timm's weights for the image tower (needs the network or timm's cache).
        image_mean: three numbers, the mean of each channel of pixels in [0, 1]; ``None`` takes what the weights were
            trained with where ``pretrained``, and 0.5 otherwise.
        image_std: the standard deviation of each channel, likewise.
        image_projection: a linear projection without bias from the image tower's features to ``embed_dim``; without
            it (SigLIP) the features must be as wide.
        embed_dim: D, width of the image and text embeddings.
        text_width: width of the text transformer.
        text_layers: blocks of the text transformer.
        text_heads: attention heads of a text block.
        text_mlp_ratio: width of a text block's MLP over ``text_width``.
        text_causal: causal attention as in CLIP's text tower; otherwise every token attends to every token.
        text_attend_padding: tokens attend to padding too, as in SigLIP's text tower; without effect where
            ``text_causal``, in which no text token attends to the padding behind it.
        text_pool: ``mean`` over the real tokens, the output at the ``end`` token (CLIP) or at the ``last`` position,
            padding or not (SigLIP's released weights), or ``attention`` by one learned query.
        text_activation: of a text block's MLP: ``gelu``, ``gelu_tanh`` (its tanh form, SigLIP) or ``quick_gelu``
            (OpenAI's CLIP).
        text_norm_eps: ε of the layer normalisations; 1e-6 in SigLIP.
        text_projection_bias: whether the projection of the text has a bias, as in SigLIP.
        text_vocab_size: ids that the text tower has an embedding for; ``None``: as many as the tokenizer has.
        freeze: ``image``: the image tower and its projection keep their weights (LiT, arXiv 2111.07991), which come
            from ``pretrained`` or ``run.init``; a step is charged one forward pass of it.
    """

    image_tower: str = "vit_tiny_patch16_224"
    image_size: int = 32
    patch_size: int = 8
    image_options: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    image_projection: bool = True
    embed_dim: int = 128
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    text_mlp_ratio: float = 4.0
    text_causal: bool = False
    text_attend_padding: bool = False
    text_pool: TextPool = "mean"
    text_activation: Activation = "gelu"
    text_norm_eps: float = 1e-5
    text_projection_bias: bool = False
    text_vocab_size: int | None = None
    freeze: Literal["", "image"] = ""

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "embed_dim", "text_width", "text_layers", "text_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.freeze not in ("", "image"):
            raise ValueError(f"model.freeze is 'image' or '', got {self.freeze!r}")
        for name in ("text_mlp_ratio", "text_norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"model.{name} must be positive, got {getattr(self, name)}")
        if self.text_width % self.text_heads:
            raise ValueError(f"model.text_width = {self.text_width} does not divide into {self.text_heads} heads")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or (name == "image_std" and not min(values) > 0)):
                positive = "three positive numbers" if name == "image_std" else "three numbers"
                raise ValueError(f"model.{name} is {positive}, one a channel, got {values!r}")
            if values is not None:
                object.__setattr__(self, name, tuple(map(float, values)))
        if not timm.is_model(self.image_tower):
            near = nearest(self.image_tower, timm.list_models(), "; it has {}", count=3)
            raise ValueError(f"timm has no model {self.image_tower!r}{near}")
        for option, name in (("img_size", "image_size"), ("patch_size", "patch_size")):
            if option in self.image_options and option in _sizes_taken(self.image_tower):
                raise ValueError(f"model.image_options holds {option!r}: bind model.{name}, which it would contradict")
        if self.image_size % self.patch_size and "patch_size" in _sizes_taken(self.image_tower):
            self._refuse_patches()

    def _refuse_patches(self) -> None:
        """Refuse an image that is no whole number of patches wide: ``ValueError``, always."""
        if self.image_size < self.patch_size:
            raise ValueError(
                f"an image of {self.image_size} px is smaller than a patch of {self.patch_size} px: "
                "raise model.image_size or lower model.patch_size"
            )
        raise ValueError(
            f"model.image_size = {self.image_size} is no multiple of model.patch_size = {self.patch_size}; "
            f"the nearest is {max(1, round(self.image_size / self.patch_size)) * self.patch_size}"
        )

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of the channels: as bound, else those of the weights, else 0.5."""
        own: dict[str, Any] = {}
        if self.pretrained:
            config = timm.get_pretrained_cfg(self.image_tower)
            own = (config.to_dict() if config else {}) | self.image_options.get("pretrained_cfg_overlay", {})
        return self.image_mean or own.get("mean", HALF), self.image_std or own.get("std", HALF)

    def without_weights(self) -> Model:
        """The same towers from random weights, with the mean and standard deviation that they have now."""
        mean, std = self.normalisation
        return replace(self, pretrained=False, image_mean=mean, image_std=std)

    def build(self, tokenizer: Tokenizer, loss: LossName, seed: int) -> TwoTowers:
        """Build the model, initialised from ``seed`` alone.

        Raises:
            ValueError: timm cannot build the image tower, or it does not run on images of this size.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(seed, "init"))
            image = self._image_tower()
            words = self.text_vocab_size or tokenizer.vocab_size
            text = TextTower(self, words, tokenizer.length, tokenizer.pad_id, tokenizer.end_id)
            return TwoTowers(image, text, tokenizer, loss, self.freeze == "image")

    def _image_tower(self) -> ImageTower:
        """The image tower, from torch's random state; ``ValueError`` where it is not built, or cannot run."""
        sizes = {"img_size": self.image_size, "patch_size": self.patch_size}
        taken = _sizes_taken(self.image_tower)
        options = {name: value for name, value in sizes.items() if name in taken} | dict(self.image_options)
        try:
            backbone = timm.create_model(self.image_tower, pretrained=self.pretrained, num_classes=0, **options)
        except Exception as error:  # any error of timm's constructors is a fault of the options
            raise ValueError(
                f"timm cannot build model.image_tower = {self.image_tower!r}: {type(error).__name__}: {error}"
            ) from error
        mean, std = self.normalisation
        own_size = isinstance(backbone, TRANSFORMERS) and hasattr(backbone, "patch_embed")
        try:
            return ImageTower(
                backbone,
                self.embed_dim,
                None if own_size else self.image_size,
                mean=mean,
                std=std,
                project=self.image_projection,
            )
        except ValueError as error:
            raise ValueError(f"model.image_tower = {self.image_tower!r}: {error}") from error
