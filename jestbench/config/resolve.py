"""Gin at the edge: the only file that knows gin, and the only one that knows the policies.

Statements are parsed by gin's own parser, then checked one by one *before* anything is built (names,
types), bound, and built. What gin passes over in silence is an error here: a binding, a scope or a
macro that the run never uses, a bare word, a file that an include cannot find.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import gin

import policies
from jestbench.config.fitting import Trained, data_warnings, other_loss
from jestbench.config.grammar import (
    COMMAND_LINE,
    PROJECT,
    Binding,
    _beside,
    _missing,
    _shown,
    check_names,
    locate,
    read_binding,
    read_file,
)
from jestbench.config.identity import arm_hash, identity_of
from jestbench.config.operative import bind, check_used, flat_config
from jestbench.config.registered import policy_classes
from jestbench.config.registry import PRETRAINED, configurables, fields_of, fits, shown_type
from jestbench.config.run import ConfigError, ReadFolder, Resolved, Run
from jestbench.cost.budget import Pretrained
from jestbench.engine.online_scorer import OnlineScorer


def _build(bindings: Sequence[Binding]) -> tuple[Run, str]:
    """Build the run and its policy from what is bound.

    Raises:
        ConfigError: a required value is missing, or a constructor refused one.
    """
    required = [
        field.name
        for field in dataclasses.fields(Run)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    bound = {binding.key for binding in bindings}
    for name in required:
        if f"run.{name}" not in bound:
            raise ConfigError(f"run.{name} is required: bind it in a gin file or as run.{name}=… on the command line")
    try:
        run: Run = gin.get_configurable("run")()
        asked = run.policy if isinstance(run.policy, str) else None
        if asked is not None:
            policies.get(asked)
            run = dataclasses.replace(run, policy=gin.get_configurable(asked)())
        elif isinstance(run.policy, type):
            run = dataclasses.replace(run, policy=run.policy())
    except ConfigError:
        raise
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError) as error:
        raise ConfigError(_constructor_message(error, bindings)) from error
    _check_built(run, bindings)
    names = [known for known in policies.available() if type(run.policy) is policies.get(known)]
    if not names:
        raise ConfigError(
            f"{_place('run.policy', bindings)}run.policy = {type(run.policy).__name__} is no registered policy; "
            f"there are {', '.join(policies.available())}"
        )
    return run, asked or names[0]


def _place(key: str, bindings: Sequence[Binding]) -> str:
    return next((f"{binding.where}: " for binding in reversed(bindings) if binding.key == key), "")


def _check_built(run: Run, bindings: Sequence[Binding]) -> None:
    """Types of what ``@references`` brought, which cannot be seen before they are built.

    Raises:
        ConfigError: naming the parameter and where it is bound.
    """
    names = {cls: name for name, cls in configurables().items()}
    for part in (run, *(getattr(run, field.name) for field in dataclasses.fields(run))):
        owner = names.get(type(part))
        if owner is None or not dataclasses.is_dataclass(part):
            continue
        for name, hint in fields_of(type(part)).items():
            value, key = getattr(part, name), f"{owner}.{name}"
            if key == "run.policy":
                continue
            if isinstance(value, type):
                built = next((known for cls, known in names.items() if issubclass(value, cls)), value.__name__)
                raise ConfigError(f"{_place(key, bindings)}{key} is not built: write @{built}()")
            if not fits(value, hint):
                raise ConfigError(
                    f"{_place(key, bindings)}{key} must be of type {shown_type(hint)}, got {type(value).__name__}"
                )


def _check_augment(run: Run, bindings: Sequence[Binding]) -> None:
    """What is remembered of a pair is bound to the plain image.

    Raises:
        ConfigError: a frozen model would be remembered for one crop and asked about another.
    """
    frozen = run.needs - {"learner"} - ({"scorer"} if isinstance(run.scorer, OnlineScorer) else set())
    if run.augment is not None and frozen and run.reference_accounting != "online":
        raise ConfigError(
            f"{_place('run.augment', bindings)}run.augment with run.reference_accounting = "
            f"{run.reference_accounting!r}: what is remembered of one crop would be asked about another; set "
            "run.reference_accounting = 'online' (each crop is scored and charged), or leave run.augment out"
        )


def _constructor_message(error: Exception, bindings: Sequence[Binding]) -> str:
    """A constructor's message, with the places where the parameters that it names were bound."""
    message, _, call = str(error).partition("\n  In call to configurable ")
    message = " ".join(message.split())
    owner = call.split("'")[1] if "'" in call else "run"
    last = {binding.key: binding for binding in bindings}
    words = re.findall(r"[\w.]+", message)
    named = [last[key] for word in dict.fromkeys(words) for key in (word, f"{owner}.{word}") if key in last]
    named += [b for b in last.values() if b.name == owner and isinstance(b.value, str) and repr(b.value) in message]
    places = "; ".join(dict.fromkeys(f"{binding.key} is set at {binding.where}" for binding in named))
    prefix = "" if re.match(r"\w+\.\w+|give |no policy", message) else f"{owner}: "
    return f"{prefix}{message}" + (f" ({places})" if places else "")


