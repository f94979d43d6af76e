"""The rows of docs/reliability.md: each stands at the test that injects its fault.

``python tests/fault_rows.py`` writes them into the page; ``tests/faults/test_reliability_page.py`` compares the two.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- rows of the tests: python tests/fault_rows.py -->\n", "<!-- end of the rows -->\n"
CHAPTERS = {
    "kills": "Killed processes",
    "stops": "Stops (SIGTERM, SIGINT)",
    "waits": "Waits that could last for ever",
    "processes": "Several processes",
    "disk": "Disk and permissions",
    "files": "Damaged files",
    "policies": "Policies at run time",
    "mistakes": "Mistakes found early",
    "guests": "Data, names and secrets of others",
}
"""By name, the headings of the page, in their order."""

Test = TypeVar("Test", bound=Callable[..., object])


def fault(chapter: str, injected: str, happens: str, lost: str = "nothing") -> Callable[[Test], Test]:
    """Register a row at the test that shows it; the arguments are literals, and the decorator may be repeated.

    Args:
        chapter: a key of ``CHAPTERS``.
        injected: what goes wrong, a few words.
        happens: what the user sees: what the run does, its message, its exit status.
        lost: what of the run's work is lost.
    """
    assert chapter in CHAPTERS, f"{chapter!r} is none of {', '.join(CHAPTERS)}"
    return lambda test: test


class Row(NamedTuple):
    chapter: str
    injected: str
    happens: str
    lost: str
    shown_by: str


def rows() -> Iterator[Row]:
    """All rows, read from the source of the tests: none of them is run or imported."""
    for path in sorted(TESTS.rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        if "from fault_rows import" in source:
            yield from _rows_of(path, source)


def _rows_of(path: Path, source: str) -> Iterator[Row]:
    for node in ast.walk(ast.parse(source)):
        for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "fault":
                named = {word.arg: ast.literal_eval(word.value) for word in mark.keywords if word.arg}
                chapter, injected, happens, *lost = (ast.literal_eval(word) for word in mark.args)
                yield Row(
                    named.get("chapter", chapter),
                    injected,
                    happens,
                    named.get("lost", lost[0] if lost else "nothing"),
                    path.relative_to(TESTS.parent).as_posix(),
                )


def table() -> str:
    """All rows as Markdown, a table a chapter."""
    found, parts = list(rows()), []
    for chapter, heading in CHAPTERS.items():
        mine = [row for row in found if row.chapter == chapter]
        if mine:
            lines = [f"| {row.injected} | {row.happens} | {row.lost} | [test](../{row.shown_by}) |" for row in mine]
            head = ["| fault | what happens | what is lost | shown by |", "|---|---|---|---|"]
            parts.append("\n".join([f"### {heading}\n", *head, *lines, ""]))
    return "\n".join(parts)


def halves() -> tuple[str, str, str]:
    """The page before, inside and behind its rows."""
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    inside, end, behind = rest.partition(END)
    assert begin, f"{PAGE} has lost the line {BEGIN!r}"
    assert end, f"{PAGE} has lost the line {END!r}"
    return before + begin, inside, end + behind


if __name__ == "__main__":
    start, _, rest = halves()
    PAGE.write_text(f"{start}\n{table()}\n{rest}", encoding="utf-8")
