"""Selection policies: one file each, found by themselves (see ``registry``)."""

from policies.registry import available, create, get, register

__all__ = ["available", "create", "get", "register"]
