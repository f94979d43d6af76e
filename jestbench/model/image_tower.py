"""An image tower: a timm model and a projection, run in full or, where it is a vision transformer, under a view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import checkpoint_seq
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jestbench.batch import FULL, View, grid_of
from jestbench.cost.tracing import without_values
from jestbench.model.encoders import at_least_fp32
from jestbench.model.views import kept_patches, layers_run, patches_kept, resize_matrix

TRANSFORMERS = (VisionTransformer, Eva, Beit, NaFlexVit)
"""Backbones of blocks over patches; views need the plain one among them (``views.check``)."""
HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation by which pixels come to lie in [−1, 1]."""


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


def _resized_positions(pos_1NW: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
    """Position embeddings of another grid, by antialiased bicubic interpolation; those of ``prefix`` tokens stay.

    timm's ``resample_abs_pos_embed`` does the same in fp32 alone.
    """
    if tuple(old) == tuple(new):
        return pos_1NW
    grid_1WHW = at_least_fp32(pos_1NW[:, prefix:]).reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid_1WHW = F.interpolate(grid_1WHW, new, mode="bicubic", antialias=True)
    patches_1NW = grid_1WHW.flatten(2).transpose(1, 2).to(pos_1NW.dtype)
    return torch.cat([pos_1NW[:, :prefix], patches_1NW], dim=1) if prefix else patches_1NW


def _pooled_width(backbone: nn.Module, size: tuple[int, int]) -> int:
    """Width of a backbone's vector of one image, run without values; ``ValueError`` where it has none."""
    name = type(backbone).__name__
    try:
        with torch.no_grad():
            out = without_values(backbone).eval()(torch.empty(1, 3, *size, device="meta"))
    except Exception as error:  # timm's models assert and raise of all kinds
        raise ValueError(f"{name} does not run on images of {size[0]} × {size[1]} px: {error}") from error
    if not isinstance(out, Tensor) or out.ndim != 2:
        raise ValueError(f"{name} does not return one vector an image")
    return out.shape[1]


class ImageTower(nn.Module):
    """A timm model and a projection: uint8 ``[B, 3, H, W]`` → ``[B, D]``, not normalised.

    Attributes:
        transformer: whether the backbone consists of blocks over patches, so that a view may run a part of it.
        width: D.
    """

    divisor: Tensor | float
    offset: Tensor | float

    def __init__(
        self,
        backbone: Any,  # timm's classes share no interface
        output: int,
        image_size: int | None = None,
        *,
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        project: bool = True,
    ) -> None:
        """Put a projection behind a backbone.

        Args:
            backbone: a timm model without classifier.
            output: D.
            image_size: side of an image, pixels; ``None`` is that of the backbone's patch embedding.
            mean: of each channel, of pixels in [0, 1].
            std: likewise.
            project: whether there is a projection; without one the backbone must return D values.

        Raises:
            ValueError: the backbone does not run on images of this size, or is not D wide and nothing projects it.
        """
        super().__init__()
        self.backbone = backbone
        self.transformer = isinstance(backbone, TRANSFORMERS)
        # A NaFlexViT takes images of any size and has no ``img_size``.
        own = self.backbone.patch_embed.img_size if image_size is None else (image_size, image_size)
        self.resolution: tuple[int, int] = (int(own[0]), int(own[1]))
        pooled = _pooled_width(backbone, self.resolution) if not self.transformer else int(self.backbone.num_features)
        self.width = output
        if project:
            self.projection: nn.Module = nn.Linear(pooled, output, bias=False)
            nn.init.normal_(self.projection.weight, std=pooled**-0.5)
        elif pooled == output:
            self.projection = nn.Identity()
        else:
            raise ValueError(
                f"model.image_projection = False: the image tower returns {pooled} values, "
                f"and model.embed_dim is {output}"
            )
        divisor, offset = [255 * each for each in std], [m / s for m, s in zip(mean, std, strict=True)]
        for name, values in (("divisor", divisor), ("offset", offset)):
            if len({*divisor}) == len({*offset}) == 1:
                setattr(self, name, values[0])
            else:
                self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self._resize: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    @property
    def averages(self) -> bool:
        """Whether batch normalisation averages over the images of a pass."""
        return any(isinstance(part, _BatchNorm) for part in self.backbone.modules())

    @property
    def blocks(self) -> nn.ModuleList | list[nn.Module]:
        """Blocks of a transformer; of another backbone the whole of it."""
        return list(self.backbone.blocks) if self.transformer else [self.backbone]

    def forward(self, images_BCHW: Tensor, view: View = FULL, key_B: Tensor | None = None) -> Tensor:
        """Resize to the view's resolution on the device, subtract the mean, divide by the deviation, run, project.

        Args:
            images_BCHW: uint8 images.
            view: how much of the tower is run; it must pass ``views.check``.
            key_B: int64 content keys of the images, for a view that keeps a share of the patches.
        """
        resolution = self.resolution if view.resolution is None else (view.resolution, view.resolution)
        parameter = next(self.backbone.parameters())
        pixels = resized(images_BCHW, resolution).to(parameter.dtype) / self.divisor - self.offset
        if self.transformer:
            full = view.full_image
            features = self.backbone.forward_features(pixels) if full else self._features(pixels, view, key_B)
            features = self.backbone.forward_head(features, pre_logits=True)
        else:
            features = self.backbone(pixels)
        pooled: Tensor = self.projection(features)
        return pooled

    def check_resolution(self, resolution: int) -> None:
        """Refuse a resolution that a backbone without blocks over patches does not run at.

        Raises:
            ValueError: naming the reason.
        """
        if _pooled_width(self.backbone, (resolution, resolution)) != _pooled_width(self.backbone, self.resolution):
            raise ValueError(f"{type(self.backbone).__name__} returns another width at {resolution} px")

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
            flat = at_least_fp32(weight).flatten(2) @ matrix
        return flat.reshape(*weight.shape[:2], patch_size, patch_size).to(weight.dtype)

    def _resize_matrix(self, patch_size: int) -> Tensor:
        """The pseudo-inverse for a patch size, computed once per device and type."""
        embed = self.backbone.patch_embed
        weight: Tensor = embed.proj.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        place = (patch_size, weight.device, dtype)
        if place not in self._resize:
            with torch.inference_mode(False):
                self._resize[place] = resize_matrix(tuple(embed.patch_size), patch_size, dtype).to(weight.device)
        return self._resize[place]

    def prepare(self, view: View) -> None:
        """Compute and cache the resize matrix of a view, outside of any trace."""
        if view.patch_size is not None:
            self._resize_matrix(view.patch_size)

    def _with_positions(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Timm's ``_pos_embed``, with the positions interpolated to the grid."""
        backbone = self.backbone
        positions = _resized_positions(
            backbone.pos_embed,
            backbone.patch_embed.grid_size,
            grid,
            0 if backbone.no_embed_class else backbone.num_prefix_tokens,
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
