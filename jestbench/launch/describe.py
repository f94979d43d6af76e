"""Descriptions of what can be bound, for ``--describe``: parameters, types, defaults, meanings, sources."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jestbench.config.registered import policy_classes
from jestbench.config.registry import configurables, fields_of, no_parameter
from jestbench.config.run import ConfigError
from jestbench.disk import PROJECT, nearest_or_all

WIDTH = 100
"""Columns of what is printed."""
_SECTION = re.compile(r"^(?:Attributes|Args|Parameters):\n((?:[ \t].*\n|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+)(?: \([^)\n]*\))?: *((?:.*\n)(?: {5,}.*\n|\n)*)", re.MULTILINE)
_GROUPS = {"data": "data", "engine": "models and training", "model": "models and training"}
"""Room of ``jestbench`` → heading; every other room holds parts of a run."""


def meanings(cls: type[Any]) -> dict[str, str]:
    """The meaning of each attribute that the docstrings of a class and of its bases describe, the nearest first."""
    found: dict[str, str] = {}
    for one in cls.__mro__[:-1]:
        for section in _SECTION.findall(inspect.cleandoc(one.__dict__.get("__doc__") or "") + "\n"):
            for name, text in _ENTRY.findall(section):
                found.setdefault(name, " ".join(text.replace("``", "").split()))
    return found


def default_of(cls: type[Any], name: str) -> str:
    """The default of a parameter as it would be bound; ``required`` where there is none."""
    names = {known: label for label, known in configurables().items()}
    default: Any = inspect.signature(cls).parameters[name].default
    if dataclasses.is_dataclass(cls):
        field = next(field for field in dataclasses.fields(cls) if field.name == name)
        factory = field.default_factory
        if factory is not dataclasses.MISSING:
            label = names.get(factory) if isinstance(factory, type) else None
            return f"@{label}()" if label else repr(factory())
        default = field.default
    if default in (dataclasses.MISSING, inspect.Parameter.empty):
        return "required"
    label = names.get(type(default))
    return f"@{label}()" if label and default == type(default)() else repr(default)


def type_of(hint: Any) -> str:
    """A type for a reader: the values of a literal, the name of a configurable as it would be bound."""
    names = {cls: f"@{label}()" for label, cls in configurables().items()}
    if hint is type(None):
        return "None"
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(repr(value) for value in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(type_of(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"({', '.join('…' if part is ... else type_of(part) for part in typing.get_args(hint))})"
    if isinstance(hint, type) and not typing.get_args(hint):
        return names.get(hint, hint.__name__)
    return re.sub(r"[\w.]+\.(\w+)", r"\1", str(hint))


def _paragraph(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _file(cls: type[Any]) -> Path:
    path = Path(inspect.getfile(cls))
    return path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path


def _module_doc(cls: type[Any]) -> str:
    return inspect.getdoc(sys.modules[cls.__module__]) or ""


def _source_lines(cls: type[Any]) -> Iterator[str]:
    """The paragraph on the source and departures of a policy, and the file of a class."""
    for paragraph in re.split(r"\n\s*\n", _module_doc(cls)):
        if "Source:" in paragraph:
            for part in re.split(r"\n(?=Departures?:)", paragraph):
                yield from _paragraph(" ".join(part.replace("``", "").split()))
    yield f"File: {_file(cls)}"


def _policy_lines(name: str, cls: type[Any]) -> Iterator[str]:
    needs = ", ".join(sorted(cls.needs)) if isinstance(cls.needs, frozenset) else "it depends on the parameters"
    yield f"Needs: {needs or 'no scores'}"
    arms = [
        path.relative_to(PROJECT).as_posix()
        for path in sorted((PROJECT / "gin" / "policy").glob("*.gin"))
        if re.search(rf"^run\.policy *= *[\"']{name}[\"']", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    if arms:
        yield from _paragraph(f"Arms: {', '.join(arms)}")


def _parameter_lines(key: str, cls: type[Any], parameter: str) -> Iterator[str]:
    hint = type_of(fields_of(cls)[parameter])
    yield from _paragraph(f"{key}: {hint} = {default_of(cls, parameter)}")
    meaning = meanings(cls).get(parameter, "")
    yield from _paragraph(meaning or f"(its docstring describes no attribute {parameter})", "    ")


def described(asked: str) -> str:
    """Describe a policy, another configurable, or one parameter of either.

    Args:
        asked: a registered name (``jest``), one with its scope (``cheap/view``), or a parameter (``jest.chunks``).

    Returns:
        The description, at most ``WIDTH`` columns wide where no single word is wider.

    Raises:
        ConfigError: nothing has that name; the message gives the nearest.
    """
    scope, _, bare = asked.strip().removeprefix("@").removesuffix("()").rpartition("/")
    name, _, parameter = bare.partition(".")
    found = policy_classes() if name in policy_classes() else configurables()
    if name not in found:
        raise ConfigError(f"--describe {asked}: nothing is named {name!r}; {nearest_or_all(name, found)}")
    cls, prefix = found[name], f"{scope}/{name}" if scope else name
    fields = fields_of(cls)
    if parameter:
        if parameter not in fields:
            raise ConfigError(f"--describe {asked}: {no_parameter(name, parameter, fields)}")
        return "\n".join([*_parameter_lines(f"{prefix}.{parameter}", cls, parameter), f"File: {_file(cls)}"])
    kind = "policy" if name in policy_classes() else "configurable"
    head = " ".join(part for part in (f"{prefix} ({kind}):", _first_sentence(cls)) if part)
    lines = [*_paragraph(head), ""]
    for field in fields:
        lines += _parameter_lines(f"{prefix}.{field}", cls, field)
    lines += [] if fields else ["It has no parameters."]
    lines += ["", *(_policy_lines(name, cls) if kind == "policy" else ()), *_source_lines(cls)]
    return "\n".join(lines)


def _first_sentence(cls: type[Any]) -> str:
    own = cls.__doc__ or ""
    if own.startswith(f"{cls.__name__}("):  # what dataclass writes where there is no docstring
        own = _module_doc(cls)
    text = " ".join(inspect.cleandoc(own).replace("``", "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0]


def everything() -> str:
    """What can be described, in groups: policies, parts of a run, data, models."""
    groups: dict[str, list[tuple[str, type[Any]]]] = {
        "policies": list(policy_classes().items()),
        "a run and its parts": [],
    }
    for name, cls in configurables().items():
        if name not in policy_classes():
            room = cls.__module__.split(".")[1]
            groups.setdefault(_GROUPS.get(room, "a run and its parts"), []).append((name, cls))
    lines = ["--describe NAME prints a name's parameters; NAME.PARAMETER one of them."]
    for heading, members in groups.items():
        lines += ["", heading, *(f"  {name:<20}{_cut(_first_sentence(cls))}" for name, cls in sorted(members))]
    return "\n".join(lines)


def _cut(text: str) -> str:
    room = WIDTH - 22
    return text if len(text) <= room else textwrap.shorten(text, room, placeholder=" …")
