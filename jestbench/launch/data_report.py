"""Reports on a run's data: what ``--check`` opens, pairs and damage of each split, warnings of waste."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jestbench.batch import DataError
from jestbench.config.resolved import Resolved
from jestbench.data.damage import listed, too_many
from jestbench.data.file_pairs import text_keys
from jestbench.data.pairs import IndexedPairs, Pairs
from jestbench.data.sources.source import Fetched, Source
from jestbench.data.sources.stream import Stream, StreamPairs
from jestbench.data.splits import names_in, shown_split, split_of, unranked
from jestbench.data.synthetic import Synthetic
from jestbench.disk import shown
from jestbench.launch.stands import ended, of_run
from jestbench.launch.text_report import head_of, no_names, wordless_line
from jestbench.loop import Stages
from jestbench.runs.folder import RunFolder

SAMPLE = 32
"""Pairs of each split that ``--check`` decodes."""
MANY_EPOCHS = 30
"""Passes over the pool above which a run is warned of: about the longest usual schedule of CLIP."""
MUCH = 0.25
"""Share of the pool left out of each epoch above which a run is warned of."""


def opened(resolved: Resolved, allowed: frozenset[Fetched]) -> tuple[Resolved, bool, list[str]]:
    """Index the local data that is bound, and read a sample of every split.

    Args:
        allowed: what may be opened beside local files.

    Returns:
        The run, its data replaced by a stand-in where they may not be opened; whether one takes their place; a report.

    Raises:
        DataError: local data that is bound cannot be read.
    """
    data = resolved.run.data
    if not isinstance(data, Source | Stream):
        missing = [] if data.is_prepared() else ["not checked: the data are not prepared; synthetic pairs stand in"]
        return resolved, bool(missing), missing
    lines = [
        f"not checked: {what} ({'a command: --allow_pipes' if kind == 'command' else '--allow_downloads'} opens it)"
        for what, kind in data.fetched().items()
        if kind not in allowed
    ]
    local = data.beside if isinstance(data, Stream) else data
    if isinstance(local, Source):
        if not local.bound:
            lines.append(f"not checked: no split of {local.label} is bound; synthetic pairs stand in")
        lines += _sampled(local, {what for what, kind in local.fetched().items() if kind not in allowed})
    stands_in = any(kind not in allowed for kind in data.fetched().values()) or not data.is_prepared()
    if stands_in:
        data = data.stand_in()
    return replace(resolved, run=replace(resolved.run, data=data)), stands_in, lines


def _sampled(source: Source, closed: set[str]) -> Iterator[str]:
    """Index what may be opened; a line on each split, and one on its damage."""
    splits = [split for split in source.bound if f"{source.label}.{split}" not in closed]
    if not closed and splits:
        source.prepare()
    for split in splits:
        table = source.indexed(split)
        counted = (("images", table.image_key_N), ("captions", table.text_key_M))
        line = f"{source.label}.{split}: {', '.join(_counted(*one) for one in counted)}"
        line += f", such as {table.captions[0][:60]!r}"
        if closed:
            yield line
        else:
            pairs = source.split(split)
            yield f"{line}; {_decoded(pairs)}"
            yield from wordless_line(f"{source.label}.{split}", pairs.tokenizer, table.captions)
        if table.damage:
            shown = listed(table.damage, table.examples, len(table) + table.damaged)
            yield f"{source.label}.{split}: left out: {shown}"
        if table.columns:
            spans = (f"{name} {column.min():g} to {column.max():g}" for name, column in table.columns.items())
            yield f"{source.label}.{split}: columns {', '.join(spans)}"
        if table.beside.get("outside_uids") is not None:
            yield (
                f"{source.label}.{split}: {table.beside['outside_uids']:,} images are not in the lists of uids; "
                f"{table.beside['uids_without_pair']:,} uids of the lists have no image"
            )
        if table.cut:
            yield f"{source.label}.{split}: {table.cut:,} captions are cut to captions.max_characters"


def _counted(what: str, key_N: npt.NDArray[np.int64]) -> str:
    """How many there are, and how many distinct ones, where some are there several times."""
    distinct = len(np.unique(key_N))
    return f"{len(key_N):,} {what}" + (f" ({distinct:,} distinct)" if distinct < len(key_N) else "")


def ranked_line(role: str, pairs: IndexedPairs) -> str:
    """A line on a split of which the run will take the top by a frozen model's own scores."""
    return f"not checked: the top of the {len(pairs):,} pairs of {pairs.name} by the {role}; its first pairs stand in"


def _decoded(pairs: IndexedPairs) -> str:
    count = min(SAMPLE, len(pairs))
    index_B = torch.arange(count) * len(pairs) // count
    _, damaged = pairs.attempt(index_B)
    first = next((f", the first: {error.reason}: {error.example}" for slot, error in sorted(damaged.items())), "")
    return f"{count} decoded, {len(damaged)} of them damaged{first}"


