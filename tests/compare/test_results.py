"""The tables of docs/results.md are what the records in docs/logs say."""

from __future__ import annotations

import make_results


def test_the_page_is_what_the_records_say():
    """Where it is not: ``python tests/compare/make_results.py``, and read what changed."""
    page = make_results.PAGE.read_text(encoding="utf-8")
    assert len(make_results.SECTION.findall(page)) >= 6
    assert make_results.filled(page).splitlines() == page.splitlines()


def test_the_machine_that_the_page_names():
    xeon, epyc = "Intel(R) Xeon(R) Processor", "AMD EPYC"
    assert make_results.machine("flagship_rates") == {xeon}
    assert make_results.machine("flagship") == {xeon, epyc}
    for folder in ("rivals", "equal", "curated", "web", "why"):
        assert make_results.machine(folder) == {epyc}


def test_the_arms_of_a_table_have_the_same_seeds():
    """An arm whose sweep was stopped before its last seed is no fair company."""
    for _, folder, what, made, _ in make_results.SECTION.findall(make_results.PAGE.read_text(encoding="utf-8")):
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in made.splitlines())
        if "seeds" in head:
            assert len({row[head.index("seeds")] for row in rows}) == 1, f"{folder} {what}"
