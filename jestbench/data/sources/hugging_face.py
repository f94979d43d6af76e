"""Hugging Face data sets: parquet and arrow files, image folders, local or from the hub."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from jestbench.batch import DataError
from jestbench.data.captions import field_at, texts_of
from jestbench.data.damage import Damaged, likely_cause
from jestbench.data.decode import DamagedImage
from jestbench.data.encoded_images import Encoded
from jestbench.data.sources.columns import KEY, column, note_missing, number_of
from jestbench.data.sources.other_kinds import READ, kind_of_file
from jestbench.data.sources.patterns import globbed, local_path
from jestbench.data.sources.shard_index import ShardIndex, SplitTable, digest, image_key
from jestbench.data.sources.source import Fetched, Shard, Source, needs, refuse_twice
from jestbench.disk import nearest_or_all, user_path

FILES = {".parquet": "parquet", ".arrow": "arrow"}
"""Ending of a table → the kind that ``datasets`` opens it as."""
NAMED = FILES | {".jsonl": "json", ".json": "json"}
"""The same of a file that is named; beside others in a folder, a JSON file may be anything."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Files of an image folder that name its images and their captions."""
TEXTS = (".txt", ".caption")
"""Endings of a text beside an image."""
ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
OWN = "gin/run/huggingface.gin reads"
"""Words on a file of a kind that is read here."""
LOOKED_AT = 100
"""Files of a folder whose kind is looked at, where the folder cannot be opened."""


