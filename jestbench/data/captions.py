"""What becomes of a caption before it is a text: normalised, cut, one or several an image."""

from __future__ import annotations

import ast
import math
import re
import unicodedata
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Literal

from jestbench.data.damage import Damaged
from jestbench.disk import decoded

BRACKETS = {"[": "]", "{": "}", "(": ")"}
"""First and last characters of a list, an object or a tuple that is written as text."""
LONG = 2**16
"""Characters above which a text in brackets is not taken apart."""
_WORDS = {"nan": "None", "NaN": "None", "null": "None", "true": "True", "false": "False"}
"""Words of JSON and of pandas, and those of Python."""


@dataclass(frozen=True)
class Captions:
    """How captions are normalised, and which of an image's several captions are used.

    Attributes:
        nfkc: Unicode's NFKC form: full-width letters, ligatures and the like become plain ones.
        spaces: runs of white space become one blank.
        lower: lower case.
        max_characters: longer ones are cut.
        several: which of an image's captions training uses: ``draw`` one anew for each epoch (a function of image,
            seed and epoch), or always take the ``first``.
        several_exact: which captions evaluation uses, where pairs may not change: the ``first``, or ``all``, each a
            pair of its own (the metrics then count the image's other captions as wrong).
    """

    nfkc: bool = True
    spaces: bool = True
    lower: bool = False
    max_characters: int = 1000
    several: Literal["draw", "first"] = "draw"
    several_exact: Literal["first", "all"] = "first"

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise ValueError(f"captions.max_characters must be at least 1, got {self.max_characters}")

    def normalise(self, caption: str) -> str:
        """The caption as models see it; empty where nothing is left."""
        # Cut first as well: a megabyte of text is not worth normalising. NFKC can lengthen, hence the second cut.
        caption = caption[: 8 * self.max_characters]
        if self.nfkc:
            caption = unicodedata.normalize("NFKC", caption)
        if self.spaces:
            caption = " ".join(caption.split())
        if self.lower:
            caption = caption.lower()
        return caption[: self.max_characters].strip()

    def usable(self, captions: Iterable[str]) -> list[str]:
        """The distinct captions of an image that are not empty after normalisation."""
        return [text for text in dict.fromkeys(map(self.normalise, captions)) if text]

    @property
    def identity(self) -> str:
        """Identity of the captions as stored; ``several`` is left out, as the choice is made later."""
        return f"{self.nfkc}/{self.spaces}/{self.lower}/{self.max_characters}"


def text_of(content: object) -> str:
    """A caption as text; a whole number or a finite one is its digits.

    Raises:
        Damaged: the content is not UTF-8, is of a kind that is no text, or there is none (null, NaN).
    """
    if content is None or (isinstance(content, float) and not math.isfinite(content)):
        raise Damaged("no caption")
    if isinstance(content, bytes):
        try:
            return decoded(content)
        except ValueError as error:
            raise Damaged("caption is not UTF-8", str(error)) from None
    if isinstance(content, bool) or not isinstance(content, str | int | float):
        raise Damaged(f"caption is no text ({type(content).__name__})", repr(content)[:80], _field_hint(content))
    text = str(content).removeprefix("\ufeff")
    try:
        text.encode("utf-8")
    except UnicodeError:  # half a surrogate pair, as JSON can hold; or bytes of a table, kept by surrogateescape
        shown = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        with suppress(UnicodeError):
            shown = f"as Latin-1 it reads {text.encode('utf-8', 'surrogateescape').decode('latin-1')[:80]!r}"
        raise Damaged("caption is not UTF-8", shown[:120]) from None
    return text


def caption_of(content: object) -> str:
    """A caption as ``text_of`` gives it.

    Raises:
        Damaged: as ``text_of``; or the text is what Python or JSON writes for a list, an object or bytes (``b'a'``).
    """
    text = text_of(content)
    bare = text.strip()
    if re.fullmatch(r"b(['\"]).*\1", bare, re.DOTALL):
        raise Damaged("caption is bytes written as text", bare[:80], "decode them before they are written: .decode()")
    if not bare or BRACKETS.get(bare[0]) != bare[-1]:
        return text
    found = _value(bare)
    if isinstance(found, dict):
        fields = f"its fields are {', '.join(map(str, found))[:100]}: " if found else ""
        said = f"{fields}write the one that is the caption, or bind it (in a shard: caption = 'txt.NAME')"
        raise Damaged("caption is an object written as text", bare[:80], said)
    if isinstance(found, list | tuple | set) and not _aside(found):
        said = "write a row for each caption (in a shard a line, and lines = True), or a list in parquet or JSON"
        raise Damaged("caption is a list written as text", bare[:80], said)
    return text


def _value(text: str) -> object:
    """The value that a text in brackets has in Python or in JSON; the text itself where it has none."""
    if len(text) > LONG:
        return [text] if text[1] in "'\"[{" else text
    text = re.sub(r"\b(nan|NaN|null|true|false)\b", lambda word: _WORDS[word[0]], text)
    with warnings.catch_warnings(), suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        warnings.simplefilter("ignore")  # of escapes that are none in Python
        return ast.literal_eval(text)
    return text


def _aside(values: list[object] | tuple[object, ...] | set[object]) -> bool:
    """Whether the brackets are those of running text: ``[1]``, ``[...]``."""
    return len(values) == 1 and isinstance(next(iter(values)), int | float | EllipsisType)


def field_at(found: Any, path: str) -> Any:
    """The value at names joined by dots; of a list of objects that of each of them; ``None`` where there is none."""
    for step in path.split("."):
        if isinstance(found, list):
            each = [one.get(step) if isinstance(one, dict) else None for one in found]
            found = None if all(one is None for one in each) else each
        else:
            found = found.get(step) if isinstance(found, dict) else None
    return found


def texts_of(found: object) -> list[str]:
    """The captions that a field holds: one or a list, whose nulls are left out; at least one.

    Raises:
        Damaged: as ``caption_of``, or the list holds none.
    """
    if not isinstance(found, list | tuple):
        return [caption_of(found)]
    there = [one for one in found if one is not None and not (isinstance(one, float) and math.isnan(one))]
    return [caption_of(one) for one in there] or [text_of(None)]


def _field_hint(content: object) -> str:
    if isinstance(content, dict):
        return f"name one of its fields: {', '.join(map(str, content)) or 'it has none'}"
    return "name the field that holds the text"
