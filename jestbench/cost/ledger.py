"""What was spent, on what, in exact integers; and the budget that ends a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jestbench.batch import PURPOSES, Pass, Purpose
from jestbench.cost.tracing import FLOPS_PER_MAC


class Ledger:
    """Multiply-adds by purpose. Filled by the loop alone, from the passes that stages report."""

    def __init__(self) -> None:
        self._macs: dict[Purpose, int] = dict.fromkeys(PURPOSES, 0)

    def charge(self, passes: Iterable[Pass]) -> None:
        """Add what these passes cost."""
        for item in passes:
            self._macs[item.purpose] += item.macs

    def state_dict(self) -> dict[Purpose, int]:
        """What a checkpoint keeps."""
        return self.macs

    def load_state_dict(self, state: Mapping[Purpose, int]) -> None:
        """Go on from a checkpoint."""
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

    def flops(self) -> dict[str, int]:
        """FLOPs by purpose, with ``total``."""
        return {"total": self.total} | {p: FLOPS_PER_MAC * macs for p, macs in self._macs.items()}

    def row(self) -> dict[str, int]:
        """The same as metrics: ``flops/…``, cumulative."""
        return {f"flops/{name}": value for name, value in self.flops().items()}
