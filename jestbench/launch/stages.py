"""Builds the stages of a run from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from jestbench.config.fitting import check_loss
from jestbench.config.resolved import Resolved
from jestbench.config.run import ConfigError, Run
from jestbench.cost.budget import Pretrained
from jestbench.data.augment import AugmentedPairs
from jestbench.data.cascade import CandidateScoring, CascadePlan
from jestbench.data.joined_pairs import JoinedPairs, MixturePlan
from jestbench.data.leaving import LeavingPlan
from jestbench.data.pairs import Dataset, Pairs
from jestbench.data.part_pairs import HalfPairs
from jestbench.data.sources.stream import StreamPairs
from jestbench.data.sources.stream_batches import StreamBatches
from jestbench.data.splits import Rank, split_of
from jestbench.data.super_batches import EpochPlan, StepPlan, SuperBatches, SuperBatchSource
from jestbench.engine.actor import Actor
from jestbench.engine.casting import Casting, Setting
from jestbench.engine.fit_memory import MicroBatches
from jestbench.engine.scorer import Scorer
from jestbench.engine.start import Start
from jestbench.evals.grading import EVALUATORS
from jestbench.loop import Stages
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.parallel.distributed import World
from jestbench.select.remembering import LeavingPolicy
from jestbench.select.scores import Role


def build_stages(
    resolved: Resolved,
    data: Dataset,
    castings: Mapping[Pretrained, Casting],
    store_dir: Path,
    draw_size: int | None = None,
    rank: Rank | None = None,
    shapes: bool = False,
) -> Stages:
    """Build all stages.

    Args:
        data: its data set, prepared; or a stand-in.
        castings: the frozen model, or models, of each role that the run needs.
        store_dir: folder for the rows of frozen models during the run.
        draw_size: pairs a step; ``None`` is the run's own number (``--check`` sets a smaller one).
        rank: gives the own scores that the split takes a top by; ``None``: as ``split_of``.
        shapes: models have no values (they are on ``meta``); prices need none.

    Raises:
        ValueError: the configuration cannot be built.
        DataError: the data does not fit the configuration.
    """
    run = resolved.run
    setting = setting_of(run, data, store_dir, rank, resolved.start)
    if shapes:
        setting = replace(setting, arithmetic=replace(setting.arithmetic, device=torch.device("meta")))
    _check_world(run, setting.arithmetic.world)
    learner = run.training.learner(setting)
    actors: dict[Role, Actor] = {"learner": learner}
    actors |= {role: casting.cast(setting, learner) for role, casting in castings.items()}
    for role, casting in run.castings.items():
        if role in run.needs:
            actors[role] = casting.cast(setting, learner)
            check_loss(run, role, casting.label, actors[role].trained_on)
    scorer = Scorer(actors, run.loss, run.equal)
    super_batches = source(setting, draw_size or resolved.draw_size, actors)
    evaluated = data.split(run.evaluate.split).indexed("evaluate.split")
    seen = run.evaluate.unseen_by
    seen_key_N = data.split(seen).indexed("evaluate.unseen_by").text_key_N if seen else None
    evaluator = EVALUATORS[run.training.kind](
        evaluated, run.evaluate, run.model.image_size, learner.objective, seen_key_N, setting.tokenizer
    )
    if isinstance(super_batches, StreamBatches):
        super_batches.evaluated = frozenset(evaluated.image_key_N[: len(evaluator.index_N)].tolist())
    return Stages(setting.pairs, super_batches, scorer, learner, evaluator)


def setting_of(
    run: Run, data: Dataset, store_dir: Path, rank: Rank | None = None, start: Start | None = None
) -> Setting:
    """The setting shared by all actors of a run, on its data set or a stand-in.

    Args:
        store_dir: folder for the rows of frozen models.
        rank: as ``split_of`` takes it.
    """
    pairs = split_of(data, run.split, rank)
    if run.half is not None:
        pairs = HalfPairs(pairs.indexed("a reference of one half"), run.half)
    for name, user in run.columns.items():
        if name not in pairs.column_names:
            has = f"it has {', '.join(pairs.column_names)}" if pairs.column_names else "it has none"
            raise ValueError(
                f"{user} the column {name!r}, which the pairs of {pairs.name} do not have ({has}): name the field that "
                f"came with the pairs in .columns of the data set, as in webdataset.columns = ('json.{name}',)"
            )
    example, arithmetic = pairs.example(), Arithmetic.of(run.device, run.precision)
    tokenizer = pairs.tokenizer if start is None else start.tokenizer(run.model, pairs.tokenizer)
    if (ids := run.model.text_vocab_size) is not None and start is None and ids < tokenizer.vocab_size:
        raise ValueError(
            f"model.text_vocab_size = {ids} ids, and the tokenizer has {tokenizer.vocab_size}: raise or unbind it"
        )
    if tokenizer.identity not in example.token_ids and example.captions:
        example = replace(
            example, token_ids={**example.token_ids, tokenizer.identity: tokenizer.encode(example.captions)}
        )
    micro = MicroBatches.of(run, tokenizer, example, arithmetic)
    return Setting(run, pairs, example, arithmetic, store_dir, micro, start)


def _check_world(run: Run, world: World) -> None:
    """Refuse a run that cannot be shared by several processes, by its objective or its small batch."""
    if world.size == 1:
        return
    if not run.training.together:
        raise ConfigError("run.objective: a pair scorer is trained by one process: start it without torchrun")
    if run.batch_size < world.size:
        raise ConfigError(
            f"run.batch_size = {run.batch_size} pairs cannot be shared by {world.size} processes: start fewer"
        )


def source(setting: Setting, size: int, actors: Mapping[Role, Actor]) -> SuperBatchSource:
    """The super-batches of ``size`` pairs that a run draws from a split.

    Raises:
        DataError: the split is too small.
        ValueError: a cascade over a stream, or augmentation of a stream (its pairs cannot be read by index); or a
            cascade by an actor that cannot score single pairs.
    """
    run, pairs = setting.run, setting.pairs
    device, world = str(setting.arithmetic.device), setting.arithmetic.world
    plain = run.augment is None and run.cascade is None and not isinstance(run.policy, LeavingPolicy)
    if isinstance(pairs, StreamPairs) and plain:
        return StreamBatches(replace(pairs.shards, seed=run.seed), size, run.loader, device, world)
    plan = plan_of(run, pairs, size, actors, world)
    return SuperBatches.of(plan, run.loader, device, world, setting.example.images_BCHW.nbytes)


def plan_of(run: Run, pairs: Pairs, size: int, actors: Mapping[Role, Actor], world: World | None = None) -> StepPlan:
    """The plan of the super-batches that a run draws from an indexed split; raises as ``source``."""
    if run.augment is not None:
        pairs = AugmentedPairs(pairs.indexed("run.augment"), run.augment, run.seed)
    leaves = isinstance(run.policy, LeavingPolicy)
    if leaves and (run.cascade is not None or isinstance(pairs, JoinedPairs)):
        raise ValueError(
            f"the policy {type(run.policy).__name__} leaves pairs out of one split before they are read: it goes "
            "neither with run.cascade nor with a run.split that mixes several"
        )
    if run.cascade is not None:
        scoring = None
        if run.cascade.role is not None:
            actor = actors[run.cascade.role]
            actor.forecast_own_loss(1)  # raises here, not in the first step, where the actor scores only whole batches
            scoring = CandidateScoring(partial(actor.own_loss, run.loss), actor.own_loss_passes)
        return CascadePlan(pairs.indexed("run.cascade"), size, run.seed, run.cascade, scoring, world)
    if leaves:
        name = type(run.policy).__name__
        whole = pairs.indexed(f"the policy {name}, which leaves pairs out before they are read,")
        return LeavingPlan(whole, size, run.seed, name)
    if isinstance(pairs, JoinedPairs):
        return MixturePlan(pairs, size, run.seed)
    return EpochPlan(pairs.indexed("a super-batch"), size, run.seed)


def view_warnings(resolved: Resolved, stages: Stages) -> list[str]:
    """Warnings of scores taken under a view that the model was never trained under."""
    found = []
    for role, actor in stages.scorer.actors.items():
        if role in resolved.run.needs and actor.view not in actor.trained_under:
            name, _ = resolved.run.view_of(role)
            where = ("" if role == "learner" else f"the {role}'s own ") + "run.train_views"
            under = "; ".join(sorted(seen.label for seen in actor.trained_under))
            found.append(
                f"{name}: the {role} is scored under a view it was not trained under ({actor.view.label}; trained: "
                f"{under}): its scores may mean little; train it under that view ({where})"
            )
    return found
