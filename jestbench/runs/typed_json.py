"""Dataclasses read from parsed JSON by the types of their fields; a value that does not fit is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_hints = cache(get_type_hints)  # which evaluates every annotation anew


def from_json(cls: type[T], document: object, where: str = "") -> T:
    """A dataclass from a JSON object; keys that match no field are ignored.

    Args:
        cls: a dataclass whose fields are numbers, strings, literals, other dataclasses, ``… | None``, mappings with
            string keys, and tuples of one type.
        document: as ``json.loads`` returns it.
        where: the object's place in its file, for messages.

    Raises:
        ValueError: the document is no object, or a field is missing or of another type; the message names the field.
    """
    if not isinstance(document, dict):
        raise ValueError(f"{where!r} is {document!r}, not an object")
    assert is_dataclass(cls)
    hints, found = _hints(cls), {}
    for field in fields(cls):
        name = f"{where}.{field.name}" if where else field.name
        if field.name in document:
            found[field.name] = _value(hints[field.name], document[field.name], name)
        elif field.default is MISSING:
            raise ValueError(f"{name!r} is missing")
    return cls(**found)


def _value(hint: Any, value: object, name: str) -> Any:
    kind, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if kind in (Union, UnionType):
        return None if value is None else _value(arguments[0], value, name)
    if kind is Literal and value in arguments:
        return value
    if kind is Mapping and isinstance(value, dict):
        return {key: _value(arguments[1], part, f"{name}.{key}") for key, part in value.items()}
    if kind is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], part, f"{name}[{place}]") for place, part in enumerate(value))
    if is_dataclass(hint):
        return from_json(hint, value, name)  # type: ignore[arg-type]  # the type of a field is no instance
    if hint is bool and isinstance(value, bool):
        return value
    plain: dict[Any, tuple[type, ...]] = {float: (int, float), int: (int,), str: (str,)}
    if isinstance(value, plain.get(hint, ())) and not isinstance(value, bool):
        return value
    expected = {
        float: "a number",
        bool: "true or false",
        int: "a whole number",
        str: "a text",
        Mapping: "an object",
        tuple: "a list",
    }
    raise ValueError(f"{name!r} is {value!r}, not {expected.get(kind or hint) or f'one of {arguments}'}")
