"""Gin's own state: bindings go in, the operative configuration comes out. The only module that touches it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import gin

from jestbench.config.grammar import Binding, bare_name
from jestbench.config.run import ConfigError
from jestbench.disk import nearest_or_all

_MACRO = "gin.macro"


def bind(bindings: Sequence[Binding]) -> None:
    """Put bindings in the place of all that gin holds; later ones win."""
    gin.clear_config()
    for binding in bindings:
        if binding.parameter:
            value = tuple(binding.value) if isinstance(binding.value, list) else binding.value
            gin.bind_parameter((binding.scope, binding.name, binding.parameter), value)
        else:
            gin.bind_parameter((binding.key, _MACRO, "value"), binding.value)


def check_used(bindings: Sequence[Binding], allowed: Sequence[str]) -> None:
    """Compare what was bound with what was used.

    Raises:
        ConfigError: naming the bindings that this run never used.
    """
    used: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for (scope, selector), parameters in gin.config._OPERATIVE_CONFIG.items():
        used.setdefault(bare_name(selector), []).append((scope, parameters))
    last = {binding.key: binding for binding in bindings}
    dead = [
        binding
        for binding in last.values()
        if not _is_used(binding, used, last) and not any(fnmatch.fnmatch(binding.key, pattern) for pattern in allowed)
    ]
    if dead:
        first = dead[0]
        listed = ", ".join(f"{binding.key} ({binding.where})" for binding in dead)
        hint = ""
        if not first.parameter:
            hint = nearest_or_all(first.key, {scope for scope, _ in used.get("macro", [])})
        elif first.scope:
            hint = nearest_or_all(first.scope, {scope for scope, _ in used.get(first.name, []) if scope})
        scope = f"{first.scope}/" if first.scope else ""
        pattern = f"{scope}{first.name}.*" if first.parameter else first.key
        raise ConfigError(
            f"{first.where}: this run never uses {listed}; {hint + ' ' if hint.startswith('did') else ''}"
            f"remove it, or say --allow_unused '{pattern}' if it is meant for other arms"
        )


def _is_used(
    binding: Binding, used: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]], last: Mapping[str, Binding]
) -> bool:
    if not binding.parameter:
        return any(scope == binding.key for scope, _ in used.get("macro", []))
    selector = gin.config._REGISTRY.get_match(binding.name).selector
    bound = gin.config._CONFIG[(binding.scope, selector)][binding.parameter]
    # A scoped binding wins over the plain one as a later one over an earlier one.
    narrower = [
        other.scope
        for other in last.values()
        if (other.name, other.parameter) == (binding.name, binding.parameter) and len(other.scope) > len(binding.scope)
    ]
    return any(
        binding.parameter in parameters
        and (not binding.scope or f"{scope}/".startswith(f"{binding.scope}/"))
        and (parameters[binding.parameter] is bound or any(f"{scope}/".startswith(f"{other}/") for other in narrower))
        for scope, parameters in used.get(binding.name, [])
    )


def flat_config() -> dict[str, Any]:
    """The operative configuration, macros resolved: ``name.parameter`` → plain value."""
    macros = {
        scope: parameters["value"] for (scope, selector), parameters in gin.config._CONFIG.items() if selector == _MACRO
    }

    def plain(value: Any) -> Any:
        if isinstance(value, gin.config.ConfigurableReference):
            text = repr(value)
            return plain(macros[text[1:]]) if text.startswith("%") else text
        if isinstance(value, Mapping):
            return {str(key): plain(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
            return int(value)
        return value if isinstance(value, str | int | float | bool | None) else repr(value)

    flat: dict[str, Any] = {}
    for (scope, selector), parameters in gin.config._OPERATIVE_CONFIG.items():
        if selector != _MACRO:
            prefix = f"{scope}/" if scope else ""
            flat |= {f"{prefix}{bare_name(selector)}.{name}": plain(value) for name, value in parameters.items()}
    return dict(sorted(flat.items()))
