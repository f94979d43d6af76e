"""Calibrates a run's reference before the first step (``run.reference_calibrate``), and charges what that costs."""

from __future__ import annotations

import time

from jestbench.config.resolved import Resolved
from jestbench.config.run import ConfigError
from jestbench.cost.budget import Allowance
from jestbench.cost.ledger import flops_of
from jestbench.cost.tracing import FLOPS_PER_MAC
from jestbench.data.loader import Loader
from jestbench.data.pairs import Dataset
from jestbench.data.splits import split_of
from jestbench.data.super_batches import EpochPlan, SuperBatches
from jestbench.loop import Progress, Stages

BATCHES, LARGEST = 16, 1024
"""Batches that t and b₀ are fitted on, and their largest size."""


def _source(resolved: Resolved, data: Dataset, stages: Stages) -> tuple[SuperBatches, int]:
    """Batches of the split that the reference was trained on, the same for all seeds; and their number.

    A split of a single pair is a ConfigError.
    """
    assert resolved.calibrated_on is not None
    pairs = split_of(data, resolved.calibrated_on).indexed("run.reference_calibrate")
    size = min(resolved.run.batch_size, LARGEST, len(pairs))
    if size < 2:
        raise ConfigError(f"run.reference_calibrate compares pairs of a batch: {pairs.name} or run.batch_size has one")
    world = stages.learner.world
    return SuperBatches.of(EpochPlan(pairs, size, 0), Loader(workers=0), "cpu", world), min(BATCHES, len(pairs) // size)


def calibrate(
    resolved: Resolved, data: Dataset, stages: Stages, progress: Progress, allowance: Allowance | None = None
) -> None:
    """Fit the reference's t and b₀, where the run asks for it; charge the passes, and count the seconds.

    Args:
        data: its data set, prepared; or a stand-in.
        progress: before the first step.

    Raises:
        ConfigError: the split cannot be calibrated on, or nothing of the budget is left.
        DataError: the data set has no such split.
    """
    if resolved.calibrated_on is None:
        return
    begin = time.perf_counter()
    source, count = _source(resolved, data, stages)
    batches = (source.at(step) for step in range(count))
    passes = stages.scorer.actors["reference"].calibrate(resolved.run.loss, batches, resolved.run.batch_size)
    progress.ledger.charge(passes)
    progress.seconds += time.perf_counter() - begin
    if allowance is not None and progress.share(allowance) >= 1:
        raise ConfigError(
            f"run.reference_calibrate spends {progress.ledger.total:.3g} FLOPs on {count * source.size} pairs, which "
            "leaves nothing of run.budget: raise it"
        )


def forecast_calibration(resolved: Resolved, data: Dataset, stages: Stages) -> tuple[int, int]:
    """Pairs that the reference is calibrated on, 0 where it is not, and the FLOPs that are charged for them."""
    if resolved.calibrated_on is None:
        return 0, 0
    source, count = _source(resolved, data, stages)
    actor, pairs = stages.scorer.actors["reference"], count * source.size
    scored = () if resolved.run.reference_accounting == "amortised" else actor.forecast(pairs)
    return pairs, flops_of(scored) + FLOPS_PER_MAC * pairs * source.size * actor.width