def resolve(
    files: Sequence[str],
    bindings: Sequence[str] = (),
    allow_unused: Sequence[str] = (),
    beside: Path | None = None,
    chain: tuple[str, ...] = (),
    origin: str = COMMAND_LINE,
    recorded: ReadFolder | None = None,
) -> Resolved:
    """Files and bindings → a run. Bindings win over files, later over earlier.

    Args:
        files: gin files.
        bindings: ``Name.parameter=value``.
        allow_unused: patterns of bindings that the run need not use (``jest.*``).
        beside: the file that names the files, for a reference's.
        chain: references being resolved, to refuse a circle.
        origin: where the bindings stand, for messages.
        recorded: reads a run folder that is bound in a role (``jestbench.runs.folder.recorded``).

    Raises:
        ConfigError: one paragraph, with file and line where there is one.
    """
    configurables()
    read = _read(files, bindings, beside, origin)
    bind(read)
    run, name = _build(read)
    _check_augment(run, read)
    check_used(read, allow_unused)
    texts = {"config": gin.config_str(), "operative": gin.operative_config_str()}
    flat = flat_config()
    assert not isinstance(run.policy, str)
    needs = frozenset(run.policy.needs)
    if run.objective is not None and needs:
        raise ConfigError(
            f"{_place('run.objective', read)}run.objective trains a pair scorer on all that it meets, and the policy "
            f"{name!r} selects: bind run.policy to uniform"
        )
    own, twin = _frozen_models(run, read, chain, recorded)
    warnings = _check_frozen(run, read, own, recorded)
    identity = {role: identity_of(*found, recorded) for role, found in own.items()}
    if twin is not None:
        identity["reference"] += twin.config_hash
    reference, scorer = own.get("reference", (None, None)), own.get("scorer", (None, None))
    return Resolved(
        run,
        name,
        **texts,
        flat=flat,
        config_hash=arm_hash(flat, needs, identity),
        reference=reference[0],
        reference_dir=reference[1],
        scorer=scorer[0],
        scorer_dir=scorer[1],
        twin=twin,
        warnings=warnings,
    )


def _read(files: Sequence[str], bindings: Sequence[str], beside: Path | None, origin: str) -> list[Binding]:
    """All bindings of files and command line, checked for names and types."""
    read: list[Binding] = []
    for file in files:
        path = locate(file, beside)
        if path is None or not path.is_file():
            raise _missing(file, "", beside)
        read += read_file(path)
    read += [read_binding(text, origin) for text in bindings]
    check_names(read)
    return [_findable(binding) for binding in read]


def _frozen_models(
    run: Run, bindings: Sequence[Binding], chain: tuple[str, ...], recorded: ReadFolder | None
) -> tuple[dict[Pretrained, tuple[Resolved | None, Path | None]], Resolved | None]:
    """The runs or folders of the frozen models that a run needs, by role; and that of the reference's twin."""
    twinned, roles = _twinned(run), _roles(run)
    half = ("run.half=0",) if twinned else ()

    def found(role: Pretrained, half: tuple[str, ...]) -> tuple[Resolved | None, Path | None]:
        return _pretrained(role, run, bindings, chain, recorded, half)

    own = {role: found(role, half if role == "reference" else ()) for role in roles}
    return own, found("reference", ("run.half=1",))[0] if twinned else None


def _findable(binding: Binding) -> Binding:
    """A frozen model's run by its full path where the project's folder does not find it.

    ``operative.gin`` lies elsewhere and must start the same run from any folder.
    """
    value = binding.value
    file, *more = value if isinstance(value, list | tuple) and value else (value,)
    if binding.key not in {f"run.{role}" for role in PRETRAINED} or not isinstance(file, str) or not file:
        return binding
    path = locate(file, _beside(binding))
    if path is None or path.resolve() == (PROJECT / file).resolve():
        return binding
    found = str(path.resolve())
    return dataclasses.replace(binding, value=(found, *more) if more else found)


def _roles(run: Run) -> list[Pretrained]:
    """The frozen models that a run stands on: those that its policy needs, and one that its budget adds.

    Raises:
        ConfigError: the policy needs a scorer of the other kind.
    """
    assert not isinstance(run.policy, str)
    needs, name = run.policy.needs, type(run.policy).__name__
    in_training = isinstance(run.scorer, OnlineScorer)
    if "scorer" in needs and getattr(run.policy, "online", False) and not in_training:
        bound = "" if run.scorer is None else f", not to {run.scorer!r}"
        raise ConfigError(
            f"the policy {name} needs a scorer trained beside the learner: bind run.scorer to @online_scorer()"
            f"{bound} (gin/policy/active_clip.gin)"
        )
    if "scorer" in needs and in_training and not getattr(run.policy, "online", False):
        raise ConfigError(
            f"the policy {name} needs a pretrained scorer, not one trained beside the learner: bind run.scorer to a "
            f"run file ({PRETRAINED['scorer'][0]})"
        )
    if run.cascade is not None and run.cascade.score == "scorer" and in_training:
        raise ConfigError(
            "cascade.score = 'scorer' needs a pretrained scorer, not one trained beside the learner: bind run.scorer "
            f"to a run file ({PRETRAINED['scorer'][0]})"
        )
    asked = (run.needs | set(run.limit.adds)) - ({"scorer"} if in_training else set())
    return [role for role in PRETRAINED if role in asked]


