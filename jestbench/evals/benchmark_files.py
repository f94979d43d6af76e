"""Evaluation sets in CLIP_benchmark's WebDataset layout, as they lie on people's disks.

A folder ``NAME/`` with ``test/{0,1,…}.tar`` (and ``train/`` for few-shot), and

* classification: ``classnames.txt``, ``zeroshot_classification_templates.txt`` (``{c}`` stands for the class), and
  ``KEY.cls`` beside each ``KEY.{jpg,jpeg,png,webp}``;
* retrieval: ``dataset_type.txt`` holding ``retrieval``, and ``KEY.txt`` with one caption a line.

The tars are read where they are: one pass finds the members, images are decoded when they are needed.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jestbench.batch import DataError

IMAGES = ("jpg", "jpeg", "png", "webp")
CLASSNAMES, TEMPLATES, KIND = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"
Task = Literal["zero_shot", "retrieval"]


@dataclass(frozen=True)
class Member:
    """Where a file lies in a tar."""

    tar: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Its bytes."""
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Split:
    """The examples of ``test/`` or ``train/``, in the order of the shards.

    Attributes:
        images: where each image lies.
        classes: class of each image; empty for retrieval.
        captions: captions of each image; empty for classification.
    """

    images: tuple[Member, ...]
    classes: tuple[int, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """One evaluation set.

    Attributes:
        name: the folder's, without ``wds_``.
        task: what is evaluated.
        test: its examples.
        train: examples for few-shot, where the folder has them.
        classnames: of a classification set.
        templates: of a classification set, each with ``{c}``.
    """

    name: str
    task: Task
    test: Split
    train: Split | None = None
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()


def read_benchmark(folder: str, train: bool = False) -> Benchmark:
    """Read a set's layout and the members of its tars; no image is decoded.

    Args:
        folder: the set's.
        train: read ``train/`` too, where it is there.

    Raises:
        DataError: the folder is not in that layout; the message names the file that is missing or wrong.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"evaluate.sets: there is no folder {folder}")
    kind = "\n".join(_lines(root / KIND)) if (root / KIND).exists() else "classification"
    name = root.resolve().name.removeprefix("wds_").replace("/", "_")
    if kind == "retrieval":
        return Benchmark(name, "retrieval", _split(root / "test", "retrieval", 0))
    if kind != "classification":
        raise DataError(f"{root / KIND}: {kind!r} sets cannot be evaluated; classification and retrieval can")
    classnames = _required(root / CLASSNAMES)
    templates = _required(root / TEMPLATES)
    if wrong := [template for template in templates if "{c}" not in template]:
        raise DataError(f"{root / TEMPLATES}: the template {wrong[0]!r} has no {{c}} for the class")
    with_train = train and (root / "train").is_dir()
    return Benchmark(
        name,
        "zero_shot",
        _split(root / "test", "zero_shot", len(classnames)),
        _split(root / "train", "zero_shot", len(classnames)) if with_train else None,
        classnames,
        templates,
    )


def _lines(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} is missing: a set in CLIP_benchmark's WebDataset layout has it") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _required(path: Path) -> tuple[str, ...]:
    lines = _lines(path)
    if not lines:
        raise DataError(f"{path} is empty")
    return lines


def _split(folder: Path, task: Task, classes: int) -> Split:
    tars = sorted(folder.glob("*.tar"), key=lambda tar: (len(tar.stem), tar.stem))
    if not tars:
        raise DataError(f"{folder} holds no .tar")
    announced = folder / "nshards.txt"
    if announced.exists() and _lines(announced)[:1] != (str(len(tars)),):
        raise DataError(f"{announced} announces {_lines(announced)[:1]} shards, {len(tars)} are there")
    samples = [sample for tar in tars for sample in _samples(tar)]
    images, labels, captions = [], [], []
    for sample in samples:
        image = next((sample[kind] for kind in IMAGES if kind in sample), None)
        if image is None:
            continue  # metadata without an image
        images.append(image)
        if task == "retrieval":
            captions.append(_captions(sample))
        else:
            labels.append(_class(sample, classes))
    if not images:
        raise DataError(f"{folder}: no image ({', '.join(IMAGES)}) in {len(tars)} tars")
    return Split(tuple(images), tuple(labels), tuple(captions))


def _samples(path: Path) -> list[dict[str, Member]]:
    """The members of a tar by key (the name up to the first dot), in order of the first of each."""
    found: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                key, _, kind = file.partition(".")
                if member.isfile() and kind:
                    found.setdefault(f"{folder}/{key}", {})[kind.lower()] = Member(
                        path, member.offset_data, member.size
                    )
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}: an evaluation must be whole") from error
    if any(m.offset + m.size > path.stat().st_size for sample in found.values() for m in sample.values()):
        raise DataError(f"{path} is cut off: an evaluation must be whole")
    return list(found.values())


def _class(sample: Mapping[str, Member], classes: int) -> int:
    member = sample.get("cls")
    text = member.read().decode("utf-8", "replace").strip() if member is not None else ""
    if not text.isdigit() or int(text) >= classes:
        where = next(iter(sample.values())).tar
        raise DataError(f"{where}: an image has the class {text!r}; classnames.txt holds {classes} classes (0, 1, …)")
    return int(text)


def _captions(sample: Mapping[str, Member]) -> tuple[str, ...]:
    member = sample.get("txt")
    text = member.read().decode("utf-8", "replace") if member is not None else ""
    captions = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not captions:
        raise DataError(f"{next(iter(sample.values())).tar}: an image has no captions (.txt)")
    return captions
