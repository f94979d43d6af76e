"""Whether frozen models fit an arm: a reference of the arm's loss, and models of the arm's data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jestbench.config.run import Run
from jestbench.cost.budget import Pretrained
from jestbench.data.pairs import Dataset
from jestbench.data.sources.source import SPLITS
from jestbench.data.splits import Split, names_in, shown_split, unranked
from jestbench.select.losses import LossName
from jestbench.select.scores import Role

NOT_THE_PAIRS = frozenset("cache_dir max_damaged verify allow_missing lanes buffer".split())
"""Parameters of data sets that do not change the pairs: cache folder, tolerated damage, order. Parameters of the
tokenizer are not among them, since a frozen model is fed the arm's token ids."""


@dataclasses.dataclass(frozen=True)
class TrainedOn:
    """What a frozen model of an arm was trained on.

    Attributes:
        role: of the model.
        name: of its run, for messages.
        loss: contrastive; ``None`` for a pair scorer, and where a folder holds no checkpoint.
        run: its run; ``None`` where a folder's operative.gin describes none.
        recorded: what the folder's summary.json holds of the data, instead of ``run``.
        file: the run file that trains it, and bindings; empty where there is none.
    """

    role: Pretrained
    name: str
    loss: LossName | None
    run: Run | None
    recorded: object = None
    file: tuple[str, ...] = ()

    def mended(self, *bindings: str) -> str:
        """The binding of the arm that trains the model with other parameters."""
        return f"run.{self.role} = {(*self.file, *bindings)!r}"


@dataclasses.dataclass(frozen=True)
class DataDifference:
    """A parameter in which two data sets differ.

    Attributes:
        key: as it is bound.
        there: its value for the frozen model.
        here: its value for the arm.
    """

    key: str
    there: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.key} is {self.there!r} there and {self.here!r} here"

    @property
    def is_literal(self) -> bool:
        """Whether the arm's value can be bound as it is printed."""
        return self.key != "run.data" and (self.here is None or isinstance(self.here, str | bool | int | float))


def other_loss(run: Run, models: Sequence[TrainedOn], where: str) -> str | None:
    """The message that refuses a reference of another loss than the arm's; ``None`` where it can be scored by.

    Args:
        where: run.loss is bound.
    """
    who = _scaled_by(run)
    reference = next((model for model in models if model.role == "reference"), None)
    if who is None or reference is None or reference.loss in (None, run.loss) or run.reference_calibrate:
        return None
    way = f", or train the reference on the arm's loss: {reference.mended(f'run.loss={run.loss!r}')}"
    return (
        f"run.reference: {reference.name!r} was trained on the {reference.loss} loss, and run.loss = {run.loss!r} "
        f"({where}): {who} scores with the reference's scale and bias, and scores of two losses are not comparable; "
        f"set run.loss = {reference.loss!r}, or run.reference_calibrate = True, which fits its scale and bias to the "
        f"arm's loss{way if reference.file else ''}"
    )


def check_loss(run: Run, role: Role, name: str, loss: LossName | None) -> None:
    """Refuse a model of another library that was trained on another loss than the arm's.

    Raises:
        ValueError: as ``other_loss``.
    """
    if role == "reference" and (refused := other_loss(run, [TrainedOn(role, name, loss, None)], "of the arm")):
        raise ValueError(refused)


def calibrated_on(run: Run, models: Sequence[TrainedOn]) -> str | None:
    """The split that the reference was trained on, where its scale and bias are to be fitted on it; else ``None``."""
    if not run.reference_calibrate or _scaled_by(run) is None:
        return None
    for model in models:
        if model.role == "reference" and model.run is not None:
            return unranked(model.run.split)
        if model.role == "reference" and isinstance(model.recorded, Mapping) and "split" in model.recorded:
            return unranked(str(model.recorded["split"]))
    # What a model of another library was trained on is not among the splits.
    return shown_split(run.split) if "reference" in run.castings else "curated"


