"""The model of a checkpoint: written there with what describes it, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jestbench.batch import DataError, Mix, View
from jestbench.config.run import Run
from jestbench.disk import read_object, write_json
from jestbench.engine.casting import shape_of
from jestbench.engine.kinds import KINDS
from jestbench.model.library_towers import LibraryTowers
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import Model, TwoTowers
from jestbench.runs.checkpoint import FORMAT, damage
from jestbench.runs.folder import RunFolder
from jestbench.select.losses import LossName

MODEL_FORMAT = 3
"""Counted up when the same configuration builds another model, so that cached ones are trained anew."""
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
BRINGS = "brings_tokenizer"
"""In ``model.json`` where training began from a model of another tokenizer than the data set's."""


class ForeignCheckpoint(DataError):
    """A checkpoint was written by another version of this package."""


def save_model(checkpoint: Path, weights: Mapping[str, Tensor], run: Run, model: TwoTowers) -> None:
    """Write the weights of a model into a checkpoint, and the description that they are read back by."""
    tokenizer = model.tokens
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(tensors, checkpoint / WEIGHTS)
    description = {
        "format": FORMAT,
        "model": asdict(run.model),
        "loss": run.loss,
        "tokenizer": tokenizer.definition,
        "length": tokenizer.length,
        "pad": tokenizer.pad,
        "end": tokenizer.end,
        "train_views": [[share, asdict(view)] for share, view in run.mix],
    }
    brought: dict[str, Any] = {BRINGS: True} if model.brings_tokenizer else {}
    if isinstance(model, LibraryTowers):
        brought["library"] = model.source
    write_json(checkpoint / DESCRIPTION, description | run.training.described() | brought)


def _description(checkpoint: Path) -> dict[str, Any]:
    """What ``save_model`` wrote of a model beside its weights.

    Raises:
        DataError: it cannot be read, or another version wrote it.
    """
    found = read_object(checkpoint / DESCRIPTION) or {}
    names = ("format", "model", "loss", "tokenizer", "length", "pad", "end", "train_views", "kind")
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"{checkpoint / DESCRIPTION} holds no {missing[0]!r}, so it describes no model of this version: "
            "train the model anew"
        )
    return found


def check_format(checkpoint: Path) -> None:
    """Refuse a checkpoint that another version wrote; one without a description that can be read is damaged instead.

    Raises:
        ForeignCheckpoint: naming it.
    """
    try:
        described = read_object(checkpoint / DESCRIPTION)
    except DataError:
        return
    if described is not None and described.get("format") != FORMAT:
        raise ForeignCheckpoint(
            f"{checkpoint} was written by another version of jestbench and cannot be gone on from: start the run anew "
            "in another --run_dir"
        )


def _newest(run_dir: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a run, and the description of its model.

    Raises:
        DataError: there is no checkpoint, or it does not describe its model.
    """
    newest = RunFolder(run_dir).newest_checkpoint()
    if newest is None:
        foreign = any((run_dir / name).exists() for name in ("open_clip_config.json", "preprocessor_config.json"))
        hint = " (a model of another library is bound as @open_clip() or @hugging_face_clip())" if foreign else ""
        raise DataError(f"{run_dir} holds no checkpoint: give a run folder whose run has finished{hint}")
    return newest, _description(newest)


def towers_of(run_dir: Path, kind: str = "contrastive") -> TwoTowers:
    """The model of a run's newest checkpoint.

    Args:
        kind: of model that is asked for, of ``KINDS``.

    Raises:
        DataError: the folder holds no finished run, or a model of another kind.
    """
    newest, described = _newest(run_dir)
    if reason := damage(newest):
        raise DataError(f"{newest}: {reason}: bring the file back, or train the model anew")
    found = described["kind"]
    if found != kind:
        raise DataError(f"{run_dir} holds a model of the kind {found!r}, not {kind!r}: {KINDS[kind].taken_as}")
    return _loaded(newest, described)


def _loaded(checkpoint: Path, described: Mapping[str, Any]) -> TwoTowers:
    """The described model of a whole checkpoint; raises as ``towers_of``."""
    model = KINDS[described["kind"]].rebuilt(described, _tokenizer(described))
    model.brings_tokenizer = described.get(BRINGS, False)
    try:
        model.load_state_dict(load_file(checkpoint / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        raise DataError(
            f"{checkpoint} does not hold the model that its {DESCRIPTION} describes: train it anew"
        ) from error
    return model


def model_in(checkpoint: Path) -> tuple[str, TwoTowers]:
    """The model of a whole checkpoint: its kind, of ``KINDS``, and its towers.

    Raises:
        DataError: the checkpoint does not describe its model, or another version wrote it.
    """
    check_format(checkpoint)
    described = _description(checkpoint)
    return described["kind"], _loaded(checkpoint, described)


def _tokenizer(described: Mapping[str, Any]) -> Tokenizer:
    return Tokenizer(described["tokenizer"], described["length"], described["pad"], described["end"])


def tokenizer_of(run_dir: Path) -> Tokenizer:
    """The tokenizer of the model in a run's newest checkpoint; raises as ``_newest``."""
    return _tokenizer(_newest(run_dir)[1])


def shape_in(run_dir: Path) -> Model:
    """The shape of the towers in a run's newest checkpoint; raises as ``_newest``."""
    return shape_of(_newest(run_dir)[1])


def trained_mix(run_dir: Path) -> Mix:
    """The views that the model of a run's newest checkpoint was trained under; raises as ``_newest``."""
    return tuple((share, View(**view)) for share, view in _newest(run_dir)[1]["train_views"])


def trained_loss(run_dir: Path) -> LossName | None:
    """The contrastive loss of the model in a run's newest checkpoint; ``None`` where none can be read."""
    try:
        _, described = _newest(run_dir)
    except DataError:  # reported when the model is loaded
        return None
    loss: LossName | None = described["loss"] if described["kind"] == "contrastive" else None
    return loss
