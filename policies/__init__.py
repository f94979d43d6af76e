"""Selection policies, one file each, discovered by ``registry``."""

from policies.registry import available, create, get, register

__all__ = ["available", "create", "get", "register"]
