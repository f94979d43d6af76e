"""What ``run.split`` asks for: a split, several joined, the share of largest numbers of one, or a mixture by shares."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from jestbench.batch import COLUMN
from jestbench.data.joined_pairs import JoinedPairs
from jestbench.data.pairs import Dataset, Pairs
from jestbench.data.part_pairs import top_of

Split = str | Mapping[str, float]
"""``pool``, ``pool+curated``, ``pool[top=0.05, by=column:similarity]``, or a share for each of several of these."""

EXAMPLE = "'pool[top=0.05, by=column:similarity]'"


@dataclass(frozen=True)
class _Part:
    """One split, or the share of largest numbers of it."""

    name: str
    top: float | None = None
    by: str = ""


def check_split(split: Split) -> None:
    """Refuse a text or a mixture that cannot be read.

    Raises:
        ValueError: naming what is wrong.
    """
    if isinstance(split, str):
        _read(split)
        return
    if not split:
        raise ValueError("run.split mixes no split: give shares, as in {'pool': 0.9, 'curated': 0.1}")
    for name, share in split.items():
        _read(name)
        if isinstance(share, bool) or not isinstance(share, int | float) or not share > 0:
            raise ValueError(f"run.split: the share of {name!r} is a positive number, got {share!r}")


def names_in(split: Split) -> frozenset[str]:
    """The data set's own splits that are drawn from, in whole or in part."""
    parts = [split] if isinstance(split, str) else [*split]
    return frozenset(name for part in parts for name in _read(part).name.split("+"))


def shown_split(split: Split) -> str:
    """The split as one text that ``split_of`` reads; of a mixture all its splits, joined, without their shares."""
    return split if isinstance(split, str) else "+".join(dict.fromkeys(_read(name).name for name in split))


def least_draw(split: Split) -> int:
    """The least number of pairs of which every split of a mixture gets one; 1 of one split."""
    return 1 if isinstance(split, str) else math.ceil(sum(split.values()) / min(split.values()))


def split_of(data: Dataset, split: Split) -> Pairs:
    """The pairs that a split asks for.

    Raises:
        DataError: the data set has no such split, or the split no such column.
        ValueError: a stream is to be mixed, or a part of it taken.
    """
    if not isinstance(split, str):
        parts = [split_of(data, name).indexed("run.split as a mixture") for name in split]
        return JoinedPairs(parts, [*split], [float(share) for share in split.values()])
    part = _read(split)
    pairs = data.split(part.name)
    if part.top is None:
        return pairs
    return top_of(pairs.indexed(f"run.split = {split!r}"), part.top, part.by)


def _read(text: str) -> _Part:
    if "[" not in text:
        return _Part(text)
    number = r"(?P<top>[0-9.eE+-]+)"
    matched = re.fullmatch(rf"(?P<name>[^\[]+)\[\s*top\s*=\s*{number}\s*,\s*by\s*=\s*(?P<by>[^\]]+?)\s*\]", text)
    try:
        top = float(matched["top"]) if matched else 0.0
    except ValueError:
        top = 0.0
    if matched is None or not 0 < top <= 1:
        raise ValueError(f"run.split = {text!r}: a part of a split is written {EXAMPLE}, top a share in (0, 1]")
    if not matched["by"].startswith(COLUMN) or matched["by"] == COLUMN:
        raise ValueError(
            f"run.split = {text!r}: by names a column, as in {EXAMPLE}; a model's own score becomes one in the data "
            "set's columns"
        )
    return _Part(matched["name"], top, matched["by"].removeprefix(COLUMN))
