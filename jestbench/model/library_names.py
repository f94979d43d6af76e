"""Names of weights within a tower: ours (and timm's) beside those of open_clip and of ``transformers``."""

from __future__ import annotations

from collections.abc import Mapping

OPEN_CLIP_BLOCK: Mapping[str, str] = {
    "norm1": "ln_1",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
"""Within a block of an image tower: timm's, and open_clip's."""
OPEN_CLIP_TEXT: Mapping[str, str] = {
    "tokens.": "token_embedding.",
    "positions": "positional_embedding",
    "blocks.": "transformer.resblocks.",
    "norm_attention": "ln_1",
    "qkv.": "attn.in_proj_",
    "out.": "attn.out_proj.",
    "norm_mlp": "ln_2",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
    "norm.": "ln_final.",
    "projection.": "text_projection.",
}
"""Within a text tower: ours, and open_clip's, in the order in which they are replaced."""
TRANSFORMERS_BLOCK: Mapping[str, str] = {
    "attn.qkv.": "self_attn.qkv.",
    "attn.proj": "self_attn.out_proj",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
}
"""Within a block of an image tower: timm's, and those of ``transformers`` once query, key and value are one matrix."""
TRANSFORMERS_TEXT: Mapping[str, str] = {
    "tokens.": "embeddings.token_embedding.",
    "positions": "embeddings.position_embedding.weight",
    "blocks.": "encoder.layers.",
    "norm_attention": "layer_norm1",
    "qkv.": "self_attn.qkv.",
    "out.": "self_attn.out_proj.",
    "norm_mlp": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "norm.": "final_layer_norm.",
    "projection.": "head.",
}
"""Within a text tower: ours, and those of ``transformers`` once query, key and value are one matrix."""


def to_theirs(name: str, names: Mapping[str, str]) -> str:
    """A library's name of a weight, from ours."""
    for own, theirs in names.items():
        name = name.replace(own, theirs, 1)
    return name


def to_ours(name: str, names: Mapping[str, str]) -> str:
    """Our name of a weight, from a library's."""
    return to_theirs(name, {theirs: own for own, theirs in names.items()})
