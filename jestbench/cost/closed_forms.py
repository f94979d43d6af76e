"""The cost of an update in closed form, relative to a uniform update, towers only (arXiv 2406.17711)."""

from __future__ import annotations

FILTER_RATIOS = (0.5, 0.8, 0.9)


def closed_forms(cheap: float | None) -> dict[str, list[float]]:
    """Cost of an update relative to a uniform one, towers only, by scheme and filter ratio f (arXiv 2406.17711).

    A training pass is 3 forward passes, r = B/b = 1/(1 − f).

    Args:
        cheap: measured cost of a cheap pass over a full one; ``None`` leaves out the schemes with cheap passes.

    Returns:
        Scheme with its formula → the cost at each of ``FILTER_RATIOS``.
    """
    ratios = [1 / (1 - f) for f in FILTER_RATIOS]
    found = {
        "reference remembered: 1 + r/3": [1 + r / 3 for r in ratios],
        "and the selected not run twice: 1 + (r-1)/3": [1 + (r - 1) / 3 for r in ratios],
        "reference of the same size run: 1 + 2r/3": [1 + 2 * r / 3 for r in ratios],
    }
    if cheap is not None:
        half = (1 + cheap) / 2
        found[f"cheap scoring: 1 + {cheap:.2f}r/3"] = [1 + cheap * r / 3 for r in ratios]
        found[f"half of it trained so: {half:.2f} + {cheap:.2f}r/3"] = [half + cheap * r / 3 for r in ratios]
    return found
