"""How often a run writes metrics, and what it sends to Weights & Biases."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Log:
    """How often metrics are written, and pairs are shown.

    Attributes:
        every: steps between two rows; a row with an evaluation or with examples is always written.
        progress: show a progress line.
        examples: tables of chosen and refused pairs over the budget, evenly spaced, with one more after
            the first step; in the run folder's ``examples/`` and in W&B. 0 for none.
        examples_count: pairs of either kind in a table.
        chosen: write the pairs that were trained on into ``chosen.parquet`` as the run ends: content key, uid where it
            is known, times chosen, last score; a later run takes it as a list of uids, or as columns.
    """

    every: int = 10
    progress: bool = True
    examples: int = 0
    examples_count: int = 8
    chosen: bool = False

    def __post_init__(self) -> None:
        if self.chosen and importlib.util.find_spec("pyarrow") is None:
            raise ValueError("log.chosen writes parquet, which needs pyarrow: pip install 'jestbench[data]'")
        if self.every < 1:
            raise ValueError(f"log.every must be at least 1 step, got {self.every}")
        if self.examples < 0:
            raise ValueError(f"log.examples must be a number of tables, or 0 for none, got {self.examples}")
        if self.examples_count < 1:
            raise ValueError(
                f"log.examples_count must be at least 1 pair, got {self.examples_count}: log.examples = 0 is for none"
            )


@dataclass(frozen=True)
class WandB:
    """Parameters of Weights & Biases. An empty one leaves the value to W&B's variables (WANDB_PROJECT, WANDB_TAGS …).

    Attributes:
        mode: ``auto`` follows WANDB_MODE; where that is unset, it is online under a W&B sweep agent, else offline.
        project: of the run; ``jestbench`` if WANDB_PROJECT is empty too.
        entity: user or team that the project belongs to.
        group: of the run; a local sweep sets it to its name, W&B's agent to the sweep's id.
        name: of the run; otherwise its arm and seed.
        tags: of the run.
        notes: of the run.
    """

    mode: Literal["auto", "offline", "online", "disabled"] = "auto"
    project: str = ""
    entity: str = ""
    group: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""

    def __post_init__(self) -> None:
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise ValueError(f"wandb.tags: W&B takes tags of 1 to 64 characters, got {tag!r}")

    def resolved(self) -> Literal["offline", "online", "disabled"]:
        """The mode that ``auto`` stands for."""
        if self.mode != "auto":
            return self.mode
        asked = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_SWEEP_ID") else "offline")
        if asked == "disabled":
            return "disabled"
        return "online" if asked in ("online", "run") else "offline"  # "dryrun" is W&B's old word for offline
