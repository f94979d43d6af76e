"""Two towers, a timm image tower and a text transformer, that embed into the same D dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import checkpoint_seq
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jestbench import seeds
from jestbench.batch import FULL, View, grid_of
from jestbench.disk import nearest
from jestbench.model.encoders import Encoders, at_least_fp32
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.views import check, cut_text, kept_patches, layers_run, patches_kept, resize_matrix
from jestbench.select.losses import LossName

TextPool = Literal["mean", "end"]
Backbone: TypeAlias = VisionTransformer | Eva | Beit | NaFlexVit
"""Backbones that an image tower accepts; views need a plain vision transformer (``views.check``)."""

# SigLIP starts at t = 10, b₀ = −10; CLIP at t = 1/0.07, and keeps t ≤ 100.
INITIAL: Mapping[LossName, tuple[float, float]] = {"sigmoid": (10.0, -10.0), "softmax": (1 / 0.07, 0.0)}
MAX_SCALE = 100.0


def resized(images_BCHW: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Images ``[B, C, *resolution]``, uint8 and channels last, by antialiased bilinear interpolation.

    First along the rows and then along the columns, each time rounded to uint8, as PIL does. On a CPU this is one
    kernel for bytes, which takes an eighth of the time of that for floats.
    """
    # The rounding of a convolution depends on the memory layout: fix it, whatever the batch came in.
    images = images_BCHW.contiguous(memory_format=torch.channels_last)
    if images.shape[-2:] == resolution:
        return images
    if images.device.type != "cuda":
        return F.interpolate(images, resolution, mode="bilinear", antialias=True)
    pixels = images.float()
    for size in ((images.shape[-2], resolution[1]), resolution):
        # A half is rounded up, and what floats make a little less than a half is one.
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True).add_(0.501).floor_()
    return pixels.to(torch.uint8)


