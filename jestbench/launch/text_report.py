"""Reports on a run's texts: captions that the tokenizer cuts, classes whose names are alike or are no names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from jestbench.config.resolved import Resolved
from jestbench.data.file_pairs import FilePairs
from jestbench.data.sources.source import Source
from jestbench.data.sources.stream import Stream
from jestbench.data.splits import names_in
from jestbench.loop import Stages
from jestbench.model.tokenizer import Tokenizer

TEXTS = 1000
"""Captions of each split that are tokenised for a report."""
CUT = 0.1
"""Share of cut captions above which a run is warned: the limit then lies within the usual lengths, below their ninth
decile, and not among the outliers, which every collection of alt texts has."""
_NO_NAME = re.compile(r"n\d{8}|\d+")
"""A WordNet id, as the folders of ImageNet have it, or a number."""


def sampled(texts: Sequence[str]) -> list[str]:
    """At most ``TEXTS`` texts, evenly spread."""
    return [texts[i] for i in range(0, len(texts), -(-len(texts) // TEXTS))]


def cut_lines(resolved: Resolved, stages: Stages) -> Iterator[str]:
    """A line on each bound split of local data of whose captions some, of a sample, are cut."""
    tokenizer, limit, _ = _limit(resolved, stages)
    for source, split in _bound(resolved):
        share, said = _cut(tokenizer, limit, source.indexed(split).captions)
        if share:
            yield f"{source.label}.{split}: {said}"


def text_warnings(resolved: Resolved, stages: Stages) -> list[str]:
    """Warnings of captions that are cut or are no texts, and of classes that no model can tell apart.

    Looked at are the splits that the run is trained and evaluated on, and its evaluation sets.
    """
    run, evaluator, found = resolved.run, stages.evaluator, list[str]()
    tokenizer, limit, longer = _limit(resolved, stages)
    for source, split in _bound(resolved):
        if split in names_in(run.split) | names_in(run.evaluate.split):
            what, captions = f"{source.label}.{split}", sampled(source.indexed(split).captions)
            share, said = _cut(tokenizer, limit, captions)
            found += [f"{what}: {said}; {longer}"] if share > CUT else []
            key = "caption_column" if hasattr(source, "caption_column") else "caption"
            if said := no_names(captions):
                found.append(f"{what}: captions: {said}; bind {source.label}.{key} to a field that holds names")
    pairs = evaluator.pairs
    if run.objective is None and isinstance(pairs, FilePairs) and pairs.caption_N is not None:
        names = [pairs.captions[i] for i in pairs.caption_N[evaluator.example_C.numpy()].tolist()]
        if said := _alike(names, tokenizer.encode(names)):
            found.append(f"{pairs.name}: {said}; captions.lower = True joins names that differ in case; {longer}")
    for one in evaluator.sets:
        what, classes = f"evaluate.sets: {one.benchmark.name}", one.benchmark.classnames
        share, said = _cut(tokenizer, limit, one.texts, "prompts" if classes else "captions")
        found += [f"{what}: {said}; {longer}"] if share > CUT else []
        if classes and (said := _alike(classes, one.token_TL.reshape(len(classes), -1))):
            found.append(f"{what}: {said}; give each a name of its own in classnames.txt; {longer}")
    return found


def no_names(names: Sequence[str]) -> str:
    """Words on names that are WordNet ids, or of which most are numbers; empty where they are not."""
    found = [name for name in names if _NO_NAME.fullmatch(name.strip())]
    if 2 * len(found) <= len(names) and not any(name.strip().startswith("n") for name in found):
        return ""
    ids = f"{len(found):,} of {len(names):,} are WordNet ids or numbers, such as {found[0]!r}"
    return f"{ids}, which a model reads as words"


def _bound(resolved: Resolved) -> Iterator[tuple[Source, str]]:
    """The bound splits of local data, each with its data set."""
    data = resolved.run.data
    local = data.beside if isinstance(data, Stream) else data
    if isinstance(local, Source):
        yield from ((local, split) for split in local.bound)


def _limit(resolved: Resolved, stages: Stages) -> tuple[Tokenizer, str, str]:
    """The tokenizer of the models in training, what limits the length of its texts, and how to raise that limit."""
    data, tokenizer = resolved.run.data, stages.pairs.tokenizer
    if resolved.start is not None:
        own = resolved.start.tokenizer(resolved.run.model, tokenizer)
        if own.identity != tokenizer.identity:
            return own, "the model that run.init names", "begin from a model of longer texts"
    key = "tokenizer.length" if isinstance(data, Source | Stream) else f"{type(data).__name__.lower()}.length"
    return tokenizer, key, f"a larger {key} keeps more of longer texts (and costs more FLOPs)"


def _cut(tokenizer: Tokenizer, limit: str, texts: Sequence[str], kind: str = "captions") -> tuple[float, str]:
    """The share of texts, of a sample, that the tokenizer cuts, and words on it."""
    length_N = np.array(tokenizer.lengths(sampled(texts)))
    cut_N = length_N > tokenizer.length
    return float(cut_N.mean()), (
        f"{cut_N.sum():,} of {len(cut_N):,} {kind} ({cut_N.mean():.0%}) are cut to the {tokenizer.length} tokens of "
        f"{limit}; 99% have at most {np.quantile(length_N, 0.99, method='higher'):,}"
    )


def _alike(names: Sequence[str], token_CX: Tensor) -> str:
    """Words on classes that have all tokens of their texts in common with an earlier one; empty where none has."""
    first: dict[bytes, int] = {}
    rows = (row.tobytes() for row in token_CX.numpy())
    found = [(before, at) for at, row in enumerate(rows) if (before := first.setdefault(row, at)) != at]
    if not found:
        return ""
    one, other = (names[at] for at in found[0])
    numbers = f" (classes {found[0][0]} and {found[0][1]})" if one == other else ""
    count = f"{len(found):,} of {len(names):,} classes"
    return f"{count} have the tokens of another, such as {one!r} and {other!r}{numbers}, so that no model parts them"
