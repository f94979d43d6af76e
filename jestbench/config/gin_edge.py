"""Gin at the edge: its parser, its registry, and its global state. The only file that imports gin.

Gin holds bindings inside a ``with bound(…)`` block alone. What later steps read is carried out of the block by a
``Snapshot``, so that nothing which resolves another run in between can change it.
"""

from __future__ import annotations

import contextlib
import importlib.util  # noqa: F401  gin's file reader uses it without importing it
import tokenize
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gin
from gin import config_parser

from jestbench.config.run import ConfigError
from jestbench.disk import nearest_or_all
from jestbench.masking import from_environment, masked

Reference = gin.config.ConfigurableReference
"""``@name``, ``@name()`` or ``%macro`` in a value."""
_MACRO = "gin.macro"


@dataclass(frozen=True)
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

    @property
    def unscoped(self) -> str:
        """Name and parameter, whatever the scope."""
        return f"{self.name}.{self.parameter}"


Import = config_parser.ImportStatement
"""``import module``, as gin parses it."""


class _Delegate(gin.config.ParserDelegate):  # type: ignore[misc]
    """Makes references, with a message of ours for an unknown name."""

    def __init__(self, known: Collection[str]) -> None:
        super().__init__()
        self.known = known

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Any:
        name = scoped_selector.rsplit("/", 1)[-1]
        if name not in self.known:
            raise ConfigError(f"@{scoped_selector}: nothing is named {name!r}; {nearest_or_all(name, self.known)}")
        return super().configurable_reference(scoped_selector, evaluate)


def parse(text: str, file: str, known: Collection[str]) -> list[Any]:
    """A text's statements: each a ``Binding``, or what gin makes of ``include "filename"`` and ``import module``.

    Args:
        text: in gin's grammar.
        file: its name, for messages.
        known: names that a reference may have.

    Raises:
        ConfigError: with file and line.
    """
    statements = []
    line = 1
    try:
        parser = config_parser.ConfigParser(text, _Delegate(known))
        while (statement := parser.parse_statement()) is not None:
            if isinstance(statement, config_parser.BindingStatement):
                scope, name, parameter, value, place = statement
                statements.append(Binding(scope, name, parameter, value, f"{file}:{place.line_num}"))
            elif not isinstance(statement, config_parser.BlockDeclaration):  # gin lists a block's bindings one by one
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
        reason = "a bracket or a string is opened and never closed" if open_end else str(error.args[0])
        raise ConfigError(f"{file}:{_first_statement(text, line)}: {reason}") from error
    except (ValueError, StopIteration, TypeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ConfigError(f"{file}:{_first_statement(text, line)}: cannot be parsed: {reason}") from error
    return statements


def _first_statement(text: str, line: int) -> int:
    """The first line from here on that is neither empty nor a comment."""
    lines = enumerate(text.splitlines()[line - 1 :], line)
    return next((number for number, content in lines if content.split("#")[0].strip()), line)


def references(value: Any) -> Iterator[Any]:
    """All references in a value, macros among them."""
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from references(pair)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from references(part)


def macro_of(reference: Any) -> str | None:
    """The macro that a reference stands for; ``None`` for a configurable."""
    text = repr(reference)
    return text[1:] if text.startswith("%") else None


def macros_in(value: Any) -> set[str]:
    """The macros that a value refers to."""
    return {macro for reference in references(value) if (macro := macro_of(reference)) is not None}


def filled_in(value: Any, macros: Mapping[str, Any]) -> Any:
    """A value with its macros replaced."""
    if isinstance(value, Reference):
        macro = macro_of(value)
        return value if macro is None else macros[macro]
    if isinstance(value, Mapping):
        return {filled_in(key, macros): filled_in(part, macros) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(filled_in(part, macros) for part in value)
    return value


def bare_name(selector: str) -> str:
    """A configurable's name without the module that it was registered under."""
    return selector.rsplit(".", 1)[-1]


def register(name: str, cls: type[Any], module: str) -> None:
    """Make a class bindable under a name. Once: references made before a second time would not equal those after it."""
    gin.external_configurable(cls, name=name, module=module)


@contextlib.contextmanager
def bound(bindings: Sequence[Binding]) -> Iterator[None]:
    """Gin holds these bindings, later ones winning, and nothing else; outside of the block it holds none.

    Raises:
        ConfigError: a value names a variable of the environment that is not set, or holds a masked credential.
    """
    gin.clear_config()
    try:
        for binding in {binding.key: binding for binding in bindings}.values():
            value = tuple(binding.value) if isinstance(binding.value, list) and binding.parameter else binding.value
            try:
                filled = from_environment(value, binding.key)
            except ValueError as error:
                raise ConfigError(f"{binding.where}: {error}") from error
            _WRITTEN[id(filled)] = filled, value
            if binding.parameter:
                gin.bind_parameter((binding.scope, binding.name, binding.parameter), filled)
            else:
                gin.bind_parameter((binding.key, _MACRO, "value"), filled)
        yield
    finally:
        _WRITTEN.clear()
        gin.clear_config()


_WRITTEN: dict[int, tuple[Any, Any]] = {}
"""Of what gin holds, by identity: a value, and as it was written (with ``${env:NAME}``). A run folder and W&B store the
latter, so that no credential of the environment lies there; the value is kept, so that its identity stays its own."""


def _as_written(value: Any) -> Any:
    """A value as it may be stored: as it was written, with what looks like a credential masked."""
    return masked(_WRITTEN.get(id(value), (value, value))[1])


def build(name: str) -> Any:
    """An object of a configurable, its parameters as they are bound."""
    return gin.get_configurable(name)()


Held = Mapping[tuple[str, str], Mapping[str, Any]]
"""Scope and bare name → parameters."""


@dataclass(frozen=True)
class Snapshot:
    """The state of gin after a run was built.

    Attributes:
        config: the bindings as parsed, as gin text.
        operative: the bindings as used, as gin text.
        bound: the bindings as parsed; a macro is the parameter ``value`` of ``macro`` under its own name as the scope.
        used: the bindings as used, and the defaults of what was built.
        stored_bound: ``bound`` as it may be stored: as written, credentials masked. The texts are of these values.
        stored_used: ``used`` in the same form.
    """

    config: str
    operative: str
    bound: Held
    used: Held
    stored_bound: Held
    stored_used: Held


def snapshot() -> Snapshot:
    """The state of gin; to be taken inside of ``bound``."""

    def copied(held: Mapping[tuple[str, str], Mapping[str, Any]]) -> Held:
        return {(scope, bare_name(selector)): dict(parameters) for (scope, selector), parameters in held.items()}

    in_gin = (gin.config._CONFIG, gin.config._OPERATIVE_CONFIG)
    bound, used = map(copied, in_gin)
    for held in in_gin:  # gin's texts are made of what it holds
        for parameters in held.values():
            parameters.update({name: _as_written(value) for name, value in parameters.items()})
    return Snapshot(gin.config_str(), gin.operative_config_str(), bound, used, *map(copied, in_gin))
