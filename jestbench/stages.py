"""Builds the stages of a run from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from jestbench import seeds
from jestbench.data.loader import SuperBatchSource
from jestbench.data.pairs import Dataset, Pairs
from jestbench.data.prefetch import prefetched
from jestbench.evals import Evaluator
from jestbench.learner import Learner, Price
from jestbench.model.towers import TwoTowers
from jestbench.model.views import FULL, Mix, View, check
from jestbench.precision import Arithmetic
from jestbench.reference import FrozenModel
from jestbench.run import ConfigError, Resolved
from jestbench.scorer import Scorer


@dataclass(frozen=True)
class Stages:
    """What the loop runs, in its order."""

    pairs: Pairs
    super_batches: SuperBatchSource
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
    size, device = draw_size or resolved.draw_size, str(arithmetic.device)
    super_batches = prefetched(pairs, size, run.seed, run.loader, run.augment, device)
    model = run.model.build(pairs.tokenizer, run.loss, run.seed).to(arithmetic.device)
    mix: Mix = tuple((share, fitted(view, model, "run.train_views")) for share, view in run.mix)
    scored = fitted(run.scored_under, model, "run.score_view")
    one = pairs.batch(torch.zeros(1, dtype=torch.int64))
    prices = {view: Price.of(model, one, view) for view in {FULL, scored, *(view for _, view in mix)}}
    learner = Learner(model, run.loss, run.optimizer, arithmetic, prices[FULL], mix, prices)
    frozen = None
    if reference is not None:
        frozen = FrozenModel(
            reference,
            "reference_score",
            run.reference_accounting,
            arithmetic,
            store_dir,
            run.microbatch,
            fitted(run.reference_under, reference, "run.reference_view"),
        )
    return Stages(
        pairs,
        super_batches,
        Scorer(learner, frozen, run.microbatch, scored),
        learner,
        Evaluator(data.split(run.evaluate.split), run.evaluate),
    )


def fitted(view: View, model: TwoTowers, name: str) -> View:
    """A view in the model's own terms.

    Raises:
        ConfigError: the model cannot run it; the message names the parameter and the reason.
    """
    try:
        return check(view, model)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def view_warnings(resolved: Resolved, stages: Stages, reference_mix: Mix) -> list[str]:
    """Scores taken under a view that the model was never trained under."""
    needs, scorer, found = resolved.policy.needs, stages.scorer, []
    trained = {view for _, view in stages.learner.mix}
    if "learner" in needs and scorer.view not in trained:
        found.append(_untrained("the learner", "run.score_view", scorer.view, trained, "run.train_views"))
    if "reference" in needs and scorer.reference is not None:
        frozen = scorer.reference
        trained = {_own_terms(view, frozen.model) for _, view in reference_mix}
        if frozen.view not in trained:
            where = "the reference's own run.train_views"
            found.append(_untrained("the reference", "run.reference_view", frozen.view, trained, where))
    return found


def _own_terms(view: View, model: TwoTowers) -> View:
    """As ``check``; a view that the model cannot run stays as it is (it matches none that it can)."""
    try:
        return check(view, model)
    except ValueError:
        return view


def _untrained(who: str, name: str, view: View, trained: set[View], where: str) -> str:
    under = "; ".join(sorted(seen.label for seen in trained))
    return (
        f"{name}: {who} is scored under a view it was not trained under ({view.label}; trained: {under}): "
        f"its scores may mean little; train it under that view ({where})"
    )


def update_seed(seed: int, step: int) -> int:
    """Seed of the model's own randomness in one step."""
    return seeds.derive(seed, "update", step)
