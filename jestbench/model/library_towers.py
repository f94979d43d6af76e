"""Two towers that their own library runs, in training: for architectures that our towers do not express."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from jestbench.batch import FULL, View
from jestbench.model.foreign_towers import ForeignImage, ForeignText, ForeignTowers
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import TwoTowers


class LibraryTowers(TwoTowers):
    """A model of another library that is trained by the library's own forward pass, with its own preprocessing.

    Weights are named ``image.net.…`` after the library's own names; both encoders share one module.

    Attributes:
        source: how the model is built anew: ``library``, its ``files`` (JSON objects by name) and the ``reason`` why
            our towers do not express it.
    """

    image: ForeignImage  # type: ignore[assignment]
    text: ForeignText  # type: ignore[assignment]
    counted_on = "cpu"  # a library's forward pass may look at values

    def __init__(self, foreign: ForeignTowers, tokenizer: Tokenizer, source: Mapping[str, Any]) -> None:
        """Take over a model of another library.

        Args:
            foreign: the model; its modules are shared, not copied.
            tokenizer: its own, as a run folder can hold it.
            source: as the attribute.
        """
        foreign.image.width = foreign.width
        super().__init__(foreign.image, foreign.text, tokenizer, foreign.loss)  # type: ignore[arg-type]
        self.source, self.brings_tokenizer = source, True
        with torch.no_grad():
            self.log_scale.copy_(foreign.log_scale)
            self.bias.copy_(foreign.bias)
        self.register_state_dict_post_hook(_once)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_twice)  # type: ignore[no-untyped-call]

    @property
    def text_length(self) -> int:
        """L, tokens of a text."""
        return self.tokens.length

    def checked(self, view: View) -> View:
        """The full view.

        Raises:
            ValueError: the view is another one; the message gives the reason.
        """
        if not self.image.preprocessing.leaves_whole(view):
            raise ValueError(
                f"this model is trained whole, as {self.source['library']} runs it, not under a view ({view.label}): "
                f"{self.source['reason']}"
            )
        return FULL

    def prepare(self, view: View) -> None:
        """Nothing."""

    def trained_by(self, views: Collection[View]) -> dict[View, frozenset[str]]:
        """All of the library's that require a gradient: what neither encoder uses is frozen.

        No pass finds them out as in the base, since a library may ask for values.
        """
        own = self.image.named_parameters(prefix="image")
        weights = frozenset(name for name, value in own if value.requires_grad)
        return dict.fromkeys(views, weights)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Nothing: which modules are alike, the library decides."""

    @contextmanager
    def checkpointing(self, enabled: bool) -> Iterator[None]:
        """Nothing, where no activations are to be checkpointed.

        Raises:
            AttributeError: they are.
        """
        if enabled:
            raise AttributeError("a model that its library runs checkpoints no activations")
        yield

    def freeze_unused(self) -> None:
        """Freeze what neither encoder uses: the library's own t and b₀, a decoder of captions."""
        images = torch.zeros(2, 3, self.pixels, self.pixels, dtype=torch.uint8, device=self.log_scale.device)
        ids_BL = self.tokens.encode(["a", "a"]).to(images.device)
        weights = [value for value in self.image.net.parameters() if value.requires_grad]
        with torch.enable_grad():
            out = self.eval().image(images).sum() + self.text(ids_BL).sum()
            found = torch.autograd.grad(out, weights, allow_unused=True)
        for value, gradient in zip(weights, found, strict=True):
            value.requires_grad_(gradient is not None)

    def library_weights(self) -> dict[str, torch.Tensor]:
        """The weights by the library's names, with t and b₀ as they were trained."""
        weights = dict(self.image.net.state_dict())
        for name, value in {"logit_scale": self.log_scale, "logit_bias": self.bias}.items():
            if name in weights:
                weights[name] = value.detach().reshape(weights[name].shape)
        return weights


SHARED, DOUBLE = "image.net.", "text.net."
"""Names that the weights have by the image encoder, and by the text encoder."""


def _once(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Keep the weights of the shared module under one name."""
    for name in [name for name in state if name.startswith(prefix + DOUBLE)]:
        del state[name]


def _twice(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Give the weights of the shared module under both names."""
    own = prefix + SHARED
    state.update({prefix + DOUBLE + name[len(own) :]: state[name] for name in [*state] if name.startswith(own)})
