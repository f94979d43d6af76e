"""The command that exports a trained model: ``python tools/export.py RUN_DIR --to open_clip [--out DIR]``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from jestbench.disk import command_name, user_path

if TYPE_CHECKING:
    from jestbench.model.tokenizer import Tokenizer
    from jestbench.model.towers import TwoTowers

LARGEST = 1e-5
"""Largest difference between an element of an embedding here and in the other tool, in fp32."""
PROBES = ("a red cat", "two dogs on a hill, and a house", "x", "A photo of a <end> cat.")


def main(argv: Sequence[str] | None = None) -> int:
    """Export a model and print where to.

    Returns:
        The exit status: 0, 2 where the other tool cannot express the model, 3 where the run cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog=command_name("export"),
        description="Write a trained model as a folder that another tool opens as it stands.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=user_path, help="a finished run")
    parser.add_argument("--to", choices=("open_clip",), required=True, help="the tool that opens the folder")
    parser.add_argument("--out", metavar="DIR", type=user_path, help="default: open_clip in the run folder")
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2

    from jestbench.launch.command import guarded

    out = arguments.out or arguments.run_dir / arguments.to
    return guarded(lambda: _report(out, export(arguments.run_dir, out)), "nothing is exported: start the command again")


def _report(out: Path, opened: bool) -> int:
    print(f"written: {out}")
    print(f'open it: open_clip.create_model_and_transforms("local-dir:{out}")')
    if not opened:
        print("not opened by open_clip here: pip install open_clip_torch transformers to check it", file=sys.stderr)
    return 0


def export(run_dir: Path, out: Path) -> bool:
    """Write the model of a run's newest checkpoint as a folder for open_clip.

    Returns:
        Whether open_clip has opened the folder and given the same embeddings; it is asked where it is installed.

    Raises:
        NotExpressible: open_clip has no such model, or gives other embeddings; the folder is removed.
        DataError: the run holds no contrastive model, or the folder is there already.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from jestbench.disk import DataError, whole, write_json, write_text
    from jestbench.export.model_card import model_card
    from jestbench.export.open_clip_towers import library_for_open_clip, towers_for_open_clip
    from jestbench.export.tokenizer_files import write_tokenizer
    from jestbench.model.library_towers import LibraryTowers
    from jestbench.runs.saved_model import shape_in, tokenizer_of, towers_of

    model, shape, tokenizer = towers_of(run_dir).eval(), shape_in(run_dir), tokenizer_of(run_dir)
    if isinstance(model, LibraryTowers):
        config, weights, preprocess = library_for_open_clip(model)
    else:
        config, weights = towers_for_open_clip(model, shape, tokenizer)
        mean, std = shape.normalisation
        preprocess = {"mean": list(mean), "std": list(std), "interpolation": "bicubic", "resize_mode": "shortest"}
    if out.exists():
        raise DataError(f"{out} is there already: name another folder by --out")
    opens = find_spec("open_clip") is not None and find_spec("transformers") is not None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as folder:
            folder.mkdir()
            save_file(weights, folder / "open_clip_model.safetensors")
            write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess})
            write_tokenizer(folder, tokenizer)
            write_text(folder / "README.md", model_card(run_dir, model, shape, tokenizer))
            if opens:
                _check_opened(folder, model, tokenizer)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{out}: cannot be written: {error}: name another folder by --out") from error
    return opens


def _check_opened(folder: Path, model: TwoTowers, tokenizer: Tokenizer) -> None:
    """Open the folder by open_clip, and compare tokens and embeddings of a few texts and of random images.

    Raises:
        NotExpressible: they differ.
    """
    import open_clip
    import torch
    import torch.nn.functional as F
    from torchvision.transforms.functional import to_pil_image

    from jestbench.export.open_clip_towers import NotExpressible

    height, width = model.image.resolution
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, height, width), dtype=torch.uint8, generator=random)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # "no pretrained weights": a local folder's are loaded all the same
    try:
        theirs, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        ids_NL = open_clip.get_tokenizer(f"local-dir:{folder}")(list(PROBES))
    except Exception as error:  # of all kinds: an older version lacks a parameter, say
        raise NotExpressible(f"open_clip {open_clip.__version__} does not open what it is given: {error}") from error
    finally:
        logging.disable(disabled)
    ours_NL = tokenizer.encode(PROBES)
    if not torch.equal(ids_NL, ours_NL):
        raise NotExpressible("the tokenizer: transformers makes other ids of the same captions")
    with torch.no_grad():
        pixels = torch.stack([prepare(to_pil_image(image)) for image in images])
        for what, found, own in (
            ("images", theirs.eval().encode_image(pixels), model.encode_image(images)),
            ("texts", theirs.encode_text(ids_NL), model.encode_text(ours_NL)),
        ):
            apart = float((F.normalize(found, dim=-1) - own.cpu()).abs().max())
            if not apart <= LARGEST:
                raise NotExpressible(f"open_clip's embeddings of {what} differ by {apart:.1e} from those of the run")
