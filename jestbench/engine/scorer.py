"""Scores super-batches with the actors that a policy needs; models run only here and in the update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.batch import COLUMN, Batch, DataError
from jestbench.engine.actor import Actor
from jestbench.parallel import distributed
from jestbench.select.given import GIVEN, NO_WORD, Moment, equal_groups, pair_keys, word_ids
from jestbench.select.losses import EqualRule, LossName
from jestbench.select.memory import Memory
from jestbench.select.scores import Role, Scores


class Scorer:
    """Scores of super-batches by the actors of a run.

    Args:
        actors: by role, in the order in which they score.
        loss: which pair losses the scores are differences of.
        equal: what equal pairs are to each other, ``run.equal``.
    """

    def __init__(self, actors: Mapping[Role, Actor], loss: LossName, equal: EqualRule = "negative") -> None:
        self.actors, self.loss, self.equal = actors, loss, equal

    def __call__(
        self, batch: Batch, needs: frozenset[str], progress: Moment | None = None, memory: Memory | None = None
    ) -> Scores:
        """The scores of exactly the roles and columns in ``needs``, with the passes that they cost.

        Args:
            batch: the super-batch.
            needs: of the policy.
            progress: how far the run is.
            memory: of the policy.

        Raises:
            DataError: captions are needed, and the pairs come without.
        """
        columns = {f"{COLUMN}{name}": column for name, column in batch.columns.items() if f"{COLUMN}{name}" in needs}
        assert needs <= self.actors.keys() | columns.keys() | set(GIVEN), "a run is built with what its policy needs"
        found = [actor.score(batch) for role, actor in self.actors.items() if role in needs]
        device = next((part.device for part in found), torch.device("cpu"))
        values = {name: column.to(device) for name, column in columns.items()}
        parts = [*found, *([Scores(values=values)] if values else [])]
        scores = Scores.joined(parts, len(batch), self.loss, distributed.world())
        given: dict[str, Any] = {}
        if found and self.equal != "negative":
            group_B = equal_groups(batch.image_key_B, batch.text_key_B).to(device)
            given |= {"group_B": group_B, "equal": self.equal}
        if needs & {"keys", "memory"}:
            key_B = pair_keys(batch.image_key_B, batch.text_key_B)
            given |= {"key_B": key_B.to(device)} if "keys" in needs else {}
            if "memory" in needs and memory is not None:
                given["memory"] = {name: value_B.to(device) for name, value_B in memory.read(key_B).items()}
        if "captions" in needs:
            given["words_BL"] = _words(batch).to(device)
        if "progress" in needs:
            given["progress"] = progress or Moment()
        return replace(scores, **given) if given else scores

    def cache_counts(self) -> dict[str, int]:
        """``cache/…``, summed over the actors; ``cache/hits`` always."""
        found = Counter({"cache/hits": 0})
        for actor in self.actors.values():
            found.update(actor.counts())
        return dict(found)


def _words(batch: Batch) -> Tensor:
    """The word ids ``[B, L]`` of all captions, whichever process holds them; ``DataError`` where there are none."""
    if not batch.own.captions and len(batch.own):
        raise DataError("the policy needs 'captions', and these pairs come without")
    own_PL = word_ids(batch.own.captions)
    longest = max(distributed.world().everybodys(own_PL.shape[1]))
    padded_PL = F.pad(own_PL, (0, longest - own_PL.shape[1]), value=NO_WORD)
    return batch.collect(padded_PL)
