"""Damaged pairs of a data set: the reason, the count, and the share that stops a run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from jestbench.batch import DataError

FLOOR = 1000
"""A share of damaged pairs is taken of at least this many pairs: one damaged pair in a small set is no evidence."""

KIND = "damaged/"
"""Begins the name of a count of one kind of damage, in ``Batch.counts`` and in a ``Tally``."""

DAMAGE_LINE = "\n  "
"""Begins a line of a message that lists several kinds of damage."""

AS_TEXT = r"(data:image/|/9j/|iVBORw0KGgo|UklGR|R0lGOD|[fF]{2}[dD]8[fF]{2}|89504[eE]47)"
"""How a picture begins that is written as text: in base64 (a URL of its data, JPEG, PNG, WebP, GIF) or hexadecimal."""
PRINTED = r"(\{['\"]bytes['\"]: )?b['\"]|<PIL\."
"""How what Python prints for a picture begins."""
DECODE = "base64.b64decode (bytes.fromhex) gives its bytes: write those, into a file or into a parquet column"
"""What to do with such a picture."""
LONG = 100
"""Characters above which a text is no path, if it begins as a picture does."""
MOST = 400
"""Characters of an example."""


class Damaged(Exception):
    """A pair is unusable.

    Attributes:
        reason: the category that is counted.
        said: what was found in place of a pair (endings, columns), for the message.
        cause: the likely cause and what to do, for the message.
        where: path, key or row of the pair.
    """

    def __init__(self, reason: str, said: str = "", cause: str = "") -> None:
        super().__init__(reason, said, cause)  # all: an exception is pickled by its arguments
        self.reason, self.said, self.cause, self.where = reason, said, cause, ""

    def at(self, where: str) -> Damaged:
        """The same damage, with its place."""
        self.where = self.where or where
        return self

    @property
    def example(self) -> str:
        """Place, finding and likely cause of this pair, as one line; empty where none of them is known."""
        found = ": ".join(shortened(part) for part in (self.where, self.said) if part)
        cause = self.cause or likely_cause(self.where)
        said, cause = " ".join(found.split()), " ".join(cause.split())[: MOST // 2]
        room = MOST - (len(cause) + 3 if cause else 0)  # the cause is what a long path must not push out
        said = said if len(said) <= room else f"{said[: room - 2]} …"
        return f"{said}{f' ({cause})' if cause else ''}".strip()

    def __str__(self) -> str:
        return f"{self.reason}: {self.said}" if self.said else self.reason


def shortened(text: str) -> str:
    """The text; of a picture that is written as text the beginning."""
    return f"{text[:40]} …" if len(text) > LONG and re.match(f"{AS_TEXT}|{PRINTED}", text) else text


def likely_cause(place: str) -> str:
    """The likely cause of an image that is not there, by its path; empty where none is known."""
    if re.match(r"(?!file:)[a-zA-Z][a-zA-Z0-9+.-]+://", place):
        return "a URL is no file: fetch the images first, with img2dataset say"
    if len(place) > LONG and re.match(AS_TEXT, place):
        return f"a picture written as text: {DECODE}"
    if re.match(PRINTED, place):
        return "what Python prints for a picture is no picture: write its bytes into a file or a parquet column"
    if "\\" in place:
        return "backslashes divide paths on Windows alone: write / instead"
    return ""


def listed(damage: Mapping[str, int], examples: Mapping[str, str], total: int) -> str:
    """One line for each kind of damage: the count, the kind, and the first example."""

    def line(reason: str) -> str:
        example = examples.get(reason)
        return f"{damage[reason]} × {reason} of {total}{f', the first: {example}' if example else ''}"

    return DAMAGE_LINE.join(["", *map(line, sorted(damage))]) if len(damage) > 1 else "".join(map(line, damage))


def counted(damage: Iterable[Any]) -> dict[str, int]:
    """The counts of damaged pairs, in all and by kind, as ``Batch.counts`` and a ``Tally`` hold them."""
    kinds = Counter(f"{KIND}{each.reason}" for each in damage)
    return {"damaged": kinds.total(), **kinds}


def first_examples(damage: Iterable[Any]) -> dict[str, str]:
    """The first example of each kind of damage, by reason."""
    found = dict[str, str]()
    for each in damage:
        found.setdefault(each.reason, each.example)
    return found


def intact(count: int, damaged: Collection[int]) -> Tensor:
    """The places of the pairs that are not damaged, among so many, ascending."""
    return torch.tensor([place for place in range(count) if place not in damaged], dtype=torch.int64)


def too_many(damaged: float, read: float, limit: float) -> bool:
    """Whether the damaged pairs exceed a share (``limit``) of the pairs read, counted as at least ``FLOOR``."""
    return damaged > limit * max(read, FLOOR)


class Tally:
    """Counts of pairs read and pairs damaged, by kind too, summed over a run and kept in its checkpoints.

    Args:
        name: of the split, for messages.
        limit: share of damaged pairs above which the run stops.
        what: is counted, for messages.

    Raises:
        DataError: the share of damaged pairs exceeds the limit.
    """

    def __init__(self, name: str, limit: float, what: str = "images read") -> None:
        self.name, self.limit, self.what = name, limit, what
        self.summed: dict[str, float] = {}
        self.examples: dict[str, str] = {}

    def add(self, counts: Mapping[str, float], examples: Mapping[str, str] | None = None) -> None:
        """Add the counts that come with a batch, and an example of each kind of damage, by reason."""
        self.examples = {**(examples or {}), **self.examples}
        for name, count in counts.items():
            self.summed[name] = self.summed.get(name, 0) + count
        damaged, read = self.summed.get("damaged", 0), self.summed.get("read", 0)
        if too_many(damaged, read, self.limit):
            shown = "".join(f"; {reason}: {example}" for reason, example in sorted(self.examples.items()))
            raise DataError(
                f"{self.name}: {damaged:.0f} of {read:.0f} {self.what} are damaged, more than max_damaged = "
                f"{self.limit:g} allows: mend the data, or raise max_damaged of the data set{shown}"
            )

    def counts(self) -> dict[str, float]:
        """The counts as metrics, ``data/…``; empty where nothing was counted."""
        return {f"data/{name}": count for name, count in self.summed.items() if not name.startswith(KIND)}

    @property
    def kinds(self) -> dict[str, float]:
        """The counts of damaged pairs by kind."""
        return {name.removeprefix(KIND): count for name, count in self.summed.items() if name.startswith(KIND)}

    def state_dict(self) -> dict[str, Any]:
        """The sums and the examples."""
        return {"summed": dict(self.summed), "examples": dict(self.examples)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.summed, self.examples = dict(state["summed"]), dict(state["examples"])
