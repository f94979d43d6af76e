"""Weights of another library's towers carried into ours, where ours compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from jestbench.model.encoders import Encoders, at_least_fp32
from jestbench.model.foreign_towers import ForeignError, ForeignTowers
from jestbench.model.library_names import (
    OPEN_CLIP_BLOCK,
    OPEN_CLIP_TEXT,
    TRANSFORMERS_BLOCK,
    TRANSFORMERS_TEXT,
    to_ours,
)
from jestbench.model.text_tower import activation_named
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import Model, TwoTowers
from jestbench.select.losses import LossName

TOLERANCE = 1e-5
"""Largest difference of a normalised embedding between a library's towers and ours."""
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Carried:
    """A trained model in our terms.

    Attributes:
        shape: of the two towers.
        weights: of ``TwoTowers``, by name.
        tokenizer: whose ids the text tower takes.
        loss: that the model was trained on.
    """

    shape: Model
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer
    loss: LossName

    def build(self) -> TwoTowers:
        """The two towers with their weights."""
        model = self.shape.build(self.tokenizer, self.loss, seed=0)
        model.load_state_dict(self.weights)
        model.brings_tokenizer = True
        return model


@dataclass(frozen=True)
class Tower:
    """One tower in our terms.

    Attributes:
        shape: parameters of ``Model`` that it sets.
        weights: by our names within the tower.
        end_id: of a text tower, the id that it takes for the end of a text, where that depends on it.
    """

    shape: Mapping[str, Any]
    weights: Weights
    end_id: int | None = None


class NotCarried(ForeignError):
    """Our towers do not compute what a library's towers compute; the message gives the reason."""


def carried(foreign: ForeignTowers, towers: tuple[Tower, Tower], tokenizer: Tokenizer) -> Carried:
    """A library's model in our terms, compared with the library's own on random pixels and ids.

    On ``meta`` it has no values to compare: names and shapes of the weights alone are.

    Args:
        foreign: the model as its library runs it.
        towers: its image and its text tower.
        tokenizer: its own in our terms, or one that stands in for it.

    Raises:
        NotCarried: a weight has no place in our towers, or the embeddings differ by more than ``TOLERANCE``.
    """
    image, text = towers
    if foreign.tokens.carried is not None and text.end_id not in (None, tokenizer.end_id):
        raise NotCarried(f"it takes id {text.end_id} for the end of a text, and its tokenizer {tokenizer.end_id}")
    prepared = foreign.image.preprocessing
    own: dict[str, Any] = {"image_mean": prepared.mean, "image_std": prepared.std, "image_size": prepared.crop}
    rows = len(text.weights["tokens.weight"])
    own["text_vocab_size"] = None if rows == tokenizer.vocab_size else rows
    shape = Model(**{**image.shape, **text.shape, **own, "embed_dim": foreign.width})
    weights = {f"image.{name}": value for name, value in image.weights.items()}
    weights |= {f"text.{name}": value for name, value in text.weights.items()}
    weights |= {"log_scale": foreign.log_scale, "bias": foreign.bias}
    found = Carried(shape, {k: v.detach().float().clone() for k, v in weights.items()}, tokenizer, foreign.loss)
    try:
        model = found.build()
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise NotCarried(f"our towers have no place for its weights: {said[:300]}") from error
    compared = {} if model.log_scale.is_meta else _differences(foreign, model.eval(), prepared.crop)
    for what, difference in compared.items():
        if not difference <= TOLERANCE:
            raise NotCarried(
                f"our {what} tower embeds otherwise than its own ({difference:.1g} apart, {TOLERANCE:.0g} allowed)"
            )
    return found


