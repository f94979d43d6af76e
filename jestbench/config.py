"""Gin at the edge: the only file that knows gin, and the only one that knows the policies.

Statements are parsed by gin's own parser, then checked one by one *before* anything is built (names,
types), bound, and built. What gin passes over in silence is an error here: a binding, a scope or a
macro that the run never uses, a bare word, a file that an include cannot find.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import hashlib
import importlib
import importlib.util  # gin's file reader uses it without importing it
import json
import math
import re
import sys
import tokenize
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import typeguard
from gin import config_parser

import policies
from jestbench.cache import Cache
from jestbench.data.all_icons import Iconify
from jestbench.data.augment import RandomResizedCrop
from jestbench.data.captions import Captions
from jestbench.data.cascade import Cascade
from jestbench.data.hub import HuggingFace
from jestbench.data.icons import Icons
from jestbench.data.prefetch import Loader
from jestbench.data.shards import WebDataset
from jestbench.data.stream import Stream
from jestbench.data.synthetic import Synthetic
from jestbench.data.tables import Csv
from jestbench.data.vocabulary import TokenizerChoice
from jestbench.evals import Evaluate
from jestbench.fitting import Trained, data_warnings, other_loss, recorded_data
from jestbench.learner import Optimizer
from jestbench.ledger import Budget, Pretrained
from jestbench.metrics import Log, WandB
from jestbench.model.towers import Model
from jestbench.model.views import View
from jestbench.online import OnlineScorer
from jestbench.reference import trained_loss
from jestbench.regression import Regression
from jestbench.run import ConfigError, Resolved, Run

PROJECT = Path(__file__).resolve().parent.parent
CONFIGURABLES: dict[str, type[Any]] = {
    "run": Run,
    "model": Model,
    "view": View,
    "optimizer": Optimizer,
    "online_scorer": OnlineScorer,
    "evaluate": Evaluate,
    "budget": Budget,
    "log": Log,
    "wandb": WandB,
    "iconify": Iconify,
    "icons": Icons,
    "synthetic": Synthetic,
    "regression": Regression,
    "loader": Loader,
    "random_resized_crop": RandomResizedCrop,
    "stream": Stream,
    "webdataset": WebDataset,
    "csv": Csv,
    "huggingface": HuggingFace,
    "captions": Captions,
    "tokenizer": TokenizerChoice,
    "cache": Cache,
    "cascade": Cascade,
}
# Not part of an arm: seed, label, logging, paths, and where it runs.
NOT_THE_ARM = tuple(
    "run.seed run.arm run.log run.wandb log.* wandb.* *.cache_dir run.device run.checkpoints run.microbatch "
    "run.reference run.scorer run.cache run.loader loader.* cache.mode cache.folder evaluate.sets".split()
)
# Parameters that came later: at their defaults an arm (and a cached reference) is what it was without them.
ADDED: Mapping[str, Any] = {
    "run.scorer": None,
    "run.twin": False,
    "run.half": None,
    "run.objective": None,
    "run.cascade": None,
    "run.augment": None,
    "cache.dtype": "float32",
    "budget.adds": [],
}
# A frozen model that a run may need: the run file that trains one, and whether by regression.
PRETRAINED: dict[Pretrained, tuple[str, bool]] = {
    "reference": ("gin/run/reference.gin", False),
    "scorer": ("gin/run/cappy.gin", True),
}
_BINDING = re.compile(r"^(?P<key>[A-Za-z_][\w./]*)\s*=\s*(?P<value>.*)$", re.DOTALL)
_MACRO = "gin.macro"
COMMAND_LINE = "command line"
_REGISTERED: set[str] = set()


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


def policy_classes() -> dict[str, type[Any]]:
    """The registered policies: name → class.

    Raises:
        ConfigError: two have one name, or an entry point cannot be loaded.
    """
    try:
        return {name: policies.get(name) for name in policies.available()}
    except ValueError as error:
        raise ConfigError(str(error)) from error


def configurables() -> dict[str, type[Any]]:
    """Everything that can be bound: name → class. Registers with gin what is new."""
    found = CONFIGURABLES | policy_classes()
    for name, cls in found.items():
        # Once: gin wraps anew each time, and references made before would no longer equal those after.
        if name not in _REGISTERED:
            _REGISTERED.add(name)
            gin.external_configurable(cls, name=name, module="jestbench" if name in CONFIGURABLES else "policies")
    return found


def parameters() -> dict[str, tuple[str, ...]]:
    """Everything that can be bound, and its parameters."""
    return {name: tuple(_fields(cls)) for name, cls in configurables().items()}


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are: {', '.join(known)}" if known else "there is none"


class _Delegate(gin.config.ParserDelegate):  # type: ignore[misc]
    """Makes references, with a message of ours for an unknown name."""

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Any:
        name = scoped_selector.rsplit("/", 1)[-1]
        if name not in configurables():
            raise ConfigError(f"@{scoped_selector}: nothing is named {name!r}; {_nearest(name, configurables())}")
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
    near = difflib.get_close_matches(Path(path).name, names, n=1)
    hint = f"; did you mean {Path(path).parent / near[0]}?" if near else ""
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


def _fields(cls: type[Any]) -> dict[str, Any]:
    """Parameters of a configurable: name → annotation (``Any`` where there is none)."""
    hints = typing.get_type_hints(cls)
    if dataclasses.is_dataclass(cls):
        return {field.name: hints.get(field.name, Any) for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls.__init__)
    code = cls.__init__.__code__
    names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    return {name: hints.get(name, Any) for name in names}


def _holds_reference(value: Any) -> bool:
    if isinstance(value, gin.config.ConfigurableReference):
        return True
    if isinstance(value, Mapping):
        return any(_holds_reference(part) for pair in value.items() for part in pair)
    return isinstance(value, list | tuple) and any(_holds_reference(part) for part in value)


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, bool) and hint in (int, float, float | None, int | None):
        return False
    try:
        typeguard.check_type(value, hint, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    except typeguard.TypeCheckError:
        return False
    return True


def _shown_type(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _check_type(binding: Binding, value: Any, hint: Any) -> None:
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, hint):
        raise ConfigError(f"{binding.where}: {binding.key} = {value!r} must be of type {_shown_type(hint)}")
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
                raise ConfigError(f"{binding.where}: %{macro} is not defined; {_nearest(macro, macros)}")
            if not binding.parameter:
                raise ConfigError(f"{binding.where}: {binding.key} renames %{macro}: one level of macros")
        if not binding.parameter:
            continue
        if binding.name not in known:
            raise ConfigError(
                f"{binding.where}: {binding.key}: nothing is named {binding.name!r}; {_nearest(binding.name, known)}"
            )
        fields = _fields(known[binding.name])
        if binding.parameter not in fields:
            raise ConfigError(
                f"{binding.where}: {binding.name} has no parameter {binding.parameter!r}; "
                f"{_nearest(binding.parameter, fields)}"
            )
        value, hint = _filled_in(binding.value, macros), fields[binding.parameter]
        if not _holds_reference(value):
            _check_type(binding, value, hint)
        elif isinstance(hint, type) and not getattr(hint, "_is_protocol", False):
            # A protocol, a union or a container is looked at when it is built.
            alone = isinstance(value, gin.config.ConfigurableReference)
            if not (alone and value.evaluate and known[_minimal(value.selector)] is hint):
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


def _bind(bindings: Sequence[Binding]) -> None:
    gin.clear_config()
    for binding in bindings:
        if binding.parameter:
            value = tuple(binding.value) if isinstance(binding.value, list) else binding.value
            gin.bind_parameter((binding.scope, binding.name, binding.parameter), value)
        else:
            gin.bind_parameter((binding.key, _MACRO, "value"), binding.value)


def _minimal(selector: str) -> str:
    return selector.rsplit(".", 1)[-1]


def _unused(bindings: Sequence[Binding], allowed: Sequence[str]) -> None:
    """Compare what was bound with what was used.

    Raises:
        ConfigError: naming the bindings that this run never used.
    """
    used: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for (scope, selector), parameters in gin.config._OPERATIVE_CONFIG.items():
        used.setdefault(_minimal(selector), []).append((scope, parameters))
    last = {binding.key: binding for binding in bindings}
    dead = [
        binding
        for binding in last.values()
        if not _is_used(binding, used, last) and not any(fnmatch.fnmatch(binding.key, pattern) for pattern in allowed)
    ]
    if dead:
        first = dead[0]
        listed = ", ".join(f"{binding.key} ({binding.where})" for binding in dead)
        hint = ""
        if not first.parameter:
            hint = _nearest(first.key, {scope for scope, _ in used.get("macro", [])})
        elif first.scope:
            hint = _nearest(first.scope, {scope for scope, _ in used.get(first.name, []) if scope})
        scope = f"{first.scope}/" if first.scope else ""
        pattern = f"{scope}{first.name}.*" if first.parameter else first.key
        raise ConfigError(
            f"{first.where}: this run never uses {listed}; {hint + ' ' if hint.startswith('did') else ''}"
            f"remove it, or say --allow_unused '{pattern}' if it is meant for other arms"
        )


def _is_used(
    binding: Binding, used: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]], last: Mapping[str, Binding]
) -> bool:
    if not binding.parameter:
        return any(scope == binding.key for scope, _ in used.get("macro", []))
    selector = gin.config._REGISTRY.get_match(binding.name).selector
    bound = gin.config._CONFIG[(binding.scope, selector)][binding.parameter]
    # A scoped binding wins over the plain one as a later one over an earlier one.
    narrower = [
        other.scope
        for other in last.values()
        if (other.name, other.parameter) == (binding.name, binding.parameter) and len(other.scope) > len(binding.scope)
    ]
    return any(
        binding.parameter in parameters
        and (not binding.scope or f"{scope}/".startswith(f"{binding.scope}/"))
        and (parameters[binding.parameter] is bound or any(f"{scope}/".startswith(f"{other}/") for other in narrower))
        for scope, parameters in used.get(binding.name, [])
    )


def _build(bindings: Sequence[Binding]) -> tuple[Run, str]:
    """Build the run and its policy from what is bound.

    Raises:
        ConfigError: a required value is missing, or a constructor refused one.
    """
    required = [
        field.name
        for field in dataclasses.fields(Run)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    bound = {binding.key for binding in bindings}
    for name in required:
        if f"run.{name}" not in bound:
            raise ConfigError(f"run.{name} is required: bind it in a gin file or as run.{name}=… on the command line")
    try:
        run: Run = gin.get_configurable("run")()
        asked = run.policy if isinstance(run.policy, str) else None
        if asked is not None:
            policies.get(asked)
            run = dataclasses.replace(run, policy=gin.get_configurable(asked)())
        elif isinstance(run.policy, type):
            run = dataclasses.replace(run, policy=run.policy())
    except ConfigError:
        raise
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError) as error:
        raise ConfigError(_constructor_message(error, bindings)) from error
    _check_built(run, bindings)
    names = [known for known in policies.available() if type(run.policy) is policies.get(known)]
    if not names:
        raise ConfigError(
            f"{_place('run.policy', bindings)}run.policy = {type(run.policy).__name__} is no registered policy; "
            f"there are {', '.join(policies.available())}"
        )
    return run, asked or names[0]


def _place(key: str, bindings: Sequence[Binding]) -> str:
    return next((f"{binding.where}: " for binding in reversed(bindings) if binding.key == key), "")


def _check_built(run: Run, bindings: Sequence[Binding]) -> None:
    """Types of what ``@references`` brought, which cannot be seen before they are built.

    Raises:
        ConfigError: naming the parameter and where it is bound.
    """
    names = {cls: name for name, cls in configurables().items()}
    for part in (run, *(getattr(run, field.name) for field in dataclasses.fields(run))):
        owner = names.get(type(part))
        if owner is None or not dataclasses.is_dataclass(part):
            continue
        for name, hint in _fields(type(part)).items():
            value, key = getattr(part, name), f"{owner}.{name}"
            if key == "run.policy":
                continue
            if isinstance(value, type):
                built = next((known for cls, known in names.items() if issubclass(value, cls)), value.__name__)
                raise ConfigError(f"{_place(key, bindings)}{key} is not built: write @{built}()")
            if not _fits(value, hint):
                raise ConfigError(
                    f"{_place(key, bindings)}{key} must be of type {_shown_type(hint)}, got {type(value).__name__}"
                )


def _check_augment(run: Run, bindings: Sequence[Binding]) -> None:
    """What is remembered of a pair is bound to the plain image.

    Raises:
        ConfigError: a frozen model would be remembered for one crop and asked about another.
    """
    frozen = run.needs - {"learner"} - ({"scorer"} if isinstance(run.scorer, OnlineScorer) else set())
    if run.augment is not None and frozen and run.reference_accounting != "online":
        raise ConfigError(
            f"{_place('run.augment', bindings)}run.augment with run.reference_accounting = "
            f"{run.reference_accounting!r}: what is remembered of one crop would be asked about another; set "
            "run.reference_accounting = 'online' (each crop is scored and charged), or leave run.augment out"
        )


def _constructor_message(error: Exception, bindings: Sequence[Binding]) -> str:
    """A constructor's message, with the places where the parameters that it names were bound."""
    message, _, call = str(error).partition("\n  In call to configurable ")
    message = " ".join(message.split())
    owner = call.split("'")[1] if "'" in call else "run"
    last = {binding.key: binding for binding in bindings}
    words = re.findall(r"[\w.]+", message)
    named = [last[key] for word in dict.fromkeys(words) for key in (word, f"{owner}.{word}") if key in last]
    named += [b for b in last.values() if b.name == owner and isinstance(b.value, str) and repr(b.value) in message]
    places = "; ".join(dict.fromkeys(f"{binding.key} is set at {binding.where}" for binding in named))
    prefix = "" if re.match(r"\w+\.\w+|give |no policy", message) else f"{owner}: "
    return f"{prefix}{message}" + (f" ({places})" if places else "")


