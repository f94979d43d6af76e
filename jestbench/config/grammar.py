"""Gin text to bindings: files, includes, the command line, names and types. Nothing is built here."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util  # gin's file reader uses it without importing it
import math
import re
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
from gin import config_parser

from jestbench.config.registry import configurables, fields_of, fits, shown_type
from jestbench.config.run import ConfigError
from jestbench.disk import nearest, nearest_or_all

PROJECT = Path(__file__).resolve().parents[2]
_BINDING = re.compile(r"^(?P<key>[A-Za-z_][\w./]*)\s*=\s*(?P<value>.*)$", re.DOTALL)
COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class Binding:
    """One statement: ``scope/name.parameter = value``, or a macro (no parameter)."""

    scope: str
    name: str
    parameter: str
    value: Any
    where: str

    @property
    def key(self) -> str:
        """As it is written."""
        full = f"{self.name}.{self.parameter}" if self.parameter else self.name
        return f"{self.scope}/{full}" if self.scope else full


class _Delegate(gin.config.ParserDelegate):  # type: ignore[misc]
    """Makes references, with a message of ours for an unknown name."""

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Any:
        name = scoped_selector.rsplit("/", 1)[-1]
        if name not in configurables():
            raise ConfigError(f"@{scoped_selector}: nothing is named {name!r}; {nearest_or_all(name, configurables())}")
        return super().configurable_reference(scoped_selector, evaluate)


def _parse_text(text: str, file: str) -> list[Any]:
    """Gin's statements of a text.

    Raises:
        ConfigError: with file and line.
    """
    statements: list[Any] = []
    line = 1
    try:
        parser = config_parser.ConfigParser(text, _Delegate())
        while (statement := parser.parse_statement()) is not None:
            statements.append(statement)
            line = parser.current_token.start[0]
    except ConfigError as error:
        # Gin adds lines of its own to a delegate's message.
        raise ConfigError(f"{file}:{_first_statement(text, line)}: {str(error).splitlines()[0]}") from error
    except SyntaxError as error:
        first = str(error.msg).strip().splitlines()[0]
        if first.startswith("malformed node"):
            first = "Unable to parse value."
        begin = _first_statement(text, line)
        where = error.lineno or begin
        since = f" The statement begins at line {begin}: is a bracket open?" if where > begin else ""
        raise ConfigError(f"{file}:{where}: {first}{since}") from error
    except tokenize.TokenError as error:
        open_end = "EOF" in str(error) or "unterminated" in str(error)  # the latter from Python 3.12 on
        said = "a bracket or a string is opened and never closed" if open_end else str(error.args[0])
        raise ConfigError(f"{file}:{_first_statement(text, line)}: {said}") from error
    except (ValueError, StopIteration, TypeError, RecursionError) as error:
        said = str(error).splitlines()[0] if str(error) else repr(error)
        raise ConfigError(f"{file}:{_first_statement(text, line)}: cannot be parsed: {said}") from error
    return statements


def _first_statement(text: str, line: int) -> int:
    """The first line from here on that is neither empty nor a comment."""
    lines = enumerate(text.splitlines()[line - 1 :], line)
    return next((number for number, content in lines if content.split("#")[0].strip()), line)


def locate(path: str, beside: Path | None = None) -> Path | None:
    """A file or folder: as it stands, beside the file that names it or above it, or in the project."""
    asked = Path(path).expanduser()
    bases = [Path.cwd(), *(beside.resolve().parents if beside is not None else ()), PROJECT]
    return next((base / asked for base in bases if (base / asked).exists()), None)


def _missing(path: str, where: str, beside: Path | None) -> ConfigError:
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
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    file = _shown(path)
    bindings: list[Binding] = []
    for statement in _parse_text(text, file):
        where = f"{file}:{statement.location.line_num}"
        if isinstance(statement, config_parser.IncludeStatement):
            included = locate(statement.filename, path)
            beside = path.parent / statement.filename
            included = beside if beside.exists() else included
            if included is None or not included.is_file():
                raise _missing(statement.filename, f"{where}: ", path)
            if included.resolve() in open_files:
                circle = " → ".join(file.name for file in (*open_files, included))
                raise ConfigError(f"{where}: a file includes itself: {circle}")
            bindings += read_file(included, open_files)
        elif isinstance(statement, config_parser.ImportStatement):
            _import(statement.module, where)
        elif isinstance(statement, config_parser.BindingStatement):
            bindings.append(_binding(statement, where))
    return bindings


def _binding(statement: Any, where: str) -> Binding:
    return Binding(statement.scope, statement.selector, statement.arg_name, statement.value, where)


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _import(module: str, where: str) -> None:
    """An ``import`` in a gin file brings policies that are not installed as entry points."""
    try:
        importlib.import_module(module)
    except Exception as error:
        raise ConfigError(f"{where}: import {module} fails: {error}") from error


def read_binding(text: str, where: str = COMMAND_LINE) -> Binding:
    """A binding from the command line; a bare word or path is a string.

    Raises:
        ConfigError: it is no binding, or its value cannot be parsed.
    """
    matched = _BINDING.match(text)
    if matched is None:
        raise ConfigError(f"{where}: {text!r} is no binding: write Name.parameter=value")
    key, value = matched["key"], matched["value"].strip()
    try:
        statements = _parse_text(f"{key} = {value}\n", where)
    except ConfigError:
        if not value or any(mark in value for mark in "'\"()[]{}@%\n"):
            raise
        statements = _parse_text(f"{key} = {value!r}\n", where)
    if len(statements) != 1 or not isinstance(statements[0], config_parser.BindingStatement):
        raise ConfigError(f"{where}: {text!r} is not one binding")
    return _binding(statements[0], where)


def _holds_reference(value: Any) -> bool:
    if isinstance(value, gin.config.ConfigurableReference):
        return True
    if isinstance(value, Mapping):
        return any(_holds_reference(part) for pair in value.items() for part in pair)
    return isinstance(value, list | tuple) and any(_holds_reference(part) for part in value)


def _check_type(binding: Binding, value: Any, hint: Any) -> None:
    value = tuple(value) if isinstance(value, list) else value
    if not fits(value, hint):
        raise ConfigError(f"{binding.where}: {binding.key} = {value!r} must be of type {shown_type(hint)}")
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
        for macro in sorted(_macros_in(binding.value)):
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
            raise ConfigError(
                f"{binding.where}: {binding.name} has no parameter {binding.parameter!r}; "
                f"{nearest_or_all(binding.parameter, fields)}"
            )
        value, hint = _filled_in(binding.value, macros), fields[binding.parameter]
        if not _holds_reference(value):
            _check_type(binding, value, hint)
        elif isinstance(hint, type) and not getattr(hint, "_is_protocol", False):
            # A protocol, a union or a container is looked at when it is built.
            alone = isinstance(value, gin.config.ConfigurableReference)
            if not (alone and value.evaluate and known[bare_name(value.selector)] is hint):
                raise ConfigError(f"{binding.where}: {binding.key} must be of type {hint.__name__}, got {value!r}")


def _filled_in(value: Any, macros: Mapping[str, Any]) -> Any:
    """A value with its macros replaced."""
    if isinstance(value, gin.config.ConfigurableReference):
        return macros[repr(value)[1:]] if repr(value).startswith("%") else value
    if isinstance(value, Mapping):
        return {_filled_in(key, macros): _filled_in(part, macros) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_filled_in(part, macros) for part in value)
    return value


def _macros_in(value: Any) -> set[str]:
    if isinstance(value, gin.config.ConfigurableReference):
        return {repr(value)[1:]} if repr(value).startswith("%") else set()
    if isinstance(value, Mapping):
        return {name for pair in value.items() for part in pair for name in _macros_in(part)}
    if isinstance(value, list | tuple):
        return {name for part in value for name in _macros_in(part)}
    return set()


def bare_name(selector: str) -> str:
    """A configurable's name without the module that it was registered under."""
    return selector.rsplit(".", 1)[-1]


def _beside(binding: Binding) -> Path | None:
    """The file that a binding stands in."""
    file = Path(binding.where.rsplit(":", 1)[0])
    return file if file.is_file() else None
