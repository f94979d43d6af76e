"""Tokenizers of other libraries as definitions of the ``tokenizers`` package, which a run folder can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from jestbench.model.foreign_towers import ForeignError, ForeignTokenizer
from jestbench.model.tokenizer import LEAST_VOCABULARY, Tokenizer, train_bpe

PROBES = (
    "a photo of a cat",
    "Two DOGS, 3 birds! It's the neighbour's (old) house_number 1024; “quoted” – naïve 雨",
    "  more \t white\nspace  ",
    "",
    "one word after the other " * 40,
)
"""Texts on which a carried tokenizer must give the ids of its library."""
_SPACES: tuple[Any, ...] = (normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip())
_PLAIN: tuple[Any, ...] = (
    normalizers.Replace(Regex("[\u02bc\u2018-\u201b]"), "'"),
    normalizers.Replace(Regex("[\u201c-\u201f]"), '"'),
    normalizers.NFC(),
)
_CLEANERS: dict[str, tuple[Any, ...]] = {
    "_clean_whitespace": (*_PLAIN, *_SPACES),
    "_clean_lower": (*_PLAIN, *_SPACES, normalizers.Lowercase()),
    "_clean_canonicalize": (
        *_PLAIN,
        normalizers.Replace("_", " "),
        normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
        normalizers.Lowercase(),
        *_SPACES,
    ),
}
"""What open_clip does to a text before it is tokenized: plain quotation marks (as ftfy makes them), spaces, case. The
repair of wrong encodings and of HTML entities is left out."""
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Words of CLIP's tokenizer (Radford et al. 2021, released code)."""


def stand_in(length: int) -> Tokenizer:
    """A tokenizer of single bytes, for models whose own would have to be fetched."""
    return Tokenizer(train_bpe((), LEAST_VOCABULARY).to_str(), length)


def _checked(made: Tokenizer, own: ForeignTokenizer) -> Tokenizer:
    """The tokenizer; ``ForeignError`` where it does not give the ids of its library."""
    for text in PROBES:
        if not torch.equal(made.encode([text]), own([text])):
            raise ForeignError(f"its tokenizer cannot be written as a tokenizer.json: {text[:40]!r} gets other ids")
    return made


def _defined(backend: Backend, cleaners: Sequence[Any] = ()) -> str:
    """The definition of a tokenizer, what cleans its texts included."""
    copy = Backend.from_str(backend.to_str())
    if cleaners:
        own = [copy.normalizer] if copy.normalizer is not None else []
        copy.normalizer = normalizers.Sequence([*cleaners, *own])
    copy.no_padding()
    copy.no_truncation()
    return copy.to_str()


def of_transformers(made: Any, own: ForeignTokenizer, cleaners: Sequence[Any] = ()) -> Tokenizer:
    """A tokenizer of ``transformers``.

    Args:
        made: the library's object.
        own: the same, as a model that is run by its library is fed by it.
        cleaners: what changes a text before.

    Raises:
        ForeignError: it is none of the ``tokenizers`` package, or gives other ids in our hands.
    """
    backend = getattr(made, "backend_tokenizer", None)
    pad, end = made.pad_token, made.eos_token or made.sep_token
    if backend is None or pad is None or end is None:
        raise ForeignError("its tokenizer cannot be written as a tokenizer.json with a padding and an end token")
    return _checked(Tokenizer(_defined(backend, cleaners), own.length, pad, end), own)


def of_open_clip(made: Any, own: ForeignTokenizer) -> Tokenizer:
    """A tokenizer of open_clip: its ``SimpleTokenizer``, or one that it takes from ``transformers``.

    Args:
        made: the library's object.
        own: the same, as a model that is run by its library is fed by it.

    Raises:
        ForeignError: it gives other ids in our hands.
    """
    cleaners = _CLEANERS.get(getattr(getattr(made, "clean_fn", None), "__name__", ""), ())
    if hasattr(made, "tokenizer"):
        return of_transformers(made.tokenizer, own, cleaners)
    if not hasattr(made, "bpe_ranks"):
        raise ForeignError(f"its tokenizer ({type(made).__name__}) cannot be written as a tokenizer.json")
    merges = sorted((merge for merge in made.bpe_ranks if len(merge) == 2), key=made.bpe_ranks.get)
    backend = Backend(models.BPE(made.encoder, merges, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), "removed", invert=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    start, end, pad = (made.decoder[each] for each in (made.sot_token_id, made.eot_token_id, 0))
    special = [(token, made.encoder[token]) for token in (start, end)]
    backend.add_special_tokens([start, end])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", pair=None, special_tokens=special
    )
    return _checked(Tokenizer(_defined(backend, cleaners), own.length, pad, end), own)
