"""Two towers in open_clip's terms: its configuration and its names of the weights, or the first thing that it lacks.

An image tower is expressed in one of two ways: by open_clip's own transformer (CLIP's ViT of any shape), or by the name
of a timm model, which open_clip builds in that model's own shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from jestbench.config.run import ConfigError
from jestbench.model.image_tower import ImageTower
from jestbench.model.library_names import OPEN_CLIP_BLOCK, OPEN_CLIP_TEXT, to_theirs
from jestbench.model.library_towers import LibraryTowers
from jestbench.model.text_tower import Activation, TextPool, TextTower, activation_named
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import Model, TwoTowers

EVERYWHERE = ("pretrained_cfg_overlay", "drop_path_rate", "drop_rate", "proj_drop_rate", "attn_drop_rate")
"""Options of a timm model that change nothing in a trained one."""
POOLS: dict[TextPool, str] = {"end": "eos", "last": "last"}


class NotExpressible(ConfigError):
    """A model cannot be expressed by open_clip; the message names the first thing in the way."""


@dataclass(frozen=True)
class Expressed:
    """A tower in open_clip's terms.

    Attributes:
        config: of ``vision_cfg`` or ``text_cfg``.
        weights: by open_clip's names.
        activation: of the tower's blocks; ``None`` where open_clip's configuration leaves it alone.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    activation: Activation | None = None


