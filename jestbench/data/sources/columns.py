"""Numbers and uids that came with the pairs: read with them, joined from files beside them, used to restrict a pool."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from jestbench.batch import DataError
from jestbench.data.damage import Damaged
from jestbench.data.sources.patterns import local_path
from jestbench.disk import digest, nearest, nearest_or_all

HALVES = np.dtype([("high", "<u8"), ("low", "<u8")])
"""A uid as a list holds it: the two halves of 128 bits, as DataComp writes them."""
KEY = "key"
"""The uid that is the content key of a pair's image, as 16 hexadecimal digits."""
HEX = re.compile("[0-9a-fA-F]{32}")
"""A uid that is 128 bits written in hexadecimal, as DataComp's are."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Which numbers and uids are read with the pairs.

    Attributes:
        columns: numbers that come with each pair, for policies and cascades that read ``column:NAME``; NAME is what
            stands behind the last dot. A pair without a value is damage, in a split in which any pair has one.
        uid: where a pair's uid stands; by default ``uid`` (``json.uid`` in shards) once uids are asked for. ``key`` is
            the content key of its image, as ``log.chosen`` writes it.
        uids: lists of uids to which the pool is restricted: text, parquet, or ``.npy`` as DataComp writes them.
    """

    columns: tuple[str, ...] = ()
    uid: str = ""
    uids: str | tuple[str, ...] | None = None
    label: ClassVar[str]
    usual_uid: ClassVar[str] = "uid"

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", (self.columns,) if isinstance(self.columns, str) else tuple(self.columns))
        short_names(self.columns, f"{self.label}.columns")

    @property
    def joined(self) -> tuple[str, ...]:
        """The columns that are joined by uid, from files beside the data."""
        return ()

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The columns that are read with the pairs."""
        return tuple(name for name in self.columns if name not in self.joined)

    @property
    def uid_field(self) -> str:
        """Where the uid stands; empty where none is asked for."""
        return self.uid or (self.usual_uid if self.uids or self.joined else "")


def short_names(names: Sequence[str], binding: str) -> tuple[str, ...]:
    """The name of each column in a policy's ``needs``: what stands behind its last dot.

    Raises:
        ValueError: two have the same.
    """
    short = tuple(name.rpartition(".")[2] for name in names)
    if twice := [name for name in short if not name or short.count(name) > 1]:
        raise ValueError(f"{binding} names two columns {twice[0]!r}: {', '.join(names)}")
    return short


def number_of(content: object) -> float:
    """A number, or its digits as text or bytes; NaN for everything else (null, text, infinity)."""
    if isinstance(content, bytes):
        content = content.decode("utf-8", "replace")
    if not isinstance(content, str | int | float):
        return math.nan
    try:
        found = float(content)
    except (ValueError, OverflowError):
        return math.nan
    return found if math.isfinite(found) else math.nan


def column(names: Sequence[str], wanted: str, where: str, binding: str) -> str:
    """The wanted column of a table.

    Raises:
        DataError: the table has no such column; the message gives the binding that names another.
    """
    if wanted in names:
        return wanted
    hint = nearest(wanted, names, "did you mean {!r}? ")
    shown = ", ".join(names[:20]) or "none"
    raise DataError(f"{where} has no column {wanted!r} (its columns: {shown}): {hint}set {binding}")


def note_missing(
    examples: dict[str, str],
    names: Sequence[str],
    values: Sequence[float],
    where: str,
    fields: Sequence[object],
    header: Sequence[str],
) -> None:
    """Note the first row of a table in which a number is missing, by its short name, for messages."""
    for name, value, content in zip(names, values, fields, strict=False):
        reason = f"no value of {name.rpartition('.')[2]}"
        if math.isnan(value) and reason not in examples:
            has = f"the columns are {', '.join(header)}"
            examples[reason] = f"{where}: {f'{name} holds {content!r}, no number' if name in header else has}"[:400]


def refuse_missing(
    names: Sequence[str], values: Sequence[float], uid: str, found: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuse a pair of which a number is missing.

    Args:
        names: of the numbers, short.
        values: the numbers of the pair.
        uid: of the pair, for the message; empty where there is none.
        found: what was found in place of a number, by its name, for the message.

    Raises:
        Damaged: naming the first number that is missing.
    """
    for name, value in zip(names, values, strict=True):
        if math.isnan(value):
            raise Damaged(f"no value of {name}", found.get(name, f"uid {uid}" if uid else ""))


