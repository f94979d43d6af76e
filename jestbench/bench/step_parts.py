"""Where the time of a training step goes: the parts of a step of two arms, and the rows of frozen models.

The arms run at the quick start's shape (``gin/model/tiny.gin``, b = 64 of B = 320) in the planted world, with untrained
references, each new pair scored once.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jestbench import seeds
from jestbench.bench import timing
from jestbench.bench.arms import GIN, tiny_stands
from jestbench.config.resolve import resolve
from jestbench.config.resolved import Resolved
from jestbench.engine.rows import RunRows
from jestbench.launch.stages import build_stages
from jestbench.launch.stands import stand_ins
from jestbench.loop import Stages
from jestbench.seeds import update_seed
from jestbench.select.policy import choose, initial_state
from jestbench.select.scores import Scores

ARMS = ("jest", "flexi_jest")
TOWER = {"embed_dim": 64, "depth": 3, "num_heads": 2}
SHAPE = ("model.image_size=32", "model.patch_size=8", f"model.image_options={TOWER}")
SIZES = ("synthetic.pool=8000", "loader.workers=0", "run.device=cpu")


def parts(arm: str, steps: int, batch: int = 64) -> dict[str, float]:
    """Median milliseconds of each part of a step of an arm, by name, and of the whole step; B is five times b."""
    policy = GIN / "policy" / f"{arm}.gin"
    files = [str(GIN / "run" / "tiny.gin"), str(GIN / "model" / "tiny.gin"), str(policy)]
    words = [word.removeprefix("--") for word in tiny_stands(policy, *SHAPE)]
    sizes = (f"run.batch_size={batch}", f"run.super_batch_size={5 * batch}")
    resolved = resolve(files, [*words, *SHAPE, *SIZES, *sizes])
    data, castings = stand_ins(resolved)
    with tempfile.TemporaryDirectory() as folder:
        stages = build_stages(resolved, data, castings, Path(folder))
        try:
            found = [_step(resolved, stages, step) for step in range(steps + 2)][2:]
        finally:
            stages.super_batches.close()
            for actor in stages.scorer.actors.values():
                actor.close(remove=True)
    return {name: 1e3 * statistics.median(one[name] for one in found) for name in found[0]}


def _step(resolved: Resolved, stages: Stages, step: int) -> dict[str, float]:
    """Seconds of the parts of one step, as ``loop.train`` does it."""
    took: dict[str, float] = defaultdict(float)

    def timed(name: str, run: Callable[[], Any]) -> Any:
        out: list[Any] = []
        took[name] += timing.seconds(lambda: out.append(run()), torch.device("cpu"))
        return out[0]

    run, policy, actors = resolved.run, resolved.policy, stages.scorer.actors
    batch = timed("super-batch", lambda: stages.super_batches.at(step))
    found = [timed(f"scores of the {role}", partial(actor.score, batch)) for role, actor in actors.items()]
    scores = Scores.joined(found, len(batch), run.loss)
    generator = seeds.generator(run.seed, "select", step)
    selection = timed("choice", lambda: choose(policy, scores, run.batch_size, generator, initial_state(policy)))
    chosen = timed("super-batch", lambda: batch.take(selection.index_K))
    seed = update_seed(run.seed, step)
    timed("update", lambda: stages.update(chosen, selection.weight_K, 0.5, seed))
    return {**took, "step": sum(took.values())}


def rows(count: int, width: int, rounds: int) -> dict[str, float]:
    """Smallest seconds of fetching ``count`` new and known rows of a frozen model, and of copying their bytes.

    The rows are fetched in another order than they were added in.
    """
    random = np.random.default_rng(0)
    row_ND = torch.from_numpy(random.random((count, width), dtype=np.float32))
    key_N, order = torch.from_numpy(random.integers(-(2**62), 2**62, count)), torch.randperm(count)
    cpu, found = torch.device("cpu"), defaultdict(list)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            store = RunRows(Path(folder) / "rows", width)
            found["new"].append(timing.seconds(partial(store.fetch, key_N, row_ND.__getitem__), cpu))
            store.saved()
            found["known"].append(timing.seconds(partial(store.fetch, key_N[order], row_ND.__getitem__), cpu))
            found["copy"].append(timing.seconds(row_ND.clone, cpu))
            store.close(remove=True)
    return {name: min(seconds) for name, seconds in found.items()}


def table(report: Mapping[str, Any]) -> list[str]:
    """The parts of each arm's step as shares of it, and the rows, one a line."""
    lines = [""]
    for arm, found in report["steps"].items():
        shares = ", ".join(f"{name} {part / found['step']:.0%}" for name, part in found.items() if name != "step")
        lines.append(f"a step of {arm}, {found['step']:.0f} ms: {shares}")
    kept = report["rows"]
    return [
        *lines,
        f"{kept['count']:,} rows of width {kept['width']}, seconds: new {kept['new']:.2f} (aim ≤ 0.7), known "
        f"{kept['known']:.2f} (aim ≤ 0.15), a copy of their bytes {kept['copy']:.2f}",
    ]
