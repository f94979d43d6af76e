"""Views: how much of the two towers is run.

All of JEST's approximations (Evans et al. 2024, arXiv 2406.17711) are one idea, a view: a coarser patch
(FlexiViT, Beyer et al. 2023, arXiv 2212.08013), fewer pixels, a share of the patches, a share of the
layers, a shorter text, or several at once. The learner and the reference are each scored under a view;
training takes a mix of views (Flexi-JEST: half of the batch at the coarse patch).

A view is honest only where the model was trained under it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import PatchEmbed, resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

if TYPE_CHECKING:
    from jestbench.model.towers import TwoTowers

MIN_TEXT = 2
"""Tokens of the shortest text: one and the end token."""

# SplitMix64's constants (Steele, Lea & Flood 2014) as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


@dataclass(frozen=True)
class View:
    """How much of the two towers is run; every default means all of it.

    Attributes:
        patch_size: of the image tower, pixels; the patch embedding is resized by the pseudo-inverse,
            the position embeddings are interpolated. ``None`` is the tower's own.
        resolution: side of the square that images are resized to on the device, pixels. ``None`` is
            the tower's own.
        keep: share of an image's patches that are kept, ``round(keep·n)`` of n and at least one;
            the image's content key draws which. Class and register tokens are always kept.
        layers: share of the image tower's blocks, the first ``ceil(layers·depth)``.
        text_layers: share of the text tower's blocks, the first ``ceil(text_layers·depth)``.
        text_length: text tokens that are read, the end token included; a longer text is cut and keeps
            its end token. ``None`` is all.
    """

    patch_size: int | None = None
    resolution: int | None = None
    keep: float = 1.0
    layers: float = 1.0
    text_layers: float = 1.0
    text_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("keep", "layers", "text_layers"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"view.{name} is a share in (0, 1], got {getattr(self, name)}")
        for name, least in (("patch_size", 1), ("resolution", 1), ("text_length", MIN_TEXT)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(f"view.{name} is a whole number of at least {least}, got {value!r}")
        if self.patch_size is not None and self.resolution is not None:
            try:
                grid_of(self, (self.patch_size,) * 2, (self.resolution,) * 2)
            except ValueError as error:
                named = f"view.patch_size = {self.patch_size} with view.resolution = {self.resolution}"
                raise ValueError(f"{named}: {error}") from error

    @property
    def label(self) -> str:
        """For people: ``patch 16 px, 50 % of the patches``; ``full`` where all is run."""
        parts = [
            f"patch {self.patch_size} px" if self.patch_size is not None else "",
            f"image {self.resolution} px" if self.resolution is not None else "",
            f"{100 * self.keep:g} % of the patches" if self.keep < 1 else "",
            f"{100 * self.layers:g} % of the layers" if self.layers < 1 else "",
            f"{100 * self.text_layers:g} % of the text layers" if self.text_layers < 1 else "",
            f"{self.text_length} text tokens" if self.text_length is not None else "",
        ]
        return ", ".join(part for part in parts if part) or "full"

    @property
    def full_image(self) -> bool:
        """Whether the image tower is run whole."""
        return self.patch_size is None and self.resolution is None and self.keep == self.layers == 1

    @property
    def full_text(self) -> bool:
        """Whether the text tower is run whole."""
        return self.text_length is None and self.text_layers == 1


FULL = View()
Mix = tuple[tuple[float, View], ...]
"""Shares of a training batch and the views they are trained under; the shares sum to 1."""
FULL_MIX: Mix = ((1.0, FULL),)


def patches_kept(view: View, patches: int) -> int:
    """``round(keep·n)``, at least one."""
    return max(1, round(view.keep * patches))


def layers_run(share: float, depth: int) -> int:
    """``ceil(share·depth)``: at least one, as no share is zero (0.7 of 10 is 7, whatever floats say)."""
    return max(1, math.ceil(share * depth - 1e-9))


def grid_of(view: View, patch: tuple[int, int], image: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches under a view, for a tower with this own patch and image size (pixels).

    Raises:
        ValueError: the image does not divide into patches.
    """
    rows, columns = patch if view.patch_size is None else (view.patch_size, view.patch_size)
    height, width = image if view.resolution is None else (view.resolution, view.resolution)
    if rows > height or columns > width:
        raise ValueError(f"a patch of {rows}×{columns} px is larger than the image of {height}×{width} px")
    if height % rows or width % columns:
        raise ValueError(f"an image of {height}×{width} px does not divide into patches of {rows}×{columns} px")
    return height // rows, width // columns


def check(view: View, model: TwoTowers) -> View:
    """The view in the model's own terms: what is the model's own anyway is left out.

    So a view of patch 8 is the full view of a tower of patch 8, and is run, priced and compared as such.

    Raises:
        ValueError: a tower cannot run the view; the message says why.
    """
    backbone, text = model.image.backbone, model.text
    if not view.full_image:
        _check_backbone(view, backbone)
        patch, image = backbone.patch_embed.patch_size, model.image.resolution
        rows, columns = grid_of(view, patch, image)
        view = replace(
            view,
            patch_size=None if (view.patch_size,) * 2 == tuple(patch) else view.patch_size,
            resolution=None if (view.resolution,) * 2 == image else view.resolution,
            keep=1.0 if patches_kept(view, rows * columns) == rows * columns else view.keep,
            layers=1.0 if layers_run(view.layers, len(backbone.blocks)) == len(backbone.blocks) else view.layers,
        )
    length, depth = len(text.positions), len(text.blocks)
    if view.text_length is not None and view.text_length > length:
        raise ValueError(f"view.text_length = {view.text_length}, but the text tower reads {length} tokens")
    if view.text_length == length:
        view = replace(view, text_length=None)
    if layers_run(view.text_layers, depth) == depth:
        view = replace(view, text_layers=1.0)
    return view


