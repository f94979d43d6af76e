"""The frozen models that a run needs: castings by role, from the folders of finished runs or as stand-ins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from jestbench.batch import DataError
from jestbench.config.registry import PRETRAINED
from jestbench.config.resolved import Resolved
from jestbench.config.run import ConfigError
from jestbench.cost.budget import Pretrained
from jestbench.data.pairs import Dataset, SplitNotGiven
from jestbench.data.splits import split_of
from jestbench.disk import cache_root, digest
from jestbench.engine.casting import Casting, FrozenCasting, TwinCasting
from jestbench.engine.kinds import KINDS
from jestbench.engine.start import CarriedStart, LibraryStart, Start
from jestbench.model.carry import Carried
from jestbench.model.library_towers import LibraryTowers
from jestbench.model.tokenizer import Tokenizer
from jestbench.runs.folder import RunFolder
from jestbench.runs.saved_model import MODEL_FORMAT, shape_in, tokenizer_of, towers_of, trained_loss, trained_mix
from jestbench.runs.summary import Summary, known_total


@contextmanager
def of_run(resolved: Resolved) -> Iterator[None]:
    """Add the name of a run to its errors, where another run stands on it: parameters of the other would not help."""
    try:
        yield
    except SplitNotGiven as error:  # the data are handed over: nothing is bound behind the run's file
        raise SplitNotGiven(f"{error} (in the run {resolved.run.arm!r}, on which this run stands)") from error
    except (ConfigError, DataError) as error:
        if type(error) not in (ConfigError, DataError) or str(error).startswith("process "):
            raise
        raise type(error)(
            f"{error} (in the run {resolved.run.arm!r}, on which this run stands; what is bound for it stands behind "
            "its file, as in run.reference = ('FILE', 'run.batch_size=16'))"
        ) from error


def pretrained_folder(stand: Resolved | Path, role: Pretrained) -> Path:
    """The run folder of a frozen model: the given folder, or a folder in the cache.

    The cache is addressed by content: the model's operative configuration, its seed and its data.
    """
    if isinstance(stand, Path):
        return stand
    run = stand.run
    with of_run(stand):
        pairs = split_of(run.data, run.split)
    identity = f"{stand.config_hash}/{run.seed}/{pairs.fingerprint}/{MODEL_FORMAT}"
    return cache_root() / "models" / f"{run.arm or role}-{digest(identity)}"


def trained(role: Pretrained, folder: Path) -> FrozenCasting:
    """Load the model of a finished run, for a role.

    Raises:
        DataError: the folder holds no finished run, or a model of another kind.
    """
    _, kind = PRETRAINED[role]
    return FrozenCasting(role, towers_of(folder, kind), KINDS[kind].content, trained_mix(folder))


def with_start(resolved: Resolved) -> Resolved:
    """The run with the model that its training begins from loaded, and with that model's towers.

    Raises:
        DataError: ``run.init`` holds no finished run, or cannot be read.
        ValueError: our towers do not compute what the model's own do.
    """
    init, folder = resolved.run.init, resolved.init_folder
    if init is None or resolved.start is not None:
        return resolved
    if isinstance(init, Casting):
        start: Start = init.start()
    else:
        assert folder is not None, "a run folder is found when the run is resolved"
        if not RunFolder(folder).has_finished():
            raise DataError(f"run.init: {folder} holds no finished run to begin from")
        model, summary, loss = towers_of(folder), ended(folder), trained_loss(folder)
        assert loss is not None, "checked by towers_of"
        flops = known_total((summary.flops_all_in, 0 if summary.start is None else summary.start.flops))
        named, of = (summary.arm or folder.name, flops), str(folder.resolve())
        if isinstance(model, LibraryTowers):
            start = LibraryStart(*named, model, loss, run_dir=of)
        else:
            carried = Carried(shape_in(folder), model.state_dict(), tokenizer_of(folder), loss)
            start = CarriedStart(*named, carried, run_dir=of)
    run = replace(resolved.run, model=start.shape(resolved.run))
    return replace(resolved, run=run, start=start)


def castings_of(folders: Mapping[Pretrained, Sequence[Path]]) -> dict[Pretrained, Casting]:
    """Load the models of finished runs, by role.

    Raises:
        DataError: a folder holds no finished run, or a model of another kind.
    """
    return {role: _one_or_twin(role, [trained(role, folder) for folder in found]) for role, found in folders.items()}


def stand_ins(resolved: Resolved, device: str = "cpu") -> tuple[Dataset, dict[Pretrained, Casting]]:
    """Data and frozen models where they exist, else stand-ins of the same shape: nothing is fetched or trained.

    Args:
        device: where an untrained model is built; on ``meta`` it has no values.
    """
    data = resolved.run.data
    if not data.is_prepared():
        data = data.stand_in()
    tokenizer = split_of(data, resolved.run.split).tokenizer
    return data, {
        role: _one_or_twin(role, [_as_it_is(role, stand, tokenizer, device) for stand in stands])
        for role, stands in resolved.scored_by.items()
    }


def _as_it_is(role: Pretrained, stand: Resolved | Path, tokenizer: Tokenizer, device: str) -> FrozenCasting:
    """The trained model of a finished run, or the untrained model of a run yet to be trained."""
    if isinstance(stand, Path):
        return trained(role, stand)
    run = stand.run
    with torch.device(device):
        model = run.training.build(run, tokenizer)
    return FrozenCasting(role, model, run.training.content, run.mix)


def _one_or_twin(role: Pretrained, models: Sequence[FrozenCasting]) -> Casting:
    return models[0] if len(models) == 1 else TwinCasting(role, tuple(models))


def ended(folder: Path) -> Summary:
    """The summary of a run that has finished."""
    summary = RunFolder(folder).summary()
    assert summary is not None
    return summary


def spent_pretraining(resolved: Resolved, folders: Mapping[Pretrained, Sequence[Path]]) -> dict[str, int | None]:
    """FLOPs of training a run's frozen models, by role (summed over twins); ``None`` where they are not known."""
    known: dict[str, int | None] = {
        role: known_total(ended(folder).flops_all_in for folder in found) for role, found in folders.items()
    }
    return known | resolved.stated_flops


def spent_by_now(resolved: Resolved) -> dict[str, int | None]:
    """The same of the models whose training has finished by now, ``None`` for others; no data are prepared for it."""
    found: dict[str, int | None] = {}
    for role, stands in resolved.scored_by.items():
        try:
            ready = [stand for stand in stands if isinstance(stand, Path) or stand.run.data.is_prepared()]
            folders = [pretrained_folder(stand, role) for stand in ready]
            done = len(ready) == len(stands) and all(RunFolder(folder).has_finished() for folder in folders)
        except DataError:
            done = False
        found |= spent_pretraining(resolved, {role: folders}) if done else {role: None}
    return found | resolved.stated_flops
