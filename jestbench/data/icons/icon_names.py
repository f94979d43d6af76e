"""Parsing of icon names: an icon's caption, its style, and the drawing it is a version of.

Icon sets put three things into one name: ``user-circle-02-bold-duotone`` is the caption *user
circle*, the style *bold duotone* and the alternative *02*. All versions of one drawing must be in
one split, so this module separates the three.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

STYLES = frozenset({"outline", "outlined", "filled", "duotone", "twotone", "rounded"})
"""Words that name a style at the end of a name in any set. Other words (``bold``, ``line``, ``light``) can be
the thing drawn (*text bold*, *chart line*, *traffic light*) and are styles only where a set lists them."""

KINDS = frozenset({"brand", "logo"})
"""Words for the kind of icon, which some sets write before the name, some after it."""

NUMBERED = frozenset(
    "battery clock counter count dice die exposure filter forward heading hour keycap letter level looks mode "
    "number numeric play rating repeat replay rewind sim signal speed step timer volume wind".split()
)
"""Words after which a lone digit belongs to the caption; after any other it counts alternative drawings."""

PEOPLE = {
    **dict.fromkeys(("man", "woman", "person", "male", "female"), "person"),
    **dict.fromkeys(("men", "women", "people"), "people"),
    **dict.fromkeys(("boy", "girl", "child"), "child"),
    **dict.fromkeys(("prince", "princess", "royalty"), "royalty"),
    **dict.fromkeys(("merman", "mermaid", "merperson"), "merperson"),
}
"""One word for all genders of a person."""

COLOURS = frozenset("red orange yellow green blue purple brown black white pink grey gray cyan violet".split())

_SKIN_TONE = re.compile(r"-((?:medium-)?(?:light|medium|dark)-skin-tone)")
_ALTERNATIVE = re.compile(r"alt\d?|variant|0\d|\d\d?px")


@dataclass(frozen=True)
class IconName:
    """The parts of an icon's name.

    Attributes:
        caption: lower-case words, one space between them, never empty.
        style: what was split off (weight, fill, size, skin tone, number of the alternative), in the
            order of the name, separated by spaces.
        subject: the caption without gender and colour: versions of one drawing share it.
    """

    caption: str
    style: str
    subject: str


def read_name(name: str, prefixes: Iterable[str] = (), suffixes: Iterable[str] = ()) -> IconName:
    """Take an icon's name apart.

    Args:
        name: as the icon set spells it, ``arrow-up-bold``.
        prefixes: styles that the set writes before a name.
        suffixes: styles that the set writes behind a name.
    """
    style: list[str] = []
    name = name.lower().replace("_", "-")
    style += [tone.replace("-", " ") for tone in _SKIN_TONE.findall(name)]
    words = [word for word in _SKIN_TONE.sub("", name).split("-") if word] or [name]

    for prefix in sorted(prefixes, key=len, reverse=True):
        parts = prefix.split("-")
        if prefix and words[: len(parts)] == parts and len(words) > len(parts):
            words = words[len(parts) :]
            style.insert(0, " ".join(parts))
            break

    last: list[str] = []
    _strip_alternatives(words, last, also=frozenset())
    for suffix in sorted(suffixes, key=len, reverse=True):
        parts = suffix.split("-")
        if suffix and words[-len(parts) :] == parts and len(words) > len(parts):
            del words[-len(parts) :]
            last.insert(0, " ".join(parts))
            break
    _strip_alternatives(words, last, also=STYLES)
    _strip_kind(words, last)

    caption = " ".join(words)
    return IconName(caption=caption, style=" ".join(style + last), subject=_subject(words))


def _strip_alternatives(words: list[str], style: list[str], also: frozenset[str]) -> None:
    """Move numbers of alternative drawings, and words in ``also``, from the end of ``words`` to ``style``."""
    while len(words) > 1:
        word = words[-1]
        digit = len(word) == 1 and word.isdigit() and words[-2] not in NUMBERED
        if not (digit or word in also or _ALTERNATIVE.fullmatch(word)):
            return
        style.insert(0, words.pop())


def _strip_kind(words: list[str], style: list[str]) -> None:
    """Move *brand* and *logo* from either end of ``words``."""
    if len(words) > 1 and words[0] in KINDS:
        style.insert(0, words.pop(0))
    if len(words) > 1 and words[-1] in KINDS:
        style.insert(0, words.pop())


def _subject(words: list[str]) -> str:
    """The words that all genders and colours of a drawing share."""
    plain = [word for word in words if word not in COLOURS] or words
    # "man student", "woman student" and "student" are one drawing; "man" and "woman" are one, too.
    return " ".join(word for word in plain if word not in PEOPLE) or " ".join(PEOPLE[word] for word in plain)
