"""Views: how much of the two towers is run.

A view stands for each of JEST's approximations (Evans et al. 2024, arXiv 2406.17711): a coarser patch
(FlexiViT, Beyer et al. 2023, arXiv 2212.08013), fewer pixels, a share of the patches, a share of the
layers, a shorter text, or several at once. The learner and the reference are each scored under a view;
training takes a mix of views (Flexi-JEST: half of the batch at the coarse patch).

Scores under a view mean something only for a model that was trained under this view.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from jestbench import seeds
from jestbench.batch import FULL, View, grid_of

if TYPE_CHECKING:
    from jestbench.model.encoders import Encoders
    from jestbench.model.image_tower import ImageTower
    from jestbench.model.towers import TwoTowers


def patches_kept(view: View, patches: int) -> int:
    """Number of patches kept of ``patches``: ``round(keep·n)``, at least one."""
    return max(1, round(view.keep * patches))


def layers_run(share: float, depth: int) -> int:
    """Number of blocks run: ``ceil(share·depth)``, at least one; 0.7 of 10 is 7 in spite of float rounding."""
    return max(1, math.ceil(share * depth - 1e-9))


def check(view: View, model: TwoTowers) -> View:
    """Check a view, and reset every field that equals the model's own value to the default.

    So a view of patch 8 becomes the full view of a tower of patch 8, and is run, priced and compared as such.

    Raises:
        ValueError: a tower cannot run the view; the message gives the reason.
    """
    backbone, text = model.image.backbone, model.text
    if not view.full_image and not model.image.transformer:
        view = _of_any_backbone(view, model.image)
    elif not view.full_image:
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


def own_terms(view: View, model: Encoders) -> View:
    """As the model's own ``checked``; a view that it cannot run is returned unchanged (it equals no view that runs)."""
    try:
        return model.checked(view)
    except ValueError:
        return view


def _of_any_backbone(view: View, tower: ImageTower) -> View:
    """A view of an image tower without blocks over patches: a resolution alone, else ``ValueError``."""
    name = type(tower.backbone).__name__
    for field in ("patch_size", "keep", "layers"):
        if getattr(view, field) != getattr(FULL, field):
            raise ValueError(
                f"the image tower cannot be run under a view ({view.label}): view.{field} needs one, and a {name} "
                "is no plain vision transformer (view.resolution alone can be tried)"
            )
    if view.resolution is None or (view.resolution,) * 2 == tower.resolution:
        return replace(view, resolution=None)
    try:
        tower.check_resolution(view.resolution)
    except ValueError as error:
        raise ValueError(f"the image tower cannot be run under a view ({view.label}): {error}") from error
    return view


def _check_backbone(view: View, backbone: VisionTransformer) -> None:
    """Refuse a tower whose steps differ from a plain vision transformer's; the ``ValueError`` gives the reason."""
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


@lru_cache(maxsize=32)
def resize_matrix(old: tuple[int, int], new: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """FlexiViT's pseudo-inverse: ``kernel.flatten() @ matrix`` is the kernel for patches of ``new`` px.

    Resizing is linear in the patch: the unit patches, resized, are the matrix whose pseudo-inverse it is. timm's own
    ``resample_patch_embed`` computes it in fp32 alone.

    Args:
        old: height and width of the tower's own patch, pixels.
        new: side of the view's patch, pixels.
        dtype: of the matrix, and of its computation.

    Returns:
        ``[old pixels, new pixels]`` on the CPU.
    """
    pixels = old[0] * old[1]
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        units = torch.eye(pixels, dtype=dtype).reshape(pixels, 1, *old)
        resized = F.interpolate(units, (new, new), mode="bicubic", antialias=True).reshape(pixels, new * new)
        matrix: Tensor = torch.linalg.pinv(resized.T.contiguous()).contiguous()
    return matrix


def kept_patches(key_B: Tensor, patches: int, count: int) -> Tensor:
    """Positions of the patches that each image keeps: a function of its content key alone, uniform over patches.

    Each patch gets a 64-bit hash of key and position (SplitMix64's finaliser); the patches with the ``count``
    largest hashes are kept, in order of position. A larger count keeps all patches of a smaller one, and more.

    Args:
        key_B: int64 content keys of the images.
        patches: n, patches an image has.
        count: number of patches kept.

    Returns:
        int64 positions ``[B, count]``, ascending.
    """
    position_N = torch.arange(1, patches + 1, device=key_B.device)
    hash_BN = seeds.mixed(key_B[:, None] + seeds.mixed(position_N * seeds.GOLDEN)[None, :])
    return hash_BN.topk(count, dim=1).indices.sort(dim=1).values


def cut_text(token_BL: Tensor, length: int, end_B: Tensor) -> Tensor:
    """Cut each text to ``length`` tokens, its end token (at ``end_B``) kept, as a tokenizer of this length would."""
    end_B1 = end_B[:, None]
    last_B1 = token_BL.gather(1, end_B1.clamp(min=0))
    last_B1 = torch.where(end_B1 >= length, last_B1, token_BL[:, length - 1 : length])
    return torch.cat([token_BL[:, : length - 1], last_B1], dim=1)
