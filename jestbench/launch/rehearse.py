"""A run in miniature on stand-ins: `--check`, and the names of the metrics that a run logs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jestbench import seeds
from jestbench.config.log import Log
from jestbench.config.resolved import Resolved
from jestbench.config.run import ConfigError, Run
from jestbench.cost.budget import Budget
from jestbench.data.loader import Loader
from jestbench.data.pairs import Dataset
from jestbench.data.sources.source import Fetched
from jestbench.data.splits import least_draw
from jestbench.engine.casting import Casting
from jestbench.engine.learner import NonFiniteLoss
from jestbench.launch.calibrate import calibrate
from jestbench.launch.check_page import Checked, data_line, page, whole_text
from jestbench.launch.data_report import head_lines, opened, ranked_line, walk
from jestbench.launch.demonstration_warnings import Proportions, printed, toy_warnings
from jestbench.launch.forecast import RunForecast, bought, ladder_lines
from jestbench.launch.served import check_served
from jestbench.launch.stages import build_stages, plan_of
from jestbench.launch.stands import of_run, stand_ins, with_start
from jestbench.launch.text_report import cut_lines
from jestbench.launch.train_run import building, check_affordable, warned
from jestbench.loop import Progress, Stages, train
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.runs.folder import RUNG, RunFolder
from jestbench.runs.metrics_log import Metrics
from jestbench.runs.recorder import Recorder
from jestbench.seeds import update_seed
from jestbench.select.memory import Memory
from jestbench.select.policy import choose, initial_state
from jestbench.select.remembering import remembered_names
from jestbench.select.scores import NonFiniteScore


def without_download(resolved: Resolved, device: str = "cpu") -> Resolved:
    """The same run with random instead of pretrained weights, which cost the same FLOPs; on ``meta`` with none."""
    run, given = resolved.run, resolved.run.reference
    own: Any = given.stand_in(device) if isinstance(given, Casting) else given
    if isinstance(given, tuple):
        own = tuple(one.stand_in(device) if isinstance(one, Casting) else one for one in given)
    init = run.init.stand_in(device) if isinstance(run.init, Casting) else run.init
    plain = replace(resolved, run=replace(run, model=run.model.without_weights(), reference=own, init=init))
    return replace(
        plain,
        stands_on={
            role: tuple(without_download(stand, device) if isinstance(stand, Resolved) else stand for stand in stands)
            for role, stands in plain.stands_on.items()
        },
    )


def logged_names(resolved: Resolved) -> frozenset[str]:
    """Names of all metrics that a run logs, from one step on a few pairs; leaves no files behind.

    Raises:
        ConfigError: the configuration cannot be built, or cannot do a step.
        DataError: the data does not fit the configuration.
    """
    resolved = with_start(without_download(resolved))
    drawn = min(max(32, least_draw(resolved.run.split)), resolved.draw_size)
    run = replace(
        resolved.run,
        device="cpu",
        loader=Loader(workers=0),
        cache=None,
        batch_size=max(1, resolved.run.batch_size * drawn // resolved.draw_size),
        super_batch_size=drawn,
        budget=None,
        limit=Budget(steps=1),
        optimizer=replace(resolved.run.optimizer, schedule="cosine", rungs=()),
        evaluate=replace(resolved.run.evaluate, points=1, limit=32),
        log=Log(every=1, progress=False),
    )
    small = replace(resolved, run=run)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with building():
            stages = build_stages(small, *stand_ins(resolved), folder / "cache", drawn)
        allowance = run.allowance({})
        evaluated = stages.evaluator.measures
        stages.evaluator.sets = []  # whole benchmarks: the names of their metrics are known without running them
        recorder = Recorder(small, stages, allowance, folder)
        recorder.metrics = Metrics(folder, None, run.log, "")
        try:
            train(small, stages, Progress(), allowance, recorder)
        except (NonFiniteScore, NonFiniteLoss) as error:
            raise ConfigError(f"the untrained model cannot do one step: {error}") from error
        finally:
            recorder.metrics.close({}, failed=False)
            stages.super_batches.close()
        rows, _ = RunFolder(folder).read_rows()
    ladder = {"flops/rungs", RUNG} if resolved.run.optimizer.rungs else set()
    return frozenset(evaluated).union(ladder, *rows)


def allowed(downloads: bool, pipes: bool) -> frozenset[Fetched]:
    """What a check may open beside local files."""
    found: dict[Fetched, bool] = {"download": downloads, "command": pipes}
    return frozenset(kind for kind, may in found.items() if may)


def check(resolved: Resolved, may: frozenset[Fetched] = frozenset(), verbose: bool = False) -> None:
    """Open the data, build everything, score and update one tiny batch; print a page on it.

    Args:
        may: what is opened beside local files.
        verbose: print all lines and the whole configuration, of the frozen models' runs too.

    Raises:
        ConfigError: the configuration cannot be built, or cannot do a step.
        DataError: local data cannot be read, or the data does not fit the configuration.
    """
    check_served(resolved)
    below, own = _below_and_own(resolved, may)
    print("\n".join(map(whole_text, (*below, own))) if verbose else page(own, below))


def _below_and_own(resolved: Resolved, may: frozenset[Fetched]) -> tuple[list[Checked], Checked]:
    """Rehearse a run, and those that its frozen models stand on, the deepest first."""
    own, below = _rehearsed(resolved, may), []
    for needed in resolved.below:
        with of_run(needed):
            deeper, one = _below_and_own(needed, may)
        below += [*deeper, one]
    steps = {
        role: one.steps
        for role, stands in resolved.scored_by.items()
        for one in below
        if isinstance(stands[0], Resolved) and one.resolved.config_hash == stands[0].config_hash
    }
    toys = toy_warnings(resolved, own.proportions, steps)
    return below, replace(own, warnings=own.warnings + len(printed(toys.values())), toys=frozenset(toys))


def _rehearsed(resolved: Resolved, may: frozenset[Fetched]) -> Checked:
    """Open the data of one run, build it, score and update one tiny batch."""
    resolved, stands_in, lines = opened(resolved, may)
    with building():
        resolved = with_start(resolved if "download" in may else without_download(resolved))
    # The candidates of a cascade must fit into the stand-in's pool.
    few = max(32, least_draw(resolved.run.split))
    drawn = min(few, resolved.draw_size, max(1, 256 * resolved.draw_size // resolved.candidates))
    with tempfile.TemporaryDirectory() as folder:
        with building():
            Arithmetic.of(resolved.run.device, resolved.run.precision)
            run = replace(
                resolved.run, device="cpu", reference_accounting="online", cache=None, loader=Loader(workers=0)
            )
            data, castings = stand_ins(resolved)
            stages = build_stages(replace(resolved, run=run), data, castings, Path(folder), drawn)
            if not stands_in and resolved.run.data.is_prepared() and stages.super_batches.pool is not None:
                plan_of(run, stages.pairs, resolved.draw_size, stages.scorer.actors)  # raises where it is not filled
            check_affordable(resolved, stages, resolved.run.allowance({}, resolved.added_flops))
        lines += [ranked_line(role, pairs) for role, pairs in stages.pairs.ranked]
        lines += () if stands_in else (*head_lines(stages.pairs), *cut_lines(resolved, stages))
        walked = None if stands_in else walk(resolved, stages)
        warnings = warned(resolved, stages, walked)
        _try_one_batch(resolved, stages, data, drawn)
        forecast = RunForecast(resolved, stages, data)
        loader = resolved.run.loader
        ahead = walked is not None and loader.workers_for(stages.pairs.decoded)
        return Checked(
            resolved,
            data=(*lines, *(_not_fetched(resolved.run) if "download" not in may else ())),
            data_line="" if walked is None else data_line(resolved, stages),
            budget=() if walked is None else tuple(bought(forecast, walked)),
            metrics=tuple(stages.evaluator.measures),
            loader=loader.described(resolved.draw_size, 3 * walked["prepared_pixels"] ** 2) if ahead and walked else "",
            price=forecast.price,
            ladder="\n".join(ladder_lines(forecast)),
            warnings=len(warnings),
            steps=forecast.steps,
            proportions=Proportions.of(resolved, stages),
        )


def _not_fetched(run: Run) -> Iterator[str]:
    """A line on each model of another library that a check does not fetch."""
    for role, casting in run.castings.items():
        for remote in (part.remote for part in casting.parts if role in run.needs):
            if remote:
                yield f"not checked: {remote} (--allow_downloads opens it); random weights of its shape stand in"


def _try_one_batch(resolved: Resolved, stages: Stages, data: Dataset, drawn: int) -> None:
    """Score, select from and update one batch of ``drawn`` pairs; a ConfigError where score or loss is not finite."""
    run, count = resolved.run, max(1, resolved.run.batch_size * drawn // resolved.draw_size)
    batch = stages.super_batches.at(0)
    try:
        calibrate(resolved, data, stages, Progress())
        policy, memory = resolved.policy, Memory(remembered_names(resolved.policy))
        scores = stages.scorer(batch, policy.needs, memory=memory)
        selection = choose(policy, scores, count, seeds.generator(run.seed, "check"), initial_state(policy))
        stages.update(batch.take(selection.index_K), selection.weight_K, 0.5, update_seed(run.seed, 0))
    except (NonFiniteScore, NonFiniteLoss) as error:
        raise ConfigError(f"the untrained model cannot do one step: {error}") from error
