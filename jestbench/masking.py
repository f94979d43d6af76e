"""Credentials in bindings: read from the environment where a binding names it, masked wherever a value is written.

This module imports no torch: the files of a run folder are written and read without it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, TypeVar

MASK = "<masked>"
"""What stands in a file in place of a credential."""
_FROM_ENVIRONMENT = re.compile(r"\$\{env:(\w+)\}")
_NAMES = r"(?:[\w-]*(?:token|secret|passw(?:or)?d|api[_-]?key|access[_-]?key|signature|credential)|sig|pwd|key)"
_CREDENTIALS = (
    (re.compile(r"(://)[^/\s@'\"]+(?=@)"), rf"\g<1>{MASK}"),  # user:password@host
    (re.compile(r"(?i)\b((?:bearer|basic)\s+)[^\s'\",;]+"), rf"\g<1>{MASK}"),
    (re.compile(r"(?i)\b((?:x-api-key|authorization)\s*:\s*)(?!bearer|basic)[^\s'\",;]+"), rf"\g<1>{MASK}"),
    (re.compile(rf"(?i)(?<![\w.]){_NAMES}(=)[^\s&'\",;]+"), None),
    (re.compile(r"\b(?:hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}|sk-[\w-]{20,})"), MASK),
)
"""Texts that look like credentials, and what is written in their place."""
_LEAST = 8
"""Characters of a variable's value that is looked for in texts; a shorter one may be any word in them."""
_read: dict[str, str] = {}  # of this process: what the environment gave, and the reference that it was read by
_T = TypeVar("_T")


def masked(value: _T) -> _T:
    """A text, or the texts in mappings and sequences, with what looks like a credential masked.

    What was read from the environment is written as the reference that it was read by. A value in which nothing is
    masked is returned itself.
    """
    found: Any = value
    if isinstance(value, str):
        found = _masked_text(value)
    elif isinstance(value, Mapping):
        found = {key: masked(part) for key, part in value.items()}
    elif type(value) in (list, tuple):
        found = type(value)(masked(part) for part in value)  # type: ignore[attr-defined, call-arg]
    return value if type(found) is type(value) and found == value else found


def _masked_text(text: str) -> str:
    for secret, reference in _read.items():
        text = text.replace(secret, reference)
    for pattern, instead in _CREDENTIALS:
        text = pattern.sub(instead if instead is not None else _named, text)
    return text


def _named(found: re.Match[str]) -> str:
    """``token=…`` with its value masked, but for a reference to the environment."""
    name, _, value = found[0].partition("=")
    return found[0] if _FROM_ENVIRONMENT.fullmatch(value) else f"{name}={MASK}"


def from_environment(value: Any, where: str) -> Any:
    """A bound value with ``${env:NAME}`` filled in; the value itself where it names no variable.

    Args:
        value: of a binding.
        where: the binding, for messages.

    Raises:
        ValueError: a variable is not set, or a credential is masked and must be given again.
    """
    if isinstance(value, str):
        if MASK in value:
            raise ValueError(
                f"{where} holds a credential that was masked when it was written ({value!r}): give the binding again, "
                "or name a variable that holds it, ${env:NAME}, which is stored as written"
            )
        return _FROM_ENVIRONMENT.sub(lambda found: _variable(found[1], where), value)
    if isinstance(value, Mapping):
        found: Any = {key: from_environment(part, where) for key, part in value.items()}
    elif type(value) in (list, tuple):
        found = type(value)(from_environment(part, where) for part in value)
    else:
        return value
    changed = found != value
    return found if changed else value


def _variable(name: str, where: str) -> str:
    if name not in os.environ:
        raise ValueError(f"{where} reads ${{env:{name}}}, and the variable {name} is not set: export {name}=…")
    value = os.environ[name]
    if len(value) >= _LEAST:
        _read[value] = f"${{env:{name}}}"
    return value