@torch.no_grad()
def _differences(foreign: ForeignTowers, model: TwoTowers, side: int) -> dict[str, float]:
    """The largest difference of an embedding of random images and texts, by tower."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=random)
    prepared = foreign.image.preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (prepared.mean, prepared.std))
    theirs = foreign.image.encode(foreign.image.net, (images.float() / 255 - mean) / std)
    ids_BL = model.tokens.encode(["a photo of a cat", "Two dogs, 3 birds!", ""])
    both = {
        "image": (F.normalize(at_least_fp32(theirs), dim=-1), model.encode_image(images)),
        "text": (Encoders.encode_text(foreign, ids_BL), model.encode_text(ids_BL)),
    }
    return {name: float((one - other).abs().max()) for name, (one, other) in both.items()}


def _refuse(*reasons: tuple[bool, str]) -> None:
    for there, reason in reasons:
        if there:
            raise NotCarried(reason)


def _activation(act: Any) -> str:
    """The name of an activation; ``NotCarried`` where our towers have none like it."""
    name = activation_named(act)
    _refuse((name is None, f"our towers have no activation {type(act).__name__}"))
    assert name is not None
    return name


def open_clip_towers(net: Any, config: Mapping[str, Any]) -> tuple[Tower, Tower]:
    """Both towers of a model of open_clip.

    Args:
        net: the library's model.
        config: its ``model_cfg``.

    Raises:
        NotCarried: a tower is of another kind than ours.
    """
    image = _timm_image if hasattr(net.visual, "trunk") else _open_clip_image
    return image(net.visual, config["vision_cfg"]), _open_clip_text(getattr(net, "text", net))


def _clip_shape(patch: int, **options: Any) -> dict[str, Any]:
    """Parameters of CLIP's image tower, of any size; its weights decide about the rest."""
    return {
        "image_tower": "vit_base_patch32_clip_224",
        "patch_size": patch,
        "image_projection": True,
        "image_options": options,
    }


