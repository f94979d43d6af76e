"""The registry of policies; a policy is one file in this folder with ``@register("name")``.

Other installed packages add policies through the entry-point group ``jestbench.policies``
(the entry point names the module or the class; importing it registers the policy).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from jestbench.disk import nearest
from jestbench.select import Policy

GROUP = "jestbench.policies"
_CLASSES: dict[str, type[Any]] = {}
_T = TypeVar("_T", bound=type[Any])


def register(name: str) -> Callable[[_T], _T]:
    """Register a policy class under a name (a class decorator).

    Raises:
        ValueError: another policy has this name, or the class is not a policy.
    """

    def add(cls: _T) -> _T:
        if not callable(getattr(cls, "select", None)) or not hasattr(cls, "needs"):
            raise ValueError(f"policy {name!r}: {cls.__name__} needs `needs` and `select(scores, count, generator)`")
        known = _CLASSES.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"two policies are named {name!r}: {known.__module__}.{known.__qualname__} "
                f"and {cls.__module__}.{cls.__qualname__}; rename one"
            )
        for default in ("cosine_only", "by_parts", "takes_all", "remembers"):
            if not hasattr(cls, default):
                setattr(cls, default, getattr(Policy, default))
        _CLASSES[name] = cls
        return cls

    return add


@lru_cache(maxsize=1)
def _discover() -> None:
    package = importlib.import_module("policies")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_") and module.name != "registry":
            importlib.import_module(f"policies.{module.name}")
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            raise ValueError(
                f"the entry point {entry.name!r} ({entry.value}) of group {GROUP} cannot be loaded: {error}"
            ) from error


def available() -> tuple[str, ...]:
    """The names of all registered policies, sorted."""
    _discover()
    return tuple(sorted(_CLASSES))


def get(name: str) -> type[Any]:
    """The class registered under a name.

    Raises:
        ValueError: no policy has this name; the message gives the nearest.
    """
    _discover()
    if name not in _CLASSES:
        hint = nearest(name, _CLASSES, "did you mean {!r}? ")
        raise ValueError(f"no policy is named {name!r}; {hint}there are {', '.join(available())}")
    return _CLASSES[name]


def create(name: str, /, **parameters: Any) -> Policy:
    """Build a policy by name; keyword arguments are the policy's parameters.

    Raises:
        ValueError: no such policy, or a parameter out of range.
        TypeError: no such parameter.
    """
    policy: Policy = get(name)(**parameters)
    return policy
