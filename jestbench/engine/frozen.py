"""Frozen models: loaded from a run folder, run once a pair, remembered."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.batch import FULL, Batch, Pass, Purpose, View
from jestbench.cost.price import Price
from jestbench.engine.cache import Bound
from jestbench.engine.rows import Rows, RunRows, SharedRows, Stored, pair_key_B
from jestbench.model.towers import TwoTowers
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.parallel.distributed import World
from jestbench.select.losses import LossName
from jestbench.select.scores import Embeddings, NonFiniteScore

Accounting = Literal["online", "first_sight", "amortised"]
Tower = Literal["image", "text"]
Read = Callable[[Tensor], Batch]
"""Positions → those pairs, decoded."""


class Remembering:
    """What frozen models have in common: rows that are found again, and what is charged for those that are not.

    Accounting is about what is *charged*: ``online`` charges every pass; ``first_sight`` charges what this
    run meets for the first time; ``amortised`` charges nothing (its cost is in ``amortised_macs``). What is
    *run* depends on the rows that are found: those of this run, but under ``online`` (where all is run), or
    with a shared cache those of all runs, whatever the accounting.

    Args:
        purpose: of the passes.
        accounting: what is charged.
        microbatch: examples that a tower sees at once.
        store_dir: where the rows of this run lie.
        widths: floats a row, by the rows' name; rows of width 1 are never rounded.
        cache: the shared rows, where there are any.
        world: the processes of the run. Each keeps the rows that it has computed, and all keys that the run has met.
    """

    def __init__(
        self,
        purpose: Purpose,
        accounting: Accounting,
        microbatch: int,
        store_dir: Path,
        widths: Mapping[str, int],
        cache: Bound | None = None,
        world: World | None = None,
    ) -> None:
        self.purpose: Purpose = purpose
        self.world = world or World()
        self.accounting, self.microbatch, self.cache = accounting, microbatch, cache or Bound()
        self.price: Price | None = None
        self.hits = 0
        self.amortised_macs = 0
        self._rows: dict[str, Rows] = {}
        self._met: dict[str, RunRows] = {}
        self._files: dict[str, RunRows] = {}
        for name, width in widths.items():
            dtype: Stored = self.cache.dtype if width > 1 else "float32"
            if self.cache.folder is not None:
                self._rows[name] = self.cache.shared(name, width, dtype)
            elif accounting == "online":
                self._rows[name] = Rows(width, dtype)
            if accounting != "online":
                path = store_dir / f"{purpose}-{name}.bin"
                if name not in self._rows and self.world.size > 1:
                    self._rows[name] = self._files[f"own {name}"] = RunRows(path.with_suffix(".own.bin"), width, dtype)
                met = RunRows(path, width, dtype) if name not in self._rows else RunRows(path, 0)
                self._rows.setdefault(name, met)
                self._met[name] = self._files[name] = met
        self.cache.describe()

    def _sighted(self, name: str, key_B: Tensor) -> int:
        """How many of these are charged now: all, or each distinct one that this run has not met."""
        met = self._met.get(name)
        if met is None:
            return len(key_B)
        new = met.missing(key_B)
        if met is not self._rows[name]:
            met.add(key_B[new], torch.empty(len(new), 0))
        return len(new)

    def _charge(self, purpose: Purpose, macs: int, what: str) -> tuple[Pass, ...]:
        if self.accounting == "amortised":
            self.amortised_macs += macs
            return ()
        return (Pass(purpose, macs, what),)

    def _blocks(self, count: int) -> Iterator[tuple[Tensor, int]]:
        """Positions of so many examples, block by block, and how many of each block are real.

        Where others will find the rows, blocks have one size: a short one repeats its last example.
        """
        block = self.cache.block
        for index in torch.arange(count).split(block or self.microbatch):
            real = len(index)
            yield (torch.cat([index, index[-1:].expand(block - real)]) if block and real < block else index), real

    def counts(self) -> dict[str, int]:
        """``cache/…``: rows that were found instead of computed, and what the disk refused."""
        failures = {"cache/failures": sum(rows.failures for rows in self._rows.values())}
        return {"cache/hits": self.hits} | (failures if self.cache.folder is not None else {})

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: how many rows each store of this run holds, and the counters."""
        rows = {name: store.saved() for name, store in self._files.items()}
        return rows | {"hits": self.hits, "amortised_macs": self.amortised_macs}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, store in self._files.items():
            store.restore(state.get(name, 0))
        self.hits, self.amortised_macs = state["hits"], state["amortised_macs"]

    def describe_cache(self) -> str:
        """What the shared cache holds, for people; empty where there is none."""
        shared = {name: rows for name, rows in self._rows.items() if isinstance(rows, SharedRows)}
        if not shared:
            return ""
        held = ", ".join(f"{len(rows):,} {name}s" for name, rows in shared.items())
        size = sum(rows.size for rows in shared.values())
        who = self.purpose.partition("_")[0]
        return f"{who} cache {self.cache.folder}: {held}, {size / 2**20:.1f} MiB"

    def close(self, remove: bool) -> None:
        """Say how large the shared cache is, close the stores, and remove the files of a run that has finished."""
        if said := self.describe_cache():
            print(said, file=sys.stderr)
        for store in {id(store): store for store in (*self._rows.values(), *self._files.values())}.values():
            store.close(remove)


