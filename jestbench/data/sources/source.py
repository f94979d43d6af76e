"""What all sources of a user's own pairs share: splits, the index in the cache, the tokenizer."""

from __future__ import annotations

import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from tqdm import tqdm

from jestbench.batch import DataError
from jestbench.data.captions import Captions
from jestbench.data.damage import DAMAGE_LINE, listed, too_many
from jestbench.data.decode import MAX_PIXELS
from jestbench.data.encoded_images import ByteRanges, Encoded
from jestbench.data.file_pairs import FilePairs
from jestbench.data.pairs import Dataset, SplitNotGiven
from jestbench.data.sources.columns import Beside, Numbers, lists_of, short_names
from jestbench.data.sources.indexing import Reading, index_of, many
from jestbench.data.sources.shard_index import (
    VERSION,
    ShardIndex,
    SplitTable,
    check_columns,
    digest,
    write_table,
)
from jestbench.disk import cache_root, nearest_or_all, user_path
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.tokenizer_choice import TokenizerChoice
from jestbench.parallel.locks import locked

_LOG = logging.getLogger(__name__)

Fetched = Literal["download", "command"]
"""How data that do not lie here are brought: over the network, or by a command's output."""
SPLITS = ("pool", "curated", "holdout", "eval")
_WITHOUT = {
    "curated": """; without one a reference learns from the best of the pool, run.reference = ('FILE', "run.split = """
    """'pool[top=0.05, by=column:NAME]'") (docs/your_data.md#splits)""",
    "holdout": "; gin/policy/rho_loss_twin.gin needs none",
}
Where = str | tuple[str, ...] | None

LOOK = 32
"""Pairs of each split that are read before a sweep."""

INSTALL = "pip install 'jestbench[data]'"


@dataclass(frozen=True)
class Shard:
    """A file to index.

    Attributes:
        path: path of the file, for reading and for messages.
        identity: changes with the file's content, and with everything else that its index depends on.
    """

    path: str
    identity: str


def file_shard(path: Path, *options: object) -> Shard:
    """A file identified by path, size and time of change.

    Raises:
        OSError: the file does not exist.
    """
    state = path.stat()
    return Shard(str(path), digest(str(path.resolve()), state.st_size, state.st_mtime_ns, *options))


def refuse_twice(binding: str, named: Sequence[tuple[str, str]]) -> None:
    """Refuse files of which one is named twice.

    Args:
        binding: for the message.
        named: the path, for the message, and the identity of each file.

    Raises:
        DataError: naming both places of the first file that comes again.
    """
    first: dict[str, int] = {}
    for place, (path, identity) in enumerate(named):
        if (before := first.setdefault(identity, place)) != place:
            raise DataError(
                f"{binding}: a file is named twice, as number {before + 1} ({named[before][0]}) and as number "
                f"{place + 1} ({path}) of {len(named)}; its pairs would be drawn twice as often"
            )