def _flat() -> dict[str, Any]:
    """The operative configuration, macros resolved: ``name.parameter`` → plain value."""
    macros = {
        scope: parameters["value"] for (scope, selector), parameters in gin.config._CONFIG.items() if selector == _MACRO
    }

    def plain(value: Any) -> Any:
        if isinstance(value, gin.config.ConfigurableReference):
            text = repr(value)
            return plain(macros[text[1:]]) if text.startswith("%") else text
        if isinstance(value, Mapping):
            return {str(key): plain(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
            return int(value)
        return value if isinstance(value, str | int | float | bool | None) else repr(value)

    flat: dict[str, Any] = {}
    for (scope, selector), parameters in gin.config._OPERATIVE_CONFIG.items():
        if selector != _MACRO:
            prefix = f"{scope}/" if scope else ""
            flat |= {f"{prefix}{_minimal(selector)}.{name}": plain(value) for name, value in parameters.items()}
    return dict(sorted(flat.items()))


def arm_hash(flat: Mapping[str, Any], needs: frozenset[str], pretrained: Mapping[Pretrained, str]) -> str:
    """Hash of an arm: its operative configuration less what does not matter to it.

    The frozen models that it needs are in it by their own identity. A policy that scores nothing never sees a
    super-batch or a reference, so two uniform arms that differ in those are one.
    """
    arm = {key: value for key, value in flat.items() if not any(fnmatch.fnmatch(key, p) for p in NOT_THE_ARM)}
    arm = {key: value for key, value in arm.items() if key not in ADDED or value != ADDED[key]}
    if not needs:
        arm.pop("run.super_batch_size", None)
    if "learner" not in needs:
        arm.pop("run.score_view", None)
    cascaded = "run.cascade" in arm
    if "reference" not in needs and not cascaded:
        arm.pop("run.reference_view", None)
        arm.pop("run.twin", None)
    if not needs & PRETRAINED.keys() and not cascaded:
        arm.pop("run.reference_accounting", None)
        arm.pop("cache.dtype", None)
    # Saving memory costs FLOPs and is part of the arm; not doing so is none.
    if not arm.get("run.grad_checkpointing"):
        arm.pop("run.grad_checkpointing", None)
    micro, whole = arm.get("run.train_microbatch"), arm.get("run.batch_size")
    if micro is None or (whole is not None and micro >= whole):
        arm.pop("run.train_microbatch", None)
    views = ("run.train_views", "run.score_view", "run.reference_view", "online_scorer.view")
    if not any(arm.get(name) for name in views):
        arm = {key: value for key, value in arm.items() if not f"/{key}".rpartition("/")[2].startswith("view.")}
    text = json.dumps({"arm": arm, "reference": "", **pretrained}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def resolve(
    files: Sequence[str],
    bindings: Sequence[str] = (),
    allow_unused: Sequence[str] = (),
    beside: Path | None = None,
    chain: tuple[str, ...] = (),
    origin: str = COMMAND_LINE,
) -> Resolved:
    """Files and bindings → a run. Bindings win over files, later over earlier.

    Args:
        files: gin files.
        bindings: ``Name.parameter=value``.
        allow_unused: patterns of bindings that the run need not use (``jest.*``).
        beside: the file that names the files, for a reference's.
        chain: references being resolved, to refuse a circle.
        origin: where the bindings stand, for messages.

    Raises:
        ConfigError: one paragraph, with file and line where there is one.
    """
    configurables()
    read = _read(files, bindings, beside, origin)
    _bind(read)
    run, name = _build(read)
    _check_augment(run, read)
    _unused(read, allow_unused)
    texts = {"config": gin.config_str(), "operative": gin.operative_config_str()}
    flat = _flat()
    assert not isinstance(run.policy, str)
    needs = frozenset(run.policy.needs)
    if run.objective is not None and needs:
        raise ConfigError(
            f"{_place('run.objective', read)}run.objective trains a pair scorer on all that it meets, and the policy "
            f"{name!r} selects: bind run.policy to uniform"
        )
    own, twin = _frozen_models(run, read, chain)
    warnings = _check_frozen(run, read, own)
    identity = {role: _identity(*found) for role, found in own.items()}
    if twin is not None:
        identity["reference"] += twin.config_hash
    reference, scorer = own.get("reference", (None, None)), own.get("scorer", (None, None))
    return Resolved(
        run,
        name,
        **texts,
        flat=flat,
        config_hash=arm_hash(flat, needs, identity),
        reference=reference[0],
        reference_dir=reference[1],
        scorer=scorer[0],
        scorer_dir=scorer[1],
        twin=twin,
        warnings=warnings,
    )


def _read(files: Sequence[str], bindings: Sequence[str], beside: Path | None, origin: str) -> list[Binding]:
    """All bindings of files and command line, checked for names and types."""
    read: list[Binding] = []
    for file in files:
        path = locate(file, beside)
        if path is None or not path.is_file():
            raise _missing(file, "", beside)
        read += read_file(path)
    read += [read_binding(text, origin) for text in bindings]
    check_names(read)
    return [_findable(binding) for binding in read]


def _frozen_models(
    run: Run, bindings: Sequence[Binding], chain: tuple[str, ...]
) -> tuple[dict[Pretrained, tuple[Resolved | None, Path | None]], Resolved | None]:
    """The runs or folders of the frozen models that a run needs, by role; and that of the reference's twin."""
    twinned, roles = _twinned(run), _roles(run)
    half = ("run.half=0",) if twinned else ()
    own = {role: _pretrained(role, run, bindings, chain, half if role == "reference" else ()) for role in roles}
    twin = _pretrained("reference", run, bindings, chain, ("run.half=1",))[0] if twinned else None
    return own, twin


def _beside(binding: Binding) -> Path | None:
    """The file that a binding stands in."""
    file = Path(binding.where.rsplit(":", 1)[0])
    return file if file.is_file() else None


def _findable(binding: Binding) -> Binding:
    """A frozen model's run by its full path where the project's folder does not find it.

    ``operative.gin`` lies elsewhere and must start the same run from any folder.
    """
    value = binding.value
    file, *more = value if isinstance(value, list | tuple) and value else (value,)
    if binding.key not in {f"run.{role}" for role in PRETRAINED} or not isinstance(file, str) or not file:
        return binding
    path = locate(file, _beside(binding))
    if path is None or path.resolve() == (PROJECT / file).resolve():
        return binding
    found = str(path.resolve())
    return dataclasses.replace(binding, value=(found, *more) if more else found)


def _identity(resolved: Resolved | None, folder: Path | None) -> str:
    """Configuration and seed of a frozen model's run; the same wherever its folder lies."""
    if resolved is not None:
        return f"{resolved.config_hash}{resolved.run.seed}"
    assert folder is not None
    try:
        run = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["run"]
        return f"{run['config_hash']}{run['seed']}"
    except (OSError, ValueError, KeyError, TypeError):
        return str(folder)


def _roles(run: Run) -> list[Pretrained]:
    """The frozen models that a run stands on: those that its policy needs, and one that its budget adds.

    Raises:
        ConfigError: the policy needs a scorer of the other kind.
    """
    assert not isinstance(run.policy, str)
    needs, name = run.policy.needs, type(run.policy).__name__
    in_training = isinstance(run.scorer, OnlineScorer)
    if "scorer" in needs and getattr(run.policy, "online", False) and not in_training:
        bound = "" if run.scorer is None else f", not to {run.scorer!r}"
        raise ConfigError(
            f"the policy {name} needs a scorer trained beside the learner: bind run.scorer to @online_scorer()"
            f"{bound} (gin/policy/active_clip.gin)"
        )
    if "scorer" in needs and in_training and not getattr(run.policy, "online", False):
        raise ConfigError(
            f"the policy {name} needs a pretrained scorer, not one trained beside the learner: bind run.scorer to a "
            f"run file ({PRETRAINED['scorer'][0]})"
        )
    if run.cascade is not None and run.cascade.score == "scorer" and in_training:
        raise ConfigError(
            "cascade.score = 'scorer' needs a pretrained scorer, not one trained beside the learner: bind run.scorer "
            f"to a run file ({PRETRAINED['scorer'][0]})"
        )
    asked = (run.needs | set(run.limit.adds)) - ({"scorer"} if in_training else set())
    return [role for role in PRETRAINED if role in asked]


def _twinned(run: Run) -> bool:
    """Whether two references score each other's half.

    Raises:
        ConfigError: the policy compares all pairs under one reference.
    """
    assert not isinstance(run.policy, str)
    if not run.twin or "reference" not in run.policy.needs:
        return False
    if not getattr(run.policy, "twins", False):
        can = ", ".join(name for name, cls in policy_classes().items() if getattr(cls, "twins", False))
        raise ConfigError(
            f"run.twin scores by two references, but the policy {type(run.policy).__name__} compares all pairs under "
            f"one; these can be scored by two: {can}"
        )
    return True


def _pretrained(
    role: Pretrained, run: Run, bindings: Sequence[Binding], chain: tuple[str, ...], half: tuple[str, ...] = ()
) -> tuple[Resolved | None, Path | None]:
    """A frozen model's own run, or the folder of one; ``half``: a binding of a twin's own.

    Raises:
        ConfigError: none is bound, it is not there, it needs itself, or it is of another kind.
    """
    key, asked = f"run.{role}", getattr(run, role)
    usual, by_regression = PRETRAINED[role]
    if not asked:
        assert not isinstance(run.policy, str)
        who = f"the policy {type(run.policy).__name__}" if role in run.policy.needs else "run.cascade"
        who = "budget.adds" if role in run.limit.adds else who
        raise ConfigError(
            f"{who} needs a {role}: bind {key} to a run file ({usual}) or to the folder of a finished run"
        )
    file, *more = (asked,) if isinstance(asked, str) else asked
    bound = next((b for b in reversed(bindings) if b.key == key), None)
    where = "" if bound is None else f"{bound.where}: "
    beside = None if bound is None else _beside(bound)
    path = locate(file, beside)
    if path is None:
        raise ConfigError(f"{where}{key} = {file!r}: no such file or run folder")
    if path.is_dir() and half:
        raise ConfigError(
            f"{where}run.twin trains the reference twice, on two halves: bind run.reference to a run file, not to the "
            f"folder {file!r}"
        )
    if path.is_dir():
        return None, path
    if str(path) in chain:
        raise ConfigError(f"{where}{key} = {file!r} needs itself as a {role}")
    origin = key if bound is None else f"{key} at {bound.where}"
    try:
        found = resolve([str(path)], [*more, *half], beside=beside, chain=(*chain, str(path)), origin=origin)
    except ConfigError as error:
        raise ConfigError(f"{error} (in the {role} {_shown(path)})") from error
    if (found.run.objective is not None) != by_regression:
        kind = "trains no pair scorer (it has no run.objective)" if by_regression else "trains a pair scorer"
        raise ConfigError(f"{where}{key} = {file!r} {kind}: bind {key} to a run like {usual}")
    return found, None


def _check_frozen(
    run: Run, bindings: Sequence[Binding], own: Mapping[Pretrained, tuple[Resolved | None, Path | None]]
) -> tuple[str, ...]:
    """What is doubtful about the frozen models that a run scores with; one that its budget adds is never run.

    Raises:
        ConfigError: the reference was trained on another loss, and more than its cosines is used.
    """
    models = [_training_of(run, role, *found) for role, found in own.items() if role in run.needs]
    where = _place("run.loss", bindings).removesuffix(": ") or "the default"
    if refused := other_loss(run, models, where):
        raise ConfigError(_place("run.reference", bindings) + refused)
    return data_warnings(run, models, {cls: name for name, cls in configurables().items()})


def _training_of(run: Run, role: Pretrained, own: Resolved | None, folder: Path | None) -> Trained:
    """What a frozen model of a run was trained on: by its own run, or as its folder records it."""
    if folder is None:
        assert own is not None
        asked = getattr(run, role)
        file = (asked,) if isinstance(asked, str) else tuple(asked)
        loss = own.run.loss if own.run.objective is None else None
        return Trained(role, own.run.arm or file[0], loss, own.run, file=file)
    operative = folder / "operative.gin"
    try:  # without the frozen models that it needs itself: they may be gone
        read = _read([str(operative)], (), None, COMMAND_LINE)
        _bind(read)
        found: Run | None = _build(read)[0]
    except ConfigError:
        found = None
    file = (_shown(operative),) if found is not None else ()
    return Trained(role, _shown(folder), trained_loss(folder), found, recorded_data(folder), file)


def main(argv: Sequence[str] | None = None) -> int:
    """The command of ``tools/run.py``, in process.

    Returns:
        The exit status: 0 finished, 2 wrong configuration, 3 wrong or missing data, 4 a loss that is
        not finite, 130 interrupted.
    """
    from jestbench.command import run_command

    return run_command(sys.argv[1:] if argv is None else list(argv))