def calibration_warnings(run: Run, models: Sequence[TrainedOn], split: str | None) -> tuple[str, ...]:
    """A warning of a reference that was trained on another loss, and is calibrated."""
    return tuple(
        f"the reference {model.name!r} was trained on the {model.loss} loss; its scale and bias are fitted to "
        f"run.loss = {run.loss!r} on the split {split!r} (run.reference_calibrate)"
        for model in models
        if split is not None and model.role == "reference" and model.loss not in (None, run.loss)
    )


def _scaled_by(run: Run) -> str | None:
    """What scores with the reference's scale or bias; ``None`` where its cosines alone are used."""
    if "reference" in run.built_policy.needs and not run.built_policy.cosine_only:
        return f"the policy {type(run.policy).__name__}"
    if run.cascade is not None and run.cascade.score == "reference":
        return "run.cascade"
    return None


def data_warnings(run: Run, models: Sequence[TrainedOn], names: Mapping[type, str]) -> tuple[str, ...]:
    """What is doubtful about the data of an arm's frozen models.

    Args:
        names: what the class of a data set, or of a part of one, is bound as.
    """
    found = []
    for model in models:
        what, different = f"the {model.role} {model.name!r}", _different(run, model, names)
        if different is None:
            found.append(
                f"it is not known whether {what} was trained on this arm's data: its operative.gin and its "
                "summary.json cannot be read"
            )
        elif different:
            way = ""
            if model.file and all(difference.is_literal for difference in different):
                same = model.mended(*(f"{difference.key}={difference.here!r}" for difference in different))
                way = f"; to train it on this arm's: {same}"
            listed = ", ".join(map(str, different))
            found.append(f"{what} was trained on other data than this arm: {listed}{way}")
    return tuple(found)


def _different(run: Run, model: TrainedOn, names: Mapping[type, str]) -> list[DataDifference] | None:
    """The parameters in which a frozen model's data differ from the arm's; ``None`` where they cannot be read."""
    if model.run is not None:
        # Which split a frozen model is trained on differs by design, and with it what is in that split.
        common = names_in(run.split) & names_in(model.run.split)
        ignored = NOT_THE_PAIRS | (set(SPLITS) - common) | _idle(run.data, model.run.split)
        return list(_differences("run.data", model.run.data, run.data, names, ignored))
    if isinstance(model.recorded, Mapping) and "data" in model.recorded:
        return _recorded_differences(model.recorded, run.data)
    return None


def _idle(data: Dataset, split: Split) -> frozenset[str]:
    """Parameters of the noise, where all that the model is trained on is clean whatever they are."""
    clean: bool = names_in(split) <= set(getattr(data, "clean", ()))
    return getattr(data, "of_noisy", frozenset()) if clean else frozenset()


def _differences(
    key: str, there: object, here: object, names: Mapping[type, str], ignored: frozenset[str]
) -> Iterator[DataDifference]:
    """The parameters in which two values differ, those of their parts one by one."""
    if type(there) is not type(here) or not dataclasses.is_dataclass(here):
        if there != here:
            yield DataDifference(key, names.get(type(there), there), names.get(type(here), here))
        return
    owner = names.get(type(here), key)
    for field in dataclasses.fields(here):
        if field.name not in ignored:
            parts = getattr(there, field.name), getattr(here, field.name)
            yield from _differences(f"{owner}.{field.name}", *parts, names, ignored)


def _recorded_differences(recorded: Mapping[str, Any], here: Dataset) -> list[DataDifference]:
    """As far as summary.json holds the data: their kind and their noise."""
    kind, noise = type(here).__name__.lower(), getattr(here, "noise", None)
    if recorded["data"] != kind:
        return [DataDifference("run.data", recorded["data"], kind)]
    same = recorded.get("noise") == noise or "noise" in _idle(here, str(recorded.get("split", "")))
    return [] if same else [DataDifference(f"{kind}.noise", recorded.get("noise"), noise)]
