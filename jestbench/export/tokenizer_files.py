"""The tokenizer of a model as files that ``transformers`` opens, by which open_clip makes the same ids."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from jestbench.disk import write_json, write_text
from jestbench.model.tokenizer import Tokenizer, frame


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``.

    Args:
        folder: to write into.
        tokenizer: opening tokens, end token, padding and length are part of what is written.
    """
    backend = Backend.from_str(tokenizer.definition)
    opening = [str(backend.id_to_token(each)) for each in frame(backend)[0]]
    special = {token: backend.token_to_id(token) for token in (*opening, tokenizer.end)}
    backend.post_processor = TemplateProcessing(
        single=[*opening, "$A", tokenizer.end], pair=None, special_tokens=list(special.items())
    )
    backend.no_truncation()
    backend.no_padding()
    write_text(folder / "tokenizer.json", backend.to_str(pretty=True))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.length,
        "pad_token": tokenizer.pad,
        "eos_token": tokenizer.end,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # a caption that spells "<end>" is text
    }
    write_json(folder / "tokenizer_config.json", config)