class ImageTower(nn.Module):
    """A timm vision transformer and a projection: uint8 ``[B, 3, H, W]`` → ``[B, D]``, not normalised."""

    def __init__(self, backbone: Backbone, output: int, image_size: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Linear(backbone.num_features, output, bias=False)
        nn.init.normal_(self.projection.weight, std=backbone.num_features**-0.5)
        # A NaFlexViT takes images of any size and has no ``img_size``.
        height, width = backbone.patch_embed.img_size if image_size is None else (image_size, image_size)
        self.resolution: tuple[int, int] = (int(height), int(width))
        self._resize: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, images_BCHW: Tensor, view: View = FULL, key_B: Tensor | None = None) -> Tensor:
        """Resize to the view's resolution on the device, scale to [−1, 1], run, project.

        Args:
            images_BCHW: uint8 images.
            view: how much of the tower is run; it must pass ``views.check``.
            key_B: int64 content keys of the images, for a view that keeps a share of the patches.
        """
        resolution = self.resolution if view.resolution is None else (view.resolution, view.resolution)
        pixels = resized(images_BCHW, resolution).to(self.projection.weight.dtype) / 127.5 - 1
        features = self.backbone.forward_features(pixels) if view.full_image else self._features(pixels, view, key_B)
        pooled: Tensor = self.projection(self.backbone.forward_head(features, pre_logits=True))
        return pooled

    def _features(self, pixels: Tensor, view: View, key_B: Tensor | None) -> Tensor:
        """Timm's ``forward_features``, step by step, under a view."""
        backbone = self.backbone
        grid = grid_of(view, backbone.patch_embed.patch_size, self.resolution)
        x = self._with_positions(self.embed_patches(pixels, view), grid)
        patches, prefix = math.prod(grid), backbone.num_prefix_tokens
        kept = patches_kept(view, patches)
        if kept < patches:
            if key_B is None:
                raise ValueError("a view that keeps a share of the patches needs the images' content keys")
            index_BP = kept_patches(key_B, patches, kept)
            rest = x[:, prefix:].gather(1, index_BP.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
            x = torch.cat([x[:, :prefix], rest], dim=1)
        x = backbone.norm_pre(backbone.patch_drop(x))
        blocks = backbone.blocks[: layers_run(view.layers, len(backbone.blocks))]
        x = checkpoint_seq(blocks, x) if backbone.grad_checkpointing else blocks(x)
        normed: Tensor = backbone.norm(x)
        return normed

    def embed_patches(self, pixels: Tensor, view: View) -> Tensor:
        """Patch embeddings ``[B, patches, width]`` before positions, under the view's patch size."""
        embed = self.backbone.patch_embed
        kernel, stride = self._kernel(view.patch_size), view.patch_size or embed.patch_size
        x = F.conv2d(pixels, kernel, embed.proj.bias, stride=stride).flatten(2).transpose(1, 2)
        normed: Tensor = embed.norm(x)
        return normed

    def _kernel(self, patch_size: int | None) -> Tensor:
        """The patch embedding's weight ``[width, 3, p, p]``, resized; gradients reach the original."""
        embed = self.backbone.patch_embed
        weight: Tensor = embed.proj.weight
        if patch_size is None or (patch_size, patch_size) == tuple(embed.patch_size):
            return weight
        matrix = self._resize_matrix(patch_size)
        place = weight.device.type
        with torch.autocast(place if torch.amp.is_autocast_available(place) else "cpu", enabled=False):
            exact = at_least_fp32(weight)
            flat = exact.flatten(2) @ matrix.to(exact.dtype)
        return flat.reshape(*weight.shape[:2], patch_size, patch_size).to(weight.dtype)

    def _resize_matrix(self, patch_size: int) -> Tensor:
        """The pseudo-inverse for a patch size, computed once per device."""
        embed = self.backbone.patch_embed
        place = (patch_size, embed.proj.weight.device)
        if place not in self._resize:
            with torch.inference_mode(False):
                self._resize[place] = resize_matrix(tuple(embed.patch_size), patch_size).to(place[1])
        return self._resize[place]

    def prepare(self, view: View) -> None:
        """Compute and cache the resize matrix of a view, outside of any trace."""
        if view.patch_size is not None:
            self._resize_matrix(view.patch_size)

    def _with_positions(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Timm's ``_pos_embed``, with the positions interpolated to the grid."""
        backbone = self.backbone
        positions = resample_abs_pos_embed(
            backbone.pos_embed,
            new_size=list(grid),
            old_size=list(backbone.patch_embed.grid_size),
            num_prefix_tokens=0 if backbone.no_embed_class else backbone.num_prefix_tokens,
        )
        if backbone.no_embed_class:
            x = x + positions
        prefix = [part for part in (backbone.cls_token, backbone.reg_token) if part is not None]
        if prefix:
            x = torch.cat([*(part.expand(x.shape[0], -1, -1) for part in prefix), x], dim=1)
        if not backbone.no_embed_class:
            x = x + positions
        placed: Tensor = backbone.pos_drop(x)
        return placed


class TextBlock(nn.Module):
    """A pre-norm transformer block over ``[B, L, width]``."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def initialise(self, width: int, layers: int) -> None:
        """As CLIP: residual branches shrink with depth."""
        residual = (2 * layers) ** -0.5
        for linear, std in (
            (self.qkv, width**-0.5),
            (self.out, width**-0.5 * residual),
            (self.fc1, (2 * width) ** -0.5),
            (self.fc2, width**-0.5 * residual),
        ):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BLW: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Attention and MLP, each with its residual."""
        batch, length, width = x_BLW.shape
        qkv = self.qkv(self.norm_attention(x_BLW)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        x_BLW = x_BLW + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        out: Tensor = x_BLW + self.fc2(F.gelu(self.fc1(self.norm_mlp(x_BLW))))
        return out


class TextTower(nn.Module):
    """A text transformer: int64 ids ``[B, L]`` → ``[B, D]``, not normalised.

    Without ``causal``, padding is masked out of attention; with ``causal``, no text token attends to the padding after
    the end token. The tower always runs, and is priced, at the full length L, or at the view's text length.
    """

    def __init__(
        self,
        vocab_size: int,
        length: int,
        pad_id: int,
        output: int,
        *,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float,
        causal: bool,
        pool: TextPool,
    ) -> None:
        super().__init__()
        self.pad_id, self.causal, self.pool = pad_id, causal, pool
        self.grad_checkpointing = False
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(TextBlock(width, heads, mlp_ratio) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, output, bias=False)
        self._initialise(width, layers)

    def _initialise(self, width: int, layers: int) -> None:
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        for block in self.blocks:
            assert isinstance(block, TextBlock)
            block.initialise(width, layers)

    def forward(self, token_BL: Tensor, view: View = FULL) -> Tensor:
        """Run the blocks (only the first ones under a view), pool over the text, project."""
        positions: Tensor = self.positions
        if view.text_length is not None and view.text_length < len(positions):
            token_BL, positions = cut_text(token_BL, view.text_length, self.pad_id), positions[: view.text_length]
        real_BL = token_BL != self.pad_id
        x_BLW = self.tokens(token_BL) + positions
        mask = None if self.causal else real_BL[:, None, None, :]
        for block in self.blocks[: layers_run(view.text_layers, len(self.blocks))]:
            if self.grad_checkpointing:
                x_BLW = checkpoint(block, x_BLW, mask, self.causal, use_reentrant=False)
            else:
                x_BLW = block(x_BLW, mask, self.causal)
        if self.pool == "mean":
            share_BL1 = real_BL.unsqueeze(-1).to(x_BLW.dtype)
            pooled = (self.norm(x_BLW) * share_BL1).sum(1) / share_BL1.sum(1)
        else:
            end_B = real_BL.sum(1) - 1
            pooled = self.norm(x_BLW[torch.arange(len(x_BLW), device=x_BLW.device), end_B])
        out: Tensor = self.projection(pooled)
        return out


class TwoTowers(Encoders):
    """Image and text tower with a learned multiplier t (as its logarithm) and offset b₀."""

    image: ImageTower
    text: TextTower

    def __init__(self, image: ImageTower, text: TextTower, tokenizer: str, loss: LossName) -> None:
        super().__init__()
        scale, bias = INITIAL[loss]
        self.image, self.text, self.tokenizer = image, text, tokenizer
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        # The softmax loss does not use the offset, and DDP fails on a trainable parameter without gradient.
        self.bias = nn.Parameter(torch.tensor(bias), requires_grad=loss == "sigmoid")
        self.width = image.projection.out_features

    @property
    def text_length(self) -> int:
        """L, tokens of a text."""
        return len(self.text.positions)

    def checked(self, view: View) -> View:
        """As ``views.check``."""
        return check(view, self)

    def prepare(self, view: View) -> None:
        """Compute and cache the resize matrix of a view, outside of any trace."""
        self.image.prepare(view)

    def clamp_scale(self) -> None:
        """Keep t ≤ 100 (CLIP, section 2.5)."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_SCALE))

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks of both towers by ``torch.compile``, each kind of block once for all of its kind.

        Blocks do nearly all the work, run under every view, and take a fraction of the time that whole towers take to
        compile. Weights, their names and the traced price stay as they are.
        """
        for block in (*self.image.backbone.blocks, *self.text.blocks):
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


@dataclass(frozen=True)
class Model:
    """Shape of the two towers.

    Attributes:
        image_tower: any timm vision transformer by name: ViT, SigLIP, FlexiViT, NaFlexViT, EVA-02, DINOv3, BEiT.
        image_size: side of an image, pixels; images of another size are resized on the device.
        patch_size: side of a patch, pixels.
        image_options: further keyword arguments of the timm model (``embed_dim``, ``depth`` …).
        pretrained: load timm's weights for the image tower (needs the network or timm's cache).
        embed_dim: D, width of the image and text embeddings.
        text_width: width of the text transformer.
        text_layers: blocks of the text transformer.
        text_heads: attention heads of a text block.
        text_mlp_ratio: width of a text block's MLP over ``text_width``.
        text_causal: causal attention as in CLIP's text tower; otherwise every token attends to every token.
        text_pool: ``mean`` over the real tokens, or the output at the ``end`` token.
    """

    image_tower: str = "vit_tiny_patch16_224"
    image_size: int = 32
    patch_size: int = 8
    image_options: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    embed_dim: int = 128
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    text_mlp_ratio: float = 4.0
    text_causal: bool = False
    text_pool: TextPool = "mean"

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "embed_dim", "text_width", "text_layers", "text_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if not self.text_mlp_ratio > 0:
            raise ValueError(f"model.text_mlp_ratio must be positive, got {self.text_mlp_ratio}")
        if self.image_size < self.patch_size:
            raise ValueError(
                f"an image of {self.image_size} px is smaller than a patch of {self.patch_size} px: "
                "raise model.image_size or lower model.patch_size"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"model.image_size = {self.image_size} is no multiple of model.patch_size = {self.patch_size}; "
                f"the nearest is {max(1, round(self.image_size / self.patch_size)) * self.patch_size}"
            )
        if self.text_width % self.text_heads:
            raise ValueError(f"model.text_width = {self.text_width} does not divide into {self.text_heads} heads")
        if not timm.is_model(self.image_tower):
            near = nearest(self.image_tower, timm.list_models(), "; it has {}", count=3)
            raise ValueError(f"timm has no model {self.image_tower!r}{near}")

    def build(self, tokenizer: Tokenizer, loss: LossName, seed: int) -> TwoTowers:
        """Build the model, initialised from ``seed`` alone.

        Raises:
            ValueError: timm cannot build the image tower, or its type is not a ``Backbone``.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(seed, "init"))
            try:
                backbone = timm.create_model(
                    self.image_tower,
                    pretrained=self.pretrained,
                    num_classes=0,
                    **{"img_size": self.image_size, "patch_size": self.patch_size, **self.image_options},
                )
            except Exception as error:  # any error of timm's constructors is a fault of the options
                raise ValueError(
                    f"timm cannot build model.image_tower = {self.image_tower!r}: {type(error).__name__}: {error}"
                ) from error
            if not isinstance(backbone, Backbone):
                raise ValueError(
                    f"model.image_tower = {self.image_tower!r} is a {type(backbone).__name__}; "
                    "a vision transformer is needed (timm.list_models('vit*'), or flexivit, naflexvit, eva, beit)"
                )
            image = ImageTower(backbone, self.embed_dim, self.image_size if isinstance(backbone, NaFlexVit) else None)
            text = TextTower(
                tokenizer.vocab_size,
                tokenizer.length,
                tokenizer.pad_id,
                self.embed_dim,
                width=self.text_width,
                layers=self.text_layers,
                heads=self.text_heads,
                mlp_ratio=self.text_mlp_ratio,
                causal=self.text_causal,
                pool=self.text_pool,
            )
            return TwoTowers(image, text, tokenizer.identity, loss)
