"""Whether frozen models can read a run's token ids, before they are trained."""

from __future__ import annotations

from pathlib import Path

from jestbench.config.resolved import Resolved
from jestbench.config.run import ConfigError, Run
from jestbench.data.pairs import Dataset
from jestbench.data.sources.stream import Stream
from jestbench.data.splits import split_of
from jestbench.disk import shown
from jestbench.launch.stands import of_run
from jestbench.model.tokenizer import Tokenizer


def check_served(resolved: Resolved) -> None:
    """Refuse frozen models whose data give other token ids than the run's, and those that they stand on themselves.

    A tokenizer that is trained on captions is known once the data are prepared; before, as far as the kinds of data
    decide. Data that a model takes over from the run are the same, and cost nothing here.

    Raises:
        ConfigError: the model could read none of the run's captions.
    """
    for role, stands in resolved.scored_by.items():
        for stand in stands:
            if isinstance(stand, Path):
                continue
            if reason := _other_tokenizer(resolved.run, stand):
                file = getattr(resolved.run, role)
                name = shown(Path(file if isinstance(file, str) else file[0]))
                raise ConfigError(
                    f"run.{role} = {name!r} cannot score this run's pairs: {reason}; leave run.data and its "
                    f"tokenizer out of {name}, so that it takes over this run's, or bind the same data here"
                )
            check_served(stand)


def _other_tokenizer(here: Run, stand: Resolved) -> str:
    """The reason why a model of a run below reads no token ids of this one; empty where none is known."""
    own, other = here.data, stand.run.data
    if own == other:
        return ""
    kinds = f"it is trained on {_kind(other)}, this run on {_kind(own)}"
    if own.is_prepared() and other.is_prepared():
        one = _tokenizer(here).identity
        with of_run(stand):
            two = _tokenizer(stand.run).identity
        return "" if one == two else f"{kinds}, and their tokenizers differ ({two} and {one})"
    if type(own) is not type(other) and (_choice(own) is None or _choice(other) is None):
        return f"{kinds}, and each has a tokenizer of its own"
    lengths = [getattr(_choice(data) or data, "length", None) for data in (other, own)]
    if None not in lengths and lengths[0] != lengths[1]:
        return f"{kinds}, with captions of {lengths[0]} and of {lengths[1]} tokens"
    return ""


def _tokenizer(run: Run) -> Tokenizer:
    """The tokenizer of a run's prepared data; of a stream that of the data beside it, so that no shard is opened."""
    if isinstance(run.data, Stream):
        return run.data.beside.split("eval").tokenizer
    return split_of(run.data, run.split).tokenizer


def _kind(data: Dataset) -> str:
    return f"@{type(data).__name__.lower()}()"


def _choice(data: Dataset) -> object:
    """The tokenizer that a data set of files lets its user choose; ``None`` where it makes its own."""
    return getattr(getattr(data, "beside", data), "tokenizer", None)
