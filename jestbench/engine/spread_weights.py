"""Weights that are spread over processes (``run.shard``): what is gathered at once, and a forecast of what is sent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from jestbench.batch import View
from jestbench.model.towers import TwoTowers
from jestbench.parallel.traffic import gathered

Passes = Callable[[int], tuple[Sequence[View], bool]]
"""Number of processes → ``Objective.passes_through``."""


def spread_parts(model: TwoTowers) -> list[tuple[nn.Module, list[nn.Module]]]:
    """The towers that are spread, each with its blocks, which are gathered one at a time."""
    parts: list[tuple[nn.Module, list[nn.Module]]] = [(model.text, [*model.text.blocks])]
    if not model.locked:
        parts.append((model.image, [*model.image.blocks] if model.image.transformer else []))
    return parts


@dataclass(frozen=True)
class _Weight:
    """A weight of a tower.

    Attributes:
        rows: that are dealt out to the processes.
        row_bytes: of each of them.
        run: views under which its block is run; ``None`` where it is in no block, and is gathered for a whole pass.
        trained: views under which it has a gradient.
    """

    rows: int
    row_bytes: int
    run: frozenset[View] | None
    trained: frozenset[View]

    def own(self, processes: int) -> int:
        """Bytes of one process's part, which is padded to that of the first process."""
        return -(-self.rows // processes) * self.row_bytes

    def gathers(self, pieces: Sequence[View], cached: bool) -> int:
        """How often it is gathered in an update: of a block for each pass forward and backward, else until backward."""
        if self.run is None:
            return len(pieces) if cached else 1
        return (3 if cached else 2) * sum(view in self.run for view in pieces)

    def reductions(self, pieces: Sequence[View], cached: bool) -> int:
        """How often its gradient is reduced in an update: once for each backward pass, which sums over the pieces."""
        found = sum(view in self.trained for view in pieces)
        return found if cached else min(1, found)


@dataclass(frozen=True)
class SpreadWeights:
    """What an update, and scoring before it, sends of the weights of one model in training.

    Attributes:
        weights: of the towers that are spread.
        passes: through the towers in an update.
        scored: whether the model scores a super-batch before it, for which all weights are gathered once.
    """

    weights: tuple[_Weight, ...]
    passes: Passes
    scored: bool

    @classmethod
    def of(cls, model: TwoTowers, views: Collection[View], passes: Passes, scored: bool) -> SpreadWeights:
        """Take the weights of a model that is trained under some views."""
        trained = model.trained_by(views)
        names = {id(value): name for name, value in model.named_parameters()}

        def under(value: Tensor) -> frozenset[View]:
            return frozenset(view for view, those in trained.items() if names[id(value)] in those)

        found, blocks = list[_Weight](), set[int]()
        for tower, parts in spread_parts(model):
            for block in parts:
                held = list(block.parameters())
                run = frozenset[View]().union(*map(under, held))
                found += [_Weight(len(value), value[:1].nbytes, run, under(value)) for value in held]
                blocks |= set(map(id, held))
            rest = [value for value in tower.parameters() if id(value) not in blocks]
            found += [_Weight(len(value), value[:1].nbytes, None, under(value)) for value in rest]
        return cls(tuple(found), passes, scored)

    def sent(self, processes: int) -> tuple[int, int]:
        """Bytes that each process sends in a step: in all-gathers of weights, and in reduce-scatters of gradients.

        A reduce-scatter sends as much as an all-gather of its result.
        """
        pieces, cached = self.passes(processes)
        weights = sum(each.own(processes) * (self.scored + each.gathers(pieces, cached)) for each in self.weights)
        gradients = sum(each.own(processes) * each.reductions(pieces, cached) for each in self.weights)
        return gathered(weights, processes), gathered(gradients, processes)
