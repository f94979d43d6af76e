"""Runs with all that the page shows: two metrics, selection over time, examples, configurations, hostile names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from planted_runs import METRIC, write_run

from jestbench.batch import Batch, Selection
from jestbench.runs import examples

TAG = "<script>alert(1)</script>"
STARS = "a|b*c* & `d`"
CAPTION = '<img src=x onerror="alert(2)"> **bold** "quoted"'
OTHER = "eval/zero_shot_top5"
PAIRS, CHOSEN = 40, 8
MEASURES = {
    METRIC: {"low": 0.0, "high": 1.0, "examples": 200},
    OTHER: {"low": 0.0, "high": 1.0, "examples": 200, "chance": 5 / 200},
}


def write_shown_run(
    folder: Path, arm: str, seed: int, gain: float, chunks: int | None = None, select: bool = True, **summary: object
) -> Path:
    """A ladder with rungs at 100 and 400 FLOPs; ``gain`` is what the arm has above the baseline at the end."""
    end = 0.3 + 0.02 * seed + gain
    write_run(
        folder,
        [(0, 0.0), (100, 0.1), (200, 0.15), (300, 0.2), (400, end)],
        rungs=[(100, 0.12 + gain / 2)],
        arm=arm,
        seed=seed,
        config_hash=f"{arm}-{chunks}-{summary.get('data')}",
        measures=MEASURES,
        metrics={METRIC: end, OTHER: end / 2},
        **summary,
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row[OTHER] = row[METRIC] / 2
        if row["step"]:
            row |= {"select/share_noisy": 0.6 if arm == "uniform" else 0.2, "select/share_noisy_super_batch": 0.6}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"run.policy = '{'jest' if chunks else 'uniform'}'", f"run.seed = {seed}", "run.budget = \\", "    400.0"]
    lines += [f"jest.chunks = {chunks}"] if chunks else []
    (folder / "operative.gin").write_text("# Parameters\n" + "\n".join(lines) + "\n")
    if select and chunks:
        write_examples(folder, seed, chunks)
    return folder


def write_examples(folder: Path, seed: int, shift: int) -> None:
    """The choices from one super-batch that all runs of a seed draw: ``CHOSEN`` pairs, from ``shift`` on."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (PAIRS, 3, 12, 12), generator=generator, dtype=torch.uint8)
    keys = torch.arange(PAIRS) + 1000 * seed
    captions = tuple(CAPTION if place == shift else f"pair {place}" for place in range(PAIRS))
    batch = Batch(images, {}, keys, keys, {"noisy": keys % 2 == 1}, captions)
    selection = Selection(torch.arange(shift, shift + CHOSEN), score_B=-torch.arange(PAIRS).double())
    examples.save(examples.pick(1, batch, selection, 4, torch.Generator().manual_seed(0)), folder)


def write_all(runs: Path) -> Path:
    """Five arms of two seeds, two of them under one label."""
    for seed in (0, 1):
        write_shown_run(runs / f"uniform-{seed}", "uniform", seed, 0.0)
        write_shown_run(runs / f"jest-{seed}", "jest", seed, 0.2, chunks=16)
        write_shown_run(runs / f"jest4-{seed}", "jest", seed, 0.1, chunks=4)
        write_shown_run(runs / f"tag-{seed}", TAG, seed, 0.05, chunks=2, warnings=[TAG])
        write_shown_run(runs / f"stars-{seed}", STARS, seed, -0.05, chunks=8)
    return runs