def towers_for_open_clip(
    model: TwoTowers, shape: Model, tokenizer: Tokenizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration (``model_cfg``) and the weights of two towers.

    Raises:
        NotExpressible: naming the first parameter in the way.
    """
    text, image = _text(model.text, tokenizer), _image(model.image, shape)
    quick = {tower.activation == "quick_gelu" for tower in (text, image) if tower.activation}
    if len(quick) > 1:
        raise NotExpressible(
            f"model.text_activation = {text.activation!r} beside {image.activation!r} in the image tower: "
            "open_clip's quick_gelu is one switch for both towers"
        )
    for tower in (text, image):
        if tower.activation == "gelu_tanh":
            tower.config["act_kwargs"] = {"approximate": "tanh"}
    config: dict[str, Any] = {"embed_dim": model.width, "quick_gelu": quick == {True}, "custom_text": True}
    weights = {f"visual.{name}": value for name, value in image.weights.items()}
    weights |= {f"text.{name}": value for name, value in text.weights.items()}
    weights["logit_scale"] = model.log_scale
    if model.bias.requires_grad:  # the softmax loss has no offset
        config["init_logit_bias"] = model.scale_and_bias()[1]
        weights["logit_bias"] = model.bias
    config |= {"vision_cfg": image.config, "text_cfg": text.config}
    return config, {name: value.detach().clone().contiguous() for name, value in weights.items()}


def library_for_open_clip(model: LibraryTowers) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Configuration, weights and preprocessing of a model that its own library has run in training.

    The tokenizer is the one beside the configuration, which cleans its texts itself.

    Raises:
        NotExpressible: the library is another one.
    """
    if (found := model.source["files"].get("open_clip_config.json")) is None:
        raise NotExpressible(
            f"the model is one of {model.source['library']}, which has run it in training ({model.source['reason']})"
        )
    text = {name: value for name, value in found["model_cfg"]["text_cfg"].items() if not name.startswith("tokenizer_")}
    config = found["model_cfg"] | {"text_cfg": text | {"hf_tokenizer_name": "."}}
    weights = {name: value.detach().clone().contiguous() for name, value in model.library_weights().items()}
    return config, weights, found["preprocess_cfg"]


def _activation_of(block: Any, act: Any) -> Activation:
    """The name of an activation, by its values.

    Raises:
        NotExpressible: it is none of ``ACTIVATIONS``.
    """
    if (found := activation_named(act)) is None:
        raise NotExpressible(f"the activation {type(act).__name__} of a {type(block).__name__} is none of open_clip's")
    return found


def _text(text: TextTower, tokenizer: Tokenizer) -> Expressed:
    """A text tower.

    Raises:
        NotExpressible: naming the parameter in the way.
    """
    if text.pool not in POOLS:
        raise NotExpressible(
            f"model.text_pool = {text.pool!r}: open_clip's text tower pools at the end token ('end') or at the last "
            "position ('last')"
        )
    if not (text.causal or text.attend_padding):
        raise NotExpressible(
            "model.text_causal = False with model.text_attend_padding = False: open_clip's text tower masks no padding "
            "(CLIP's is causal; in SigLIP's all tokens attend to padding)"
        )
    block: Any = text.blocks[0]
    length, width = text.positions.shape
    config = {
        "context_length": length,
        "vocab_size": text.tokens.num_embeddings,
        "width": width,
        "heads": block.heads,
        "layers": len(text.blocks),
        "mlp_ratio": block.fc1.out_features / width,
        "no_causal_mask": not text.causal,
        "pool_type": POOLS[text.pool],
        "pad_id": text.pad_id,
        "eos_id": tokenizer.end_id,
        "hf_tokenizer_name": ".",  # not empty: the files beside the configuration
        "proj_bias": text.projection.bias is not None,
        "norm_kwargs": {"eps": text.norm.eps},
    }
    weights = {to_theirs(name, OPEN_CLIP_TEXT): value for name, value in text.state_dict().items()}
    if text.projection.bias is None:
        weights["text_projection"] = weights.pop("text_projection.weight").T
    return Expressed(config, weights, text.activation)


def _image(tower: ImageTower, shape: Model) -> Expressed:
    """An image tower, by open_clip's own transformer or else by the name of a timm model.

    Raises:
        NotExpressible: neither can be.
    """
    try:
        return _own_transformer(tower)
    except NotExpressible as own:
        try:
            return _by_name(tower, shape)
        except NotExpressible as named:
            raise NotExpressible(
                f"model.image_tower = {shape.image_tower!r}: open_clip's own transformer is another ({own}), and of "
                f"timm's models it builds those of the usual shape alone ({named}); gin/model/clip_tiny.gin can leave"
            ) from named


def _own_transformer(tower: ImageTower) -> Expressed:
    """The image tower as open_clip's ``VisionTransformer``.

    A bias of the patch embedding, which that class lacks, is added to the patches' positions.

    Raises:
        NotExpressible: naming the first difference.
    """
    vit = tower.backbone
    if type(vit) is not VisionTransformer or type(vit.patch_embed) is not PatchEmbed:
        raise NotExpressible(f"{type(vit).__name__} is no plain vision transformer")
    own = {
        f"{part}.{kind}" for part in ("norm1", "norm2", *(key.rstrip(".") for key in OPEN_CLIP_BLOCK)) for kind in KINDS
    }
    block = vit.blocks[0]
    differences = {
        "it has no class token": vit.cls_token is None,
        "it has register tokens": vit.reg_token is not None,
        "its class token has no position": vit.no_embed_class or vit.pos_embed is None,
        f"it pools by {vit.global_pool!r}, not by its class token": vit.global_pool != "token",
        "it normalises pooled features": not isinstance(vit.fc_norm, nn.Identity),
        "its blocks hold other weights": set(block.state_dict()) != own,
        "it normalises patches": not isinstance(vit.patch_embed.norm, nn.Identity),
        "its width does not divide into heads": bool(vit.embed_dim % block.attn.num_heads),
        "its normalisations have several ε": len({m.eps for m in vit.modules() if isinstance(m, nn.LayerNorm)}) != 1,
    }
    _refuse_first(differences)
    config = {
        "image_size": tower.resolution[0],
        "patch_size": vit.patch_embed.patch_size[0],
        "width": vit.embed_dim,
        "layers": len(vit.blocks),
        "head_width": vit.embed_dim // block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / vit.embed_dim,
        "no_ln_pre": isinstance(vit.norm_pre, nn.Identity),
        "norm_kwargs": {"eps": vit.norm.eps},
    }
    position_PW = vit.pos_embed[0].detach().clone()
    if vit.patch_embed.proj.bias is not None:
        position_PW[1:] += vit.patch_embed.proj.bias.detach()
    projection = tower.projection.weight.T if isinstance(tower.projection, nn.Linear) else torch.eye(tower.width)
    weights = {
        "class_embedding": vit.cls_token[0, 0],
        "positional_embedding": position_PW,
        "conv1.weight": vit.patch_embed.proj.weight,
        "proj": projection,
        **{f"ln_pre.{name}": value for name, value in vit.norm_pre.state_dict().items()},
        **{f"ln_post.{name}": value for name, value in vit.norm.state_dict().items()},
        **{
            f"transformer.resblocks.{to_theirs(name, OPEN_CLIP_BLOCK)}": value
            for name, value in vit.blocks.state_dict().items()
        },
    }
    return Expressed(config, weights, _activation_of(block, block.mlp.act))


KINDS = ("weight", "bias")


def _refuse_first(differences: dict[str, bool]) -> None:
    for difference, there in differences.items():
        if there:
            raise NotExpressible(difference)


def _by_name(tower: ImageTower, shape: Model) -> Expressed:
    """The image tower as open_clip's ``TimmModel``, which builds a timm model by its name and puts a projection behind.

    Raises:
        NotExpressible: the model's options or sizes are not those that its name stands for.
    """
    changed = sorted(set(shape.image_options) - set(EVERYWHERE))
    projects = isinstance(tower.projection, nn.Linear)
    own = getattr(tower.backbone, "global_pool", "avg")
    pool = "" if projects else own if isinstance(own, str) else "avg"
    with torch.device("meta"):
        trunk = timm.create_model(shape.image_tower, **({} if projects else {"num_classes": 0, "global_pool": pool}))
        if projects:
            trunk.reset_classifier(0)
    usual = {name: tuple(value.shape) for name, value in trunk.state_dict().items()}
    other = _first_difference(usual, tower.backbone.state_dict().items())
    pooled = tower.projection.in_features if isinstance(tower.projection, nn.Linear) else trunk.num_features
    differences = {
        f"model.image_options has {', '.join(changed)}": bool(changed),
        f"with model.image_size = {tower.resolution[0]} and model.patch_size = {shape.patch_size} {other}": bool(other),
        f"its features are {pooled} wide, not {trunk.num_features}": pooled != trunk.num_features,
    }
    _refuse_first(differences)
    config = {
        "timm_model_name": shape.image_tower,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": "linear" if projects else "none",
        "image_size": tower.resolution[0],
    }
    weights = {f"trunk.{name}": value for name, value in tower.backbone.state_dict().items()}
    weights |= {f"head.proj.{name}": value for name, value in tower.projection.state_dict().items()}
    return Expressed(config, weights)


def _first_difference(usual: dict[str, tuple[int, ...]], found: Iterable[tuple[str, Tensor]]) -> str:
    """The first weight of another name or shape than usual, for a message; empty where there is none."""
    own = {name: tuple(value.shape) for name, value in found}
    for name in sorted({*usual, *own}):
        if usual.get(name) != own.get(name):
            return f"its {name} is {own.get(name)}, not {usual.get(name)}"
    return ""
