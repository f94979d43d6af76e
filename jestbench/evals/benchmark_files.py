"""Evaluation sets in CLIP_benchmark's WebDataset layout, as they lie on people's disks.

A folder ``NAME/`` with ``test/{0,1,…}.tar`` (and ``train/`` for few-shot), and

* classification: ``classnames.txt``, ``zeroshot_classification_templates.txt`` (``{c}`` stands for the class), and
  ``KEY.cls`` beside each image (``KEY.jpg``, ``KEY.png`` …);
* retrieval: ``dataset_type.txt`` holding ``retrieval``, and ``KEY.txt`` with one caption a line.

The tars are read in place, by the same reader as training shards: one pass indexes the members, and images are decoded
when they are needed. An evaluation must be complete: damage that training would count and skip is an error here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jestbench.batch import DataError
from jestbench.data.damage import Damaged
from jestbench.data.sources.shards import IMAGES, MemberRules, Sample, samples
from jestbench.disk import decoded, user_path

MEMBERS = MemberRules(lines=True)
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
    root = user_path(folder)
    if not root.is_dir():
        raise DataError(f"evaluate.sets: there is no folder {folder}")
    kind = "\n".join(_lines(root / KIND)) if (root / KIND).exists() else "classification"
    name = root.resolve().name.removeprefix("wds_").replace("/", "_")
    if kind == "retrieval":
        return Benchmark(name, "retrieval", _split(root / "test", "retrieval", 0))
    if kind != "classification":
        raise DataError(f"{root / KIND}: {kind!r} sets cannot be evaluated; classification and retrieval can")
    classnames = _required(root / CLASSNAMES, gapless=True)
    templates = _required(root / TEMPLATES)
    if wrong := [template for template in templates if "{c}" not in template]:
        hint = ": write {c} in place of {}" if "{}" in wrong[0] else ""
        raise DataError(f"{root / TEMPLATES}: the template {wrong[0]!r} has no {{c}} for the class{hint}")
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
        text = decoded(path.read_bytes())
    except FileNotFoundError:
        there = ", ".join(sorted(file.name for file in path.parent.iterdir())[:8])
        raise DataError(
            f"{path} is missing: a set in CLIP_benchmark's WebDataset layout has it (there: {there or 'nothing'})"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return tuple(line.strip() for line in text.rstrip().splitlines())


def _required(path: Path, gapless: bool = False) -> tuple[str, ...]:
    """The lines of a file that are not empty; where their numbers count, none between them may be empty."""
    lines = _lines(path)
    if gapless and "" in lines[:-1]:
        raise DataError(f"{path}: line {lines.index('') + 1} is empty, so the classes behind it would be miscounted")
    if not any(lines):
        raise DataError(f"{path} is empty")
    return tuple(line for line in lines if line)


def _split(folder: Path, task: Task, classes: int) -> Split:
    tars = sorted(folder.glob("*.tar"), key=lambda tar: (len(tar.stem), tar.stem))
    if not tars:
        raise DataError(f"{folder} holds no .tar{_instead(folder)}")
    announced = folder / "nshards.txt"
    if announced.exists() and _lines(announced)[:1] != (str(len(tars)),):
        raise DataError(f"{announced} announces {_lines(announced)[:1]} shards, {len(tars)} are there")
    images, labels, captions = [], [], []
    for tar in tars:
        for sample in _samples(tar):
            if not any(kind in sample for kind in IMAGES):
                continue  # metadata without an image
            image = MEMBERS.image(sample)
            images.append(Member(tar, image.offset, image.size))
            if task == "retrieval":
                captions.append(_captions(tar, sample))
            else:
                labels.append(_class(tar, sample, classes))
    if not images:
        raise DataError(f"{folder}: no image ({', '.join(IMAGES)}) in {len(tars)} tars")
    return Split(tuple(images), tuple(labels), tuple(captions))


def _instead(folder: Path) -> str:
    """What lies in place of the tars of a split."""
    root = folder if folder.is_dir() else folder.parent
    found = sorted(file.name for file in root.iterdir() if file.is_dir())
    if not found:
        return ""
    if folder.is_dir():
        return f", but the folders {', '.join(found[:4])}: write images of classes into tars (docs/your_data.md)"
    return f": there is no such folder, but {', '.join(found[:4])}; the examples to test on lie in test/"


def _samples(tar: Path) -> Iterator[Sample]:
    """The samples of a tar, images unread."""
    try:
        with tar.open("rb") as file:
            for _, sample in samples(file, unread=IMAGES):
                if isinstance(sample, Damaged):
                    raise DataError(f"{tar} cannot be read: {sample}: an evaluation must be whole")
                if large := [ending for ending, member in sample.items() if member.too_large]:
                    raise DataError(f"{tar} cannot be read: a member {large[0]} is too large")
                yield sample
    except OSError as error:
        raise DataError(f"{tar} cannot be read: {error}: an evaluation must be whole") from error


def _class(tar: Path, sample: Sample, classes: int) -> int:
    text = sample["cls"].content.decode("utf-8", "replace").strip() if "cls" in sample else ""
    if not text.isdecimal() or int(text) >= classes:
        raise DataError(f"{tar}: an image has the class {text!r}; classnames.txt holds {classes} classes (0, 1, …)")
    return int(text)


def _captions(tar: Path, sample: Sample) -> tuple[str, ...]:
    try:
        captions = tuple(filter(None, map(str.strip, MEMBERS.captions(sample))))
    except Damaged as damaged:
        raise DataError(f"{tar}: an image's captions (.txt): {damaged}") from damaged
    if not captions:
        raise DataError(f"{tar}: an image has no captions (.txt)")
    return captions
