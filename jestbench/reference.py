"""Frozen models: loaded from a run folder, run once a pair, remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jestbench import checkpoint
from jestbench.batch import Batch, DataError, Pass, Purpose
from jestbench.data.tokenizer import Tokenizer
from jestbench.learner import Price
from jestbench.model.losses import LossName
from jestbench.model.towers import Model, TwoTowers
from jestbench.model.views import FULL, FULL_MIX, Mix, View
from jestbench.precision import Arithmetic
from jestbench.scores import Embeddings

Accounting = Literal["online", "first_sight", "amortised"]

MODEL_FORMAT = 1
"""Counted up when the same configuration builds another model, so that cached ones are trained anew."""


def load_model(run_dir: Path) -> TwoTowers:
    """The model of a run's newest checkpoint.

    Raises:
        DataError: the folder holds no finished run.
    """
    newest = checkpoint.newest(run_dir)
    if newest is None:
        raise DataError(f"{run_dir} holds no checkpoint: give a run folder whose run has finished")
    described = json.loads((newest / "model.json").read_text(encoding="utf-8"))
    special = {name: described[name] for name in ("pad", "end") if name in described}
    tokenizer = Tokenizer(described["tokenizer"], described["length"], **special)
    loss: LossName = described["loss"]
    model = Model(**described["model"] | {"pretrained": False}).build(tokenizer, loss, seed=0)
    try:
        model.load_state_dict(load_file(newest / "model.safetensors"))
    except (RuntimeError, SafetensorError) as error:
        raise DataError(f"{newest} does not hold the model that its model.json describes: train it anew") from error
    return model


def trained_mix(run_dir: Path) -> Mix:
    """The views that the model of a run's newest checkpoint was trained under; a folder without them counts as full."""
    newest = checkpoint.newest(run_dir)
    if newest is None:
        return FULL_MIX
    described = json.loads((newest / "model.json").read_text(encoding="utf-8"))
    return tuple((share, View(**view)) for share, view in described.get("train_views", ())) or FULL_MIX