@dataclass(frozen=True)
class HuggingFace(Source):
    """Data sets that the ``datasets`` package opens.

    A split is ``WHAT`` or ``WHAT:SPLIT`` (``train`` where it is not said; slices as in ``train[:10000]`` too), where
    ``WHAT`` is a parquet, arrow or JSON file (an object a line, or a list of them), a glob of these, a folder (of
    parquet or arrow files, whatever else lies in it; written by ``save_to_disk``; of images with a ``metadata.csv``,
    each with a text of its name beside it, or in one subfolder a class), or a name on the hub.

    Attributes:
        image_column: holds the image: an image feature, bytes, a path (relative to the file's folder), or a list of
            one of these.
        caption_column: holds the caption or a list of captions, or names a field of a struct, or of a list of structs
            (``sentences.raw``); of a class label the name is the caption.
        config_name: of a data set on the hub that has several.
        revision: of a data set on the hub: a branch, a tag or a commit.
    """

    image_column: str = "image"
    caption_column: str = "text"
    config_name: str | None = None
    revision: str = "main"
    label: ClassVar[str] = "huggingface"
    wanted: ClassVar[str] = "parquet file, folder or hub name ('/data/train.parquet')"

    @property
    def reading(self) -> str:
        """Which columns are read."""
        return f"{self.image_column}/{self.caption_column}"

    def shards(self, split: str) -> list[Shard]:
        """One shard for each data set of the split, identified by its files, or on the hub by name and revision."""
        names = self.where(split)
        if len(names) > 1:
            refuse_twice(f"huggingface.{split}", [one for name in names for one in _named(name)])
        return [Shard(name, self._identity(name, split)) for name in names]

    def where(self, split: str) -> tuple[str, ...]:
        """As ``Source.where``, a ``file:`` URL as its path."""
        return tuple(str(local_path(name)) if name.startswith("file:") else name for name in super().where(split))

    def fetched(self) -> dict[str, Fetched]:
        """The names on the hub that are not indexed yet, too."""
        found = super().fetched()
        for split in self.bound:
            if any(_files(_parts(name)[0]) is None for name in self.where(split)) and not self.has_indexed(split):
                found[f"{self.label}.{split}"] = "download"
        return found

    def _identity(self, name: str, split: str) -> str:
        what, part = _parts(name)
        files = _files(what)
        if files is None:
            return digest(what, part, self.config_name, self.revision)
        if not files:
            raise DataError(f"huggingface.{split}: there is no file {what}")
        states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return digest(states, part)

    def encoded(self, table: SplitTable) -> Encoded:
        """Rows of the data set."""
        rows = tuple(HubRows(name, self.image_column, self.config_name, self.revision) for name in table.paths)
        return RowRanges(rows, table.path_N, table.offset_N)

    def index(self, shard: Shard, verified: int | None, most: int | None = None) -> ShardIndex:
        """Read a data set once; what is damaged is counted and left out."""
        rows = HubRows(shard.path, self.image_column, self.config_name, self.revision)
        data = rows.data
        columns = data.column_names
        caption, path = self._columns(columns, bool(getattr(data.features.get("label"), "names", None)), shard.path)
        feature = data.features[caption]
        names: Sequence[str] | None = getattr(feature, "names", None)
        texts = data.select_columns([caption])
        came = [name for name in dict.fromkeys((*self.columns, self.uid_field)) if name in columns]
        numbers = data.select_columns(came) if came else None
        index = ShardIndex()
        for row in range(len(data) if most is None else min(len(data), most)):
            with index.leaving_out(f"{shard.path}, row {row}"):
                found = texts[row][caption]
                if names is not None and found is not None:
                    found = names[found].replace("_", " ") if found >= 0 else None
                captions = texts_of(field_at(found, path) if path else found)
                try:
                    content = rows.read(row)
                except DamagedImage as damaged:
                    raise Damaged("no image", damaged.said, likely_cause(damaged.said)) from None
                fields = {} if numbers is None else numbers[row]
                values = tuple(number_of(fields.get(name)) for name in self.columns)
                shown = [fields.get(name) for name in self.columns]
                note_missing(index.examples, self.columns, values, f"row {row}", shown, columns)
                uid = KEY if self.uid == KEY else fields.get(self.uid_field)
                key = image_key(content, verified)
                index.add(row, len(content), key, captions, None, values, "" if uid is None else str(uid))
        return index

    def first(self, split: str) -> ShardIndex:
        """No pair, as a data set is converted as a whole when it is opened; of a parquet file the columns are found."""
        (name, *_), tables = self.where(split), list[Path]()
        for file in _files(_parts(name)[0]) or ():
            tables += [file] if file.suffix == ".parquet" and file.name not in METADATA else []
        if tables and not (other := kind_of_file(tables[0])).startswith("a parquet"):
            raise DataError(f"{tables[0]} is no parquet file{f' but {other}' if other else ''}")
        if tables:
            parquet: Any = needs(lambda: __import__("pyarrow.parquet").parquet, "pyarrow")
            names = parquet.read_schema(tables[0]).names
            self._columns(names, "label" in names, str(tables[0]))
        return ShardIndex()

    def _columns(self, columns: Sequence[str], classes: bool, where: str) -> tuple[str, str]:
        """The column of captions, and the path to the caption within it.

        Args:
            classes: whether a column ``label`` has names, as that of an image folder of one subfolder a class.

        Raises:
            DataError: there is no such column, or none of images.
        """
        wanted = self.caption_column
        if {"images", "annotations"} <= set(columns):
            raise DataError(
                f"{where} holds images and annotations apart, as COCO does: join them into a row an image "
                "(docs/your_data.md shows how)"
            )
        if [*columns] == ["image"]:
            raise DataError(
                f"{where} holds pictures without captions: write a text of its name beside each (0.jpg, 0.txt), or all "
                "into metadata.jsonl (file_name, text)"
            )
        if wanted == "text" and wanted not in columns and classes:
            wanted = "label"
        head, _, path = wanted.partition(".")
        caption, path = (head, path) if path and head in columns and wanted not in columns else (wanted, "")
        column(columns, caption, where, "huggingface.caption_column")
        column(columns, self.image_column, where, "huggingface.image_column")
        return caption, path