def head_lines(pairs: Pairs) -> Iterator[str]:
    """Lines on the head of a stream, of any other pairs none: what it holds, and its damage.

    Raises:
        DataError: more of it is damaged than ``stream.max_damaged`` allows.
    """
    if not isinstance(pairs, StreamPairs):
        return
    head, what = pairs.head, head_of(pairs)
    said = listed(head.damage, head.examples, head.read)
    if too_many(head.damaged, head.read, pairs.shards.max_damaged) or not head.captions:
        mend = f"mend the data, or raise stream.max_damaged ({pairs.shards.max_damaged:g})"
        raise DataError(f"{what}: {said or 'none is in the lists of uids'}; {mend}")
    counted = (("images", head.image_key_N), ("captions", text_keys(head.captions)))
    yield f"{what}: {', '.join(_counted(*one) for one in counted)}, such as {head.captions[0][:60]!r}"
    yield from wordless_line(what, pairs.tokenizer, head.captions)
    if head.damage:
        yield f"{what}: left out: {said}"


def walk(resolved: Resolved, stages: Stages) -> dict[str, Any]:
    """How the pool is walked through: pairs left out of each epoch, steps of an epoch, pixels prepared and used.

    Of a mixture that of each split; the steps are those of the split that is walked through most often.
    """
    pool = stages.super_batches.pool
    pixels = int(stages.pairs.example().images_BCHW.shape[-1])
    found: dict[str, Any] = {"prepared_pixels": pixels, "model_pixels": resolved.run.model.image_size}
    if sources := stages.super_batches.sources:
        found["sources"] = {
            name: {
                "pairs": len(plan.pairs),
                "a_super_batch": plan.size,
                "steps_an_epoch": plan.per_epoch,
                "left_out_an_epoch": len(plan.pairs) % plan.size,
            }
            for name, plan in sources.items()
        }
        found["most_walked"] = min(sources, key=lambda name: sources[name].per_epoch)
        found["steps_an_epoch"] = sources[found["most_walked"]].per_epoch
        found["left_out_an_epoch"] = sum(walked["left_out_an_epoch"] for walked in found["sources"].values())
    elif pool is not None:
        found |= {"steps_an_epoch": pool // resolved.candidates, "left_out_an_epoch": pool % resolved.candidates}
    return found


def epochs(walked: Mapping[str, Any], steps: int) -> float | None:
    """Passes over the pool in so many steps; ``None`` of a stream."""
    return round(steps / walked["steps_an_epoch"], 3) if walked.get("steps_an_epoch") else None


def waste_warnings(resolved: Resolved, stages: Stages, walked: Mapping[str, Any]) -> list[str]:
    """Warnings of images that are enlarged, and of tails that are left out of the epochs of ``walk``."""
    if isinstance(resolved.run.data, Synthetic):  # a planted world, for tests: nothing of anybody's is wasted
        return []
    found, prepared = [], walked["prepared_pixels"]
    wanted = {resolved.run.model.image_size: "the model"}
    views = [stages.learner.view, *(view for _, view in resolved.run.mix)]
    wanted = {view.resolution: f"the view of {view.label}" for view in views if view.resolution} | wanted
    frozen = [(role, model) for role, actor in stages.scorer.actors.items() for model in actor.frozen]
    wanted = {one.model.pixels: f"the {role}" for role, one in frozen if role in resolved.run.castings} | wanted
    for pixels, who in sorted(wanted.items()):
        if prepared < pixels:
            less = "" if who.removeprefix("the ") in resolved.run.castings else ", or lower model.image_size"
            found.append(
                f"images are prepared at {prepared} px and enlarged to the {pixels} px of {who}: raise image_size of "
                f"the data set{less}"
            )
    pool, left = stages.super_batches.pool, walked.get("left_out_an_epoch", 0)
    if pool is not None and walked["steps_an_epoch"] and left > MUCH * pool:
        found.append(
            f"{left:,} of the pool's {pool:,} pairs are left out of each epoch, which is cut into "
            f"{resolved.candidates:,} pairs a step: other pairs each epoch; a smaller run.super_batch_size leaves fewer"
        )
    return found


_EVALUATED = "evaluated images"
"""Words of a warning that evaluated images are trained on, by which it is found in another run's summary."""


def overlap_warnings(resolved: Resolved, stages: Stages) -> list[str]:
    """Warnings of a user's evaluated images that are trained on as well, and of a holdout that lies in the pool.

    Images are compared by the content keys of their files, for the run and for all runs that it stands on; of a stream
    those of its head.
    """
    if not isinstance(resolved.run.data, Source | Stream):
        return []
    evaluation, found = stages.evaluator.pairs, list[str]()
    evaluated_N = np.unique(evaluation.image_key_N[: len(stages.evaluator.index_N)])
    mend = "take them out of one of the two"
    for who, run in _trained(resolved, "this run"):
        if isinstance(run, Path):
            summary = ended(run)
            if summary.fingerprints.get("evaluation") == evaluation.fingerprint:
                found += [f"{who}: {text}" for text in summary.warnings if _EVALUATED in text]
            continue
        with nullcontext() if run is resolved else of_run(run):
            keys_N, split = _keys(run, stages if run is resolved else None)
        if there := int(np.isin(evaluated_N, keys_N).sum()):
            found.append(
                f"{there:,} of the {len(evaluated_N):,} {_EVALUATED} ({evaluation.name}) lie in {split}, too, which "
                f"{who} is trained on: metrics are not those of unseen images; {mend}"
            )
        if split == "holdout" and "pool" in names_in(resolved.run.split):
            pool_N, pool = _keys(resolved, stages)
            if there := int(np.isin(np.unique(keys_N), pool_N).sum()):
                found.append(
                    f"{there:,} images of holdout, which {who} is trained on, lie in the {pool}, too: its losses of "
                    f"them are not those of unseen pairs; {mend}"
                )
    return [*dict.fromkeys(found)]


def _trained(resolved: Resolved, who: str) -> Iterator[tuple[str, Resolved | Path]]:
    """A run and those that it stands on, each as it is configured or as its folder, and a name for messages."""
    yield who, resolved
    for role, stands in resolved.stands_on.items():
        for stand in stands:
            if isinstance(stand, Resolved):
                yield from _trained(stand, f"the {role} {stand.run.arm!r}")
            elif RunFolder(stand).has_finished():
                yield f"the {role} in {shown(stand)}", stand


def _keys(resolved: Resolved, stages: Stages | None) -> tuple[npt.NDArray[np.int64], str]:
    """The content keys of the images that a run is trained on, none where they are not indexed; and where they lie."""
    data, split = resolved.run.data, shown_split(resolved.run.split)
    if stages is not None:
        pairs = stages.pairs
    elif isinstance(data, Source | Stream) and data.is_prepared():
        pairs = split_of(data, unranked(resolved.run.split))
    else:
        return np.empty(0, np.int64), split
    if isinstance(pairs, StreamPairs):
        return pairs.head.image_key_N, f"{split} (its first {pairs.head.read:,} pairs)"
    return pairs.indexed("a comparison of splits").image_key_N, split


def streamed_warning(stages: Stages, counts: Mapping[str, float]) -> list[str]:
    """A warning of evaluated images that a run has drawn from its stream, by the counts that it ends with."""
    drawn = counts.get("evaluated", 0)
    if not drawn:
        return []
    return [
        f"{drawn:,.0f} pairs drawn from the stream hold {_EVALUATED} ({stages.evaluator.pairs.name}): metrics are not "
        "those of unseen images; take them out of one of the two"
    ]


def set_warnings(stages: Stages) -> list[str]:
    """Warnings of sets of at most five classes, and of class names that have no images or are no names."""
    found = []
    for one in stages.evaluator.sets:
        name, classes = one.benchmark.name, len(one.benchmark.classnames)
        if 0 < classes <= 5:
            found.append(f"eval/{name}/zero_shot_top5 is always 1: the set {name} has {classes} classes")
        if said := no_names(one.benchmark.classnames):
            found.append(f"evaluate.sets: class names of {name}: {said}; write names into its classnames.txt, in order")
        never = sorted(set(range(classes)) - set(one.benchmark.test.classes))
        if never:
            found.append(
                f"evaluate.sets: {len(never)} of the {classes} classes of {name} have no image, the first is "
                f"{one.benchmark.classnames[never[0]]!r} (class {never[0]}): are these the names of this set?"
            )
    return found


def epoch_warning(walked: Mapping[str, Any], steps: int) -> list[str]:
    """A warning of a pool that is walked through very often."""
    number = epochs(walked, steps)
    if number is None or number < MANY_EPOCHS:
        return []
    who = walked.get("most_walked", "the pool")
    return [f"{who} is walked through {number:.0f} times in {steps:,} steps: its pairs are seen again and again"]


def eval_sets(stages: Stages) -> dict[str, Any]:
    """Task, classes, templates and images of each evaluation set, by name."""
    return {
        one.benchmark.name: {
            "task": one.benchmark.task,
            "images": len(one.benchmark.test.images),
            "classes": len(one.benchmark.classnames),
            "templates": len(one.benchmark.templates),
        }
        for one in stages.evaluator.sets
    }
