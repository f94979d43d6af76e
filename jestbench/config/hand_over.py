"""What a run hands to the runs that it stands on: data, loss, image size, and the seed where it is asked to.

The run's values replace what the includes of the other run's file bind. What that file itself binds stays, and so do
the bindings that follow it in ``run.reference = ("file", "binding", …)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jestbench.config.gin_edge import Binding, bare_name, filled_in, macros_in, references
from jestbench.config.grammar import read_binding
from jestbench.config.identity import defaults
from jestbench.config.operative import plain
from jestbench.config.resolved import Inherited
from jestbench.config.run import ConfigError, Run
from jestbench.cost.budget import Pretrained
from jestbench.disk import shown

DATA, LOSS, SIZE, SEED = "run.data", "run.loss", "model.image_size", "run.seed"


def _last(bindings: Sequence[Binding]) -> dict[str, Binding]:
    """The bindings that count, by key, with their macros filled in."""
    macros = {binding.key: binding.value for binding in bindings if not binding.parameter}
    last = {binding.key: binding for binding in bindings if binding.parameter}
    return {key: replace(binding, value=filled_in(binding.value, macros)) for key, binding in last.items()}


def _data_parts(last: Mapping[str, Binding]) -> frozenset[str]:
    """Names of the data set that is bound, and of all that its parameters refer to (captions, tokenizer)."""
    found: set[str] = set()
    asked = [last[DATA].value] if DATA in last else []
    while asked:
        names = {bare_name(reference.selector) for reference in references(asked.pop())} - found
        found |= names
        asked += [binding.value for binding in last.values() if binding.name in names]
    return frozenset(found)


def handed_over(run: Run, bindings: Sequence[Binding], role: Pretrained) -> tuple[Binding, ...]:
    """The bindings that a run hands to the run of a frozen model, each parameter once and without macros.

    Args:
        bindings: all of its own.
        role: of the frozen model. A pair scorer is trained on no contrastive loss, so it is given none.
    """
    last = _last(bindings)
    parts = _data_parts(last)
    given = [binding for binding in last.values() if binding.key == DATA or binding.name in parts]
    values: dict[str, Any] = {SIZE: run.model.image_size}
    if role == "reference":
        values |= {LOSS: run.loss} | ({SEED: run.seed} if run.reference_seed == "own" else {})
    for key, value in values.items():
        name, parameter = key.split(".")
        where = next((b.where for b in reversed(last.values()) if b.unscoped == key), "the arm's default")
        given.append(Binding("", name, parameter, value, where))
    return tuple(given)


def _bound_itself(read: Sequence[Binding], path: Path, following: int) -> frozenset[str]:
    """The parameters whose binding that counts stands in a run file itself, or follows it; scopes left out."""
    here, first = shown(path.resolve()), len(read) - following
    own = [place >= first or binding.where.rpartition(":")[0] == here for place, binding in enumerate(read)]
    macros = {b.key for b, is_own in zip(read, own, strict=True) if is_own and not b.parameter}
    counts = {
        binding.key: (binding.unscoped, is_own or bool(macros & macros_in(binding.value)))
        for binding, is_own in zip(read, own, strict=True)
        if binding.parameter
    }
    return frozenset(key for key, is_own in counts.values() if is_own)


def take_over(
    read: Sequence[Binding], path: Path, following: int, handed: Sequence[Binding]
) -> tuple[list[Binding], Inherited]:
    """The bindings of a frozen model's run after the hand-over, and what it changed.

    Args:
        read: of its file with the includes, then those that follow the file in ``run.reference``.
        path: its file.
        following: how many follow.
        handed: what the run above hands over.

    Raises:
        ConfigError: the seed is handed over, and bound by the file itself.
    """
    before, arm = _last(read), _last(handed)
    own = _bound_itself(read, path, following)
    if SEED in own and SEED in arm:
        raise ConfigError(
            f"run.reference_seed = 'own' hands run.seed to the reference, but {shown(path)}, or what follows it in "
            f"run.reference, binds run.seed = {before[SEED].value} ({before[SEED].where}): leave one of them out"
        )
    kept, dropped = _without_data(read, own, _data_parts(arm) | (frozenset() if DATA in own else _data_parts(before)))
    given = [binding for binding in handed if binding.unscoped not in own]
    named = {*_data_parts(_last([*kept, *given])), "run", "model"}
    given = [_in_scope(binding, before) for binding in given if binding.name in named]
    if "run.model" not in before:
        given.append(read_binding("run.model=@model()"))
    after = _last([*kept, *given])
    changed = [binding.key for binding in (*given, *dropped) if binding.name in named]
    taken = {key: _value(after, key) for key in changed if _value(after, key) != _value(before, key)}
    return [*kept, *given], Inherited(taken, _differing(before, arm, own, {binding.unscoped for binding in handed}))


def _without_data(
    read: Sequence[Binding], own: frozenset[str], parts: frozenset[str]
) -> tuple[list[Binding], list[Binding]]:
    """What stays of a run's bindings, and what the arm's data replace: the includes' data set whole, defaults too.

    A data set of the file's own keeps its parameters. Macros that only dropped bindings refer to go with these.
    """
    dropped = [b for b in read if b.parameter and b.name in parts and b.unscoped not in own]
    kept = [binding for binding in read if binding not in dropped]
    idle = {macro for binding in dropped for macro in macros_in(binding.value)}
    idle -= {macro for binding in kept for macro in macros_in(binding.value)}
    return [binding for binding in kept if binding.parameter or binding.key not in idle], dropped


def _differing(
    before: Mapping[str, Binding], arm: Mapping[str, Binding], own: frozenset[str], asked: set[str]
) -> dict[str, tuple[Any, Any]]:
    """Parameters that the file itself binds to other values than the arm: key → (the file's, the arm's)."""
    parts = _data_parts(arm)
    comparable = [b.key for b in before.values() if b.unscoped in own and (b.unscoped in asked or b.name in parts)]
    pairs = {key: (_value(before, key), _value(arm, key)) for key in comparable}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _in_scope(binding: Binding, last: Mapping[str, Binding]) -> Binding:
    """The image size under the scope of the run's model."""
    if binding.unscoped != SIZE or "run.model" not in last:
        return binding
    scopes = [reference.scoped_selector.rpartition("/")[0] for reference in references(last["run.model"].value)]
    return replace(binding, scope=scopes[0] if scopes else "")


def _value(last: Mapping[str, Binding], key: str) -> Any:
    """A parameter's plain value: as it is bound, or its default."""
    bare = key.rpartition("/")[2]
    found = last.get(key, last.get(bare))
    return defaults().get(bare) if found is None else plain(found.value, {})
