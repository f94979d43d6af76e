"""Byte-pair tokenizers over captions, with an identity that models can insist on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers
from torch import Tensor

PAD, UNKNOWN, END = "<pad>", "<unk>", "<end>"


def train_bpe(captions: Iterable[str], vocab_size: int) -> Backend:
    """Train a byte-pair tokenizer on captions; the same captions give the same tokenizer.

    Captions are counted before any noise is put in, so that all runs over one data set share it.
    """
    backend = Backend(models.BPE(unk_token=UNKNOWN))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, UNKNOWN, END], show_progress=False, min_frequency=2
    )
    # Sorted: the trainer breaks ties by order of arrival.
    backend.train_from_iterator(sorted(captions), trainer)
    return backend


@dataclass(frozen=True)
class Tokenizer:
    """Captions in, fixed-length int64 ids out.

    Attributes:
        definition: the tokenizer as the JSON text of the ``tokenizers`` package.
        length: L, tokens a caption is cut or padded to, the end token included.
    """

    definition: str
    length: int
    identity: str = field(init=False)
    _backend: Backend = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"a text needs at least 2 tokens (one and the end token), got length {self.length}")
        backend = Backend.from_str(self.definition)
        for special in (PAD, END):
            if backend.token_to_id(special) is None:
                raise ValueError(f"the tokenizer has no {special} token")
        digest = hashlib.blake2b(self.definition.encode(), digest_size=6).hexdigest()
        object.__setattr__(self, "identity", f"{digest}/{self.length}")
        # A caption that spells "<pad>" or "<end>" is text, not padding or an end.
        backend.encode_special_tokens = True
        object.__setattr__(self, "_backend", backend)

    @classmethod
    def load(cls, path: Path, length: int) -> Tokenizer:
        """Read a ``tokenizer.json``."""
        return cls(path.read_text(encoding="utf-8"), length)

    @property
    def vocab_size(self) -> int:
        """Number of distinct ids."""
        return int(self._backend.get_vocab_size())

    @property
    def pad_id(self) -> int:
        """The id that fills a text up to L tokens."""
        return self._special(PAD)

    def _special(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        assert found is not None, "checked when built"
        return int(found)

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Token ids ``[N, L]``: the caption's tokens, the end token, padding."""
        end, pad = self._special(END), self.pad_id
        # Captions repeat: each distinct one is encoded once.
        row_of = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
        rows = []
        for encoding in self._backend.encode_batch_fast(list(row_of)):
            ids = [*encoding.ids[: self.length - 1], end]
            rows.append(ids + [pad] * (self.length - len(ids)))
        ids_CL = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.length)
        return ids_CL[torch.tensor([row_of[caption] for caption in captions], dtype=torch.int64)]
