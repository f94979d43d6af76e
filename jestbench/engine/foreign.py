"""Frozen models of other libraries in a role: what their kinds have in common."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from jestbench.disk import DataError, file_digest, nearest, read_object
from jestbench.engine.casting import Casting, FrozenCasting, Setting
from jestbench.engine.embedding_rows import EmbeddingRows
from jestbench.engine.frozen import FrozenActor
from jestbench.engine.learner import Learner
from jestbench.engine.start import CarriedStart, LibraryStart, Start
from jestbench.model.carried_tokenizer import stand_in
from jestbench.model.carry import NotCarried, Tower, carried
from jestbench.model.foreign_towers import ForeignError, ForeignTokenizer, ForeignTowers
from jestbench.model.library_towers import LibraryTowers

SAFE = ".safetensors"


@dataclass(frozen=True)
class Foreign(Casting):
    """A frozen model of another library.

    Attributes:
        trust_pickle: take weights in a pickle too (``.bin``, ``.pt``, ``.pth``), which torch reads with
            ``weights_only``; without it weights are safetensors.
        pretrain_flops: FLOPs that its training took, as its authors state them; ``None``: not known, so that no
            all-in figure of the run is.
        library: the name that the kind is bound by.
        shapes_on: of a stand-in the device that it is built on, from random weights; on ``meta`` it has shapes alone.
    """

    library: ClassVar[str]

    trust_pickle: bool = False
    pretrain_flops: float | None = None
    shapes_on: str | None = field(default=None, init=False, repr=False, compare=False)

    role = "reference"

    @property
    @abstractmethod
    def label(self) -> str:
        """The model's name, for messages and tables."""

    @abstractmethod
    def load(self, untrained: bool = False) -> ForeignTowers:
        """The model.

        Args:
            untrained: with random weights and without its tokenizer, for prices: nothing is fetched.

        Raises:
            ForeignError: the library is not installed, or the model is one that cannot be run here.
            DataError: a file is missing, damaged or a pickle, or cannot be fetched.
        """

    @abstractmethod
    def towers(self, foreign: ForeignTowers) -> tuple[Tower, Tower]:
        """Both towers of the loaded model in our terms.

        Raises:
            ForeignError: ours do not include such towers.
        """

    @abstractmethod
    def files(self, foreign: ForeignTowers) -> dict[str, Any]:
        """The JSON files, by name, that the library builds the loaded model by (weights and tokenizer are no part)."""

    @classmethod
    @abstractmethod
    def at(cls, folder: Path) -> Foreign:
        """The model of a folder."""

    def start(self) -> Start:
        """The model to begin training from: in our towers, or as its library runs it where ours compute another.

        Raises:
            ForeignError: it cannot be run here, or its tokenizer cannot be written into a run folder.
        """
        with self._place:
            return self._start()

    def _start(self) -> Start:
        flops = self.stated_flops()[self.role]
        try:
            foreign = self._load().eval()
            given = foreign.tokens.carried
            tokenizer = stand_in(foreign.tokens.length) if given is None else given()
            try:
                return CarriedStart(self.label, flops, carried(foreign, self.towers(foreign), tokenizer))
            except NotCarried as error:
                reason = str(error)
        except ForeignError as error:
            raise ForeignError(f"run.init: {self.label} cannot be trained here: {error}") from error
        source = {"library": self.library, "files": self.files(foreign), "reason": reason}
        return LibraryStart(self.label, flops, LibraryTowers(foreign, tokenizer, source), foreign.loss)

    @property
    def _place(self) -> AbstractContextManager[object]:
        return nullcontext() if self.shapes_on is None else torch.device(self.shapes_on)

    def _load(self) -> ForeignTowers:
        return self.load(untrained=self.shapes_on is not None)

    def cast(self, setting: Setting, learner: Learner | None = None) -> FrozenActor:
        """The frozen actor, run whole."""
        with self._place:
            model = self._load()
        actor = FrozenCasting(self.role, model, EmbeddingRows).frozen(setting)
        actor.trained_on = model.loss
        return actor

    def frozen(self, setting: Setting) -> FrozenActor | None:
        """The same; ``None`` for a stand-in, whose random weights score nothing."""
        return self.cast(setting) if self.shapes_on is None else None

    def stand_in(self, device: str = "cpu") -> Casting:
        """The model, from random weights where its own are on a hub; on ``meta`` from none."""
        if not self.remote:
            return self
        found = copy(self)
        object.__setattr__(found, "shapes_on", device)
        return found

    def stated_flops(self) -> dict[str, int | None]:
        """What the model's training took, by role."""
        return {self.role: None if self.pretrain_flops is None else int(self.pretrain_flops)}


