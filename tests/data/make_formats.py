"""Writes the table of formats in docs/your_data.md from what the readers do: ``python tests/data/make_formats.py``."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "your_data.md"
BEGIN, END = "<!-- formats: python tests/data/make_formats.py -->\n", "<!-- /formats -->\n"
NOT_THERE = object()
GOOD = "a good caption"


@dataclass(frozen=True)
class Case:
    """A pair of one peculiarity.

    Attributes:
        name: for the table.
        image: encoded.
        caption: text, bytes, or what a JSON field or a column of a table may hold.
        csv: the caption as a table of texts can hold it; ``None``: it cannot.
    """

    name: str
    image: Any
    caption: Any = GOOD
    csv: str | None = GOOD


def image_cases(jpeg: bytes) -> list[Case]:
    """Images of every kind that people have."""
    from PIL import Image

    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))

    def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    deep = Image.fromarray((np.arange(24 * 24, dtype=np.uint16) * 100).reshape(24, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.new("1", (9000, 9000))
    return [
        Case("JPEG, turned by EXIF", saved(colours, "JPEG", exif=exif)),
        Case("JPEG in CMYK", saved(colours.convert("CMYK"), "JPEG")),
        Case("PNG with alpha", saved(colours.convert("RGBA"), "PNG")),
        Case("PNG with a palette", saved(colours.convert("P"), "PNG")),
        Case("PNG of 16 bits, grey", saved(deep, "PNG")),
        *(Case(kind, saved(colours, kind)) for kind in ("WebP", "TIFF", "BMP")),
        Case("GIF, animated (the first frame)", saved(colours, "GIF", save_all=True, append_images=[colours])),
        Case("HEIC", b"\0\0\0\x18ftypheic" + bytes(60)),
        Case("SVG, HTML or any other text", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        Case("empty", b""),
        Case("truncated", jpeg[:-60]),
        Case("more than 2²⁶ pixels", saved(wide, "PNG")),
        Case("not there", None),
    ]


def caption_cases(jpeg: bytes) -> list[Case]:
    """Captions of every kind that people have."""
    lists = [["one", "two"], ["one", None]]
    return [
        Case("text", jpeg),
        Case("text behind a byte-order mark", jpeg, "\ufeff" + GOOD, "\ufeff" + GOOD),
        Case("emoji, any language", jpeg, "\U0001f600 हिन्दी", "\U0001f600 हिन्दी"),
        Case("white space alone", jpeg, " \n ", " "),
        Case("none, null", jpeg, None, ""),
        Case("NaN", jpeg, float("nan"), None),
        Case("a number (7)", jpeg, 7, "7"),
        Case("true or false", jpeg, True, None),
        Case("a list of texts", jpeg, lists[0], None),
        Case("a list with a null", jpeg, lists[1], None),
        Case("a list written as text (`['one', 'two']`)", jpeg, str(lists[0]), str(lists[0])),
        Case("an object", jpeg, {"raw": "x"}, None),
        Case("UTF-16", jpeg, GOOD.encode("utf-16"), None),
        Case("Latin-1", jpeg, "café au lait".encode("latin-1"), None),
    ]


def by_tar(folder: Path, case: Case) -> str:
    """A shard of the case alone; what no text member can hold is in a JSON member."""
    from photos import tar_of

    members = [("0.jpg", case.image)] * (case.image is not None)
    if isinstance(case.caption, str | bytes):
        text = case.caption.encode() if isinstance(case.caption, str) else case.caption
        members.append(("0.txt", text))
    else:
        members.append(("0.json", json.dumps({"caption": case.caption}).encode()))
    return str(tar_of(folder / "case.tar", members))


def bound_for(case: Case) -> dict[str, Any]:
    """The caption's member in a shard."""
    return {"caption": "txt" if isinstance(case.caption, str | bytes) else "json.caption"}


