"""The libraries whose models can be trained as these run them, and such a model of a run folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jestbench.disk import write_json
from jestbench.engine.foreign import Foreign
from jestbench.engine.hugging_face_clip import HuggingFaceClip
from jestbench.engine.open_clip_model import OpenClip
from jestbench.model.library_towers import LibraryTowers
from jestbench.model.tokenizer import Tokenizer

LIBRARIES: Mapping[str, type[Foreign]] = {kind.library: kind for kind in (OpenClip, HuggingFaceClip)}
"""By the name that a kind is bound by, and that a run folder holds."""


def library_towers(source: Mapping[str, Any], tokenizer: Tokenizer) -> LibraryTowers:
    """A model built by its library from the files that a run folder holds, with random weights.

    Args:
        source: as of ``LibraryTowers``.
        tokenizer: whose ids its text encoder takes.

    Raises:
        ForeignError: the library is not installed.
        DataError: the library needs more to build the model than these files, and it cannot be fetched.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in source["files"].items():
            write_json(Path(folder) / name, content)
        return LibraryTowers(LIBRARIES[source["library"]].at(Path(folder)).load(untrained=True), tokenizer, source)
