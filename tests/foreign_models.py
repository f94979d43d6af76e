"""Small models of open_clip and of transformers with random weights, saved as these libraries save them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

CLIP: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
"""A CLIP of open_clip's own towers, of another size, resolution and text length than the runs of the tests."""
SIGLIP: dict[str, Any] = CLIP | {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": CLIP["text_cfg"] | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}
"""SigLIP's towers: an image tower of timm, and texts that are pooled at the last position."""
COCA: dict[str, Any] = CLIP | {
    "multimodal_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    "custom_text": True,
    "vision_cfg": CLIP["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": CLIP["text_cfg"] | {"embed_cls": True, "output_tokens": True},
}
"""A CoCa, whose text tower has a class token."""
RESNET: dict[str, Any] = CLIP | {
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
}
"""CLIP's ResNet (RN50, with one bottleneck a stage): batch normalisation, attention pooling over the grid."""
MEAN, STD = [0.4, 0.45, 0.5], [0.3, 0.25, 0.2]
WORDS = "a photo of the red blue green cat dog bird on under big small old new".split()
TEXTS = ["a photo of a cat", "the big red dog", "a small blue bird under the old dog, " * 9, ""]


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    """Pictures of noise over a gradient, of the given widths and heights."""
    random = np.random.default_rng(0)
    found = []
    for width, height in sizes:
        ramp = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
        found.append(Image.fromarray((ramp + random.integers(0, 36, (height, width, 3))).astype(np.uint8)))
    return found


def uint8_of(images: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures of one size as ``[B, 3, H, W]``."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def open_clip_folder(folder: Path, seed: int = 0, config: dict[str, Any] = CLIP, **preprocess: Any) -> Path:
    """A folder for ``local-dir:``, as open_clip's ``push_to_hf_hub`` writes it."""
    import open_clip

    folder.mkdir(parents=True)
    given = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"} | preprocess
    written = json.dumps({"model_cfg": config, "preprocess_cfg": given})
    (folder / "open_clip_config.json").write_text(written, encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        net.logit_scale.fill_(2.0)
        if hasattr(net, "text_decoder"):  # open_clip leaves this one as the memory was, at times NaN
            torch.nn.init.normal_(net.text_decoder.text_projection, std=0.2)
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def clip_folder(folder: Path, activation: str = "quick_gelu") -> Path:
    """A ``CLIPModel`` with tokenizer and image processor, by ``save_pretrained``."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    byte = tokenizer_bytes()
    vocabulary = [*byte, *(f"{one}</w>" for one in byte)]
    merges = [pair for word in WORDS for pair in merges_of(word)]
    vocabulary = list(dict.fromkeys([*vocabulary, *("".join(pair) for pair in merges)]))
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: place for place, token in enumerate(vocabulary)}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    lines = ["#version: 0.2", *dict.fromkeys(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = CLIPTokenizerFast.from_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = ids["<|endoftext|>"]
    text = shape | {"vocab_size": len(ids), "max_position_embeddings": 16, "eos_token_id": end, "bos_token_id": end - 1}
    vision = shape | {"image_size": 40, "patch_size": 8, "hidden_act": activation}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 44}, crop_size={"height": 40, "width": 40}).save_pretrained(folder)
    return folder


def tokenizer_bytes() -> list[str]:
    """The characters that stand for the 256 bytes in a byte-level vocabulary."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def merges_of(word: str) -> list[tuple[str, str]]:
    """The merges that make one token of a word, from its left end on."""
    parts = [*word[:-1], f"{word[-1]}</w>"]
    return [("".join(parts[:place]), parts[place]) for place in range(1, len(parts))]


def siglip_folder(folder: Path, flexible: bool = False) -> Path:
    """A ``SiglipModel``, or a ``Siglip2Model`` of variable resolution, with tokenizer and image processor."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {token: place for place, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",  # as released; the class of transformers for Siglip2 pads on the left by default
        model_input_names=["input_ids"],
    )
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = shape | {"vocab_size": len(vocabulary), "max_position_embeddings": 12, "projection_size": 32}
    name, vision = "Siglip", shape | {"image_size": 32, "patch_size": 8}
    processor: Any = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    if flexible:
        name, vision = "Siglip2", shape | {"num_patches": 16, "patch_size": 8}
        processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=18)
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    for part in (tokenizer, processor):
        part.save_pretrained(folder)
    return folder
