"""Text of others (names, captions, paths, messages) in Markdown: read as text, never as markup."""

from __future__ import annotations

import re


def as_text(text: str) -> str:
    """Text that is read neither as Markdown nor as HTML, on one line; a URL in it becomes no link."""
    # An underscore inside a word needs no escape, and labels are full of them.
    text = re.sub(r"([\\`*\[\]|#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"(?i)\b(www)\.", r"\1\\.", text.replace("://", r":\//"))
    return " ".join(text.split())


def as_code(text: str) -> str:
    """Text between a pair of backticks, which it does not end."""
    return " ".join(text.replace("`", "'").replace("|", "/").split())


def fenced(text: str) -> str:
    """A block of code, behind a fence that no line of the text ends."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
