"""The model card of an exported model, made from its run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from jestbench.batch import DataError
from jestbench.compare.noise import logit_ends
from jestbench.evals.measure import Measure
from jestbench.evals.results import Examples, influence_SG
from jestbench.model.library_towers import LibraryTowers
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import Model, TwoTowers
from jestbench.runs.folder import RunFolder
from jestbench.runs.summary import ReferenceEntry, Summary

HEAD = """---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
---

# {arm}, seed {seed}

Two towers that embed images and texts, trained by jestbench under the selection policy `{policy}`.

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
```
"""


def model_card(run_dir: Path, model: TwoTowers, shape: Model, tokenizer: Tokenizer) -> str:
    """Model, data, policy, costs, references and metrics of a run, as Markdown.

    Raises:
        DataError: the run has no summary, or it cannot be read.
    """
    folder = RunFolder(run_dir)
    summary = folder.summary()
    if summary is None:
        raise DataError(f"{run_dir} holds no summary.json: wait until the run has finished")
    parts = {
        "Model": _table(_model(model, shape, tokenizer)),
        "Training": _table(_training(summary)),
        "What it cost": ["FLOPs, 2 per multiply-add.", "", *_table(_costs(summary))],
        "Evaluation": list(_metrics(folder, summary)),
        "Warnings of the run": [f"* {warning}" for warning in summary.warnings],
    }
    lines = [HEAD.format(arm=summary.arm, seed=summary.seed, policy=summary.policy)]
    for title, content in parts.items():
        lines += [f"## {title}", "", *content, ""] if content else []
    return "\n".join(lines)


def _table(rows: Iterator[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _model(model: TwoTowers, shape: Model, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    if isinstance(model, LibraryTowers):
        prepared = model.image.preprocessing
        mean, std = list(prepared.mean), list(prepared.std)
        yield "towers", f"run by {model.source['library']}: {model.source['reason']}"
        yield "image tower", f"`{type(model.image.backbone).__name__}`, {model.pixels} px"
    else:
        mean, std = (list(values) for values in shape.normalisation)
        options = f" {dict(shape.image_options)}" if shape.image_options else ""
        yield "image tower", f"`{shape.image_tower}`{options}, {shape.image_size} px, patch {shape.patch_size} px"
        yield "text tower", f"{shape.text_layers} layers of {shape.text_width}, pooled by `{shape.text_pool}`"
    yield "pixels", f"mean {_numbers(mean)}, standard deviation {_numbers(std)}"
    yield "tokenizer", f"{tokenizer.vocab_size:,} ids, {tokenizer.length} tokens a text"
    yield "embedding", f"{shape.embed_dim} dimensions"


def _numbers(values: object) -> str:
    return ", ".join(f"{value:.4g}" for value in np.atleast_1d(np.asarray(values, dtype=float)))


def _training(summary: Summary) -> Iterator[tuple[str, str]]:
    data = summary.data
    more = [f"{name} {data[name]}" for name in ("split", "pairs", "noise") if name in data]
    yield "data", ", ".join([str(data.get("data", "")), *more])
    yield (
        "policy",
        f"`{summary.policy}` (arm `{summary.arm}`, configuration {summary.config_hash}, seed {summary.seed})",
    )
    yield "loss", str(data.get("loss", ""))
    yield "ended", f"{summary.status} after {summary.steps:,} steps"
    yield "pairs", f"{summary.pairs_seen:,} seen, {summary.pairs_trained:,} trained on"
    for entry in summary.references:
        yield "reference", _reference(entry)


def _reference(entry: ReferenceEntry) -> str:
    seed = "" if entry.seed is None else f", seed {entry.seed}"
    spent = (
        "pre-training not known" if entry.pretrain_flops is None else f"pre-training {entry.pretrain_flops:.4g} FLOPs"
    )
    return f"`{entry.name}`{seed}: {spent}"


def _costs(summary: Summary) -> Iterator[tuple[str, str]]:
    for purpose, spent in summary.flops.items():
        if spent:
            outside = " (outside the total)" if purpose in ("eval", "rungs") else ""
            yield purpose.replace("_", " ") + outside, f"{spent:,}"
    for role, pretrained in summary.pretrain_flops.items():
        yield f"pre-training of the {role}", "not known" if pretrained is None else f"{pretrained:,}"


def _metrics(folder: RunFolder, summary: Summary) -> Iterator[str]:
    """The last evaluation, with an interval where the results of single examples are kept."""
    results = folder.results()
    last = results[max(results)] if results else None
    yield "95 % intervals hold the noise of the evaluation's examples (classes as units), not that of another seed."
    yield ""
    yield from ("| metric | value | 95 % interval | examples |", "|---|---|---|---|")
    for key, value in summary.metrics.items():
        measure = summary.measures.get(key)
        examples = last.of(key) if last is not None and measure is not None else None
        ends = None if examples is None or measure is None else interval(examples, measure)
        shown = "" if ends is None else f"{ends[0]:.4g} … {ends[1]:.4g}"
        count = "" if examples is None else f"{len(examples.value_N):,}"
        yield f"| {key.removeprefix('eval/')} | {value:.4g} | {shown} | {count} |"


def interval(examples: Examples, measure: Measure) -> tuple[float, float] | None:
    """A 95 % interval of a mean over examples, by the variance between their units; of a share on the logit scale.

    Returns:
        Both ends; ``None`` where nothing varies between units.
    """
    influence_G = influence_SG(examples.value_N[None], examples.unit_N)[0]
    mean, freedom = float(examples.value_N.mean()), len(influence_G) - 1
    if freedom < 1 or not influence_G.any():
        return None
    half = float(student.ppf(0.975, freedom) * np.sqrt((influence_G**2).sum()))
    share = measure.limits == (0.0, 1.0) and np.isin(examples.value_N, (0.0, 1.0)).all() and 0 < mean < 1
    return logit_ends(mean, half) if share else (mean - half, mean + half)
