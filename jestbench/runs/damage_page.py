"""Damaged pairs of a run on one page: counts by kind, and the first example of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jestbench.disk import write_text
from jestbench.masking import masked
from jestbench.runs.markdown import as_code, as_text


def write_damage(path: Path, data: Mapping[str, Any]) -> bool:
    """Write the page, where there is any damage.

    Args:
        data: what the summary holds of the data: ``damaged_when_indexed`` and ``damage_examples`` by split, in the
            facts of a mixture for each of its ``sources``; ``counts`` of what the run itself has read, and
            ``damage_read``, count and example by reason.

    Returns:
        Whether there is any.
    """
    data = masked(data)
    sections = [line for facts in (data, *data.get("sources", {}).values()) for line in _indexed(facts)]
    counts, kinds = data.get("counts", {}), data.get("damage_read", {})
    found = {
        f"of {counts.get('read', 0):,.0f} reads gave a damaged pair": counts.get("damaged", 0),
        "captions tokenised to nothing": counts.get("wordless", 0),
    }
    if any(found.values()):
        sections += ["## While the run read", ""]
        sections += [line for what, count in found.items() if count for line in (f"{count:,.0f} {what}.", "")]
        worst = sorted((-count, reason, example) for reason, (count, example) in kinds.items())
        sections += [*_table((reason, f"{-count:,}", example) for count, reason, example in worst), ""] * bool(kinds)
    if sections:
        write_text(path, "\n".join(["# Damaged pairs", "", *sections]), errors="replace")
    return bool(sections)


def _indexed(facts: Mapping[str, Any]) -> Iterator[str]:
    examples = facts.get("damage_examples", {})
    for split, damage in facts.get("damaged_when_indexed", {}).items():
        yield from (f"## Left out of `{as_code(split)}` when it was indexed: {sum(damage.values()):,}", "")
        firsts = examples.get(split, {})
        worst = sorted(damage.items(), key=lambda item: (-item[1], item[0]))
        yield from (*_table((reason, f"{count:,}", firsts.get(reason, "")) for reason, count in worst), "")


def _table(rows: Iterator[tuple[str, str, str]]) -> Iterator[str]:
    yield from ("| kind | pairs | the first |", "|---|---|---|")
    for row in rows:
        yield f"| {' | '.join(map(as_text, row))} |"
