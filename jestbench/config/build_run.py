"""The run that bindings stand for, built through gin, and what its constructors refuse."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from jestbench.config.gin_edge import Binding, Snapshot, bound, build, snapshot
from jestbench.config.registered import policy_class, policy_classes
from jestbench.config.registry import configurables, fields_of, fits, shown_type
from jestbench.config.run import ConfigError, Run


def build_run(bindings: Sequence[Binding]) -> tuple[Run, str, Snapshot]:
    """The run that bindings stand for, its policy built; the policy's name; and what gin held.

    Raises:
        ConfigError: a required value is missing, or a constructor refused one.
    """
    required = [
        field.name
        for field in dataclasses.fields(Run)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    keys = {binding.key for binding in bindings}
    for name in required:
        if f"run.{name}" not in keys:
            raise ConfigError(f"run.{name} is required: bind it in a gin file or as run.{name}=… on the command line")
    try:
        with bound(bindings):
            run: Run = build("run")
            asked = run.policy if isinstance(run.policy, str) else None
            if asked is not None:
                policy_class(asked)  # refuses an unknown name with the nearest; gin would name its own selectors
                run = dataclasses.replace(run, policy=build(asked))
            elif isinstance(run.policy, type):
                run = dataclasses.replace(run, policy=run.policy())
            held = snapshot()
    except ConfigError:
        raise
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError) as error:
        raise ConfigError(_constructor_message(error, bindings)) from error
    _check_built(run, bindings)
    known = policy_classes()
    names = [name for name, cls in known.items() if type(run.policy) is cls]
    if not names:
        raise ConfigError(
            f"{place('run.policy', bindings)}run.policy = {type(run.policy).__name__} is no registered policy; "
            f"there are {', '.join(known)}"
        )
    _check_chunks(run, asked or names[0], bindings)
    return run, asked or names[0], held


def place(key: str, bindings: Sequence[Binding]) -> str:
    """Where a parameter is bound, as the beginning of a message; empty where it is not."""
    return next((f"{binding.where}: " for binding in reversed(bindings) if binding.key == key), "")


def _check_built(run: Run, bindings: Sequence[Binding]) -> None:
    """Refuse wrong types of what ``@references`` brought, which cannot be seen before they are built."""
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
                raise ConfigError(f"{place(key, bindings)}{key} is not built: write @{built}()")
            if not fits(value, hint):
                raise ConfigError(
                    f"{place(key, bindings)}{key} must be of type {shown_type(hint)}, got {type(value).__name__}"
                )


def _check_chunks(run: Run, policy: str, bindings: Sequence[Binding]) -> None:
    """Refuse more chunks than a batch has pairs, where they are bound: the draw, under another name, of b chunks."""
    chunks, key = getattr(run.policy, "chunks", None), f"{policy}.chunks"
    usual = getattr(type(run.policy), "chunks", None)  # of a dataclass: the default
    if isinstance(chunks, int) and chunks > run.batch_size and chunks != usual:
        raise ConfigError(
            f"{place(key, bindings)}{key} = {chunks} chunks of run.batch_size = {run.batch_size} pairs: a chunk "
            f"holds at least one pair, so at most {run.batch_size}"
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
