"""The choice of a data set's tokenizer: trained on its captions, a ``tokenizer.json``, or from the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as Backend

from jestbench import disk
from jestbench.batch import DataError
from jestbench.model.tokenizer import END, LEAST_VOCABULARY, PAD, RECIPE, Tokenizer, frame, train_bpe

SAMPLE = 200_000
"""Most captions that a tokenizer is trained on, evenly spread over the pool."""

PADS = (PAD, "[PAD]", "<|pad|>", "<PAD>")
ENDS = (END, "<|endoftext|>", "</s>", "<eos>", "[SEP]", "<|end_of_text|>", "<|im_end|>")


@dataclass(frozen=True)
class TokenizerChoice:
    """The source of a tokenizer, and its options.

    Attributes:
        source: empty trains a byte-pair tokenizer on the captions of the pool; a path leads to a
            ``tokenizer.json`` or to a folder that holds one; any other text is a name on the Hugging Face hub, fetched
            once into the cache.
        revision: of a name on the hub: a branch, a tag or a commit.
        length: L, tokens a caption is cut or padded to.
        vocab_size: of a trained tokenizer, at most: 256 bytes, padding, end, and merges.
        pad: the token that fills a text up; ``None`` finds it, or adds one where padding would read as an end
            (CLIP's own tokenizer pads with its end token).
        end: the token that ends a text; ``None`` finds it, or adds one.
    """

    source: str = ""
    revision: str = "main"
    length: int = 32
    vocab_size: int = 8192
    pad: str | None = None
    end: str | None = None

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"tokenizer.length must be at least 2 tokens (one and the end token), got {self.length}")
        if self.vocab_size < LEAST_VOCABULARY:
            raise ValueError(
                f"tokenizer.vocab_size must be at least {LEAST_VOCABULARY} (256 bytes, padding, end), "
                f"got {self.vocab_size}"
            )
        if self.pad is not None and self.pad == self.end:
            raise ValueError(f"tokenizer.pad and tokenizer.end are both {self.pad!r}: padding would read as an end")

    def stored(self, folder: Path, trained_on: str) -> Path:
        """The file that holds the prepared definition.

        Args:
            folder: the cache folder of tokenizers.
            trained_on: fingerprint of the captions that a tokenizer is trained on.
        """
        trained = ["trained", str(RECIPE), str(self.vocab_size), trained_on]
        asked = [self.source, self.revision] if self.source else trained
        return folder / f"{disk.digest(json.dumps(asked))}.json"

    def prepare(self, folder: Path, trained_on: str, captions: Callable[[], Sequence[str]]) -> None:
        """Train or fetch the definition, unless it is already prepared.

        Raises:
            DataError: the definition cannot be fetched.
        """
        path = self.stored(folder, trained_on)
        if self._local() is not None or path.exists():
            return
        if self.source:
            text = self._fetch()
        else:
            every = captions()
            step = -(-len(every) // SAMPLE)
            text = train_bpe((every[i] for i in range(0, len(every), step)), self.vocab_size).to_str()
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write_text(path, text)

    def is_prepared(self, folder: Path, trained_on: str) -> bool:
        """Whether ``prepare`` has nothing left to do."""
        return self._local() is not None or self.stored(folder, trained_on).exists()

    def load(self, folder: Path, trained_on: str) -> Tokenizer:
        """Load the prepared tokenizer.

        Raises:
            DataError: the file is missing or holds no tokenizer.
        """
        path = self._local() or self.stored(folder, trained_on)
        try:
            return self.framed(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"the tokenizer {path} cannot be read: {error.strerror}") from error

    def framed(self, definition: str) -> Tokenizer:
        """Build the tokenizer of a definition; its padding and end tokens are found, or added where missing.

        Raises:
            DataError: the definition is invalid, or lacks the configured ``pad`` or ``end`` token.
        """
        try:
            backend = Backend.from_str(definition)
        except Exception as error:  # the package raises Exception itself
            raise DataError(f"tokenizer.source = {self.source!r} is no tokenizer.json: {error}") from error
        for name, token in (("pad", self.pad), ("end", self.end)):
            if token is not None and backend.token_to_id(token) is None:
                raise DataError(f"tokenizer.{name} = {token!r}: the tokenizer {self.source!r} has no such token")
        padding = (backend.padding or {}).get("pad_token")
        backend.no_truncation()
        backend.no_padding()
        _, behind = frame(backend)
        closing = backend.id_to_token(behind[0]) if behind else None
        known = [token for token in (closing, *ENDS) if token and backend.token_to_id(token) is not None]
        end = self.end or next((token for token in known if token != self.pad), END)
        known = [token for token in (padding, *PADS) if token and backend.token_to_id(token) is not None]
        pad = self.pad or next((token for token in known if token != end), PAD)
        added = [token for token in (pad, end) if backend.token_to_id(token) is None]
        if added:
            backend.add_special_tokens(added)
            definition = backend.to_str()
        return Tokenizer(definition, self.length, pad, end)

    def _local(self) -> Path | None:
        path = disk.user_path(self.source)
        if not self.source or not path.exists():
            return None
        return path / "tokenizer.json" if path.is_dir() else path

    def _fetch(self) -> str:
        if self.source.endswith(".json") or self.source.count("/") > 1:
            raise DataError(f"tokenizer.source = {self.source!r}: there is no such file")
        try:
            definition: str = Backend.from_pretrained(self.source, revision=self.revision).to_str()
        except Exception as error:
            raise DataError(
                f"tokenizer.source = {self.source!r} is no file, and the Hugging Face hub does not give it: "
                f"{disk.first_line(error)}; name a tokenizer.json, or leave it empty to train one"
            ) from error
        return definition
