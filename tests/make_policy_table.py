"""Writes the table of the policies into docs/policies.md: ``python tests/make_policy_table.py``."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "policies.md"
BEGIN, END = "<!-- made by tests/make_policy_table.py -->\n", "<!-- end -->\n"


def with_table(page: str) -> str:
    """The page with the table as the code has it."""
    from jestbench.launch.policy_table import policy_table

    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + policy_table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")