def _check_backbone(view: View, backbone: VisionTransformer) -> None:
    """Refuse a tower whose steps are not those of a plain vision transformer.

    Raises:
        ValueError: with the reason.
    """
    reason, kind = "", type(backbone)
    embed: Any = getattr(backbone, "patch_embed", None)
    if any(
        getattr(kind, step, None) is not getattr(VisionTransformer, step)
        for step in ("forward_features", "_pos_embed", "forward_head", "pool")
    ):
        reason = f"{kind.__name__} is no plain vision transformer"
    elif getattr(backbone, "rope", None) is not None:
        reason = "its positions are rotary, not a table that can be interpolated"
    elif backbone.pos_embed is None:
        reason = "it has no absolute position embeddings to interpolate"
    elif type(embed) is not PatchEmbed:
        reason = f"its patches are embedded by {type(embed).__name__}, not by one convolution"
    elif embed.dynamic_img_pad:
        reason = "it pads images to whole patches (dynamic_img_pad)"
    if reason:
        raise ValueError(f"the image tower cannot be run under a view ({view.label}): {reason}")


def resize_matrix(old: tuple[int, int], new: int) -> Tensor:
    """FlexiViT's pseudo-inverse: ``kernel.flatten() @ matrix`` is the kernel for patches of ``new`` px.

    Timm resizes unit kernels, once; what it does to a kernel is linear in the kernel.

    Args:
        old: height and width of the tower's own patch, pixels.
        new: side of the view's patch, pixels.

    Returns:
        fp32 ``[old pixels, new pixels]`` on the CPU.
    """
    pixels = old[0] * old[1]
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        units = torch.eye(pixels, dtype=torch.float32).reshape(pixels, 1, *old)
        matrix: Tensor = resample_patch_embed(units, [new, new]).reshape(pixels, new * new)
    return matrix


def kept_patches(key_B: Tensor, patches: int, count: int) -> Tensor:
    """Which patches each image keeps: a function of its content key alone, uniform over patches.

    Each patch gets a 64-bit hash of key and position (SplitMix64's finaliser); the ``count`` largest
    stay, in order of position. A larger count keeps what a smaller one does.

    Args:
        key_B: int64 content keys of the images.
        patches: n, patches an image has.
        count: how many are kept.

    Returns:
        int64 positions ``[B, count]``, rising.
    """
    position_N = torch.arange(1, patches + 1, device=key_B.device)
    hash_BN = _mixed(key_B[:, None] + _mixed(position_N * _GOLDEN)[None, :])
    return hash_BN.topk(count, dim=1).indices.sort(dim=1).values


def _mixed(value: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap; shifts are made logical by a mask."""
    value = (value ^ ((value >> 30) & ((1 << 34) - 1))) * _MIX_1
    value = (value ^ ((value >> 27) & ((1 << 37) - 1))) * _MIX_2
    return value ^ ((value >> 31) & ((1 << 33) - 1))


def cut_text(token_BL: Tensor, length: int, pad_id: int) -> Tensor:
    """The first tokens of each text, its end token kept: what a tokenizer of that length would have given."""
    end_B1 = (token_BL != pad_id).sum(1, keepdim=True) - 1
    last_B1 = token_BL.gather(1, end_B1.clamp(min=0))
    last_B1 = torch.where(end_B1 >= length, last_B1, token_BL[:, length - 1 : length])
    return torch.cat([token_BL[:, : length - 1], last_B1], dim=1)


def mix_of(views: Sequence[Any] | None) -> Mix:
    """A mix from ``[(share, view), …]``; nothing is the full view alone.

    Raises:
        ValueError: it is no such list, a share is not positive, or the shares do not sum to 1.
    """
    if not views:
        return FULL_MIX
    mix: list[tuple[float, View]] = []
    for item in views:
        if not isinstance(item, list | tuple) or len(item) != 2 or not isinstance(item[1], View):
            raise ValueError(
                "run.train_views is a list of (share, view), such as [(0.5, @view()), (0.5, @cheap/view())]; "
                f"got {item!r}"
            )
        share = item[0]
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"a share in run.train_views lies in (0, 1], got {share!r}")
        mix.append((float(share), item[1]))
    total = math.fsum(share for share, _ in mix)
    if abs(total - 1) > 1e-6:
        raise ValueError(f"the shares in run.train_views must sum to 1, got {total:g}")
    return tuple(mix)


def split_counts(count: int, shares: Sequence[float]) -> tuple[int, ...]:
    """``count`` pairs split in proportion to the shares, by largest remainder (the first wins a tie).

    In fractions: the parts sum to ``count``, and each is its quota rounded up or down.
    """
    exact = [Fraction(share).limit_denominator(10**6) for share in shares]
    quotas = [count * share / sum(exact) for share in exact]
    parts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(parts)), key=lambda part: parts[part] - quotas[part])
    for part in by_remainder[: count - sum(parts)]:
        parts[part] += 1
    return tuple(parts)
