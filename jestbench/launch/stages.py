"""Builds the stages of a run from its configuration."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from jestbench.batch import FULL, Mix, View
from jestbench.config.run import ConfigError, Resolved, Run
from jestbench.cost.price import Price
from jestbench.data.augment import AugmentedPairs
from jestbench.data.cascade import CascadePlan
from jestbench.data.half_pairs import HalfPairs
from jestbench.data.pairs import Dataset, IndexedPairs, Pairs
from jestbench.data.sources.stream import StreamPairs
from jestbench.data.sources.stream_batches import StreamBatches
from jestbench.data.super_batches import EpochPlan, StepPlan, SuperBatches, SuperBatchSource
from jestbench.engine.frozen import FrozenModel
from jestbench.engine.learner import Learner
from jestbench.engine.online_scorer import OnlineLearner, OnlineScorer
from jestbench.engine.pair_scorer import PairScorer
from jestbench.engine.regression import RegressionLearner
from jestbench.engine.scorer import Scorer
from jestbench.engine.twin import TwinModel
from jestbench.evals.evaluate import Evaluator
from jestbench.evals.grading import RegressionEvaluator
from jestbench.loop import Stages
from jestbench.model.regressor import Regressor
from jestbench.model.towers import TwoTowers
from jestbench.model.views import check
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.parallel.distributed import World


def build_stages(
    resolved: Resolved,
    data: Dataset,
    reference: TwoTowers | None,
    store_dir: Path,
    draw_size: int | None = None,
    regressor: Regressor | None = None,
    twin: TwoTowers | None = None,
) -> Stages:
    """Build all stages.

    Args:
        resolved: the run.
        data: its data set, prepared; or a stand-in.
        reference: the frozen model, where the policy needs one.
        store_dir: where the reference's embeddings are kept during the run.
        draw_size: pairs a step, where not the run's own (``--check``).
        regressor: the frozen pair scorer, where the policy needs one.
        twin: the reference that was trained on the other half, under ``run.twin``.

    Raises:
        ValueError: the configuration cannot be built.
        DataError: the data does not fit it.
    """
    run = resolved.run
    arithmetic = Arithmetic.of(run.device, run.precision)
    _check_world(run, arithmetic.world)
    pairs = data.split(run.split)
    if run.half is not None:
        pairs = HalfPairs(pairs.indexed("a reference of one half"), run.half)
    learner, scored = _learner(run, pairs, arithmetic)
    frozen: FrozenModel | TwinModel | None = None
    if reference is not None and twin is not None:
        frozen = build_twin(resolved, (reference, twin), pairs, arithmetic, store_dir)
    elif reference is not None:
        view = fitted(run.reference_under, reference, "run.reference_view")
        frozen = FrozenModel(
            reference,
            "reference_score",
            run.reference_accounting,
            arithmetic,
            store_dir,
            run.microbatch,
            view,
            None if run.cache is None else run.cache.bind(reference, view, arithmetic, pairs, run.microbatch),
        )
    grader = None
    if regressor is not None:
        bound = None if run.cache is None else run.cache.bind(regressor, FULL, arithmetic, pairs, run.microbatch)
        grader = PairScorer(regressor, run.reference_accounting, arithmetic, store_dir, run.microbatch, bound)
    online = None
    if "scorer" in resolved.policy.needs and isinstance(run.scorer, OnlineScorer):
        online = build_online(resolved, run.scorer, learner, pairs)
    scorer = Scorer(learner, frozen, run.microbatch, scored, grader, online)
    super_batches = source(resolved, pairs, draw_size or resolved.draw_size, scorer)
    evaluated = data.split(run.evaluate.split).indexed("evaluate.split")
    return Stages(pairs, super_batches, scorer, learner, _evaluator(run, evaluated))


def _check_world(run: Run, world: World) -> None:
    """Refuse what several processes cannot share.

    Raises:
        ConfigError: naming it.
    """
    if world.size == 1:
        return
    if run.objective is not None:
        raise ConfigError("run.objective: a pair scorer is trained by one process: start it without torchrun")
    if run.batch_size < world.size:
        raise ConfigError(
            f"run.batch_size = {run.batch_size} pairs cannot be shared by {world.size} processes: start fewer"
        )


def _learner(run: Run, pairs: Pairs, arithmetic: Arithmetic) -> tuple[Learner, View]:
    """The learner, by the run's loss or its objective, and the view that it is scored under."""
    one = pairs.example()
    if run.objective is not None:
        for name in ("grad_checkpointing", "train_microbatch"):
            if getattr(run, name):
                raise ConfigError(f"run.{name}: a run with an objective of its own cannot save memory that way")
        regressor = Regressor.build(run.model, pairs.tokenizer, run.objective.hidden, run.seed).to(arithmetic.device)
        price = Price.of(regressor, one)
        return RegressionLearner(regressor, run.objective, pairs.tokenizer, run.optimizer, arithmetic, price), FULL
    model = run.model.build(pairs.tokenizer, run.loss, run.seed).to(arithmetic.device)
    mix: Mix = tuple((share, fitted(view, model, "run.train_views")) for share, view in run.mix)
    scored = fitted(run.scored_under, model, "run.score_view")
    prices = {view: Price.of(model, one, view) for view in {FULL, scored, *(view for _, view in mix)}}
    reruns = None
    if run.grad_checkpointing:
        reruns = {view: Price.of_rerun(model, one, view) for view in {FULL, *(view for _, view in mix)}}
    learner = Learner(
        model, run.loss, run.optimizer, arithmetic, prices[FULL], mix, prices, reruns, run.train_microbatch
    )
    return learner, scored


