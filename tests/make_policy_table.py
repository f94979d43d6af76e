"""Writes the table of the policies into docs/policies.md, from their code: ``python tests/make_policy_table.py``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jestbench.config.registered import policy_classes
from jestbench.select.policy import Policy
from jestbench.select.remembering import takes_all

PAGE = Path(__file__).resolve().parent.parent / "docs" / "policies.md"
BEGIN, END = "<!-- made by tests/make_policy_table.py -->\n", "<!-- end -->\n"


def with_table(page: str) -> str:
    """The page with the table as the code has it."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + policy_table() + END + rest.partition(END)[2]


def policy_table() -> str:
    """A row a policy: name, what it chooses, what it needs, the cost of a step in closed form, the source."""
    heads = ("name", "chooses", "needs", "a step costs", "source")
    rows = [heads, tuple("---" for _ in heads), *_rows()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _rows() -> Iterator[tuple[str, ...]]:
    for name, cls in policy_classes().items():
        policy = cls()
        if cls.__module__.startswith("policies."):  # not those of installed packages
            text = inspect.getdoc(sys.modules[cls.__module__]) or ""
            chooses = text.split("\n\n")[0].split(": ", 1)[-1].rstrip(".").replace("|", "\\|")
            needs = ", ".join(f"`{need}`" for need in sorted(policy.needs))
            yield f"`{name}`", chooses, needs or "nothing", closed_form(policy), _source(text)


def closed_form(policy: Policy) -> str:
    """The cost of a step over that of a uniform one, towers only (arXiv 2406.17711): r = B/b.

    A training pass is 3 forward passes. s is the cost of a scorer's forward pass over the learner's. What a frozen
    model has scored once is remembered (``run.reference_accounting``), and costs nothing after that.
    """
    if takes_all(policy):
        return "1"
    each = ["r/3"] if "learner" in policy.needs else []
    each += ["s + sr/3"] if "online" in policy.needs else []
    once = ["r/3"] if "reference" in policy.needs else []
    once += ["sr/3"] if "scorer" in policy.needs else []
    both = ["2r/3"] if each == once == ["r/3"] else [*each, *once]
    first, later = (" + ".join(["1", *parts]) for parts in (both, each))
    return later if not once else f"{first}, later {later}"


def _source(text: str) -> str:
    """The arXiv numbers in the paragraph on the source; without one its first words."""
    paragraph = next((part for part in text.split("\n\n") if part.startswith("Source:")), "")
    if not paragraph:
        return "baseline"
    if paragraph.startswith("Source: none published"):
        return "none published"
    cited = re.split(r"\nDepartures?:", paragraph)[0]
    found = dict.fromkeys(re.findall(r"arXiv\s+(\d{4}\.\d{5})", cited))
    first = cited.removeprefix("Source: ").split("), ")[0] + ")"
    return ", ".join(f"arXiv {number}" for number in found) or first


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")
