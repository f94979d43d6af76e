"""Models read back from the newest checkpoint of a run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from jestbench.config.run import Run
from jestbench.runs import checkpoint

if TYPE_CHECKING:
    pass
from collections.abc import Callable
from typing import Literal, TypeVar

from safetensors import SafetensorError
from torch import nn

from jestbench.batch import FULL_MIX, DataError, Mix, View
from jestbench.model.regressor import Regressor
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import Model, TwoTowers
from jestbench.select.losses import LossName


def kind_of(run: Run) -> dict[str, Any]:
    """What a saved model is, beside its towers."""
    if run.objective is None:
        return {"kind": "contrastive"}
    return {"kind": "regression", "hidden": run.objective.hidden}


Kind = Literal["contrastive", "regression"]
KINDS: Mapping[Kind, str] = {
    "contrastive": "run.reference takes a contrastive run (gin/run/reference.gin)",
    "regression": "run.scorer takes a run that was trained to grade pairs (gin/run/cappy.gin)",
}
"""What each kind of model is for."""
_T = TypeVar("_T", bound=nn.Module)
MODEL_FORMAT = 1
"""Counted up when the same configuration builds another model, so that cached ones are trained anew."""


def load_model(run_dir: Path) -> TwoTowers:
    """The model of a contrastive run's newest checkpoint.

    Raises:
        DataError: the folder holds no finished run, or a model of another kind.
    """

    def build(described: Mapping[str, Any], tokenizer: Tokenizer) -> TwoTowers:
        loss: LossName = described["loss"]
        return _shape(described).build(tokenizer, loss, seed=0)

    return _load(run_dir, "contrastive", build)


def load_regressor(run_dir: Path) -> Regressor:
    """The pair scorer of a regression run's newest checkpoint.

    Raises:
        DataError: the folder holds no finished run, or a model of another kind.
    """

    def build(described: Mapping[str, Any], tokenizer: Tokenizer) -> Regressor:
        return Regressor.build(_shape(described), tokenizer, described["hidden"], seed=0)

    return _load(run_dir, "regression", build)


def _shape(described: Mapping[str, Any]) -> Model:
    return Model(**described["model"] | {"pretrained": False})


def _load(run_dir: Path, kind: Kind, build: Callable[[Mapping[str, Any], Tokenizer], _T]) -> _T:
    newest = checkpoint.newest(run_dir)
    if newest is None:
        raise DataError(f"{run_dir} holds no checkpoint: give a run folder whose run has finished")
    described = json.loads((newest / "model.json").read_text(encoding="utf-8"))
    found = described.get("kind", "contrastive")
    if found != kind:
        raise DataError(f"{run_dir} holds a model of the kind {found!r}, not {kind!r}: {KINDS[kind]}")
    special = {name: described[name] for name in ("pad", "end") if name in described}
    model = build(described, Tokenizer(described["tokenizer"], described["length"], **special))
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
