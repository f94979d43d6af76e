"""Scores super-batches with the actors that a policy needs; models run only here and in the update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from jestbench.batch import COLUMN, Batch
from jestbench.engine.actor import Actor
from jestbench.select.losses import LossName
from jestbench.select.scores import Role, Scores


class Scorer:
    """Scores of super-batches by the actors of a run.

    Args:
        actors: by role, in the order in which they score.
        loss: which pair losses the scores are differences of.
    """

    def __init__(self, actors: Mapping[Role, Actor], loss: LossName) -> None:
        self.actors, self.loss = actors, loss

    def __call__(self, batch: Batch, needs: frozenset[str]) -> Scores:
        """The scores of exactly the roles and columns in ``needs``, with the passes that they cost."""
        columns = {f"{COLUMN}{name}": column for name, column in batch.columns.items() if f"{COLUMN}{name}" in needs}
        assert needs <= self.actors.keys() | columns.keys(), "a run is built with what its policy needs"
        found = [actor.score(batch) for role, actor in self.actors.items() if role in needs]
        device = next((part.device for part in found), torch.device("cpu"))
        values = {name: column.to(device) for name, column in columns.items()}
        return Scores.joined([*found, *([Scores(values=values)] if values else [])], len(batch), self.loss)

    def cache_counts(self) -> dict[str, int]:
        """``cache/…``, summed over the actors; ``cache/hits`` always."""
        found = Counter({"cache/hits": 0})
        for actor in self.actors.values():
            found.update(actor.counts())
        return dict(found)
