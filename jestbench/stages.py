"""Builds the stages of a run from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from jestbench import seeds
from jestbench.data.loader import SuperBatches
from jestbench.data.pairs import Dataset
from jestbench.evals import Evaluator
from jestbench.learner import Learner, Price
from jestbench.model.towers import TwoTowers
from jestbench.precision import Arithmetic
from jestbench.reference import FrozenModel
from jestbench.run import Resolved
from jestbench.scorer import Scorer


@dataclass(frozen=True)
class Stages:
    """What the loop runs, in its order."""

    super_batches: SuperBatches
    scorer: Scorer
    learner: Learner
    evaluator: Evaluator


def build_stages(
    resolved: Resolved,
    data: Dataset,
    reference: TwoTowers | None,
    store_dir: Path,
    draw_size: int | None = None,
) -> Stages:
    """Build all stages.

    Args:
        resolved: the run.
        data: its data set, prepared; or a stand-in.
        reference: the frozen model, where the policy needs one.
        store_dir: where the reference's embeddings are kept during the run.
        draw_size: pairs a step, where not the run's own (``--check``).

    Raises:
        ValueError: the configuration cannot be built.
        DataError: the data does not fit it.
    """
    run = resolved.run
    arithmetic = Arithmetic.of(run.device, run.precision)
    pairs = data.split(run.split)
    super_batches = SuperBatches(pairs, draw_size or resolved.draw_size, run.seed)
    model = run.model.build(pairs.tokenizer, run.loss, run.seed).to(arithmetic.device)
    price = Price.of(model, pairs.batch(torch.zeros(1, dtype=torch.int64)))
    learner = Learner(model, run.loss, run.optimizer, arithmetic, price)
    frozen = None
    if reference is not None:
        frozen = FrozenModel(
            reference, "reference_score", run.reference_accounting, arithmetic, store_dir, run.microbatch
        )
    return Stages(
        super_batches,
        Scorer(learner, frozen, run.microbatch),
        learner,
        Evaluator(data.split(run.evaluate.split), run.evaluate),
    )


def update_seed(seed: int, step: int) -> int:
    """Seed of the model's own randomness in one step."""
    return seeds.derive(seed, "update", step)
