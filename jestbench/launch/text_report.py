"""Reports on a run's texts: captions that the tokenizer cuts, classes whose names are alike or are no names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from jestbench.config.resolved import Resolved
from jestbench.data.file_pairs import FilePairs
from jestbench.data.sources.source import Source
from jestbench.data.sources.stream import Stream, StreamPairs
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
_URL = re.compile(r"(https?://|www\.)\S+", re.IGNORECASE)


def sampled(texts: Sequence[str]) -> list[str]:
    """At most ``TEXTS`` texts, evenly spread."""
    return [texts[i] for i in range(0, len(texts), -(-len(texts) // TEXTS))]


@dataclass(frozen=True)
class _Texts:
    """The captions of a split, or of a stream's head.

    Attributes:
        what: the binding, for messages.
        split: its name.
        captions: normalised.
        binding: of the field that holds them.
    """

    what: str
    split: str
    captions: Sequence[str]
    binding: str


def cut_lines(resolved: Resolved, stages: Stages) -> Iterator[str]:
    """A line on each bound split of local data, and on a stream, of whose captions some, of a sample, are cut."""
    tokenizer, limit, _ = _limit(resolved, stages)
    for texts in _texts(resolved, stages):
        share, said = _cut(tokenizer, limit, texts.captions)
        if share:
            yield f"{texts.what}: {said}"


def wordless_line(what: str, tokenizer: Tokenizer, captions: Sequence[str]) -> Iterator[str]:
    """A line on the captions, of a sample, that tokenise to nothing, where there are any."""
    sample = sampled(captions)
    found = [text for text in sample if tokenizer.wordless(tokenizer.encode([text]))]
    if found:
        yield f"{what}: {len(found):,} of {len(sample):,} captions tokenise to nothing, the first: {found[0][:60]!r}"


def text_warnings(resolved: Resolved, stages: Stages) -> list[str]:
    """Warnings of captions that are cut or are no texts, and of classes that no model can tell apart.

    Looked at are the splits that the run is trained and evaluated on (of a stream its head), and its evaluation sets.
    """
    run, evaluator, found = resolved.run, stages.evaluator, list[str]()
    tokenizer, limit, longer = _limit(resolved, stages)
    for texts in _texts(resolved, stages):
        if texts.split in names_in(run.split) | names_in(run.evaluate.split):
            captions = sampled(texts.captions)
            share, said = _cut(tokenizer, limit, captions)
            found += [f"{texts.what}: {said}; {longer}"] if share > CUT else []
            if said := no_names(captions):
                found.append(f"{texts.what}: captions: {said}; bind {texts.binding} to a field that holds names")
            if said := _no_texts(captions):
                found.append(f"{texts.what}: {said}; bind {texts.binding} to a field that holds texts")
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


def _no_texts(captions: Sequence[str]) -> str:
    """Words on captions that are all one text, or most of which are URLs; empty where they are not."""
    if len(captions) > 1 and len(set(captions)) == 1:
        return f"all of {len(captions):,} captions that were looked at are {captions[0][:60]!r}"
    urls = [text for text in captions if _URL.fullmatch(text)]
    if 2 * len(urls) <= len(captions):
        return ""
    return f"{len(urls):,} of {len(captions):,} captions are URLs, such as {urls[0][:60]!r}"


def _texts(resolved: Resolved, stages: Stages) -> Iterator[_Texts]:
    """The captions of each bound split of local data, and of the head of the stream that a run draws from."""
    data, pairs = resolved.run.data, stages.pairs
    if isinstance(pairs, StreamPairs) and pairs.head.captions:
        yield _Texts(head_of(pairs), "pool", pairs.head.captions, "stream.caption")
    local = data.beside if isinstance(data, Stream) else data
    if isinstance(local, Source):
        key = "caption_column" if hasattr(local, "caption_column") else "caption"
        for split in local.bound:
            if split != "pool" or local is data:  # a stream has the pool's place
                yield _Texts(f"{local.label}.{split}", split, local.indexed(split).captions, f"{local.label}.{key}")


def head_of(pairs: StreamPairs) -> str:
    """The head of a stream, for messages."""
    return f"stream.shards, the first {pairs.head.read:,} pairs"


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
