"""Evaluates a trained model without training: of a run folder, or of another library."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jestbench.batch import DataError
from jestbench.config.evaluated_run import evaluated_run
from jestbench.config.run import ConfigError, Run
from jestbench.cost.ledger import flops_of
from jestbench.data.pairs import IndexedPairs
from jestbench.disk import nearest_or_all, user_path
from jestbench.engine.actor import EmbeddingModel
from jestbench.engine.contrastive import ContrastiveTraining
from jestbench.engine.kinds import KINDS
from jestbench.evals.benchmark import TextEncoding
from jestbench.evals.evaluate import Evaluator
from jestbench.evals.grading import EVALUATORS
from jestbench.evals.results import Evaluation
from jestbench.launch.train_run import building
from jestbench.model.encoders import Encoders
from jestbench.model.towers import TwoTowers
from jestbench.parallel.arithmetic import Arithmetic, number_format
from jestbench.runs.checkpoint import damage, newest_whole
from jestbench.runs.folder import RunFolder
from jestbench.runs.loaded_model import foreign_named
from jestbench.runs.saved_model import model_in


@dataclass(frozen=True)
class TrainedModel:
    """A model that is evaluated.

    Attributes:
        source: as it was given.
        kind: of ``KINDS``.
        model: the encoders.
        tokenizer: their own.
        towers: the same where a run has trained them; else ``None``.
        folder: of the run that trained it; ``None`` of a model of another library.
        checkpoint: its name in that folder.
    """

    source: str
    kind: str
    model: Encoders
    tokenizer: TextEncoding
    towers: TwoTowers | None = None
    folder: RunFolder | None = None
    checkpoint: str = ""

    @staticmethod
    def of(source: str, checkpoint: str = "") -> TrainedModel:
        """Load the model of a source, as ``jestbench.load_model`` takes it.

        Args:
            source: a run folder, or the name of a model of another library.
            checkpoint: of a run; empty for the newest that is as it was written.

        Raises:
            ConfigError: there is no such checkpoint.
            DataError: there is no model, or it cannot be read.
        """
        foreign = foreign_named(source)
        if foreign is not None:
            if checkpoint:
                raise ConfigError(f"--checkpoint is of a run folder, and {source} names a model of another library")
            towers = foreign.load()
            return TrainedModel(source, ContrastiveTraining.kind, towers, towers.tokens)
        folder = RunFolder(user_path(source))
        found = _checkpoint(folder, checkpoint)
        kind, model = model_in(found)
        return TrainedModel(source, kind, model, model.tokens, model, folder, found.name)


def _checkpoint(folder: RunFolder, name: str) -> Path:
    """A whole checkpoint of a run: the one of that name, or the newest; newer ones that are damaged are named."""
    if not name:
        found, passed = newest_whole(folder.path)
        for line in passed:
            print(f"warning: checkpoint passed over: {line}", file=sys.stderr)
        if found is None:
            raise DataError(
                f"{folder.path} holds no checkpoint: give a run folder, open_clip:MODEL:PRETRAINED or hf:FOLDER"
            )
        return found
    known = [path.name for path in folder.whole_checkpoints()]
    if name not in known:
        raise ConfigError(f"--checkpoint {name}: {folder.path} holds no such checkpoint; {nearest_or_all(name, known)}")
    if reason := damage(folder.checkpoints / name):
        raise DataError(f"{folder.checkpoints / name}: {reason}: bring the file back, or name another --checkpoint")
    return folder.checkpoints / name


def evaluate(trained: TrainedModel, files: Sequence[str], bindings: Sequence[str]) -> dict[str, Any]:
    """Evaluate a model on what its run was evaluated on, or on what files and bindings name.

    Returns:
        What ``evaluated.json`` holds: the metrics by key, their standard errors over examples, and what was evaluated.

    Raises:
        ConfigError: the configuration is wrong, or does not go with the model.
        DataError: the data is wrong or missing.
    """
    run = evaluated_run(files, bindings, None if trained.folder is None else trained.folder.operative_gin)
    with building():
        run.data.prepare()
        pairs = run.data.split(run.evaluate.split).indexed("evaluate.split")
        subject = _subject(trained, run, pairs)
        evaluator = _evaluator(trained, run, pairs)
    subject.model.eval()
    found = evaluator.of(subject)
    return {
        "source": trained.source,
        "checkpoint": trained.checkpoint or None,
        "metrics": dict(found.metrics),
        "standard_errors": _standard_errors(found),
        "data": type(run.data).__name__.lower(),
        "split": run.evaluate.split,
        "eval_images": len(evaluator.index_N),
        "eval_classes": len(evaluator.example_C),
        "sets": [one.benchmark.name for one in evaluator.sets],
        "fingerprint": pairs.fingerprint,
        "flops": flops_of(found.passes),
        "device": str(subject.arithmetic.device),
        "number_format": number_format(subject.arithmetic.device.type, run.precision),
    }


def _subject(trained: TrainedModel, run: Run, pairs: IndexedPairs) -> EmbeddingModel:
    """The model on its device, with its price on the data's shapes."""
    model, example = trained.model, pairs.example()
    if trained.towers is not None and model.tokenizer != pairs.tokenizer.identity:
        trained.towers.brings_tokenizer = True
    return KINDS[trained.kind].content(model, Arithmetic.of(run.device, run.precision), model.tokenized(example))


def _evaluator(trained: TrainedModel, run: Run, pairs: IndexedPairs) -> Evaluator:
    """What evaluates the model, on the split and on the sets beside it."""
    seen = run.evaluate.unseen_by
    seen_key_N = run.data.split(seen).indexed("evaluate.unseen_by").text_key_N if seen else None
    training, towers, side = run.training, trained.towers, trained.model.pixels
    objective = None if towers is None else training.objective(towers, towers.tokens)
    return EVALUATORS[trained.kind](pairs, run.evaluate, side, objective, seen_key_N, trained.tokenizer)


def _standard_errors(found: Evaluation) -> dict[str, float]:
    """The standard error of each metric that is a mean over examples of more than one unit."""
    examples = {key: found.results.of(key) for key in found.metrics}
    errors = {key: None if one is None else one.standard_error for key, one in examples.items()}
    return {key: error for key, error in errors.items() if error is not None}
