"""What a policy chose of a super-batch, pair by pair, as ``examples/`` keeps it; read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from jestbench.disk import DataError, digest, shown, whole
from jestbench.runs.folder import RunFolder


@dataclass(frozen=True, eq=False)
class Choice:
    """The choice from one super-batch.

    Attributes:
        key_B: identity of each pair, from the contents of image and caption: equal in all runs that drew the pair.
        chosen_K: positions of the chosen pairs, in the order in which the policy returned them.
        score_B: the policy's score of each pair by itself; ``None`` where the policy returns none.
    """

    key_B: npt.NDArray[np.int64]
    chosen_K: npt.NDArray[np.int64]
    score_B: npt.NDArray[np.float32] | None

    @property
    def super_batch(self) -> str:
        """Identity of the super-batch: its pairs in their order."""
        return digest(np.ascontiguousarray(self.key_B).tobytes())

    @property
    def chosen_B(self) -> npt.NDArray[np.bool_]:
        """Whether each pair was chosen."""
        chosen_B = np.zeros(len(self.key_B), dtype=np.bool_)
        chosen_B[self.chosen_K] = True
        return chosen_B

    def refused_first(self, count: int) -> npt.NDArray[np.int64]:
        """Positions of the refused pairs of the lowest scores, the lowest first; none where there are no scores."""
        if self.score_B is None:
            return np.zeros(0, dtype=np.int64)
        refused_N = np.flatnonzero(~self.chosen_B)
        found: npt.NDArray[np.int64] = refused_N[np.argsort(self.score_B[refused_N], kind="stable")[:count]]
        return found

    def write(self, path: Path) -> None:
        """Write the choice, whole or not at all."""
        arrays: dict[str, Any] = {"key": self.key_B, "chosen": self.chosen_K.astype(np.int32)}
        if self.score_B is not None:
            arrays["score"] = self.score_B
        with whole(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @staticmethod
    def read(path: Path) -> Choice:
        """A choice from its file.

        Raises:
            DataError: the file cannot be read, or holds no choice.
        """
        try:
            with np.load(path) as arrays:
                return Choice(arrays["key"], arrays["chosen"].astype(np.int64), arrays.get("score"))
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise DataError(f"{shown(path)}: no choice from a super-batch: {error}") from error


@dataclass(frozen=True, eq=False)
class Shown:
    """A table of examples on the disk.

    Attributes:
        step: of the run.
        choice: from the whole super-batch.
        first: the pairs chosen first and those of the lowest scores, with ``position``, ``caption``, ``chosen``,
            ``score``, ``marks`` and the place of the picture in ``sheet`` (``left``, ``top``).
        sheet: file of the pictures.
        width: of a picture, in pixels.
        height: likewise.
    """

    step: int
    choice: Choice
    first: tuple[Mapping[str, Any], ...]
    sheet: Path
    width: int
    height: int


def shown_by(run_dir: Path) -> tuple[tuple[Shown, ...], tuple[str, ...]]:
    """The tables of examples that a run has left, by step, and problems with them."""
    found: list[Shown] = []
    problems: list[str] = []
    for path in sorted(RunFolder(run_dir).examples.glob("step-*.json")):
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            choice, sheet = (path.with_name(str(table[name])) for name in ("choice", "sheet"))
            size = int(table["width"]), int(table["height"])
            found.append(Shown(int(table["step"]), Choice.read(choice), tuple(table["first"]), sheet, *size))
        except (OSError, ValueError, KeyError, TypeError, DataError) as error:
            problems.append(f"{shown(path)}: no table of examples: {error!r}")
    return tuple(found), tuple(problems)