def keys_of(uids: Sequence[str]) -> npt.NDArray[Any]:
    """128 bits of each uid, of the type ``HALVES``: of 32 hexadecimal digits their value, of another text its hash."""
    digits = "".join(uid if HEX.fullmatch(uid) else digest(uid, HALVES.itemsize) for uid in uids)
    return np.frombuffer(bytes.fromhex(digits), HALVES.newbyteorder(">")).astype(HALVES)


def read_keys(path: Path, column: str) -> npt.NDArray[Any]:
    """The uids of a list, distinct and in ascending order.

    Args:
        path: text (a uid a line), parquet, or ``.npy`` of pairs of unsigned 64-bit numbers, as DataComp writes them.
        column: of a parquet file, that holds the uids.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if path.suffix == ".npy":
            found = np.load(path)
            if found.dtype.itemsize == HALVES.itemsize and found.dtype.names and len(found.dtype.names) == 2:
                keys = found.astype(HALVES)
            elif found.dtype == np.uint64 and found.ndim == 2 and found.shape[1] == 2:
                keys = np.ascontiguousarray(found).view(HALVES).reshape(-1)
            else:
                raise ValueError(f"it holds {found.dtype}, not two unsigned 64-bit halves (dtype u8,u8)")
        elif path.suffix == ".parquet":
            keys = keys_of([str(uid) for uid in _parquet([path], [column])[column]])
        else:
            keys = keys_of([line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()])
    except (OSError, ValueError) as error:
        raise DataError(f"the list of uids {path} cannot be read: {error}") from error
    distinct: npt.NDArray[Any] = np.unique(keys)
    return distinct


def lists_of(named: str | Sequence[str] | None, binding: str) -> list[Path]:
    """The files of lists of uids.

    Raises:
        DataError: there is no such file.
    """
    found = [local_path(name) for name in ((named,) if isinstance(named, str) else named or ())]
    if missing := [path for path in found if not path.is_file()]:
        raise DataError(f"{binding}: there is no file {missing[0]}")
    return found


def wanted_keys(paths: Sequence[Path], uid: str) -> npt.NDArray[Any]:
    """The uids of several lists, as ``read_keys``; in parquet files in the column of the field's last name."""
    distinct: npt.NDArray[Any] = np.unique(np.concatenate([read_keys(path, uid.rpartition(".")[2]) for path in paths]))
    return distinct


