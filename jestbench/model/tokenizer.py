"""Byte-pair tokenizers over captions, with an identity by which a model recognises its own token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from torch import Tensor

from jestbench import disk

PAD, END = "<pad>", "<end>"
BYTES = tuple(sorted(pre_tokenizers.ByteLevel.alphabet()))
"""The 256 bytes, each as the character that stands for it in a vocabulary."""
LEAST_VOCABULARY = len(BYTES) + 2
"""Size of a vocabulary of single bytes, padding and end, without any merge."""
RECIPE = 2
"""Counted up when ``train_bpe`` makes another tokenizer of the same captions."""


def train_bpe(captions: Iterable[str], vocab_size: int) -> Backend:
    """Train a byte-level byte-pair tokenizer on captions; the same captions give the same tokenizer.

    The alphabet is the 256 bytes of UTF-8 and a word opens with its blank, so the ids spell a normalised caption to the
    last byte: whatever was never seen in training has ids of its own, and two normalised captions never share theirs.
    Normalised is NFKC, lower case, runs of white space one blank, none at the ends.

    Pass captions without added noise, so that all runs over one data set share the tokenizer.

    Args:
        captions: in any order.
        vocab_size: the most ids, bytes and special tokens among them; at least ``LEAST_VOCABULARY`` are made.
    """
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Prepend(" "),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=list(BYTES),
        show_progress=False,
        min_frequency=2,
    )
    # Sorted: the trainer breaks ties by order of arrival.
    backend.train_from_iterator(sorted(captions), trainer)
    return backend


def frame(backend: Backend) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer itself puts before and after a text (``[CLS]``, ``[SEP]``)."""
    probe = backend.encode("a")
    inner = [position for position, special in enumerate(probe.special_tokens_mask) if not special]
    if not inner:
        return [], []
    return probe.ids[: inner[0]], probe.ids[inner[-1] + 1 :]


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer from captions to int64 ids of a fixed length.

    Attributes:
        definition: the tokenizer as the JSON text of the ``tokenizers`` package.
        length: L, tokens a caption is cut or padded to, the end token included.
        pad: the token that fills a text up; no other token may share its id.
        end: the token that ends a text.
    """

    definition: str
    length: int
    pad: str = PAD
    end: str = END
    identity: str = field(init=False)
    _backend: Backend = field(init=False, repr=False, compare=False)
    _start: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _unknown: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"a text needs at least 2 tokens (one and the end token), got length {self.length}")
        backend = Backend.from_str(self.definition)
        for special in (self.pad, self.end):
            if backend.token_to_id(special) is None:
                raise ValueError(f"the tokenizer has no {special} token")
        digest = disk.digest(self.definition, 6)
        named = "" if (self.pad, self.end) == (PAD, END) else f"/{self.pad}/{self.end}"
        object.__setattr__(self, "identity", f"{digest}/{self.length}{named}")
        # A definition may hold a length of its own: ``length`` overrides it.
        backend.no_truncation()
        backend.no_padding()
        start = tuple(frame(backend)[0])
        if len(start) + 2 > self.length:
            raise ValueError(
                f"a text of this tokenizer opens with {len(start)} tokens: length {self.length} is too short"
            )
        object.__setattr__(self, "_start", start)
        unknown = backend.token_to_id(getattr(backend.model, "unk_token", None) or "")
        object.__setattr__(self, "_unknown", -1 if unknown is None else unknown)
        # A caption that spells "<pad>" or "<end>" is text, not padding or an end.
        backend.encode_special_tokens = True
        object.__setattr__(self, "_backend", backend)

    def __deepcopy__(self, memo: dict[int, object]) -> Tokenizer:
        """Itself: it is frozen, and a copy of a model without its values is made for each price."""
        return self

    @classmethod
    def load(cls, path: Path, length: int) -> Tokenizer:
        """Read a ``tokenizer.json``."""
        return cls(path.read_text(encoding="utf-8"), length)

    @property
    def vocab_size(self) -> int:
        """The least number above all ids; the number of ids where they have no gaps."""
        return max(self._backend.get_vocab().values()) + 1

    @property
    def pad_id(self) -> int:
        """The id that fills a text up to L tokens."""
        return self._special(self.pad)

    @property
    def end_id(self) -> int:
        """The id that ends a text."""
        return self._special(self.end)

    def wordless_N(self, token_NL: Tensor) -> Tensor:
        """Which texts, of ids ``[N, L]`` of this tokenizer, have no token left: bool ``[N]``.

        A text is left with none where the tokenizer drops it whole, or has nothing but its unknown token for it. No
        tokenizer trained here does so with a text that holds a character.
        """
        text_NL = token_NL[:, len(self._start) :]
        nothing = torch.tensor([self.pad_id, self.end_id, self._unknown])
        return torch.isin(text_NL, nothing).all(dim=1)

    def wordless(self, token_NL: Tensor) -> int:
        """The number of texts that have no token left."""
        return int(self.wordless_N(token_NL).sum())

    def _special(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        assert found is not None, "checked when built"
        return int(found)

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before it is cut or padded, opening and end tokens included."""
        encoded = self._backend.encode_batch_fast(list(captions), add_special_tokens=False)
        return [len(self._start) + len(encoding) + 1 for encoding in encoded]

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Token ids ``[N, L]``: opening tokens (most tokenizers have none), the text, the end token, padding."""
        end, pad, start = self.end_id, self.pad_id, self._start
        # Captions repeat: each distinct one is encoded once.
        row_of = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
        rows = []
        for encoding in self._backend.encode_batch_fast(list(row_of), add_special_tokens=False):
            ids = [*start, *encoding.ids[: self.length - 1 - len(start)], end]
            rows.append(ids + [pad] * (self.length - len(ids)))
        ids_CL = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.length)
        return ids_CL[torch.tensor([row_of[caption] for caption in captions], dtype=torch.int64)]
