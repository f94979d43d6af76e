"""What can be bound, and its parameters."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Mapping
from typing import Any

import typeguard

from jestbench.batch import View
from jestbench.config.gin_edge import register
from jestbench.config.log import Log, WandB
from jestbench.config.registered import policy_classes
from jestbench.config.run import Run
from jestbench.cost.budget import Budget, Pretrained
from jestbench.data.augment import RandomResizedCrop
from jestbench.data.captions import Captions
from jestbench.data.cascade import Cascade
from jestbench.data.icons.iconify import Iconify
from jestbench.data.icons.icons import Icons
from jestbench.data.loader import Loader
from jestbench.data.sources.csv_tables import Csv
from jestbench.data.sources.hugging_face import HuggingFace
from jestbench.data.sources.stream import Stream
from jestbench.data.sources.web_dataset import WebDataset
from jestbench.data.synthetic import Synthetic
from jestbench.disk import nearest_or_all
from jestbench.engine.cache import Cache
from jestbench.engine.hugging_face_clip import HuggingFaceClip
from jestbench.engine.online_scorer import OnlineScorer
from jestbench.engine.open_clip_model import OpenClip
from jestbench.engine.optimizer import Optimizer
from jestbench.engine.regression import Regression
from jestbench.evals.evaluate import Evaluate
from jestbench.model.tokenizer_choice import TokenizerChoice
from jestbench.model.towers import Model

CONFIGURABLES: dict[str, type[Any]] = {
    "run": Run,
    "model": Model,
    "view": View,
    "optimizer": Optimizer,
    "online_scorer": OnlineScorer,
    "open_clip": OpenClip,
    "hugging_face_clip": HuggingFaceClip,
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

# A frozen model that a run may need: the run file that trains one, and the kind of model.
PRETRAINED: dict[Pretrained, tuple[str, str]] = {
    "reference": ("gin/run/reference.gin", "contrastive"),
    "scorer": ("gin/run/cappy.gin", "regression"),
}
USUAL_WORDS = {
    **dict.fromkeys(("epochs", "num_epochs", "max_steps", "num_steps"), "budget.steps (with run.budget = None)"),
    **{"lr": "optimizer.learning_rate", "wd": "optimizer.weight_decay", "batch": "run.batch_size"},
    **{"num_workers": "loader.workers", "amp": "run.precision", "output_dir": "--run_dir DIR", "resume": "--resume"},
}
"""Words of other trainers, and what the same is called here."""
_REGISTERED: set[str] = set()
_FIELDS: dict[type[Any], Mapping[str, Any]] = {}


def configurables() -> Mapping[str, type[Any]]:
    """Everything that can be bound: name → class. Registers with gin what is new."""
    found = CONFIGURABLES | policy_classes()
    for name in found.keys() - _REGISTERED:
        _REGISTERED.add(name)
        register(name, found[name], "jestbench" if name in CONFIGURABLES else "policies")
    return found


def fields_of(cls: type[Any]) -> Mapping[str, Any]:
    """Parameters of a configurable: name → annotation (``Any`` where there is none)."""
    if cls not in _FIELDS:
        dataclass = dataclasses.is_dataclass(cls)
        hints = typing.get_type_hints(cls if dataclass else cls.__init__)  # milliseconds, and asked for at each binding
        if dataclass:
            fields = sorted(dataclasses.fields(cls), key=lambda field: bool(field.kw_only))  # as in the signature
            names = tuple(field.name for field in fields if field.init)
        else:
            code = cls.__init__.__code__
            names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
        _FIELDS[cls] = {name: hints.get(name, Any) for name in names}
    return _FIELDS[cls]


def meant_by(word: str, owners: Mapping[str, Collection[str]] | None = None) -> list[str]:
    """What a word of other trainers is called here; else the bindings of a parameter of that name, ``run``'s first.

    Args:
        word: a parameter without its owner.
        owners: names and the parameters of each; ``None``: of everything that can be bound.
    """
    if word in USUAL_WORDS:
        return [USUAL_WORDS[word]]
    every = {name: fields_of(cls) for name, cls in configurables().items()} if owners is None else owners
    found = [f"{name}.{word}" for name, parameters in every.items() if word in parameters]
    return sorted(found, key=lambda key: (not key.startswith("run."), key))


def no_parameter(name: str, parameter: str, fields: Collection[str]) -> str:
    """A message that a name has no such parameter, with the only other binding that it may mean, else the nearest."""
    meant = meant_by(parameter)
    hint = f"did you mean {meant[0]}?" if len(meant) == 1 else nearest_or_all(parameter, fields)
    return f"{name} has no parameter {parameter!r}; {hint}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; a boolean does not count as a number."""
    if isinstance(value, bool) and hint in (int, float, float | None, int | None):
        return False
    try:
        typeguard.check_type(value, hint, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    except typeguard.TypeCheckError:
        return False
    return True


def shown_type(hint: Any) -> str:
    """Write a type for a message."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
