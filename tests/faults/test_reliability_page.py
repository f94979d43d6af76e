"""docs/reliability.md holds the rows of the tests."""

from __future__ import annotations

from fault_rows import CHAPTERS, halves, rows, table


def test_the_page_holds_the_rows_of_the_tests() -> None:
    assert halves()[1].strip() == table().strip(), "regenerate docs/reliability.md: python tests/fault_rows.py"


def test_every_row_stands_in_a_chapter_once() -> None:
    found = list(rows())
    assert {row.chapter for row in found} <= set(CHAPTERS)
    faults = [(row.chapter, row.injected) for row in found]
    assert len(set(faults)) == len(faults), "one fault has two rows"
    assert all(row.injected and row.happens and row.lost and "|" not in "".join(row[1:4]) for row in found)