@dataclass(frozen=True)
class Source(Numbers, ABC):
    """Pairs that lie on the user's disk (or in a hub's cache), by split.

    Attributes:
        pool: pairs that super-batches are drawn from.
        curated: a small clean set, for a reference.
        holdout: pairs like the pool's but disjoint from them, for an irreducible-loss model.
        eval: pairs for evaluation.
        image_size: pixels, width and height: shortest side scaled to it, centre cropped. At least the model's.
        captions: normalisation, and what is done with several captions of one image.
        tokenizer: trained on the pool's captions, a file, or a name.
        max_damaged: share of damaged pairs, of those indexed and of those read in a run, above which nothing is
            trained (taken of at least 1,000 pairs: by default ten damaged pairs are allowed in any set).
        verify: splits whose images are decoded when they are indexed; a run refuses a damaged image in these, and
            replaces it in all other splits.
        cache_dir: folder of the index; by default the folder that JESTBENCH_CACHE names, else the user's
            cache folder.
    """

    pool: Where = None
    curated: Where = None
    holdout: Where = None
    eval: Where = None
    image_size: int = 224
    captions: Captions = field(default_factory=Captions)
    tokenizer: TokenizerChoice = field(default_factory=TokenizerChoice)
    max_damaged: float = 0.01
    verify: tuple[str, ...] = ("eval",)
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 4 <= self.image_size <= 4096:
            raise ValueError(f"{self.label}.image_size must lie between 4 and 4096 px, got {self.image_size}")
        if not 0 <= self.max_damaged <= 1:
            raise ValueError(f"{self.label}.max_damaged is a share in [0, 1], got {self.max_damaged}")
        if unknown := [name for name in self.verify if name not in SPLITS]:
            raise ValueError(f"{self.label}.verify names {unknown[0]!r}: there are {', '.join(SPLITS)}")

    # Defined by each kind of source

    @abstractmethod
    def shards(self, split: str) -> list[Shard]:
        """The files of a split.

        Raises:
            DataError: they are not there.
        """

    @abstractmethod
    def index(self, shard: Shard, verified: int | None, most: int | None = None) -> ShardIndex:
        """Read one shard, or its first ``most`` pairs.

        Raises:
            DataError: it cannot be read at all.
        """

    def encoded(self, table: SplitTable) -> Encoded:
        """The encoded images of a table."""
        return ByteRanges(table.paths, table.path_N, table.offset_N, table.size_N)

    @property
    def reading(self) -> str:
        """Everything beside the files that an index depends on."""
        return ""

    def come_since(self, split: str, table: SplitTable, time: float) -> bool:
        """Whether images that were left out of a table have come or changed since a time (seconds since the epoch)."""
        return False

    # What comes beside images and captions

    def metadata_files(self, split: str) -> list[Path]:
        """The files that hold the joined columns of a split.

        Raises:
            DataError: there are none.
        """
        return []

    def _lists(self, split: str) -> list[Path]:
        """The lists of uids that restrict a split."""
        return lists_of(self.uids, f"{self.label}.uids") if split == "pool" else []

    def _beside(self, split: str) -> Beside:
        """What comes beside the pairs of a split."""
        files = self.metadata_files(split), self._lists(split)
        return Beside.read(self.own_columns, self.joined, self.uid_field, *files)

    # The data set

    def fetched(self) -> dict[str, Fetched]:
        """The bindings whose data must be fetched before they can be read, and how."""
        choice = self.tokenizer
        if choice.source and not choice.is_prepared(self.folder / "tokenizers", ""):
            return {} if choice.source.endswith(".json") else {f"tokenizer.source = {choice.source!r}": "download"}
        return {}

    def indexed(self, split: str) -> SplitTable:
        """The index of a split, made now where it is not in the cache.

        Raises:
            DataError: the data cannot be read, or too much of it is damaged.
        """
        folder, fresh = self._table(split), False
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(Path(f"{folder}.lock"), f"indexing {self.label}.{split}"):
                if folder.exists() and self._outdated(split, folder):
                    for kept in self._kept(split).values():
                        kept.unlink(missing_ok=True)
                    shutil.rmtree(folder)
                if not folder.exists():
                    self._write(split, folder)
                    fresh = True
        except OSError as error:
            raise DataError(
                f"the index of {self.label}.{split} cannot be kept in {self.folder}: {error}; free space there, "
                "or name another folder in JESTBENCH_CACHE"
            ) from error
        table = SplitTable.open(folder)
        if refusal := self._refusal(split, table):
            raise DataError(refusal)
        if fresh and table.damaged:
            shown = listed(table.damage, table.examples, table.damaged + len(table))
            _LOG.warning("%s.%s: left out: %s", self.label, split, shown)
        return table

    @property
    def folder(self) -> Path:
        """Where the index is kept."""
        return (user_path(self.cache_dir) if self.cache_dir else cache_root()) / "indexed"

    @property
    def bound(self) -> tuple[str, ...]:
        """The splits that are given."""
        return tuple(name for name in SPLITS if getattr(self, name))

    def where(self, split: str) -> tuple[str, ...]:
        """The files or patterns that a split is bound to.

        Raises:
            SplitNotGiven: the split is not bound; the message gives the binding to set.
            DataError: there is no such split.
        """
        if split not in SPLITS:
            raise DataError(f"{self.label} has no split {split!r}; {nearest_or_all(split, SPLITS)}")
        found: Where = getattr(self, split)
        if not found:
            given = f" (given: {', '.join(self.bound)})" if self.bound else ""
            wanted = f"bind {self.label}.{split} to its {self.wanted}{given}{_WITHOUT.get(split, '')}"
            raise SplitNotGiven(f"the split {split!r} is not given: {wanted}")
        return (found,) if isinstance(found, str) else tuple(found)

    wanted: ClassVar[str] = "files"

    def prepare(self) -> None:
        """Index what is not in the cache; of several processes that start at once, one does the work.

        Raises:
            DataError: the data cannot be read, or too much of it is damaged.
        """
        for split in self.bound or ("pool",):
            self.indexed(split)
        tables = [SplitTable.open(self._table(split)) for split in self.bound]
        check_columns(tables, self.columns, f"{self.label}.columns")
        with locked(self.folder / "tokenizers.lock", "preparing a tokenizer"):
            self.tokenizer.prepare(self.folder / "tokenizers", tables[0].fingerprint, lambda: tables[0].captions)

    def is_prepared(self) -> bool:
        """Whether ``prepare`` has nothing left to do."""
        try:
            ready = bool(self.bound) and all(map(self.has_indexed, self.bound))
            return ready and self.tokenizer.is_prepared(self.folder / "tokenizers", self._trained_on())
        except (DataError, OSError):
            return False

    def split(self, name: str) -> FilePairs:
        """The split of that name, or several joined by ``+``, as in ``pool+curated``.

        Raises:
            DataError: it is not given, not indexed, or too much of it is damaged.
        """
        tables = []
        for part in name.split("+"):
            folder = self._table(part)
            if not folder.exists():
                raise DataError(f"{self.label}.{part} is not indexed, or has changed since: start the run anew")
            tables.append((part, SplitTable.open(folder)))
            if refusal := self._refusal(*tables[-1]):
                raise DataError(refusal)
        tokenizer = self.tokenizer.load(self.folder / "tokenizers", self._trained_on())
        return self._pairs(name, tables, tokenizer)

    def stand_in(self) -> Dataset:
        """Synthetic pairs of the same shapes."""
        from jestbench.data.synthetic import Synthetic

        names = short_names(self.columns, "")
        return Synthetic(length=self.tokenizer.length, image_size=self.image_size, columns=names).stand_in()

    # The index

    def _table(self, split: str) -> Path:
        self.where(split)
        shards = self.shards(split)
        refuse_twice(f"{self.label}.{split}", [(shard.path, shard.identity) for shard in shards])
        identities = [shard.identity for shard in shards]
        files = [file_shard(path).identity for path in (*self.metadata_files(split), *self._lists(split))]
        last = (split in self.verify, *((self.joined, files) if files else ()))
        name = digest(VERSION, self.label, identities, self._reading, self.captions.identity, *last)
        return self.folder / f"{self.label}-{name}"

    @property
    def _reading(self) -> str:
        beside = f"/{self.own_columns}/{self.uid_field}" if self.own_columns or self.uid_field else ""
        return f"{self.reading}{beside}"

    def _trained_on(self) -> str:
        return SplitTable.open(self._table(self.bound[0])).fingerprint

    def _kept(self, split: str) -> dict[Shard, Path]:
        """The shards of a split, and where the index of each is kept."""
        last = self._reading, split in self.verify
        named = {shard: digest(VERSION, self.label, shard.identity, *last) for shard in self.shards(split)}
        return {shard: self.folder / f"shard-{name}.npz" for shard, name in named.items()}

    def _outdated(self, split: str, folder: Path) -> bool:
        """Whether a split was refused, and images that it lacked have come since."""
        table = SplitTable.open(folder)
        return bool(self._refusal(split, table)) and self.come_since(split, table, folder.stat().st_mtime)

    def _write(self, split: str, folder: Path) -> None:
        kept, verified = self._kept(split), self.image_size if split in self.verify else None
        todo = [Reading(self, shard, verified, path) for shard, path in kept.items() if not path.exists()]
        with many(len(todo)) as each:
            for _ in tqdm(
                each(Reading.__call__, todo),
                f"indexing {self.label}.{split}",
                len(todo),
                unit=" files",
                disable=None if todo else True,
            ):
                pass
        paths, beside = [shard.path for shard in kept], self._beside(split)
        if beside.names:
            beside.survey([ShardIndex.came(path, beside.own) for path in kept.values()])
        write_table(folder, paths, map(ShardIndex.load, kept.values()), self.captions, beside)

    def _refusal(self, split: str, table: SplitTable) -> str:
        """Why a split cannot be trained on; empty where it can."""
        read = len(table) + table.damaged
        if len(table) and not too_many(table.damaged, read, self.max_damaged):
            return ""
        said = listed(table.damage, table.examples, read) if table.damage else "it holds no pair"
        if not read and table.beside.get("outside_uids"):
            said += f" whose {self.uid_field} {self.label}.uids lists: {table.beside['outside_uids']} are left out"
        advice = f"mend the data, or raise {self.label}.max_damaged ({self.max_damaged:g})" if len(table) else ""
        advice = advice and f"{DAMAGE_LINE if len(table.damage) > 1 else '; '}{advice}"
        return f"{self.label}.{split}: {said}{advice}"

    def has_indexed(self, split: str) -> bool:
        """Whether the index of a split is in the cache."""
        return self._table(split).exists()

    def first(self, split: str) -> ShardIndex:
        """The first pairs of a split; raises as ``index``."""
        return index_of(self, self.shards(split)[0], None, LOOK)

    def _pairs(self, name: str, tables: Sequence[tuple[str, SplitTable]], tokenizer: Tokenizer) -> FilePairs:
        parts = [table for _, table in tables]
        joined = SplitTable.joined(parts)
        content = [*(part.fingerprint for part in parts), tokenizer.identity, self.image_size, MAX_PIXELS]
        exact = all(part in self.verify for part, _ in tables)
        pairs = FilePairs(
            name=f"{self.label}/{name}",
            fingerprint=digest(*content),
            source=self.encoded(joined),
            captions=joined.captions,
            tokenizer=tokenizer,
            image_key_N=joined.image_key_N,
            image_size=self.image_size,
            marks={"curated": np.concatenate([np.full(len(table), part == "curated") for part, table in tables])},
            columns=joined.columns,
            uids=joined.uids,
            text_key_M=joined.text_key_M,
            first_N=joined.first_N if len(joined.captions) > len(joined) else None,
            max_damaged=self.max_damaged,
            exact=exact,
            facts={
                "damaged_when_indexed": {part: table.damage for part, table in tables if table.damage},
                "damage_examples": {part: table.examples for part, table in tables if table.damage},
                "captions_cut": sum(part.cut for part in parts),
                "beside": {part: table.beside for part, table in tables if table.beside},
            },
            origin=_Origin(self, name),
        )
        if (self.captions.several_exact if exact else self.captions.several) == "all":
            return pairs.expanded()
        return pairs if self.captions.several == "draw" and not exact else pairs.firsts()


@dataclass(frozen=True)
class _Origin:
    source: Source
    split: str

    def __call__(self) -> FilePairs:
        return self.source.split(self.split)


def needs(load: Callable[[], Any], package: str) -> Any:
    """Load a package of the ``data`` extra.

    Raises:
        DataError: the package is not installed, or cannot be loaded; the message gives the remedy.
    """
    try:
        return load()
    except ImportError as error:
        raise DataError(f"this data set needs {package}, which cannot be loaded ({error}): {INSTALL}") from error
