"""A batch whose rows are spread over the processes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jestbench.batch import Batch, row_by_row, together
from jestbench.parallel.distributed import World
from jestbench.parallel.placement import Placement

_SHARED = ("marks", "columns")  # fields, besides the keys, of which every process holds the rows of all


@dataclass(frozen=True)
class SharedBatch(Batch):
    """A batch that is spread over processes.

    ``images_BCHW``, ``token_ids`` and ``captions`` hold this process's own rows; keys, marks and columns hold the rows
    of all processes, and length and positions refer to the whole batch.

    Attributes:
        placement: which process holds each row.
        device: that images are brought to when pairs are taken, and through which they move.
    """

    placement: Placement = field(default_factory=lambda: Placement.in_turns(0, World()))
    device: str = "cpu"

    def __post_init__(self) -> None:
        Batch(self.images_BCHW, self.token_ids, self.image_key_B[self.rows], self.text_key_B[self.rows])

    @classmethod
    def of(cls, own: Batch, placement: Placement, device: str = "cpu") -> SharedBatch:
        """Build the batch from each process's own rows."""
        described = iter(placement.collect_all([*own.keys, *own.marks.values(), *own.columns.values()]))
        return cls(
            images_BCHW=own.images_BCHW,
            token_ids=own.token_ids,
            captions=own.captions,
            passes=own.passes,
            counts=own.counts,
            placement=placement,
            device=device,
            **row_by_row(lambda _: next(described), own, named=_SHARED),
        )

    def __len__(self) -> int:
        return len(self.placement)

    @property
    def rows(self) -> Tensor:
        """Positions of this process's own rows in the whole batch, ascending."""
        return self.placement.rows

    @property
    def rank_B(self) -> Tensor:
        """Rank of the process that holds each pair."""
        return self.placement.rank_B

    def collect(self, own_PX: Tensor) -> Tensor:
        """All-gather the rows of all processes: ``[B, …]`` in the order of their positions, without gradient."""
        return self.placement.collect(own_PX)

    def collect_all(self, own: Sequence[Tensor]) -> list[Tensor]:
        """As ``collect``, of some tensors on one device by one collective."""
        return self.placement.collect_all(own)

    def collect_with_gradient(self, *own: Tensor) -> tuple[Tensor, ...]:
        """As ``collect_all``, with a gradient: backward returns the gradient of the own rows."""
        return self.placement.collect_with_gradient(*own)

    @property
    def own(self) -> Batch:
        """The own rows, as a batch of this process alone."""
        return Batch(
            images_BCHW=self.images_BCHW,
            token_ids=self.token_ids,
            captions=self.captions,
            **row_by_row(lambda rows_BX: rows_BX[self.rows], self, named=_SHARED),
        )

    def take(self, index_K: Tensor, parts: Sequence[int] = ()) -> SharedBatch:
        """The pairs at these positions, the same on every process; as few as balance allows change their process."""
        index_K = index_K.cpu()
        to = self.placement.taken(index_K, parts)
        return SharedBatch(
            images_BCHW=self.placement.exchange(self.images_BCHW, index_K, to, torch.device(self.device)),
            token_ids={name: self.placement.exchange(ids, index_K, to) for name, ids in self.token_ids.items()},
            placement=to,
            device=self.device,
            **row_by_row(lambda rows_BX: rows_BX[index_K], self, named=_SHARED),
        )

    def everywhere(self, index_P: Tensor) -> Batch:
        """The pairs at a few positions, captions included, gathered on every process."""
        world = self.placement.world
        place_H = (self.placement.rank_B[index_P] == world.rank).nonzero().flatten()
        parts = world.everybodys((place_H, self.own.take(self.placement.local_B[index_P[place_H]])))
        place_P = torch.cat([places for places, _ in parts])  # of the pairs as they were gathered
        return together([batch for _, batch in parts]).take(place_P.argsort())  # the inverse of that order