def _parquet(paths: Sequence[Path], names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of parquet files, one file behind the other; ``DataError`` where a file cannot be read or lacks one."""
    from pyarrow import ArrowException

    parquet: Any = importlib.import_module("pyarrow.parquet")
    found: dict[str, list[Any]] = {name: [] for name in names}
    for path in paths:
        try:
            there = parquet.read_schema(path).names
            if lacking := [name for name in names if name not in there]:
                raise DataError(f"{path} has no column {lacking[0]!r}; {nearest_or_all(lacking[0], there)}")
            table = parquet.read_table(path, columns=list(names))
        except (ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read as parquet: {error}") from error
        for name in names:
            found[name] += table.column(name).to_pylist()
    return found


def _places(sorted_M: npt.NDArray[Any], key_N: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where each key stands among sorted ones, and whether it does."""
    place_N = np.searchsorted(sorted_M, key_N).clip(max=max(len(sorted_M) - 1, 0))
    there_N = sorted_M[place_N] == key_N if len(sorted_M) else np.zeros(len(key_N), bool)
    return place_N, there_N


@dataclass(frozen=True)
class Metadata:
    """Numbers by uid, from parquet files beside the shards.

    Attributes:
        names: of the numbers.
        key_M: uids, ascending.
        value_MC: numbers; NaN where a file has none.
    """

    names: tuple[str, ...]
    key_M: npt.NDArray[Any]
    value_MC: npt.NDArray[np.float64]

    @classmethod
    def read(cls, paths: Sequence[Path], uid: str, names: Sequence[str]) -> Metadata:
        """Read the files; of a uid that is there twice the first row counts.

        Raises:
            DataError: a file cannot be read, or lacks a column.
        """
        found = _parquet(paths, [uid, *names])
        key_M, first_M = np.unique(keys_of([str(one) for one in found[uid]]), return_index=True)
        value_MC = np.array([[number_of(one) for one in found[name]] for name in names], dtype=np.float64)
        return cls(tuple(names), key_M, value_MC.reshape(len(names), -1).T[first_M])

    def of(self, key_N: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The numbers of these uids, ``[N, C]``; NaN where a uid is not there."""
        place_N, there_N = _places(self.key_M, key_N)
        found_NC = np.full((len(key_N), len(self.names)), np.nan)
        found_NC[there_N] = self.value_MC[place_N[there_N]]
        return found_NC


@dataclass(frozen=True)
class Came:
    """What came with the images of one shard.

    Attributes:
        value_NC: numbers, NaN where there is none.
        uids: of the images; empty texts where there is none, and an empty list where none was asked for.
    """

    value_NC: npt.NDArray[np.float64]
    uids: Sequence[str] = ()


@dataclass
class Beside:
    """What is known of a split's images beside their pixels and captions, and which of them are in the split.

    Attributes:
        own: number of the numbers that are read with the pairs.
        names: of all numbers, those read with the pairs before those that are joined.
        metadata: joined by uid.
        wanted: uids, ascending, to which the split is restricted.
        seen_M: which of the wanted were seen.
        outside: images left out, since their uid is not among the wanted.
        lacking: the numbers that no image of the split has, so that it counts as a split without them.
    """

    own: int = 0
    names: tuple[str, ...] = ()
    metadata: Metadata | None = None
    wanted: npt.NDArray[Any] | None = None
    seen_M: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    outside: int = 0
    lacking: frozenset[str] = frozenset()

    @classmethod
    def read(
        cls, own: Sequence[str], joined: Sequence[str], uid: str, metadata: Sequence[Path], lists: Sequence[Path]
    ) -> Beside:
        """Read the files of metadata and the lists of uids.

        Args:
            own: names of the numbers that are read with the pairs.
            joined: names of those that are joined.
            uid: member, field or column of the uid; in the files it is the column of that last name.
            metadata: files that hold the joined numbers.
            lists: files that hold the uids of the split.

        Raises:
            DataError: a file cannot be read, or lacks a column.
        """
        found = Metadata.read(metadata, uid.rpartition(".")[2], joined) if joined else None
        wanted = wanted_keys(lists, uid) if lists else None
        seen_M = np.zeros(0 if wanted is None else len(wanted), bool)
        return cls(len(own), short_names((*own, *joined), ".columns"), found, wanted, seen_M)

    @property
    def kept(self) -> tuple[str, ...]:
        """The numbers that the split has."""
        return tuple(name for name in self.names if name not in self.lacking)

    def numbers(self, came: Came) -> npt.NDArray[np.float64]:
        """The numbers that the split has, of a shard's images, ``[N, C]``."""
        value_NC = came.value_NC
        if self.metadata is not None:
            value_NC = np.concatenate([value_NC, self.metadata.of(keys_of(came.uids))], axis=1)
        return value_NC[:, [name not in self.lacking for name in self.names]]

    def survey(self, shards: Sequence[Came]) -> None:
        """Find the numbers that no image has; every one of them counts as missing in a split where another has it."""
        seen = np.zeros(len(self.names), bool)
        for came in shards:
            seen |= np.isfinite(self.numbers(came)).any(axis=0)
        self.lacking = frozenset(name for name, there in zip(self.names, seen, strict=True) if not there)

    def inside(self, came: Came) -> npt.NDArray[np.bool_]:
        """Which images of a shard are in the split, by their uids, ``[N]``; what ``facts`` gives is counted."""
        if self.wanted is None:
            return np.ones(len(came.value_NC), bool)
        place_N, inside_N = _places(self.wanted, keys_of(came.uids))
        self.seen_M[place_N[inside_N]] = True
        self.outside += int((~inside_N).sum())
        return inside_N

    @property
    def facts(self) -> Mapping[str, Any]:
        """Counts for the summary; empty where nothing was asked for."""
        found: dict[str, Any] = {}
        if self.wanted is not None:
            found |= {"outside_uids": self.outside, "uids_without_pair": int((~self.seen_M).sum())}
        return found | ({"columns": [*self.kept]} if self.names else {})
