"""The registered policies: found without gin, a model or a data set, so that a list of them is printed at once."""

from __future__ import annotations

from typing import Any

import policies


def policy_classes() -> dict[str, type[Any]]:
    """The registered policies: name → class.

    Raises:
        ConfigError: two policies have the same name, or an entry point cannot be loaded.
    """
    try:
        return {name: policies.get(name) for name in policies.available()}
    except ValueError as error:
        from jestbench.config.run import ConfigError  # a run's own module imports timm

        raise ConfigError(str(error)) from error


def policy_class(name: str) -> type[Any]:
    """The policy registered under a name.

    Raises:
        ValueError: no policy has that name; the message gives the nearest names.
    """
    return policies.get(name)
