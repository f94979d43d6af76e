"""Small evaluation sets in CLIP_benchmark's layout: squares of three colours."""

from __future__ import annotations

import io
from pathlib import Path

from photos import tar_of
from PIL import Image

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}


def encoded(colour: tuple[int, int, int], kind: str = "png", size: tuple[int, int] = (24, 16)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG" if kind == "jpg" else kind.upper())
    return file.getvalue()


def classification(folder: Path, shots: int = 3) -> Path:
    """Three classes over two test shards, a few training images each."""
    names = list(COLOURS)
    folder.mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} square\nthe {c}\n")
    for part, per_class in (("test", 2), ("train", shots)):
        for shard in range(2):
            files = []
            for number in range(per_class):
                for label, colour in enumerate(COLOURS.values()):
                    key = f"s{shard}{number}{label}"
                    shade = tuple(max(0, c - 9 * number - 3 * shard) for c in colour)
                    files += [(f"{key}.png", encoded(shade)), (f"{key}.cls", str(label).encode())]
            tar_of(folder / part / f"{shard}.tar", files)
        (folder / part / "nshards.txt").write_text("2\n")
    return folder


def retrieval(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    files = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        captions = [f"a {name} square", f"{name} again"][: 1 + number % 2]
        files += [(f"{number}.jpg", encoded(colour, "jpg")), (f"{number}.txt", "\n".join(captions).encode())]
    tar_of(folder / "test" / "0.tar", files)
    return folder
