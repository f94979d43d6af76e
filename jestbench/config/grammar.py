"""Gin text to bindings: files, includes, the command line, names and types. Nothing is built here."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import sys
import unicodedata
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jestbench import disk
from jestbench.config.gin_edge import (
    Binding,
    Import,
    Reference,
    bare_name,
    filled_in,
    macros_in,
    parse,
    references,
)
from jestbench.config.registry import configurables, fields_of, fits, no_parameter, shown_type
from jestbench.config.run import ConfigError
from jestbench.disk import PROJECT, nearest, nearest_or_all, shown

_BINDING = re.compile(r"^(?P<key>[A-Za-z_][\w./]*)\s*=\s*(?P<value>.*)$", re.DOTALL)
COMMAND_LINE = "command line"
IMPORTED: set[str] = set()
"""Modules that ``import`` statements have brought in this process."""


def locate(path: str, beside: Path | None = None) -> Path | None:
    """A file or folder: as it stands, beside the file that names it or above it, or in the project.

    ``None`` where there is none, and for an empty path, which would be the working directory.
    """
    if not path:
        return None
    asked = disk.user_path(path)
    bases = [Path.cwd(), *(beside.resolve().parents if beside is not None else ()), PROJECT]
    return next((base / asked for base in bases if (base / asked).exists()), None)


def missing_file(path: str, where: str, beside: Path | None) -> ConfigError:
    """An error that names a missing file, and the nearest gin file beside it."""
    folders = [base / Path(path).parent for base in (beside.parent if beside else Path.cwd(), PROJECT)]
    names = [file.name for folder in folders if folder.is_dir() for file in folder.glob("*.gin")]
    near = nearest(Path(path).name, names, "{}")
    hint = f"; did you mean {Path(path).parent / near}?" if near else ""
    return ConfigError(f"{where}there is no file {path}{hint}")


def read_file(path: Path, open_files: tuple[Path, ...] = ()) -> list[Binding]:
    """All bindings of a file, its includes in place.

    Raises:
        ConfigError: with file and line.
    """
    path = path.resolve()
    open_files = (*open_files, path)
    try:
        text = disk.decoded(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    bindings: list[Binding] = []
    for statement in _parsed(text, path):
        if isinstance(statement, Binding):
            bindings.append(statement)
            continue
        where = f"{shown(path)}:{statement.location.line_num}"
        if isinstance(statement, Import):
            _import(statement.module, path, where)
            continue
        beside = path.parent / statement.filename
        included = beside if beside.exists() else locate(statement.filename, path)
        if included is None or not included.is_file():
            raise missing_file(statement.filename, f"{where}: ", path)
        if included.resolve() in open_files:
            circle = " → ".join(file.name for file in (*open_files, included))
            raise ConfigError(f"{where}: a file includes itself: {circle}")
        bindings += read_file(included, open_files)
    return bindings


def _parsed(text: str, path: Path) -> list[Any]:
    """The statements of a file; ``ConfigError`` with file, line and the character that only looks like one of gin's."""
    try:
        return parse(text, shown(path), configurables())
    except ConfigError as error:
        place = re.match(rf"{re.escape(shown(path))}:(\d+): ", str(error))
        lines = text.splitlines()[int(place[1]) - 1 :][:1] if place else []
        odd = _look_alike(lines[0]) if lines else ""
        raise ConfigError(f"{place[0]}{odd}" if place and odd else str(error)) from error


def _import(module: str, beside: Path, where: str) -> None:
    """An ``import`` in a gin file brings policies that are not installed: modules found as files are, and installed."""
    file = locate(module.replace(".", "/") + ".py", beside)
    folder = None if file is None else str(file.resolve().parents[module.count(".")])
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)
    try:
        importlib.import_module(module)
        IMPORTED.add(module)
    except Exception as error:
        raise ConfigError(f"{where}: import {module} fails: {error}") from error


_LOOK_ALIKES = {
    **dict.fromkeys("“”„‟«»", 'write " instead'),
    **dict.fromkeys("‘’‚‛", "write ' instead"),
    **dict.fromkeys("−–—‐‑", "write - instead"),
    **dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", "write a plain space instead"),
    **dict.fromkeys("\ufeff\u200b\u2060", "remove it"),
}
"""Characters of text processors and web pages that look like gin's own, or like nothing, and what to do."""


def _look_alike(text: str) -> str:
    """A sentence on the first character of a text that only looks like one of gin's; empty where there is none."""
    found = next((character for character in text if character in _LOOK_ALIKES), None)
    if found is None:
        return ""
    shown = found if found.isprintable() else "an invisible character"
    name = unicodedata.name(found).lower().replace("zero width no-break space", "byte-order mark")
    return f"it holds {shown} (U+{ord(found):04X}, {name}): {_LOOK_ALIKES[found]}"


_PATTERN = re.compile(r"(?<=.)(\{[^{}\[\]]*\}|\[[^{}\[\]]*\])", re.DOTALL)
"""Braces and brackets within a path or pattern (``pool-{0..3}.tar``, ``a.parquet:train[:100]``), not at its start."""


