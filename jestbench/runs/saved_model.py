"""Models read back from the newest checkpoint of a run folder."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from jestbench.batch import FULL_MIX, DataError, Mix, View
from jestbench.engine.kinds import KINDS
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import TwoTowers
from jestbench.runs import checkpoint
from jestbench.select.losses import LossName

MODEL_FORMAT = 1
"""Counted up when the same configuration builds another model, so that cached ones are trained anew."""


def load_model(run_dir: Path, kind: str = "contrastive") -> TwoTowers:
    """The model of a run's newest checkpoint.

    Args:
        run_dir: the run folder.
        kind: of model that is asked for, of ``KINDS``.

    Raises:
        DataError: the folder holds no finished run, or a model of another kind.
    """
    newest = checkpoint.newest(run_dir)
    if newest is None:
        raise DataError(f"{run_dir} holds no checkpoint: give a run folder whose run has finished")
    described = json.loads((newest / "model.json").read_text(encoding="utf-8"))
    found = described.get("kind", "contrastive")
    if found != kind:
        raise DataError(f"{run_dir} holds a model of the kind {found!r}, not {kind!r}: {KINDS[kind].taken_as}")
    special = {name: described[name] for name in ("pad", "end") if name in described}
    model = KINDS[kind].rebuilt(described, Tokenizer(described["tokenizer"], described["length"], **special))
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


def trained_loss(run_dir: Path) -> LossName | None:
    """The contrastive loss of the model in a run's newest checkpoint; ``None`` where none can be read."""
    newest = checkpoint.newest(run_dir)
    try:
        described = {} if newest is None else json.loads((newest / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # reported when the model is loaded
        return None
    found: LossName | None = described.get("loss") if described.get("kind", "contrastive") == "contrastive" else None
    return found