@dataclass
class HubRows:
    """The encoded images of one data set, by row; opened when first read, and in each process anew.

    Attributes:
        name: ``WHAT`` or ``WHAT:SPLIT``.
        column: that holds the images.
        config_name, revision: of one on the hub.
    """

    name: str
    column: str
    config_name: str | None
    revision: str
    _data: Any = field(default=None, repr=False, compare=False)
    _images: Any = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_data": None, "_images": None}

    @property
    def data(self) -> Any:
        """The data set, its images left encoded.

        Raises:
            DataError: it cannot be opened.
        """
        if self._data is None:
            self._data = _open(self.name, self.column, self.config_name, self.revision)
            if self.column in self._data.column_names:
                self._images = _images(self._data, self.column, self.name)
        return self._data

    def read(self, row: int) -> bytes:
        """The encoded bytes of a row's image.

        Raises:
            DamagedImage: there are none.
            DataError: the row holds several images.
        """
        assert self.data is not None  # opens it
        found: Any = self._images[row][self.column]
        path: str | None = None
        if isinstance(found, list) and not (found and isinstance(found[0], int)):
            if len(found) > 1:
                raise DataError(
                    f"{self.name}, row {row}: the column {self.column!r} holds a list of {len(found)} images, and a "
                    "pair has one: write a row for each"
                )
            found = found[0] if found else None
        if isinstance(found, dict):
            found, path = found.get("bytes"), found.get("path")
        if isinstance(found, str):
            found, path = None, found
        if found is not None:
            return bytes(found)
        if path is None:
            raise DamagedImage("unreadable file", "the row holds no image")
        try:
            return (_folder(self.name) / local_path(path)).read_bytes()
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", "") or str(error)
            raise DamagedImage("unreadable file", f"{path}: {said}") from error


@dataclass(frozen=True)
class RowRanges:
    """Images by data set and row."""

    parts: tuple[HubRows, ...]
    part_N: npt.NDArray[np.int32]
    row_N: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row_N)

    def read(self, position: int) -> bytes:
        """The encoded bytes."""
        return self.parts[int(self.part_N[position])].read(int(self.row_N[position]))

    def where(self, position: int) -> str:
        """The data set and the row."""
        return f"{self.parts[int(self.part_N[position])].name}, row {self.row_N[position]}"


def _parts(name: str) -> tuple[str, str]:
    """Split ``WHAT:SPLIT`` into its two parts."""
    matched = re.fullmatch(r"(?P<what>.+?):(?P<part>\w[\w.-]*(\[[^\]]*\])?)", name)
    if matched is None or user_path(name).exists():
        return name, "train"
    return matched["what"], matched["part"]


def _named(name: str) -> list[tuple[str, str]]:
    """Each file of ``WHAT:SPLIT``, for messages, and its identity with the split; of a name on the hub the name."""
    what, part = _parts(name)
    files = _files(what) or [Path(what)]
    return [(name if len(files) == 1 else f"{file} of {name}", f"{file.resolve()}:{part}") for file in files]


def _files(what: str) -> list[Path] | None:
    """The local files of ``WHAT``; ``None`` where it is a name on the hub."""
    path = user_path(what)
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        # Hidden ones are no data: macOS leaves a ._0.jpg beside 0.jpg, a notebook its checkpoints.
        return sorted(one for one in files if not any(part[0] == "." for part in one.relative_to(path).parts))
    if (found := globbed(what)) is not None:
        return found
    if path.is_file():
        return [path]
    return [] if path.suffix in NAMED or path.is_absolute() or what.count("/") > 1 or what.startswith(".") else None


def _folder(name: str) -> Path:
    """The folder that paths in a data set are relative to."""
    path = user_path(_parts(name)[0])
    return path if path.is_dir() else path.parent