def read_binding(text: str, where: str = COMMAND_LINE) -> Binding:
    """A binding from the command line; a bare word, path or pattern is a string.

    Raises:
        ConfigError: the text is not a binding, or its value cannot be parsed.
    """
    matched = _BINDING.match(text)
    if matched is None:
        odd = _look_alike(text.partition("=")[0])
        raise ConfigError(f"{where}: {text!r} is no binding: {odd or 'write Name.parameter=value'}")
    key, value = matched["key"], matched["value"].strip()
    if not value:
        raise ConfigError(f"{where}: {text} has no value: write one, '' for an empty text")
    if odd := _look_alike(value[:1] + value[-1:]):  # a word in such quotes is a mistake, not a name
        raise ConfigError(f"{where}: {text!r}: {odd}")
    try:
        statements = parse(f"{key} = {value}\n", where, configurables())
    except ConfigError as error:
        if any(mark in _PATTERN.sub("", value) for mark in "'\"()[]{}@%\n"):
            said = str(error).replace(f"{where}:1: ", f"{where}: {text}: ", 1)
            unquoted = where == COMMAND_LINE and value[0] in "([{" and not any(mark in value for mark in "'\"")
            hint = f" A shell takes quotes off: put the whole binding into quotes, '{key}=…'." if unquoted else ""
            raise ConfigError(said + hint) from error
        statements = parse(f"{key} = {value!r}\n", where, configurables())
    if len(statements) != 1 or not isinstance(statements[0], Binding):
        raise ConfigError(f"{where}: {text!r} is not one binding")
    return dataclasses.replace(statements[0], where=where)


def check_expanded(bindings: Sequence[Binding]) -> None:
    """Refuse one name that is bound in a row to paths that differ in digits alone: a shell has expanded their pattern.

    The last of them would win, and all other files would be left out in silence.

    Args:
        bindings: of the command line, in their order.

    Raises:
        ConfigError: naming the paths.
    """
    for _, group in groupby(bindings, lambda binding: binding.key):
        row = [*group]
        paths = [one.value for one in row if isinstance(one.value, str) and re.search("[./]", one.value)]
        numbered = len({re.sub(r"\d+", "0", path) for path in paths}) == 1
        if 1 < len(row) == len(set(paths)) and numbered:
            raise ConfigError(
                f"{row[0].where}: {row[0].key} is bound {len(row)} times in a row, to {paths[0]} … {paths[-1]}, and "
                f"the last would be the only one: where a shell has expanded braces, put quotes around the binding "
                f"('{row[0].key}=…{{…}}…'), else bind it once"
            )


def _check_type(binding: Binding, value: Any, hint: Any) -> None:
    value = tuple(value) if isinstance(value, list) else value
    if not fits(value, hint):
        said = f"{binding.where}: {binding.key} = {value!r} must be of type {shown_type(hint)}"
        one = f"{binding.key}={(value,)!r}"
        one = f'"{one}"' if binding.where == COMMAND_LINE else one  # a shell takes quotes off
        raise ConfigError(f"{said}; a single one is written {one}" if fits((value,), hint) else said)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{binding.where}: {binding.key} = {value!r} must be finite")


def check_names(bindings: Sequence[Binding]) -> None:
    """Names and types of all bindings, before anything is built.

    Raises:
        ConfigError: naming file, line and the nearest valid name.
    """
    known = configurables()
    macros = {binding.key: binding.value for binding in bindings if not binding.parameter}
    for binding in bindings:
        for macro in sorted(macros_in(binding.value)):
            if macro not in macros:
                raise ConfigError(f"{binding.where}: %{macro} is not defined; {nearest_or_all(macro, macros)}")
            if not binding.parameter:
                raise ConfigError(f"{binding.where}: {binding.key} renames %{macro}: one level of macros")
        if not binding.parameter:
            continue
        if binding.name not in known:
            raise ConfigError(
                f"{binding.where}: {binding.key}: nothing is named {binding.name!r}; "
                f"{nearest_or_all(binding.name, known)}"
            )
        fields = fields_of(known[binding.name])
        if binding.parameter not in fields:
            raise ConfigError(f"{binding.where}: {no_parameter(binding.name, binding.parameter, fields)}")
        value, hint = filled_in(binding.value, macros), fields[binding.parameter]
        if not any(references(value)):
            _check_type(binding, value, hint)
        elif isinstance(hint, type) and not getattr(hint, "_is_protocol", False):
            # A protocol, a union or a container is looked at when it is built.
            alone = isinstance(value, Reference)
            if not (alone and value.evaluate and known[bare_name(value.selector)] is hint):
                raise ConfigError(f"{binding.where}: {binding.key} must be of type {hint.__name__}, got {value!r}")


def file_of(binding: Binding) -> Path | None:
    """The file that a binding stands in."""
    file = Path(binding.where.rsplit(":", 1)[0])
    return file if file.is_file() else None
