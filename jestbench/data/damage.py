"""Damaged pairs of a data set: the reason, the count, and the share that stops a run."""

from __future__ import annotations

from collections.abc import Mapping

from jestbench.batch import DataError

FLOOR = 1000
"""A share of damaged pairs is taken of at least this many pairs: one damaged pair in a small set is no evidence."""


class Damaged(Exception):
    """A pair is unusable; ``reason`` is the category that is counted, ``said`` the detail for the message."""

    def __init__(self, reason: str, said: str = "") -> None:
        super().__init__(reason, said)  # both: an exception is pickled by its arguments
        self.reason = reason
        self.said = said

    def __str__(self) -> str:
        return f"{self.reason}: {self.said}" if self.said else self.reason


def too_many(damaged: float, read: float, limit: float) -> bool:
    """Whether the damaged pairs exceed a share (``limit``) of the pairs read, counted as at least ``FLOOR``."""
    return damaged > limit * max(read, FLOOR)


class Tally:
    """Counts of pairs read and pairs damaged, summed over a run and kept in its checkpoints.

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

    def add(self, counts: Mapping[str, float]) -> None:
        """Add the counts that come with a batch."""
        for name, count in counts.items():
            self.summed[name] = self.summed.get(name, 0) + count
        damaged, read = self.summed.get("damaged", 0), self.summed.get("read", 0)
        if too_many(damaged, read, self.limit):
            raise DataError(
                f"{self.name}: {damaged:.0f} of {read:.0f} {self.what} are damaged, more than max_damaged = "
                f"{self.limit:g} allows: mend the data, or raise max_damaged of the data set"
            )

    def counts(self) -> dict[str, float]:
        """The counts as metrics, ``data/…``; empty where nothing was counted."""
        return {f"data/{name}": count for name, count in self.summed.items()}

    def state_dict(self) -> dict[str, float]:
        """The sums."""
        return dict(self.summed)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from the sums of a checkpoint."""
        self.summed = dict(state)
