"""Frozen models: run once a row, remembered. What a row holds is handed in (``RowContent``)."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from jestbench.batch import FULL, FULL_MIX, Batch, DataError, Mix, Pass, Purpose, View
from jestbench.cost.price import Price
from jestbench.data.damage import intact
from jestbench.disk import shown
from jestbench.engine.actor import Actor, EmbeddingModel, Met, Read, imagined_embeddings
from jestbench.engine.cache import Bound
from jestbench.engine.calibration import fit
from jestbench.engine.feed import on_device
from jestbench.engine.rows import KeyIndex, Rows, RunRows, Stored
from jestbench.engine.shared_rows import SharedRows
from jestbench.model.encoders import Encoders
from jestbench.model.views import own_terms
from jestbench.parallel.arithmetic import Arithmetic, to_device
from jestbench.parallel.traffic import TRAFFIC
from jestbench.select.given import pair_keys
from jestbench.select.losses import LossName
from jestbench.select.scores import NonFiniteScore, Role, Scores

Accounting = Literal["online", "first_sight", "amortised"]
RowName = Literal["image", "text", "pair"]
PURPOSES: Mapping[Role, Purpose] = {
    "reference": "reference_score",
    "scorer": "scorer_score",
    "learner": "learner_score",  # of a locked image tower
}


class RowFile(NamedTuple):
    """A file of rows that a run has kept: the process that wrote it, of how many, and the rows in it that count."""

    rank: int
    size: int
    rows: int


def keys_of(name: RowName, image_key_B: Tensor, text_key_B: Tensor) -> Tensor:
    """The keys that the rows of that name are found by, ``[B]``."""
    if name == "pair":
        return pair_keys(image_key_B, text_key_B)
    return image_key_B if name == "image" else text_key_B


def all_keys(names: Iterable[RowName], image_key_B: Tensor, text_key_B: Tensor) -> dict[RowName, Tensor]:
    """``keys_of`` each name."""
    return {name: keys_of(name, image_key_B, text_key_B) for name in names}


class RowContent(ABC):
    """What the rows of a frozen model hold: how they are computed, what they cost, what is made of them.

    Attributes:
        noun: for what a row holds, in messages.
        scored: the rows that the scores of a batch are made of.
        model: in eval mode, without gradient, on the device.
        view: the view that the model runs under; one for the whole run, since stored rows hold for one view only.
        widths: floats a row, by the rows' name; rows of width 1 are never rounded.
        width: of embeddings; 0 where the rows hold none.
    """

    noun: ClassVar[str]
    scored: ClassVar[tuple[RowName, ...]]
    widths: Mapping[RowName, int]
    width: int = 0

    model: Encoders

    def __init__(self, model: Encoders, arithmetic: Arithmetic, example: Batch, view: View = FULL) -> None:
        """Take a model.

        Args:
            model: the model.
            arithmetic: device and precision.
            example: its first pair is what prices are traced on.
            view: that the model is run under.
        """
        self.model, self.view = arithmetic.placed(model).eval().requires_grad_(False), view
        self.arithmetic, self.price = arithmetic, Price.of(self.model, self.model.tokenized(example), view)

    @abstractmethod
    def encode(self, name: RowName, batch: Batch) -> Tensor:
        """The rows ``[B, width]`` of a batch; what they are made of lies on the device."""

    @abstractmethod
    def passes(self, purpose: Purpose, counts: Mapping[RowName, int], microbatch: int) -> tuple[Pass, ...]:
        """What so many rows of each name cost."""

    @abstractmethod
    def scores(self, role: Role, rows: Mapping[RowName, Tensor]) -> Scores:
        """The scores of a super-batch, from its ``scored`` rows."""

    @abstractmethod
    def own_loss_C(self, loss: LossName, value_C: Tensor) -> Tensor:
        """The own losses of pairs, from their rows ``pair``, float64."""

    def rescale(self, scale: float, bias: float) -> None:
        """Set the model's t and b₀."""
        self.model.rescale(scale, bias)

    def pair_rows(self, actor: FrozenActor, image_key_C: Tensor, text_key_C: Tensor, read: Read) -> Tensor:
        """The rows ``pair`` of candidates, ``[C, 1]``; NaN where a pair is damaged."""
        return actor.tried_rows("pair", keys_of("pair", image_key_C, text_key_C), read)

    def imagined(self, role: Role, count: int, divisor: int, random: torch.Generator) -> Scores:
        """As ``Actor.imagined``."""
        return imagined_embeddings(role, count, self.width // divisor, random)


class FrozenActor(Actor):
    """A frozen model that scores super-batches, reports each pass, and stores the rows that it computes.

    The accounting decides what is *charged*: ``online`` charges every pass; ``first_sight`` charges each row when
    this run encounters it for the first time; ``amortised`` charges nothing (the cost goes to ``amortised_macs``).
    What is *computed* is a row that no store holds: with a shared cache the rows of all runs are reused, whatever the
    accounting; without one those of this run are, except under ``online``, which computes every row each time.

    Each process of a run keeps the rows that it has computed itself, in a file of its own. All keys that the run has
    encountered are kept apart from them, by every process alike, and rank 0 writes them: what is charged depends on no
    number of processes. A run that goes on with another number shares out the files of rows; a row that is in none of
    them is computed again, and not charged again.

    Args:
        role: ``reference`` or ``scorer``.
        content: the model, and what a row of it is.
        accounting: what is charged.
        store_dir: where the rows of this run lie.
        microbatch: examples that a tower sees at once.
        cache: the shared rows, where there are any.
        mix: the views that the model was trained under.
    """

    remembers = True

    def __init__(
        self,
        role: Role,
        content: RowContent,
        accounting: Accounting,
        store_dir: Path,
        microbatch: int,
        cache: Bound | None = None,
        mix: Mix = FULL_MIX,
    ) -> None:
        self.role, self.content, self.width, self.view = role, content, content.width, content.view
        self.trained_under = frozenset(own_terms(view, content.model) for _, view in mix)
        self.accounting, self.microbatch, self.cache = accounting, microbatch, cache or Bound()
        self.purpose, self.world = PURPOSES[role], content.arithmetic.world
        self.hits = 0
        self._rows: dict[str, Rows] = {}
        self._own: dict[str, RunRows] = {}  # of the rows, those in files of this process
        self._charged_keys: dict[str, RunRows] = {}
        self._earlier: dict[str, list[RowFile]] = {}  # of other numbers of processes than now
        self._store_dir, remembers = store_dir, accounting != "online"
        for name, width in content.widths.items():
            dtype: Stored = self.cache.dtype if width > 1 else "float32"
            if content.arithmetic.fp64 and dtype == "float32":
                dtype = "float64"
            if self.cache.folder is not None:
                self._rows[name] = self.cache.shared(name, width, dtype)
            elif remembers:
                file = self._file(name, self.world.rank, self.world.size)
                self._rows[name] = self._own[name] = RunRows(file, width, dtype)
            else:
                self._rows[name] = Rows(width, dtype)
            if remembers:
                self._charged_keys[name] = RunRows(self._file(name), 0, writes=self.world.first_of_all)
        self.cache.describe()

    def _file(self, name: str, *of: int) -> Path:
        """The file of the keys charged, or that of the rows of one process (``of`` its rank, and their number)."""
        process = "of".join(map(str, of))
        return self._store_dir / ".".join(part for part in (f"{self.purpose}-{name}", process, "bin") if part)

    def score(self, batch: Batch) -> Scores:
        """Scores of a super-batch, and the passes that they cost."""
        own, device = batch.own, self.content.arithmetic.device
        keys, own_keys = (all_keys(self.content.scored, part.image_key_B, part.text_key_B) for part in (batch, own))
        counts = {name: self._sighted(name, key_B) for name, key_B in keys.items()}

        found = {
            name: self.rows(name, key_P, (own.without_images() if name == "text" else own).take)
            for name, key_P in own_keys.items()
        }
        with TRAFFIC.sending("embeddings"):
            rows = batch.collect_all([to_device(row_PD, device) for row_PD in found.values()])
        scores = self.content.scores(self.role, dict(zip(found, rows, strict=True)))
        return replace(scores, model_passes=self._charged(counts))

    def forecast(self, count: int) -> tuple[Pass, ...]:
        """As ``Actor.forecast``."""
        return self._passes(dict.fromkeys(self.content.scored, count))

    def forecast_new(self, image_key_B: Tensor, text_key_B: Tensor, met: Met) -> tuple[Pass, ...]:
        """As ``Actor.forecast_new``."""
        keys = all_keys(self.content.scored, image_key_B, text_key_B)
        held = {name: met.setdefault((id(self), name), KeyIndex()) for name in keys}
        return self._passes({name: held[name].sight(key_B.numpy()) for name, key_B in keys.items()})

    def calibrate(self, loss: LossName, batches: Iterable[Batch], batch_size: int) -> tuple[Pass, ...]:
        """As ``Actor.calibrate``: scoring is charged like that of any pair, and the cosines of a batch once."""
        if self.role != "reference":
            return super().calibrate(loss, batches, batch_size)
        cosines, passes = [], list[Pass]()
        for batch in batches:
            scores, count = self.score(batch), len(batch)
            found = scores.side("reference")
            cosines.append(found.image_BD.double() @ found.text_BD.double().T)
            passes += [*scores.model_passes, Pass("pairwise", count * count * self.width, "logits of a calibration")]
        self._rescale(self.world.first(lambda: fit(cosines, loss, batch_size)))
        return tuple(passes)

    def _rescale(self, scale_and_bias: Sequence[float]) -> None:
        """Set the model's t and b₀."""
        scale, bias = scale_and_bias
        self.calibrated = ((scale, bias),)
        self.content.rescale(scale, bias)

    def own_loss(
        self, loss: LossName, image_key_C: Tensor, text_key_C: Tensor, read: Read, own_P: Tensor | None = None
    ) -> Tensor:
        """As ``Actor.own_loss``."""
        own_P = torch.arange(len(image_key_C)) if own_P is None else own_P
        if not len(own_P):
            return torch.empty(0, dtype=torch.float64)
        image_key_P, text_key_P = image_key_C[own_P], text_key_C[own_P]
        value_P1 = self.content.pair_rows(self, image_key_P, text_key_P, lambda index_M: read(own_P[index_M]))
        loss_P = self.content.own_loss_C(loss, value_P1[:, 0].cpu().double())
        return loss_P.masked_fill(loss_P.isnan(), torch.inf)

    def own_loss_passes(self, image_key_C: Tensor, text_key_C: Tensor) -> tuple[Pass, ...]:
        """As ``Actor.own_loss_passes``."""
        keys = all_keys(self.content.widths, image_key_C, text_key_C)
        return self._charged({name: self._sighted(name, key_C) for name, key_C in keys.items()})

    def forecast_own_loss(self, count: int) -> tuple[Pass, ...]:
        """As ``Actor.forecast_own_loss``."""
        return self._passes(dict.fromkeys(self.content.widths, count))

    def forecast_distinct(self, image_key_N: Tensor, text_key_N: Tensor) -> tuple[Pass, ...]:
        """What the own losses of pairs of these keys cost, each distinct row once."""
        keys = all_keys(self.content.widths, image_key_N, text_key_N)
        return self._passes({name: len(key_N.unique()) for name, key_N in keys.items()})

    def imagined(self, count: int, divisor: int, random: torch.Generator) -> Scores:
        """As ``Actor.imagined``."""
        return self.content.imagined(self.role, count, divisor, random)

    @property
    def frozen(self) -> tuple[EmbeddingModel, ...]:
        """Its own model."""
        return (self.content,)

    def missing(self, name: RowName, key_B: Tensor) -> Tensor:
        """Positions whose rows are to be computed."""
        return self._rows[name].missing(key_B)

    def rows(self, name: RowName, key_B: Tensor, source: Callable[[Tensor], Batch]) -> Tensor:
        """Rows ``[B, width]``: from the store, or computed from the pairs that ``source`` returns for positions."""
        return self.fetch(name, key_B, lambda index_M: self.encode(name, source(index_M)))

    def tried_rows(self, name: RowName, key_B: Tensor, read: Read) -> Tensor:
        """Rows as ``rows`` gives them, of pairs of which some may be damaged; those have rows of NaN."""

        def compute(index_M: Tensor) -> Tensor:
            batch, damaged = read(index_M)
            if not damaged:
                return self.encode(name, batch)
            row_MD = torch.full((len(index_M), self.content.widths[name]), torch.nan, dtype=torch.float64)
            whole_P = intact(len(index_M), damaged)
            if len(whole_P):
                row_MD[whole_P] = self.encode(name, batch.take(whole_P)).double()
            return row_MD

        return self.fetch(name, key_B, compute)

    def fetch(self, name: RowName, key_B: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows ``[B, width]``: found, or computed for positions."""
        row_BD, computed = self._rows[name].fetch(key_B, compute)
        self.hits += len(key_B) - computed
        return row_BD

    def encode(self, name: RowName, batch: Batch) -> Tensor:
        """The rows of a whole batch, computed in blocks of one size where other runs share them.

        Raises:
            NonFiniteScore: a value is NaN or infinite.
        """
        content, blocks = self.content, list(self._blocks(len(batch)))
        batch = batch if name == "image" else content.model.tokenized(batch)
        feed = on_device(
            [batch.take(index) for index, _ in blocks],
            content.arithmetic.device,
            None if name == "image" else content.model.tokenizer,
            keys=name == "image" and content.view.keep < 1,
        )
        with torch.no_grad(), content.arithmetic.autocast():
            rows = [content.encode(name, part)[:count] for part, (_, count) in zip(feed, blocks, strict=True)]
        row_ND = torch.cat(rows).cpu()  # where every store is; one wait for the device, with the check there
        if not bool(torch.isfinite(row_ND).all()):
            raise NonFiniteScore(f"the {self.role}'s {name} {self.content.noun} are NaN or infinite")
        return row_ND

    def _blocks(self, count: int) -> Iterator[tuple[Tensor, int]]:
        """Positions of ``count`` examples, block by block, and how many of each block are not padding.

        With a shared cache all blocks have one size: a short block repeats its last example.
        """
        block = self.cache.block
        for index in torch.arange(count).split(block or self.microbatch):
            real = len(index)
            yield (torch.cat([index, index[-1:].expand(block - real)]) if block and real < block else index), real

    def _sighted(self, name: str, key_B: Tensor) -> int:
        """How many rows are charged now: all, or one per distinct key that this run encounters for the first time."""
        charged = self._charged_keys.get(name)
        if charged is None:
            return len(key_B)
        new = charged.missing(key_B)
        if len(new):
            charged.add(key_B[new], torch.empty(len(new), 0))
        return len(new)

    def _passes(self, counts: Mapping[RowName, int]) -> tuple[Pass, ...]:
        """What so many rows cost."""
        return self.content.passes(self.purpose, counts, self.microbatch)

    def _charged(self, counts: Mapping[RowName, int]) -> tuple[Pass, ...]:
        """What so many rows are charged now; under ``amortised`` their cost is noted instead."""
        passes = self._passes(counts)
        if self.accounting != "amortised":
            return passes
        self.amortised_macs += sum(item.macs for item in passes)
        return ()

    def counts(self) -> dict[str, int]:
        """``cache/…``: rows found in a store, and failures of the shared cache."""
        failures = {"cache/failures": sum(rows.failures for rows in self._rows.values())}
        return {"cache/hits": self.hits} | (failures if self.cache.folder is not None else {})

    def state_dict(self) -> dict[str, Any]:
        """How many keys were charged, how many rows each file holds, and the counters; t and b₀ where fitted."""
        own = {name: store.saved() for name, store in self._own.items()}
        each = self.world.everybodys((own, self.hits))
        files = {name: [RowFile(rank, len(each), held[name]) for rank, (held, _) in enumerate(each)] for name in own}
        return {
            "charged": {name: store.saved() for name, store in self._charged_keys.items()},
            "rows": {name: [list(file) for file in (*self._earlier.get(name, ()), *files[name])] for name in own},
            "hits": sum(hits for _, hits in each),
            "amortised_macs": self.amortised_macs,
            **({"calibrated": self.calibrated[0]} if self.calibrated else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of any number of processes: what was stored after it is cut.

        Raises:
            DataError: the file of the keys charged has lost some, so that they would be charged again.
        """
        if "calibrated" in state:
            self._rescale(state["calibrated"])
        rank, size = self.world.rank, self.world.size
        for name, charged in self._charged_keys.items():
            if charged.load(count := state["charged"][name]) < count:
                raise DataError(
                    f"{shown(charged.path)} holds fewer than the checkpoint's {count} keys, by which pairs are charged "
                    "once: bring the file back, or start the run anew in another --run_dir"
                )
        for name, store in self._own.items():
            files = [RowFile(*file) for file in state["rows"][name]]
            self._earlier[name] = [file for file in files if file.size != size]
            # Files of other numbers of processes are dealt out to those that there are now.
            taken = [(self._file(name, file.rank, file.size), file.rows) for file in self._earlier[name][rank::size]]
            store.load(sum(file.rows for file in files if (file.rank, file.size) == (rank, size)), taken)
        self.hits = 0 if rank else state["hits"]
        self.amortised_macs = state["amortised_macs"]

    def _stores(self) -> list[RunRows]:
        """The stores that a run goes back in."""
        return [*self._charged_keys.values(), *self._own.values()]

    def mark(self) -> tuple[list[int], int, int]:
        """How many rows this process holds of each store, and the counters."""
        return [len(store) for store in self._stores()], self.hits, self.amortised_macs

    def rewind(self, mark: tuple[list[int], int, int]) -> None:
        """Go back to a mark: the rows added since are cut."""
        counts, self.hits, self.amortised_macs = mark
        for store, count in zip(self._stores(), counts, strict=True):
            store.rewind(count)

    def describe_cache(self) -> str:
        """What the shared cache holds, for people; empty where there is none."""
        shared = {name: rows for name, rows in self._rows.items() if isinstance(rows, SharedRows)}
        if not shared:
            return ""
        held = ", ".join(f"{len(rows):,} {name}s" for name, rows in shared.items())
        size = sum(rows.size for rows in shared.values())
        return f"{self.role} cache {self.cache.folder}: {held}, {size / 2**20:.1f} MiB"

    def close(self, remove: bool) -> None:
        """Print the size of the shared cache, close the stores, and remove the files of a run that has finished."""
        if said := self.describe_cache():
            print(said, file=sys.stderr)
        if remove and self.world.first_of_all:
            for name, files in self._earlier.items():
                for file in files:
                    self._file(name, file.rank, file.size).unlink(missing_ok=True)
        for store in (*self._rows.values(), *self._charged_keys.values()):  # the last one removes the folder
            store.close(remove)
