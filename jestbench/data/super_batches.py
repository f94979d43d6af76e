"""Super-batches: a plan of positions by step, a fetch from positions to pairs, the processes that share the pairs.

The order is a function of seed, sizes and step alone, so every scoring policy gets the same super-batches, and
resuming needs only the step.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import Batch, DataError, with_rows
from jestbench.data.damage import Tally, counted, first_examples, intact
from jestbench.data.fetch import Attempt, Fetch, Positions, WorkerFetch
from jestbench.data.loader import Loader
from jestbench.data.pairs import IndexedPairs, ReadPairs
from jestbench.data.tries import Replacements
from jestbench.data.workers import Workers
from jestbench.model.tokenizer import Tokenizer
from jestbench.parallel.distributed import World
from jestbench.parallel.placement import Placement
from jestbench.parallel.shared_batch import SharedBatch

Leave = Callable[[Tensor, int], Tensor]
"""The keys of all pairs ``[N]`` and the epoch that begins → which pairs are left out of it, bool ``[N]``."""


Waits = tuple[bool, float, int]
"""Whether a process has workers, the seconds that it waited for pairs, and the number of workers that it lost."""


class SuperBatchSource(ABC):
    """The super-batch of each step, spread over the processes of a run.

    Args:
        tokenizer: makes the token ids of the batches.
        tally: counts the pairs that all processes read; it is the same on every process.
        pool: number of pairs to draw from; ``None`` for a stream.
        size: B, pairs of a super-batch.
        world: the processes that share each super-batch.
        workers: worker processes that read ahead for this process; ``None`` where it reads itself.
        device: that the run is on.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tally: Tally,
        pool: int | None,
        size: int,
        world: World | None,
        workers: Workers[Any, Any] | None,
        device: str = "cpu",
    ) -> None:
        self.tokenizer, self.tally, self.pool, self.size = tokenizer, tally, pool, size
        self.world, self.workers, self.device = world or World(), workers, device
        self._waited, self._restarts = 0.0, 0

    @property
    def restarts(self) -> int:
        """Number of this process's workers lost and replaced, including before a resume."""
        return self._restarts + (0 if self.workers is None else self.workers.restarts)

    @property
    def sources(self) -> Mapping[str, EpochPlan]:
        """The plan of each split of a mixture, by name; empty where the pairs are drawn from one split."""
        return {}

    @property
    def uid_of(self) -> Mapping[int, str]:
        """The uids of the super-batch read last, by image key, where its pairs have none to be looked up by later."""
        return {}

    @property
    def damage(self) -> dict[str, tuple[int, str]]:
        """Of each kind of damage that was read: the count, and the first example."""
        return {kind: (int(count), self.tally.examples.get(kind, "")) for kind, count in self.tally.kinds.items()}

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [] if self.workers is None else self.workers.pids

    def epoch(self, step: int) -> int:
        """Completed passes over the pairs before a step that was just read."""
        return 0

    def left_out(self) -> int:
        """Pairs that the policy has left out of the epoch."""
        return 0

    def begin(self, step: int, leave: Leave) -> None:  # noqa: B027
        """Before a step: begin the next epoch where one has ended, and ask which pairs are left out of it."""

    def at(self, step: int) -> Batch:
        """The super-batch of a step; steps are asked for in order.

        Raises:
            DataError: the data is wrong, too much of it is damaged, or workers were lost again and again.
        """
        begin = time.perf_counter()
        own, placement = self._read(step)
        self._waited += time.perf_counter() - begin
        return own if self.world.size == 1 else SharedBatch.of(own, placement, self.device)

    @property
    def waits(self) -> Waits:
        """This process's waits, of which ``counts`` takes those of all processes."""
        return self.workers is not None, self._waited, self.restarts

    def counts(self, step: int, each: Sequence[Waits] | None = None) -> dict[str, float]:
        """Counts of pairs until this step, ``data/…``, and the seconds that the run waited for pairs.

        ``each`` are the ``waits`` of all processes; they are gathered here where it is ``None``.
        """
        counts, each = self._counts(step), self.world.everybodys(self.waits) if each is None else each
        if any(reads_ahead for reads_ahead, _, _ in each):
            waited = max(seconds for _, seconds, _ in each)  # every step waits for the process that waits the longest
            counts |= {"time/data_wait": round(waited, 6), "data/worker_restarts": sum(lost for *_, lost in each)}
        return counts

    def state_dict(self) -> dict[str, Any]:
        """The state, kept beside the step in a checkpoint; the same for any number of processes and of workers."""
        each = self.world.everybodys((self._waited, self.restarts))
        waited, restarts = max(seconds for seconds, _ in each), sum(lost for _, lost in each)
        return self.mark() | {"waited": waited, "restarts": restarts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of any number of processes, with any number of workers."""
        self.rewind({**state, "restarts": state["restarts"] if self.world.first_of_all else 0})

    def mark(self) -> dict[str, Any]:
        """The state of this process."""
        return {"waited": self._waited, "restarts": self.restarts, **self._state_dict()}

    def rewind(self, mark: Mapping[str, Any]) -> None:
        """Go back to a mark of this process."""
        # A live run that goes back counts the workers which it has lost already.
        self._waited, self._restarts = mark["waited"], mark["restarts"] - self.restarts + self._restarts
        self._load_state_dict(mark)

    def close(self) -> None:
        """End the workers."""
        if self.workers is not None:
            self.workers.close()

    @abstractmethod
    def _read(self, step: int) -> tuple[Batch, Placement]:
        """This process's own rows of the super-batch, and which process holds each row."""

    @abstractmethod
    def _counts(self, step: int) -> dict[str, float]:
        """Counts of all processes, the same on each of them."""

    @abstractmethod
    def _state_dict(self) -> dict[str, Any]:
        """The state that is the same on every process (tensors, numbers, strings, and lists or dicts of these)."""

    @abstractmethod
    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``_state_dict``."""


class StepPlan(ABC):
    """A plan of the pairs of a split that make up each step's super-batch.

    Attributes:
        pairs: the split.
        size: B, pairs of a super-batch.
        seed: seed of the run.
        reads: whether pairs are read to choose positions. Such a plan is computed when its step has come, by all
            processes together: each reads its share of these pairs.
    """

    reads: bool = False
    pairs: IndexedPairs
    size: int
    seed: int

    @property
    def sources(self) -> Mapping[str, EpochPlan]:
        """The plan of each split of a mixture, by name; empty where the pairs are drawn from one split."""
        return {}

    @abstractmethod
    def positions(self, step: int, read: Callable[[Positions], ReadPairs]) -> Positions:
        """The positions of a step's super-batch; ``read`` gives the pairs at any positions."""

    @abstractmethod
    def skipped(self, step: int) -> int:
        """Pairs left out as tails of the epochs completed before a step."""

    @abstractmethod
    def epoch(self, step: int) -> int:
        """Completed passes over the pairs before a step; of a mixture, over the split that is walked most often."""

    def begin(self, step: int, leave: Leave | None) -> None:  # noqa: B027
        """Begin an epoch, where one ends before the step; ``leave`` is asked which pairs are left out of it."""

    def left_out(self) -> int:
        """Pairs that are left out of the epoch."""
        return 0

    def known_until(self, step: int) -> int | None:
        """The last step whose positions can be known at a step; ``None`` where all can."""
        return None

    def counts(self) -> dict[str, float]:
        """Counts beside ``skipped``, ``data/…``."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the positions depend on beside the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from a checkpoint."""


@dataclass(frozen=True, eq=False)
class EpochPlan(StepPlan):
    """A plan in which each epoch is one permutation of the split, cut into super-batches.

    The tail that does not fill a super-batch is left out, and differs between epochs. No super-batch spans two epochs
    or holds a pair twice.

    Raises:
        DataError: the split holds fewer pairs than one super-batch needs.
    """

    pairs: IndexedPairs
    size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.pairs) < self.size:
            raise DataError(
                f"{self.pairs.name} holds {len(self.pairs)} pairs, fewer than the {self.size} of one "
                "super-batch: lower run.super_batch_size (or run.batch_size), or take more data"
            )

    @property
    def per_epoch(self) -> int:
        """Super-batches of an epoch."""
        return len(self.pairs) // self.size

    def positions(self, step: int, read: Callable[[Positions], ReadPairs] | None = None) -> Positions:
        """The positions of a step's super-batch."""
        epoch, number = divmod(step, self.per_epoch)
        index_B = self._order_of(epoch)[number * self.size : (number + 1) * self.size]
        return Positions(epoch, self.pairs.at_step(step, index_B))

    def epoch(self, step: int) -> int:
        """Completed passes before a step."""
        return step // self.per_epoch

    def skipped(self, step: int) -> int:
        """Pairs left out as tails of the epochs completed before a step."""
        return (step // self.per_epoch) * (len(self.pairs) - self.per_epoch * self.size)

    @cached_property
    def _order_of(self) -> Callable[[int], Tensor]:
        """The permutation of an epoch; of the epoch that is read and of the next one it is kept."""

        @lru_cache(maxsize=2)
        def order(epoch: int) -> Tensor:
            return torch.randperm(len(self.pairs), generator=seeds.generator(self.seed, "data", epoch))

        return order


class SuperBatches(SuperBatchSource):
    """The super-batches of a plan.

    Args:
        plan: which pairs each step has.
        fetch: reads them; by default in this process.
        world: the processes that share each super-batch; by default this one alone.
        device: that the run is on.
    """

    def __init__(
        self, plan: StepPlan, fetch: Fetch | None = None, world: World | None = None, device: str = "cpu"
    ) -> None:
        self.plan, self.fetch = plan, fetch or Fetch(plan.pairs, plan.seed)
        pairs = plan.pairs
        tally = Tally(pairs.name, pairs.max_damaged)
        super().__init__(pairs.tokenizer, tally, len(pairs), plan.size, world, self.fetch.workers, device)
        self._own = Counter[str]()  # of this process, not in the tally yet
        self._examples = dict[str, str]()  # of the damage among them

    @classmethod
    def of(
        cls, plan: StepPlan, loader: Loader, device: str = "cpu", world: World | None = None, pair_bytes: int = 0
    ) -> SuperBatches:
        """The super-batches of a plan, read with a loader's settings for a run on a device.

        ``pair_bytes`` are those of a pair's images, by which ``loader.prefetch_bytes`` bounds what is read ahead; 0: it
        is not bounded. They are handed in, since a pair that is read here could hang or fail before there is a worker.
        """
        workers = loader.workers_for(plan.pairs.decoded)
        if not workers:
            return cls(plan, None, world, device)
        own = -(-plan.size // (world or World()).size)
        ahead = 0 if plan.reads else loader.pairs_ahead(own, pair_bytes) // own
        return cls(plan, WorkerFetch(plan.pairs, plan.seed, workers, loader, ahead, device), world, device)

    @property
    def sources(self) -> Mapping[str, EpochPlan]:
        """Those of the plan."""
        return self.plan.sources

    def epoch(self, step: int) -> int:
        """That of the plan."""
        return self.plan.epoch(step)

    def left_out(self) -> int:
        """Those of the plan."""
        return self.plan.left_out()

    def begin(self, step: int, leave: Leave) -> None:
        """Begin the next epoch of the plan where one has ended."""
        self.plan.begin(step, leave)

    def _read(self, step: int) -> tuple[Batch, Placement]:
        found = self.fetch.at(step, self._positions, self.plan.known_until(step))
        assert found.positions.placement is not None
        return self._mended(found), found.positions.placement

    def _positions(self, step: int) -> Positions:
        positions = self.plan.positions(step, self._candidates)
        return replace(positions, placement=positions.placement or Placement.in_turns(self.size, self.world))

    def _candidates(self, positions: Positions) -> ReadPairs:
        """The pairs of which a plan chooses, and the damage: read by this process alone, counted with the next step."""
        found = self.fetch.attempt(positions)
        batch, damaged = found.batch, found.damaged
        self._own.update({"decoded": len(batch), **batch.counts})
        if batch.counts:
            self._own.update(counted(damaged.values()))
            self._own["wordless"] += self._wordless(batch, damaged)
            self._examples = {**first_examples(damaged.values()), **self._examples}
        return batch, damaged

    def _wordless(self, batch: Batch, damaged: Mapping[int, Any]) -> int:
        """How many of the whole pairs have a caption without a token."""
        ids = batch.tokens(self.tokenizer.identity)
        return self.tokenizer.wordless(ids[intact(len(ids), damaged)] if damaged else ids)

    def _mended(self, found: Attempt) -> Batch:
        """This process's pairs, damaged ones replaced as one process would that reads the whole super-batch.

        Which pairs are damaged is gathered, and what was counted is summed over the processes. Which pairs stand for
        the damaged ones depends on the whole super-batch: rank 0 reads them, one after the other, and broadcasts them.
        """
        batch, placement = found.batch, found.positions.placement
        assert placement is not None
        own = self._own
        own["decoded"] += len(batch)
        if batch.counts:  # those of files; what was prepared here is whole
            own.update({**batch.counts, "wordless": self._wordless(batch, found.damaged)})
        lost = {int(placement.rows[place]): error for place, error in found.damaged.items()}
        each = self.world.everybodys((lost, dict(own), self._examples, (set(batch.marks), set(batch.columns))))
        self._own, self._examples = Counter(), {}
        marks, columns = (set.intersection(*held) for held in zip(*(names for *_, names in each), strict=True))
        counts = Counter[str]()
        for _, part, *_ in each:
            counts.update(part)
        examples = {kind: one for _, _, part, _ in reversed(each) for kind, one in part.items()}
        if lost := dict(sorted(item for part, *_ in each for item in part.items())):
            stands = self.world.first(lambda: Replacements.found(found.pairs, lost, found.positions.index_B))
            counts.update({**stands.counts, "wordless": self._wordless(stands.rows, {})})
            examples = {**examples, **stands.examples}
            if found.damaged:
                slot_K = torch.tensor([*found.damaged])
                rows = stands.rows.take((placement.rank_B[[*lost]] == self.world.rank).nonzero().flatten())
                batch = with_rows(batch, slot_K, found.pairs.shown(rows, found.positions.own_P[slot_K]))
        self.tally.add(counts if "read" in counts else {"decoded": counts["decoded"]}, examples)
        return replace(
            batch,
            marks={name: mark for name, mark in batch.marks.items() if name in marks},
            columns={name: column for name, column in batch.columns.items() if name in columns},
            passes=found.positions.passes,
        )

    def _counts(self, step: int) -> dict[str, float]:
        counts = {"data/skipped": self.plan.skipped(step), **self.tally.counts(), **self.plan.counts()}
        decoded = counts.pop("data/decoded", 0)
        return counts | ({"data/decoded": decoded} if self.plan.reads else {})

    def _state_dict(self) -> dict[str, Any]:
        return {"tally": self.tally.state_dict(), "plan": self.plan.state_dict()}

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tally.load_state_dict(state["tally"])
        self.plan.load_state_dict(state["plan"])
        self.fetch.forget()
