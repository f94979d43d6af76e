"""The operative configuration: which bindings a run used, and the plain value of each parameter."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from jestbench.config.gin_edge import Binding, Reference, Snapshot, macro_of
from jestbench.config.registry import meant_by
from jestbench.config.run import ConfigError
from jestbench.disk import nearest_or_all


def check_used(held: Snapshot, bindings: Sequence[Binding], allowed: Sequence[str], arms: bool = True) -> None:
    """Compare what was bound with what was used.

    Args:
        held: what gin held.
        bindings: what was bound.
        allowed: patterns of bindings that need not be used.
        arms: whether the command takes ``--allow_unused``, for bindings of other arms.

    Raises:
        ConfigError: naming the bindings that this run never used.
    """
    last = {binding.key: binding for binding in bindings}
    dead = [
        binding
        for binding in last.values()
        if not _is_used(binding, held, last) and not any(fnmatch.fnmatch(binding.key, pattern) for pattern in allowed)
    ]
    if dead:
        first = dead[0]
        listed = ", ".join(f"{binding.key} ({binding.where})" for binding in dead)
        hint = ""
        if not first.parameter:
            macros = {scope for scope, name in held.used if name == "macro"}
            meant = meant_by(first.key, {name: used for (_, name), used in held.used.items()})
            hint = f"did you mean {', '.join(meant)}?" if meant else nearest_or_all(first.key, macros)
        elif first.scope:
            hint = nearest_or_all(first.scope, {scope for scope, name in held.used if scope and name == first.name})
        scope = f"{first.scope}/" if first.scope else ""
        pattern = f"{scope}{first.name}.*" if first.parameter else first.key
        unless = f", or say --allow_unused '{pattern}' if it is meant for other arms" if arms else ""
        raise ConfigError(
            f"{first.where}: this run never uses {listed}; {hint + ' ' if hint.startswith('did') else ''}"
            f"remove it{unless}"
        )


def _is_used(binding: Binding, held: Snapshot, last: Mapping[str, Binding]) -> bool:
    if not binding.parameter:
        return (binding.key, "macro") in held.used
    bound = held.bound[binding.scope, binding.name][binding.parameter]
    # A scoped binding wins over the plain one as a later one over an earlier one.
    narrower = [
        other.scope
        for other in last.values()
        if (other.name, other.parameter) == (binding.name, binding.parameter) and len(other.scope) > len(binding.scope)
    ]
    return any(
        name == binding.name
        and binding.parameter in parameters
        and (not binding.scope or f"{scope}/".startswith(f"{binding.scope}/"))
        and (parameters[binding.parameter] is bound or any(f"{scope}/".startswith(f"{other}/") for other in narrower))
        for (scope, name), parameters in held.used.items()
    )


def flat_config(held: Snapshot) -> dict[str, Any]:
    """The operative configuration as it may be stored, macros resolved: ``name.parameter`` → plain value."""
    stored = held.stored_bound.items()
    macros = {scope: parameters["value"] for (scope, name), parameters in stored if name == "macro"}
    flat: dict[str, Any] = {}
    for (scope, name), parameters in held.stored_used.items():
        if name != "macro":
            prefix = f"{scope}/" if scope else ""
            flat |= {f"{prefix}{name}.{key}": plain(value, macros) for key, value in parameters.items()}
    return dict(sorted(flat.items()))


def plain(value: Any, macros: Mapping[str, Any]) -> Any:
    """A value as JSON holds it, macros resolved; a reference, and what JSON cannot hold, as its text."""
    if isinstance(value, Reference):
        macro = macro_of(value)
        return repr(value) if macro is None else plain(macros[macro], macros)
    if isinstance(value, Mapping):
        return {str(key): plain(part, macros) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part, macros) for part in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
