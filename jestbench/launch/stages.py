"""Builds the stages of a run from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from jestbench.config.run import ConfigError, Resolved, Run
from jestbench.cost.budget import Pretrained
from jestbench.data.cascade import CascadedSuperBatches
from jestbench.data.decoders import WorkerPairs, decoders_for
from jestbench.data.half_pairs import HalfPairs
from jestbench.data.pairs import Dataset
from jestbench.data.sources.stream import StreamPairs
from jestbench.data.super_batches import Prefetched, SuperBatches, SuperBatchSource, prefetched, spread
from jestbench.engine.actor import Actor
from jestbench.engine.casting import Casting, Setting
from jestbench.engine.scorer import Scorer
from jestbench.evals.grading import EVALUATORS
from jestbench.loop import Stages
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.parallel.distributed import World
from jestbench.select.scores import Role


def build_stages(
    resolved: Resolved,
    data: Dataset,
    castings: Mapping[Pretrained, Casting],
    store_dir: Path,
    draw_size: int | None = None,
) -> Stages:
    """Build all stages.

    Args:
        resolved: the run.
        data: its data set, prepared; or a stand-in.
        castings: what fills the roles of the runs that it stands on.
        store_dir: where the rows of frozen models are kept during the run.
        draw_size: pairs a step, where not the run's own (``--check``).

    Raises:
        ValueError: the configuration cannot be built.
        DataError: the data does not fit it.
    """
    run = resolved.run
    setting = setting_of(run, data, store_dir)
    _check_world(run, setting.arithmetic.world)
    learner = run.training.learner(setting)
    actors: dict[Role, Actor] = {"learner": learner}
    actors |= {role: casting.cast(setting, learner) for role, casting in castings.items()}
    actors |= {role: casting.cast(setting, learner) for role, casting in run.castings.items() if role in run.needs}
    scorer = Scorer(actors, run.loss)
    super_batches = source(resolved, setting, draw_size or resolved.draw_size, scorer)
    evaluated = data.split(run.evaluate.split)
    evaluator = EVALUATORS[run.training.kind](evaluated, run.evaluate, run.model, learner.objective)
    return Stages(setting.pairs, super_batches, scorer, learner, evaluator)


def setting_of(run: Run, data: Dataset, store_dir: Path) -> Setting:
    """What the actors of a run have in common, on its data set or a stand-in."""
    pairs = data.split(run.split) if run.half is None else HalfPairs(data.split(run.split), run.half)
    example = pairs.batch(torch.zeros(1, dtype=torch.int64))
    return Setting(run, pairs, example, Arithmetic.of(run.device, run.precision), store_dir)


def _check_world(run: Run, world: World) -> None:
    """Refuse what several processes cannot share.

    Raises:
        ConfigError: naming it.
    """
    if world.size == 1:
        return
    if not run.training.together:
        raise ConfigError("run.objective: a pair scorer is trained by one process: start it without torchrun")
    if run.batch_size < world.size:
        raise ConfigError(
            f"run.batch_size = {run.batch_size} pairs cannot be shared by {world.size} processes: start fewer"
        )


def source(resolved: Resolved, setting: Setting, size: int, scorer: Scorer) -> SuperBatchSource:
    """Where super-batches of ``size`` pairs come from.

    Raises:
        DataError: the split is too small.
        ConfigError: a cascade over a stream, whose pairs are not known before they come.
    """
    run, pairs, world = resolved.run, setting.pairs, setting.arithmetic.world
    device = str(setting.arithmetic.device)
    if run.cascade is None:
        return prefetched(pairs, size, run.seed, run.loader, run.augment, device, world)
    if isinstance(pairs, StreamPairs):
        raise ConfigError("run.cascade needs an indexed data set: the pairs of a stream have no keys before they come")
    decoders = decoders_for(pairs, run.loader, device)
    candidates = CascadedSuperBatches.candidates(size, run.cascade, len(pairs))
    drawn = SuperBatches(pairs if decoders is None else WorkerPairs(pairs, decoders), candidates, run.seed)
    score = partial(scorer.actors[run.cascade.score].own_loss, run.loss)
    cascaded = CascadedSuperBatches(drawn, size, run.cascade, score)
    return spread(Prefetched(cascaded, decoders, ahead=None), size, world, read_whole=True)


def view_warnings(resolved: Resolved, stages: Stages) -> list[str]:
    """Scores taken under a view that the model was never trained under."""
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
