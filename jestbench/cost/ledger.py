"""The multiply-adds that a run has spent, by purpose, in exact integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jestbench.batch import PURPOSES, Pass, Purpose
from jestbench.cost.tracing import FLOPS_PER_MAC


def flops_of(passes: Iterable[Pass]) -> int:
    """FLOPs of passes, whatever their purposes."""
    return FLOPS_PER_MAC * sum(item.macs for item in passes)


class Ledger:
    """Multiply-adds by purpose, charged from the passes that stages and evaluations return."""

    def __init__(self) -> None:
        self._macs: dict[Purpose, int] = dict.fromkeys(PURPOSES, 0)

    def charge(self, passes: Iterable[Pass]) -> None:
        """Add the multiply-adds of these passes."""
        for item in passes:
            self._macs[item.purpose] += item.macs

    def state_dict(self) -> dict[Purpose, int]:
        """Multiply-adds by purpose, for a checkpoint."""
        return self.macs

    def load_state_dict(self, state: Mapping[Purpose, int]) -> None:
        """Restore the multiply-adds of a checkpoint."""
        self._macs = {purpose: state[purpose] for purpose in PURPOSES}

    @property
    def macs(self) -> dict[Purpose, int]:
        """Multiply-adds by purpose (a copy)."""
        return dict(self._macs)

    @property
    def macs_total(self) -> int:
        """Multiply-adds of everything but evaluation."""
        return sum(macs for purpose, macs in self._macs.items() if purpose != "eval")

    @property
    def total(self) -> int:
        """FLOPs of everything but evaluation."""
        return FLOPS_PER_MAC * self.macs_total

    @property
    def with_evaluation(self) -> int:
        """FLOPs of everything."""
        return FLOPS_PER_MAC * sum(self._macs.values())

    def flops(self) -> dict[str, int]:
        """FLOPs by purpose, with ``total``."""
        return {"total": self.total} | {p: FLOPS_PER_MAC * macs for p, macs in self._macs.items()}

    def row(self) -> dict[str, int]:
        """``flops`` as metrics named ``flops/…``, cumulative."""
        return {f"flops/{name}": value for name, value in self.flops().items()}