def by_csv(folder: Path, case: Case) -> str | None:
    """A table of the case alone."""
    if case.csv is None and not isinstance(case.caption, bytes):
        return None
    folder.mkdir(parents=True)
    if case.image is not None:
        (folder / "0.jpg").write_bytes(case.image)
    text = case.caption if isinstance(case.caption, bytes) and b"\0" not in case.caption else (case.csv or "").encode()
    whole = b'filepath,title\n0.jpg,"' + text + b'"\n'
    if isinstance(case.caption, bytes) and b"\0" in case.caption:
        whole = f"filepath,title\n0.jpg,{GOOD}\n".encode("utf-16")
    (folder / "case.csv").write_bytes(whole)
    return str(folder / "case.csv")


def by_parquet(folder: Path, case: Case) -> str:
    """A parquet file of the case alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    image = pa.array([case.image], pa.binary())
    pq.write_table(pa.table({"image": image, "text": pa.array([case.caption])}), folder / "case.parquet")
    return str(folder / "case.parquet")


def by_folder(folder: Path, case: Case) -> str | None:
    """A folder of a picture, with a text of its name beside it."""
    (folder / "photos").mkdir(parents=True)
    if not isinstance(case.caption, str | bytes | None):
        return None
    if case.image is not None:
        (folder / "photos" / "0.jpg").write_bytes(case.image)
    if case.caption is not None:
        text = case.caption.encode() if isinstance(case.caption, str) else case.caption
        (folder / "photos" / "0.txt").write_bytes(text)
    # A second pair, so that the folder is one of pictures with texts whatever the first is.
    from photos import jpeg

    (folder / "photos" / "1.jpg").write_bytes(jpeg(1))
    (folder / "photos" / "1.txt").write_text("another", encoding="utf-8")
    return str(folder / "photos")


def outcome_of(source: Any, case: Case) -> str:
    """What becomes of the case in an indexed data set."""
    import torch

    from jestbench.batch import DataError

    try:
        source.prepare()
        pairs = source.split("pool")
        kept = [i for i in range(len(pairs)) if pairs.captions[i] != "another"]
        if not kept:
            raise DataError(next(iter(pairs.facts["damaged_when_indexed"].get("pool", {"": 1})), "") or "not a pair")
        texts = source.indexed("pool").captions
        _, damaged = pairs.attempt(torch.tensor(kept[:1]))
        if damaged:
            return f"replaced when read: {damaged[0].reason}"
        return shown([text for text in texts if text != "another"], case)
    except DataError as error:
        found = re.search(r"1 × (.*?) of \d", str(error))
        if found:
            return f"left out: {found[1]}"
        named = re.search(r"UTF-16|compressed", str(error))
        return f"left out: {error}" if len(str(error)) < 40 or not named else f"refused: {named[0]}"


def shown(texts: list[str], case: Case) -> str:
    """A caption that was read: as it is, or what it became."""
    given = case.caption.removeprefix("\ufeff") if isinstance(case.caption, str) else None
    if isinstance(case.caption, list):
        assert set(texts) <= set(case.caption)
        return "read, one of them an epoch" if None not in case.caption else "read, without the null"
    return "read" if given == texts[0] else f"read as `{texts[0]}`"


def chunk_of(url: str, case: Case) -> Any:
    """The pairs of a shard, as they are streamed."""
    from photos import TOKENIZER

    from jestbench.data.sources.lanes import START, LaneReader, Shards
    from jestbench.data.sources.shards import MemberRules

    rules = MemberRules(**bound_for(case))
    return LaneReader(Shards((url,), TOKENIZER, 16, rules, 1, 1, 1.0))((0, 0, START, 9))


def streamed(url: str, case: Case) -> str:
    """What becomes of the case in a stream."""
    chunk = chunk_of(url, case)
    if not chunk.captions:
        return f"left out: {next(iter(chunk.examples))}"
    return shown([chunk.captions[0]], case)


def cells(case: Case, folder: Path) -> list[str]:
    """A row of the table: by index, by stream, from a table, from parquet, from a folder."""
    from jestbench.data.sources.csv_tables import Csv
    from jestbench.data.sources.hugging_face import HuggingFace
    from jestbench.data.sources.web_dataset import WebDataset
    from jestbench.model.tokenizer_choice import TokenizerChoice

    common = {
        "image_size": 16,
        "max_damaged": 1.0,
        "cache_dir": str(folder / "cache"),
        "tokenizer": TokenizerChoice(length=8, vocab_size=300),
    }
    tar = by_tar(folder, case)
    found = [outcome_of(WebDataset(pool=tar, **common, **bound_for(case)), case), streamed(tar, case)]
    ways: list[tuple[type[Any], Callable[[Path, Case], str | None]]] = [
        (Csv, by_csv),
        (HuggingFace, by_parquet),
        (HuggingFace, by_folder),
    ]
    for number, (kind, write) in enumerate(ways):
        place = write(folder / str(number), case)
        found.append("—" if place is None else outcome_of(kind(pool=place, **common), case))
    return found


def shard_rows(folder: Path, jpeg: bytes) -> list[str]:
    """A row of the table for each damage of a whole shard: by index and by stream, beside one whole pair."""
    from photos import tar_bytes

    from jestbench.data.sources.web_dataset import WebDataset
    from jestbench.model.tokenizer_choice import TokenizerChoice

    def pair(stem: str) -> list[tuple[str, bytes]]:
        return [(f"{stem}.jpg", jpeg), (f"{stem}.txt", GOOD.encode())]

    whole, apart = tar_bytes(pair("0")), [("1.jpg", jpeg), *pair("0"), ("1.txt", b"x")]
    damages = {
        "broken off in the second of two pairs": tar_bytes([*pair("0"), *pair("1")])[: 512 * 8],
        "two pairs of one name": tar_bytes([*pair("0"), *pair("1"), *pair("0")]),
        "members of a pair apart": tar_bytes(apart),
        "a folder's dots in a name (`a.b/0.jpg`)": tar_bytes(pair("a.b/0")),
        "compressed (gzip)": gzip.compress(whole),
        "no tar": b"<html>" + bytes(2000),
        "empty": b"",
    }
    lines = []
    for number, (name, content) in enumerate(damages.items()):
        path = folder / f"{number}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        tokenizer = TokenizerChoice(length=8, vocab_size=300)
        made = WebDataset(str(path), image_size=16, max_damaged=1.0, cache_dir=str(folder), tokenizer=tokenizer)
        case, lost, seen = Case(name, jpeg), "", streamed(str(path), Case(name, jpeg))
        indexed = outcome_of(made, case)
        if indexed == "read":
            lost = "".join(f", left out: {reason}" for reason in sorted(made.indexed("pool").damage))
            indexed = f"{len(made.split('pool'))} read{lost}"
        if seen == "read":
            chunk = chunk_of(str(path), case)
            seen = f"{len(chunk.captions)} read" + "".join(f", left out: {one}" for one in sorted(chunk.examples))
        lines.append(f"| {name} | {indexed} | {seen} |")
    return lines


def matrix(folder: Path) -> str:
    """The whole section, as Markdown."""
    from photos import jpeg

    lines = [BEGIN.rstrip("\n")]
    for title, cases in (("Caption", caption_cases(jpeg(0))), ("Image", image_cases(jpeg(0)))):
        lines += [f"| {title} | shards, indexed | shards, streamed | CSV, TSV | parquet | folder |", "|---" * 6 + "|"]
        for number, case in enumerate(cases):
            row = cells(case, folder / title / str(number))
            lines.append(f"| {case.name} | {' | '.join(row)} |")
        lines.append("")
    lines += ["| Shard | indexed | streamed |", "|---|---|---|", *shard_rows(folder / "shards", jpeg(0))]
    return "\n".join(lines) + "\n" + END


def written() -> str:
    """The section that stands in the page.

    Raises:
        ValueError: there is none.
    """
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def main() -> None:
    """Write the section."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    with tempfile.TemporaryDirectory() as folder:
        found = matrix(Path(folder))
    PAGE.write_text(PAGE.read_text(encoding="utf-8").replace(written(), found), encoding="utf-8")


if __name__ == "__main__":
    main()