def _open_clip_image(visual: Any, config: Mapping[str, Any]) -> Tower:
    """An image tower of open_clip's own; ``NotCarried`` where it is no vision transformer like CLIP's."""
    _refuse((not hasattr(visual, "conv1"), f"our image towers do not include open_clip's {type(visual).__name__}"))
    _refuse((not hasattr(visual, "transformer"), "our image towers do not include CLIP's ResNet"))
    state, (width, _, patch, _) = dict(visual.state_dict()), visual.conv1.weight.shape
    block = visual.transformer.resblocks[0]
    _refuse(
        (not hasattr(block, "mlp") or not hasattr(block.mlp, "gelu"), "its blocks are not those of CLIP"),
        (not isinstance(state.get("proj"), Tensor), "its image tower has no projection"),
    )
    weights = {
        "backbone.cls_token": state.pop("class_embedding")[None, None],
        "backbone.pos_embed": state.pop("positional_embedding")[None],
        "backbone.patch_embed.proj.weight": state.pop("conv1.weight"),
        "projection.weight": state.pop("proj").T,
    }
    before = "ln_pre.weight" in state
    if not before:  # there timm's patch embedding has a bias
        weights["backbone.patch_embed.proj.bias"] = torch.zeros(width)
    names = {"norm_pre.": "ln_pre.", "norm.": "ln_post.", "blocks.": "transformer.resblocks.", **OPEN_CLIP_BLOCK}
    shape = _clip_shape(
        patch,
        embed_dim=width,
        depth=len(visual.transformer.resblocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.c_fc.out_features / width,
        act_layer=_activation(block.mlp.gelu),
        pre_norm=before,
    )
    return Tower(shape, weights | {f"backbone.{to_ours(name, names)}": value for name, value in state.items()})


def _timm_image(visual: Any, config: Mapping[str, Any]) -> Tower:
    """An image tower that open_clip takes from timm; ``NotCarried`` where more than a plain projection follows it."""
    head, pool = dict(visual.head.state_dict()), config.get("timm_pool")
    odd = sorted(head.keys() - {"proj.weight"})
    _refuse((bool(odd), f"our towers have nothing like head.{''.join(odd[:1])} behind the image tower"))
    shape: dict[str, Any] = {
        "image_tower": config["timm_model_name"],
        "image_projection": bool(head),
        "image_options": {"global_pool": pool} if pool else {},
    }
    if isinstance(visual.trunk, VisionTransformer):
        shape["patch_size"] = int(visual.trunk.patch_embed.patch_size[0])
    weights = {f"backbone.{name}": value for name, value in visual.trunk.state_dict().items()}
    return Tower(shape, weights | {f"projection.{name.removeprefix('proj.')}": value for name, value in head.items()})


def _open_clip_text(text: Any) -> Tower:
    """A text tower of open_clip's own, or the model that holds its parts; ``NotCarried`` for another kind."""
    _refuse(
        (not hasattr(text, "token_embedding"), f"our text towers do not include open_clip's {type(text).__name__}"),
        (getattr(text, "cls_emb", None) is not None, "our text towers have no class token (CoCa)"),
        (text.text_projection is None, "its text tower has no projection"),
    )
    of_text = not hasattr(text, "visual")
    pool = text.pool_type if of_text else text.text_pool_type
    pools = {"argmax": "end", "eos": "end", "last": "last"}
    last = text.token_embedding.num_embeddings - 1 if pool == "argmax" else text.eos_id if of_text else text.text_eos_id
    _refuse((pool not in pools, f"our text towers do not pool by {pool!r}"))
    block, linear = text.transformer.resblocks[0], isinstance(text.text_projection, nn.Linear)
    parts = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
    state = {name: value for name, value in text.state_dict().items() if name.startswith(parts)}
    if not linear:
        state["text_projection.weight"] = state.pop("text_projection").T
    width = text.token_embedding.embedding_dim
    shape = {
        "text_width": width,
        "text_layers": len(text.transformer.resblocks),
        "text_heads": block.attn.num_heads,
        "text_mlp_ratio": block.mlp.c_fc.out_features / width,
        "text_causal": text.attn_mask is not None,
        "text_attend_padding": True,
        "text_pool": pools[pool],
        "text_activation": _activation(block.mlp.gelu),
        "text_norm_eps": text.ln_final.eps,
        "text_projection_bias": linear and text.text_projection.bias is not None,
    }
    weights = {to_ours(name, OPEN_CLIP_TEXT): value for name, value in state.items()}
    return Tower(shape, weights, last if pools[pool] == "end" else None)


def transformers_towers(net: Any) -> tuple[Tower, Tower]:
    """Both towers of a ``CLIPModel`` or a ``SiglipModel``.

    Raises:
        NotCarried: the model is of another type.
    """
    kind = net.config.model_type
    _refuse((kind not in ("clip", "siglip"), f"our towers do not include a model of the type {kind!r}"))
    return _transformers_image(net, kind == "clip"), _transformers_text(net, kind == "clip")


def _joined_qkv(state: Mapping[str, Tensor]) -> Weights:
    """Weights with query, key and value in one matrix; without positions that are no weights."""
    found = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    for name in [name for name in found if ".self_attn.q_proj." in name]:
        parts = [found.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        found[name.replace("q_proj", "qkv")] = torch.cat(parts)
    return found


def _transformers_image(net: Any, clip: bool) -> Tower:
    """The image tower of a ``CLIPModel`` (class token, projection) or a ``SiglipModel`` (attention pooling)."""
    config, state = net.config.vision_config, _joined_qkv(net.vision_model.state_dict())
    size = {
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "act_layer": _activation(net.vision_model.encoder.layers[0].mlp.activation_fn),
    }
    plain = {"pos_embed": state.pop("embeddings.position_embedding.weight")[None]}
    names = {"patch_embed.proj.": "embeddings.patch_embedding.", "norm.": "post_layernorm.", **TRANSFORMERS_BLOCK}
    if clip:
        shape = _clip_shape(config.patch_size, **size)
        plain["cls_token"] = state.pop("embeddings.class_embedding")[None, None]
        names = {"norm_pre.": "pre_layrnorm.", **names}
    else:
        pixels = {"patch_size": config.patch_size, "image_projection": False}
        shape = {"image_tower": "vit_base_patch16_siglip_224", "image_options": size, **pixels}
        plain["attn_pool.latent"] = state.pop("head.probe")
        for kind in ("weight", "bias"):
            query, *rest = state.pop(f"head.attention.in_proj_{kind}").chunk(3)
            plain |= {f"attn_pool.q.{kind}": query, f"attn_pool.kv.{kind}": torch.cat(rest)}
        names = {"attn_pool.proj.": "head.attention.out_proj.", "attn_pool.norm.": "head.layernorm.", **names}
        names["attn_pool.mlp."] = "head.mlp."
    names["blocks."] = "encoder.layers."
    weights = {f"backbone.{name}": value for name, value in plain.items()}
    weights |= {f"backbone.{to_ours(name, names)}": value for name, value in state.items()}
    return Tower(shape, weights | ({"projection.weight": net.visual_projection.weight} if clip else {}))


def _transformers_text(net: Any, clip: bool) -> Tower:
    """The text tower of a ``CLIPModel`` (causal, end token) or a ``SiglipModel`` (the last position)."""
    config, state = net.config.text_config, _joined_qkv(net.text_model.state_dict())
    if clip:
        state["head.weight"] = net.text_projection.weight
    shape = {
        "text_width": config.hidden_size,
        "text_layers": config.num_hidden_layers,
        "text_heads": config.num_attention_heads,
        "text_mlp_ratio": config.intermediate_size / config.hidden_size,
        "text_causal": clip,
        "text_attend_padding": True,
        "text_pool": "end" if clip else "last",
        "text_activation": _activation(net.text_model.encoder.layers[0].mlp.activation_fn),
        "text_norm_eps": config.layer_norm_eps,
        "text_projection_bias": not clip,
    }
    return Tower(shape, {to_ours(name, TRANSFORMERS_TEXT): value for name, value in state.items()})
