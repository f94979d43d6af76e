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
    assert make_results.machine("rivals") == make_results.machine("equal") == {epyc}
