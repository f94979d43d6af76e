"""What a trained model is evaluated on: data and evaluation of a run, whatever that run was trained by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jestbench.config.build_run import build_run
from jestbench.config.gin_edge import Binding
from jestbench.config.grammar import check_expanded, check_names, read_binding
from jestbench.config.operative import check_used
from jestbench.config.registry import configurables
from jestbench.config.resolve import read_files
from jestbench.config.run import ConfigError, Run

_ASKED = {f"run.{name}" for name in ("data", "evaluate", "device", "precision")}
_KEPT = {*_ASKED, "run.objective"}
_ROOMS = ("jestbench.data.", "jestbench.evals.")
_BESIDE = {"tokenizer", "regression"}
"""Names that a data set and a pair scorer are built by: taken from files, no choice of an evaluation."""
_UNTRAINED = ("run.policy='uniform'", "run.batch_size=1", "run.super_batch_size=1", "run.budget=1")
"""What a run has to bind, and no evaluation reads."""


def evaluated_run(files: Sequence[str], bindings: Sequence[str] = (), trained: Path | None = None) -> Run:
    """The run whose data and evaluation parameters a trained model is evaluated by; nothing that it stands on is read.

    Args:
        files: gin files, of which the data and the evaluation are taken; later ones win.
        bindings: of the command line, which win over files.
        trained: ``operative.gin`` of the run that trained the model; the files win over it.

    Raises:
        ConfigError: a binding is misspelt, not used, or about the training; or no data set is bound.
    """
    paths = [*([] if trained is None else [str(trained.resolve())]), *files]
    read = [*read_files(paths)]
    given = [read_binding(text) for text in bindings]
    check_expanded(given)
    check_names([*read, *given])
    for binding in given:
        if not _concerns(binding, _ASKED, set()):
            raise ConfigError(
                f"{binding.where}: {binding.key} does not change an evaluation: the model is as it was trained; what "
                "can be bound is the data set, evaluate.…, run.device and run.precision"
            )
    kept = [binding for binding in read if _concerns(binding, _KEPT, _BESIDE)]
    built = [*kept, *given, *(read_binding(text) for text in _UNTRAINED)]
    if not any(binding.key == "run.data" for binding in built):
        raise ConfigError("no data set to evaluate on: give --gin_file FILE, of a run, or bind run.data")
    run, _, held = build_run(built)
    check_used(held, built, [*_unasked(built, given)], arms=False)
    return run


def _concerns(binding: Binding, of_run: set[str], beside: set[str]) -> bool:
    """Whether a binding is a macro, or about data or evaluation."""
    if not binding.parameter or binding.name == "run":
        return not binding.parameter or binding.key in of_run
    return configurables()[binding.name].__module__.startswith(_ROOMS) or binding.name in beside


def _unasked(built: Sequence[Binding], given: Sequence[Binding]) -> Iterator[str]:
    """Keys that are not the command line's: a run file binds more than an evaluation uses."""
    asked = {binding.key for binding in given}
    return (binding.key for binding in built if binding.key not in asked)
