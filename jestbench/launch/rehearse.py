"""A run in miniature on stand-ins: `--check`, and the names of the metrics that a run logs."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from jestbench import seeds
from jestbench.config.log import Log
from jestbench.config.run import ConfigError, Resolved
from jestbench.cost.budget import Budget
from jestbench.data.loader import Loader
from jestbench.data.pairs import Dataset
from jestbench.data.super_batches import SuperBatches
from jestbench.engine.learner import NonFiniteLoss
from jestbench.launch.stages import build_stages
from jestbench.launch.train_run import building, check_affordable, warned
from jestbench.loop import Progress, train
from jestbench.model.regressor import Regressor
from jestbench.model.towers import TwoTowers
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.runs.folder import RunFolder
from jestbench.runs.metrics_log import Metrics
from jestbench.runs.recorder import Recorder
from jestbench.runs.saved_model import load_model, load_regressor
from jestbench.seeds import update_seed
from jestbench.select.policy import choose
from jestbench.select.scores import NonFiniteScore


def stand_ins(resolved: Resolved) -> tuple[Dataset, TwoTowers | None, Regressor | None]:
    """Data, reference and pair scorer as they are, or stand-ins of the same shape: nothing is fetched or trained."""
    data = resolved.run.data
    if not data.is_prepared():
        data = data.stand_in()
    tokenizer = data.split(resolved.run.split).tokenizer
    reference: TwoTowers | None = None
    if "reference" not in resolved.run.needs:
        pass
    elif resolved.reference_dir is not None:
        reference = load_model(resolved.reference_dir)
    elif resolved.reference is not None:
        run = resolved.reference.run
        reference = run.model.build(tokenizer, run.loss, run.seed)
    regressor: Regressor | None = None
    if resolved.scorer_dir is not None:
        regressor = load_regressor(resolved.scorer_dir)
    elif resolved.scorer is not None:
        run = resolved.scorer.run
        assert run.objective is not None, "the configuration has seen to it"
        regressor = Regressor.build(run.model, tokenizer, run.objective.hidden, run.seed)
    return data, reference, regressor


def without_download(resolved: Resolved) -> Resolved:
    """The same run from random weights, which cost the same."""
    plain = replace(resolved, run=replace(resolved.run, model=replace(resolved.run.model, pretrained=False)))
    return replace(
        plain,
        reference=None if plain.reference is None else without_download(plain.reference),
        twin=None if plain.twin is None else without_download(plain.twin),
        scorer=None if plain.scorer is None else without_download(plain.scorer),
    )


def logged_names(resolved: Resolved) -> frozenset[str]:
    """Names of all metrics that a run logs: those that one step on a few pairs logs. Nothing is left behind.

    Raises:
        ConfigError: the configuration cannot be built, or cannot do a step.
        DataError: the data does not fit it.
    """
    resolved = without_download(resolved)
    drawn = min(32, resolved.draw_size)
    run = replace(
        resolved.run,
        device="cpu",
        loader=Loader(workers=0),
        cache=None,
        batch_size=max(1, resolved.run.batch_size * drawn // resolved.draw_size),
        super_batch_size=drawn,
        budget=None,
        limit=Budget(steps=1),
        evaluate=replace(resolved.run.evaluate, points=1, limit=32),
        log=Log(every=1, progress=False),
    )
    small = replace(resolved, run=run)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with building():
            data, reference, regressor = stand_ins(resolved)
            twin = None if resolved.twin is None else stand_ins(replace(resolved, reference=resolved.twin))[1]
            stages = build_stages(small, data, reference, folder / "cache", drawn, regressor, twin)
        allowance = run.allowance({})
        evaluated = stages.evaluator.measures
        stages.evaluator.sets = []  # whole benchmarks: their names are known without them
        metrics = Metrics(folder, None, run.log, "")
        try:
            train(small, stages, Progress(), allowance, Recorder(small, stages, allowance, folder, metrics))
        except (NonFiniteScore, NonFiniteLoss) as error:
            raise ConfigError(f"the untrained model cannot do one step: {error}") from error
        finally:
            metrics.close({}, failed=False)
            stages.super_batches.close()
        rows, _ = RunFolder(folder).read_rows()
    return frozenset(evaluated).union(*rows)


def check(resolved: Resolved) -> None:
    """Build everything, score and update one tiny batch, print the operative configuration.

    Raises:
        ConfigError: the configuration cannot be built, or cannot do a step.
        DataError: the data does not fit it.
    """
    resolved = without_download(resolved)
    # The candidates of a cascade are to fit the stand-in's pool.
    drawn = min(32, resolved.draw_size, max(1, 256 * resolved.draw_size // resolved.candidates))
    count = max(1, resolved.run.batch_size * drawn // resolved.draw_size)
    with tempfile.TemporaryDirectory() as folder:
        with building():
            Arithmetic.of(resolved.run.device, resolved.run.precision)
            run = replace(
                resolved.run, device="cpu", reference_accounting="online", cache=None, loader=Loader(workers=0)
            )
            data, reference, regressor = stand_ins(resolved)
            twin = None if resolved.twin is None else stand_ins(replace(resolved, reference=resolved.twin))[1]
            tiny = replace(resolved, run=run)
            stages = build_stages(tiny, data, reference, Path(folder), drawn, regressor, twin)
            if resolved.run.data.is_prepared() and stages.super_batches.pool is not None:
                SuperBatches(stages.pairs, resolved.candidates, run.seed)
            check_affordable(resolved, stages, resolved.run.allowance({}, resolved.added_flops))
        warned(resolved, stages)
        batch = stages.super_batches.at(0)
        try:
            scores = stages.scorer(batch, resolved.policy.needs)
            selection = choose(resolved.policy, scores, count, seeds.generator(run.seed, "check"))
            stages.update(batch.take(selection.index_K), selection.weight_K, 0.5, update_seed(run.seed, 0))
        except (NonFiniteScore, NonFiniteLoss) as error:
            raise ConfigError(f"the untrained model cannot do one step: {error}") from error
    for needed in (resolved.reference, resolved.twin, resolved.scorer):
        if needed is not None:
            check(needed)
    print(f"# arm {resolved.run.arm!r}, configuration {resolved.config_hash}\n{resolved.operative}")