def _twinned(run: Run) -> bool:
    """Whether two references score each other's half.

    Raises:
        ConfigError: the policy compares all pairs under one reference.
    """
    assert not isinstance(run.policy, str)
    if not run.twin or "reference" not in run.policy.needs:
        return False
    if not getattr(run.policy, "twins", False):
        can = ", ".join(name for name, cls in policy_classes().items() if getattr(cls, "twins", False))
        raise ConfigError(
            f"run.twin scores by two references, but the policy {type(run.policy).__name__} compares all pairs under "
            f"one; these can be scored by two: {can}"
        )
    return True


def _pretrained(
    role: Pretrained,
    run: Run,
    bindings: Sequence[Binding],
    chain: tuple[str, ...],
    recorded: ReadFolder | None,
    half: tuple[str, ...],
) -> tuple[Resolved | None, Path | None]:
    """A frozen model's own run, or the folder of one; ``half``: a binding of a twin's own.

    Raises:
        ConfigError: none is bound, it is not there, it needs itself, or it is of another kind.
    """
    key, asked = f"run.{role}", getattr(run, role)
    usual, by_regression = PRETRAINED[role]
    if not asked:
        assert not isinstance(run.policy, str)
        who = f"the policy {type(run.policy).__name__}" if role in run.policy.needs else "run.cascade"
        who = "budget.adds" if role in run.limit.adds else who
        raise ConfigError(
            f"{who} needs a {role}: bind {key} to a run file ({usual}) or to the folder of a finished run"
        )
    file, *more = (asked,) if isinstance(asked, str) else asked
    bound = next((b for b in reversed(bindings) if b.key == key), None)
    where = "" if bound is None else f"{bound.where}: "
    beside = None if bound is None else _beside(bound)
    path = locate(file, beside)
    if path is None:
        raise ConfigError(f"{where}{key} = {file!r}: no such file or run folder")
    if path.is_dir() and half:
        raise ConfigError(
            f"{where}run.twin trains the reference twice, on two halves: bind run.reference to a run file, not to the "
            f"folder {file!r}"
        )
    if path.is_dir():
        return None, path
    if str(path) in chain:
        raise ConfigError(f"{where}{key} = {file!r} needs itself as a {role}")
    origin = key if bound is None else f"{key} at {bound.where}"
    try:
        found = resolve([str(path)], [*more, *half], (), beside, (*chain, str(path)), origin, recorded)
    except ConfigError as error:
        raise ConfigError(f"{error} (in the {role} {_shown(path)})") from error
    if (found.run.objective is not None) != by_regression:
        kind = "trains no pair scorer (it has no run.objective)" if by_regression else "trains a pair scorer"
        raise ConfigError(f"{where}{key} = {file!r} {kind}: bind {key} to a run like {usual}")
    return found, None


def _check_frozen(
    run: Run,
    bindings: Sequence[Binding],
    own: Mapping[Pretrained, tuple[Resolved | None, Path | None]],
    recorded: ReadFolder | None,
) -> tuple[str, ...]:
    """What is doubtful about the frozen models that a run scores with; one that its budget adds is never run.

    Raises:
        ConfigError: the reference was trained on another loss, and more than its cosines is used.
    """
    models = [_training_of(run, role, *found, recorded) for role, found in own.items() if role in run.needs]
    where = _place("run.loss", bindings).removesuffix(": ") or "the default"
    if refused := other_loss(run, models, where):
        raise ConfigError(_place("run.reference", bindings) + refused)
    return data_warnings(run, models, {cls: name for name, cls in configurables().items()})


def _training_of(
    run: Run, role: Pretrained, own: Resolved | None, folder: Path | None, recorded: ReadFolder | None
) -> Trained:
    """What a frozen model of a run was trained on: by its own run, or as its folder records it."""
    if folder is None:
        assert own is not None
        asked = getattr(run, role)
        file = (asked,) if isinstance(asked, str) else tuple(asked)
        loss = own.run.loss if own.run.objective is None else None
        return Trained(role, own.run.arm or file[0], loss, own.run, file=file)
    operative = folder / "operative.gin"
    try:  # without the frozen models that it needs itself: they may be gone
        read = _read([str(operative)], (), None, COMMAND_LINE)
        bind(read)
        found: Run | None = _build(read)[0]
    except ConfigError:
        found = None
    file = (_shown(operative),) if found is not None else ()
    assert recorded is not None, "a run folder is resolved with a reader of run folders"
    read_back = recorded(folder)
    return Trained(role, _shown(folder), read_back.loss, found, read_back.data, file)