class EmbeddingStore:
    """Embeddings of one tower by content key, in an append-only file.

    The file makes a resumed run exact: an embedding computed anew, in another batch, may differ in
    its last bit. Rows past what the checkpoint knows are cut.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width = path, width
        self._record = np.dtype([("key", "<i8"), ("row", "<f4", (width,))])
        self._row_of: dict[int, int] = {}
        self._rows = np.empty((1024, width), dtype=np.float32)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def __len__(self) -> int:
        return len(self._row_of)

    def restore(self, count: int) -> None:
        """Go back to the first ``count`` rows of the file.

        Raises:
            DataError: the file holds fewer.
        """
        self._file.close()
        if self.path.stat().st_size < count * self._record.itemsize:
            raise DataError(f"{self.path} is shorter than its checkpoint says; start the run anew")
        with self.path.open("r+b") as file:
            file.truncate(count * self._record.itemsize)
        records = np.fromfile(self.path, dtype=self._record)
        self._row_of = {key: row for row, key in enumerate(records["key"].tolist())}
        self._rows = np.ascontiguousarray(records["row"])
        self._file = self.path.open("ab")

    def missing(self, key_B: Tensor) -> Tensor:
        """Positions of keys that are not in the store, each distinct key once."""
        first: dict[int, int] = {}
        for position, key in enumerate(key_B.tolist()):
            if key not in self._row_of:
                first.setdefault(key, position)
        return torch.tensor(list(first.values()), dtype=torch.int64)

    def add(self, key_N: Tensor, row_ND: Tensor) -> None:
        """Append rows."""
        keys, rows = key_N.numpy(), row_ND.float().cpu().numpy()
        records = np.empty(len(keys), dtype=self._record)
        records["key"], records["row"] = keys, rows
        self._file.write(records.tobytes())
        start = len(self)
        while start + len(keys) > len(self._rows):
            # A store restored at step 0 is empty: doubling alone would never end.
            self._rows = np.concatenate([self._rows, np.empty((max(1024, len(self._rows)), self.width), np.float32)])
        self._rows[start : start + len(keys)] = rows
        for offset, key in enumerate(keys.tolist()):
            self._row_of[key] = start + offset

    def get(self, key_B: Tensor) -> Tensor:
        """Rows ``[B, D]`` of keys that are all there."""
        return torch.from_numpy(self._rows[[self._row_of[key] for key in key_B.tolist()]])

    def flush(self) -> None:
        """Bring everything to the file."""
        self._file.flush()

    def close(self, remove: bool) -> None:
        """Close, and remove the file of a run that has finished."""
        self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)
            if not any(self.path.parent.iterdir()):
                self.path.parent.rmdir()


class FrozenModel:
    """A frozen model over super-batches, in eval mode, without gradient, each pass reported.

    Accounting is about what is *charged*: ``online`` runs and charges every pass; ``first_sight``
    charges a tower the first time this run meets an image or a text, and remembers its embedding;
    ``amortised`` remembers too and charges nothing (its cost is in ``amortised_macs``).
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
    ) -> None:
        self.view = view  # one a run: what is remembered is bound to it
        self.model = model.to(arithmetic.device).eval().requires_grad_(False)
        self.purpose: Purpose = purpose
        self.accounting, self.arithmetic, self.microbatch = accounting, arithmetic, microbatch
        self.price: Price | None = None
        self.hits = 0
        self.amortised_macs = 0
        towers = () if accounting == "online" else ("image", "text")
        self._stores = {tower: EmbeddingStore(store_dir / f"{purpose}-{tower}.bin", model.width) for tower in towers}

    def embeddings(self, batch: Batch) -> tuple[Embeddings, tuple[Pass, ...]]:
        """Embeddings of a super-batch, and the passes that they cost."""
        self.price = self.price or Price.of(self.model, batch, self.view)
        image_BD, image_missing = self._tower("image", batch.image_key_B, batch.images_BCHW, self._images)
        tokens_BL = batch.tokens(self.model.tokenizer)
        text_BD, text_missing = self._tower("text", batch.text_key_B, tokens_BL, self._texts)
        device = self.arithmetic.device
        embeddings = Embeddings(image_BD.to(device), text_BD.to(device), *self.model.scale_and_bias())
        return embeddings, (
            *self._charge("image", image_missing, self.price.images(image_missing)),
            *self._charge("text", text_missing, text_missing * self.price.text),
        )

    def _images(self, images_BCHW: Tensor, key_B: Tensor) -> Tensor:
        return self.model.encode_image(images_BCHW, self.view, key_B)

    def _texts(self, token_BL: Tensor, key_B: Tensor) -> Tensor:
        return self.model.encode_text(token_BL, self.view)

    def _tower(
        self, tower: str, key_B: Tensor, inputs: Tensor, encode: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, int]:
        """Embeddings, and how many of them were computed now."""
        if self.accounting == "online":
            return self._encode(inputs, key_B, encode), len(inputs)
        store = self._stores[tower]
        missing = store.missing(key_B)
        self.hits += len(key_B) - len(missing)
        if len(missing):
            store.add(key_B[missing], self._encode(inputs[missing], key_B[missing], encode))
        return store.get(key_B), len(missing)

    def _charge(self, tower: str, count: int, macs: int) -> tuple[Pass, ...]:
        if self.accounting == "amortised":
            self.amortised_macs += macs
            return ()
        under = "" if self.view == FULL else f" under {self.view.label}"
        return (Pass(self.purpose, macs, f"{tower} tower, {count} examples{under}"),)

    def _encode(self, inputs: Tensor, key_B: Tensor, encode: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        device = self.arithmetic.device
        parts = zip(inputs.split(self.microbatch), key_B.split(self.microbatch), strict=True)
        with torch.no_grad(), self.arithmetic.autocast():
            return torch.cat([encode(part.to(device), keys.to(device)) for part, keys in parts])

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps: how many rows each store holds, and the counters."""
        for store in self._stores.values():
            store.flush()
        rows = {tower: len(store) for tower, store in self._stores.items()}
        return rows | {"hits": self.hits, "amortised_macs": self.amortised_macs}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from a checkpoint."""
        for tower, store in self._stores.items():
            store.restore(state[tower])
        self.hits, self.amortised_macs = state["hits"], state["amortised_macs"]

    def close(self, remove: bool) -> None:
        """Close the stores, and remove their files when the run has finished."""
        for store in self._stores.values():
            store.close(remove)
