"""What ``run.split`` asks for: a split, several joined, the share of largest numbers of one, or a mixture by shares."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jestbench.data.cascade import own_score
from jestbench.data.joined_pairs import JoinedPairs
from jestbench.data.pairs import Dataset, Pairs
from jestbench.data.part_pairs import TopPairs, top_of
from jestbench.select.scores import Role

Split = str | Mapping[str, float]
"""``pool``, ``pool+curated``, ``pool[top=0.05, by=column:similarity]`` (or ``by=reference``), or a share for each of
several of these."""
Rank = Callable[[Role, str], npt.NDArray[np.float64]]
"""Role of a frozen model and name of a split → the model's own score of each pair."""

EXAMPLE = "'pool[top=0.05, by=column:similarity]'"


@dataclass(frozen=True)
class _Part:
    """One split, or the share of it with the largest numbers in a column, or own scores under a role's model."""

    name: str
    top: float | None = None
    column: str | None = None
    role: Role | None = None


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


def roles_in(split: Split) -> frozenset[Role]:
    """The roles of the frozen models whose own scores a top is taken by."""
    parts = [split] if isinstance(split, str) else [*split]
    return frozenset(role for part in parts if (role := _read(part).role) is not None)


def unranked(split: Split) -> str:
    """The split as ``shown_split``, with a whole split in place of its top by a frozen model."""
    parts = [split] if isinstance(split, str) else [*split]
    read = {part: _read(part) for part in parts}
    return shown_split("+".join(dict.fromkeys(one.name if one.role else part for part, one in read.items())))


def shown_split(split: Split) -> str:
    """The split as one text that ``split_of`` reads; of a mixture all its splits, joined, without their shares."""
    return split if isinstance(split, str) else "+".join(dict.fromkeys(_read(name).name for name in split))


def least_draw(split: Split) -> int:
    """The least number of pairs of which every split of a mixture gets one; 1 of one split."""
    return 1 if isinstance(split, str) else math.ceil(sum(split.values()) / min(split.values()))


def split_of(data: Dataset, split: Split, rank: Rank | None = None) -> Pairs:
    """The pairs that a split asks for.

    Args:
        data: the data set.
        split: what is asked for.
        rank: gives the own scores that a top is taken by; without it the first pairs stand in for such a top, which are
            as many, for shapes, prices and tokenizers.

    Raises:
        DataError: the data set has no such split, or the split no such column.
        ValueError: a stream is to be mixed, or a part of it taken.
    """
    if not isinstance(split, str):
        parts = [split_of(data, name, rank).indexed("run.split as a mixture") for name in split]
        return JoinedPairs(parts, [*split], [float(share) for share in split.values()])
    part = _read(split)
    pairs = data.split(part.name)
    if part.top is None:
        return pairs
    indexed = pairs.indexed(f"run.split = {split!r}")
    if part.column is not None:
        return top_of(indexed, part.top, part.column)
    assert part.role is not None
    value_N = np.zeros(len(indexed)) if rank is None else rank(part.role, part.name)
    return TopPairs(indexed, part.top, value_N, f"own scores under the {part.role}", part.role)


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
    role, column = own_score(matched["by"])
    if role is None and column is None:
        raise ValueError(
            f"run.split = {text!r}: by names a column, as in {EXAMPLE}, or a frozen model whose own score is taken: "
            "by=reference (run.reference), by=scorer (run.scorer)"
        )
    return _Part(matched["name"], top, column, role)