def _evaluator(run: Run, pairs: IndexedPairs) -> Evaluator:
    if run.objective is not None:
        return RegressionEvaluator(pairs, run.evaluate, run.objective)
    return Evaluator(pairs, run.evaluate, run.model.image_size)


def build_twin(
    resolved: Resolved, models: tuple[TwoTowers, TwoTowers], pairs: Pairs, arithmetic: Arithmetic, store_dir: Path
) -> TwinModel:
    """The two references, by the half that each was trained on, each with a store of its own.

    Raises:
        ConfigError: they cannot run ``run.reference_view``.
    """
    run = resolved.run
    view = fitted(run.reference_under, models[0], "run.reference_view")
    first, second = (
        FrozenModel(
            model,
            "reference_score",
            run.reference_accounting,
            arithmetic,
            store_dir / f"half{half}",
            run.microbatch,
            view,
            None if run.cache is None else run.cache.bind(model, view, arithmetic, pairs, run.microbatch),
        )
        for half, model in enumerate(models)
    )
    # One of them may meet fewer pairs at first than there are processes: nothing may be left to trace then.
    first.price = second.price = Price.of(models[0], pairs.example(), view)
    return TwinModel((first, second), store_dir)


def build_online(resolved: Resolved, scorer: OnlineScorer, learner: Learner, pairs: Pairs) -> OnlineLearner:
    """The scorer that is trained beside the learner.

    Raises:
        ValueError: its model cannot be built, or cannot run its view.
    """
    run = resolved.run
    model = scorer.build(run.model, learner.model, pairs.tokenizer, run.loss, run.seed).to(learner.arithmetic.device)
    view = fitted(scorer.under, model, "online_scorer.view")
    one = pairs.example()
    prices = {each: Price.of(model, one, each) for each in {FULL, view}}
    return OnlineLearner(model, run.loss, scorer.optimizer, learner.arithmetic, prices[FULL], ((1.0, view),), prices)


def source(resolved: Resolved, pairs: Pairs, size: int, scorer: Scorer) -> SuperBatchSource:
    """The super-batches of ``size`` pairs that a run draws from a split.

    Raises:
        DataError: the split is too small.
        ValueError: a cascade over a stream, or augmentation of it: its pairs are not known before they come.
    """
    run, device, world = resolved.run, str(scorer.learner.arithmetic.device), scorer.learner.world
    frozen = None if run.cascade is None else scorer.frozen.get(run.cascade.score)  # none while a price is made
    if run.augment is not None:
        pairs = AugmentedPairs(pairs.indexed("run.augment"), run.augment, run.seed)
    plan: StepPlan
    if run.cascade is not None and frozen is not None:
        assert not isinstance(frozen, TwinModel), "a run refuses to be built with a cascade over twins"
        # Where the cache is full no candidate is ever decoded that a price could be traced on.
        frozen.price = Price.of(frozen.model, pairs.example(), frozen.view if isinstance(frozen, FrozenModel) else FULL)
        own_loss = partial(frozen.own_loss, run.loss)
        plan = CascadePlan(pairs.indexed("run.cascade"), size, run.seed, run.cascade, own_loss)
    elif isinstance(pairs, StreamPairs):
        return StreamBatches(replace(pairs.shards, seed=run.seed), size, run.loader, device, world)
    else:
        plan = EpochPlan(pairs.indexed("a super-batch"), size, run.seed)
    return SuperBatches.of(plan, run.loader, device, world)


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
    if "reference" in resolved.run.needs and scorer.reference is not None:
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