def _open(name: str, column: str, config_name: str | None, revision: str) -> Any:
    datasets = needs(lambda: __import__("datasets"), "datasets")
    what, part = _parts(name)
    files = _files(what)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what matters is raised
    if files is not None:
        datasets.disable_progress_bars()  # they call the reading of local files a download
    try:
        if files is None:
            data = datasets.load_dataset(what, config_name, split=part, revision=revision)
        elif user_path(what).is_dir():
            data = _open_folder(datasets, user_path(what), part, files)
        elif not files or files[0].suffix not in NAMED:
            found = kind_of_file(files[0]) if files else ""
            but = f" but {found}" if found else ""
            raise DataError(f"{what} is no parquet, arrow or JSON file{but}: name one, or a folder of tables")
        else:
            kind, paths = NAMED[files[0].suffix], [escape(str(file)) for file in files]
            data = datasets.load_dataset(kind, data_files={part.partition("[")[0]: paths}, split=part)
    except DataError:
        raise
    except Exception as error:  # the package, pyarrow and the hub's client raise their own kinds
        cause: BaseException = error
        while cause.__cause__ is not None:  # datasets wraps what is wrong in "an error occurred"
            cause = cause.__cause__
        said = (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")
        endings = sorted({file.suffix for file in files or ()} - {""}) if Path(what).is_dir() else ()
        found = f" (its files end in {', '.join(endings[:8])})" if endings else ""
        some = [file for file in files or () if file.suffix.lower() not in ENDINGS][:LOOKED_AT]
        kinds = ((file.suffix in FILES, kind_of_file(file)) for file in some)
        if other := next((kind for table, kind in kinds if READ in kind or (table and kind and OWN not in kind)), ""):
            said = f"a file of it is {other}"
        elif ".tar" in endings:
            said += "; gin/run/webdataset.gin reads the shards (.tar)"
        raise DataError(f"the data set {name}{found} cannot be opened: {said}") from error
    return data


def _images(data: Any, column: str, name: str) -> Any:
    """The column of images, encoded; ``DataError`` where it holds something else."""
    datasets = needs(lambda: __import__("datasets"), "datasets")
    feature, inner = data.features[column], data.features[column]
    listed = isinstance(feature, datasets.List | datasets.LargeList)
    if listed:
        inner = feature.feature
    columns = ", ".join(data.column_names)
    data = data.select_columns([column])
    if isinstance(inner, datasets.Image):
        plain = datasets.Image(decode=False)
        return data.cast_column(column, datasets.List(plain) if listed else plain)
    kind = getattr(inner, "dtype", type(inner).__name__)
    fits = kind in ("binary", "large_binary", "string", "large_string", "binary_view", "string_view", "null")
    fits = fits or (isinstance(inner, dict) and bool({"bytes", "path"} & set(inner))) or (listed and kind == "uint8")
    if not fits:
        kind = f"a struct of {', '.join(inner)}" if isinstance(inner, dict) else kind
        raise DataError(
            f"the data set {name}: the column {column!r} is {f'a list of {kind}' if listed else kind}, no image "
            f"(its columns: {columns}): an image is bytes, a path or an image feature; set "
            "huggingface.image_column"
        )
    return data


def _open_folder(datasets: Any, folder: Path, part: str, files: Sequence[Path]) -> Any:
    """A folder: saved by ``save_to_disk``, of tables (a picture beside them is no pair), of images, of other files."""
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        data = datasets.load_from_disk(str(folder))
        splits = data if isinstance(data, datasets.DatasetDict) else {"train": data, str(data.split or "train"): data}
        if (split := part.partition("[")[0]) not in splits:
            raise DataError(f"the data set {folder} has no split {split!r}; {nearest_or_all(split, splits)}")
        return _sliced(datasets, splits[split], split, part)
    tables = Counter(FILES[file.suffix] for file in files if file.suffix in FILES and file.name not in METADATA)
    images = [file for file in files if file.suffix.lower() in ENDINGS]
    names = {file.with_suffix("") for file in images}
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() in TEXTS}
    paired = len(names & set(texts))
    # img2dataset leaves a table of what it has fetched beside its pictures and texts.
    if paired > (len(names) / 2 if tables else 0) and not any(file.name in METADATA for file in files):
        return _with_texts_beside(datasets, folder, part, images, texts)
    if tables:
        return datasets.load_dataset(tables.most_common(1)[0][0], data_dir=escape(str(folder)), split=part)
    if images:
        return datasets.load_dataset("imagefolder", data_dir=escape(str(folder)), split=part)
    return datasets.load_dataset(str(folder), split=part)


def _with_texts_beside(
    datasets: Any, folder: Path, part: str, images: Sequence[Path], texts: Mapping[Path, Path]
) -> Any:
    """A folder of images, each with a text file of its name beside it (as kohya's scripts lay them out)."""
    found = [texts.get(image.with_suffix("")) for image in images]
    columns = {
        "image": [str(image.relative_to(folder)) for image in images],
        "text": [None if text is None else text.read_bytes() for text in found],
    }
    features = datasets.Features({"image": datasets.Value("string"), "text": datasets.Value("binary")})
    return _sliced(datasets, datasets.Dataset.from_dict(columns, features), "train", part)


def _sliced(datasets: Any, data: Any, split: str, part: str) -> Any:
    """The rows of a split that ``part`` asks for (``train[:100]``)."""
    (place,) = datasets.ReadInstruction.from_spec(part).to_absolute({split: len(data)})
    return data.select(range(place.from_ or 0, len(data) if place.to is None else place.to))
