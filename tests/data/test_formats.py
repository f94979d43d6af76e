"""The table of formats in docs/your_data.md is what the readers do."""

from __future__ import annotations

import make_formats
import pytest


def test_the_table_of_formats_is_what_the_readers_do(tmp_path):
    """Where it is not: ``python tests/data/make_formats.py``, and read what changed."""
    for package in ("datasets", "webdataset", "pyarrow"):
        pytest.importorskip(package)
    assert make_formats.matrix(tmp_path).splitlines() == make_formats.written().splitlines()
