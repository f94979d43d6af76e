"""What becomes of a caption before it is a text: normalised, cut, one or several an image."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from jestbench.data.damage import Damaged


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
    """A caption as text.

    Raises:
        Damaged: the content is not UTF-8, or there is none.
    """
    if content is None:
        raise Damaged("no caption")
    try:
        if isinstance(content, bytes):
            return content.decode("utf-8")
        text = content if isinstance(content, str) else str(content)
        text.encode("utf-8")  # half a surrogate pair, as JSON can hold
    except UnicodeError:
        raise Damaged("caption is not UTF-8") from None
    return text
