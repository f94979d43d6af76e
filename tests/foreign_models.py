"""Small models of open_clip and of transformers with random weights, saved as these libraries save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SMALL: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
"""A CLIP of open_clip's own towers, of another size, resolution and text length than the runs of the tests."""
MEAN, STD = [0.4, 0.45, 0.5], [0.3, 0.25, 0.2]


def open_clip_folder(folder: Path, seed: int = 0, **changed: Any) -> Path:
    """A folder for ``local-dir:``, as open_clip's ``push_to_hf_hub`` writes it."""
    import open_clip

    folder.mkdir(parents=True)
    config = {"model_cfg": SMALL | changed, "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        net.logit_scale.fill_(2.0)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder
