"""A batch whose rows are spread over the processes of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from jestbench.batch import Batch
from jestbench.parallel.distributed import World


@dataclass(frozen=True)
class SharedBatch(Batch):
    """A batch that is spread over processes.

    ``images_BCHW``, ``token_ids`` and ``captions`` hold this process's own rows; keys, marks and columns hold the rows
    of all processes, and length and positions refer to the whole batch.
    """

    size: int = 0
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        Batch(self.images_BCHW, self.token_ids, self.image_key_B[self.rows], self.text_key_B[self.rows])

    @classmethod
    def of(cls, own: Batch, size: int, world: World) -> SharedBatch:
        """Build the batch from each process's own rows."""
        return cls(
            images_BCHW=own.images_BCHW,
            token_ids=own.token_ids,
            image_key_B=world.collect(own.image_key_B, size),
            text_key_B=world.collect(own.text_key_B, size),
            marks={name: world.collect(mark, size) for name, mark in own.marks.items()},
            captions=own.captions,
            columns={name: world.collect(column, size) for name, column in own.columns.items()},
            passes=own.passes,
            counts=own.counts,
            size=size,
            world=world,
        )

    def __len__(self) -> int:
        return self.size

    @property
    def rows(self) -> Tensor:
        """Positions of this process's own rows in the whole batch."""
        return self.world.rows(self.size)

    @property
    def own(self) -> Batch:
        """The own rows, as a batch of this process alone."""
        return Batch(
            images_BCHW=self.images_BCHW,
            token_ids=self.token_ids,
            image_key_B=self.image_key_B[self.rows],
            text_key_B=self.text_key_B[self.rows],
            marks={name: mark[self.rows] for name, mark in self.marks.items()},
            captions=self.captions,
            columns={name: column[self.rows] for name, column in self.columns.items()},
        )

    def take(self, index_K: Tensor) -> SharedBatch:
        """The pairs at these positions, the same on every process; each row moves to the process that holds it next."""
        index_K = index_K.cpu()
        return SharedBatch(
            images_BCHW=self.world.exchange(self.images_BCHW, index_K),
            token_ids={name: self.world.exchange(ids, index_K) for name, ids in self.token_ids.items()},
            image_key_B=self.image_key_B[index_K],
            text_key_B=self.text_key_B[index_K],
            marks={name: mark[index_K] for name, mark in self.marks.items()},
            columns={name: column[index_K] for name, column in self.columns.items()},
            size=len(index_K),
            world=self.world,
        )

    def everywhere(self, index_P: Tensor) -> Batch:
        """The pairs at a few positions, captions included, gathered on every process."""
        size, rank = self.world.size, self.world.rank
        held = index_P[index_P % size == rank]
        parts = self.world.everybodys((held, self.own.take(held // size)))
        place_P = torch.cat([positions for positions, _ in parts]).argsort()[index_P.argsort().argsort()]
        batches = [batch for _, batch in parts]
        return Batch(
            images_BCHW=torch.cat([batch.images_BCHW for batch in batches])[place_P],
            token_ids={},
            image_key_B=self.image_key_B[index_P],
            text_key_B=self.text_key_B[index_P],
            marks={name: mark[index_P] for name, mark in self.marks.items()},
            captions=tuple([c for batch in batches for c in batch.captions][i] for i in place_P.tolist()),
        )