def missing_extra(extra: str, package: str) -> ForeignError:
    """The error of a library that is not installed."""
    return ForeignError(f"@{extra}() needs the package {package}: pip install 'jestbench[{extra}]'")


@contextmanager
def quietly() -> Iterator[None]:
    """Let a library log nothing: what matters of it is raised, or said by a message of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def checked_weights(path: Path, trusted: bool) -> Path:
    """A file of weights, whole and of a kind that may be read.

    Raises:
        DataError: it is missing or truncated, or a pickle that the user has not said to trust.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of weights")
    if path.suffix != SAFE:
        if not trusted:
            raise DataError(
                f"{path} holds no safetensors: a pickle can run code when it is read; take the weights as "
                f"{SAFE}, or set trust_pickle = True, and torch reads it with weights_only"
            )
        return path
    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}: fetch it again") from error
    return path


def misfit(error: Exception, what: str, weights: Sequence[Path] = ()) -> DataError:
    """An error of a library that builds a model from files, by who can mend it.

    Args:
        what: what has failed, as the message begins.
        weights: the files of weights that were read, if any.

    Returns:
        A ``DataError`` where weights cannot be read or a part would have to be fetched; otherwise, whatever kind the
        library has raised, a ``ForeignError``, since the files are whole and do not fit the model.
    """
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    for file in weights:
        if not _can_be_read(file):
            return DataError(f"{file} cannot be read with weights_only: {said}")
    chain = [error, error.__cause__, error.__context__]
    if not weights and any(isinstance(one, OSError) or type(one).__module__.startswith("httpx") for one in chain):
        return DataError(f"{what}: {said}")
    return ForeignError(f"{what}: {said}")


def _can_be_read(file: Path) -> bool:
    """Whether a file of weights is whole; safetensors were looked at when they were found."""
    if file.suffix == SAFE:
        return True
    try:
        if file.suffix in (".npz", ".npy"):
            np.load(file, allow_pickle=False)
        else:
            torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # a damaged pickle can raise any kind
        return False
    return True


def chosen_weights(folder: Path, preferred: Sequence[str]) -> Path:
    """The weights in a folder: the first of the preferred names, else the only file of safetensors.

    Raises:
        DataError: there are none, or several and none of a preferred name.
    """
    found = [folder / name for name in preferred if (folder / name).is_file()]
    found = found or sorted(folder.glob(f"*{SAFE}"))
    if len(found) > 1 and found[0].name not in preferred:
        raise DataError(f"{folder} holds several files of weights: name one of {', '.join(f.name for f in found)}")
    if not found:
        others = nearest(preferred[0], [file.name for file in folder.iterdir()], "; it holds {}")
        raise DataError(f"{folder} holds no weights, such as {preferred[0]}{others}")
    return found[0]


@lru_cache(maxsize=64)
def _digest_of(path: Path, size: int, changed: int) -> str:
    return file_digest(path)


def three(values: Any) -> tuple[float, float, float]:
    """One value a channel, from one for all or from three."""
    red, green, blue = values if isinstance(values, list | tuple) else (values,) * 3
    return float(red), float(green), float(blue)


def stand_in_tokenizer(length: int) -> ForeignTokenizer:
    """Ids of the right shape, for prices."""
    return ForeignTokenizer(
        f"stand-in/{length}", length, lambda texts: torch.ones(len(texts), length, dtype=torch.int64)
    )


def files_digest(paths: Sequence[Path]) -> str:
    """A hash of files' contents; each is read once, unless it changes."""
    return "/".join(_digest_of(path, (at := path.stat()).st_size, at.st_mtime_ns) for path in paths)


def described(path: Path) -> dict[str, Any]:
    """A JSON file that describes a model.

    Raises:
        DataError: it is missing, or no JSON object.
    """
    found = read_object(path)
    if found is None:
        raise DataError(f"{path}: No such file or directory")
    return found