class FrozenModel(Remembering):
    """A frozen model over super-batches, in eval mode, without gradient, each pass reported.

    Its rows are the embeddings of images, of texts, and the cosines of pairs.
    """

    def __init__(
        self,
        model: TwoTowers,
        purpose: Purpose,
        accounting: Accounting,
        arithmetic: Arithmetic,
        store_dir: Path,
        microbatch: int,
        view: View = FULL,
        cache: Bound | None = None,
    ) -> None:
        widths = {"image": model.width, "text": model.width, "pair": 1}
        super().__init__(purpose, accounting, microbatch, store_dir, widths, cache, arithmetic.world)
        self.view = view  # one a run: what is remembered is bound to it
        self.model = model.to(arithmetic.device).eval().requires_grad_(False)
        self.arithmetic = arithmetic

    def embeddings(self, batch: Batch) -> tuple[Embeddings, tuple[Pass, ...]]:
        """Embeddings of a super-batch, and the passes that they cost."""
        own, device = batch.own, self.arithmetic.device
        self.price = self.price or Price.of(self.model, own, self.view)
        images, texts = self._sighted("image", batch.image_key_B), self._sighted("text", batch.text_key_B)

        def source(index_M: Tensor) -> Batch:
            return own if len(index_M) == len(own) else own.take(index_M)

        towers = self._tower("image", own.image_key_B, source), self._tower("text", own.text_key_B, source)
        image_BD, text_BD = (self.world.collect(own_PD.to(device), len(batch)) for own_PD in towers)
        embeddings = Embeddings(image_BD, text_BD, *self.model.scale_and_bias())
        return embeddings, self._towers_charged(images, texts)

    def own_loss(
        self, loss: LossName, image_key_C: Tensor, text_key_C: Tensor, read: Read
    ) -> tuple[Tensor, tuple[Pass, ...]]:
        """The loss of each pair by itself, softplus(−u_ii) or −a_ii, and the passes that it cost.

        Args:
            loss: whose pair loss.
            image_key_C: of C candidates.
            text_key_C: theirs.
            read: positions among the candidates → those pairs, decoded; called only for pairs whose
                rows are nowhere to be found. ``price`` must be set before: there may be no such pair.

        Returns:
            ``[C]``, float64 on the CPU (of an fp32 cosine); infinite where a pair is damaged.
        """
        assert self.price is not None, "priced when it is built: nothing may be left to trace"
        key_C = pair_key_B(image_key_C, text_key_C)
        images, texts = self._sighted("image", image_key_C), self._sighted("text", text_key_C)
        pairs = self._sighted("pair", key_C)

        def compute(position_M: Tensor) -> Tensor:
            parts = position_M.split(self.microbatch)
            return torch.cat([self._cosine_P1(image_key_C[at], text_key_C[at], at, read) for at in parts])

        cosine_C1, computed = self._rows["pair"].fetch(key_C, compute)
        self.hits += len(key_C) - computed
        scale, bias = self.model.scale_and_bias()
        own_C = cosine_C1[:, 0].double() * scale
        loss_C = -own_C if loss == "softmax" else F.softplus(-(own_C + bias))
        loss_C = loss_C.masked_fill(loss_C.isnan(), torch.inf)
        dots = self._charge("pairwise", pairs * self.model.width, f"own logits of {pairs} candidates")
        return loss_C, (*self._towers_charged(images, texts), *dots)

    def _cosine_P1(self, image_key_P: Tensor, text_key_P: Tensor, position_P: Tensor, read: Read) -> Tensor:
        """Cosines of candidates, of which those that lack an embedding are read, each once; NaN for damaged ones."""
        cosine_P1 = torch.full((len(position_P), 1), torch.nan)
        intact = torch.arange(len(position_P))
        while True:
            image_key, text_key, position = image_key_P[intact], text_key_P[intact], position_P[intact]
            lacking = torch.cat([self._rows["image"].missing(image_key), self._rows["text"].missing(text_key)]).unique()
            source = _ReadOnce(lacking, position, read)
            damaged = source.replaced(image_key, text_key)
            if not len(damaged):
                break
            # Another pair may hold the caption that was to be read here: look for it there.
            intact = intact[~torch.isin(torch.arange(len(intact)), damaged)]
        image_PD, text_PD = self._tower("image", image_key, source), self._tower("text", text_key, source)
        # In float64 the order of the sum cannot show after rounding.
        cosine_P1[intact, 0] = (image_PD.double() * text_PD.double()).sum(1).float().cpu()
        return cosine_P1

    def _tower(self, tower: Tower, key_B: Tensor, source: Callable[[Tensor], Batch]) -> Tensor:
        """Embeddings ``[B, D]``: found, or computed from the pairs that ``source`` gives for positions.

        NaN where it gives another pair than was asked for, as a source does for one that is damaged.
        """

        def compute(index_M: Tensor) -> Tensor:
            batch = source(index_M)
            row_MD = self._encode(tower, batch)
            given_M = batch.image_key_B if tower == "image" else batch.text_key_B
            other_M = given_M != key_B[index_M]
            if bool(other_M.any()):
                row_MD[other_M.to(row_MD.device)] = torch.nan
            return row_MD

        row_BD, computed = self._rows[tower].fetch(key_B, compute)
        self.hits += len(key_B) - computed
        return row_BD

    def _towers_charged(self, images: int, texts: int) -> tuple[Pass, ...]:
        assert self.price is not None
        under = "" if self.view == FULL else f" under {self.view.label}"
        return (
            *self._charge(
                self.purpose, self.price.images(images, self.microbatch), f"image tower, {images} examples{under}"
            ),
            *self._charge(self.purpose, texts * self.price.text, f"text tower, {texts} examples{under}"),
        )

    def _encode(self, tower: Tower, batch: Batch) -> Tensor:
        """Embeddings of all of a batch under one tower, in blocks of one size where others will find them."""
        device = self.arithmetic.device
        inputs = batch.images_BCHW if tower == "image" else batch.tokens(self.model.tokenizer)
        encoded = []
        with torch.no_grad(), self.arithmetic.autocast():
            for index, count in self._blocks(len(batch)):
                part = inputs[index].to(device)
                if tower == "image":
                    row_PD = self.model.encode_image(part, self.view, batch.image_key_B[index].to(device))
                else:
                    row_PD = self.model.encode_text(part, self.view)
                encoded.append(row_PD[:count])
        row_ND = torch.cat(encoded)
        if not bool(torch.isfinite(row_ND).all()):
            raise NonFiniteScore(f"the {self.purpose.partition('_')[0]}'s {tower} embeddings are NaN or infinite")
        return row_ND


class _ReadOnce:
    """Reads the pairs that are known to be needed at once, and any other when it is asked for it."""

    def __init__(self, position_M: Tensor, of_P: Tensor, read: Read) -> None:
        self._position_M, self._of_P, self._ask = position_M, of_P, read
        self._batch: Batch | None = None

    def _read(self, index_M: Tensor) -> Batch:
        return self._ask(self._of_P[index_M])

    def replaced(self, image_key_P: Tensor, text_key_P: Tensor) -> Tensor:
        """Positions of those read that turn out to be damaged: another pair is given in their place."""
        if not len(self._position_M):
            return self._position_M
        self._batch = self._read(self._position_M)
        images_M = self._batch.image_key_B != image_key_P[self._position_M]
        texts_M = self._batch.text_key_B != text_key_P[self._position_M]
        return self._position_M[images_M | texts_M]

    def __call__(self, index_M: Tensor) -> Batch:
        if self._batch is None or not bool(torch.isin(index_M, self._position_M).all()):
            return self._read(index_M)  # the shared file has been cut since
        return self._batch.take(torch.searchsorted(self._position_M, index_M))
