"""What several policies chose and refused of the same super-batches: pictures, scores, and how much they agree."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jestbench.compare.comparison import Table
from jestbench.runs.choices import Shown, shown_by

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_RUNS = 4
"""Runs of an arm that are looked through."""
_MOST_ARMS = 12
_MOST_BATCHES = 4
"""Super-batches that the page shows with pictures."""
_EACH = 8
"""Pictures of either kind for each policy."""
_LARGEST = 112
"""Pixels of a picture's longer side."""
_BINS = 24


@dataclass(frozen=True)
class _Taken:
    """What one run chose of a super-batch."""

    arm: int
    run: str
    seed: int
    shown: Shown


def gallery(table: Table) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The gallery of a table.

    Returns:
        ``batches`` (one for each super-batch that is shown) and ``overlap`` (of the policies' choices); ``None`` where
        no run has left a choice. And problems with what the runs have left.
    """
    batches: dict[str, list[_Taken]] = defaultdict(list)
    problems: list[str] = []
    for arm, of in enumerate(table.arms[:_MOST_ARMS]):
        for member in of.runs[:_MOST_RUNS]:
            tables, wrong = shown_by(member.run.folder)
            problems.extend(wrong)
            for shown in tables:
                taken = _Taken(arm, member.run.folder.name, member.seed, shown)
                if len(shown.choice.chosen_K) < len(shown.choice.key_B):
                    batches[shown.choice.super_batch].append(taken)
    if not batches:
        return None, tuple(problems)
    several = [group for group in map(_one_each, batches.values()) if len(group) > 1] or list(batches.values())[:1]
    return {
        "batches": [_batch(group) for group in _chosen(several)],
        "overlap": [_overlap(found) for found in _by_step(several)],
    }, tuple(problems)


def _one_each(group: Iterable[_Taken]) -> list[_Taken]:
    return list({taken.arm: taken for taken in group}.values())


def _chosen(groups: Sequence[list[_Taken]]) -> list[list[_Taken]]:
    """The super-batches with most policies, of different steps first; by step."""
    ordered = sorted(groups, key=lambda group: (-len(group), group[0].shown.step, group[0].seed))
    first = {(len(group), group[0].shown.step): group for group in reversed(ordered)}
    kept = sorted(first.values(), key=lambda group: (-len(group), group[0].shown.step))[:_MOST_BATCHES]
    return sorted(kept, key=lambda group: (group[0].shown.step, -len(group)))


def _by_step(groups: Sequence[list[_Taken]]) -> list[list[list[_Taken]]]:
    found: dict[int, list[list[_Taken]]] = defaultdict(list)
    for group in groups:
        if len(group) > 1:
            found[group[0].shown.step].append(group)
    return [found[step] for step in sorted(found)]


def _overlap(groups: Sequence[Sequence[_Taken]]) -> dict[str, Any]:
    """Share of the pairs chosen by one policy that another chose too, averaged over super-batches of one step."""
    shares: dict[tuple[int, int], list[float]] = defaultdict(list)
    for group in groups:
        for one in group:
            for other in group:
                if one.arm < other.arm:
                    both = np.intersect1d(one.shown.choice.chosen_K, other.shown.choice.chosen_K)
                    shares[one.arm, other.arm].append(len(both) / max(1, len(one.shown.choice.chosen_K)))
    choice = groups[0][0].shown.choice
    return {
        "step": groups[0][0].shown.step,
        "batches": len(groups),
        "chance": round(len(choice.chosen_K) / len(choice.key_B), 4),
        "shares": [[one, other, round(float(np.mean(found)), 4)] for (one, other), found in sorted(shares.items())],
    }


def _batch(group: Sequence[_Taken]) -> dict[str, Any]:
    choice = group[0].shown.choice
    pictures: dict[int, str] = {}
    policies = []
    for taken in group:
        pairs, sheet = taken.shown.first, _opened(taken.shown.sheet)
        kinds = {kind: [pair for pair in pairs if pair["chosen"] == kind][:_EACH] for kind in (True, False)}
        for pair in (*kinds[True], *kinds[False]):
            if pair["position"] not in pictures:
                pictures[pair["position"]] = "" if sheet is None else _picture(sheet, taken.shown, pair)
        policies.append(
            {
                "arm": taken.arm,
                "run": taken.run,
                "chosen": [_pair(pair) for pair in kinds[True]],
                "refused": [_pair(pair) for pair in kinds[False]],
                "scores": _scores(taken),
            }
        )
    return {
        "seed": group[0].seed,
        "step": group[0].shown.step,
        "size": len(choice.key_B),
        "count": len(choice.chosen_K),
        "policies": policies,
        "pictures": pictures,
        "by": {
            position: [taken.arm for taken in group if taken.shown.choice.chosen_B[position]] for position in pictures
        },
    }


def _pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    score = pair["score"]
    return {
        "at": pair["position"],
        "caption": pair["caption"],
        "score": None if score is None else float(f"{score:.3g}"),
        "marks": [name for name, known in pair["marks"].items() if known],
    }


def _scores(taken: _Taken) -> dict[str, Any] | None:
    """The distribution of the scores of a whole super-batch: counts of chosen and of refused pairs in equal bins."""
    choice = taken.shown.choice
    if choice.score_B is None:
        return None
    finite_B = np.isfinite(choice.score_B)
    if not finite_B.any():
        return None
    low, high = np.percentile(choice.score_B[finite_B], (0.5, 99.5))
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    within_B = np.clip(choice.score_B, edges[0], edges[-1])
    counts = [np.histogram(within_B[finite_B & of_B], edges)[0] for of_B in (choice.chosen_B, ~choice.chosen_B)]
    return {
        "from": float(f"{edges[0]:.4g}"),
        "to": float(f"{edges[-1]:.4g}"),
        "chosen": counts[0].tolist(),
        "refused": counts[1].tolist(),
    }


def _opened(sheet: Path) -> Image | None:
    """The pictures of a table; ``None`` where they cannot be read."""
    from PIL.Image import open as open_image

    try:
        return open_image(sheet).convert("RGB")
    except OSError:
        return None


def _picture(sheet: Image, shown: Shown, pair: Mapping[str, Any]) -> str:
    """A picture, cut out of its sheet, as the address of an image."""
    left, top = int(pair["left"]), int(pair["top"])
    image = sheet.crop((left, top, left + shown.width, top + shown.height))
    image.thumbnail((_LARGEST, _LARGEST))
    files = {kind: io.BytesIO() for kind in ("png", "jpeg")}
    image.save(files["png"], "png", optimize=True)
    image.save(files["jpeg"], "jpeg", quality=82)
    kind = min(files, key=lambda name: len(files[name].getvalue()))
    return f"data:image/{kind};base64,{base64.b64encode(files[kind].getvalue()).decode('ascii')}"
