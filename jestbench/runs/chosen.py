"""What a run chose, pair by pair: how often, and its last score. Counted as the run goes on, written as a parquet."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jestbench import disk
from jestbench.batch import Batch, Selection

HELD = 1 << 20
"""Choices that are held before they are summed up."""
_NAMES = ("image_key", "text_key", "times", "score")


class Chosen:
    """Counts of each pair's choices; exact over a resume, since they are part of a checkpoint.

    Args:
        on: whether anything is counted.
    """

    def __init__(self, on: bool) -> None:
        self.on, self.since = on, 0
        empty = np.empty(0, np.int64)
        self._summed: list[npt.NDArray[Any]] = [empty, empty, empty, np.empty(0, np.float32)]
        self._held: list[list[npt.NDArray[Any]]] = []
        self._uid_of: dict[int, str] = {}

    def add(self, batch: Batch, selection: Selection, uid_of: Mapping[int, str] | None = None) -> None:
        """Count the choice of a step.

        Args:
            uid_of: uids by content key of the image, where they cannot be looked up at the end (of a stream).
        """
        if not self.on:
            return
        index_K = selection.index_K.cpu()
        score_K = torch.full((len(index_K),), torch.nan)
        if selection.score_B is not None:
            score_K = selection.score_B.detach().float().cpu()[index_K]
        keys = [batch.image_key_B[index_K].numpy(), batch.text_key_B[index_K].numpy()]
        if uid_of:
            self._uid_of.update((key, uid_of[key]) for key in keys[0].tolist() if uid_of[key])
        self._held.append([*keys, np.ones(len(index_K), np.int64), score_K.numpy()])
        if sum(len(each[0]) for each in self._held) > HELD:
            self._sum_up()

    def _sum_up(self) -> None:
        image_N, text_N, times_N, score_N = map(np.concatenate, zip(self._summed, *self._held, strict=True))
        self._held = []
        if not len(image_N):
            return
        order_N = np.lexsort((text_N, image_N))  # stable: of one pair, the last choice stays the last
        image_N, text_N, times_N, score_N = (each[order_N] for each in (image_N, text_N, times_N, score_N))
        new_N = np.r_[True, (image_N[1:] != image_N[:-1]) | (text_N[1:] != text_N[:-1])]
        first_M = np.flatnonzero(new_N)
        last_M = np.r_[first_M[1:], len(image_N)] - 1
        self._summed = [image_N[first_M], text_N[first_M], np.add.reduceat(times_N, first_M), score_N[last_M]]

    def state_dict(self) -> dict[str, Any]:
        """The counts, and whether any were made."""
        self._sum_up()
        counts = {name: torch.from_numpy(each) for name, each in zip(_NAMES, self._summed, strict=True)}
        return {"on": self.on, "since": self.since, "uid_of": dict(self._uid_of), **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._held, self.since, self._uid_of = [], state["since"], dict(state["uid_of"])
        self._summed = [state[name].numpy() for name in _NAMES]

    def begin(self, step: int, counted: bool) -> None:
        """Count from a step on, where a run that is resumed has not counted before."""
        if not counted:
            self.since = step

    def write(self, path: Path, uid_of: Callable[[npt.NDArray[np.int64]], Sequence[str | None]]) -> None:
        """Write ``key``, ``text_key``, ``uid``, ``times`` and ``score``, the most often chosen first.

        A uid of an image's content key is ``None`` where ``uid_of`` does not know it.
        """
        self._sum_up()
        image_M, text_M, times_M, score_M = self._summed
        order_M = np.lexsort((text_M, image_M, -times_M))
        image_M, text_M, times_M, score_M = (each[order_M] for each in (image_M, text_M, times_M, score_M))
        # Those that came with the choices of a stream, or else looked up.
        uids = [self._uid_of.get(key) for key in image_M.tolist()] if self._uid_of else uid_of(image_M)
        pa: Any = importlib.import_module("pyarrow")
        columns = {
            "key": pa.array([disk.key_text(key) for key in image_M.tolist()], pa.string()),
            "text_key": pa.array([disk.key_text(key) for key in text_M.tolist()], pa.string()),
            "uid": pa.array(uids, pa.string()),
            "times": pa.array(times_M),
            "score": pa.array(score_M, from_pandas=True),
        }
        table = pa.table(columns).replace_schema_metadata({"counted_since_step": str(self.since)})
        with disk.whole(path) as partial:
            importlib.import_module("pyarrow.parquet").write_table(table, partial)
